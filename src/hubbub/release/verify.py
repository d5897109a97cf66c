"""Check a bundle, offline: signatures, the log, who allowed it, what it cost, and that the claim follows.

    files -> keys -> log -> acts -> run -> plan -> budget -> claim

Each step is told as it passes. Nothing of the study's code is run and no model is loaded.

*Trust:* it is the verifier. Without a policy from elsewhere it believes the keys that the bundle names, and
says so.
"""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from hubbub.accounting.ledger import Accounts
from hubbub.errors import HubbubError, InputError, VerificationError
from hubbub.events import (
    AnyEvent,
    BudgetCharged,
    BudgetGranted,
    BudgetReserved,
    ModelReleased,
    RoundClosed,
    RunStarted,
    decode_event,
)
from hubbub.governance import Federation
from hubbub.planning import Plan, check_plan, plan_from
from hubbub.release.bundle import MODEL, MODEL_SIGNATURE, PUBLIC_KEY, SIGNATURE, StudyFacts
from hubbub.release.claim import ReleaseClaim, claim_from_log
from hubbub.release.model_signing import fingerprint, read_public_key, verify_folder
from hubbub.tlog import Policy, tiles, verify_checkpoint
from hubbub.tlog.policy import parse_policy

Document = TypeVar("Document")


@dataclass(frozen=True)
class Check:
    """Something that was checked, and what was found."""

    what: str
    found: str


def verify_bundle(
    folder: Path, *, policy: Policy | None = None, now: int | None = None, recompute: bool = True
) -> Generator[Check, None, ReleaseClaim]:
    """Check a bundle; yields each check as it passes, returns the claim.

    Args:
        folder: The bundle.
        policy: Whose keys are believed, from somewhere else than the bundle; None believes the bundle's own.
        now: POSIX seconds, to refuse cosignatures older than a day; None: of any age.
        recompute: Whether to compute plan and epsilon again (seconds), or to check all but that.

    Raises:
        VerificationError: The first thing that does not add up.
    """
    with_policy = policy is not None
    try:
        public = read_public_key(folder / PUBLIC_KEY)
    except InputError as error:
        raise _failure(PUBLIC_KEY, error.message) from None
    key = fingerprint(public)
    verify_folder(folder, public, folder / SIGNATURE)
    verify_folder(folder / "model", public, folder / MODEL_SIGNATURE)
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
    yield Check("model", f"{released.model_hash[:16]}, released by entry {events.index(released)} of the log")

    yield Check("acts", _check_acts(events, released))
    plan, facts = _document(files["plan.json"], Plan), _document(files["study.json"], StudyFacts)
    _check_plan(events, released.run, plan, facts)
    yield Check("plan", f"{plan.hash[:16]}, of these settings, reserved before the run began")
    yield Check("budget", _check_budget(events, released.run))
    if recompute:
        _require(plan_from(facts.settings, facts.lock) == plan, "plan", "must follow from the settings and sizes")
        yield Check("recomputed plan", f"noise multiplier {plan.noise_multiplier}, the same")
    claim = _document(files["claim.json"], ReleaseClaim)
    if recompute:
        again = claim_from_log(events, released.run, plan, facts.settings)
        yield Check("recomputed claim", _compare(claim, again))
    return claim


def _check_acts(events: Sequence[AnyEvent], released: ModelReleased) -> str:
    """Fold every act: signatures, roles and order are checked on the way; then the permission of this release."""
    federation = Federation()
    for event in events[: events.index(released)]:
        federation.apply(event)
    if federation.is_sandbox:
        return "a sandbox: nobody had to approve"
    study = federation.study_of(released.run)
    _require(study is not None, "run", "must be of a study that was approved when it began")
    try:
        permit = federation.may_release(
            run=released.run,
            model_hash=released.model_hash,
            claim_hash=released.claim_hash,
            now=federation.latest,
        )
    except HubbubError as error:
        raise _failure("release", error.message) from None
    by = ", ".join(permit.approved_by) if permit else "nobody"
    return f"federation {federation.name}: study and release approved, the release by {by}"


def _check_plan(events: Sequence[AnyEvent], run: str, plan: Plan, facts: StudyFacts) -> None:
    started = next(event for event in events if isinstance(event, RunStarted) and event.run == run)
    reserved = next((event for event in events if isinstance(event, BudgetReserved) and event.run == run), None)
    _require(reserved is not None, "plan", "must be reserved")
    assert reserved is not None  # noqa: S101, `_require` has said so
    _require(events.index(reserved) < events.index(started), "plan", "must be reserved before the run begins")
    _require({started.plan_hash, reserved.plan_hash} == {plan.hash}, "plan", "must be the one that was reserved")
    _require(started.code_hash == plan.code_hash == facts.lock.code_hash, "code", "must be the one that was planned")
    try:
        check_plan(plan, facts.settings)
    except HubbubError as error:
        raise _failure("plan", error.message) from None


def _check_budget(events: Sequence[AnyEvent], run: str) -> str:
    """Fold every charge; a round is charged before it is closed, and no owner's grant is invented."""
    accounts, federation = Accounts(), Federation()
    for event in events:
        if isinstance(event, RoundClosed):
            charged = accounts.runs[event.run].charged if event.run in accounts.runs else set[tuple[int, int]]()
            is_charged = (event.round_number, event.attempt) in charged
            _require(
                is_charged, "budget", f"must be charged before round {event.round_number} of {event.run} is closed"
            )
        if isinstance(event, BudgetCharged) and event.run in accounts.runs:
            account = accounts.runs[event.run]
            is_within = not account.is_settled and len(account.charged) < account.reserved.attempts
            _require(is_within, "budget", f"must be charged within the reservation of {event.run}")
        if isinstance(event, BudgetGranted) and not federation.is_sandbox:
            budget = federation.budgets.get(event.dataset)
            is_owners = budget is not None and (budget.epsilon, budget.delta) == (event.epsilon, event.delta)
            _require(is_owners, "budget", f"must be what its owner registered for {event.dataset}")
        accounts.apply(event)
        federation.apply(event)
    account = accounts.runs[run]
    return f"{len(account.charged)} of {account.reserved.attempts} reserved attempts charged, each before its round"


def _compare(claim: ReleaseClaim, again: ReleaseClaim) -> str:
    """The claim must be what the log gives; with another version of the accountant, no epsilon may be too small."""
    if claim == again:
        return f"epsilon {_number(again.epsilon_spent)} at delta {again.delta:g}, by {again.accountant}, the same"
    same = msgspec.structs.replace(
        again, accountant=claim.accountant, epsilon_spent=claim.epsilon_spent,
        epsilon_spent_rdp=claim.epsilon_spent_rdp, sentence=claim.sentence, lifetime=claim.lifetime,
    )  # fmt: skip
    is_other_accountant = claim.accountant != again.accountant and claim == same
    _require(is_other_accountant, "claim", "must be what follows from the log")
    stated, found = claim.epsilon_spent, again.epsilon_spent
    _require(
        found is None or (stated is not None and found <= stated * (1 + 1e-3)), "claim", "must state enough epsilon"
    )
    return f"epsilon {_number(found)} by {again.accountant}, the claim's {_number(stated)} by {claim.accountant}"


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
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, HubbubError) as error:
        raise _failure(kind.__name__.lower(), str(error)) from None


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
