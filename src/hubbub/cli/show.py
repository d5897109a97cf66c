"""What the command line prints for a person: tables, one progress bar; and JSON for a machine."""

import itertools
import math
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hubbub.accounting.accounts import Statement
from hubbub.accounting.ledger import Forecast
from hubbub.accounting.shown import at_least, at_most
from hubbub.cli.plain import cell, console, json, print_rows
from hubbub.engine import RunResult
from hubbub.engine.prepare import Prepared
from hubbub.engine.record import Watch
from hubbub.events import (
    AnyEvent,
    BudgetCharged,
    BudgetGranted,
    BudgetReserved,
    BudgetSettled,
    Decided,
    Evaluated,
    Event,
    Proposed,
    RequestRefused,
    RoundClosed,
)
from hubbub.governance.acts import DATASET
from hubbub.governance.statement import read
from hubbub.planning import Plan
from hubbub.secagg.parameters import Parameters
from hubbub.study import Slots

MANY = 12
"""Rows above which equal neighbours are shown as one."""
NUMBERS = {"spent", "of", "left", "planned", "one run costs", "runs that fit"}


def plan_json(plan: Plan) -> None:
    """Print a plan with its hash."""
    json({"plan_hash": plan.hash, **msgspec.structs.asdict(plan)})


def plan(plan: Plan) -> None:
    """Print a plan for a person."""
    out, facts = console(), _facts(f"plan of {plan.study}")
    unit = "record" if plan.unit == "example" else "participant"
    mechanism = plan.mechanism
    facts.add_row("protects", f"each {unit}, under {plan.relation}")
    facts.add_row(
        "privacy",
        f"{_epsilon(plan.epsilon)} at delta {plan.delta:g}, for {plan.rounds} rounds and {plan.retries} retries",
    )
    facts.add_row("", "  ".join(f"round {at}: {_epsilon(plan.epsilon_after(at))}" for at in _milestones(plan.rounds)))
    facts.add_row(
        "mechanism",
        f"clip at {mechanism.max_norm:g}, noise multiplier {plan.noise_multiplier:.6f}, noise {mechanism.noise_words}",
    )
    facts.add_row(
        "integers",
        f"scale 2^{_exponent(mechanism.scale)}, sensitivity {mechanism.sensitivity:.3f}, sigma {mechanism.sigma}",
    )
    facts.add_row("sampling", f"probability {plan.sampling_probability:g}, expected batch {plan.expected_batch:g}")
    facts.add_row(
        "participants",
        f"{len(plan.slots)} with {sum(plan.slots.values())} slots, at least {plan.minimum} in a round",
    )
    if plan.secagg is not None:
        for number, line in enumerate(_thresholds(plan, plan.secagg)):
            facts.add_row("" if number else "only the sum", line)
    facts.add_row("each sends", f"{plan.bytes_up_per_round:,} bytes a round, receives {plan.bytes_down_per_round:,}")
    facts.add_row("plan hash", plan.hash)
    out.print(facts)
    trust = Table(
        "against",
        "epsilon",
        "amplified",
        "because",
        title="who must be trusted for what",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for claim in plan.claims:
        bound = "none: trusted" if claim.epsilon is None else at_least(claim.epsilon)
        trust.add_row(claim.adversary, bound, "yes" if claim.amplified else "no", claim.reason)
    out.print(trust)


def _thresholds(plan: Plan, parameters: Parameters) -> list[str]:
    """What secure aggregation promises, in words; plan.json has the same as k, t, U_min, n_min, c."""
    holders = f"{parameters.neighbours} that it chose" if parameters.neighbours else "everybody"
    factor = math.sqrt(parameters.n / plan.mechanism.shares)
    noise = f"noise {factor:.2f} times the coordinator's if all answer" if plan.mechanism.sigma else "no noise"
    drops = {0: "no dropout", 1: "one dropout"}.get(parameters.survives, f"{parameters.survives} dropouts")
    return [
        (
            f"secure aggregation: starts with {parameters.n_min} or more, at least {parameters.u_min} in a sum, "
            f"survives {drops}; {noise}"
        ),
        (
            f"{holders} holds shares of each secret, {parameters.threshold} give it back; "
            f"hides from the coordinator with {parameters.colluding} colluding"
        ),
    ]


def checked(prepared: Prepared, *, with_null_slots: bool) -> None:
    """Print what was checked; counts of null slots only where the data owner asks."""
    lock = prepared.study.lock
    print(f"{prepared.study.settings.study.name}: file, code and data are as declared")
    table = Table("participant", "slots", box=box.SIMPLE_HEAD)
    if with_null_slots:
        table.add_column("null slots (private)")
    for name, slots in prepared.slots.items():
        nulls = [str(len(slots) - slots.real.size)] if with_null_slots else []
        table.add_row(name, str(len(slots)), *nulls)
    console().print(table)
    if lock is not None:
        where = prepared.study.lock_path or "in memory"
        sizes = f"{lock.parameters} parameters, {sum(lock.slots.values())} slots, {_measured(prepared.test)}"
        print(f"{sizes}; lock: {where}; nothing trained")


def _measured(test: Slots) -> str:
    """Test records are no secret: their metrics are published as they are."""
    real = test.real.size
    return f"{real} test records" + (f" (of {len(test)}: the others cannot be measured)" if real < len(test) else "")


def result(result: RunResult) -> None:
    """Print the closing table of a run."""
    table = _facts(f"run {result.run}")
    table.add_row("rounds", str(result.rounds))
    table.add_row("participants", str(result.participants))
    for name, value in result.metrics.items():
        goal = result.goals.get(name)
        table.add_row(f"test {name}", f"{value:.4f}" + (f"  (goal {goal:g})" if goal is not None else ""))
    budget = "" if result.epsilon_budget is None else f" of {result.epsilon_budget:g}"
    table.add_row("epsilon spent", f"{_epsilon(result.epsilon_spent)}{budget} at delta {result.delta:g}")
    if result.is_success is not None:
        table.add_row("success", "met" if result.is_success else "not met")
    table.add_row("standing", f"{result.standing.partition(':')[0]}; its log is in {result.home}")
    took = f"{result.wall_seconds:.1f} s"
    table.add_row("time", "the run had ended before: nothing was trained" if result.had_ended else took)
    table.add_row("report", f"{result.out}/report.html")
    console().print(table)


def statements(lines: Sequence[Statement], *, as_json: bool, planned: Mapping[str, float | None] | None = None) -> None:
    """Print what datasets have spent; neighbours that differ in name only share a row where there are many."""
    if as_json:
        json(
            lines
            if planned is None
            else [{**msgspec.structs.asdict(line), "planned": planned[line.dataset]} for line in lines]
        )
        return
    headers = ["dataset", "protects", "grant", "spent", "of", "left", "delta", "runs"]
    rows: list[list[str]] = []
    for name, line in _grouped(lines):
        spent, budget = line.epsilon_spent, line.epsilon_budget
        left = max(budget - spent, 0) if spent is not None and budget is not None else None
        notes = [f"{line.open_runs} open"] * bool(line.open_runs)
        notes += [f"{line.runs_without_noise} without noise"] * bool(line.runs_without_noise)
        rows.append(
            [
                name,
                line.unit,
                line.kind,
                _epsilon(spent),
                "" if budget is None else f"{budget:.4f}",
                "" if left is None else at_most(left),
                "" if line.delta is None else f"{line.delta:g}",
                f"{line.runs}" + (f" ({', '.join(notes)})" if notes else ""),
                *([] if planned is None else [_epsilon(planned[line.dataset])]),
            ]
        )
    print_rows(headers if planned is None else [*headers, "planned"], rows, folded=("dataset", "runs"), right=NUMBERS)


def history(events: Sequence[AnyEvent], *, as_json: bool) -> None:
    """Print the events that bear on budgets; a run's charges in a row share a line."""
    if as_json:
        json(events)
        return
    table = Table("#", "event", "what", box=box.SIMPLE_HEAD)
    for number, kind, what in _told(events):
        table.add_row(number, kind, cell(what))
    console().print(table)


def _told(events: Sequence[AnyEvent]) -> list[tuple[str, str, str]]:
    """Number, kind and words of each event, equal neighbours joined."""
    lines: list[tuple[str, str, str]] = []
    numbered = [(number, event) for number, event in enumerate(events, start=1) if _words(event)]
    for (kind, *_), group in itertools.groupby(numbered, key=lambda pair: _alike(pair[1])):
        (first, start), (last, end) = (members := list(group))[0], members[-1]
        words = _words(start)
        if last > first:
            words += f" … {end.dataset}" if isinstance(end, BudgetGranted) else f" … round {_at(end)}"
        lines.append((f"{first}" if first == last else f"{first}-{last}", str(kind), words))
    return lines


def _alike(event: AnyEvent) -> tuple[object, ...]:
    """Equal for events that are told on one line."""
    kind = type(event).__struct_config__.tag
    match event:
        case BudgetGranted():
            return (kind, msgspec.structs.replace(event, dataset=""))
        case BudgetCharged():
            return (kind, event.run)
        case _:
            return (kind, id(event))


def _words(event: AnyEvent) -> str:
    match event:
        case BudgetGranted():
            order = f" at Renyi order {event.order:g}" if event.order else ""
            return (
                f"by {event.granted_by}: {event.kind} of epsilon {event.epsilon:g}, delta {event.delta:g}{order}, "
                f"per {event.unit}: {event.dataset}"
            )
        case BudgetReserved() | BudgetCharged() | BudgetSettled():
            return f"run {event.run}: {_spent(event)}"
        case Proposed() | Decided():
            return read(event.envelope).words
        case RequestRefused():
            return f"{event.asked}: {event.reason}"
        case _:
            return ""


def _spent(event: BudgetReserved | BudgetCharged | BudgetSettled) -> str:
    match event:
        case BudgetReserved():
            return f"{event.attempts} attempts on {len(event.datasets)} datasets"
        case BudgetCharged():
            return f"round {_at(event)}"
        case BudgetSettled():
            return f"{event.charged} attempts charged"


def _at(event: AnyEvent) -> str:
    number, attempt = getattr(event, "round_number", 0), getattr(event, "attempt", 1)
    return f"{number}" if attempt == 1 else f"{number} attempt {attempt}"


@contextmanager
def progress(*, is_shown: bool) -> Generator[Watch]:
    """A progress bar on standard error, on a terminal only; yields what feeds it with events."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
        TextColumn("{task.fields[spent]}"),
        console=console,
        disable=not (is_shown and console.is_terminal),
    )
    task = bar.add_task("checking", total=None, metrics="", spent="")
    attempts = 0

    def watch(event: Event, plan: Plan) -> None:
        nonlocal attempts
        if isinstance(event, BudgetCharged):
            attempts += 1
            spent = f"epsilon {_epsilon(plan.epsilon_after(attempts))}"
            bar.update(task, description="training", total=plan.rounds, spent=spent)
        elif isinstance(event, RoundClosed):
            bar.update(task, completed=event.round_number)
        elif isinstance(event, Evaluated):
            bar.update(task, metrics="  ".join(f"{name} {value:.3f}" for name, value in event.metrics.items()))

    with bar:
        yield watch


def _facts(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else at_least(value)


def _milestones(rounds: int) -> list[int]:
    return sorted({max(1, rounds * part // 4) for part in (1, 2, 3, 4)})


def _exponent(scale: float) -> int:
    return round(float(scale)).bit_length() - 1 if scale >= 1 else 1 - round(1 / scale).bit_length()


def forecast(lines: Sequence[Forecast], *, as_json: bool) -> None:
    """Print how often a plan still fits."""
    if as_json:
        json(lines)
        return
    rows: list[list[str]] = []
    for line in lines:
        cost = "none yet" if line.cost is None else at_least(line.cost)
        left = "none yet" if line.left is None else at_most(line.left)
        rows.append([_short(line.dataset), cost, left, "" if line.runs is None else str(line.runs)])
    print_rows(["dataset", "one run costs", "left", "runs that fit"], rows, folded=("dataset",), right=NUMBERS)


def _short(dataset: str) -> str:
    """A dataset's name; of a registered one, whose name is 32 random digits, as many as tell it apart."""
    return dataset[:12] if re.match(DATASET, dataset) else dataset


def _grouped(lines: Sequence[Statement]) -> list[tuple[str, Statement]]:
    if len(lines) <= MANY:
        return [(_short(line.dataset), line) for line in lines]
    groups: list[list[Statement]] = []
    for line in lines:
        if groups and msgspec.structs.replace(line, dataset="") == msgspec.structs.replace(groups[-1][0], dataset=""):
            groups[-1].append(line)
        else:
            groups.append([line])
    return [
        (
            group[0].dataset if len(group) == 1 else f"{group[0].dataset} … {group[-1].dataset} ({len(group)})",
            group[0],
        )
        for group in groups
    ]
