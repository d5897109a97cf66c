"""The noise is the discrete Gaussian of the sigma asked for, exactly, on its fast and its slow path."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedRandomness

from hubbub.errors import InputError, RoundError
from hubbub.mechanism.discrete_gaussian import (
    MARGIN,
    bound_gaussian,
    build_strips,
    decide_strips,
    discrete_gaussian,
    draw_tail,
    fill_alias_table,
    is_below_gaussian,
    propose,
)
from hubbub.randomness import OperatingSystemRandomness, SeededRandomness

SIGMAS = st.one_of(st.integers(1, 300), st.integers(1, 2**25), st.sampled_from([204, 205, 3057090, 2**25]))


def gaussian(magnitude, sigma):
    """exp(-k^2 / 2 sigma^2) at mpmath's working precision."""
    return mpmath.exp(-(mpmath.mpf(magnitude) ** 2) / (2 * sigma**2))


def exact_pmf(sigma):
    """The pmf on -20 sigma..20 sigma, by mpmath; what is beyond weighs under 1e-86."""
    with mpmath.workdps(50):
        support = np.arange(-20 * sigma, 20 * sigma + 1)
        weights = [gaussian(int(k), sigma) for k in support]
        total = mpmath.fsum(weights)
        return support, np.array([float(weight / total) for weight in weights])


def exact_cdf(sample, sigma):
    """P(Y <= k) at each k: summed, or by the normal curve, which is off by under 1e-12 at large sigma."""
    if sigma < 1000:
        support, pmf = exact_pmf(sigma)
        return np.interp(sample, support, np.cumsum(pmf))
    return np.array([(1 + math.erf((int(k) + 0.5) / sigma / math.sqrt(2))) / 2 for k in sample])


def chi_square_p_value(sample, support, pmf):
    """Pearson's test, with values expected fewer than ten times pooled into two tails."""
    often = np.flatnonzero(pmf * sample.size >= 10)
    low, high = support[often[0]], support[often[-1]]
    observed = np.bincount(np.clip(sample, low - 1, high + 1) - (low - 1), minlength=high - low + 3)
    inner = pmf[often[0] : often[-1] + 1]
    expected = sample.size * np.array([pmf[: often[0]].sum(), *inner, pmf[often[-1] + 1 :].sum()])
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(mpmath.gammainc((expected.size - 1) / 2, statistic / 2, regularized=True))


def variance_z_score(sample, sigma):
    """How many standard errors the mean square is from sigma^2 (a Gaussian's kurtosis is 3)."""
    ratio = np.mean((sample / sigma) ** 2)
    return (ratio - 1) / math.sqrt(2 / sample.size)


def largest_gap(sample, sigma):
    """Kolmogorov and Smirnov's sqrt(n) sup |F_n - F|; above 1.95 one time in a thousand."""
    values, counts = np.unique(sample, return_counts=True)
    empirical = np.cumsum(counts) / sample.size
    return math.sqrt(sample.size) * np.abs(empirical - exact_cdf(values, sigma)).max()


# --- statistical, with power ---


