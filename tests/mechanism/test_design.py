"""From a study to integers: golden values, room in the ring, and never more epsilon than declared."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.accounting.discrete import integer_sigma
from hubbub.accounting.epsilon import epsilon as spend
from hubbub.cohort import EveryExample, Everyone, FixedSize, PoissonExamples, SecretPoisson
from hubbub.errors import PlanError, RoundError
from hubbub.mechanism import design
from hubbub.mechanism.design import COARSEST, LARGEST_SIGMA, _draft, _fit
from hubbub.mechanism.encode import HALF_RING
from hubbub.study import read_settings

HOSPITALS = (114, 114, 114, 114, 113)


def study(**changes):
    """The breast-cancer study, tables changed."""
    tables = {
        "study": {"name": "heart"},
        "data": {"x": {"dtype": "float32", "shape": [30]}, "y": {"dtype": "int64", "classes": 2}},
        "privacy": {"unit": "example", "epsilon": 3.0, "noise": "server"},
        "sampling": {"examples": "poisson", "probability": 0.25},
        "training": {"algorithm": "dp-sgd", "rounds": 60, "learning_rate": 2.0},
    }
    return read_settings({name: tables.get(name, {}) | changes.get(name, {}) for name in tables | changes})


def clients(**cohort):
    return study(
        privacy={"unit": "client", "epsilon": 8.0},
        sampling={"examples": "everything", "probability": None},
        training={"algorithm": "fedavg"},
        cohort=cohort,
    )


def cost(mechanism, attempts, delta=1e-5):
    event = {"@": "SelfComposedDpEvent", "count": attempts, "event": mechanism.dp_event}
    return spend([event], delta, interval=1e-4).epsilon


def test_golden_integers():
    assert integer_sigma(2.915452, 1048581.568) == 3057090


def test_golden_integers_of_a_whole_study():
    mechanism = design(study(), dimension=31, slots=HOSPITALS, attempts=60)
    assert mechanism.noise_multiplier == pytest.approx(2.915452, abs=1e-5)  # as fine as calibration goes
    assert mechanism.scale == 2.0**20
    assert round(mechanism.sensitivity, 3) == 1048581.568
    assert mechanism.sigma == pytest.approx(3057090, abs=11)
    assert cost(mechanism, 60) == pytest.approx(3.0, abs=1e-4)
    assert cost(mechanism, 60) <= 3.0


@pytest.mark.parametrize(
    ("settings_", "attempts"),
    [
        (study(), 62),
        (study(privacy={"epsilon": 0.5, "noise": "local"}), 62),
        (
            study(privacy={"noise": "local"}, training={"algorithm": "local-dp-sgd", "local_steps": 3, "rounds": 10}),
            12,
        ),
        (clients(participants="secret-poisson", probability=0.1), 102),
        (clients(participants="fixed", size=3), 12),
    ],
    ids=["server", "local", "local steps", "secret cohort", "fixed cohort"],
)
def test_all_attempts_together_cost_at_most_what_was_declared_and_nearly_all_of_it(settings_, attempts):
    mechanism = design(settings_, dimension=31, slots=HOSPITALS, attempts=attempts)
    spent = cost(mechanism, attempts)
    assert spent <= settings_.privacy.epsilon
    assert spent > settings_.privacy.epsilon * 0.9999


def test_samplers_come_from_the_study():
    assert _draft(study(), 3).examples == PoissonExamples(0.25)
    assert _draft(study(), 3).participants == Everyone()
    assert _draft(clients(), 3).examples == EveryExample()
    assert _draft(clients(participants="fixed", size=3), 3).participants == FixedSize(3)
    secret = clients(participants="secret-poisson", probability=0.1)
    assert _draft(secret, 3).participants == SecretPoisson(0.1)


def test_only_local_dp_sgd_noises_its_steps():
    steps = study(privacy={"noise": "local"}, training={"algorithm": "local-dp-sgd", "local_steps": 3})
    assert (_draft(steps, 3).steps, _draft(steps, 3).noises_steps) == (3, True)
    ignored = study(training={"local_steps": 3})
    assert (_draft(ignored, 3).steps, _draft(ignored, 3).noises_steps) == (1, False)


def test_without_noise_there_is_a_scale_and_no_sigma():
    mechanism = design(study(privacy={"noise": "none", "epsilon": None}), dimension=31, slots=HOSPITALS, attempts=62)
    assert mechanism.sigma == 0
    assert mechanism.dp_event == {"@": "NonPrivateDpEvent"}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["example", "client", "steps"]),
    st.sampled_from(["server", "local"]),
    st.floats(0.3, 50.0),
    st.floats(1e-9, 1e9),
    st.integers(1, 10**6),
    st.integers(1, 5000),
    st.integers(1, 20_000),
)
def test_sums_and_twelve_deviations_of_their_noise_fit_the_ring(unit, noise, z, norm, dimension, senders, batch):
    privacy = {"noise": noise, "max_norm": norm}
    if unit == "client":
        settings_ = study(
            privacy=privacy | {"unit": "client"},
            sampling={"examples": "everything", "probability": None},
            training={"algorithm": "fedavg"},
        )
    elif unit == "steps":
        settings_ = study(privacy=privacy | {"noise": "local"}, training={"algorithm": "local-dp-sgd"})
    else:
        settings_ = study(privacy=privacy)
    try:
        made = _fit(_draft(settings_, dimension), z, senders=senders, batch=batch)
    except PlanError:
        return
    one = made.scale * norm
    assert math.log2(made.scale).is_integer()
    assert one <= 2**20
    assert made.noise_multiplier >= z - 1e-6
    assert 16 <= made.sigma <= LARGEST_SIGMA
    assert made.sensitivity <= COARSEST * math.ceil(one)
    if unit == "steps":
        assert senders * made.largest < HALF_RING
        return
    shares = math.sqrt(senders) if noise == "local" else 1.0
    assert senders * made.largest + 12 * made.sigma * shares < HALF_RING
    assert made.largest >= (one if unit == "client" else batch * one)  # a clamp that only overflow would meet


def test_a_larger_crowd_gets_a_coarser_scale():
    draft = _draft(study(), 31)
    scales = [_fit(draft, 2.9, senders=senders, batch=100).scale for senders in (5, 50, 500)]
    assert scales == sorted(scales, reverse=True)
    assert len(set(scales)) == 3


@pytest.mark.parametrize(
    ("dimension", "z", "senders", "batch"),
    [(10**6, 2.9, 1000, 10**6), (10**6, 5e5, 2, 1)],
    ids=["sums too large", "noise too large"],
)
def test_a_study_whose_sums_cannot_fit_is_refused(dimension, z, senders, batch):
    with pytest.raises(PlanError) as caught:
        _fit(_draft(study(), dimension), z, senders=senders, batch=batch)
    assert caught.value.message == (
        f"mechanism, sums of {senders} participants and their noise must fit 32 bits, found no integer scale "
        f"for {dimension} parameters at noise multiplier {z:g}; nothing planned"
    )
    assert caught.value.hint == "fewer participants in a round, smaller batches, fewer parameters or a larger epsilon"


def test_a_clients_study_that_runs_out_of_scales_is_refused():
    with pytest.raises(PlanError, match="must fit 32 bits"):
        _fit(_draft(clients(), 31), 9e7, senders=2, batch=1)


def test_integers_too_coarse_for_their_noise_are_refused_as_a_plan():
    everything = study(sampling={"examples": "everything", "probability": None})
    with pytest.raises(PlanError, match="must fit 32 bits"):
        _fit(_draft(everything, 1), 0.3, senders=40, batch=1_500_000)


@pytest.mark.parametrize("weight", [-1, 41])
def test_no_participant_weighs_more_than_the_largest_number_of_slots(weight):
    weighed = study(
        privacy={"unit": "client", "noise": "none", "epsilon": None, "sums": "masked"},
        sampling={"examples": "everything", "probability": None},
        training={"algorithm": "fedavg", "weights": "examples"},
    )
    mechanism = design(weighed, dimension=3, slots=(10, 40, 25), attempts=3)
    values = np.array([1, -2, 2**30], dtype=np.int32)
    assert (mechanism.largest_weight, mechanism.length) == (40, 4)
    assert mechanism.weigh(values, 40).tolist() == [40, -80, 40 * 2**30, 40]
    with pytest.raises(RoundError, match=f"weight, must be 0 to 40, found {weight}; nothing sent"):
        mechanism.weigh(values, weight)
    equal = design(clients(), dimension=3, slots=(10, 40, 25), attempts=3)
    assert equal.weigh(values, weight) is values
