"""No update and no gradient is longer than the clipping norm, whatever floats do."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubbub.mechanism.clip import clip_factors, clip_update

NORMS = st.floats(1e-9, 1e9)
VECTORS = st.one_of(
    hnp.arrays(np.float64, st.integers(0, 40), elements=st.floats(allow_nan=True, allow_infinity=True)),
    hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    hnp.arrays(np.float64, st.integers(1, 20), elements=st.sampled_from([5e-324, 1.7e308, -1e308, 1e-308, 0.0, 1.0])),
)


def exact_square(vector):
    """Sum of squares in exact rational arithmetic."""
    return sum((Fraction(float(value)) ** 2 for value in vector), Fraction(0))


@settings(max_examples=400, deadline=None)
@given(VECTORS, NORMS)
@example(np.array([1e308, -1e308, 1e308]), 1e-9)
@example(np.array([5e-324, 5e-324]), 1e-9)
@example(np.array([], dtype=np.float32), 1.0)
def test_no_clipped_update_is_longer_than_the_norm(update, max_norm):
    clipped = clip_update(update, max_norm)
    assert clipped.dtype == np.float64
    assert clipped.shape == update.shape
    assert exact_square(clipped) <= Fraction(max_norm) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimension", [1, 2, 31, 1000, 100_000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e30])
def test_the_bound_holds_in_many_dimensions(dtype, dimension, scale):
    rng = np.random.default_rng(dimension)
    update = (scale * rng.standard_t(2, size=dimension)).astype(dtype)
    clipped = clip_update(update, 1.0)
    assert exact_square(clipped) <= 1
    length = float(np.linalg.norm(update.astype(np.float64)))
    if length > 1.001:
        assert np.linalg.norm(clipped) > 1 - 1e-10  # not shorter than it must be
        np.testing.assert_allclose(clipped, update.astype(np.float64) / length, rtol=1e-9)


@pytest.mark.parametrize("max_norm", [1.0, 0.1, 1 / 3, 2.0**-20, 1e9])
@pytest.mark.parametrize("dimension", [1, 3, 7, 1000])
def test_an_update_exactly_at_the_bound_stays_within_it(max_norm, dimension):
    rng = np.random.default_rng(1)
    for _ in range(15):
        direction = rng.normal(size=dimension)
        update = direction / np.linalg.norm(direction) * max_norm
        for nudged in (update, np.nextafter(update, np.inf * np.sign(update))):
            assert exact_square(clip_update(nudged, max_norm)) <= Fraction(max_norm) ** 2


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-0.2, 0.2)))
def test_a_short_update_is_left_as_it_is(update):
    np.testing.assert_array_equal(clip_update(update, 1.0), update)


@given(
    hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e3, 1e3)),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.data(),
)
def test_one_value_that_is_not_finite_drops_the_whole_update(update, value, data):
    update[data.draw(st.integers(0, update.size - 1))] = value
    assert not clip_update(update, 1.0).any()


def test_the_usual_float32_formula_exceeds_the_bound_and_this_one_does_not():
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(500):
        update = (100 * rng.normal(size=100)).astype(np.float32)
        norm = np.linalg.norm(update)
        usual = update * np.minimum(np.float32(1), np.float32(1) / (norm + np.float32(1e-6)))
        exceeded += exact_square(usual) > 1
        assert exact_square(clip_update(update, 1.0)) <= 1
    assert exceeded > 100


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=st.floats(width=32)),
    NORMS,
)
def test_a_factor_brings_each_row_within_the_bound(rows, max_norm):
    wide = rows.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    factors = clip_factors(norms, max_norm, rows.shape[1])
    assert ((factors >= 0) & (factors <= 1)).all()
    for row, norm, factor in zip(wide, norms, factors, strict=True):
        if np.isfinite(norm):
            assert Fraction(float(factor)) ** 2 * exact_square(row) <= Fraction(max_norm) ** 2
        else:
            assert factor == 0.0


def test_a_factor_below_full_precision_is_zero():
    factors = clip_factors(np.array([1e308, np.inf, np.nan, 0.0]), 1e-9, 1)
    np.testing.assert_array_equal(factors, [0.0, 0.0, 0.0, 1.0])
