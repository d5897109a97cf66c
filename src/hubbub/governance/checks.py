"""What each kind of act must find, whoever asks for it: order, names, purposes, dates, classes of change."""

from collections.abc import Collection
from functools import singledispatch

from hubbub.governance.acts import (
    AcknowledgeIncident,
    Act,
    CloseIncident,
    EnrolKey,
    EraseDataset,
    FoundFederation,
    PassReview,
    ProposeStudy,
    RaiseBudget,
    RegisterDataset,
    ReleaseModel,
    RevokeKey,
    RotateKey,
    StopRun,
)
from hubbub.governance.keys import Card
from hubbub.governance.roles import packaged, tighten
from hubbub.governance.state import Budget, Run, State, refuse

NEEDED_FOUNDERS = {"privacy-officer", "operator"}
"""Roles without which nobody could ever be enrolled."""


@singledispatch
def check_act(act: Act, state: State, time: int) -> None:
    """Refuse an act that does not fit what has happened so far.

    Raises:
        RefusedError: Wrong order, an unknown name, a purpose or a date that the owner does not allow.
    """
    del act, state, time  # an incident may be opened at any time


def check_usable(state: State, dataset: str, time: int) -> None:
    """Refuse a dataset that is unknown, erased, or past its last day."""
    _find(dataset, state.datasets, "a dataset", "hubbub dataset list")
    known = state.datasets[dataset]
    if known.is_erased or time >= known.registered.ends:
        found = "it erased" if known.is_erased else f"its last day was {known.registered.retention}"
        raise refuse(f"dataset {dataset}", "must exist", found, "hubbub dataset list")


def _check_purpose(state: State, dataset: str, purpose: str) -> None:
    """Refuse a purpose that the owner of a dataset did not allow."""
    allowed = state.datasets[dataset].registered.purposes
    if purpose not in allowed:
        words = ", ".join(map(repr, allowed))
        raise refuse(f"dataset {dataset}", f"may be used for {words}", repr(purpose), f"purpose = {allowed[0]!r}")


def _find(name: str, known: Collection[str], what: str, hint: str) -> None:
    if name not in known:
        raise refuse(repr(name), f"must be {what} of this log", "none of that name", hint)


@check_act.register
def _(act: FoundFederation, state: State, time: int) -> None:
    del state, time
    rules, roles = packaged()
    if act.roles != roles:
        raise refuse("founding", f"must name the roles file {roles[:16]}", act.roles[:16], "hubbub federation found")
    tighten(rules, act.tighter)
    names = {card.name for card in act.cards}
    public = {key for card in act.cards for key in card.public_keys}
    if len(names) < len(act.cards) or len(public) < 4 * len(act.cards):
        raise refuse("founding", "must name each holder and each key once", "one twice", "hubbub keys new")
    for card in act.cards:
        card.check()
    if absent := sorted(NEEDED_FOUNDERS - {card.role for card in act.cards}):
        raise refuse("founding", f"must have a founder with role {absent[0]}", "none", f"--role {absent[0]}")


@check_act.register
def _(act: EnrolKey, state: State, time: int) -> None:
    del time
    _check_new(state, act.card)
    if act.card.name in {holder.card.name for holder in state.holders.values()}:
        hint = "hubbub keys new, under a name that nobody here has had"
        raise refuse(f"card of {act.card.name}", "must have a name of its own", "one that is taken", hint)


def _check_new(state: State, card: Card) -> None:
    card.check()
    seen = {key for holder in state.holders.values() for key in holder.card.public_keys}
    if seen & set(card.public_keys) or card.key_id in state.holders:
        raise refuse(f"card of {card.name}", "must show keys never seen before", "an old one", "hubbub keys new")


@check_act.register
def _(act: RotateKey, state: State, time: int) -> None:
    del time
    _check_in_force(act.key, state)
    old, card = state.holders[act.key].card, act.card
    if (old.name, old.organisation, old.role) != (card.name, card.organisation, card.role):
        must = f"must be of {old.name}, {old.role} of {old.organisation}"
        raise refuse(f"card of {card.name}", must, f"{card.role} of {card.organisation}", "hubbub keys rotate")
    _check_new(state, card)


