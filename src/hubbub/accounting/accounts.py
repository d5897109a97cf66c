"""The accounts of the datasets in one log: the fold of everything that was granted, reserved, charged, settled.

Events are stored, never epsilons; what a dataset has spent is computed from them, by its grant's own accountant.

*Trust:* a fold of what a log holds: it refuses what no ledger writes, and believes the rest.
"""

from dataclasses import dataclass, field

import msgspec

from hubbub.accounting import codec
from hubbub.accounting.epsilon import ORDERS
from hubbub.accounting.grants import Use, composed, filter_grant, is_private, planned
from hubbub.errors import InputError, VerificationError
from hubbub.events import AnyEvent, BudgetCharged, BudgetGranted, BudgetReserved, BudgetSettled, encode_event
from hubbub.governance import Federation

FIXED = ("kind", "unit", "delta", "order")
"""What a grant's guarantee rests on: it never changes, or runs that were paid for would cost something else."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What one dataset has spent. Epsilon by the grant's accountant; None is infinite or no budget."""

    dataset: str
    unit: str
    kind: str
    epsilon_spent: float | None
    epsilon_budget: float | None
    delta: float | None
    order: float | None
    runs: int
    open_runs: int
    runs_without_noise: int


@dataclass
class RunAccount:
    """One run's reservation and what became of it."""

    reserved: BudgetReserved
    charged: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    is_settled: bool = False

    def counted(self, kind: str) -> int:
        """Attempts that count against a grant of this kind."""
        return len(self.charged) if self.is_settled and kind != "schedule" else self.reserved.attempts


@dataclass
class Accounts:
    """The fold of all ledger events."""

    grants: dict[str, BudgetGranted] = field(default_factory=dict[str, BudgetGranted])
    runs: dict[str, RunAccount] = field(default_factory=dict[str, RunAccount])
    _costs: dict[bytes, float] = field(default_factory=dict[bytes, float], repr=False)

    def apply(self, event: AnyEvent) -> None:
        """Fold one more event in.

        Raises:
            VerificationError: No ledger writes this event here.
        """
        match event:
            case BudgetGranted():
                self._check_fixed(event)
                self.grants[event.dataset] = event
            case BudgetReserved():
                self._require(event.run not in self.runs, event.run, "is reserved once")
                self._require(_is_cost(event), event.run, "reserves one attempt or more at no negative cost")
                self.runs[event.run] = RunAccount(event)
            case BudgetCharged():
                account, attempt = self._open_run(event.run), (event.round_number, event.attempt)
                self._require(attempt not in account.charged, event.run, "is charged once for an attempt")
                is_within = len(account.charged) < account.reserved.attempts
                self._require(is_within, event.run, "is charged within its reservation")
                account.charged.add(attempt)
            case BudgetSettled():
                account = self._open_run(event.run)
                self._require(event.charged == len(account.charged), event.run, "settles what was charged")
                account.is_settled = True
            case _:
                pass

    def _open_run(self, run: str) -> RunAccount:
        account = self.runs.get(run)
        self._require(account is not None and not account.is_settled, run, "is open while it is charged and settled")
        return self.runs[run]

    def _check_fixed(self, grant: BudgetGranted) -> None:
        before = self.grants.get(grant.dataset, grant)
        is_same = all(getattr(before, name) == getattr(grant, name) for name in FIXED)
        is_same = is_same and (grant.kind != "schedule" or before == grant)
        if not is_same:
            raise VerificationError(
                f"budget of {grant.dataset}, keeps {', '.join(FIXED)} for ever, found another grant in the log; "
                "nothing spent",
                hint="restore the log from a copy",
            )
        if not grant.order <= ORDERS[-1]:  # computing at it would not end
            raise VerificationError(
                f"budget of {grant.dataset}, must be of an order up to {ORDERS[-1]:g}, found {grant.order:g} in the "
                "log; nothing spent",
                hint="restore the log from a copy",
            )

    @staticmethod
    def _require(is_met: object, run: str, rule: str) -> None:
        """Refuse a log that no ledger has written: what it spent could be hidden in it."""
        if not is_met:
            raise VerificationError(
                f"run {run}, {rule}, found otherwise in the log; nothing spent", hint="restore the log from a copy"
            )

    def number(self, run: str) -> int:
        """Number of a run's reservation, from 1: it only ever grows."""
        return list(self.runs).index(run) + 1

    def uses(self, dataset: str) -> list[Use]:
        """Noised schedules of a dataset, with the attempts that count."""
        kind = self.grants[dataset].kind if dataset in self.grants else "filter"
        accounts = [run for run in self.runs.values() if dataset in run.reserved.datasets]
        return [(run.reserved, run.counted(kind)) for run in accounts if is_private(run.reserved)]

    def key(self, dataset: str) -> bytes:
        """Equal for datasets with equal grants and uses, whatever their names: they are composed once."""
        grant = msgspec.structs.replace(self.grants[dataset], dataset="")
        uses = (b"%d %s" % (count, encode_event(reserved)) for reserved, count in self.uses(dataset))
        return b"|".join([encode_event(grant), *uses])

    def spent(self, dataset: str) -> float:
        """Epsilon of everything a dataset's grant has paid for or set aside, by the grant's accountant."""
        key = self.key(dataset)
        if key not in self._costs:
            self._costs[key] = composed(self.grants[dataset], self.uses(dataset))
        return self._costs[key]

    def planned(self, dataset: str) -> float | None:
        """What a dataset's runs would have cost, had all been planned in advance; None if infinite."""
        is_bounded = dataset in self.grants and self.statement(dataset).epsilon_spent is not None
        if not is_bounded:
            return None
        key = b"planned|" + self.key(dataset)
        if key not in self._costs:
            self._costs[key] = planned(self.grants[dataset], self.uses(dataset))
        return self._costs[key]

    def statement(self, dataset: str) -> Statement:
        """What a dataset has spent."""
        grant = self.grants.get(dataset)
        runs = [run for run in self.runs.values() if dataset in run.reserved.datasets]
        noiseless = sum(not is_private(run.reserved) for run in runs)
        return Statement(
            dataset=dataset,
            unit=grant.unit if grant else "",
            kind=grant.kind if grant else "none",
            epsilon_spent=self.spent(dataset) if grant and not noiseless else None,
            epsilon_budget=grant.epsilon if grant and grant.kind != "unbounded" else None,
            delta=grant.delta if grant else None,
            order=grant.order if grant else None,
            runs=len(runs),
            open_runs=sum(not run.is_settled for run in runs),
            runs_without_noise=noiseless,
        )