@pytest.mark.parametrize("sigma", [16, 3057090])
@pytest.mark.parametrize(("numerator", "denominator"), [(1, 1), (2, 3), (3, 2)])
def test_the_right_sigma_is_told_from_two_thirds_and_from_three_halves_of_it(sigma, numerator, denominator):
    drawn = discrete_gaussian(sigma * numerator // denominator, 100_000, SeededRandomness(1, numerator))
    is_right = numerator == denominator
    assert (abs(variance_z_score(drawn, sigma)) < 3.3) == is_right
    assert (largest_gap(drawn, sigma) < 1.95) == is_right


@pytest.mark.parametrize("sigma", [1000, 3057090, 2**25])
def test_one_percent_of_sigma_is_seen_by_the_variance(sigma):
    drawn = discrete_gaussian(sigma, 400_000, SeededRandomness(2))
    assert abs(variance_z_score(drawn, sigma)) < 3.3
    assert abs(variance_z_score(drawn, sigma * 1.01)) > 6


@pytest.mark.parametrize("sigma", [16, 3057090])
def test_draws_are_symmetric_and_uncorrelated(sigma):
    drawn = discrete_gaussian(sigma, 200_000, SeededRandomness(3)) / sigma
    bound = 4 / math.sqrt(drawn.size)
    assert abs(drawn.mean()) < bound
    assert abs((drawn**3).mean()) < bound * math.sqrt(15)
    assert abs((drawn[1:] * drawn[:-1]).mean()) < bound
    assert abs((np.abs(drawn[1:]) * np.abs(drawn[:-1])).mean() - 2 / math.pi) < bound


@pytest.mark.parametrize("sigma", [1, 2, 4, 16])
def test_small_sigmas_follow_the_exact_pmf_and_not_a_rounded_gaussian(sigma):
    drawn = discrete_gaussian(sigma, 1_000_000, SeededRandomness(4))
    support, pmf = exact_pmf(sigma)
    assert chi_square_p_value(drawn, support, pmf) > 1e-3
    if sigma <= 2:
        edges = np.array([math.erf((k - 0.5) / sigma / math.sqrt(2)) for k in [*support, support[-1] + 1]])
        assert chi_square_p_value(drawn, support, np.diff(edges) / 2) < 1e-6


@pytest.mark.parametrize("sigma", [1, 4, 300])
def test_tails_are_as_heavy_as_they_should_be(sigma):
    drawn = discrete_gaussian(sigma, 1_000_000, SeededRandomness(5))
    support, pmf = exact_pmf(sigma)
    for reach in (2, 3, 4):
        expected = drawn.size * pmf[np.abs(support) >= reach * sigma].sum()
        assert abs((np.abs(drawn) >= reach * sigma).sum() - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("sigma", [4, 16])
def test_the_tail_cell_draws_the_same_distribution_as_the_strips(sigma):
    table = build_strips(sigma, reach=1)
    assert table.tail << table.width_bits < 2 * sigma
    drawn = propose(table, 8_000, SeededRandomness(6))
    assert chi_square_p_value(drawn, *exact_pmf(sigma)) > 1e-3


# --- the table, against mpmath ---


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.data())
def test_an_alias_table_gives_every_cell_exactly_its_weight(weights, data):
    capacity = -(-sum(weights) // len(weights))
    weights[data.draw(st.integers(0, len(weights) - 1))] += capacity * len(weights) - sum(weights)
    threshold, alias = fill_alias_table(weights, capacity)
    got = [0] * len(weights)
    for column, (kept, other) in enumerate(zip(threshold, alias, strict=True)):
        assert 0 <= kept <= capacity
        got[column] += kept
        got[other] += capacity - kept
    assert got == weights


@settings(deadline=None, max_examples=12)
@given(SIGMAS, st.sampled_from([10, 3, 1]))
def test_first_words_pick_each_cell_with_exactly_its_weight(sigma, reach):
    table = build_strips(sigma, reach)
    columns = 1 << table.column_bits
    unit = 1 << table.column_bits + table.width_bits
    got = [0] * columns
    for column in range(columns):
        kept, left_over = divmod(int(table.threshold[column]), unit)
        assert left_over == 0
        got[column] += kept
        got[table.alias[column]] += 2**64 // unit - kept
    assert got == list(table.weights)
    assert sum(got) << table.width_bits == 2**64
    assert table.weights[-1] < sum(got) / 1000 + 4 * columns


@settings(deadline=None, max_examples=12)
@given(SIGMAS, st.sampled_from([10, 3, 1]), st.data())
def test_the_staircase_lies_above_the_curve_and_its_tables_are_sound(sigma, reach, data):
    table = build_strips(sigma, reach)
    width = 1 << table.width_bits
    for strip in {0, table.tail - 1, *data.draw(st.lists(st.integers(0, table.tail - 1), max_size=20))}:
        with mpmath.workdps(100):
            first = table.scale * gaussian(strip * width, sigma) / table.weights[strip]
            last = table.scale * gaussian(strip * width + width - 1, sigma) / table.weights[strip]
            assert first < 1
            assert int(table.quick[strip]) <= 2**64 * last <= int(table.quick[strip]) + 2**20
            assert abs(float(table.left[strip]) - first) < 2**-52
    assert list(table.quick[-2:]) == [0, 0]


@settings(deadline=None, max_examples=12)
@given(SIGMAS, st.sampled_from([10, 3, 1]))
def test_the_tail_lies_above_the_curve(sigma, reach):
    table = build_strips(sigma, reach)
    edge, width = table.tail << table.width_bits, 1 << table.tail_width_bits
    assert edge >= reach * sigma
    assert edge * width >= sigma**2
    with mpmath.workdps(100):
        for strip in range(30):
            # per integer, in units of the strips' weights per integer
            proposed = mpmath.mpf(table.weights[table.tail]) / (width << strip + 1)
            wanted = table.scale * gaussian(edge + strip * width, sigma) / (1 << table.width_bits)
            assert wanted < proposed


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 2**25), st.integers(1, 400))
def test_the_exponential_is_enclosed(magnitude, sigma, bits):
    lower, upper = bound_gaussian(magnitude, sigma, bits)
    with mpmath.workdps(200):
        assert lower <= 2**bits * gaussian(magnitude, sigma) < upper
    assert 0 <= lower < upper <= lower + 3


