"""The budget ledger of the datasets in one home: what was granted, reserved, spent, for ever.

A fold over the event log: events are stored, never epsilons.

States of a run: reserved (its whole schedule counts) -> charged, attempt by attempt -> settled (attempts
never opened return, where a filter guards the dataset). A crash leaves it reserved: over-counted, never
under-counted.

*Trust:* whoever can write this file can spend a dataset's budget twice; it stays with the data owner.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from hubbub.accounting.accounts import FIXED, Accounts, Statement, owners_grant
from hubbub.accounting.grants import Use, composed, is_private, sandbox_grant
from hubbub.accounting.shown import at_least, at_most
from hubbub.errors import BudgetError, typed
from hubbub.eventlog import EventLog
from hubbub.events import AnyEvent, BudgetCharged, BudgetGranted, BudgetReserved, BudgetSettled
from hubbub.governance import Federation
from hubbub.governance.acts import DATASET

_FEW: Final = 8
"""Names that a hint still lists."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What one more run of a plan would cost a dataset, what it has left, how many such runs fit.

    None where no filter guards the dataset yet: a sandbox grants itself two runs of the first plan.
    """

    dataset: str
    cost: float | None
    left: float | None
    runs: int | None


class Ledger:
    """The budgets of one event log, and the only way to spend them.

    Args:
        log: Where everything is recorded; an entry is durable when a method returns.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log

    def accounts(self) -> Accounts:
        """The accounts as they are now."""
        return self.log.fold(Accounts)

    def allowed(self) -> Accounts:
        """The accounts with what owners allow now: the next run's reservation takes it in."""
        accounts, federation = self.accounts(), self.log.fold(Federation)
        owners = {name: owners_grant(federation, name, accounts.grants.get(name)) for name in federation.budgets}
        return Accounts(accounts.grants | owners, accounts.runs)

    def statements(self) -> list[Statement]:
        """What every dataset has spent, by name."""
        accounts = self.allowed()
        used = {dataset for run in accounts.runs.values() for dataset in run.reserved.datasets}
        return [accounts.statement(dataset) for dataset in sorted(used | set(accounts.grants))]

    def grant(self, grants: Sequence[BudgetGranted]) -> None:
        """Set or change what datasets may spend.

        A filter keeps its unit, delta and order for ever: only epsilon may change. A schedule never changes.

        Raises:
            BudgetError: Another kind, unit, delta or order than the dataset has, or less than it has spent; or
                a federation, where budgets are proposed by their owners.
        """

        def decide() -> list[AnyEvent]:
            if not self.log.fold(Federation).is_sandbox:
                raise BudgetError(
                    f"{grants[0].dataset}, gets its budget by a proposal in this federation, found a grant by hand; "
                    "nothing granted",
                    hint="hubbub propose budget DATASET --epsilon E --key FILE",
                )
            return [_checked(self.accounts(), grant) for grant in grants]

        asked = f"a {grants[0].kind} of epsilon {grants[0].epsilon:g} for {_typed([one.dataset for one in grants])}"
        self.log.append(decide, asked=asked)

    def forecast(self, reserved: BudgetReserved, most: int = 100) -> list[Forecast]:
        """How often a plan still fits on each of its datasets, if all of each run is charged; nothing is reserved.

        Args:
            reserved: What one run would reserve.
            most: Where counting stops.
        """
        accounts = self.allowed()
        return [_forecast(accounts, dataset, reserved, most) for dataset in reserved.datasets]

    def reserve(
        self,
        reserved: BudgetReserved,
        *,
        sandbox_delta: float | None = None,
        permit: Callable[[], Sequence[BudgetGranted]] = tuple,
    ) -> list[AnyEvent]:
        """Set a whole schedule aside on all datasets, or refuse and change nothing.

        Args:
            reserved: What the run will do.
            sandbox_delta: Delta of the automatic grant for datasets without one; None refuses those.
            permit: Called on the newest state, in the same transaction; raises if this may not be run, returns
                grants that owners have made and that are not in the ledger yet.

        Returns:
            The events appended: new sandbox grants and the reservation.

        Raises:
            BudgetError: A dataset has no budget for it; nothing trained, nothing spent.
        """

        def decide() -> list[AnyEvent]:
            accounts = self.accounts()
            if reserved.run in accounts.runs:
                raise BudgetError(
                    f"run {reserved.run}, is reserved once, found a second time; nothing trained, nothing spent",
                    hint="start a new run",
                )
            granted = [_checked(accounts, grant) for grant in permit()]
            accounts = Accounts(accounts.grants | {grant.dataset: grant for grant in granted}, accounts.runs)
            new = [*granted, *_sandbox_grants(accounts, reserved, sandbox_delta)]
            after = Accounts(accounts.grants | {grant.dataset: grant for grant in new}, accounts.runs)
            admit(after, reserved, home=str(self.log.path.parent))
            return [*new, reserved]

        return self.log.append(decide, asked=f"run {reserved.run} of plan {reserved.plan_hash}")

    def charge(self, run: str, round_number: int, attempt: int) -> None:
        """Charge one attempt, durably. Who is charged for an attempt may answer it, once: a second charge is refused.

        Raises:
            BudgetError: The run is not reserved, is settled, has used all its attempts, or is charged for this one
                already.
        """

        def decide() -> list[AnyEvent]:
            accounts = self.accounts()
            account = accounts.runs.get(run)
            if account is None or account.is_settled:
                raise _not_open(run)
            if (round_number, attempt) in account.charged:
                raise BudgetError(
                    f"run {run}, is charged once for round {round_number} attempt {attempt}, found a second charge; "
                    "nothing sent, nothing spent",
                    hint="a retry is a new attempt",
                )
            if len(account.charged) >= account.reserved.attempts:
                raise BudgetError(
                    f"run {run}, may open {account.reserved.attempts} attempts, found one more; "
                    "nothing sent, nothing spent",
                    hint="plan with more privacy.retries",
                )
            return [BudgetCharged(run=run, round_number=round_number, attempt=attempt)]

        self.log.append(decide)

    def settle(self, run: str) -> BudgetSettled:
        """Close a run's reservation: only what was charged counts from now on, where a filter guards.

        Raises:
            BudgetError: The run has no reservation that is open.
        """

        def decide() -> list[AnyEvent]:
            account = self.accounts().runs.get(run)
            if account is None or account.is_settled:
                raise _not_open(run)
            return [BudgetSettled(run=run, charged=len(account.charged))]

        (settled,) = self.log.append(decide)
        return settled  # pyright: ignore[reportReturnType]


