"""The one object: its sensitivity is golden, its noise is what its event says, drawn as a round draws it."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from hubbub.cohort import EveryExample, Everyone, FixedSize, PoissonExamples, SecretPoisson
from hubbub.mechanism.encode import from_ring
from hubbub.mechanism.mechanism import MOST_ROWS, Mechanism, integer_sensitivity
from hubbub.randomness import SeededRandomness

DRAWS = 4000


def mechanism(**changes):
    """A server-noise mechanism for examples, some fields changed."""
    fields = {
        "unit": "example",
        "noise": "server",
        "noise_source": "os",
        "max_norm": 1.0,
        "dimension": 31,
        "scale": 2.0**20,
        "largest": 2**26,
        "sigma": 3057090,
        "steps": 1,
        "noises_steps": False,
        "examples": PoissonExamples(0.25),
        "participants": Everyone(),
    }
    return Mechanism(**(fields | changes))


# --- sensitivity


def test_the_golden_sensitivity_and_noise_multiplier():
    assert round(mechanism().sensitivity, 3) == 1048581.568
    assert mechanism().noise_multiplier == 2.915452


def test_a_clients_sensitivity_is_scale_times_norm_exactly():
    assert mechanism(unit="client", max_norm=0.75).sensitivity == 0.75 * 2**20


@given(st.floats(1e-9, 1e9), st.integers(-10, 60), st.integers(1, 10**7))
def test_an_examples_sensitivity_is_above_the_exact_bound(max_norm, exponent, dimension):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        gamma = mpmath.mpf(MOST_ROWS + 2) * mpmath.mpf(2) ** -53
        exact = mpmath.mpf(2) ** exponent * mpmath.mpf(max_norm) * (1 + 4 * MOST_ROWS * gamma)
        exact += mpmath.sqrt(dimension) * (1 + mpmath.mpf(2) ** -19)
        claimed = mpmath.mpf(integer_sensitivity(max_norm, 2.0**exponent, dimension))
        assert exact <= claimed <= exact * (1 + mpmath.mpf(2) ** -48)


@given(st.data(), st.integers(1, 12))
def test_a_float64_product_of_weights_and_rows_errs_by_less_than_is_claimed(data, dimension):
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(1, size=(MOST_ROWS, dimension)).astype(np.float32).astype(np.float64)
    factors = mechanism(dimension=dimension).clip_factors(np.sqrt(np.einsum("ij,ij->i", rows, rows)))
    row = data.draw(st.integers(0, MOST_ROWS - 1))
    without = factors.copy()
    without[row] = 0.0
    difference = [math.fsum([a, -b]) for a, b in zip(factors @ rows, without @ rows, strict=True)]
    allowed = 1 + 2 * MOST_ROWS * (MOST_ROWS + 2) * 2.0**-53
    assert math.sqrt(math.fsum(value**2 for value in difference)) <= allowed


# --- what is accounted


GAUSSIAN = {"@": "GaussianDpEvent", "noise_multiplier": 2.915452}
POISSON = {"@": "PoissonSampledDpEvent", "sampling_probability": 0.25, "event": GAUSSIAN}
CLIENT = {"unit": "client", "examples": EveryExample(), "sigma": 3057081}
CLIENT_GAUSSIAN = {"@": "GaussianDpEvent", "noise_multiplier": 2.915459}
EVENTS = {
    "sampled examples": ({}, POISSON),
    "all examples": ({"examples": EveryExample()}, GAUSSIAN),
    "sampled examples, a drawn cohort": ({"participants": FixedSize(3)}, POISSON),
    "sampled examples, local noise": ({"noise": "local"}, POISSON),
    "local steps": (
        {"noise": "local", "steps": 5, "noises_steps": True},
        {"@": "SelfComposedDpEvent", "count": 5, "event": POISSON},
    ),
    "clients": (CLIENT, CLIENT_GAUSSIAN),
    "clients, fixed size": (CLIENT | {"participants": FixedSize(3)}, CLIENT_GAUSSIAN),
    "clients, secret cohort": (
        CLIENT | {"participants": SecretPoisson(0.1)},
        {"@": "PoissonSampledDpEvent", "sampling_probability": 0.1, "event": CLIENT_GAUSSIAN},
    ),
    "clients, secret cohort, local noise": (
        CLIENT | {"participants": SecretPoisson(0.1), "noise": "local"},
        CLIENT_GAUSSIAN,
    ),
    "no noise": ({"noise": "none", "sigma": 0}, {"@": "NonPrivateDpEvent"}),
    "no noise, local steps": ({"noise": "none", "sigma": 0, "steps": 5}, {"@": "NonPrivateDpEvent"}),
}


@pytest.mark.parametrize(("changes", "event"), EVENTS.values(), ids=EVENTS)
def test_each_kind_of_mechanism_is_accounted_as_what_it_does(changes, event):
    assert mechanism(**changes).dp_event == event


def test_no_field_names_a_sensitivity_a_multiplier_or_an_event():
    with pytest.raises(TypeError):
        mechanism(sensitivity=1.0)
    with pytest.raises(TypeError):
        mechanism(noise_multiplier=1.0)
    with pytest.raises(AttributeError):
        mechanism().sigma = 1
    assert not {"sensitivity", "noise_multiplier", "dp_event"} & set(Mechanism.__struct_fields__)


# --- the noise of a round


def sent(made, values, label):
    """Noise that a participant's message carries, by the call that a round makes."""
    randomness = SeededRandomness(1, "send", label)
    messages = [from_ring(made.send(values, randomness)) - values for _ in range(DRAWS // made.dimension + 1)]
    return np.concatenate(messages)


def released(made, values, label):
    """Noise that a released sum carries, by the calls that a round makes."""
    randomness = SeededRandomness(1, "release", label)
    total = made.send(values, randomness) + made.send(values, randomness)
    sums = [made.release(total, randomness) - 2 * values for _ in range(DRAWS // made.dimension + 1)]
    return np.concatenate(sums)


def is_gaussian_of(noise, sigma):
    """Whether variance, mean and tails are those of this sigma, each at a level of 1e-6."""
    size = noise.size
    variance = float(np.sum((noise / sigma) ** 2))
    is_variance = chi2.ppf(1e-6, size) < variance < chi2.isf(1e-6, size)
    is_mean = abs(float(np.mean(noise / sigma))) < norm.isf(1e-6) / math.sqrt(size)
    beyond = np.mean(np.abs(noise) > sigma)
    return is_variance and is_mean and abs(beyond - 0.3173) < norm.isf(1e-6) * math.sqrt(0.22 / size)


WAYS = {
    "server, examples": (released, {}),
    "server, clients": (released, CLIENT),
    "server, secret cohort": (released, CLIENT | {"participants": SecretPoisson(0.5)}),
    "local, examples": (sent, {"noise": "local"}),
    "local, clients": (sent, CLIENT | {"noise": "local"}),
    "float simulation, server": (released, {"noise_source": "float-simulation"}),
    "float simulation, local": (sent, {"noise_source": "float-simulation", "noise": "local"}),
}


@pytest.mark.parametrize(("draw", "changes"), WAYS.values(), ids=WAYS)
def test_a_rounds_noise_has_the_sigma_of_its_event_and_no_other(draw, changes):
    made = mechanism(**changes)
    noise = draw(made, np.arange(31) * 1000, str(changes))
    assert is_gaussian_of(noise, made.sigma)
    assert not is_gaussian_of(noise, made.sigma * 2 / 3)
    assert not is_gaussian_of(noise, made.sigma * 3 / 2)
    event = made.dp_event
    while "event" in event:
        event = event["event"]
    assert made.sigma >= event["noise_multiplier"] * made.sensitivity


def test_local_steps_are_noised_where_they_are_taken():
    made = mechanism(noise="local", steps=5, noises_steps=True)
    values, randomness = np.arange(31), SeededRandomness(4)
    steps = np.concatenate([made.noised(values, randomness) - values for _ in range(130)])
    assert is_gaussian_of(steps, made.sigma)
    assert not is_gaussian_of(steps, made.sigma * 2 / 3)
    np.testing.assert_array_equal(from_ring(made.send(values, randomness)), values)  # not a second time
    np.testing.assert_array_equal(made.release(made.send(values, randomness), randomness), values)


def test_a_message_under_server_noise_is_exact():
    values = np.arange(-15, 16)
    for made in (mechanism(), mechanism(noise_source="float-simulation")):
        np.testing.assert_array_equal(from_ring(made.send(values, SeededRandomness(0))), values)


def test_a_sum_of_local_noise_is_released_as_it_is():
    made = mechanism(noise="local")
    total = made.send(np.arange(31), SeededRandomness(0))
    np.testing.assert_array_equal(made.release(total, SeededRandomness(1)), from_ring(total))


def test_without_noise_nothing_is_drawn():
    made, values = mechanism(noise="none", sigma=0), np.arange(31)
    np.testing.assert_array_equal(made.release(made.send(values, SeededRandomness(0)), SeededRandomness(0)), values)
    np.testing.assert_array_equal(made.noised(values, SeededRandomness(0)), values)
    assert made.noise_multiplier == 0.0


def test_no_noise_comes_twice():
    made, randomness, values = mechanism(), SeededRandomness(0), np.zeros(31, dtype=np.uint32)
    first, second = made.release(values, randomness), made.release(values, randomness)
    assert (first != second).any()


@pytest.mark.parametrize("noise", ["server", "local"])
def test_what_is_sent_is_clamped_before_its_noise(noise):
    made = mechanism(noise=noise, largest=100, sigma=16)
    message = from_ring(made.send(np.full(31, 10**9), SeededRandomness(0)))
    assert abs(message - 100).max() < 200


# --- clip and encode of this mechanism


def test_clip_and_encode_use_this_mechanisms_norm_scale_and_range():
    made = mechanism(unit="client", max_norm=0.5, dimension=4, scale=1024.0, largest=512)
    assert made.encode_update(np.array([3.0, 0.0, 4.0, 0.0], dtype=np.float32)).tolist() == [307, 0, 409, 0]
    assert made.encode_sum([np.array([0.25, 1e9, -1e9, 0.0])]).tolist() == [256, 512, -512, 0]
    np.testing.assert_allclose(made.clip_factors(np.array([0.1, 1.0])), [1.0, 0.5])


def test_a_released_vector_is_rounded_and_clamped_and_never_fails():
    made = mechanism(scale=8.0, largest=100)
    values = np.array([0.3, np.nan, np.inf, -np.inf, 1e30, -1e30])
    assert made.encode_released(values).tolist() == [2, 0, 0, 0, 100, -100]


def test_a_mechanism_survives_its_own_json():
    for changes, _ in EVENTS.values():
        made = mechanism(**changes)
        assert msgspec.json.decode(msgspec.json.encode(made), type=Mechanism) == made
