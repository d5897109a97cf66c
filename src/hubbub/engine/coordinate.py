"""A coordinator's process: participants and people dial in, and one run at a time goes on in a thread.

    submitted -> approved? -> reserved -> running -> finished | waiting | halted | failed; `resume` goes on

Whatever it holds is in its home: the log, its keys, the studies that its operator put there, a directory for each run.
Carriers hand it names and bytes; nothing here knows which carrier it is.

*Trust:* as the coordinator's room. Who may do what is decided by the log: it runs what is approved there.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from hubbub.engine.answering import Handlers, answer, log_handlers
from hubbub.engine.away import Deadlines, SitesAway, read_reply
from hubbub.engine.commands import (
    Answer,
    Done,
    HaltRun,
    Offer,
    OfferStudy,
    ReleaseRun,
    ResumeRun,
    Started,
    StudyOffers,
    SubmitStudy,
)
from hubbub.engine.cosign import Cosigners
from hubbub.engine.folder import FORMAT, RunFacts, RunFolder
from hubbub.engine.home import Receipts, open_coordinator_key, open_log, open_log_key
from hubbub.engine.prepare import prepare_away
from hubbub.engine.publish import release_run
from hubbub.engine.running import Running
from hubbub.engine.status import BUNDLE, status_handlers
from hubbub.engine.transport import InProcess, Transport
from hubbub.errors import AT, HubbubError, InputError, RefusedError
from hubbub.eventlog import EventLog
from hubbub.governance import Federation
from hubbub.messages import Refused, StudyHeld, StudyOffered, encode_message
from hubbub.planning import Plan, make_plan
from hubbub.randomness import OperatingSystemRandomness
from hubbub.release.bundle import StudyFacts
from hubbub.study import Study, load_study
from hubbub.study.lock import decode_lock
from hubbub.study.store import find_study

_log = logging.getLogger("hubbub.coordinator")
Order = TypeVar("Order")

STUDIES, RUNS = "studies", "runs"
REQUESTERS = frozenset({"data-scientist", "operator"})
"""Roles that may have something run that is approved."""
STOPPERS = frozenset({"data-owner", "privacy-officer", "operator"})
"""Roles that may have a run halted."""
ATTESTATION = "attestation"
"""File in a home: evidence of the machine, as `governance.attestation` reads it."""


@dataclass
class _Current:
    """The run that goes on."""

    run: str
    sites: SitesAway
    thread: threading.Thread


class Coordinating:
    """Everything that a coordinator does, but for its carrier.

    Args:
        home: Its folder.
        deadlines: How long is waited for whom.
        clock: POSIX seconds.

    Raises:
        InputError: The home holds something else, or its keys are open to others.
    """

    def __init__(self, home: Path, deadlines: Deadlines, clock: Callable[[], int] = lambda: int(time.time())) -> None:
        self.home, self._deadlines, self._clock = home, deadlines, clock
        self._key, self._log_key = open_coordinator_key(home), open_log_key(home)
        self._receipts = Receipts(home)
        self._logs = [open_log(home) for _ in range(3)]  # states are not shared between threads
        self._roster_turn, self._turn = threading.Lock(), threading.Lock()
        self._current: _Current | None = None
        self.words: dict[str, str] = {}
        """Why a run does not go on."""
        self.transport: Transport = InProcess({})
        """How participants are reached: nobody is, until there is a carrier."""
        self._handlers: Handlers = {
            **log_handlers(self._logs[0], self._log_key, clock),
            **status_handlers(self, self._logs[1]),
            OfferStudy: self._only(REQUESTERS, self._offer),
            SubmitStudy: self._only(REQUESTERS, self._submit),
            ResumeRun: self._only(REQUESTERS, self._resume),
            ReleaseRun: self._only(REQUESTERS, self._release),
            HaltRun: self._only(STOPPERS, self._halt),
        }

    # --- what a carrier calls ---

    def identify(self, fingerprint: str) -> str | None:
        """The name that a transport key has in the roster now; None: nobody's."""
        with self._roster_turn:
            card = self._logs[2].fold(Federation).holder_of_transport(fingerprint)
        return None if card is None else card.name

    def command(self, name: str, data: bytes) -> bytes:
        """Answer what somebody enrolled asks; never raises."""
        return answer(data, name, self._handlers)

    def close(self, seconds: float = 20.0) -> None:
        """Interrupt the run that goes on, let go of everybody, and close the files.

        Args:
            seconds: For the attempt that goes on; then it is given up, and tried again when the run is resumed.
        """
        current = self._current
        if current is not None:
            current.sites.halt()
            current.thread.join(seconds)
        self.transport.close()
        if current is not None:
            current.thread.join()
        for log in self._logs:
            log.close()

    # --- what status asks ---

    @property
    def current(self) -> str:
        """The run that goes on; empty if none does."""
        current = self._current
        return current.run if current is not None and current.thread.is_alive() else ""

    def folder(self, run: str) -> RunFolder:
        """The directory of a run.

        Raises:
            InputError: There is no such run.
        """
        path = self.home / RUNS / run
        if not (path / "run.json").exists():
            raise InputError(f"run {run}, must be a run of this coordinator, found none", hint=f"hubbub status {AT}")
        return RunFolder(path)

    # --- orders ---

    def _only(self, roles: AbstractSet[str], handle: Callable[[Order, str], Answer]) -> Callable[[Order, str], Answer]:
        """Take an order of holders of these roles only."""

        def checked(order: Order, name: str) -> Answer:
            with self._roster_turn:
                role = {card.name: card.role for card in self._logs[2].fold(Federation).in_force()}.get(name)
            if role not in roles:
                raise RefusedError(
                    f"{name}, must be {' or '.join(sorted(roles))} to ask for this, found {role}; nothing done",
                    hint="ask one of them",
                )
            return handle(order, name)

        return checked

    def go_on(self, run: str) -> None:
        """Resume a run, as its operator who starts this process.

        Raises:
            HubbubError: As `resume`.
        """
        self._resume(ResumeRun(run), "")

    def _offer(self, order: OfferStudy, _name: str) -> StudyOffers:
        question = encode_message(StudyOffered(study_hash=order.study_hash, code_hash=order.code_hash))
        offers: list[Offer] = []
        with self._turn:
            self._check_free()
            asked = dict.fromkeys(self.transport.sites(), question)
            for name, reply in self.transport.ask(asked, seconds=self._deadlines.training):
                message = read_reply(reply)
                if isinstance(message, StudyHeld):
                    offers.append(Offer(name, message.slots, message.data_commitment, message.parameters))
                else:
                    offers.append(Offer(name, 0, "", 0, message.code if isinstance(message, Refused) else "answer"))
        return StudyOffers(tuple(sorted(offers, key=lambda offer: offer.participant)))

    def _submit(self, order: SubmitStudy, _name: str) -> Started:
        study = find_study(self.home / STUDIES, order.study_hash, order.code_hash).with_lock(decode_lock(order.lock))
        with self._turn:
            self._check_free()
            run = f"{study.settings.study.name}-{secrets.token_hex(4)}"
            facts = RunFacts(format=FORMAT, run=run, study=str(study.directory), home=str(self.home.resolve()))
            running, log = self._running(study, facts, plan_hash=order.plan_hash)
            try:
                (self.home / RUNS).mkdir(exist_ok=True)
                running.reserve()
            except HubbubError:
                log.close()
                raise
            return self._start(running, log)

    def _resume(self, order: ResumeRun, _name: str) -> Started:
        folder = self.folder(order.run)
        facts = folder.facts()
        with self._turn:
            self._check_free()
            assert facts.study is not None  # noqa: S101, `_submit` has written it
            told = msgspec.json.decode((folder.path / "study.json").read_bytes(), type=StudyFacts)
            study = load_study(facts.study).with_lock(told.lock)
            running, log = self._running(study, facts)
            return self._start(running, log)

    def _halt(self, order: HaltRun, _name: str) -> Done:
        current = self._current
        if current is None or self.current != order.run:
            raise RefusedError(
                f"run {order.run}, must go on to be halted, found that it does not", hint=f"hubbub status {AT}"
            )
        current.sites.halt()
        return Done()

    def _release(self, order: ReleaseRun, _name: str) -> Done:
        folder = self.folder(order.run)
        with self._turn, closing(open_log(self.home)) as log:
            self._check_free()
            if not (folder.path / BUNDLE).exists():
                release_run(folder.path, cosign=Cosigners(self.transport, log.store).cosign)
        return Done()

    # --- one run ---

    def _check_free(self) -> None:
        if self.current:
            raise RefusedError(
                f"coordinator, runs one run at a time, found {self.current} going on; nothing started",
                hint=f"wait for it, or hubbub stop {self.current} {AT}",
            )

    def _running(self, study: Study, facts: RunFacts, plan_hash: str | None = None) -> tuple[Running, EventLog]:
        prepared = prepare_away(study)
        plan = make_plan(prepared.study)
        if plan_hash not in (None, plan.hash):
            raise RefusedError(
                f"study {plan.study}, must give the plan {str(plan_hash)[:12]} that was asked for, "
                f"found {plan.hash[:12]}; nothing trained, nothing spent",
                hint="both sides must run the same version of hubbub",
            )
        evidence = self.home / ATTESTATION
        sites = SitesAway(
            self.transport,
            self._key,
            self._receipts,
            self._deadlines,
            evidence.read_bytes() if evidence.exists() else b"",
        )
        sites.secagg(plan)
        log = open_log(self.home)
        running = Running(
            prepared,
            plan,
            facts,
            RunFolder(self.home / RUNS / facts.run),
            log,
            self._log_key,
            OperatingSystemRandomness(),
            _commitments(log.fold(Federation), plan),
            sites,
        )
        return running, log

    def _start(self, running: Running, log: EventLog) -> Started:
        def go_on() -> None:
            words = ""
            try:
                with running.folder.held():
                    running.run(None, time.monotonic())
            except HubbubError as error:
                words = error.message
                _log.warning("%s; %s", error.message, error.hint)
            except Exception:  # noqa: BLE001, a fault here must not end the process, which others are connected to
                words = "a fault of the coordinator; its log file says more"
                _log.exception("run %s", running.name)
            finally:
                self.words[running.name] = words
                log.close()

        account = running.ledger.accounts().runs.get(running.name)
        had_ended = account is not None and account.is_settled
        assert isinstance(running.sites, SitesAway)  # noqa: S101, `_running` has made it
        thread = threading.Thread(target=go_on, name=running.name, daemon=True)
        self._current = _Current(running.name, running.sites, thread)
        self.words.pop(running.name, None)
        thread.start()
        return Started(running.name, had_ended)


def _commitments(federation: Federation, plan: Plan) -> dict[str, str]:
    """What was approved as each participant's records: the newest proposal of this plan says so."""
    asked = [study for _, study in federation.studies(plan.hash)]
    data = asked[-1].data if asked else {}
    by_name = {federation.datasets[key].registered.participant: said for key, said in data.items()}
    return {name: by_name.get(name, "") for name in plan.slots}
