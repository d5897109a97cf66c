"""Integers keep the bound that floats had: truncation, rounding, clamp and ring, in exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubbub.errors import RoundError
from hubbub.mechanism.clip import clip_update
from hubbub.mechanism.encode import HALF_RING, clamp, encode_sum, encode_update, from_ring, to_ring

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def square(integers):
    return sum(int(value) ** 2 for value in integers)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=FINITE),
    st.integers(0, 20),
    st.floats(1e-3, 1.0),
)
@example(np.full(50, 1.7e308), 20, 1.0)
@example(np.full(50, 1 + 1e-9), 20, 1.0)
@example(np.array([1.0]), 20, 1.0)
@example(np.array([1.0]), 0, 0.5)
def test_encoded_integers_never_exceed_the_bound_whatever_comes_in(update, exponent, max_norm):
    encoded = encode_update(update, 2.0**exponent, max_norm)
    assert encoded.dtype == np.int64
    assert square(encoded) <= (2**exponent * Fraction(max_norm)) ** 2


@pytest.mark.parametrize("dimension", [1, 31, 100_000])
def test_a_clipped_update_is_truncated_toward_zero_and_nothing_else(dimension):
    clipped = clip_update(np.random.default_rng(0).normal(size=dimension), 1.0)
    encoded = encode_update(clipped, 2.0**20, 1.0)
    assert encoded.tolist() == [math.trunc(Fraction(value) * 2**20) for value in clipped.tolist()]
    assert square(encoded) <= 2**40


def test_an_update_that_is_a_little_too_long_is_shrunk_a_little():
    update = np.full(100, 0.1 * (1 + 1e-5))
    encoded = encode_update(update, 2.0**20, 1.0)
    assert square(encoded) <= 2**40
    assert square(encoded) >= 0.9999 * 2**40


def test_zero_and_tiny_values_become_zero():
    assert encode_update(np.array([0.0, -0.0, 5e-324, -1e-9]), 2.0**20, 1.0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(RoundError) as caught:
        encode_update(np.array([0.0, value]), 2.0**20, 1.0)
    assert caught.value.message == (
        "update, must be finite before it is encoded, found a NaN or an infinity; nothing sent"
    )
    assert caught.value.hint == "clip it first"
    with pytest.raises(RoundError) as caught:
        encode_sum(np.array([0.0, value]), 2.0**20, 100)
    assert caught.value.message == "gradient sum, must be finite, found a NaN or an infinity; nothing sent"
    assert caught.value.hint == "clipped gradients cannot do this: report it"


@given(st.data(), st.integers(1, 20), st.integers(0, 20), st.integers(1, 2**27))
def test_rounding_moves_two_sums_apart_by_less_than_one_per_coordinate(data, dimension, exponent, largest):
    values = hnp.arrays(np.float64, dimension, elements=st.floats(-64, 64))
    first, second = data.draw(values), data.draw(values)
    scale = 2.0**exponent
    apart = (encode_sum(first, scale, largest) - encode_sum(second, scale, largest)).tolist()
    exact = [(Fraction(a) - Fraction(b)) * 2**exponent for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert all(abs(got) <= abs(real) + 1 for got, real in zip(apart, exact, strict=True))
    distance = math.sqrt(sum(real**2 for real in exact))
    assert math.sqrt(square(apart)) <= (distance + math.sqrt(dimension)) * (1 + 1e-12)


def test_the_rounding_bound_is_nearly_reached():
    close = np.full(100, 0.5)
    apart = encode_sum(np.nextafter(close, 1), 1.0, 10) - encode_sum(np.nextafter(close, 0), 1.0, 10)
    assert math.sqrt(square(apart)) == 10.0  # sqrt(d), for sums at distance 1e-15


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
    assert encode_sum(np.array([1e30, -1e30, 3.4]), 1.0, 7).tolist() == [7, -7, 3]


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