@check_act.register
def _(act: RevokeKey, state: State, time: int) -> None:
    del time
    _check_in_force(act.key, state)


def _check_in_force(key: str, state: State) -> None:
    _find(key, state.holders, "a key", "hubbub keys list")
    if state.holders[key].reason:
        hint = "hubbub keys list; its holder comes back with a card under a new name: hubbub propose key CARD"
        raise refuse(f"key {key}", "ends once", f"it {state.holders[key].reason}", hint)


@check_act.register
def _(act: RegisterDataset, state: State, time: int) -> None:
    where = f"dataset {act.dataset}"
    if act.dataset in state.datasets:
        raise refuse(where, "is registered once", "a second time", "hubbub dataset list")
    nodes = {card.name for card in state.in_force() if card.role == "node" and card.organisation == act.organisation}
    if act.participant not in nodes:
        raise refuse(where, f"must be held by a node of {act.organisation}", repr(act.participant), "hubbub keys list")
    if time >= act.ends or not act.purposes:
        found = f"the last day {act.retention}" if act.purposes else "no purpose"
        raise refuse(where, "must have a day ahead and a purpose", found, "--retention 2030-12-31 --purpose research")
    if act.version_of is not None:
        _check_version(act, act.version_of, state, time)
    elif act.is_disjoint:
        raise refuse(where, "is disjoint from an older version", "none named", "--version-of DATASET")


def _check_version(act: RegisterDataset, older: str, state: State, time: int) -> None:
    """A new version has the old one's owner, and its budget: a new view of old data is not new budget."""
    check_usable(state, older, time)
    where, old = f"dataset {act.dataset}", state.datasets[older]
    owner, shared = old.registered.organisation, state.budgets[old.account]
    if owner != act.organisation:
        raise refuse(where, f"must have the owner of {older}, {owner}", act.organisation, "hubbub dataset list")
    if not act.is_disjoint and (found := Budget(act.unit, act.epsilon, act.delta, act.grant)) != shared:
        raise refuse(
            where, f"shares the {shared}", f"{found}", f"--epsilon {shared.epsilon:.12g} --delta {shared.delta:.12g}"
        )


@check_act.register
def _(act: RaiseBudget, state: State, time: int) -> None:
    check_usable(state, act.dataset, time)
    budget = state.budgets[state.datasets[act.dataset].account]
    if act.epsilon <= budget.epsilon:
        found, hint = f"epsilon {act.epsilon:.12g}", f"--epsilon {budget.epsilon + 1:.12g}"
        raise refuse(f"dataset {act.dataset}", f"has a {budget}, which may be raised only", found, hint)


@check_act.register
def _(act: EraseDataset, state: State, time: int) -> None:
    del time
    _find(act.dataset, state.datasets, "a dataset", "hubbub dataset list")
    if state.datasets[act.dataset].is_erased:
        raise refuse(f"dataset {act.dataset}", "is erased once", "a second time", "hubbub dataset list")


@check_act.register
def _(act: ProposeStudy, state: State, time: int) -> None:
    where = f"study {act.study}"
    if not act.data:
        raise refuse(where, "must name the data it uses", "none", "hubbub dataset register")
    for dataset in act.data:
        check_usable(state, dataset, time)
        _check_purpose(state, dataset, act.purpose)
    if (act.change == "C") != (act.changes is None):
        raise refuse(where, "names the study it changes in class A or B only", f"class {act.change}", "--changes ID")
    if act.changes is not None:
        _check_change(act, act.changes, state, time)


