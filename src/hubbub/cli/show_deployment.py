"""What the command line prints of a coordinator: who is there, what goes on."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from hubbub.accounting.shown import at_least
from hubbub.cli.plain import cell, console, plain
from hubbub.engine.commands import RunStatus, Status
from hubbub.release import ReleaseClaim


def status(found: Status) -> None:
    """Print who is connected and every run."""
    out = console()
    people = Table("participant", "is", box=box.SIMPLE_HEAD)
    for name in found.connected:
        people.add_row(cell(name), "connected")
    for name in found.absent:
        people.add_row(cell(name), "absent")
    out.print(people)
    runs = Table(Column("run", no_wrap=True, min_width=_longest(found)), box=box.SIMPLE_HEAD)  # names are typed again
    for header in ("study", "is", "rounds", "attempts", "because"):
        runs.add_column(header, overflow="fold")
    for run in found.runs:
        rounds = f"{run.rounds} of {run.of}"
        runs.add_row(*map(cell, (run.run, run.study, run.state, rounds, str(run.attempts), run.words)))
    out.print(runs if found.runs else "no run yet")


def outcome(told: RunStatus, claim: ReleaseClaim) -> str:
    """What became of a finished run, in one line."""
    measured = "".join(f"{name} {value:.4f}, " for name, value in claim.metrics.items())
    spent = "infinite" if claim.epsilon_spent is None else at_least(claim.epsilon_spent)
    return f"{measured}epsilon {spent}, {told.rounds} rounds, {told.attempts} attempts charged"


def _longest(found: Status) -> int:
    return max((len(run.run) for run in found.runs), default=0)


@contextmanager
def progress(run: str) -> Generator[Callable[[RunStatus], None]]:
    """Show a run's rounds while the block goes on; give it each newer status."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(plain(run)), total=None)

        def tell(told: RunStatus) -> None:
            bar.update(task, total=told.of, completed=told.rounds)

        yield tell
