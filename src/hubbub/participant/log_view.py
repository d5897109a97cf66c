"""What a log says about sessions: reservations, attempts, closing records, and who may.

*Trust:* none of its own: a fold over entries that somebody else has verified.
"""

from dataclasses import dataclass, field

from hubbub.accounting.accounts import Accounts, check_granted
from hubbub.events import (
    AnyEvent,
    BudgetCharged,
    BudgetGranted,
    BudgetReserved,
    BudgetSettled,
    RoundClosed,
    RoundFailed,
)
from hubbub.governance import Federation

Attempt = tuple[int, int]
"""Round and attempt, both from 1."""

Mark = tuple[int, int, int]
"""Run, round and attempt: what only ever grows."""


@dataclass
class Reservation:
    """One reservation and what became of it.

    Args:
        index: Of its entry: the number of the run.
        event: As it was recorded.
        charged: Attempts that the coordinator charged before it asked.
        closed: Attempts that are over, with the sessions that their records name, and for each the root over its
            members, None if nothing was released.
        is_settled: Whether the run is over.
    """

    index: int
    event: BudgetReserved
    charged: set[Attempt] = field(default_factory=set[Attempt])
    closed: dict[Attempt, dict[str, str | None]] = field(default_factory=dict[Attempt, dict[str, str | None]])
    is_settled: bool = False

    def mark(self, attempt: Attempt) -> Mark:
        """An attempt of this run as a mark."""
        return (self.index, *attempt)

    def sessions(self, event: RoundClosed | RoundFailed) -> dict[str, str | None]:
        """The sessions of an attempt that a record is of."""
        return self.closed.setdefault((event.round_number, event.attempt), {})


@dataclass
class LogView:
    """The state after some entries of a log; it starts empty."""

    federation: Federation = field(default_factory=Federation)
    accounts: Accounts = field(default_factory=Accounts)
    reservations: dict[int, Reservation] = field(default_factory=dict[int, Reservation])
    _newest: dict[str, Reservation] = field(default_factory=dict[str, Reservation])

    def apply(self, event: AnyEvent) -> None:
        """Take one more entry in.

        Raises:
            VerificationError: An act that was not valid where it stands, a grant that no owner made, or accounts that
                no ledger wrote.
        """
        index = self.federation.entries
        if isinstance(event, BudgetGranted):
            check_granted(event, self.accounts, self.federation)
        self.accounts.apply(event)
        self.federation.apply(event)
        if isinstance(event, BudgetReserved):
            self._newest[event.run] = self.reservations[index] = Reservation(index, event)
            return
        reservation = self._newest.get(getattr(event, "run", ""))
        match event:
            case BudgetCharged() if reservation is not None:
                reservation.charged.add((event.round_number, event.attempt))
            case RoundClosed() if reservation is not None:
                reservation.sessions(event)[event.session] = event.members
            case RoundFailed() if reservation is not None:
                reservation.sessions(event).setdefault(event.session, None)
            case BudgetSettled() if reservation is not None:
                reservation.is_settled = True
            case _:
                pass

    def reservation_of(self, run: str) -> Reservation | None:
        """The reservation of a run; None if there is none."""
        return self._newest.get(run)

    def dataset_of(self, participant: str) -> str:
        """The newest dataset that a participant holds; empty if it holds none."""
        return self.federation.held().get(participant, "")

    def account_of(self, participant: str) -> str:
        """Name of the budget that pays for the newest dataset of a participant; empty if it holds none."""
        dataset = self.dataset_of(participant)
        return self.federation.datasets[dataset].account if dataset else ""

    def closed(self, account: str) -> set[Mark]:
        """Every session that is over, of runs that are paid for by this budget."""
        return {one.mark(attempt) for one in self._paid_by(account) for attempt in one.closed}

    def charged(self, account: str) -> set[Mark]:
        """Every attempt that the coordinator charged to this budget."""
        return {one.mark(attempt) for one in self._paid_by(account) for attempt in one.charged}

    def _paid_by(self, account: str) -> list[Reservation]:
        return [one for one in self.reservations.values() if account in one.event.datasets]
