"""The theorem of docs/proofs/discrete-gaussian.md, checked by numbers that do not come from the code."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.accounting import discrete, gaussian
from hubbub.accounting.epsilon import epsilon
from hubbub.errors import InputError


def discrete_gaussian(sigma, reach):
    """Probabilities of -reach..reach."""
    k = np.arange(-reach, reach + 1)
    weights = np.exp(-(k**2) / (2 * sigma**2))
    return weights / weights.sum()


def rounded_gaussian(k, sigma, r, steps):
    """P(k): add N(0, sigma^2 - r^2) to 0 and round y to k with weight exp(-(k-y)^2/2r^2); by the trapezium rule.

    The rule converges faster than any power for this integrand; `steps` per unit, so that the periodic
    normaliser takes only `steps` different values.
    """
    width = mpmath.sqrt(sigma**2 - mpmath.mpf(r) ** 2)
    reach = int(mpmath.ceil(width * mpmath.sqrt(2 * mpmath.mp.dps * mpmath.log(10)))) + 1
    far = int(r * math.sqrt(2 * mpmath.mp.dps * math.log(10))) + 2
    fractions = [mpmath.mpf(i) / steps for i in range(steps)]
    normaliser = [
        mpmath.fsum(mpmath.e ** (-((j - y) ** 2) / (2 * r**2)) for j in range(-far, far + 2)) for y in fractions
    ]
    total = mpmath.mpf(0)
    for i in range(-reach * steps, reach * steps + 1):
        y = mpmath.mpf(i) / steps
        total += mpmath.e ** (-(y**2) / (2 * width**2) - (k - y) ** 2 / (2 * r**2)) / normaliser[i % steps]
    return total / (steps * width * mpmath.sqrt(2 * mpmath.pi))


def log_ratio(k, sigma, r, steps):
    sigma, r = mpmath.mpf(sigma), mpmath.mpf(r)
    whole = mpmath.nsum(lambda j: mpmath.e ** (-(j**2) / (2 * sigma**2)), [-mpmath.inf, mpmath.inf])
    exact = mpmath.e ** (-(mpmath.mpf(k) ** 2) / (2 * sigma**2)) / whole
    return abs(mpmath.log(rounded_gaussian(k, sigma, r, steps) / exact))


@pytest.mark.parametrize(("sigma", "r", "expected"), [("1", "0.5", 4.586e-4), ("2", "0.7", 3.387e-8)])
def test_the_two_roundings_differ_by_what_the_design_says_and_less_than_the_bound(sigma, r, expected):
    with mpmath.workdps(25):
        worst = max(log_ratio(k, sigma, r, 24) for k in range(12))
    assert float(worst) == pytest.approx(expected, rel=5e-4)  # the design's k went further
    assert worst <= discrete.log_ratio_bound(float(r))


@pytest.mark.parametrize(("sigma", "outcomes"), [(3, (0, 1, 4)), (16, (1, 40))])
def test_at_the_smoothing_in_use_no_float_could_tell_them_apart(sigma, outcomes):
    with mpmath.workdps(45):
        worst = max(log_ratio(k, sigma, 2, 10) for k in outcomes)
    assert worst <= discrete.log_ratio_bound() < 2.1e-34


@pytest.mark.parametrize("r", ["0.5", "0.7", "1", "2", "3"])
def test_a_sum_of_gaussians_over_the_integers_is_constant_up_to_theta(r):
    with mpmath.workdps(90):
        scale = mpmath.mpf(r)
        far = int(scale * 22) + 2
        norm = scale * mpmath.sqrt(2 * mpmath.pi)
        for y in (mpmath.mpf(i) / 16 for i in range(17)):
            total = mpmath.fsum(mpmath.e ** (-((j - y) ** 2) / (2 * scale**2)) for j in range(-far, far + 2)) / norm
            assert abs(total - 1) <= 2.01 * mpmath.e ** (-2 * mpmath.pi**2 * scale**2)
            assert abs(total - 1) <= discrete._theta(float(r)) * (1 + 1e-12)


def test_the_bound_is_the_closed_form_rounded_up():
    with mpmath.workdps(60):
        theta = mpmath.mpf("2.01") * mpmath.e ** (-8 * mpmath.pi**2)
        exact = mpmath.log((1 + theta) / (1 - theta))
        assert exact <= discrete.log_ratio_bound() <= exact * (1 + mpmath.mpf("1e-11"))
    assert discrete.log_ratio_bound() == pytest.approx(2.1e-34, rel=0.03)
    assert 0 < discrete.log_ratio_bound(8.0) < 1e-300  # underflows upwards


@pytest.mark.parametrize("r", [0.4, 0.0, -1.0, math.nan])
def test_a_smoothing_for_which_the_constant_is_not_proved_is_refused(r):
    with pytest.raises(InputError, match=r"smoothing, must be at least 0\.5, found") as refusal:
        discrete.log_ratio_bound(r)
    assert refusal.value.hint == "use the default of 2"


def worst_share_ratio(sigmas, reach=40, core=12):
    """Largest |log| between the sum of shares and the discrete Gaussian of the summed variance."""
    total = np.ones(1)
    for sigma in sigmas:
        total = np.convolve(total, discrete_gaussian(sigma, reach))
    target = discrete_gaussian(math.sqrt(sum(sigma**2 for sigma in sigmas)), reach * len(sigmas))
    middle = slice(reach * len(sigmas) - core, reach * len(sigmas) + core + 1)
    return np.abs(np.log(total[middle] / target[middle])).max()


@pytest.mark.parametrize(
    ("sigma", "count", "seen", "bound"), [(0.7, 3, 0.0090779, 0.0952137), (1.0, 4, 2.981e-6, 5.402e-4)]
)
def test_sums_of_shares_differ_by_what_the_design_says(sigma, count, seen, bound):
    assert worst_share_ratio([sigma] * count) == pytest.approx(seen, rel=2e-4)
    tau = discrete.share_bound([sigma] * count)
    assert tau == pytest.approx(bound, rel=2e-4)
    closed = 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, count))
    assert closed <= tau <= closed * (1 + 1e-9)


@pytest.mark.parametrize("sigmas", [(0.5, 0.5), (0.6, 0.9, 0.5), (1.3, 0.5, 0.5, 0.8), (0.5,) * 8])
def test_unequal_shares_stay_within_the_bound_in_any_order(sigmas):
    for order in (sigmas, sigmas[::-1], sorted(sigmas)):
        assert worst_share_ratio(order) <= discrete.share_bound(order)


def test_two_shares_are_as_far_apart_as_the_proof_says_and_no_further():
    """Theorem 3 for two shares, in 40 digits: -log(1-theta) + 2 log(1+theta) <= 10 exp(-2 pi^2 h^2)."""
    for h in np.linspace(math.sqrt(1 / 8), 4, 200):
        theta = mpmath.mpf("2.01") * mpmath.e ** (-2 * mpmath.pi**2 * h**2)
        assert 2 * mpmath.log1p(theta) - mpmath.log1p(-theta) <= 10 * mpmath.e ** (-2 * mpmath.pi**2 * h**2)


def test_one_share_needs_no_bound_and_tiny_ones_are_refused():
    assert discrete.share_bound([]) == discrete.share_bound([0.7]) == 0
    assert 0 < discrete.share_bound([10**6] * 3) < 1e-300
    with pytest.raises(InputError, match=r"share, sigma must be at least 0.5, found 0.3"):
        discrete.share_bound([1.0, 0.3])


def test_a_thousand_rounds_of_a_million_coordinates_cost_less_than_any_float_shows():
    h = discrete.inflation(10**6, 1000)
    assert 2 * h == pytest.approx(4e-25, rel=0.05)
    assert 3.0 + 2 * h == 3.0
    shared = discrete.inflation(10**6, 1000, shares=[168309] * 34)
    assert h <= shared <= h * (1 + 1e-9)
    assert discrete.inflation(1, 1, shares=[4] * 10) == pytest.approx(discrete.log_ratio_bound(), rel=1e-6)
    with pytest.raises(InputError, match="noise share, sigma must be at least 4, found 3") as refusal:
        discrete.inflation(1, 1, shares=[4, 3])
    assert refusal.value.hint == "encode at a larger scale, or plan for a smaller epsilon"


def test_shares_enter_the_inflation_where_they_can_be_seen(monkeypatch):
    monkeypatch.setattr(discrete, "MIN_SHARE", 1)
    assert discrete.inflation(3, 5, shares=[1] * 4) == pytest.approx(15 * 5.402e-4, rel=2e-4)


def hockey_stick(one, other, eps):
    return np.maximum(0, one - math.exp(eps) * other).sum()


def pair(sigma, shift, q, reach):
    """Distributions of one sampled release of an integer query with and without a record."""
    with_record, without = np.zeros(2 * reach + 1), discrete_gaussian(sigma, reach)
    with_record[shift:] = q * without[: without.size - shift]
    return with_record + (1 - q) * without, without


def exact_delta(sigma, shift, q, eps, releases, reach):
    """Exact delta of `releases` independent ones, both directions, by enumerating all outcomes."""
    one, other = pair(sigma, shift, q, reach)
    many, others = one, other
    for _ in range(releases - 1):
        many, others = np.outer(many, one).ravel(), np.outer(others, other).ravel()
    return max(hockey_stick(many, others, eps), hockey_stick(others, many, eps))


def sampled_gaussian_delta(q, z, eps):
    """Delta of one Poisson-sampled Gaussian, both directions, by integrating the densities."""
    x = np.linspace(-14 * z, 14 * z + 1, 2_000_001)
    density = np.exp(-(x**2) / (2 * z**2)) / (z * math.sqrt(2 * math.pi))
    shifted = np.exp(-((x - 1) ** 2) / (2 * z**2)) / (z * math.sqrt(2 * math.pi))
    mixed = q * shifted + (1 - q) * density
    return max(hockey_stick(mixed, density, eps), hockey_stick(density, mixed, eps)) * (x[1] - x[0])


def test_the_effective_noise_multiplier_is_a_bound_and_the_plain_one_is_not():
    exact = exact_delta(sigma=16, shift=8, q=0.25, eps=0.2, releases=1, reach=400)
    assert exact == pytest.approx(8.178166e-3, abs=6e-10)
    z = discrete.effective_noise_multiplier(16, 8)
    assert z == pytest.approx(math.sqrt(252) / 8, abs=1e-6)
    assert sampled_gaussian_delta(0.25, z, 0.2) == pytest.approx(8.4121e-3, abs=2e-7)
    assert sampled_gaussian_delta(0.25, 2.0, 0.2) == pytest.approx(8.1760e-3, abs=2e-7)
    assert sampled_gaussian_delta(0.25, 2.0, 0.2) < exact < sampled_gaussian_delta(0.25, z, 0.2)


@pytest.mark.parametrize(("sigma", "shift", "q", "r"), [(1.0, 1, 0.5, 0.5), (2.0, 1, 0.3, 0.7), (3.0, 2, 1.0, 1.0)])
@pytest.mark.parametrize("releases", [1, 2])
def test_the_whole_theorem_holds_where_its_terms_can_be_seen(sigma, shift, q, r, releases):
    """(epsilon, delta) of the Gaussian schedule at z_eff covers the integers at (epsilon + 2H, e^H delta)."""
    z = math.sqrt(sigma**2 - r**2) / shift
    h = releases * discrete.log_ratio_bound(r)
    event = {"@": "GaussianDpEvent", "noise_multiplier": z}
    event = {"@": "PoissonSampledDpEvent", "sampling_probability": q, "event": event}
    for delta in (0.1, 1e-2, 1e-4):
        eps = epsilon([event] * releases, delta).epsilon
        assert exact_delta(sigma, shift, q, eps + 2 * h, releases, int(12 * sigma)) <= math.exp(h) * delta


@pytest.mark.parametrize("sigma", [1.0, 2.0, 16.0])
def test_unsampled_integers_are_covered_by_the_closed_form(sigma):
    for shift in (1, 3):
        mu = shift / math.sqrt(sigma**2 - 0.25)
        h = discrete.log_ratio_bound(0.5)
        for eps in (0.1, 1.0, 3.0):
            exact = exact_delta(sigma, shift, 1.0, eps + 2 * h, 1, int(40 * sigma))
            assert exact <= math.exp(h) * gaussian.delta(eps, mu) + 1e-15


def test_the_tables_of_the_design():
    assert discrete.integer_sigma(2.915452, 1048576 + math.sqrt(31)) == 3057090
    assert math.ceil(3057090 / math.sqrt(2)) == 2161690
    assert discrete.integer_sigma(0.935934, 2**20) == 981398
    assert math.ceil(981398 / math.sqrt(34)) == 168309
    assert discrete.integer_sigma(0.935934, 2**20 + 1000) == 982334
    assert math.ceil(982334 / math.sqrt(34)) == 168469


multipliers = st.integers(100_000, 50_000_000).map(lambda steps: steps / 10**6)
sensitivities = st.floats(200.0, 1e8)


@given(multipliers, sensitivities)
def test_the_integer_is_the_smallest_that_is_enough(z, sensitivity):
    sigma = discrete.integer_sigma(z, sensitivity)
    product = (Fraction(z) * Fraction(sensitivity)) ** 2
    assert sigma**2 - 4 >= product > (sigma - 1) ** 2 - 4
    assert discrete.effective_noise_multiplier(sigma, sensitivity) >= z


@given(st.integers(16, 2**40), st.floats(1e-3, 1e9))
def test_the_effective_multiplier_is_rounded_down_and_to_six_decimals(sigma, sensitivity):
    z = discrete.effective_noise_multiplier(sigma, sensitivity)
    assert math.ulp(z) > 1e-8 or round(z, 6) == z  # above that, floats are too coarse for six decimals
    exact = Fraction(sigma**2 - 4) / Fraction(sensitivity) ** 2
    assert Fraction(z) ** 2 <= exact
    assert (Fraction(z) + Fraction(1, 10**6) + Fraction(abs(math.ulp(z)))) ** 2 > exact


def test_an_effective_multiplier_that_would_round_up_is_lowered():
    sigma, sensitivity = 20, math.sqrt(396)  # z_eff is 1 up to the rounding of the square root
    exact = Fraction(396) / Fraction(sensitivity) ** 2
    assert discrete.effective_noise_multiplier(sigma, sensitivity) == (1.0 if exact >= 1 else 0.999999)
    assert discrete.effective_noise_multiplier(1001, math.sqrt(1001**2 - 4) * (1 + 2e-16)) == 0.999999
    assert discrete.effective_noise_multiplier(16, 1e12) == 0.0


def test_a_product_just_above_a_square_needs_the_next_integer():
    root = math.sqrt(396)  # sigma = 20 if z^2 <= 396 exactly
    for z in (math.nextafter(root, 0), math.nextafter(root, math.inf)):
        assert discrete.integer_sigma(z, 1.0) == (20 if Fraction(z) ** 2 <= 396 else 21)


def test_integers_too_coarse_for_the_theorem_are_refused():
    for call in (lambda: discrete.effective_noise_multiplier(15, 8.0), lambda: discrete.integer_sigma(0.1, 100.0)):
        with pytest.raises(InputError, match="integer noise, sigma must be at least 16, found 1") as refusal:
            call()
        assert refusal.value.hint == "encode at a larger scale, or plan for a smaller epsilon"
    assert discrete.integer_sigma(1.0, math.sqrt(16**2 - 4) - 1e-9) == 16


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_values_that_are_not_positive_are_refused(value):
    with pytest.raises(InputError, match="sensitivity, must be positive and finite, found"):
        discrete.effective_noise_multiplier(100, value)
    with pytest.raises(InputError, match="noise multiplier, must be positive and finite, found"):
        discrete.integer_sigma(value, 100.0)
