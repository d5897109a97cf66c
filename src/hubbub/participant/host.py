"""A participant's process: every message of the coordinator comes in here, and one answer goes out.

    log shown, head cosigned -> run offered -> joined -> (open -> share -> masked -> consent -> unmask -> close) x T

Sans-I/O but for its own directory: any carrier, or a test, hands it bytes. It never raises: whatever it refuses is
written down for its owner, and the coordinator is told a code.

*Trust:* sees its own raw records; the order of its checks is what its owner relies on, so it stands in `Host._open`.
"""

import datetime as dt
import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass

from hubbub.errors import (
    BudgetError,
    CodeError,
    HubbubError,
    InputError,
    PlanError,
    RefusedError,
    RoundError,
    VerificationError,
)
from hubbub.governance import Roster
from hubbub.governance.attestation import check_attestation, read_evidence
from hubbub.local.learner import Learner
from hubbub.local.load import make_learner
from hubbub.messages import (
    CosignAsked,
    Cosigned,
    Done,
    LogShown,
    Message,
    Refused,
    RoundContinued,
    RoundOpened,
    RunOffered,
    StudyHeld,
    StudyOffered,
    decode_message,
    encode_message,
)
from hubbub.participant.admission import check_approved, check_reserved, facts_of
from hubbub.participant.commitment import commit
from hubbub.participant.folder import SiteFolder
from hubbub.participant.log_guard import REPORT, LogGuard, Site
from hubbub.participant.memory import Memory
from hubbub.participant.opening import Opening, read_opening
from hubbub.participant.site import Masking, Participant
from hubbub.planning import Plan, make_plan
from hubbub.randomness import OperatingSystemRandomness
from hubbub.secagg import SUITE, Client, Member, Session, SigningKey
from hubbub.secagg import Roster as Members
from hubbub.secagg.keys import sha256
from hubbub.secagg.messages import Envelope, read
from hubbub.study import Slots, Study, conform
from hubbub.study.code import call
from hubbub.study.lock import decode_lock
from hubbub.tlog import Checkpoint, Signer, Witness
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import COSIGNATURE
from hubbub.tlog.note import parse_note

_host_log = logging.getLogger("hubbub.site")
"""For the data owner's eyes."""

CODES: dict[type[HubbubError], str] = {
    BudgetError: "budget",
    RoundError: "round",
    RefusedError: "policy",
    VerificationError: "log",
    PlanError: "plan",
    CodeError: "code",
    InputError: "message",
}
"""What the coordinator is told of a refusal."""


@dataclass
class Joined:
    """A run that this site takes part in."""

    offered: RunOffered
    study: Study
    plan: Plan
    slots: Slots
    commitment: str
    learner: Learner
    participant: Participant | None = None
    client: Client | None = None
    roster: str = ""


