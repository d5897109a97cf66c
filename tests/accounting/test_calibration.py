import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.accounting.calibration import calibrate
from hubbub.accounting.epsilon import epsilon
from hubbub.errors import InputError

DELTA = 1e-5


def sampled(q, rounds):
    """Make the event of a study as a function of its noise multiplier."""

    def make_event(z):
        gaussian = {"@": "GaussianDpEvent", "noise_multiplier": z}
        event = {"@": "PoissonSampledDpEvent", "sampling_probability": q, "event": gaussian}
        return {"@": "SelfComposedDpEvent", "count": rounds, "event": event}

    return make_event


def assert_is_smallest(make_event, target, z, delta=DELTA):
    assert round(z, 6) == z
    assert epsilon([make_event(z)], delta).epsilon <= target
    assert epsilon([make_event(z - 1e-5)], delta).epsilon > target


@pytest.mark.parametrize(
    ("q", "rounds", "target", "expected"),
    [
        (0.01, 1000, 1.0, 1.41473),
        pytest.param(0.1, 200, 8.0, 1.12974, marks=pytest.mark.slow),
        pytest.param(0.02, 2000, 3.0, 1.45159, marks=pytest.mark.slow),
        (0.25, 60, 3.0, 2.91545),
        (0.25, 62, 3.0, 2.95676),
        (0.1, 100, 8.0, 0.935934),
        (1.0, 10, 8.0, 1.89809),
    ],
)
def test_the_table_of_the_design(q, rounds, target, expected):
    z = calibrate(sampled(q, rounds), target, DELTA)
    assert z == pytest.approx(expected, abs=1.1e-4)
    assert z <= expected + 1e-5  # the first and the third of the design's numbers are 10^-4 more than needed
    assert_is_smallest(sampled(q, rounds), target, z)


@given(st.integers(1, 1000), st.floats(0.01, 50.0), st.floats(-10, -3).map(lambda exponent: 10**exponent))
@settings(max_examples=30, deadline=None)
def test_plain_noise_is_the_smallest_that_is_enough(rounds, target, delta):
    z = calibrate(sampled(1.0, rounds), target, delta)
    assert_is_smallest(sampled(1.0, rounds), target, z, delta)


@pytest.mark.parametrize(("q", "rounds", "target"), [(0.5, 10, 0.05), (0.1, 20, 100.0), (0.3, 3, 1.0)])
def test_sampled_noise_is_the_smallest_that_is_enough(q, rounds, target):
    assert_is_smallest(sampled(q, rounds), target, calibrate(sampled(q, rounds), target, DELTA))


def test_more_rounds_need_more_noise():
    found = [calibrate(sampled(1.0, rounds), 2.0, DELTA) for rounds in (1, 2, 10, 100)]
    assert found == sorted(found)


def test_the_budget_may_be_spent_in_part_by_noise_that_does_not_move():
    def make_event(z):
        fixed = {"@": "GaussianDpEvent", "noise_multiplier": 2.0}
        return {"@": "ComposedDpEvent", "events": [fixed, {"@": "GaussianDpEvent", "noise_multiplier": z}]}

    z = calibrate(make_event, 3.0, DELTA)
    assert_is_smallest(make_event, 3.0, z)
    with pytest.raises(
        InputError, match=r"must be reachable with a noise multiplier up to 1000000, found 1\.0"
    ) as refusal:
        calibrate(make_event, 1.0, DELTA)
    assert refusal.value.hint == "fewer rounds, a smaller sampling probability, or a larger epsilon"


def test_what_costs_nothing_needs_the_least_noise_there_is():
    assert calibrate(sampled(0.1, 0), 1.0, DELTA) == 1e-6


def test_a_step_in_the_cost_is_found_as_well():
    def make_event(z):
        return {"@": "NonPrivateDpEvent" if z < 3.25 else "NoOpDpEvent"}

    assert calibrate(make_event, 1.0, DELTA) == 3.25


def test_a_cost_that_falls_when_it_should_rise_still_ends():
    def make_event(z):
        rho = 0.2 if z < 2 else 0.3 if z < 3 else 0.0001
        return {"@": "ZCDpEvent", "rho": rho, "xi": 0.0}

    z = calibrate(make_event, 1.0, DELTA)
    assert epsilon([make_event(z)], DELTA).epsilon <= 1.0


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_out_of_range_is_refused(target):
    with pytest.raises(InputError, match="epsilon, must be positive and finite, found") as refusal:
        calibrate(sampled(0.1, 1), target, DELTA)
    assert refusal.value.hint == "use 8 or less"


def test_a_study_is_calibrated_while_one_waits():
    start = time.process_time()
    calibrate(sampled(0.251, 62), 3.0, DELTA)
    calibrate(sampled(0.011, 1000), 1.0, DELTA)
    assert time.process_time() - start < 10  # 3 s when nothing else runs
