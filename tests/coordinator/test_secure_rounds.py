"""A round under secure aggregation: whoever drops out at any stage, the sum is exact or the round fails by name."""

import numpy as np
import pytest

import hubbub
from hubbub.coordinator import Coordinator
from hubbub.engine.federation import Federation
from hubbub.engine.prepare import prepare
from hubbub.events import RoundClosed, RoundFailed
from hubbub.participant import Participant
from hubbub.randomness import SeededRandomness

NAMES = list("abcde")
STAGES = ("open", "share", "masked", "consent", "unmask")
TABLES = {
    "privacy": {"noise": "distributed"},
    "cohort": {"colluding": 1, "minimum": 4, "dropouts": 0.2},
    "sampling": {"examples": "everything", "probability": None},
}


@pytest.fixture
def world(make_study, settings):
    """Make a coordinator, five participants, and the list of what they charged."""

    def make():
        prepared = prepare(make_study(settings(**TABLES), participants=lambda: NAMES))
        plan = hubbub.plan(prepared.study)
        federation = Federation(plan, plan.secagg, number=1, head=lambda: (7, bytes(32)))
        charged = []
        coordinator = Coordinator(
            "run",
            settings=prepared.study.settings,
            plan=plan,
            parameters=prepared.learner.initial(),
            randomness=SeededRandomness(0),
            make_sum=federation.make_sum,
        )
        sites = {
            name: Participant(
                name,
                "run",
                settings=prepared.study.settings,
                plan=plan,
                slots=prepared.slots[name],
                randomness=SeededRandomness(0, name),
                charge=(charge := lambda *attempt, name=name: charged.append((name, *attempt))),
                client=federation.client(name, charge),
                own_session=federation.session,
            )
            for name in NAMES
        }
        return coordinator, sites, prepared.learner, charged

    return make


def attempt(coordinator, sites, learner, drops=()):
    """Carry one attempt; `drops` are (stage, name): from there on the participant is silent."""
    asked = coordinator.open(list(sites))
    silent = set()
    for stage in STAGES:
        silent |= {name for at, name in drops if at == stage}
        for name, message in asked.items():
            if name not in silent and (reply := sites[name].receive(message, learner)) is not None:
                coordinator.receive(reply)
        asked = coordinator.advance()
        if not asked:
            break
    return coordinator.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_round_survives_one_dropout_at_any_stage(world, stage):
    coordinator, sites, learner, charged = world()
    closed = attempt(coordinator, sites, learner, [(stage, "c")])
    assert isinstance(closed, RoundClosed)
    assert closed.participants == (5 if stage in {"consent", "unmask"} else 4)
    assert {name for name, *_ in charged} >= set(NAMES) - {"c"}


@pytest.mark.parametrize("stage", ["open", "share"])
def test_too_few_before_masked_fails_by_name_and_nobody_is_charged(world, stage):
    coordinator, sites, learner, charged = world()
    failed = attempt(coordinator, sites, learner, [(stage, name) for name in "cde"])
    assert isinstance(failed, RoundFailed)
    assert "no budget spent" in failed.reason
    assert charged == []


@pytest.mark.parametrize("stage", ["masked", "consent", "unmask"])
def test_too_few_after_masked_fails_by_name_and_stays_charged(world, stage):
    coordinator, sites, learner, charged = world()
    before = coordinator.parameters.copy()
    failed = attempt(coordinator, sites, learner, [(stage, name) for name in "cde"])
    assert isinstance(failed, RoundFailed)
    assert "the attempt is charged" in failed.reason
    assert {entry[1:] for entry in charged} == {(1, 1)}
    np.testing.assert_array_equal(coordinator.parameters, before)


def test_a_failed_attempt_is_tried_again_with_another_charge_and_fresh_noise(world):
    coordinator, sites, learner, charged = world()
    attempt(coordinator, sites, learner, [("masked", name) for name in "cde"])
    assert isinstance(attempt(coordinator, sites, learner), RoundClosed)
    assert {entry[1:] for entry in charged} == {(1, 1), (1, 2)}


def test_survivors_with_a_dropout_give_the_sum_without_it(world):
    moved = []
    for _ in range(2):
        coordinator, sites, learner, _ = world()
        attempt(coordinator, sites, learner, [("masked", "c")])
        moved.append(coordinator.parameters)
    np.testing.assert_array_equal(*moved)  # masks are fresh each time, the sum is not touched by them
