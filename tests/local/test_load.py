"""How many rows a run's microbatches have: few passes, little padding, and never more than the mechanism counts on."""

import math

from hypothesis import given
from hypothesis import strategies as st

from hubbub.local.load import FEW_ROWS, FORMED, microbatch_rows
from hubbub.mechanism.mechanism import MOST_ROWS

SLOTS = st.dictionaries(st.text(max_size=3), st.integers(1, 10**6), max_size=5)


@given(st.none() | st.floats(1e-9, 1.0), SLOTS, st.integers(1, 10**9))
def test_rows_are_a_multiple_of_eight_and_within_what_sensitivity_and_memory_allow(probability, slots, dimension):
    rows = microbatch_rows(probability, slots, dimension)
    assert rows % 8 == 0
    assert 8 <= rows <= MOST_ROWS
    assert rows <= FEW_ROWS or rows * dimension <= FORMED


@given(st.integers(1, 10**5), st.integers(1, 2**18))
def test_all_slots_take_the_fewest_passes_and_less_padding_than_eight_rows_each(slots, dimension):
    rows = microbatch_rows(None, {"a": slots, "b": slots}, dimension)
    passes = math.ceil(slots / rows)
    assert passes == math.ceil(slots / MOST_ROWS)
    assert passes * (rows - 8) < slots


@given(st.floats(0.01, 0.99), st.integers(10, 5000))
def test_nearly_every_sampled_batch_takes_the_passes_that_were_meant(probability, slots):
    rows = microbatch_rows(probability, {"a": slots}, 1000)
    mean = probability * slots
    usual = mean + 2 * math.sqrt(mean * (1 - probability))
    assert math.ceil(usual / rows) == math.ceil(math.ceil(usual) / MOST_ROWS)
