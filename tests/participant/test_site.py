"""A participant answers what it agreed to, once, and only after the charge."""

import dataclasses

import numpy as np
import pytest

import hubbub
from hubbub.engine.prepare import prepare
from hubbub.errors import BudgetError, InputError, RoundError
from hubbub.mechanism.encode import from_ring
from hubbub.messages import (
    Contribution,
    RoundOpened,
    decode_message,
    encode_message,
    pack_parameters,
    unpack_values,
)
from hubbub.participant import Participant, commit
from hubbub.planning import make_plan
from hubbub.randomness import SeededRandomness


@pytest.fixture
def site(make_study, settings):
    """Make one participant, its plan, and the list of what it charged."""

    def make(tables=None, **functions):
        prepared = prepare(make_study(tables or settings(), **functions))
        plan = make_plan(prepared.study)
        charged = []
        participant = Participant(
            "a",
            "run-1",
            settings=prepared.study.settings,
            plan=plan,
            slots=prepared.slots["a"],
            randomness=SeededRandomness(1),
            charge=lambda *attempt: charged.append(attempt),
        )
        return participant, plan, prepared.learner, charged

    return make


def opened(plan, learner, **changes):
    fields = {
        "run": "run-1",
        "plan_hash": plan.hash,
        "round_number": 1,
        "attempt": 1,
        "parameters": pack_parameters(learner.initial()),
    }
    return encode_message(RoundOpened(**(fields | changes)))


def test_the_answer_is_one_ring_element_per_parameter_for_this_attempt(site):
    participant, plan, learner, charged = site()
    answer = decode_message(participant.receive(opened(plan, learner), learner))
    assert isinstance(answer, Contribution)
    assert (answer.run, answer.plan_hash, answer.round_number, answer.attempt) == ("run-1", plan.hash, 1, 1)
    assert unpack_values(answer.payload, plan.mechanism.dimension).shape == (plan.mechanism.dimension,)
    assert charged == [(1, 1)]


@pytest.mark.parametrize("changes", [{"run": "run-2"}, {"plan_hash": "0" * 64}])
def test_another_run_or_plan_is_refused(site, changes):
    participant, plan, learner, charged = site()
    with pytest.raises(
        RoundError, match="must be asked under the run and plan it joined, found another's; nothing sent"
    ):
        participant.receive(opened(plan, learner, **changes), learner)
    assert charged == []


def test_its_own_kind_of_message_is_refused(site):
    participant, plan, learner, _ = site()
    answer = participant.receive(opened(plan, learner), learner)
    with pytest.raises(RoundError, match="must be asked under the run and plan it joined"):
        participant.receive(answer, learner)


@pytest.mark.parametrize(("round_number", "attempt"), [(0, 1), (5, 1), (3, 0), (3, 4)])
def test_no_attempt_is_answered_that_the_plan_does_not_have(site, round_number, attempt):
    participant, plan, learner, charged = site()
    with pytest.raises(RoundError, match="must be asked for one of 4 rounds and 2 retries, found round"):
        participant.receive(opened(plan, learner, round_number=round_number, attempt=attempt), learner)
    assert charged == []


@pytest.mark.parametrize(("round_number", "attempt"), [(2, 1), (1, 3), (2, 2)])
def test_an_attempt_is_answered_once_and_in_order(site, round_number, attempt):
    participant, plan, learner, charged = site()
    participant.receive(opened(plan, learner, round_number=2, attempt=2), learner)
    with pytest.raises(
        RoundError, match=r"must be asked for each attempt once and in order, found .*nothing sent, no budget spent"
    ):
        participant.receive(opened(plan, learner, round_number=round_number, attempt=attempt), learner)
    assert charged == [(2, 2)]


def test_no_more_attempts_are_answered_than_the_plan_has_in_all(site):
    participant, plan, learner, charged = site()
    asked = [(round_number, attempt) for round_number in (1, 2) for attempt in (1, 2, 3)]
    for round_number, attempt in asked:
        participant.receive(opened(plan, learner, round_number=round_number, attempt=attempt), learner)
    assert len(charged) == plan.attempts == 6
    with pytest.raises(RoundError, match="found round 3 attempt 1 after 6 attempts; nothing sent, no budget spent"):
        participant.receive(opened(plan, learner, round_number=3), learner)
    assert charged == asked


