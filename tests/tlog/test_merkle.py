"""Trees and proofs, against vectors and against the definition of RFC 6962 written down recursively."""

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.tlog import merkle

SIZES = st.integers(1, 70)


def leaves(size):
    return [merkle.leaf_hash(b"%d" % number) for number in range(size)]


def root(hashes):
    """RFC 6962, section 2.1, as it stands."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    half = split(len(hashes))
    return hashlib.sha256(b"\x01" + root(hashes[:half]) + root(hashes[half:])).digest()


def split(count):
    half = 1
    while 2 * half < count:
        half *= 2
    return half


def path(index, hashes):
    """RFC 6962, section 2.1.1."""
    if len(hashes) == 1:
        return []
    half = split(len(hashes))
    if index < half:
        return [*path(index, hashes[:half]), root(hashes[half:])]
    return [*path(index - half, hashes[half:]), root(hashes[:half])]


def subproof(old, hashes, *, is_whole):
    """RFC 6962, section 2.1.2."""
    if old == len(hashes):
        return [] if is_whole else [root(hashes)]
    half = split(len(hashes))
    if old <= half:
        return [*subproof(old, hashes[:half], is_whole=is_whole), root(hashes[half:])]
    return [*subproof(old - half, hashes[half:], is_whole=False), root(hashes[:half])]


def reader(hashes):
    """Read complete subtrees from the leaves."""
    return lambda level, index: root(hashes[index << level : (index + 1) << level])


def flipped(values, bit):
    """The same byte strings with one bit of one of them turned."""
    position, offset = divmod(bit, 256)
    changed = bytearray(values[position])
    changed[offset // 8] ^= 1 << offset % 8
    return [*values[:position], bytes(changed), *values[position + 1 :]]


def test_all_inclusion_vectors_are_judged_right(vectors):
    cases = json.loads((vectors / "merkle" / "inclusion.json").read_text())["cases"]
    wrong = []
    for case in cases:
        proof = [base64.b64decode(code) for code in case["proof"] or []]
        leaf, top = base64.b64decode(case["leafHash"] or ""), base64.b64decode(case["root"] or "")
        if merkle.is_included(leaf, case["leafIdx"], case["treeSize"], proof, top) == case["wantErr"]:
            wrong.append(case["name"])
    assert wrong == []
    assert len(cases) == 98


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257])
def test_the_root_is_that_of_the_definition(size):
    hashes = leaves(size)
    assert merkle.range_hash(0, size, reader(hashes)) == root(hashes)


@given(st.lists(st.integers(0, 9), max_size=12))
def test_a_tree_grown_in_pieces_is_the_tree_of_all_its_leaves(pieces):
    edge, nodes, size = [], {}, 0
    hashes = leaves(sum(pieces))
    for piece in pieces:
        grown = merkle.grow(edge, size, hashes[size : size + piece])
        assert not nodes.keys() & {(level, index) for level, index, _ in grown}
        nodes.update({(level, index): hash_ for level, index, hash_ in grown})
        size += piece
    assert merkle.join(edge) == root(hashes)
    complete = {(level, index) for level in range(9) for index in range(size >> level)}
    assert nodes == {place: reader(hashes)(*place) for place in complete}


@given(SIZES, st.data())
def test_an_inclusion_proof_is_that_of_the_definition_and_holds(size, data):
    hashes, index = leaves(size), data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, reader(hashes))
    assert proof == path(index, hashes)
    assert merkle.is_included(hashes[index], index, size, proof, root(hashes))


@given(SIZES, st.data())
def test_a_consistency_proof_is_that_of_the_definition_and_holds(new, data):
    hashes, old = leaves(new), data.draw(st.integers(1, new))
    proof = merkle.consistency_proof(old, new, reader(hashes))
    assert proof == subproof(old, hashes, is_whole=True)
    assert merkle.is_consistent(old, new, proof, root(hashes[:old]), root(hashes))


def check_each_bit(values, bits, is_accepted):
    assert is_accepted(values)
    assert not any(is_accepted(flipped(values, bit)) for bit in bits)


@pytest.mark.parametrize("size", range(1, 6))
def test_a_proof_with_any_one_bit_turned_is_refused(size):
    hashes = leaves(size)
    for index in range(size):
        values = [hashes[index], root(hashes), *path(index, hashes)]
        check_each_bit(
            values, range(256 * len(values)), lambda it, at=index: merkle.is_included(it[0], at, size, it[2:], it[1])
        )
        values = [root(hashes[: index + 1]), root(hashes), *subproof(index + 1, hashes, is_whole=True)]
        check_each_bit(
            values,
            range(256 * len(values)),
            lambda it, old=index + 1: merkle.is_consistent(old, size, it[2:], it[0], it[1]),
        )


@given(SIZES, st.data())
def test_a_longer_proof_with_one_bit_turned_is_refused(size, data):
    hashes, index = leaves(size), data.draw(st.integers(0, size - 1))
    values = [hashes[index], root(hashes), *path(index, hashes)]
    bit = data.draw(st.integers(0, 256 * len(values) - 1))
    check_each_bit(values, [bit], lambda it: merkle.is_included(it[0], index, size, it[2:], it[1]))
    values = [root(hashes[: index + 1]), root(hashes), *subproof(index + 1, hashes, is_whole=True)]
    bit = data.draw(st.integers(0, 256 * len(values) - 1))
    check_each_bit(values, [bit], lambda it: merkle.is_consistent(index + 1, size, it[2:], it[0], it[1]))


@given(SIZES, st.data())
def test_a_proof_holds_for_no_other_index_size_or_number_of_hashes(size, data):
    hashes, index = leaves(size), data.draw(st.integers(0, size - 1))
    proof, top = path(index, hashes), root(hashes)
    for other in range(-1, size + 2):
        assert merkle.is_included(hashes[index], other, size, proof, top) == (other == index)
    assert not merkle.is_included(hashes[index], index, size, [*proof, bytes(32)], top)
    assert not proof or not merkle.is_included(hashes[index], index, size, proof[:-1], top)
    assert not merkle.is_included(hashes[index], index, size, [*proof[:-1], b"short"], top)


@given(SIZES, st.data())
def test_trees_of_other_sizes_are_not_joined_by_a_proof(new, data):
    hashes, old = leaves(new), data.draw(st.integers(1, new))
    proof, before, after = subproof(old, hashes, is_whole=True), root(hashes[:old]), root(hashes)
    for other in range(-1, new + 2):
        assert merkle.is_consistent(other, new, proof, before, after) == (other == old)
    assert not merkle.is_consistent(old, new, [*proof, bytes(32)], before, after)
    assert not proof or not merkle.is_consistent(old, new, proof[:-1], before, after)
    assert not proof or not merkle.is_consistent(old, new, [], before, after)


def test_the_empty_tree_begins_every_tree_and_has_one_root():
    top = root(leaves(5))
    assert merkle.is_consistent(0, 5, [], merkle.EMPTY_ROOT, top)
    assert merkle.is_consistent(0, 0, [], merkle.EMPTY_ROOT, merkle.EMPTY_ROOT)
    assert not merkle.is_consistent(0, 5, [bytes(32)], merkle.EMPTY_ROOT, top)
    assert not merkle.is_consistent(0, 5, [], top, top)
    assert not merkle.is_consistent(0, 0, [], top, top)
    assert not merkle.is_consistent(0, 0, [], merkle.EMPTY_ROOT, top)


def test_an_entry_never_has_the_hash_of_two_subtrees():
    left, right = leaves(2)
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
    assert merkle.leaf_hash(b"\x01" + left + right) != merkle.node_hash(left, right)
