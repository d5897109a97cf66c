"""What each kind of act changes, once it is in force. What lasts as long as its approvals is read from the case."""

from functools import singledispatch
from typing import Literal

from hubbub.governance.acts import (
    AcknowledgeIncident,
    Act,
    CloseIncident,
    EnrolKey,
    EraseDataset,
    FoundFederation,
    OpenIncident,
    PassReview,
    RaiseBudget,
    RegisterDataset,
    RevokeKey,
    RotateKey,
    StopRun,
)
from hubbub.governance.keys import Card
from hubbub.governance.roles import packaged, tighten
from hubbub.governance.state import Budget, Case, Dataset, Holder, Incident, State


@singledispatch
def take_effect(act: Act, state: State, case: Case, time: int) -> None:
    """Change the state by an act that has come into force."""
    del act, state, case, time  # studies and releases


@take_effect.register
def _(act: FoundFederation, state: State, case: Case, time: int) -> None:
    del time
    state.id, state.name, state.epoch = case.id, act.name, 1
    state.rules = tighten(packaged()[0], act.tighter)
    state.holders = {card.key_id: Holder(card, 1) for card in act.cards}


@take_effect.register
def _(act: EnrolKey, state: State, case: Case, time: int) -> None:
    del case, time
    _enrol(state, act.card)


@take_effect.register
def _(act: RotateKey, state: State, case: Case, time: int) -> None:
    _end(state, act.key, time, "rotated" if act.key == case.proposer.key_id else "stolen")
    _enrol(state, act.card)


@take_effect.register
def _(act: RevokeKey, state: State, case: Case, time: int) -> None:
    del case
    state.epoch += 1
    _end(state, act.key, time, act.reason)


def _enrol(state: State, card: Card) -> None:
    state.epoch += 1
    state.holders[card.key_id] = Holder(card, state.epoch)


def _end(state: State, key: str, time: int, reason: Literal["rotated", "left", "stolen"]) -> None:
    state.holders[key].revoked_at = time
    state.holders[key].reason = reason


@take_effect.register
def _(act: RegisterDataset, state: State, case: Case, time: int) -> None:
    del case, time
    older = None if act.is_disjoint else act.version_of
    account = act.dataset if older is None else state.datasets[older].account
    state.datasets[act.dataset] = Dataset(act, account)
    state.budgets.setdefault(account, Budget(act.unit, act.epsilon, act.delta, act.grant))


@take_effect.register
def _(act: RaiseBudget, state: State, case: Case, time: int) -> None:
    del case, time
    state.budgets[state.datasets[act.dataset].account].epsilon = act.epsilon


@take_effect.register
def _(act: EraseDataset, state: State, case: Case, time: int) -> None:
    del case, time
    state.datasets[act.dataset].is_erased = True


@take_effect.register
def _(act: PassReview, state: State, case: Case, time: int) -> None:
    del case, time
    state.runs[act.run].reviews.add(act.round_number)


@take_effect.register
def _(act: StopRun, state: State, case: Case, time: int) -> None:
    del case, time
    state.runs[act.run].is_stopped = True


@take_effect.register
def _(act: OpenIncident, state: State, case: Case, time: int) -> None:
    state.incidents[case.id] = Incident(act.severity, act.summary, act.run, time)


@take_effect.register
def _(act: AcknowledgeIncident, state: State, case: Case, time: int) -> None:
    del case
    state.incidents[act.incident].acknowledged_at = time


@take_effect.register
def _(act: CloseIncident, state: State, case: Case, time: int) -> None:
    del case
    state.incidents[act.incident].closed_at = time