# --- decisions, fast and slow ---


@given(st.integers(0, 2**63 - 1), st.integers(1, 1000), st.integers(1, 300), st.fractions(0.001, 1))
def test_the_exact_decision_is_the_one_of_high_precision(uniform, magnitude, sigma, factor):
    decision = is_below_gaussian(uniform, magnitude, sigma, factor=factor, randomness=ScriptedRandomness([2**63]))
    with mpmath.workdps(100):
        height = mpmath.mpf(factor.numerator) / factor.denominator * gaussian(magnitude, sigma)
        assert decision == ((uniform + mpmath.mpf(0.5)) / 2**63 < height)


@pytest.mark.parametrize(("magnitude", "sigma"), [(1, 1), (3, 16), (7654321, 3057090), (2**25, 2**25)])
@pytest.mark.parametrize("nudge", [-1, 1])
@pytest.mark.parametrize("ties", [0, 1, 2])
def test_ties_draw_further_bits_until_they_are_broken(magnitude, sigma, nudge, ties):
    factor = Fraction(2, 3)
    with mpmath.workdps(300):
        digits = int(2**63 * 2 ** (64 * ties) * gaussian(magnitude, sigma) * 2 / 3) + nudge
    words = [(digits >> 64 * place) % 2**64 for place in reversed(range(ties))]
    stream = ScriptedRandomness(words)
    decision = is_below_gaussian(digits >> 64 * ties, magnitude, sigma, factor=factor, randomness=stream)
    assert decision == (nudge < 0)
    assert not stream.script


@pytest.mark.parametrize("sigma", [1, 16, 205, 3057090, 2**25])
def test_fast_and_exact_decisions_are_the_same(sigma):
    table = build_strips(sigma)
    nothing_quick = replace(table, quick=np.zeros_like(table.quick))
    fast = propose(table, 6000, SeededRandomness(7))
    for slower, margin in [
        (table, 2.0),
        (nothing_quick, MARGIN),
        (nothing_quick, 2.0**-49),
        (nothing_quick, 2.0),
    ]:
        np.testing.assert_array_equal(propose(slower, 6000, SeededRandomness(7), margin=margin), fast)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([205, 3057090, 2**25]), st.integers(-(2**13), 2**13), st.data())
def test_near_a_tie_float64_errs_by_less_than_the_margin(sigma, offset, data):
    table = build_strips(sigma)
    magnitude = data.draw(st.integers(0, 5 * sigma))
    strip = magnitude >> table.width_bits
    with mpmath.workdps(100):
        exact = int(2**63 * table.scale * gaussian(magnitude, sigma) / table.weights[strip])
    uniform = min(max(exact + offset, 0), 2**63 - 1)
    candidate = np.array([magnitude]), np.array([uniform], dtype=np.uint64)
    answers = {
        bool(decide_strips(table, *candidate, randomness=SeededRandomness(8), margin=margin)[0])
        for margin in (2.0**-49, MARGIN, 2.0)
    }
    assert len(answers) == 1
    assert offset == 0 or answers == {uniform < exact} or uniform == exact


