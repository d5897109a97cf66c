"""What a participant checks of the log before it enters a session.

It keeps a copy of the log, so that a head is right if and only if the copy and what came with the head lead to its
root; what the log says is then read from all of it. One small method per rule, as in `secagg.checks`: taking one
away must fail the test that is named for the attack it stops.

*Trust:* with a quorum of honest witnesses, everybody in a session saw one history; without one, this is decoration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from hubbub.accounting.accounts import is_owners
from hubbub.accounting.grants import is_private
from hubbub.errors import BudgetError, InputError, RoundError, VerificationError
from hubbub.events import BudgetReserved, decode_event
from hubbub.governance import Roster
from hubbub.participant.log_view import LogView, Mark, Reservation
from hubbub.participant.memory import Memory
from hubbub.participant.opening import Opening
from hubbub.secagg import Session
from hubbub.secagg.closing import Receipt, is_member
from hubbub.secagg.messages import Envelope, Signed, read
from hubbub.tlog import Checkpoint, Note, Policy, Verifier
from hubbub.tlog.note import parse_note
from hubbub.tlog.policy import NONE
from hubbub.tlog.verify import AHEAD, FRESH, Verified, is_fork, verify_checkpoint
from hubbub.tlog.witness import Evidence

_REPORT: Final = "keep this message as evidence and report the coordinator"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a participant knows from elsewhere than the log.

    Args:
        name: Its name in the roster.
        account: Name of the budget that pays for its data; empty: that of the newest dataset that the log says it
            holds.
        policy: Which log is meant, and whose cosignatures count.
        org_min: Fewest organisations in a roster.
        keys_per_organisation: Most keys of one organisation in a roster.
        witness: Its own witness key: it enters no session under a head that it did not cosign; None: it is none.
    """

    name: str
    account: str
    policy: Policy
    org_min: int = 2
    keys_per_organisation: int = 1
    witness: Verifier | None = None


