"""The tree of hashes above a list of entries, and the two proofs that it gives.

A place is (level, index): the root of the complete subtree over the leaves [index * 2^level, (index + 1) *
2^level). Only complete subtrees are ever stored, because they never change again.

*Trust:* every proof ends here; a verifier that accepts too much makes the log decoration.

Source:
    RFC 6962 section 2.1; verification as in RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

Place = tuple[int, int]
Read = Callable[[int, int], bytes]


def leaf_hash(body: bytes) -> bytes:
    """The hash of an entry; no inner node has it, whatever its bytes."""
    return hashlib.sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def complete_subtrees(start: int, end: int) -> list[Place]:
    """Cut the leaves [start, end) into complete subtrees, the largest first.

    `start` is where a subtree as large as the first one may begin, as it is in every proof.

    >>> complete_subtrees(0, 7)
    [(2, 0), (1, 2), (0, 6)]
    """
    places: list[Place] = []
    while start < end:
        level = (end - start).bit_length() - 1
        places.append((level, start >> level))
        start += 1 << level
    return places


def join(hashes: Sequence[bytes]) -> bytes:
    """The root over neighbouring complete subtrees, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    return functools.reduce(lambda right, left: node_hash(left, right), reversed(hashes))


def range_hash(start: int, end: int, read: Read) -> bytes:
    """The root over the leaves [start, end), from stored complete subtrees."""
    return join([read(level, index) for level, index in complete_subtrees(start, end)])


def grow(edge: list[bytes], size: int, leaves: Iterable[bytes]) -> list[tuple[int, int, bytes]]:
    """Add leaves to a tree; `edge`, the hashes of its complete subtrees, is changed to the new tree's.

    Returns:
        Level, index and hash of every subtree that is complete now and was not.
    """
    nodes: list[tuple[int, int, bytes]] = []
    for place, leaf in enumerate(leaves, start=size):
        level, index, hash_ = 0, place, leaf
        nodes.append((0, index, hash_))
        while index & 1:
            level, index, hash_ = level + 1, index >> 1, node_hash(edge.pop(), hash_)
            nodes.append((level, index, hash_))
        edge.append(hash_)
    return nodes


def inclusion_proof(index: int, size: int, read: Read) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root of the first `size` leaves."""
    start, end, proof = 0, size, list[bytes]()
    while end - start > 1:
        start, end = _step(index, start, end, proof, read)
    return proof[::-1]


def consistency_proof(old: int, new: int, read: Read) -> list[bytes]:
    """The hashes that show the first `old` of `new` leaves unchanged; none if `old` is 0 or `new`."""
    start, end, proof = 0, new if old else 0, list[bytes]()
    while old < end:
        start, end = _step(old - 1, start, end, proof, read)
    if start:
        proof.append(range_hash(start, end, read))
    return proof[::-1]


def _step(leaf: int, start: int, end: int, proof: list[bytes], read: Read) -> tuple[int, int]:
    """Go down to the child that holds a leaf; the other child's hash joins the proof."""
    middle = start + (1 << (end - start - 1).bit_length() - 1)  # a left child holds a power of two of leaves
    is_left = leaf < middle
    proof.append(range_hash(middle, end, read) if is_left else range_hash(start, middle, read))
    return (start, middle) if is_left else (middle, end)


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that `leaf` is at `index` of the tree with this size and root.

    Guarantees:
        True for one proof only, given the rest, unless SHA-256 collides.
    """
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        return False
    climbed = _climb(index, size - 1, leaf, proof)
    return climbed is not None and climbed[1] == root


def is_consistent(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether `proof` shows that the tree `new` begins with all of the tree `old`.

    Guarantees:
        True for one proof only, given the rest, unless SHA-256 collides. Of two trees of one size, only equal
        roots are consistent, and the empty tree has one root.
    """
    if not 0 <= old <= new or not _are_hashes(old_root, new_root, *proof):
        return False
    if (old == 0 and old_root != EMPTY_ROOT) or (old == new and old_root != new_root):
        return False
    if old in {0, new}:
        return not proof
    index, last = old - 1, new - 1
    while index & 1:  # up to the largest complete subtree that ends where the old tree does
        index, last = index >> 1, last >> 1
    path = [old_root, *proof] if index == 0 else proof
    return bool(path) and _climb(index, last, path[0], path[1:]) == (old_root, new_root)


def _climb(index: int, last: int, hash_: bytes, siblings: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """The roots of all leaves up to this place and of all leaves, if the siblings lead exactly there.

    Args:
        index: Place of `hash_` in its level.
        last: Place of the last node of that level.
        hash_: Where to start.
        siblings: From there up.
    """
    left = whole = hash_
    for sibling in siblings:
        if not last:
            return None
        if index & 1 or index == last:
            left, whole = node_hash(sibling, left), node_hash(sibling, whole)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            whole = node_hash(whole, sibling)
        index, last = index >> 1, last >> 1
    return None if last else (left, whole)


def _are_hashes(*values: bytes) -> bool:
    return all(len(value) == HASH_BYTES for value in values)
