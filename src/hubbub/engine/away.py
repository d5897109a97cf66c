"""The participants of a run on hosts of their own, behind any carrier.

    attempt: who is there -> charge -> head cosigned -> log shown -> open, share, masked, consent, unmask -> close

Every attempt stands charged in a log that a quorum of witnesses has cosigned before anybody is asked. Whoever does
not answer by a stage's deadline has dropped out; whoever comes back is offered the run again.

*Trust:* as the coordinator's room: it can stall, and report any sum.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float32

from hubbub.coordinator import Coordinator, Progress
from hubbub.coordinator.sums import MakeSum, SecureSum, Sum
from hubbub.engine.cosign import Cosigners
from hubbub.engine.home import Receipts
from hubbub.engine.prepare import Prepared
from hubbub.engine.record import Record, events_of
from hubbub.engine.running import Hosts, Running, Secagg
from hubbub.engine.transport import Reply, Transport
from hubbub.errors import HubbubError, WaitingError
from hubbub.events import ParticipantRefused, RoundClosed, RoundFailed
from hubbub.governance import Federation, witness_policy
from hubbub.messages import (
    Contribution,
    Done,
    LogShown,
    Message,
    Refused,
    RunOffered,
    decode_message,
    encode_message,
)
from hubbub.participant.log_view import LogView
from hubbub.participant.opening import Opening
from hubbub.planning import Plan, check_across_hosts
from hubbub.secagg import SUITE, Member, Roster, Server, Session, SigningKey
from hubbub.secagg.keys import sha256
from hubbub.tlog import Note, Policy, sign_checkpoint
from hubbub.tlog.checkpoint import parse_checkpoint

_log = logging.getLogger("hubbub.coordinator")

TRAINED = 2
"""The stage after which a participant trains: shares are delivered, masked vectors come back."""
SESSIONS = "sessions"
AGAIN = 10.0
"""Seconds after which whoever refused a run is offered it again: its owner may have changed its policy."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long is waited for whom, in seconds.

    Args:
        stage: For answers that need no training.
        training: For masked vectors, and for joining a run.
        patience: For enough participants to be there; then the run waits to be resumed.
    """

    stage: float = 20.0
    training: float = 600.0
    patience: float = 120.0


class SitesAway:
    """Participants behind a transport.

    Args:
        transport: Reaches them.
        key: Signs messages of rounds.
        receipts: What finds each participant in the last record that it is in.
        deadlines: How long is waited.
        evidence: Of the machine that this runs on; empty if there is none.
    """

    hosts: Hosts = "own"

    def __init__(
        self, transport: Transport, key: SigningKey, receipts: Receipts, deadlines: Deadlines, evidence: bytes = b""
    ) -> None:
        self._transport = transport
        self._key = key
        self._receipts = receipts
        self._deadlines = deadlines
        self._evidence = evidence
        self._joined: dict[str, int] = {}
        self._refused: dict[str, tuple[int, float]] = {}
        self._signed: set[str] = set()
        self._is_halted = threading.Event()

    def halt(self) -> None:
        """End the run after the attempt that goes on; it stays reserved."""
        self._is_halted.set()

    def secagg(self, plan: Plan) -> Secagg:
        """Always run; refuses a plan without."""
        check_across_hosts(plan)
        return "run"

    def begin(self, running: Running, start: Progress, record: Record) -> MakeSum | None:  # noqa: ARG002, the coordinator knows where it is
        """Close what an interrupted process left open; participants are offered the run when they are there."""
        self._running, self._record = running, record
        self._cosigners = Cosigners(self._transport, running.log.store)
        self._joined, self._refused = {}, {}
        self._head = Note("", ())
        known = {getattr(event, "session", "") for event in events_of(running.log, running.name)}
        for round_number, attempt, session in self._sessions():
            if session not in known:
                reason = "the coordinator was interrupted"
                record.append(
                    RoundFailed(
                        run=running.name, round_number=round_number, attempt=attempt, reason=reason, session=session
                    )
                )
        running.log.flush()
        return self._make_sum

    # --- one attempt ---

    def attempt(self, coordinator: Coordinator) -> RoundClosed | RoundFailed:
        """One attempt at one round.

        Raises:
            WaitingError: Too few are there, too few cosign, or somebody halted it: the run stays open.
        """
        self._gather(coordinator.round_number)
        self._check_halted()
        self._running.charge(self._record, coordinator.round_number, coordinator.attempt + 1)
        self._cosign_by_quorum()
        online = self._show(self._joined.keys() & self._signed)  # who came back since follows the next head
        if len(online) < self._fewest:
            raise self._waiting(f"{self._fewest} participants that follow its log", ", ".join(sorted(online)) or "none")
        opened = coordinator.open(sorted(online)).items()
        self._carry({name: message for name, message in opened if name in online}, coordinator, 0)
        del opened  # a model for each attempt would stay beside its sum
        stage = 0
        while asked := coordinator.advance():
            stage += 1
            self._carry(asked, coordinator, stage)
        closed = coordinator.close()
        self._receipts.keep(coordinator.receipts)
        self._tell(coordinator.farewell)
        return closed

    def evaluate(self, prepared: Prepared, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records, here."""
        return prepared.learner.evaluate(parameters, prepared.test)

    def _carry(self, asked: Mapping[str, bytes], coordinator: Coordinator, stage: int) -> None:
        seconds = self._deadlines.training if stage == TRAINED else self._deadlines.stage
        for name, reply in self._transport.ask(asked, seconds=seconds):
            try:
                message = decode_message(reply) if reply else Done()
                if isinstance(message, Contribution):
                    coordinator.receive(reply)
                elif isinstance(message, Refused):
                    self._note_refusal(name, coordinator.round_number, message.code)
            except HubbubError as error:  # who answers wrongly has dropped out, and stops nobody else
                _log.warning("%s: %s", name, error.message)
                self._note_refusal(name, coordinator.round_number, "answer")

    def _tell(self, farewell: Mapping[str, bytes]) -> None:
        """Nobody is waited for long: who does not hear it finds the record in the next head."""
        there = {name: message for name, message in farewell.items() if name in self._transport.sites()}
        for _ in self._transport.ask(there, seconds=min(1.0, self._deadlines.stage)):
            pass

    def _make_sum(self, round_number: int, attempt: int, model: memoryview) -> Sum:
        """A session bound to the head that was cosigned, whose name is on the disk before anybody is asked into it."""
        running, plan = self._running, self._running.plan
        roster, head = running.log.fold(Federation).roster(), parse_checkpoint(self._head.text)
        reservation = running.log.fold(LogView).reservation_of(running.name)
        assert plan.secagg is not None  # noqa: S101, `secagg` has asked
        assert reservation is not None  # noqa: S101, a charge stands on it
        session = Session(
            suite=SUITE,
            coordinator=self._key.public,
            study=plan.study,
            plan=bytes.fromhex(plan.hash),
            run=reservation.index,
            parameters=plan.secagg.hash,
            roster_epoch=roster.epoch,
            roster=bytes.fromhex(roster.hash),
            payload="update",
            round_number=round_number,
            attempt=attempt,
            model=sha256(model),
            log_origin=head.origin,
            log_size=head.size,
            log_root=head.root,
        )
        self._note_session(round_number, attempt, session.id.hex())
        members = [
            Member(card.name, card.organisation, bytes.fromhex(card.protocol))
            for card in roster.members
            if card.name in plan.slots
        ]
        return SecureSum(Server(session, key=self._key, roster=Roster(members), parameters=plan.secagg))

    # --- who is there ---

    @property
    def _fewest(self) -> int:
        parameters = self._running.plan.secagg
        assert parameters is not None  # noqa: S101, `secagg` has asked
        return parameters.n_min

    def _gather(self, round_number: int) -> None:
        """Wait until enough participants have joined the run and can cosign, before anything is charged."""
        until = time.monotonic() + self._deadlines.patience
        while True:
            self._offer(round_number)
            there, can_cosign = self._there(), self._policy.is_quorum(self._transport.sites())
            if len(there) >= self._fewest and can_cosign:
                return
            self._check_halted()
            if time.monotonic() > until:
                more = "" if can_cosign else f" and a quorum of {len(self._policy.witnesses)} witnesses"
                raise self._waiting(f"{self._fewest} participants{more}", ", ".join(sorted(there)) or "none")
            time.sleep(0.02)

    @property
    def _policy(self) -> Policy:
        """Whose cosignatures a head needs now."""
        return witness_policy(self._running.log.fold(Federation), self._running.key.verifier)

    def _there(self) -> set[str]:
        sites = self._transport.sites()
        return {name for name, connection in self._joined.items() if sites.get(name) == connection}

    def _offer(self, round_number: int) -> None:
        """Offer the run to participants that came, or came back, since."""
        sites, running, now = self._transport.sites(), self._running, time.monotonic()
        waiting = {name: at for name, (at, until) in self._refused.items() if now < until}
        known = self._joined | waiting
        new = {name: at for name, at in sites.items() if name in running.plan.slots and known.get(name) != at}
        if not new or not self._cosign():  # a head that no quorum has cosigned is refused by everybody
            return
        plan, lock = running.plan, running.prepared.study.lock
        offer = RunOffered(
            run=running.name,
            plan_hash=plan.hash,
            study_hash=plan.study_hash,
            code_hash=plan.code_hash,
            lock=msgspec.json.encode(lock, order="sorted"),
            evidence=self._evidence,
        )
        asked = dict.fromkeys(self._show(new.keys() & self._signed), encode_message(offer))
        for name, reply in self._transport.ask(asked, seconds=self._deadlines.training):
            message = read_reply(reply)
            if isinstance(message, Done):
                self._joined[name] = new[name]
                self._refused.pop(name, None)
            elif isinstance(message, Refused):
                self._refused[name] = (new[name], time.monotonic() + AGAIN)
                self._joined.pop(name, None)
                self._note_refusal(name, round_number, message.code)

    def _show(self, names: Collection[str]) -> set[str]:
        """Show the cosigned head, and what leads up to it; returns who follows."""
        size, store = parse_checkpoint(self._head.text).size, self._running.log.store
        asked: dict[str, bytes] = {}
        for name in names:
            start = min(self._cosigners.copies.get(name, 0), size)
            entries = tuple(store.entries(start, size))
            opening = Opening(bytes(self._head), start, entries, self._receipts.of(name))
            asked[name] = encode_message(LogShown(opening.encode()))
        replies = {name: read_reply(reply) for name, reply in self._transport.ask(asked, seconds=self._deadlines.stage)}
        for name, message in replies.items():
            if isinstance(message, Refused):
                self._note_refusal(name, 0, message.code)
        return {name for name, message in replies.items() if isinstance(message, Done)}

    def _cosign_by_quorum(self) -> None:
        """Have the newest head cosigned by a quorum, which is waited for: somebody may be coming back."""
        until = time.monotonic() + self._deadlines.patience
        while not self._cosign():
            self._check_halted()
            if time.monotonic() > until:
                raise self._waiting("a quorum of witnesses", ", ".join(sorted(self._signed)) or "none")
            time.sleep(0.05)

    def _cosign(self) -> bool:
        """Have the newest head cosigned by those who are there; whether they are a quorum."""
        running, policy = self._running, self._policy
        running.log.flush()
        keys = {party.name: party.key for party in policy.witnesses}
        self._head = self._cosigners.cosign(sign_checkpoint(running.log.store, running.key), keys)
        self._signed = {name for name, key in keys.items() if key.signed_at(self._head) is not None}
        return policy.is_quorum(sorted(self._signed))

    def _check_halted(self) -> None:
        if self._is_halted.is_set():
            raise WaitingError(
                f"run {self._running.name}, was halted; nothing more asked, it stays reserved", hint="hubbub resume"
            )

    def _waiting(self, needed: str, found: str) -> WaitingError:
        return WaitingError(
            f"run {self._running.name}, waits for {needed}, found {found}; nothing more asked, it stays reserved",
            hint="hubbub status shows who is there; then hubbub resume",
        )

    # --- what is written down ---

    def _note_refusal(self, name: str, round_number: int, code: str) -> None:
        self._record.append(
            ParticipantRefused(run=self._running.name, participant=name, round_number=round_number, code=code)
        )

    @property
    def _sessions_file(self) -> Path:
        return self._running.folder.path / SESSIONS

    def _note_session(self, round_number: int, attempt: int, session: str) -> None:
        descriptor = os.open(self._sessions_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps([round_number, attempt, session]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _sessions(self) -> list[tuple[int, int, str]]:
        """Sessions that were opened; the last line may be cut, then nobody was asked into it."""
        try:
            lines = self._sessions_file.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line, type=tuple[int, int, str]) for line in lines if line.endswith("\n")]


def read_reply(reply: Reply) -> Message | None:
    """What a participant answered; None if it is no message."""
    try:
        return decode_message(reply)
    except HubbubError:
        return None
