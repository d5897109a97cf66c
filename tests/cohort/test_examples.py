"""Samplers of slots draw what their event says; a batch outgrows its bound once in a billion rounds."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from hubbub.cohort import EveryExample, PoissonExamples
from hubbub.randomness import SeededRandomness

RELEASE = {"@": "GaussianDpEvent", "noise_multiplier": 1.5}


def test_everything_is_all_slots_in_order_and_pays_in_full():
    sampler = EveryExample()
    np.testing.assert_array_equal(sampler.select(5, SeededRandomness(0)), np.arange(5))
    assert sampler.dp_event(RELEASE) == RELEASE
    assert sampler.sampling_probability == 1.0
    assert sampler.largest_batch(5) == 5


def test_a_poisson_sample_says_what_it_draws():
    assert PoissonExamples(0.25).sampling_probability == 0.25
    assert PoissonExamples(0.25).dp_event(RELEASE) == {
        "@": "PoissonSampledDpEvent",
        "sampling_probability": 0.25,
        "event": RELEASE,
    }


@given(st.floats(1e-6, 1.0), st.integers(1, 400), st.integers(0, 2**32))
def test_a_batch_is_a_set_of_slots(probability, slots, seed):
    drawn = PoissonExamples(probability).select(slots, SeededRandomness(seed))
    assert len(drawn) == len(set(drawn.tolist()))
    assert all(0 <= slot < slots for slot in drawn)


def test_every_order_of_a_batch_is_equally_likely():
    randomness = SeededRandomness(3, "orders")
    orders = Counter(tuple(PoissonExamples(1.0).select(4, randomness).tolist()) for _ in range(4800))
    assert len(orders) == 24
    assert chisquare(list(orders.values())).pvalue > 1e-4


def test_a_batch_may_be_empty():
    assert PoissonExamples(1e-12).select(100, SeededRandomness(0)).size == 0


def test_inclusion_frequencies_accept_the_right_probability_and_reject_its_neighbours():
    randomness, rounds, slots = SeededRandomness(2, "slots"), 2000, 50
    hits = np.zeros(slots, dtype=np.int64)
    sizes = []
    for _ in range(rounds):
        drawn = PoissonExamples(0.25).select(slots, randomness)
        hits[drawn] += 1
        sizes.append(len(drawn))
    total = int(hits.sum())

    def is_accepted(probability):
        trials = rounds * slots
        return min(binom.cdf(total, trials, probability), binom.sf(total - 1, trials, probability)) > 3e-7

    assert is_accepted(0.25)
    assert not is_accepted(0.24)
    assert not is_accepted(0.26)
    assert chisquare(hits).pvalue > 1e-4
    spread = np.var(sizes) / (slots * 0.25 * 0.75)  # independence: a fixed size would give 0, clones 50
    assert 0.85 < spread < 1.15


def test_the_draw_sees_the_number_of_slots_only():
    first, second = SeededRandomness(1), SeededRandomness(1)
    sampler = PoissonExamples(0.3)
    for _ in range(5):
        np.testing.assert_array_equal(sampler.select(77, first), sampler.select(77, second))


@pytest.mark.parametrize("probability", [1e-6, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0])
def test_a_batch_outgrows_its_bound_less_than_once_in_a_billion_rounds(probability):
    for slots in [1, 2, 5, 10, 50, 100, 300, 1000, 10_000, 100_000, 1_000_000]:
        largest = PoissonExamples(probability).largest_batch(slots)
        assert largest <= slots
        assert binom.sf(largest, slots, probability) < 1e-9