class Host:
    """One participant's process, but for its carrier.

    Args:
        folder: Its directory.
        clock: POSIX seconds.

    Guarantees:
        Nothing leaves but for a run that its own policy, its copy of a cosigned log, its own budget and its own
        study store admit; each is asked again where it may have changed.

    Raises:
        InputError, RefusedError: The directory is not complete, or not its own.
    """

    def __init__(self, folder: SiteFolder, clock: Callable[[], int]) -> None:
        self._folder, self._clock = folder, clock
        folder.check()
        keys, membership = folder.keys(), folder.membership()
        self.name = keys.card.name
        self._log = membership.verifier
        self._coordinator = bytes.fromhex(membership.coordinator)
        self._protocol = SigningKey(keys.protocol.private_bytes_raw())
        cosigner = Signer(self.name, COSIGNATURE, keys.witness.private_bytes_raw())
        self._witness = Witness(folder.path / "witness.db", [cosigner], [self._log])
        self._memory = Memory(folder.path / "memory.db")
        site = Site(
            name=self.name,
            account="",
            policy=membership.witnesses,
            org_min=folder.settings.organisations,
            keys_per_organisation=folder.settings.keys_per_organisation,
            witness=cosigner.verifier,
        )
        self.guard = LogGuard(self._memory, site, clock())
        self._shown: Opening | None = None
        self._joined: Joined | None = None

    @staticmethod
    def warm() -> None:
        """Import what takes seconds before anybody waits for it."""
        for name in ("dp_accounting.rdp", "torch"):
            if importlib.util.find_spec(name.partition(".")[0]) is not None:
                importlib.import_module(name)

    def close(self) -> None:
        """Close its files; secrets of a session under way are forgotten."""
        self._joined = None
        self._memory.close()
        self._witness.close()

    def answer(self, data: bytes | memoryview) -> bytes:
        """Answer one message; a refusal is an answer too."""
        try:
            return self._answer(decode_message(data))
        except HubbubError as error:
            code = next(code for kind, code in CODES.items() if isinstance(error, kind))
            self._note(error, code)
        except Exception:  # noqa: BLE001, whatever went wrong here, the others are told nothing of it
            code = "fault"
            _host_log.exception("%s could not answer", self.name)
        return encode_message(Refused(code))

    def _note(self, error: HubbubError, code: str) -> None:
        """Tell the owner what was refused; what has come to light that convicts somebody is in memory no more."""
        client = None if self._joined is None else self._joined.client
        heads, messages = self.guard.evidence, [] if client is None else client.evidence
        hint = self._folder.note_refusal(error, code, self._clock(), [*heads, *messages])
        heads.clear()
        messages.clear()
        _host_log.warning("%s refused: %s; %s", self.name, error.message, hint)

    def _answer(self, message: Message) -> bytes:
        match message:
            case CosignAsked():
                return encode_message(self._cosign(message.request))
            case LogShown():
                self._follow(read_opening(message.opening))
                return encode_message(Done())
            case StudyOffered():
                return encode_message(self._hold(message))
            case RunOffered():
                self._joined = self._join(message)
                return encode_message(Done())
            case RoundOpened():
                return self._open(message) or b""
            case RoundContinued():
                return self._continue(message) or b""
            case _:
                raise RoundError(
                    f"{self.name}, takes what a coordinator asks, found {type(message).__name__}; nothing sent",
                    hint="both sides must run the same version",
                )

    # --- the log ---

    def _cosign(self, request: bytes) -> Cosigned:
        answer = self._witness.add_checkpoint(request, self._clock())
        if answer.evidence is not None:
            self.guard.evidence.append(answer.evidence)
            found = "of one size" if answer.evidence.is_fork else "that its proof does not join"
            words = f"must be asked to cosign one history by {self._log.name}, found two signed heads {found}"
            self._note(VerificationError(f"{self.name}, {words}; not cosigned", hint=REPORT), "log")
        return Cosigned(answer.status, answer.body, answer.content_type, self._memory.size)

    def _follow(self, opening: Opening) -> None:
        """Take in what the log says by now; what a session is opened under is the last head that was shown."""
        self._shown = None
        head = self.guard.follow(opening, self._clock()).checkpoint
        shown = Opening(opening.checkpoint, head.size, (), opening.receipt)
        if not self.guard.is_compared and self._folder.may_recover:
            self._folder.note_recovery(self.guard.recover(shown, self._clock()))
        self._shown = shown

    # --- studies and runs ---

    def _hold(self, offered: StudyOffered) -> StudyHeld:
        study = self._folder.study(offered.study_hash, offered.code_hash)
        slots = self._load(study)
        learner = make_learner(study, {self.name: len(slots)})
        commitment = commit(slots, self._folder.salt())
        _host_log.info("%s holds study %s, with %d slots", self.name, study.settings.study.name, len(slots))
        return StudyHeld(slots=len(slots), data_commitment=commitment, parameters=learner.dimension)

    def _load(self, study: Study) -> Slots:
        self._folder.show_data()
        return conform(call(study.code.data, self.name), study.settings.data, f"data({self.name!r})")

    def _join(self, offered: RunOffered) -> Joined:
        """Everything that can be refused before a round is asked: code, data, plan, reservation, policy, budget."""
        self._need_head()
        lock = decode_lock(offered.lock)
        study = self._folder.study(offered.study_hash, offered.code_hash).with_lock(lock)
        slots, learner = self._load(study), make_learner(study, lock.slots)
        found = (lock.slots.get(self.name), lock.parameters)
        if found != (len(slots), learner.dimension):
            raise PlanError(
                f"{self.name}, must be planned with {len(slots)} slots and {learner.dimension} parameters, "
                f"found {found[0]} and {found[1]}; nothing trained, nothing sent",
                hint="propose the study again, with this site's slots",
            )
        plan = self._folder.plan(offered.plan_hash, study) or make_plan(study)
        self._folder.keep_plan(plan)
        if plan.hash != offered.plan_hash or plan.secagg is None:
            raise PlanError(
                f"{self.name}, must be offered the plan that follows from its study, with secure sums, "
                f"found {offered.plan_hash[:12]}; nothing trained, nothing sent",
                hint="both sides must run the same version of hubbub",
            )
        joined = Joined(offered, study, plan, slots, commit(slots, self._folder.salt()), learner)
        self._check_attested(offered.evidence)
        self._admit(joined)
        self.guard.check_memory()  # else it is counted on, and each attempt that it then refuses is charged
        _host_log.info("%s takes part in run %s: epsilon %s", self.name, offered.run, plan.epsilon)
        return joined

    def _check_attested(self, data: bytes) -> None:
        """Refuse a coordinator that does not run where this site wants it to, if it wants anything."""
        evidence = read_evidence(data) if data else None
        size = 0 if evidence is None else min(evidence.size, self._memory.size)
        attested = check_attestation(
            evidence,
            self._folder.attestation(),
            coordinator_key=self._coordinator,
            head=Checkpoint(self._log.name, size, self._memory.root(size)),
            now=dt.datetime.fromtimestamp(self._clock(), dt.UTC),
        )
        if attested is not None:
            _host_log.info("%s works for a coordinator in %s", self.name, attested)

    def _admit(self, joined: Joined) -> None:
        """What may change while a run is under way is asked for again in each round."""
        view, plan, settings = self.guard.view, joined.plan, joined.study.settings
        own = (view.dataset_of(self.name), joined.commitment)
        check_approved(view.federation, plan, settings, own, self._clock())
        check_reserved(view, joined.offered.run, plan, self.guard.account)
        today = dt.datetime.fromtimestamp(self._clock(), dt.UTC).date()
        self._folder.policy().check(facts_of(view.federation, plan, settings), today=today)

    def _need_head(self) -> Opening:
        """The head that was shown last: a process that was started again has been shown none yet."""
        if self._shown is None:
            raise RoundError(
                f"{self.name}, must be shown the log before it is asked for anything, found no head; nothing sent",
                hint="show the newest head first: after a start this happens once",
            )
        return self._shown

    # --- rounds ---

    def _open(self, message: RoundOpened) -> bytes | None:
        joined, shown = self._of(message.run), self._need_head()
        session = read(Session, read(Envelope, message.payload).body)
        roster = self.guard.check(shown, session, self._clock(), joined.plan.reservation(message.run))
        self._admit(joined)
        if joined.participant is None or joined.roster != roster.hash:
            joined.participant, joined.roster = self._participant(joined, roster), roster.hash
        return joined.participant.answer(message, joined.learner)

    def _continue(self, message: RoundContinued) -> bytes | None:
        joined = self._of(message.run)
        if joined.participant is None:
            raise RoundError(
                f"{self.name}, takes messages of a session that it entered, found none; nothing sent",
                hint="its process was started again: this attempt goes on without it",
            )
        return joined.participant.answer(message, joined.learner)

    def _of(self, run: str) -> Joined:
        if self._joined is None or self._joined.offered.run != run:
            raise RoundError(
                f"{self.name}, must have joined the run that it is asked in, found {run!r}; nothing sent",
                hint="offer it the run",
            )
        return self._joined

    def _participant(self, joined: Joined, roster: Roster) -> Participant:
        """With a client over the roster in force; sessions under the one before are over."""
        plan, parameters = joined.plan, joined.plan.secagg
        assert parameters is not None  # noqa: S101, `_join` has asked
        cards = [card for card in roster.members if card.name in plan.slots]
        client = joined.client = Client(
            self.name,
            key=self._protocol,
            roster=Members([Member(card.name, card.organisation, bytes.fromhex(card.protocol)) for card in cards]),
            parameters=parameters,
            mark=self.guard.mark,
            charge=self.guard.charge,
            last_mark=self._memory.last.mark,
        )

        def own_session(round_number: int, attempt: int, model: memoryview) -> Session:
            return self._own_session(joined, roster, (round_number, attempt), sha256(model))

        return Participant(
            self.name,
            joined.offered.run,
            settings=joined.study.settings,
            plan=plan,
            slots=joined.slots,
            randomness=OperatingSystemRandomness(),
            charge=self.guard.charge,
            masking=Masking(client, own_session, self.guard.consent),
        )

    def _own_session(self, joined: Joined, roster: Roster, attempt: tuple[int, int], model: bytes) -> Session:
        """What a session must be bound to: nothing of it is taken from message 0."""
        plan, shown, reservation = joined.plan, self._shown, self.guard.view.reservation_of(joined.offered.run)
        assert reservation is not None  # noqa: S101, `_admit` has asked
        assert plan.secagg is not None  # noqa: S101, `_join` has asked
        assert shown is not None  # noqa: S101, `_open` has asked
        head = parse_checkpoint(parse_note(shown.checkpoint).text)
        return Session(
            suite=SUITE,
            coordinator=self._coordinator,
            study=plan.study,
            plan=bytes.fromhex(plan.hash),
            run=reservation.index,
            parameters=plan.secagg.hash,
            roster_epoch=roster.epoch,
            roster=bytes.fromhex(roster.hash),
            payload="update",
            round_number=attempt[0],
            attempt=attempt[1],
            model=model,
            log_origin=head.origin,
            log_size=head.size,
            log_root=head.root,
        )
