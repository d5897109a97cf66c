"""Check a bundle, offline: signatures, the log, who allowed it, what it cost, and that the claim follows.

    files -> log -> keys -> model -> plan -> acts -> budget -> claim

Each step is told as it passes. Nothing of the study's code is run and no model is loaded.

*Trust:* it is the verifier. Without a policy from elsewhere it believes the keys that the bundle names, and
says so.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, TypeVar

import msgspec

from hubbub.accounting.accounts import Accounts, check_granted, is_owners
from hubbub.accounting.ledger import admit
from hubbub.errors import HubbubError, InputError, VerificationError
from hubbub.events import (
    AnyEvent,
    BudgetGranted,
    BudgetReserved,
    BudgetSettled,
    ModelReleased,
    ParticipantJoined,
    RoundClosed,
    RunFinished,
    RunStarted,
    decode_event,
)
from hubbub.governance import Federation, Permit, terms_of, witness_policy
from hubbub.planning import Plan, check_plan, plan_from
from hubbub.release.bundle import FILES, MODEL, MODEL_SIGNATURE, PUBLIC_KEY, SIGNATURE, StudyFacts, as_json
from hubbub.release.claim import ReleaseClaim, claim_from_log
from hubbub.release.model_signing import fingerprint, read_public_key, verify_folder
from hubbub.tlog import Note, Policy, Verifier, tiles, verify_checkpoint
from hubbub.tlog.policy import parse_policy

COMPUTED = "recomputed claim"
"""The check that epsilon and everything else that is claimed follow from the log."""

Document = TypeVar("Document")
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Check:
    """Something that was checked, and what was found."""

    what: str
    found: str


@dataclass(frozen=True)
class Verified:
    """A bundle in which everything added up."""

    claim: ReleaseClaim
    checks: tuple[Check, ...]


def verify_bundle(
    folder: str | Path, *, policy: Policy | None = None, now: int | None = None, recompute: bool = True
) -> Verified:
    """Check a bundle, all of it before this returns.

    Args:
        folder: The bundle.
        policy: Whose keys are believed, from somewhere else than the bundle; None believes the bundle's own.
        now: POSIX seconds, to refuse cosignatures older than a day; None: of any age.
        recompute: Whether to compute plan and epsilon again (seconds), the run's room in its budgets too, or to check
            all but that.

    Raises:
        VerificationError: The first thing that does not add up, or that cannot be computed at all.
    """
    steps, checks = verify_steps(Path(folder), policy=policy, now=now, recompute=recompute), list[Check]()
    while True:
        try:
            checks.append(next(steps))
        except StopIteration as end:
            return Verified(end.value, tuple(checks))


def verify_steps(
    folder: Path, *, policy: Policy | None = None, now: int | None = None, recompute: bool = True
) -> Generator[Check, None, ReleaseClaim]:
    """Check a bundle as `verify_bundle` does, step by step: nothing is checked before it is asked for.

    Yields:
        Each check as it has passed; the claim is returned after the last.
    """
    try:
        return (yield from _verify(folder, policy, now, recompute=recompute))
    except VerificationError:
        raise
    except HubbubError as error:
        raise _failure("content", error.message) from None
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:  # whoever made it chose it
        raise _failure("content", f"must be such that it can be computed, {type(error).__name__}") from None


def _verify(
    folder: Path, policy: Policy | None, now: int | None, *, recompute: bool
) -> Generator[Check, None, ReleaseClaim]:
    with_policy = policy is not None
    key = _check_files(folder)
    yield Check("files", f"exactly those that were signed, by key {key[:16]}")

    note, bodies = tiles.read_export(folder / "log")
    policy = policy or parse_policy(_read(folder, "policy"))
    head = verify_checkpoint(note, policy, now=now)
    witnesses = ", ".join(head.cosigned) or "no witness"
    yield Check("log", f"{head.checkpoint.origin}, {head.checkpoint.size} entries, cosigned by {witnesses}")
    if not with_policy:
        yield Check("keys", f"believed as the bundle names them; compare {head.log} by another way, or --policy FILE")

    events = [_event(body, index) for index, body in enumerate(bodies)]
    released = _released(events, key)
    files = {name: _read(folder, name) for name in ("claim.json", "plan.json", "study.json", MODEL)}
    _require(released.model_hash == _sha256(files[MODEL]), "model", "must be the one that the log says was released")
    _require(released.claim_hash == _sha256(files["claim.json"]), "claim", "must be the one that the log says")
    claim = _document(files["claim.json"], ReleaseClaim)
    plan, facts = _document(files["plan.json"], Plan), _document(files["study.json"], StudyFacts)
    is_its_own = (claim.run, claim.hashes.get("model")) == (released.run, released.model_hash)
    _require(is_its_own, "claim", "must be of the run and the model that were released")
    yield Check("model", f"{released.model_hash[:16]}, released by entry {events.index(released)} of the log")

    yield Check("plan", _check_run(events, released, plan, facts))
    federation, words = _check_acts(events, released, plan, facts)
    if not with_policy:
        _check_witnessed(note, federation, head.log)
    yield Check("acts", words)
    yield Check("budget", _check_budget(events, released.run, recompute=recompute))
    _require(claim.certifiable and claim.epsilon_spent is not None, "claim", "must be of noise that nobody can repeat")
    if recompute:
        _require(plan_from(facts.settings, facts.lock) == plan, "plan", "must follow from the settings and sizes")
        yield Check("recomputed plan", f"noise multiplier {plan.noise_multiplier}, the same")
        again = claim_from_log(events, released.run, plan, facts.settings)
        by = f"must be what follows from the log, by {claim.accountant}; here {again.accountant}"
        _require(claim == again, "claim", by)
        yield Check(COMPUTED, f"epsilon {_number(again.epsilon_spent)} at delta {again.delta:g}, the same")
    return claim


def _check_files(folder: Path) -> str:
    """Every file is signed and is one that is checked, and no other is there; returns the key's fingerprint."""
    try:
        public = read_public_key(folder / PUBLIC_KEY)
        verify_folder(folder, public, folder / SIGNATURE)
        verify_folder(folder / "model", public, folder / MODEL_SIGNATURE)
    except InputError as error:
        raise VerificationError(f"bundle: {error.message}; this release is not verified", hint=error.hint) from None
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in found:
        _require(name in FILES or name.startswith("log/"), repr(name), "must be a file that every release has")
    return fingerprint(public)