def _is_cost(reserved: BudgetReserved) -> bool:
    """Whether a reservation takes from a budget and gives nothing back."""
    try:
        codec.check(reserved.dp_event)
    except InputError:
        return False
    return reserved.attempts >= 1 and reserved.inflation >= 0


def owners_grant(federation: Federation, account: str, before: BudgetGranted | None) -> BudgetGranted:
    """The grant that follows from what an account's owner registered, and from nothing that anybody else chose.

    Args:
        federation: As it is now.
        account: Name of a registered budget.
        before: Its grant until now: the order of its filter was fixed then.
    """
    budget = federation.budgets[account]
    order = before.order if before is not None else None
    return filter_grant(account, budget.unit, budget.epsilon, budget.delta, order=order, kind=budget.kind)


def is_owners(grant: BudgetGranted, federation: Federation) -> bool:
    """Whether a grant allows no more than its owner registered; one from before the founding was asked of nobody."""
    budget = federation.budgets.get(grant.dataset)
    if budget is None:
        return federation.is_sandbox
    is_same = (grant.kind, grant.unit, grant.delta) == (budget.kind, budget.unit, budget.delta)
    return is_same and grant.epsilon <= budget.epsilon


def check_granted(event: BudgetGranted, accounts: Accounts, federation: Federation) -> None:
    """Refuse a grant in the log of a federation that its owner did not register; call it before both take it in.

    Raises:
        VerificationError: Somebody invented it, or changed what the owner allows.
    """
    if federation.is_sandbox:
        return
    before, is_known = accounts.grants.get(event.dataset), event.dataset in federation.budgets
    if not is_known or event != owners_grant(federation, event.dataset, before):
        raise VerificationError(
            f"budget of {event.dataset}, must be what its owner registered, found a {event.kind} of epsilon "
            f"{event.epsilon:g} at delta {event.delta:g}; nothing spent",
            hint="ask the keeper of the log for the true one, and open an incident",
        )
