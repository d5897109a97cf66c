"""keys, federation, dataset, propose, approve, approvals, incident: each signs or shows one thing."""

import argparse
import hashlib
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hubbub.cli.acts import LONG, asked, opened, state_of
from hubbub.cli.home import chosen_home
from hubbub.cli.plain import plain
from hubbub.engine.acts import Acts
from hubbub.engine.commands import Offer, OfferStudy, ShowStatus, Status, StudyOffers
from hubbub.engine.home import salts
from hubbub.errors import AT, InputError, typed
from hubbub.governance import Federation, load_keys, new_keys, sweep, terms_of
from hubbub.governance.acts import (
    AcknowledgeIncident,
    AnyAct,
    CloseIncident,
    EnrolKey,
    FoundFederation,
    OpenIncident,
    PassReview,
    ProposeStudy,
    RaiseBudget,
    RegisterDataset,
    ReleaseModel,
    RevokeKey,
    RotateKey,
    StopRun,
)
from hubbub.governance.admission import DAY
from hubbub.governance.keys import in_words, read_card, write_card
from hubbub.governance.roles import Tightening, packaged, read_tightening
from hubbub.governance.state import Case
from hubbub.governance.statement import decide, propose, read
from hubbub.planning import check_across_hosts, make_plan
from hubbub.study import Lock, Study, load_study
from hubbub.study.lock import write_lock

SHORT = 12
"""Digits of an id that tables show; any beginning of it that is unique can be typed."""


# --- keys


def keys_new(options: argparse.Namespace) -> None:
    """Make four keys and a card."""
    keys = new_keys(options.name, organisation=options.organisation, role=options.role)
    folder = Path(options.out)
    keys.save(folder / f"{options.name}.key")
    write_card(keys.card, folder / f"{options.name}.card")
    print(f"wrote {folder / options.name}.key, which is yours alone, and {folder / options.name}.card, for everybody")


def keys_rotate(options: argparse.Namespace) -> None:
    """Make new keys and ask for them in place of one's own."""
    old = load_keys(Path(options.key))
    new = new_keys(old.card.name, organisation=old.card.organisation, role=old.card.role)
    new.save(Path(options.out))
    _propose(options, RotateKey(key=old.card.key_id, card=new.card))


def keys_revoke(options: argparse.Namespace) -> None:
    """Ask that a key ends: by its id, or by its holder's name."""
    holders = state_of(options).holders
    named = [key for key, holder in holders.items() if holder.card.name == options.holder and not holder.reason]
    key = named[0] if named else found(options.holder, holders, "a key, or name its holder", "hubbub keys list")
    _propose(options, RevokeKey(key=key, reason=options.reason))


# --- the federation


def federation_found(options: argparse.Namespace) -> None:
    """Ask all founders to begin."""
    cards = tuple(read_card(Path(path)) for path in options.cards)
    tighter = read_tightening(Path(options.tighten)) if options.tighten else Tightening()
    _propose(options, FoundFederation(name=options.name, cards=cards, roles=packaged()[1], tighter=tighter))


# --- datasets


def dataset_register(options: argparse.Namespace) -> None:
    """Ask that a dataset is known, under an id minted here."""
    act = RegisterDataset(
        dataset=secrets.token_hex(16),
        participant=options.participant,
        organisation=load_keys(Path(options.key)).card.organisation,
        purposes=tuple(options.purpose),
        retention=options.retention,
        epsilon=options.epsilon,
        delta=options.delta,
        unit=options.unit,
        grant="unbounded" if options.unbounded else "gaussian" if options.gaussian else "filter",
        unit_column=options.unit_column,
        version_of=options.version_of and found(options.version_of, state_of(options).datasets, "a dataset"),
        is_disjoint=options.disjoint,
    )
    _propose(options, act)


def dataset_sweep(options: argparse.Namespace) -> None:
    """Delete what is past its last day, and say so in the log; of what was not found only where its owner says so."""
    keys, records, missing = load_keys(Path(options.key)), Path(options.records), list[Path]()

    def delete(dataset: str, _participant: str) -> bool:
        path = records / dataset
        if path.is_symlink() or not (path.exists() or options.gone):
            missing.append(path)
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return True

    with opened(options) as acts:
        now = int(time.time())
        envelopes = sweep(acts.state(), keys, now, delete)
        for envelope in envelopes:
            acts.record(envelope, now)
    if missing:
        raise InputError(
            f"{missing[0]}, must hold records that are past their last day, found nothing or a link; "
            f"{len(envelopes)} datasets erased, {len(missing)} not recorded",
            hint="name the folder that holds them; --gone, if they are deleted already",
        )
    print(f"erased {len(envelopes)} datasets")


# --- proposals


