"""Every draw is exact, no stream repeats, and the keystream is NIST's."""

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import combinations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedRandomness

from hubbub.errors import InputError
from hubbub.randomness import (
    Keystream,
    OperatingSystemRandomness,
    SeededRandomness,
)


def chi_square_p_value(observed, expected):
    observed, expected = np.asarray(observed), np.asarray(expected, dtype=float)
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(mpmath.gammainc((len(observed) - 1) / 2, statistic / 2, regularized=True))


def words_of_a_forked_child(stream, count):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, stream.words(count).tobytes())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        received = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return list(np.frombuffer(received, dtype=np.uint64))


# --- the keystream ---


def test_keystream_is_the_one_of_nist_sp_800_38a_f_5_5():
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    output_blocks = (
        "0bdf7df1591716335e9a8b15c860c502"
        "5a6e699d536119065433863c8f657b94"
        "1bc12c9c01610d5d0d8bd6a3378eca62"
        "2956e1c8693536b1bee99c73a31576b6"
    )
    words = Keystream(key, counter).read(8)
    assert words.astype("<u8").tobytes().hex() == output_blocks


@given(st.lists(st.one_of(st.integers(0, 9), st.just(40_000)), max_size=6))
def test_reads_in_pieces_are_one_read(counts):
    pieces, whole = Keystream(bytes(32)), Keystream(bytes(32))
    joined = np.concatenate([np.empty(0, np.uint64), *(pieces.read(count) for count in counts)])
    np.testing.assert_array_equal(joined, whole.read(sum(counts)))


def test_threads_get_disjoint_stretches_that_make_up_the_stream():
    shared = Keystream(bytes(32))
    with ThreadPoolExecutor(8) as threads:
        stretches = list(threads.map(shared.read, [500] * 64))
    expected = Keystream(bytes(32)).read(64 * 500)
    np.testing.assert_array_equal(np.sort(np.concatenate(stretches)), np.sort(expected))
    rows = {tuple(row) for row in expected.reshape(64, 500)}
    assert {tuple(stretch) for stretch in stretches} == rows


# --- the operating system's ---


def test_two_streams_of_the_operating_system_share_no_word():
    first, second = OperatingSystemRandomness(), OperatingSystemRandomness()
    assert first.name == "os"
    assert not set(first.words(1000)) & set(second.words(1000))


def test_a_forked_child_never_repeats_its_parent_or_its_siblings():
    stream = OperatingSystemRandomness()
    stream.words(3)
    children = [words_of_a_forked_child(stream, 100) for _ in range(2)]
    parent = list(stream.words(200))
    assert len({*parent, *children[0], *children[1]}) == 400


def test_a_grandchild_never_repeats_its_child():
    stream = OperatingSystemRandomness()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        generations = [*words_of_a_forked_child(stream, 50), *stream.words(50)]
        os.write(writing, np.array(generations, dtype=np.uint64).tobytes())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        received = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert len({*np.frombuffer(received, dtype=np.uint64), *stream.words(50)}) == 150


def test_a_child_forked_while_a_thread_was_drawing_is_not_stuck():
    stream = OperatingSystemRandomness()
    with stream._keystream._lock:
        assert len(words_of_a_forked_child(stream, 10)) == 10


def test_noticing_a_fork_changes_the_key_once():
    stream = OperatingSystemRandomness()
    before = stream._keystream
    OperatingSystemRandomness.notice_fork()
    stream.words(1)
    after = stream._keystream
    stream.words(1)
    assert before is not after
    assert after is stream._keystream


def test_a_stream_of_the_operating_system_takes_no_seed_and_cannot_be_copied():
    stream = OperatingSystemRandomness()
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(stream)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(stream)
    with pytest.raises(TypeError):
        OperatingSystemRandomness(7)


# --- the seeded one ---


def test_seed_and_labels_fix_the_stream():
    assert SeededRandomness(7).name == "injected"
    np.testing.assert_array_equal(SeededRandomness(7, "noise", 3).words(9), SeededRandomness(7, "noise", 3).words(9))


def test_streams_of_different_seeds_or_labels_are_unrelated():
    labellings = [(7,), (8,), (-7,), (7, 1), (7, "1"), (7, "ab", "c"), (7, "a", "bc"), (7, "abc"), (7, "", 1)]
    words = [word for seed, *labels in labellings for word in SeededRandomness(seed, *labels).words(50)]
    assert len(set(words)) == 50 * len(labellings)


def test_each_bit_of_a_word_is_a_fair_coin():
    bits = np.unpackbits(SeededRandomness(1).words(100_000).view(np.uint8)).reshape(-1, 64)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 4 / 100_000)


# --- bounded integers ---


@given(st.integers(1, 2**63), st.integers(0, 50), st.integers())
def test_bounded_integers_stay_below_their_bound(bound, count, seed):
    drawn = SeededRandomness(seed).uniform_below(bound, count)
    assert drawn.shape == (count,)
    assert all(0 <= int(value) < bound for value in drawn)


def test_below_one_there_is_only_zero():
    assert not SeededRandomness(1).uniform_below(1, 100).any()


def test_a_power_of_two_rejects_nothing():
    words = [2**64 - 1, 2**63, 5]
    drawn = ScriptedRandomness(words).uniform_below(2**63, 3)
    assert [int(value) for value in drawn] == [2**63 - 1, 0, 5]


