"""Bitmaps, trees and graphs that both halves compute alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import InputError
from hubbub.secagg import Member, Roster, agreement


@given(bits=st.lists(st.booleans(), max_size=40))
def test_a_bitmap_gives_its_set_back(bits):
    packed = agreement.pack_bits(np.array(bits, dtype=np.bool_))
    assert agreement.unpack_bits(packed, len(bits)).tolist() == bits
    assert agreement.unpack_bits(packed + b"\x00", len(bits)) is None


def test_a_bitmap_has_no_bit_beyond_its_last_place():
    assert agreement.unpack_bits(b"\x10", 4) is None
    assert agreement.unpack_bits(b"\x08", 4).tolist() == [False, False, False, True]


@given(count=st.integers(1, 40), data=st.data())
def test_every_leaf_has_a_path_to_the_root_and_no_other_place_has_it(count, data):
    leaves = [bytes([number]) * 32 for number in range(1, count + 1)]
    levels = agreement.tree(leaves)
    at = data.draw(st.integers(0, count - 1))
    path = agreement.path_of(levels, at)
    assert len(path) == agreement.path_length(count)
    assert agreement.root_from(leaves[at], path, at) == levels[-1][0]
    other = data.draw(st.integers(0, count - 1))
    assert (agreement.root_from(leaves[at], path, other) == levels[-1][0]) == (at == other)


def test_partners_chose_each_other_in_one_direction_or_both_and_both_dealt():
    def row(*places):
        return np.isin(np.arange(4), places)

    graph = agreement.make_graph(("a", "b", "c", "d"), {0: row(1, 3), 1: row(2), 2: row(0)})
    assert graph.named(graph.dealt) == ("a", "b", "c")
    assert graph.named(graph.partners[0]) == ("b", "c")  # d was chosen and did not deal
    assert graph.named(graph.holders[0]) == ("a", "b", "d")
    assert graph.named(graph.holders[3]) == ()
    assert graph.holders_within(graph.dealt).tolist() == [2, 2, 2, 0]


@pytest.mark.parametrize(
    ("bitmap", "neighbours", "chosen"),
    [
        (b"", 0, [1, 2, 3]),
        (b"\x00", 0, None),
        (b"\x06", 2, [1, 2]),
        (b"\x02", 2, None),
        (b"\x03", 2, None),
        (b"\x0e", 2, None),
        (b"", 2, None),
    ],
)
def test_edges_are_as_many_as_planned_and_never_lead_to_oneself(bitmap, neighbours, chosen):
    row = agreement.read_edges(bitmap, 0, adverts=4, neighbours=neighbours)
    assert (None if row is None else np.flatnonzero(row).tolist()) == chosen


@pytest.mark.parametrize("members", [[("a", 1), ("a", 2)], [("a", 1), ("b", 1)]])
def test_a_roster_names_each_participant_and_each_key_once(members):
    with pytest.raises(InputError, match="roster, must name each participant and each key once"):
        Roster([Member(name, "org", bytes([key]) * 32) for name, key in members])