def propose_study(options: argparse.Namespace) -> None:
    """Ask for runs of a study's plan on registered data."""
    state = state_of(options)
    study, commitments = (_offered if options.at else _held_here)(options)
    plan, settings = make_plan(study), study.settings
    if options.at:
        check_across_hosts(plan)
    act = ProposeStudy(
        study=plan.study,
        study_hash=plan.study_hash,
        code_hash=plan.code_hash,
        plan_hash=plan.hash,
        data={_dataset_of(state, name): commitment for name, commitment in commitments.items()},
        purpose=settings.study.purpose,
        terms=terms_of(settings, minimum=plan.minimum),
        change=options.change,
        changes=found(options.changes, state.cases, "a proposal") if options.changes else None,
    )
    _propose(options, act)


def _held_here(options: argparse.Namespace) -> tuple[Study, dict[str, str]]:
    """The study, and a commitment to each participant's records, which are on this machine."""
    from hubbub.engine.prepare import prepare
    from hubbub.participant import commit

    prepared = prepare(load_study(options.study))
    salt = salts(chosen_home(options), prepared.slots)
    return prepared.study, {name: commit(slots, salt[name]) for name, slots in prepared.slots.items()}


def _offered(options: argparse.Namespace) -> tuple[Study, dict[str, str]]:
    """The study with a lock of what participants elsewhere hold, and the commitments that they answered with."""
    study = load_study(options.study)
    order = OfferStudy(study_hash=study.settings.approved_hash(), code_hash=study.code_hash)
    print("hubbub: asking who holds this study, which each loads with its records", file=sys.stderr)
    offers = asked(options, order, StudyOffers, seconds=LONG).offers
    held = [offer for offer in offers if not offer.refused]
    _tell_without(offers, [card.name for card in state_of(options).roster().members])
    sizes = {offer.parameters for offer in held}
    if len(sizes) != 1:
        raise InputError(
            f"study {study.settings.study.name}, must be held by participants with one and the same model, "
            f"found {len(held)} participants with models of {sorted(sizes)} parameters; nothing recorded",
            hint="owners copy the study into their sites' studies folder, and join",
        )
    lock = Lock(
        format=1,
        code_hash=study.code_hash,
        schema_hash=study.schema_hash,
        parameters=sizes.pop(),
        slots={offer.participant: offer.slots for offer in held},
    )
    if study.lock_path is not None:
        write_lock(study.lock_path, lock)
    return study.with_lock(lock), {offer.participant: offer.data_commitment for offer in held}


def _tell_without(offers: Sequence[Offer], roster: Sequence[str]) -> None:
    """Say who will be in no plan of this study, and why; a study is proposed without them."""
    refused = {offer.participant: f"refuses: {offer.refused}" for offer in offers if offer.refused}
    absent = dict.fromkeys(roster, "did not answer") | {offer.participant: "" for offer in offers}
    for name, why in sorted((absent | refused).items()):
        if why:
            print(plain(f"hubbub: {name} {why}; it is not in this plan"), file=sys.stderr)


def propose_release(options: argparse.Namespace) -> None:
    """Ask to give a finished run's model to others."""
    if options.at:
        told = next((run for run in asked(options, ShowStatus(), Status).runs if run.run == options.folder), None)
        if told is None or not told.claim_hash:
            raise InputError(
                f"run {options.folder}, must be a finished run of this coordinator, found none; nothing recorded",
                hint=f"hubbub status {AT}",
            )
        return _propose(options, ReleaseModel(run=told.run, model_hash=told.model_hash, claim_hash=told.claim_hash))
    folder = Path(options.folder)
    try:
        model, claim = (folder / "model.safetensors").read_bytes(), (folder / "claim.json").read_bytes()
        run = msgspec.json.decode(claim, type=dict[str, object])["run"]
    except (OSError, KeyError, ValueError, RecursionError) as error:
        is_open = (folder / "run.json").exists()
        raise InputError(
            f"{folder}, must be the directory of a finished run, {error}; nothing recorded",
            hint=f"hubbub resume {typed(folder)}" if is_open else "hubbub run STUDY",
        ) from None
    hashes = {"model_hash": hashlib.sha256(model).hexdigest(), "claim_hash": hashlib.sha256(claim).hexdigest()}
    return _propose(options, ReleaseModel(run=str(run), **hashes))


def propose_budget(options: argparse.Namespace) -> None:
    """Ask that a dataset may spend more."""
    state = state_of(options)
    dataset = found(options.dataset, state.datasets, "a dataset")
    _propose(options, RaiseBudget(dataset=dataset, epsilon=options.epsilon))


def propose_key(options: argparse.Namespace) -> None:
    """Ask that a new holder may act, or an old one under new keys."""
    card = read_card(Path(options.card))
    _propose(options, RotateKey(key=options.replaces, card=card) if options.replaces else EnrolKey(card=card))


