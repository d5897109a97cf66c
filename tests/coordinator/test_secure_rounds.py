"""A round under secure aggregation: whoever drops out at any stage, the sum is exact or the round fails by name."""

import msgspec
import numpy as np
import pytest

import hubbub
from hubbub.coordinator import Coordinator, Progress
from hubbub.engine.federation import Federation
from hubbub.engine.prepare import prepare
from hubbub.errors import RoundError
from hubbub.eventlog import EventLog
from hubbub.events import RoundClosed, RoundFailed
from hubbub.messages import RoundOpened, decode_message, encode_message, pack_parameters
from hubbub.participant import Participant
from hubbub.randomness import SeededRandomness

NAMES = list("abcde")
STAGES = ("open", "share", "masked", "consent", "unmask")
TABLES = {
    "privacy": {"noise": "distributed"},
    "cohort": {"colluding": 1, "minimum": 4},
    "sampling": {"examples": "everything", "probability": None},
}


@pytest.fixture
def world(make_study, settings, tmp_path):
    """Make a coordinator, five participants, and the list of what they charged."""

    def make():
        prepared = prepare(make_study(settings(**TABLES), participants=lambda: NAMES))
        plan = hubbub.plan(prepared.study)
        federation = Federation(plan, plan.secagg, number=1, log=EventLog(tmp_path / "log.db"), origin="test")
        charged = []
        coordinator = Coordinator(
            "run",
            settings=prepared.study.settings,
            plan=plan,
            start=Progress(prepared.learner.initial()),
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
                masking=federation.masking(name, charge),
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


def test_an_opening_that_is_sent_again_must_carry_the_same_model_and_round(world):
    """Otherwise each participant could be given a model of its own in one session: one may be crafted."""
    coordinator, sites, learner, charged = world()
    asked = coordinator.open(list(sites))
    first = sites["a"].receive(asked["a"], learner)
    opened = decode_message(asked["a"])
    other = pack_parameters(learner.initial() + np.float32(1))
    for change in ({"parameters": other}, {"round_number": 2}, {"attempt": 2}):
        with pytest.raises(RoundError, match="must be asked into the session it knows, with its own"):
            sites["a"].receive(encode_message(msgspec.structs.replace(opened, **change)), learner)
    assert sites["a"].receive(asked["a"], learner) == first
    for name in "bcde":
        coordinator.receive(sites[name].receive(asked[name], learner))
    coordinator.receive(first)
    adverts = coordinator.advance()["a"]
    carried = msgspec.structs.replace(opened, payload=decode_message(adverts).payload)
    with pytest.raises(RoundError, match="must be asked into a session by 'open'"):
        sites["a"].receive(encode_message(carried), learner)
    assert charged == []


def test_sessions_given_up_before_anything_is_charged_count_too(world):
    """A coordinator that has the graph drawn again and again finds one it likes: the thresholds hold for so many."""
    coordinator, sites, learner, charged = world()
    plan, model = coordinator._plan, pack_parameters(coordinator.parameters)

    def ask(round_number, attempt):
        payload = coordinator._make_sum(round_number, attempt, model).open()["a"]
        address = {**coordinator._address, "round_number": round_number, "attempt": attempt}
        message = encode_message(RoundOpened(**address, parameters=model, payload=payload))
        first = sites["a"].receive(message, learner)
        assert sites["a"].receive(message, learner) == first  # the answer was lost: not another session
        return first

    answers = {ask(1 + count // 3, 1 + count % 3) for count in range(plan.attempts)}
    assert len(answers) == plan.attempts == plan.rounds + plan.retries
    with pytest.raises(RoundError, match=f"after {plan.attempts} attempts; nothing sent, no budget spent"):
        ask(plan.rounds, 1)
    assert charged == []


def test_who_sends_too_late_has_dropped_out_and_the_others_get_their_sum(world):
    coordinator, sites, learner, _ = world()
    late = []
    asked = coordinator.open(list(sites))
    for stage in STAGES:
        for name, message in asked.items():
            reply = sites[name].receive(message, learner)
            (late.append if (stage, name) == ("masked", "c") else coordinator.receive)(reply)
        asked = coordinator.advance()  # the deadline: "c" was asked and is still training
        for reply in late:
            with pytest.raises(RoundError, match="round 1 attempt 1, "):
                coordinator.receive(reply)
    closed = coordinator.close()
    assert isinstance(closed, RoundClosed)
    assert closed.participants == 4