def test_nothing_is_trained_where_the_charge_is_refused(make_study, settings):
    prepared = prepare(make_study(settings()))
    plan = make_plan(prepared.study)

    def refuse(*_):
        raise BudgetError("no budget", hint="ask")

    participant = Participant(
        "a",
        "run-1",
        settings=prepared.study.settings,
        plan=plan,
        slots=prepared.slots["a"],
        randomness=SeededRandomness(1),
        charge=refuse,
    )
    before = SeededRandomness(1).words(4)
    with pytest.raises(BudgetError):
        participant.receive(opened(plan, prepared.learner), prepared.learner)
    assert (participant.records._randomness.words(4) == before).all()  # neither a sample nor noise was drawn


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_refused_before_the_charge(site, value):
    participant, plan, learner, charged = site()
    broken = pack_parameters(np.full(plan.mechanism.dimension, value, np.float32))
    with pytest.raises(
        RoundError, match="model, must be finite, found a NaN or an infinity; nothing trained, nothing sent"
    ):
        participant.receive(opened(plan, learner, parameters=broken), learner)
    assert charged == []


def test_a_model_of_another_size_is_refused(site):
    participant, plan, learner, _ = site()
    with pytest.raises(RoundError, match="model, must hold 10 parameters of 4 bytes, found 4 bytes"):
        participant.receive(opened(plan, learner, parameters=b"\0\0\0\0"), learner)


def test_bytes_that_are_no_message_are_one_clear_error(site):
    participant, _, learner, _ = site()
    with pytest.raises(InputError, match="message, must be of a known type"):
        participant.receive(b"\x00garbage", learner)


def test_the_same_length_is_sent_whatever_the_records_are(site):
    lengths = set()
    for rows in ([], [1.0], [np.nan] * 20, [1e30] * 20):

        def data(_, rows=rows):
            x = np.full((len(rows), 4), 1.0, np.float32) * np.array(rows, np.float32)[:, None]
            return hubbub.Examples(x, np.ones(len(rows), np.int64), slots=20)

        participant, plan, learner, charged = site(data=data)
        lengths.add(len(participant.receive(opened(plan, learner), learner)))
        assert charged == [(1, 1)]
    assert len(lengths) == 1


def test_a_client_update_is_clipped_to_its_integer_norm(site, client_settings):
    participant, plan, learner, _ = site(client_settings(training={"learning_rate": 50.0, "local_epochs": 5}))
    answer = decode_message(participant.receive(opened(plan, learner), learner))
    sent = [int(value) for value in from_ring(unpack_values(answer.payload, plan.mechanism.dimension))]
    assert 0 < sum(value * value for value in sent) <= (plan.mechanism.scale * plan.mechanism.max_norm) ** 2


def test_with_local_noise_nothing_exact_is_sent(site, settings):
    def values(noise):
        participant, plan, learner, _ = site(
            settings(privacy={"noise": noise}, sampling={"examples": "everything", "probability": None})
        )
        answer = decode_message(participant.receive(opened(plan, learner), learner))
        return from_ring(unpack_values(answer.payload, plan.mechanism.dimension)), plan.mechanism.sigma

    exact, sigma = values("server")
    noised, _ = values("local")
    assert np.abs(noised - exact).mean() > 0.3 * sigma


def test_a_commitment_depends_on_every_slot_and_on_the_salt(make_study):
    slots = prepare(make_study()).slots["a"]
    salt = bytes(range(32))
    first = commit(slots, salt)
    assert first == commit(slots, salt)
    assert first != commit(slots, bytes(32))
    for name in ("x", "y", "is_real"):
        changed = getattr(slots, name).copy()
        changed[-1] = 0 if changed[-1].any() else 1
        assert commit(dataclasses.replace(slots, **{name: changed}), salt) != first


def test_a_salt_has_thirty_two_bytes(make_study):
    slots = prepare(make_study()).slots["a"]
    with pytest.raises(InputError, match="salt, must be 32 bytes, found 31"):
        commit(slots, bytes(31))