def propose_review(options: argparse.Namespace) -> None:
    """Ask that a run goes on."""
    _propose(options, PassReview(run=options.run, round_number=options.round_number))


def propose_stop(options: argparse.Namespace) -> None:
    """End a run for good."""
    _propose(options, StopRun(run=options.run))


# --- decisions


def approve(options: argparse.Namespace) -> None:
    """Approve or deny exactly one proposal's bytes."""
    keys, now = load_keys(Path(options.key)), int(time.time())
    with opened(options) as acts:
        cases = acts.state().cases
        case = cases[found(options.case, cases, "a proposal")]
        days = options.expires if options.expires is not None else case.rule.expires_days
        envelope = decide(
            case.id,
            keys.identity,
            at=now,
            expires=max(0, now + days * DAY),
            verdict="deny" if options.deny else "approve",
            conditions=tuple(options.condition),
        )
        _record(acts, envelope, now, case.id)


# --- incidents


def incident_open(options: argparse.Namespace) -> None:
    """Say that something is wrong."""
    _propose(options, OpenIncident(severity=options.severity, summary=options.summary, run=options.run))


def incident_acknowledge(options: argparse.Namespace) -> None:
    """Say that somebody is at it."""
    state = state_of(options)
    _propose(options, AcknowledgeIncident(incident=found(options.incident, state.incidents, "an incident")))


def incident_close(options: argparse.Namespace) -> None:
    """Ask that an incident is over."""
    state = state_of(options)
    incident = found(options.incident, state.incidents, "an incident")
    _propose(options, CloseIncident(incident=incident, summary=options.summary))


# --- the log, and what is printed


def _propose(options: argparse.Namespace, act: AnyAct) -> None:
    """Sign an act and record it, if it may be recorded.

    Raises:
        InputError: A value was typed that no act may hold.
    """
    try:
        msgspec.convert(msgspec.to_builtins(act), type(act))
    except msgspec.ValidationError as error:
        raise InputError(f"{act.kind}, {in_words(error)}; nothing recorded", hint=f"{options.prog} --help") from None
    keys = load_keys(Path(options.key))
    now = int(time.time())
    with opened(options, must_exist=not isinstance(act, FoundFederation)) as acts:
        state = acts.state()
        days = state.rule(act, keys.card.key_id).expires_days
        days = options.expires if options.expires is not None else days
        envelope = propose(act, keys.identity, at=now, expires=max(0, now + days * DAY), federation=state.id)
        _record(acts, envelope, now, read(envelope).id)


def _record(acts: Acts, envelope: str, now: int, case: str) -> None:
    acts.record(envelope, now)
    state = acts.state()
    recorded = state.cases[case]
    standing, waits = state.standing(recorded, now), ", ".join(map(str, state.missing(recorded, now)))
    waiting = f", waits for {waits}" if standing == "pending" else ""
    print(plain(f"{case[:SHORT]}: {title(recorded, state)}: {standing}{waiting}"))


def found(beginning: str, known: Mapping[str, object], what: str, hint: str = "hubbub approvals --json") -> str:
    """The only id that begins so."""
    fitting = [key for key in known if key.startswith(beginning)]
    if len(fitting) != 1:
        number = f"{len(fitting)} of them" if fitting else "none"
        raise InputError(f"{beginning!r}, must begin the id of {what}, found {number}", hint=hint)
    return fitting[0]


def _dataset_of(state: Federation, participant: str) -> str:
    """The newest dataset that a participant holds."""
    dataset = state.held().get(participant)
    if dataset is None:
        raise InputError(
            f"{participant}, must hold a registered dataset, found none; nothing recorded",
            hint=f"hubbub dataset register {participant} --help",
        )
    return dataset


def title(case: Case, state: Federation) -> str:
    """What a proposal asks for, in a few words: whose key and whose dataset, not their ids alone."""
    match case.act:
        case RegisterDataset() as act:
            about = f"{act.dataset[:SHORT]} of {act.participant}"
        case RaiseBudget() as act:
            known = state.datasets[act.dataset].registered
            about = f"{act.dataset[:SHORT]} of {known.participant} to epsilon {act.epsilon:g}"
        case PassReview() as act:
            about = f"{act.run} after round {act.round_number}"
        case RevokeKey() as act:
            about = f"{act.key} of {state.holders[act.key].card.name}, {act.reason}"
        case act:
            names = ("study", "run", "dataset", "name", "summary")
            card = getattr(act, "card", None)
            about = next((getattr(act, name) for name in names if hasattr(act, name)), card.name if card else "")
    return f"{case.act.kind} {about}".strip()