def test_words_above_the_largest_multiple_are_drawn_again_in_place():
    last = 2**64 - 2**64 % 10 - 1
    drawn = ScriptedRandomness([13, last + 1, last, 2**64 - 1, 27, last + 2, 34]).uniform_below(10, 4)
    assert list(drawn) == [3, 7, 9, 4]


def test_a_die_is_fair():
    counts = np.bincount(SeededRandomness(2).uniform_below(6, 600_000), minlength=6)
    assert chi_square_p_value(counts, [100_000] * 6) > 1e-3


def test_there_is_no_modulo_bias():
    # Plain remainders of 64-bit words would fall below 2^62 with probability 3/4 instead of 2/3.
    drawn = SeededRandomness(3).uniform_below(3 * 2**61, 100_000)
    assert abs((drawn < 2**62).mean() - 2 / 3) < 5 * np.sqrt(2 / 9 / 100_000)


@pytest.mark.parametrize("bound", [0, -1, 2**63 + 1])
def test_a_bound_outside_int64_is_refused(bound):
    with pytest.raises(InputError, match=r"bound must be from 1 to 2\*\*63, this one is .*; nothing drawn"):
        SeededRandomness(1).uniform_below(bound, 1)


# --- coins ---


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2**1088 - 1), st.integers(0, 2**64 - 1))
def test_a_coin_compares_a_uniform_real_with_the_stored_fraction(probability, digits, closeness):
    exact = Fraction(probability)
    near = int(exact * 2**1088) + closeness - 2**63
    for uniform in (digits, min(max(near, 0), 2**1088 - 1)):
        words = [(uniform >> 64 * place) % 2**64 for place in reversed(range(17))]
        coin = ScriptedRandomness(words).bernoulli(probability, 1)[0]
        assert coin == (Fraction(uniform, 2**1088) < exact)


def test_only_ties_draw_further_words():
    probability = 3 * 2.0**-70
    first, second = [0, 0, 1, 0], [3 * 2**58 - 1, 3 * 2**58, 3 * 2**58 + 1]
    stream = ScriptedRandomness(first + second)
    assert list(stream.bernoulli(probability, 4)) == [True, False, False, False]
    assert not stream.script


def test_the_smallest_float_is_not_zero():
    words = [0] * 16 + [2**14 - 1]
    assert ScriptedRandomness(words).bernoulli(5e-324, 1)[0]
    assert not ScriptedRandomness([0] * 16 + [2**14]).bernoulli(5e-324, 1)[0]


def test_certain_coins_draw_nothing():
    assert not ScriptedRandomness([]).bernoulli(0.0, 5).any()
    assert ScriptedRandomness([]).bernoulli(1.0, 5).all()


@pytest.mark.parametrize("probability", [1e-3, 0.1, 0.25, 1 / 3, 0.999])
def test_coins_fall_as_often_as_they_should(probability):
    heads, count = SeededRandomness(4).bernoulli(probability, 500_000).sum(), 500_000
    expected = [count * probability, count * (1 - probability)]
    assert chi_square_p_value([heads, count - heads], expected) > 1e-3
    wrong = [count * probability * 1.05, count * (1 - probability * 1.05)]
    if probability * 1.05 < 1 and probability > 0.01:
        assert chi_square_p_value([heads, count - heads], wrong) < 1e-6


@pytest.mark.parametrize("probability", [-1e-9, 1.0000001, float("nan"), float("inf")])
def test_a_probability_outside_zero_to_one_is_refused(probability):
    with pytest.raises(InputError, match=r"probability must be from 0 to 1, this one is .*; nothing drawn"):
        SeededRandomness(1).bernoulli(probability, 1)


# --- subsets ---


@given(st.integers(0, 300), st.data())
def test_a_choice_is_sorted_distinct_and_of_the_size_asked_for(population, data):
    size = data.draw(st.integers(0, population))
    chosen = SeededRandomness(data.draw(st.integers())).choose(population, size)
    assert chosen.dtype == np.int64
    assert chosen.size == size
    assert (np.diff(chosen) > 0).all()
    assert not chosen.size or (chosen[0] >= 0 and chosen[-1] < population)


@pytest.mark.parametrize(("population", "size"), [(5, 1), (5, 2), (5, 3), (6, 3), (4, 4)])
def test_every_subset_is_equally_likely(population, size):
    stream = SeededRandomness(5)
    subsets = dict.fromkeys(combinations(range(population), size), 0)
    trials = 200 * len(subsets)
    for _ in range(trials):
        subsets[tuple(int(member) for member in stream.choose(population, size))] += 1
    assert len(subsets) == 1 or chi_square_p_value(list(subsets.values()), [200] * len(subsets)) > 1e-3


def test_repeated_values_are_passed_over_in_order_of_appearance():
    assert list(ScriptedRandomness([7, 7, 2, 4, 9, 1]).choose(10, 3)) == [2, 4, 7]


def test_an_order_is_that_of_distinct_words():
    assert list(ScriptedRandomness([7, 3, 7, 9, 1, 4]).order(3)) == [1, 2, 0]
    assert SeededRandomness(1).order(0).size == 0


@pytest.mark.parametrize(("population", "size"), [(3, 4), (3, -1), (-1, 0)])
def test_a_choice_larger_than_the_population_is_refused(population, size):
    with pytest.raises(InputError, match=r"size must be from 0 to the population of .*; nothing drawn"):
        SeededRandomness(1).choose(population, size)
