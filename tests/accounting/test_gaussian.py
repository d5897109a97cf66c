import math

import dp_accounting
import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.accounting import gaussian


def exact_delta(epsilon, mu):
    """The curve with 80 digits, by mpmath."""
    with mpmath.workdps(80):
        epsilon, mu = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return mpmath.ncdf(-epsilon / mu + mu / 2) - mpmath.e**epsilon * mpmath.ncdf(-epsilon / mu - mu / 2)


mus = st.floats(-4, 2.5).map(lambda exponent: 10**exponent)


@given(st.floats(0, 700), mus)
def test_delta_is_never_below_the_exact_curve_and_close_to_it(epsilon, mu):
    exact = exact_delta(epsilon, mu)
    assert exact <= gaussian.delta(epsilon, mu) <= exact * (1 + mpmath.mpf("1e-9")) + 1e-12


@given(st.floats(-14, -0.01).map(lambda exponent: 10**exponent), mus)
def test_epsilon_is_never_below_the_exact_one_and_close_to_it(delta, mu):
    epsilon = gaussian.epsilon(delta, mu)
    assert exact_delta(epsilon, mu) <= delta
    if epsilon > 1e-6 and delta > 1e-12:
        assert exact_delta(epsilon * (1 - 1e-6), mu) > delta * (1 - 1e-6)


@given(mus, mus, st.floats(-12, -1).map(lambda exponent: 10**exponent))
def test_epsilon_grows_with_mu_and_shrinks_with_delta(one, other, delta):
    low, high = sorted((one, other))
    assert gaussian.epsilon(delta, low) <= gaussian.epsilon(delta, high) * (1 + 1e-8)
    assert gaussian.epsilon(delta / 2, low) >= gaussian.epsilon(delta, low) * (1 - 1e-8)


def test_it_agrees_with_the_library_on_single_gaussians():
    for sigma in (0.3, 1.0, 4.0, 50.0):
        expected = dp_accounting.get_epsilon_gaussian(sigma=sigma, delta=1e-6)
        assert gaussian.epsilon(1e-6, 1 / sigma) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("k", "expected"), [(10, 19.474), (20, 31.082), (30, 41.334), (100, 101.807)])
def test_unamplified_clients_cost_what_the_design_says(k, expected):
    assert gaussian.epsilon(1e-5, gaussian.mu([(0.935934, k)])) == pytest.approx(expected, abs=6e-4)


def test_the_ends_of_the_scale():
    assert gaussian.delta(1.0, 0.0) == 0
    assert gaussian.delta(1.0, math.inf) == 1
    assert gaussian.delta(0.0, 1e150) == 1
    assert gaussian.delta(700.0, 1e-300) < 1e-300
    assert gaussian.epsilon(1e-5, 0.0) == 0
    assert gaussian.epsilon(0.0, 0.0) == 0
    assert gaussian.epsilon(1e-5, math.inf) == math.inf
    assert gaussian.epsilon(0.0, 1.0) == math.inf
    assert gaussian.epsilon(1e-5, 1e200) == math.inf
    assert gaussian.epsilon(0.9, 1.0) == 0


def test_mu_adds_squares_of_inverse_noise():
    assert gaussian.mu([]) == 0
    assert gaussian.mu([(0.0, 0), (2.0, 4)]) == pytest.approx(1.0, rel=1e-12)
    assert gaussian.mu([(0.0, 1), (2.0, 4)]) == math.inf
    assert gaussian.mu([(3.0, 9), (0.5, 6)]) == pytest.approx(5.0, rel=1e-12)


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**6)), min_size=1, max_size=5))
def test_mu_is_rounded_up(noise):
    with mpmath.workdps(50):
        exact = mpmath.sqrt(sum(mpmath.mpf(count) / mpmath.mpf(z) ** 2 for z, count in noise))
        assert exact <= gaussian.mu(noise) <= exact * (1 + mpmath.mpf("4e-15"))
