"""budget show, grant, forecast, history."""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from hubbub.accounting.grants import filter_grant, schedule_grant
from hubbub.accounting.ledger import Ledger
from hubbub.cli import show as view
from hubbub.cli.home import chosen_home, home_with_log
from hubbub.engine.home import open_log
from hubbub.errors import BudgetError, InputError
from hubbub.eventlog import EventLog
from hubbub.events import BudgetGranted, BudgetReserved
from hubbub.governance import Federation

DELTA = 1e-5
"""Of a new budget, where nothing else is said."""


def show(options: argparse.Namespace) -> None:
    """Show what each dataset has spent, and has left."""
    ledger = Ledger(_log(options))
    lines, accounts = ledger.statements(), ledger.allowed()
    planned = {line.dataset: accounts.planned(line.dataset) for line in lines} if options.planned else None
    view.statements(lines, as_json=options.json, planned=planned)


def history(options: argparse.Namespace) -> None:
    """List everything the ledger holds."""
    view.history(_log(options).events(), as_json=options.json)


def forecast(options: argparse.Namespace) -> None:
    """Show how often a plan still fits."""
    from hubbub.engine import plan
    from hubbub.study import load_study

    log = _log(options)
    planned = plan(load_study(options.planned))
    federation = log.fold(Federation)
    accounts = {name: federation.datasets[key].account for name, key in federation.held().items()}
    names = None if federation.is_sandbox else [accounts.get(name, name) for name in planned.slots]
    view.forecast(Ledger(log).forecast(planned.reservation("", names)), as_json=options.json)


def grant(options: argparse.Namespace) -> None:
    """Allow datasets to spend more."""
    ledger = Ledger(_log(options, must_exist=False))
    known = ledger.accounts().grants
    names = sorted({name for pattern in options.datasets for name in _matching(pattern, known)})
    grants = [_grant(name, known.get(name), options) for name in names]
    _check_lowered(grants, known, options)
    _check_given(grants, options)
    ledger.grant(grants)
    if new := [name for name in names if name not in known]:
        print(f"hubbub: new budgets, of names that nothing was granted to before: {', '.join(new)}", file=sys.stderr)
    view.statements([line for line in ledger.statements() if line.dataset in names], as_json=False)


def _grant(name: str, before: BudgetGranted | None, options: argparse.Namespace) -> BudgetGranted:
    delta = DELTA if options.delta is None else options.delta
    if options.plan:
        plans = [_planned(study) for study in options.plan]
        return schedule_grant(name, plans, options.epsilon, delta)
    if before is not None:
        kind = "gaussian" if before.kind == "gaussian" else "filter"
        return filter_grant(name, before.unit, options.epsilon, before.delta, order=before.order, kind=kind)
    kind = "gaussian" if options.gaussian else "filter"
    return filter_grant(name, options.unit or "example", options.epsilon, delta, kind=kind)


def _check_lowered(
    grants: Sequence[BudgetGranted], known: Mapping[str, BudgetGranted], options: argparse.Namespace
) -> None:
    """A pattern may match more than was meant, and a budget that is lowered stops other studies."""
    lowered = [grant for grant in grants if grant.dataset in known and grant.epsilon < known[grant.dataset].epsilon]
    if lowered and not options.lower:
        one = lowered[0]
        raise BudgetError(
            f"{one.dataset}, has epsilon {known[one.dataset].epsilon:g}, found less, {one.epsilon:g}"
            + (f", and {len(lowered) - 1} more like it" if len(lowered) > 1 else "")
            + "; nothing granted",
            hint="name other datasets, or add --lower",
        )


def _check_given(grants: Sequence[BudgetGranted], options: argparse.Namespace) -> None:
    """What is said of a budget must be so: only epsilon changes, and plans have their own unit."""
    given = {"unit": options.unit, "delta": options.delta, "kind": "gaussian" if options.gaussian else None}
    for grant, (key, value) in itertools.product(grants, given.items()):
        if value not in (None, has := getattr(grant, key)):
            raise BudgetError(
                f"{grant.dataset}, has {key} {has}, which stays as it is, found {value}; nothing granted",
                hint=f"leave out --{value if key == 'kind' else key}, or grant to other names",
            )


def _matching(pattern: str, known: dict[str, BudgetGranted]) -> list[str]:
    if not any(sign in pattern for sign in "*?["):
        return [pattern]
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise InputError(
            f"{pattern!r}, must match a dataset of the ledger, found none; nothing granted",
            hint="hubbub budget show",
        )
    return names


def _planned(study: str) -> BudgetReserved:
    from hubbub.engine import plan
    from hubbub.study import load_study

    return plan(load_study(study)).reservation("")


def _log(options: argparse.Namespace, *, must_exist: bool = True) -> EventLog:
    if must_exist:
        home_with_log(options, "nothing was ever granted or run there")
    return open_log(chosen_home(options))