@pytest.mark.parametrize(("sigma", "reach"), [(1, 10), (16, 10), (205, 10), (3057090, 10)])
def test_proposals_keep_their_order_and_agree_with_one_at_a_time(sigma, reach):
    table = build_strips(sigma, reach)
    words = [int(word) for word in SeededRandomness(9).words(3000)]
    expected = []
    for first, second in zip(words[:1500], words[1500:], strict=True):
        column = first % (1 << table.column_bits)
        toss = first >> table.column_bits + table.width_bits
        is_kept = toss < int(table.threshold[column]) >> table.column_bits + table.width_bits
        cell = column if is_kept else int(table.alias[column])
        if cell >= table.tail:
            continue
        magnitude = cell << table.width_bits | (first >> table.column_bits) % (1 << table.width_bits)
        height = table.scale * gaussian(magnitude, sigma) / table.weights[cell]
        if mpmath.mpf(second >> 1) / 2**63 < height and (magnitude or not second % 2):
            expected.append(-magnitude if second % 2 else magnitude)
    assert list(propose(table, 1500, SeededRandomness(9))) == expected


def test_the_tail_counts_coins_and_starts_at_the_edge():
    table = build_strips(16, reach=1)
    edge, width = table.tail << table.width_bits, 1 << table.tail_width_bits
    for strip in range(4):
        stream = ScriptedRandomness([1] * strip + [0, 3])
        magnitude, is_accepted = draw_tail(table, 0, stream)
        assert magnitude == edge + strip * width + 3
        assert is_accepted
        assert not stream.script


def test_the_tail_accepts_exactly_the_height_of_the_curve_over_its_envelope():
    table = build_strips(16, reach=1)
    magnitude = (table.tail << table.width_bits) + (1 << table.tail_width_bits) + 5
    envelope = Fraction(table.weights[table.tail], 4 << table.tail_width_bits)
    with mpmath.workdps(100):
        height = table.scale * gaussian(magnitude, 16) * envelope.denominator / envelope.numerator
        edge = int(2**63 * height / (1 << table.width_bits))
    assert draw_tail(table, edge - 1, ScriptedRandomness([1, 0, 5])) == (magnitude, True)
    assert draw_tail(table, edge + 1, ScriptedRandomness([1, 0, 5])) == (magnitude, False)


# --- edges ---


@pytest.mark.parametrize("count", [0, 1, 7, 16_384, 16_385, 40_000])
def test_as_many_draws_come_as_were_asked_for(count):
    drawn = discrete_gaussian(1, count, SeededRandomness(10))
    assert drawn.shape == (count,)
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("sigma", [1, 2**25])
def test_the_extreme_sigmas_are_accepted_from_the_operating_system(sigma):
    drawn = discrete_gaussian(sigma, 10_000, OperatingSystemRandomness())
    assert 0 < np.abs(drawn).max() <= 40 * sigma


def test_threads_may_share_one_source():
    source = OperatingSystemRandomness()
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: tuple(discrete_gaussian(3057090, 1000, source)), range(8)))
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("sigma", [0, -1, 2**25 + 1])
def test_a_sigma_that_int64_or_the_table_cannot_hold_is_refused(sigma):
    with pytest.raises(InputError, match=f"sigma must be from 1 to 33554432, this one is {sigma}; nothing drawn"):
        discrete_gaussian(sigma, 1, SeededRandomness(1))


def test_a_draw_beyond_two_to_the_31_is_refused_without_telling_it():
    wide = replace(build_strips(16), tail_width_bits=60)
    with pytest.raises(RoundError, match="a draw must be at most 2147483648 in magnitude, this one is larger; no"):
        draw_tail(wide, 0, SeededRandomness(11))
