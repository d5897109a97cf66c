"""Integers keep the bound that floats had: truncation, rounding, clamp and ring, in exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubbub.errors import RoundError
from hubbub.mechanism import encode
from hubbub.mechanism.encode import FINER, HALF_RING, clamp, encode_sum, encode_update, from_ring, to_ring

NORMS = st.floats(1e-3, 1.0)
UPDATES = st.one_of(
    hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    hnp.arrays(
        np.float32,
        st.integers(1, 20),
        elements=st.sampled_from([np.float32(v) for v in (1e-45, 3e38, -1e38, 1e-38, 0.0, 1.0)]),
    ),
)


def square(integers):
    return sum(int(value) ** 2 for value in integers)


def floats(*values):
    return np.array(values, dtype=np.float32)


@settings(max_examples=500, deadline=None)
@given(UPDATES, st.integers(0, 20), NORMS)
@example(np.full(50, 3e38, np.float32), 20, 1.0)
@example(np.full(50, 1 + 1e-6, np.float32), 20, 1.0)
@example(floats(1.0), 20, 1.0)
@example(floats(1.0), 0, 0.5)
@example(floats(np.nan, 1.0), 20, 1.0)
@example(floats(), 20, 1.0)
def test_encoded_integers_never_exceed_the_bound_whatever_comes_in(update, exponent, max_norm):
    encoded = encode_update(update, 2.0**exponent, max_norm)
    assert encoded.dtype == np.int32
    assert encoded.shape == update.shape
    assert square(encoded) <= (2**exponent * Fraction(max_norm)) ** 2


@pytest.mark.parametrize("max_norm", [2.0, 1 / 3, 0.1, 2.0**-20])
@pytest.mark.parametrize("dimension", [1, 3, 1000, 8191, 8192, 8193, 100_000])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3, 1e30])
def test_the_bound_holds_in_many_dimensions_and_is_nearly_reached(dimension, factor, max_norm):
    update = (factor * np.random.default_rng(dimension).standard_t(2, size=dimension)).astype(np.float32)
    scale = 2.0 ** (20 - math.ceil(math.log2(max_norm)))
    encoded = encode_update(update, scale, max_norm)
    length = float(np.linalg.norm(update.astype(np.float64)))
    assert square(encoded) <= (Fraction(scale) * Fraction(max_norm)) ** 2
    expected = update.astype(np.float64) * (scale * min(1.0, max_norm / length))
    np.testing.assert_allclose(encoded, expected, rtol=1e-9, atol=1.0)  # truncated, and no shorter than it must be


@pytest.mark.parametrize("max_norm", [1.0, 0.1, 1 / 3, 2.0**-20])
@pytest.mark.parametrize("dimension", [1, 3, 7, 1000])
def test_an_update_exactly_at_the_bound_stays_within_it(max_norm, dimension):
    rng, scale = np.random.default_rng(1), 2.0 ** (20 - math.ceil(math.log2(max_norm)))
    for _ in range(15):
        direction = rng.normal(size=dimension)
        update = (direction / np.linalg.norm(direction) * max_norm).astype(np.float32)
        for nudged in (update, np.nextafter(update, np.float32(np.inf) * np.sign(update))):
            assert square(encode_update(nudged, scale, max_norm)) <= (Fraction(scale) * Fraction(max_norm)) ** 2


@pytest.mark.parametrize("dimension", [1, 31, 100_000])
def test_a_short_update_is_truncated_toward_zero_and_nothing_else(dimension):
    direction = np.random.default_rng(0).normal(size=dimension)
    update = (0.99 * direction / np.linalg.norm(direction)).astype(np.float32)
    encoded = encode_update(update, 2.0**20, 1.0)
    assert encoded.tolist() == [math.trunc(Fraction(value) * 2**20) for value in update.tolist()]


def test_integers_that_are_too_long_are_shrunk_a_little(monkeypatch):
    monkeypatch.setattr(encode, "slack", lambda _: 1.0 + 1e-5)  # as if the rounding of norms were far worse than it is
    encoded = encode_update(np.full(100, 0.2, np.float32), 2.0**20, 1.0)
    assert 0.9999 * 2**40 <= square(encoded) <= 2**40


def test_the_usual_float32_formula_exceeds_the_bound_and_this_one_does_not():
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(500):
        update = (100 * rng.normal(size=100)).astype(np.float32)
        norm = np.linalg.norm(update)
        usual = update * np.minimum(np.float32(1), np.float32(1) / (norm + np.float32(1e-6)))
        exceeded += sum(Fraction(value) ** 2 for value in usual.tolist()) > 1
        assert square(encode_update(update, 2.0**20, 1.0)) <= 2**40
    assert exceeded > 100


def test_zero_and_tiny_values_become_zero():
    assert encode_update(floats(0.0, -0.0, 1e-45, -1e-9), 2.0**20, 1.0).tolist() == [0, 0, 0, 0]


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.data(),
)
def test_one_value_that_is_not_finite_drops_the_whole_update(update, value, data):
    update[data.draw(st.integers(0, update.size - 1))] = value
    assert not encode_update(update, 2.0**20, 1.0).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sum_that_is_not_finite_is_refused(value):
    with pytest.raises(RoundError) as caught:
        encode_sum([np.zeros(2), np.array([0.0, value])], 2.0**20, largest=100, size=2)
    assert caught.value.message == "gradient sum, must be finite, found a NaN or an infinity; nothing sent"
    assert caught.value.hint == "clipped gradients cannot do this: report it"


@given(st.data(), st.integers(1, 20), st.integers(0, 20), st.integers(1, 2**27))
def test_rounding_moves_two_sums_apart_by_hardly_more_than_one_per_coordinate(data, dimension, exponent, largest):
    values = hnp.arrays(np.float64, dimension, elements=st.floats(-64, 64))
    same = [data.draw(values) for _ in range(data.draw(st.integers(0, 5)))]
    first, second = ([data.draw(values), data.draw(values)] for _ in range(2))
    one, other = (encode_sum([*same, *two], 2.0**exponent, largest=largest, size=dimension) for two in (first, second))
    apart = (one - other).tolist()
    whole = [[Fraction(a) + Fraction(b) for a, b in zip(*two, strict=True)] for two in (first, second)]
    exact = [(a - b) * 2**exponent for a, b in zip(*whole, strict=True)]
    assert all(abs(got) <= abs(real) + 1 + Fraction(2, FINER) for got, real in zip(apart, exact, strict=True))
    distance = math.sqrt(sum(real**2 for real in exact))
    allowed = distance + (1 + 2 / FINER) * math.sqrt(dimension)
    assert math.sqrt(square(apart)) <= allowed * (1 + 1e-12)


def test_the_rounding_bound_is_nearly_reached():
    close = np.full(100, 0.5)
    apart = [encode_sum([close + off / FINER], 1.0, largest=10, size=100) for off in (0, -1)]
    assert math.sqrt(square(apart[0] - apart[1])) == 10.0  # sqrt(d), for sums at distance 1e-5


def test_microbatches_are_rounded_together_and_not_one_by_one():
    """Thirty parts of 0.49 are 14.7: rounded by itself each would be nothing."""
    assert encode_sum([np.array([0.49])] * 30, 1.0, largest=100, size=1).tolist() == [15]
    assert encode_sum([], 1.0, largest=100, size=2).tolist() == [0, 0]


@given(
    hnp.arrays(np.int64, 5, elements=st.integers(-(2**40), 2**40)),
    hnp.arrays(np.int64, 5, elements=st.integers(-(2**40), 2**40)),
    st.integers(0, 2**31),
)
def test_a_clamp_bounds_each_coordinate_and_moves_no_two_apart(first, second, largest):
    a, b = clamp(first, largest), clamp(second, largest)
    assert (abs(a) <= largest).all()
    assert (abs(a - b) <= abs(first - second)).all()
    assert (a[abs(first) <= largest] == first[abs(first) <= largest]).all()


def test_sums_are_clamped():
    assert encode_sum([np.array([1e30, -1e30, 3.4])], 1.0, largest=7, size=3).tolist() == [7, -7, 3]


@given(hnp.arrays(np.int64, 8, elements=st.integers(-HALF_RING, HALF_RING - 1)))
@example(np.array([-HALF_RING, HALF_RING - 1, -1, 0, 1, 2, 3, 4]))
def test_the_ring_gives_back_every_value_of_its_range(values):
    np.testing.assert_array_equal(from_ring(to_ring(values)), values)


@given(st.lists(hnp.arrays(np.int64, 3, elements=st.integers(-(2**20), 2**20)), min_size=1, max_size=100))
def test_sums_in_the_ring_are_sums_of_integers(parts):
    total = np.zeros(3, dtype=np.uint32)
    for part in parts:
        total = total + to_ring(part)
    np.testing.assert_array_equal(from_ring(total), np.sum(parts, axis=0))