def _check_run(events: Sequence[AnyEvent], released: ModelReleased, plan: Plan, facts: StudyFacts) -> str:
    """The run is of this plan, from its reservation to its last round, in order."""
    run = released.run
    started = [event for event in events if _is_of(event, run, RunStarted)]
    reserved = [event for event in events if _is_of(event, run, BudgetReserved)]
    finished = [event for event in events if _is_of(event, run, RunFinished)]
    settled = [event for event in events if _is_of(event, run, BudgetSettled)]
    rounds = [event for event in events if _is_of(event, run, RoundClosed)]
    closed = [event.round_number for event in rounds]
    joining = [(event.participant, event.slots) for event in events if _is_of(event, run, ParticipantJoined)]
    joined = dict(joining) if len(dict(joining)) == len(joining) else {}
    once = {len(started), len(reserved), len(finished), len(settled)} == {1}
    _require(once, "run", "must be reserved, begin, end and be settled once")
    start, whole = started[0], reserved[0]
    steps: tuple[AnyEvent, ...] = (whole, start, finished[0], settled[0], released)
    in_order = [events.index(event) for event in steps]
    _require(in_order == sorted(in_order), "run", "must be reserved, begin, end, be settled and released in this order")
    in_turn = len(closed) == plan.rounds and closed == list(range(1, len(closed) + 1))
    _require(in_turn, "run", f"must close rounds 1 to {plan.rounds}, each once")
    planned = all(_is_planned(event.participants, plan) for event in rounds)
    _require(planned, "run", f"must close each round over {plan.minimum} participants or more, as many as it may ask")
    _require(finished[0].rounds == plan.rounds, "run", "must end after its last round")
    _require(finished[0].model_hash == released.model_hash, "model", "must be the one that the run made")
    _require({start.plan_hash, whole.plan_hash} == {plan.hash}, "plan", "must be the one that was reserved")
    _require(whole == plan.reservation(run, whole.datasets), "plan", "must be reserved at its whole cost")
    _require(len(set(whole.datasets)) == len(plan.slots), "plan", "must be reserved for every participant")
    _require(start.code_hash == plan.code_hash == facts.lock.code_hash, "code", "must be the one that was planned")
    _require(joined == plan.slots, "run", "must be of the participants that were planned")
    ways = "none" if plan.secagg is None else facts.settings.speed.secagg
    _require(start.secagg == ways, "run", "must have made its sums as its settings say")
    sources = {plan.mechanism.noise_source, start.noise_source}
    _require(sources == {"os"}, "run", "must have drawn its noise from the operating system")
    try:
        check_plan(plan, facts.settings)
    except HubbubError as error:
        raise _failure("plan", error.message) from None
    return f"{plan.hash[:16]}, of these settings, reserved before the run began; {plan.rounds} rounds, each once"


def _is_planned(participants: int | None, plan: Plan) -> bool:
    """Whether a round's sum holds as many contributions, and so as many shares of noise, as its plan accounts for.

    The number of a secret cohort is told to nobody: it would take back what secrecy amplifies.
    """
    sampler = plan.mechanism.participants
    if participants is None or sampler.is_secret:
        return participants is None and sampler.is_secret
    return plan.minimum <= participants <= sampler.size(len(plan.slots))