class LogGuard:
    """One participant's rules for message 0.

    Args:
        memory: What it must not forget.
        site: What it knows from elsewhere.
        started: When this process began, in POSIX seconds: until then its memory may have been put back.

    Guarantees:
        A mark and a charge are on the disk when `mark` and `charge` return. Marks only grow. No session is admitted
        whose head a quorum did not cosign within a day, or whose history is not the one seen before. While a quorum
        is honest, every attempt that was ever answered is charged, or nothing is admitted before `recover`.

    Raises:
        InputError: The policy asks for no quorum.
    """

    def __init__(self, memory: Memory, site: Site, started: int) -> None:
        if site.policy.quorum == NONE:
            raise InputError(
                f"{site.name}, must have a policy with a quorum of witnesses, found 'quorum none'; nothing opened",
                hint="quorum NAME, in the policy",
            )
        self.evidence: list[Evidence] = []
        self._memory = memory
        self._site = site
        self.view = LogView()
        """What the entries say that it has followed so far."""
        self.is_compared = False
        """Whether its memory holds all that the log says was charged: asked once after each start."""
        self._started = started
        self._admitted: Session | None = None
        self._first: Mark | None = None

    # --- what a host calls ---

    @property
    def account(self) -> str:
        """Name of the budget that pays for its data; empty while the log knows none."""
        return self._site.account or self.view.account_of(self._site.name)

    def check(self, opening: Opening, session: Session, now: int, planned: BudgetReserved) -> Roster:
        """Refuse a session that the log does not bear out; the roster in force if it does.

        The same session may be asked for again, since the answer to it may have been lost.

        Args:
            opening: What came with message 0.
            session: Message 0.
            now: POSIX seconds.
            planned: What the plan that this participant knows reserves: `plan.reservation("", [account])`.

        Raises:
            BudgetError: Its dataset's budget does not hold what is reserved on it.
            RoundError, VerificationError: A rule is broken; the message names it, and nothing was entered.
        """
        self._admitted = None
        head = self.follow(opening, now)
        self._check_log(session, head.checkpoint)
        reservation = self._check_reservation(session, planned)
        self._check_charged(session, reservation)
        self._check_permission(session, reservation, now)
        self._check_budget(reservation)
        roster = self._check_roster(session)
        self._check_organisations(roster)
        self._check_keys_per_organisation(roster)
        self._check_current(head)
        self.check_memory(session)
        self._check_closing_record(session)
        self._check_receipt(session, opening)
        self._check_mark(session)
        self._first = self._first if self.is_compared else session.mark
        self.is_compared = True
        self._admitted = session
        return roster

    def follow(self, opening: Opening, now: int) -> Verified:
        """Take the entries up to a newer head into the copy of the log; the head.

        Best called with the newest head when a host starts: if nothing is under way then, nothing remains to compare.

        Raises:
            RoundError: The head is old, or smaller than the copy; nothing taken in.
            VerificationError: No quorum cosigned it, it does not continue the copy, or an entry is no valid act.
        """
        note = parse_note(opening.checkpoint)
        verified = self._check_quorum(note)
        self._check_fresh(verified, now)
        self._check_own_cosignature(note)
        head = verified.checkpoint
        self._check_no_fork(verified, note)
        self._memory.extend(note, lambda size: self._check_continues(opening, head, size))
        for body in self._memory.entries(self.view.federation.entries):
            self.view.apply(decode_event(body))
        self.is_compared = self.is_compared or (self._is_since(verified, self._started) and not self._unknown())
        return verified

    def mark(self, run: int, round_number: int, attempt: int) -> None:
        """Remember durably that a session is entered, before any key of it exists: a port of `secagg.Client`.

        Raises:
            RoundError: Another session than the one that `check` admitted last, or its mark is not above the last.
        """
        mark, admitted = (run, round_number, attempt), self._admitted
        if admitted is None or admitted.mark != mark:
            raise self._refusal("must enter the session that was checked", repr(mark), hint="check it first")
        if not self._memory.enter(mark, admitted.id):
            raise self._refusal(f"must enter sessions in order, its mark is {self._memory.last.mark}", repr(mark))
        if mark == self._first:
            self._charge_first(mark)

    def charge(self, round_number: int, attempt: int) -> None:
        """Charge an attempt durably, before its masked input exists: a port of `secagg.Client`.

        Raises:
            RoundError: It is not the attempt that was entered.
            BudgetError: The reservation holds no further attempt.
        """
        mark = self._memory.last.mark
        if not self.is_compared or mark[1:] != (round_number, attempt):
            raise self._refusal("must charge the attempt that it entered", repr((round_number, attempt)))
        reserved = self._reserved(mark[0])
        if not self._memory.charge(mark, reserved):
            raise BudgetError(
                f"{self._site.name}, must charge at most the {reserved} attempts that were reserved, found one more; "
                "nothing sent, no budget spent",
                hint="the run is over: reserve another",
            )

    def consent(self, reply: bytes) -> None:
        """Remember durably what it consents to, before the reply to `survivors` leaves: it may ask for a receipt.

        Args:
            reply: That reply, as `secagg.Client` gave it.

        Raises:
            RoundError: It is of another session than the one that was entered.
        """
        envelope = read(Envelope, reply)
        is_own = envelope.kind == "consent"
        is_own = is_own and self._memory.consent(envelope.session, Signed(envelope.body, envelope.signature).encode())
        self._require(is_own, "must remember consents to the session that it entered", repr(envelope.kind))

    def _charge_first(self, mark: Mark) -> None:
        """The attempt under way at its start: it may have answered that one before its memory was put back."""
        self._memory.charge(mark, self._reserved(mark[0]))

    def _reserved(self, run: int) -> int:
        return self.view.reservations[run].event.attempts

    def recover(self, opening: Opening, now: int) -> list[Mark]:
        """Go on after a restore from a copy, which the owner asks for: takes the maximum of memory and log.

        Args:
            opening: The newest head and the entries up to it.
            now: POSIX seconds.

        Returns:
            Attempts that the copy did not know, now charged; some of them were perhaps never answered.

        Raises:
            RoundError, VerificationError: As `follow`.
        """
        head = self.follow(opening, now)
        self._check_current(head)
        lost = sorted(self._unknown())
        self._memory.recover(lost)
        self.is_compared = True
        return lost

    # --- the head ---

    def _check_quorum(self, note: Note) -> Verified:
        return verify_checkpoint(note, self._site.policy)

    def _check_fresh(self, head: Verified, now: int) -> None:
        is_fresh = self._is_since(head, now - FRESH, now + AHEAD)
        rule = f"must be shown a head that a quorum cosigned in the last {FRESH // 3600} hours"
        self._require(is_fresh, rule, "older cosignatures, or later ones than now")

    def _check_own_cosignature(self, note: Note) -> None:
        """Its own memory of what it cosigned is one that no coordinator and no other witness can talk round."""
        is_own = self._site.witness is None or self._site.witness.signed_at(note) is not None
        self._require(is_own, "must be shown a head that it cosigned itself", "one that it did not")

    def _is_since(self, head: Verified, earliest: int, latest: int | None = None) -> bool:
        """Whether a quorum cosigned a head between these times."""
        times = head.cosigned.items()
        names = [name for name, time in times if earliest <= time and (latest is None or time <= latest)]
        return self._site.policy.is_quorum(names)

    def _check_no_fork(self, verified: Verified, note: Note) -> None:
        """A log that signed two roots at one size is convicted: both heads are kept."""
        known = self._memory.head
        if known is not None and is_fork(known, note, verified.log):
            self.evidence.append(Evidence(known, note, is_fork=True))
            raise self._broken(f"must be shown one history by {verified.log.name}", "two signed heads of one size")

    def _check_continues(self, opening: Opening, head: Checkpoint, size: int) -> Sequence[bytes]:
        """The entries that its copy does not have yet."""
        if head.size < size:
            raise self._refusal(f"must be shown a head of {size} entries or more", f"{head.size}", hint="ask again")
        is_whole = 0 <= opening.start <= size and opening.start + len(opening.entries) == head.size
        self._require(is_whole, f"must be shown the entries {size} to {head.size}", "others")
        new = opening.entries[size - opening.start :]
        if self._memory.root_with(new) != head.root:
            raise self._broken(
                f"must be shown a head that continues the {size} entries it knows", "entries that lead to another root"
            )
        return new

    # --- the session ---

    def _check_log(self, session: Session, head: Checkpoint) -> None:
        is_same = (session.log_origin, session.log_size, session.log_root) == (head.origin, head.size, head.root)
        self._require(
            is_same, "must be asked into a session bound to the head it is shown", "another log, size or root"
        )

    def _check_reservation(self, session: Session, planned: BudgetReserved) -> Reservation:
        """What is set aside is what the plan costs: neither fewer attempts nor events that cost less."""
        reservation = self.view.reservations.get(session.run)
        if reservation is None:
            raise self._refusal(f"must find its run's reservation at entry {session.run}", "none")
        event = reservation.event
        self._require(
            event.plan_hash == session.plan.hex(), "must find the plan that it knows reserved", "another plan"
        )
        whole = msgspec.structs.replace(planned, run=event.run, datasets=event.datasets)
        self._require(event == whole, "must find its plan reserved at its whole cost", "another reservation")
        self._require(self.account in event.datasets, "must find its own budget among those reserved", "others")
        self._require(not reservation.is_settled, "must find the run's reservation open", "it settled")
        return reservation

    def _check_budget(self, reservation: Reservation) -> None:
        """Its owner's budget, as the federation's acts say, holds everything that the log reserves on it."""
        accounts, account, unit = self.view.accounts, self.account, reservation.event.unit
        grant = accounts.grants.get(account)
        is_owners_own = grant is not None and grant.unit == unit and is_owners(grant, self.view.federation)
        is_fitting = is_owners_own and is_private(reservation.event)
        is_fitting = is_fitting and grant is not None and accounts.spent(account) <= grant.epsilon
        if grant is None or not (is_fitting or (grant.kind == "unbounded" and is_owners_own)):
            left = "no budget" if grant is None else f"a {grant.kind} of epsilon {grant.epsilon:g} per {grant.unit}"
            raise BudgetError(
                f"{self._site.name}, must find room for its runs on the budget that its owner registered, found {left} "
                "and more reserved on it; nothing sent, no budget spent",
                hint=_REPORT,
            )

    def _check_charged(self, session: Session, reservation: Reservation) -> None:
        """So that the log never holds less than was answered."""
        is_charged = session.mark[1:] in reservation.charged
        self._require(is_charged, "must find this attempt charged in the log before it is asked", "no charge")

    def _check_permission(self, session: Session, reservation: Reservation, now: int) -> None:
        federation, run = self.view.federation, reservation.event.run
        case, study = federation.case_of(run), federation.study_of(run)
        is_approved = study is not None and (study.study, study.plan_hash) == (session.study, session.plan.hex())
        self._require(is_approved, "must find its study approved when the run began", "no approval of it")
        standing = federation.standing(case, now) if case is not None else "lapsed"
        self._require(standing == "in force", "must find the approval of its study in force", f"it {standing}")
        self._require(not federation.is_stopped(run), "must find a run that nobody stopped", "it stopped")

    def _check_roster(self, session: Session) -> Roster:
        roster = self.view.federation.roster()
        is_in_force = (session.roster_epoch, session.roster.hex()) == (roster.epoch, roster.hash)
        self._require(is_in_force, f"must be asked with the signed roster in force, epoch {roster.epoch}", "another")
        is_member = self._site.name in {card.name for card in roster.members}
        self._require(is_member, "must be in the roster in force", "no card of that name")
        return roster

    def _check_organisations(self, roster: Roster) -> None:
        fewest, found = self._site.org_min, len({card.organisation for card in roster.members})
        self._require(found >= fewest, f"must be in a roster of {fewest} organisations", str(found))

    def _check_keys_per_organisation(self, roster: Roster) -> None:
        names = [card.organisation for card in roster.members]
        most = self._site.keys_per_organisation
        crowded = sorted({name for name in names if names.count(name) > most})
        rule = f"must be in a roster with at most {most} keys of one organisation"
        self._require(not crowded, rule, f"{names.count(crowded[0])} of {crowded[0]!r}" if crowded else "")

    # --- its memory ---

    def _unknown(self, session: Session | None = None) -> set[Mark]:
        """Attempts of the log that its memory, which is at least as new, would know; charged ones before `session`."""
        account, last = self.account, self._memory.last.mark
        charged = {mark for mark in self.view.charged(account) if session is None or mark < session.mark}
        return {mark for mark in charged | self.view.closed(account) if mark > last}

    def _check_current(self, head: Verified) -> None:
        """What it is compared with after a start holds all that was ever answered, or a quorum lies."""
        is_current = self.is_compared or self._is_since(head, self._started)
        self._require(is_current, "must be shown, when it starts, a head that a quorum cosigned since", "an older one")

    def check_memory(self, session: Session | None = None) -> None:
        """Only before the first session after a start: later on, what it does not know it was not asked for."""
        if not self.is_compared and (unknown := sorted(self._unknown(session))):
            raise self._refusal(
                f"must remember every attempt of its runs when it starts, its mark is {self._memory.last.mark}",
                f"{len(unknown)} in the log above it, the last {unknown[-1]}: it was restored from a copy, or was away",
                hint="hubbub recover",
            )

    def _check_closing_record(self, session: Session) -> None:
        mark, name, _ = self._memory.last
        if name not in (b"", session.id):
            is_closed = name.hex() in self._closed(mark)
            self._require(is_closed, f"must find the record of the session it entered last, {mark}", "none")

    def _check_receipt(self, session: Session, opening: Opening) -> None:
        """Whoever consented to a sum that was released is among the members that the log commits to."""
        mark, name, consent = self._memory.last
        members = self._closed(mark).get(name.hex())
        if name not in (b"", session.id) and consent and members is not None:
            rule = f"must be shown its receipt of the session it consented in last, {mark}"
            self._require(bool(opening.receipt), rule, "none")
            is_in = is_member(read(Receipt, opening.receipt), members, self._site.name, consent)
            self._require(is_in, rule, "one that does not lead to the record's members")

    def _closed(self, mark: Mark) -> dict[str, str | None]:
        reservation = self.view.reservations.get(mark[0])
        return reservation.closed.get(mark[1:], {}) if reservation is not None else {}

    def _check_mark(self, session: Session) -> None:
        over = max(self.view.closed(self.account), default=(0, 0, 0))
        floor = over if session.id == self._memory.last.session else max(over, self._memory.last.mark)
        rule = f"must be asked for each (run, round, attempt) once and in order, its mark is {floor}"
        self._require(session.mark > floor, rule, f"{session.mark}")

    # --- how a rule is broken ---

    def _require(self, is_met: bool, rule: str, found: str) -> None:  # noqa: FBT001, the rule's own answer
        if not is_met:
            raise self._refusal(rule, found)

    def _refusal(self, rule: str, found: str, *, hint: str = _REPORT) -> RoundError:
        return RoundError(f"{self._site.name}, {rule}, found {found}; nothing sent, no budget spent", hint=hint)

    def _broken(self, rule: str, found: str) -> VerificationError:
        return VerificationError(
            f"{self._site.name}, {rule}, found {found}; nothing sent, no budget spent", hint=_REPORT
        )
