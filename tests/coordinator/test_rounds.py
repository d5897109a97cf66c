"""The coordinator adds up what it asked for, and nothing else."""

import msgspec
import numpy as np
import pytest

import hubbub
from hubbub.coordinator import Coordinator, Progress
from hubbub.coordinator.step import ServerStep
from hubbub.errors import RoundError
from hubbub.events import RoundClosed, RoundFailed
from hubbub.mechanism.encode import to_ring
from hubbub.messages import Contribution, decode_message, encode_message, pack_values, unpack_parameters
from hubbub.randomness import OperatingSystemRandomness, SeededRandomness
from hubbub.study.config import Training

EVERYTHING = {"examples": "everything", "probability": None}


@pytest.fixture
def coordinator(make_study, settings):
    """Make a coordinator and its plan."""

    def make(tables=None, randomness=None, start=0.0, **functions):
        study = hubbub.check(make_study(tables or settings(), **functions))
        plan = hubbub.plan(study)
        parameters = np.full(plan.mechanism.dimension, start, np.float32)
        source = randomness or SeededRandomness(2)
        return Coordinator("r", settings=study.settings, plan=plan, start=Progress(parameters), randomness=source), plan

    return make


def end(machine):
    """End an attempt whose sum has one stage."""
    assert machine.advance() == {}
    return machine.close()


def answer(message, participant, values, **changes):
    opened = decode_message(message)
    contribution = Contribution(
        run=opened.run,
        plan_hash=opened.plan_hash,
        round_number=opened.round_number,
        attempt=opened.attempt,
        participant=participant,
        payload=memoryview(pack_values(to_ring(np.asarray(values, dtype=np.int64)))),
    )
    return encode_message(msgspec.structs.replace(contribution, **changes))


def test_without_noise_the_step_is_the_mean_gradient_over_the_expected_batch(coordinator, settings):
    tables = settings(privacy={"noise": "none", "epsilon": None}, sampling=EVERYTHING, training={"learning_rate": 0.5})
    machine, plan = coordinator(tables, start=1.0)
    vectors = {name: np.arange(10) * 1000 * number for number, name in enumerate("abc", start=1)}
    for name, message in machine.open(["a", "b", "c"]).items():
        machine.receive(answer(message, name, vectors[name]))
    closed = end(machine)
    expected = 1.0 - 0.5 * sum(vectors.values()) / plan.mechanism.scale / 120
    np.testing.assert_allclose(machine.parameters, expected.astype(np.float32))
    assert isinstance(closed, RoundClosed)
    assert closed.participants == 3
    assert closed.step_norm == pytest.approx(np.linalg.norm(expected - 1.0), rel=1e-6)


def test_server_momentum_adds_up_past_steps(coordinator, settings):
    tables = settings(
        privacy={"noise": "none", "epsilon": None},
        sampling=EVERYTHING,
        training={"momentum": 0.5, "learning_rate": 1.0},
    )
    machine, plan = coordinator(tables)
    unit = int(plan.mechanism.scale * plan.expected_batch)
    moved = []
    for _ in range(3):
        for name, message in machine.open(["a", "b", "c"]).items():
            machine.receive(answer(message, name, np.full(10, unit if name == "a" else 0)))
        before = machine.parameters.copy()
        end(machine)
        moved.append(float((before - machine.parameters)[0]))
    assert moved == pytest.approx([1.0, 1.5, 1.75])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sums_of_32_and_64_bits_move_the_model_alike_and_leave_the_old_one_as_it_was(coordinator, momentum):
    plan, size = coordinator()[1], 40_000  # several blocks
    plan = msgspec.structs.replace(plan, mechanism=msgspec.structs.replace(plan.mechanism, dimension=size))
    training = Training(algorithm="fedavgm", rounds=3, learning_rate=0.1, batch_size=4, momentum=momentum)
    ends = []
    for kind in (np.int32, np.int64):
        rng, step = np.random.default_rng(0), ServerStep(plan, training)
        first = rng.normal(size=size).astype(np.float32)
        before, model = first.copy(), first
        for _ in range(3):
            model, norm = step.move(model, rng.integers(-(2**30), 2**30, size).astype(kind))
        np.testing.assert_array_equal(first, before)
        ends.append((model.tobytes(), norm, None if step.velocity is None else step.velocity.tobytes()))
    assert ends[0] == ends[1]
    assert (ends[0][2] is None) == (momentum == 0.0)


@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize("factor", [2 / 3, 1.0, 3 / 2])
def test_the_released_sum_carries_server_noise_of_the_plans_sigma(coordinator, settings, factor, is_ahead):
    tables = settings(
        data={"x": {"shape": [2000]}}, training={"learning_rate": 1.0, "rounds": 20}, privacy={"retries": 0}
    )

    def data(_):
        return hubbub.Examples(np.zeros((40, 2000), np.float32), np.zeros(40, np.int64))

    def model():
        import torch

        return torch.nn.Linear(2000, 2)

    machine, plan = coordinator(tables, data=data, test_data=lambda: data(""), model=model)
    noise = []
    for _ in range(20):
        for name, message in machine.open(["a", "b", "c"]).items():
            machine.receive(answer(message, name, np.zeros(plan.mechanism.dimension)))
        if is_ahead:
            machine.draw_ahead()
        before = machine.parameters.astype(np.float64)
        end(machine)
        noise.append((before - machine.parameters) * plan.mechanism.scale * plan.expected_batch)
    drawn = np.concatenate(noise)
    deviations = (drawn.var() / (factor * plan.mechanism.sigma) ** 2 - 1) / np.sqrt(2 / drawn.size)
    assert bool(abs(deviations) < 5) is (factor == 1.0)