def _check_change(act: ProposeStudy, changes: str, state: State, time: int) -> None:
    """A claimed class must be true of everything that can be seen here; runs are held to the terms."""
    where, case = f"study {act.study}", state.cases.get(changes)
    base = case.act if case else None
    if case is None or not isinstance(base, ProposeStudy) or base.changes or state.standing(case, time) != "in force":
        raise refuse(where, "must change a fully approved study in force", changes[:16], "propose it in class C")
    is_same = (act.study, act.code_hash, act.purpose) == (base.study, base.code_hash, base.purpose)
    if act.change == "A":
        fits = act.terms == base.terms and act.data == base.data
    else:
        is_bounded = act.terms.epsilon is not None  # two exact sums differ in one contribution
        are_fewer = is_bounded and act.data.items() <= base.data.items()
        fits = act.terms.within(base.terms) and (are_fewer or act.data == base.data)
    if not (is_same and fits):
        found = "other terms, data, code or purpose"
        raise refuse(where, f"is no change of class {act.change}", found, "propose it in class C")


@check_act.register
def _(act: ReleaseModel, state: State, time: int) -> None:
    del time
    run, study = _approved(act.run, state)
    if run.model_hash is None or run.is_stopped:
        found = "a stopped one" if run.is_stopped else "an unfinished one"
        raise refuse(f"release of {act.run}", "needs a finished run", found, "hubbub run")
    if run.model_hash != act.model_hash:
        must, found = f"must be of model {run.model_hash[:16]}", act.model_hash[:16]
        raise refuse(f"release of {act.run}", must, found, "hubbub propose release RUN")
    if absent := sorted(set(study.terms.reviews) - run.reviews):
        found = f"none of round {absent[0]}"
        raise refuse(f"release of {act.run}", "needs every review passed", found, f"hubbub propose review {act.run}")


@check_act.register
def _(act: PassReview, state: State, time: int) -> None:
    del time
    run, study = _approved(act.run, state)
    if act.round_number not in study.terms.reviews:
        waits = f"waits after rounds {list(study.terms.reviews)}"
        raise refuse(f"run {act.run}", waits, repr(act.round_number), "hubbub approvals")
    if run.rounds < act.round_number or act.round_number in run.reviews:
        found = "one that was passed" if act.round_number in run.reviews else f"{run.rounds} rounds closed"
        must = "is passed once, after it is closed"
        raise refuse(f"review of round {act.round_number}", must, found, "hubbub approvals")


def _runs(state: State) -> str:
    """The newest runs by name: what is typed for RUN, which elsewhere is a folder."""
    return f"its name, such as {', '.join(list(state.runs)[-3:])}" if state.runs else "hubbub run"


def _approved(name: str, state: State) -> tuple[Run, ProposeStudy]:
    """A run and the study that allowed it when it started."""
    _find(name, state.runs, "a run", _runs(state))
    study = state.study_of(name)
    if study is None:
        must = "must have been approved when it started"
        raise refuse(f"run {name}", must, "no study in force then", "hubbub propose study")
    return state.runs[name], study


@check_act.register
def _(act: StopRun, state: State, time: int) -> None:
    del time
    _find(act.run, state.runs, "a run", _runs(state))
    if state.runs[act.run].is_stopped:
        raise refuse(f"run {act.run}", "is stopped once", "a second time", "hubbub approvals")


@check_act.register
def _(act: AcknowledgeIncident, state: State, time: int) -> None:
    del time
    _find(act.incident, state.incidents, "an incident", "hubbub incident list")
    if state.incidents[act.incident].acknowledged_at is not None:
        raise refuse("incident", "is acknowledged once", "a second time", "hubbub incident list")


@check_act.register
def _(act: CloseIncident, state: State, time: int) -> None:
    del time
    _find(act.incident, state.incidents, "an incident", "hubbub incident list")
    incident = state.incidents[act.incident]
    if incident.acknowledged_at is None or incident.closed_at is not None:
        found = "one that nobody acknowledged" if incident.acknowledged_at is None else "a closed one"
        raise refuse("incident", "is closed once, after it was acknowledged", found, "hubbub incident list")
