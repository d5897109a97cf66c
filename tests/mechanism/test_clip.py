"""No gradient is longer than the clipping norm, whatever floats do; `test_encode.py` says so of updates."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubbub.mechanism.clip import clip_factors

NORMS = st.floats(1e-9, 1e9)


def exact_square(vector):
    """Sum of squares in exact rational arithmetic."""
    return sum((Fraction(float(value)) ** 2 for value in vector), Fraction(0))


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
