"""What the commands of governance show: keys, datasets, incidents, what waits for whom."""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
from rich import box
from rich.table import Table

from hubbub.cli.acts import state_of
from hubbub.cli.governance import SHORT, found, title
from hubbub.cli.plain import cell, console, json, print_rows, utc
from hubbub.governance import Federation
from hubbub.governance.state import Case
from hubbub.governance.statement import Decision


def keys_list(options: argparse.Namespace) -> None:
    """List every key that was ever in force."""
    state = state_of(options)
    rows = [
        {
            "key": key,
            "name": holder.card.name,
            "organisation": holder.card.organisation,
            "role": holder.card.role,
            "epoch": holder.epoch,
            "standing": holder.reason or "in force",
        }
        for key, holder in state.holders.items()
    ]
    _print_rows(rows, ("key", "name", "organisation", "role", "epoch", "standing"), as_json=options.json)


def federation_show(options: argparse.Namespace) -> None:
    """Show who belongs to a federation and how many it has of what."""
    state = state_of(options)
    roster = state.roster()
    shown = {
        "name": state.name or "sandbox: nothing is founded, everything is automatic",
        "id": state.id,
        "epoch": state.epoch,
        "roster": roster.hash,
        "participants": sorted(card.name for card in roster.members),
        "people": sorted(
            f"{card.name}, {card.role} of {card.organisation}" for card in state.in_force() if card.role != "node"
        ),
        "datasets": len(state.datasets),
        "runs": len(state.runs),
        "incidents": len(state.incidents),
    }
    if options.json:
        json(shown)
        return
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in shown.items():
        table.add_row(name, cell("\n".join(value) if isinstance(value, list) else value))
    console().print(table)


def dataset_list(options: argparse.Namespace) -> None:
    """List every dataset."""
    state = state_of(options)
    rows = [
        {
            "dataset": key if options.json else key[:SHORT],
            "held by": f"{known.registered.participant} of {known.registered.organisation}",
            "purposes": ", ".join(known.registered.purposes),
            "until": str(known.registered.retention),
            "budget": str(state.budgets[known.account]).removeprefix("budget of "),
            "standing": "erased" if known.is_erased else "kept",
        }
        for key, known in state.datasets.items()
    ]
    headers = ("dataset", "held by", "purposes", "until", "budget", "standing")
    _print_rows(rows, headers, as_json=options.json)


def approvals(options: argparse.Namespace) -> None:
    """Show what waits for whom, and what is late; or one proposal whole."""
    state = state_of(options)
    now = int(time.time())
    if options.case:
        _print_whole(state, state.cases[found(options.case, state.cases, "a proposal")], now, as_json=options.json)
        return
    rows = [
        {
            "id": case.id if options.json else case.id[:SHORT],
            "asks for": title(case, state),
            "asked by": f"{case.proposer.name}, {case.proposer.role} of {case.proposer.organisation}",
            "waits for": ", ".join(map(str, state.missing(case, now))),
            "until": utc(case.proposal.expires),
        }
        for case in state.pending(now)
    ]
    rows += [
        {
            "id": late.id if options.json else late.id[:SHORT],
            "asks for": f"late: {late.kind}",
            "asked by": "",
            "waits for": f"1 {late.role}" + (f" of {late.organisation}" if late.organisation else ""),
            "until": utc(late.deadline),
        }
        for late in state.due(now)
    ]
    _print_rows(rows, ("id", "asks for", "asked by", "waits for", "until"), as_json=options.json)


def incident_list(options: argparse.Namespace) -> None:
    """List every incident and how soon it was acknowledged."""
    state = state_of(options)
    rows = [
        {
            "id": key if options.json else key[:SHORT],
            "severity": item.severity,
            "summary": item.summary,
            "run": item.run,
            "opened": utc(item.opened_at, "%Y-%m-%d"),
            "seen after": _minutes(item.opened_at, item.acknowledged_at),
            "closed after": _minutes(item.opened_at, item.closed_at),
        }
        for key, item in state.incidents.items()
    ]
    headers = ("id", "severity", "summary", "run", "opened", "seen after", "closed after")
    _print_rows(rows, headers, as_json=options.json)


def _print_whole(state: Federation, case: Case, now: int, *, as_json: bool) -> None:
    """Everything that a signature would be under, and who signed already."""
    is_denied = state.standing(case, now) == "denied"  # nobody can change that
    missing = [] if is_denied else [str(one) for one in state.missing(case, now)]
    if as_json:
        whole = {"id": case.id, "standing": state.standing(case, now), "asked_by": case.proposer}
        decisions = {card.name: decision for card, decision in case.decisions.values()}
        json(whole | {"proposal": case.proposal, "decisions": decisions, "waits_for": missing})
        return
    proposal, asked_by = case.proposal, case.proposer
    rows = [
        ("id", case.id),
        ("standing", state.standing(case, now)),
        ("asked by", f"{asked_by.name}, {asked_by.role} of {asked_by.organisation}, on {utc(proposal.at)}"),
        ("of the federation", proposal.federation or "that it founds"),
        ("to be decided by", utc(proposal.expires)),
        *_leaves(msgspec.json.decode(msgspec.json.encode(proposal.act))),
        *((f"decision of {card.name}", _told(decision)) for card, decision in case.decisions.values()),
        ("waits for", ", ".join(missing) or "nobody"),
    ]
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(cell(name), cell(value))
    console().print(table)


def _told(decision: Decision) -> str:
    conditions = f", on condition: {'; '.join(decision.conditions)}" if decision.conditions else ""
    return f"{decision.verdict} on {utc(decision.at)}, until {utc(decision.expires)}{conditions}"


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside a document, with the names that lead to it; nothing is left out."""
    if isinstance(value, dict) and value:
        for name, inner in cast("dict[str, Any]", value).items():
            yield from _leaves(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in cast("list[Any]", value)):
        for number, inner in enumerate(cast("list[Any]", value)):
            yield from _leaves(inner, f"{place}[{number}]")
    elif isinstance(value, dict | list):
        yield place, ", ".join(map(str, cast("list[Any]", value))) or "none"
    else:
        yield place, "none" if value is None else value


def _minutes(start: int, end: int | None) -> str:
    return "" if end is None else f"{(end - start) / 60:.0f} min"


def _print_rows(rows: Sequence[Mapping[str, object]], headers: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        json(rows)
        return
    if not rows:
        print("none")
        return
    print_rows(headers, [[str(row[header]) for header in headers] for row in rows], folded=headers[1:])  # ids are whole