def _check_acts(
    events: Sequence[AnyEvent], released: ModelReleased, plan: Plan, facts: StudyFacts
) -> tuple[Federation, str]:
    """Fold every act: signatures, roles and order are checked on the way; then what allowed this run and release."""
    federation, run = Federation(), released.run
    data = {event.participant: event.data_commitment for event in events if _is_of(event, run, ParticipantJoined)}
    permit: Permit | None = None
    was_sandbox = True
    for event in events:
        if _is_of(event, run, BudgetReserved):
            _check_permit(federation, event, data, plan, facts)
            was_sandbox = federation.is_sandbox
        if _is_of(event, run, RoundClosed):
            due = [review for review in facts.settings.governance.reviews if review < event.round_number]
            is_passed = all(federation.review_passed(run, review) for review in due)
            _require(is_passed, "acts", f"must pass every review due before round {event.round_number}")
        if event is released:
            hashes = {"model_hash": released.model_hash, "claim_hash": released.claim_hash}
            with _as_failure("acts"):
                permit = federation.may_release(run=run, **hashes, now=federation.latest)
        federation.apply(event)
    if federation.is_sandbox:
        return federation, "a sandbox: nobody had to approve"
    if permit is None or was_sandbox:
        raise _failure("acts", "must allow run and release after the federation began")
    cards = [federation.holders[key].card for key in permit.approved_by]
    by = ", ".join(sorted(f"{card.name} of {card.organisation}" for card in cards))
    return federation, f"federation {federation.name}: study and release approved, the release by {by}"


def _check_witnessed(note: Note, federation: Federation, log: Verifier) -> None:
    """The witnesses are the holders that the acts name, whatever the bundle's policy asks for: its maker wrote that."""
    with _as_failure("acts"):
        verify_checkpoint(note, witness_policy(federation, log))


def _check_permit(
    federation: Federation, reserved: BudgetReserved, data: Mapping[str, str], plan: Plan, facts: StudyFacts
) -> None:
    """What the engine must have asked before it reserved: everything that was approved is what was run."""
    if federation.is_sandbox:
        _require(set(reserved.datasets) == set(plan.slots), "budget", "must be charged to its own participants")
        return
    held = federation.held()
    _require(data.keys() <= held.keys(), "acts", "must register the dataset of every participant")
    accounts = {federation.datasets[held[name]].account for name in data}
    _require(set(reserved.datasets) == accounts, "acts", "must charge the budgets of the participants' own datasets")
    with _as_failure("acts"):
        federation.may_run(
            plan_hash=plan.hash,
            study_hash=plan.study_hash,
            code_hash=plan.code_hash,
            datasets={held[name]: commitment for name, commitment in data.items()},
            purpose=facts.settings.study.purpose,
            terms=terms_of(facts.settings, minimum=plan.minimum),
            now=federation.latest,
        )


def _check_budget(events: Sequence[AnyEvent], run: str, *, recompute: bool) -> str:
    """Fold every charge; a round is charged before it is closed, and no owner's grant is invented or overdrawn."""
    accounts, federation = Accounts(), Federation()
    for event in events:
        if isinstance(event, RoundClosed):
            charged = accounts.runs[event.run].charged if event.run in accounts.runs else set[tuple[int, int]]()
            is_charged = (event.round_number, event.attempt) in charged
            _require(is_charged, "budget", f"must be charged before round {event.round_number} of {event.run} closes")
        with _as_failure("budget"):
            if isinstance(event, BudgetGranted):
                check_granted(event, accounts, federation)
            if _is_of(event, run, BudgetReserved):
                grants = [accounts.grants[name] for name in event.datasets if name in accounts.grants]
                are_owners = all(is_owners(grant, federation) for grant in grants)
                _require(are_owners, "budget", "must be what its owner registered")
                admit(accounts, event, home="", compose=recompute)
            accounts.apply(event)
        federation.apply(event)
    account = accounts.runs[run]
    return f"{len(account.charged)} of {account.reserved.attempts} reserved attempts charged, each before its round"


@contextmanager
def _as_failure(what: str) -> Generator[None]:
    """A refusal of ledger or federation is this verification's failure."""
    try:
        yield
    except HubbubError as error:
        raise _failure(what, error.message) from None


def _is_of(event: AnyEvent, run: str, kind: type[Kind]) -> TypeGuard[Kind]:
    return isinstance(event, kind) and getattr(event, "run", None) == run


def _released(events: Sequence[AnyEvent], key: str) -> ModelReleased:
    found = [event for event in events if isinstance(event, ModelReleased) and event.release_key == key]
    _require(bool(found), "release", f"must be an entry of the log under key {key[:16]}")
    return found[-1]


def _event(body: bytes, index: int) -> AnyEvent:
    try:
        return decode_event(body)
    except HubbubError as error:
        raise _failure(f"entry {index}", error.message) from None


def _document(data: bytes, kind: type[Document]) -> Document:
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError, HubbubError) as error:
        raise _failure(kind.__name__.lower(), str(error)) from None
    _require(as_json(document) == data, kind.__name__.lower(), "must be written in the one way that has one reading")
    return document


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _failure(name, f"must be readable, {error.strerror}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.6f}"


def _require(is_met: object, what: str, rule: str) -> None:
    if not is_met:
        raise _failure(what, rule)


def _failure(what: str, rule: str) -> VerificationError:
    return VerificationError(
        f"bundle: {what}, {rule}, found otherwise; this release is not verified",
        hint="ask whoever released it; keep this bundle as evidence",
    )