def _forecast(accounts: Accounts, dataset: str, reserved: BudgetReserved, most: int) -> Forecast:
    grant = accounts.grants.get(dataset)
    if grant is None or grant.kind in {"schedule", "unbounded"} or not is_private(reserved):
        return Forecast(dataset=dataset, cost=None, left=None, runs=None)
    uses, use = accounts.uses(dataset), (reserved, reserved.attempts)
    spent, count = composed(grant, uses), 0
    while count < most and composed(grant, [*uses, *[use] * (count + 1)]) <= grant.epsilon:
        count += 1
    one = composed(grant, [*uses, use]) - spent
    return Forecast(dataset=dataset, cost=one, left=max(grant.epsilon - spent, 0), runs=count)


def _not_open(run: str) -> BudgetError:
    return BudgetError(
        f"run {run}, must hold a reservation, found none that is open; nothing sent, nothing spent",
        hint="start a new run",
    )


def _no_budget(dataset: str, reserved: BudgetReserved) -> BudgetError:
    return BudgetError(
        f"{dataset}, has no budget, nothing was granted; nothing trained, nothing spent",
        hint=f"hubbub budget grant {typed(dataset)} --epsilon 3 --unit {reserved.unit}",
    )


def _checked(accounts: Accounts, grant: BudgetGranted) -> BudgetGranted:
    before = accounts.grants.get(grant.dataset)
    if before is not None and "schedule" in {before.kind, grant.kind}:
        raise BudgetError(
            f"{grant.dataset}, has a {before.kind} that is fixed for ever, found a new {grant.kind}; nothing granted",
            hint="a schedule is listed once, before any of its plans is run",
        )
    if before is not None:
        for name in FIXED:
            was, now = getattr(before, name), getattr(grant, name)
            if was != now:
                raise BudgetError(
                    f"{grant.dataset}: {name}, is fixed when a budget is made, found {now!r} after {was!r}; "
                    "nothing granted",
                    hint=f"hubbub budget grant {typed(grant.dataset)} --epsilon {grant.epsilon:g}, in the same home",
                )
    spent = composed(grant, accounts.uses(grant.dataset))
    if grant.epsilon < spent and grant.kind != "unbounded":
        raise BudgetError(
            f"{grant.dataset}, must be granted at least the epsilon {at_least(spent)} it has spent, "
            f"found {grant.epsilon:g}; nothing granted",
            hint=f"{typed('hubbub', 'budget', 'grant', grant.dataset)} --epsilon {math.ceil(spent * 10) / 10:g}, "
            "in the same home",
        )
    return grant


def _sandbox_grants(accounts: Accounts, reserved: BudgetReserved, delta: float | None) -> list[BudgetGranted]:
    missing = [dataset for dataset in reserved.datasets if dataset not in accounts.grants]
    if not is_private(reserved) or not missing:
        return []
    if delta is None:
        raise _no_budget(missing[0], reserved)
    pattern = sandbox_grant(missing[0], reserved, delta)
    return [msgspec.structs.replace(pattern, dataset=dataset) for dataset in missing]