def test_noise_that_was_drawn_ahead_is_added_once_and_to_no_other_attempt(coordinator, settings):
    machine, plan = coordinator(settings(privacy={"retries": 2}, training={"learning_rate": 1.0}))
    drawn, added = [], []
    for answering in ("abc", "a", "abc", "abc"):
        asked, before = machine.open(["a", "b", "c"]), machine.parameters.astype(np.float64)
        for name in answering:
            machine.receive(answer(asked[name], name, np.zeros(10)))
        if len(drawn) < 3:  # in the last round it is drawn when it is needed
            machine.draw_ahead()
        drawn.append(np.zeros(10) if machine._owed is None else machine._owed.copy())
        end(machine)
        assert machine._owed is None
        added.append((before - machine.parameters) * plan.mechanism.scale * plan.expected_batch)
    scale = plan.mechanism.sigma
    np.testing.assert_allclose(added[0], drawn[0], atol=1e-3 * scale)  # parameters are float32
    np.testing.assert_array_equal(added[1], 0)  # the attempt failed
    np.testing.assert_allclose(added[2], drawn[2], atol=1e-3 * scale)
    for other in (*drawn, *added[:3]):
        assert np.abs(added[3] - other).max() > 0.1 * scale
    assert np.abs(drawn[1] - drawn[2]).max() > 0.1 * scale


def test_a_round_below_the_minimum_fails_and_is_tried_again_with_the_same_model(coordinator):
    machine, _ = coordinator(start=0.5)
    asked = machine.open(["a", "b", "c"])
    machine.receive(answer(asked["a"], "a", np.ones(10)))
    failed = end(machine)
    assert failed == RoundFailed(
        run="r", round_number=1, attempt=1, reason="round, needs 3 contributions, found 1; nothing released"
    )
    assert (machine.parameters == 0.5).all()
    assert decode_message(machine.open(["a", "b", "c"])["a"]).attempt == 2
    assert machine.round_number == 1


def test_too_few_online_asks_nobody(coordinator):
    machine, _ = coordinator()
    words = "round 1, needs 3 participants online, found 2; nothing asked, no budget spent"
    with pytest.raises(RoundError, match=words):
        machine.open(["a", "b"])
    assert machine.attempt == 0


def test_an_empty_secret_cohort_is_a_round_of_pure_noise(coordinator, client_settings):
    tables = client_settings(cohort={"participants": "secret-poisson", "probability": 1e-9})
    machine, _ = coordinator(tables, randomness=OperatingSystemRandomness())
    assert machine.open(["a", "b", "c"]) == {}
    closed = end(machine)
    assert isinstance(closed, RoundClosed)
    assert closed.participants is None
    assert closed.step_norm > 0


@pytest.mark.parametrize("changes", [{"run": "x"}, {"plan_hash": "x"}, {"round_number": 2}, {"attempt": 2}])
def test_an_answer_to_another_question_is_not_added(coordinator, changes):
    machine, _ = coordinator()
    asked = machine.open(["a", "b", "c"])
    with pytest.raises(RoundError, match="takes answers to attempt 1, found another; nothing added"):
        machine.receive(answer(asked["a"], "a", np.ones(10), **changes))


def test_a_participant_is_added_once_and_only_if_asked(coordinator):
    machine, _ = coordinator()
    asked = machine.open(["a", "b", "c"])
    machine.receive(answer(asked["a"], "a", np.ones(10)))
    for name in ("a", "stranger"):
        with pytest.raises(
            RoundError, match=f"takes one answer from each member of its cohort, found another from '{name}'"
        ):
            machine.receive(answer(asked["a"], name, np.ones(10)))


def test_an_answer_of_another_length_is_not_added_and_may_be_sent_right(coordinator):
    machine, _ = coordinator()
    asked = machine.open(["a", "b", "c"])
    with pytest.raises(
        RoundError, match="contribution, must hold 10 parameters of 4 bytes, found 44 bytes; nothing added"
    ):
        machine.receive(answer(asked["a"], "a", np.ones(11)))
    machine.receive(answer(asked["a"], "a", np.ones(10)))


def test_an_open_message_is_no_answer(coordinator):
    machine, _ = coordinator()
    asked = machine.open(["a", "b", "c"])
    with pytest.raises(RoundError, match="takes answers to attempt 1"):
        machine.receive(asked["a"])


def test_every_member_is_asked_with_the_same_bytes(coordinator):
    machine, plan = coordinator(start=0.25)
    asked = machine.open(["a", "b", "c"])
    assert len(set(asked.values())) == 1
    assert (unpack_parameters(decode_message(asked["a"]).parameters, plan.mechanism.dimension) == 0.25).all()


def test_the_run_is_finished_after_the_plans_rounds(coordinator):
    machine, plan = coordinator()
    for _ in range(plan.rounds):
        assert not machine.is_finished
        for name, message in machine.open(["a", "b", "c"]).items():
            machine.receive(answer(message, name, np.zeros(10)))
        end(machine)
    assert machine.is_finished


def test_an_attempt_closed_before_its_sum_is_complete_fails(coordinator):
    machine, _ = coordinator()
    machine.open(["a", "b", "c"])
    assert machine.close().reason == "given up before its sum was complete"


@pytest.mark.parametrize("noise", ["server", "local"])
def test_a_sum_is_released_once_however_often_its_attempt_is_closed(coordinator, settings, noise):
    machine, _ = coordinator(settings(privacy={"noise": noise}))
    for name, message in machine.open(["a", "b", "c"]).items():
        machine.receive(answer(message, name, np.zeros(10)))
    assert isinstance(end(machine), RoundClosed)
    model = machine.parameters.copy()
    assert machine.close().reason == "given up before its sum was complete"
    np.testing.assert_array_equal(machine.parameters, model)
    assert machine.round_number == 2
