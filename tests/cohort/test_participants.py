"""Samplers of participants draw what their event says, and claim no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from hubbub.cohort import Everyone, FixedSize, SecretPoisson
from hubbub.randomness import SeededRandomness

RELEASE = {"@": "GaussianDpEvent", "noise_multiplier": 1.5}
ROSTER = [f"site-{index}" for index in range(10)]
SAMPLERS = st.one_of(
    st.just(Everyone()),
    st.integers(1, 12).map(FixedSize),
    st.floats(0.01, 1.0).map(SecretPoisson),
)


def counts(sampler, draws, label):
    """How often each member of the roster was drawn, and the sizes of all cohorts."""
    randomness = SeededRandomness(11, label)
    cohorts = [sampler.select(ROSTER, randomness) for _ in range(draws)]
    included = np.array([sum(name in cohort for cohort in cohorts) for name in ROSTER])
    return included, np.array([len(cohort) for cohort in cohorts])


@given(SAMPLERS, st.integers(1, 12), st.integers(0, 2**32))
def test_a_cohort_is_an_ordered_part_of_the_roster_no_larger_than_said(sampler, roster, seed):
    names = [f"p{index:02}" for index in range(roster)]
    cohort = sampler.select(names, SeededRandomness(seed))
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(names)
    assert len(cohort) <= sampler.size(roster) <= roster
    assert 0 < sampler.inclusion_probability(roster) <= 1


def test_everyone_is_always_everyone_and_pays_in_full():
    assert Everyone().select(ROSTER, SeededRandomness(0)) == tuple(ROSTER)
    assert Everyone().dp_event(RELEASE) == RELEASE
    assert not Everyone().is_secret


@pytest.mark.parametrize("members", [1, 3, 10, 40])
def test_a_fixed_size_cohort_never_amplifies(members):
    assert FixedSize(members).dp_event(RELEASE) == RELEASE
    assert not FixedSize(members).is_secret
    assert FixedSize(members).inclusion_probability(10) == min(members, 10) / 10


def test_a_fixed_size_cohort_is_uniform_over_members_and_pairs():
    included, sizes = counts(FixedSize(3), 1500, "fixed")
    assert set(sizes) == {3}
    assert chisquare(included).pvalue > 1e-4
    randomness = SeededRandomness(5, "pairs")
    pairs = [frozenset(FixedSize(2).select(ROSTER[:5], randomness)) for _ in range(1500)]
    assert chisquare([pairs.count(pair) for pair in set(pairs)]).pvalue > 1e-4
    assert len(set(pairs)) == 10


def test_a_secret_poisson_cohort_says_what_it_draws():
    sampler = SecretPoisson(0.3)
    assert sampler.dp_event(RELEASE) == {
        "@": "PoissonSampledDpEvent",
        "sampling_probability": 0.3,
        "event": RELEASE,
    }
    assert sampler.is_secret
    assert sampler.inclusion_probability(10) == 0.3


def accepts(included, draws, probability):
    """Whether a total of inclusions is within 5 standard deviations of what this probability gives."""
    total, trials = int(included.sum()), draws * len(ROSTER)
    return binom.cdf(total, trials, probability) > 3e-7 and binom.sf(total - 1, trials, probability) > 3e-7


def test_inclusion_frequencies_accept_the_right_probability_and_reject_its_neighbours():
    included, sizes = counts(SecretPoisson(0.3), 2000, "poisson")
    assert accepts(included, 2000, 0.3)
    assert not accepts(included, 2000, 0.28)
    assert not accepts(included, 2000, 0.32)
    assert chisquare(included).pvalue > 1e-4  # the same for each
    expected = binom.pmf(np.arange(8), 10, 0.3) * len(sizes)
    observed = np.bincount(np.minimum(sizes, 7), minlength=8)
    expected[7] += binom.sf(7, 10, 0.3) * len(sizes)
    assert chisquare(observed, expected).pvalue > 1e-4  # independent: sizes are binomial


def test_two_members_are_drawn_independently():
    randomness = SeededRandomness(3, "independent")
    cohorts = [set(SecretPoisson(0.5).select(ROSTER[:2], randomness)) for _ in range(2000)]
    table = [sum(cohort == case for cohort in cohorts) for case in ([set(), {"site-0"}, {"site-1"}, set(ROSTER[:2])])]
    assert chisquare(table).pvalue > 1e-4


def test_a_secret_cohort_may_be_empty():
    assert SecretPoisson(1e-9).select(ROSTER, SeededRandomness(0)) == ()


def test_probability_one_is_everyone():
    assert SecretPoisson(1.0).select(ROSTER, SeededRandomness(0)) == tuple(ROSTER)