def admit(accounts: Accounts, reserved: BudgetReserved, home: str, *, compose: bool = True) -> None:
    """Refuse unless every dataset has room for the whole schedule; equal accounts are composed once.

    Args:
        accounts: As they are before.
        reserved: What is to be set aside.
        home: Where a person would ask for more.
        compose: False checks all but what needs an accountant: that there is a budget, for this unit and plan.

    Raises:
        BudgetError: One has not; nothing trained, nothing spent.
    """
    known: set[bytes] = set()
    for dataset in reserved.datasets:
        grant = accounts.grants.get(dataset)
        if not is_private(reserved) and (grant is None or grant.granted_by == "sandbox"):
            continue  # a run without noise on a sandbox: recorded, and no claim is made for it
        if grant is None:
            raise _no_budget(dataset, reserved)
        _check_fits(grant, reserved)
        if grant.kind == "unbounded":
            continue  # whoever approves a study decides alone
        if grant.kind == "schedule":
            _check_listed(grant, accounts.uses(dataset), reserved)
        if compose and (key := accounts.key(dataset)) not in known:
            _admit_one(grant, accounts, reserved, home)
            known.add(key)


def _check_fits(grant: BudgetGranted, reserved: BudgetReserved) -> None:
    """Refuse a run that protects other units than the budget does, or nobody."""
    if grant.unit != reserved.unit:
        raise BudgetError(
            f"{grant.dataset}, has a budget for unit = {grant.unit!r}, this study protects unit = {reserved.unit!r}; "
            "nothing trained, nothing spent",
            hint=f"unit = {grant.unit!r} in study.toml",
        )
    if not is_private(reserved) and grant.kind != "unbounded":
        raise BudgetError(
            f"{grant.dataset}, has a budget of epsilon {grant.epsilon:g}, this study adds no noise; "
            "nothing trained, nothing spent",
            hint='noise = "server", or work on data without a budget',
        )


def _check_listed(grant: BudgetGranted, uses: list[Use], reserved: BudgetReserved) -> None:
    used = sum(use.plan_hash == reserved.plan_hash for use, _ in uses)
    if used >= grant.plan_hashes.count(reserved.plan_hash):
        raise BudgetError(
            f"{grant.dataset}, admits its listed plans only, found plan {reserved.plan_hash[:12]} "
            f"listed {grant.plan_hashes.count(reserved.plan_hash)} times and run {used} times; "
            "nothing trained, nothing spent",
            hint="a schedule is fixed in advance; other plans need another dataset's budget",
        )


def _admit_one(grant: BudgetGranted, accounts: Accounts, reserved: BudgetReserved, home: str) -> None:
    uses = accounts.uses(grant.dataset)
    if grant.kind == "gaussian" and math.isinf(composed(grant, [(reserved, 1)])):
        raise BudgetError(
            f"{grant.dataset}, has a budget for Gaussian noise without sampling, found a study that samples; "
            "nothing trained, nothing spent",
            hint='examples = "everything" in study.toml, or a dataset with another kind of budget',
        )
    spent, total = composed(grant, uses), composed(grant, [*uses, (reserved, reserved.attempts)])
    if total > grant.epsilon:
        enough = f"{math.ceil(total * 10) / 10:g}" if math.isfinite(total) else "E"
        more = f"{_asking(grant.dataset, reserved.datasets)} --epsilon {enough} --home {typed(home)}"
        raise BudgetError(
            f"{grant.dataset} has epsilon {at_most(max(grant.epsilon - spent, 0), 2)} of {at_most(grant.epsilon, 2)} "
            f"left at delta {grant.delta:g}, this study needs {at_least(total - spent, 2)}; "
            "nothing trained, nothing spent",
            hint=f"{_fitting(grant, uses, reserved)} rounds of its noise fit, or ask for more: {more}"
            + _returning(grant, accounts),
        )


def _returning(grant: BudgetGranted, accounts: Accounts) -> str:
    """Which open runs hold more than they have used."""
    runs = [run for run in accounts.runs.values() if grant.dataset in run.reserved.datasets and not run.is_settled]
    names = [run.reserved.run for run in runs if len(run.charged) < run.reserved.attempts]
    if not names or grant.kind == "schedule":
        return ""
    return f"; or give up what is open and return the rest of it, {', '.join(names)}: hubbub stop RUN"


def _asking(dataset: str, datasets: Sequence[str]) -> str:
    """Who raises a budget: its owner with this word; of a registered dataset, named by a random id, a proposal."""
    if re.match(DATASET, dataset):
        return f"hubbub propose budget {dataset[:12]} --key FILE"
    return f"hubbub budget grant {_typed(datasets)}"


def _typed(datasets: Sequence[str]) -> str:
    """These names for a command line, and no other study's: of many, the pattern of their common beginning."""
    if len(datasets) <= _FEW:
        return typed(*datasets)
    first, last = min(datasets), max(datasets)
    same = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return typed(f"{first[:same]}*")


def _fitting(grant: BudgetGranted, uses: list[Use], reserved: BudgetReserved) -> int:
    """How many attempts of this run would fit."""
    low, high = 0, reserved.attempts
    while high - low > 1:
        middle = (low + high) // 2
        fits = composed(grant, [*uses, (reserved, middle)]) <= grant.epsilon
        low, high = (middle, high) if fits else (low, middle)
    return low
