"""What people read never promises more than what was computed."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.accounting.shown import at_least, at_most

epsilons = st.floats(min_value=0, max_value=1e9)


@given(epsilons, st.integers(0, 6))
def test_a_cost_is_shown_no_smaller_and_a_rest_no_larger(epsilon, places):
    above, below = at_least(epsilon, places), at_most(epsilon, places)
    assert float(below) <= epsilon <= float(above)
    assert Fraction(above) - Fraction(below) <= Fraction(1, 10**places)


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [(2.90001, "2.9001", "2.9000"), (4.6917, "4.6917", "4.6917"), (1e-9, "0.0001", "0.0000"), (math.inf, "inf", "inf")],
)
def test_four_decimals_are_the_usual_ones(value, up, down):
    assert (at_least(value), at_most(value)) == (up, down)


def test_a_value_that_has_so_few_decimals_is_shown_as_it_is():
    assert all(at_least(n / 10**4) == at_most(n / 10**4) == f"{n / 10**4:.4f}" for n in range(0, 10**5, 7))
