"""What both halves compute alike from what all participants agreed on: positions, graphs, hashes.

A participant never takes any of this from the server: it gets the signed pieces and computes the rest.

*Trust:* none: it is a function of public messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from jaxtyping import Bool

from hubbub.errors import InputError
from hubbub.secagg.keys import digest, enc, sha256
from hubbub.secagg.messages import Leaf

SMALLEST_PATH_NODE = bytes(32)

Matrix = Bool[np.ndarray, "adverts adverts"]


class Member(msgspec.Struct, frozen=True):
    """One entry of the roster: a participant, its organisation, its protocol key."""

    name: str
    org: str
    key: bytes


class Roster:
    """Who may take part, by name.

    Args:
        members: The entries of one epoch.

    Raises:
        InputError: Two members share a name or a key.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members: Mapping[str, Member] = {member.name: member for member in members}
        if not len(self.members) == len({member.key for member in members}) == len(members):
            raise InputError(
                "roster, must name each participant and each key once, found a name or a key twice; nothing opened",
                hint="give every participant a key of its own",
            )

    def organisations(self, names: Sequence[str]) -> int:
        """How many organisations these participants belong to."""
        return len({self.members[name].org for name in names})


def name_order(name: str) -> bytes:
    """Key by which names are sorted: their UTF-8 bytes."""
    return name.encode()


def pack_bits(bits: Bool[np.ndarray, " places"]) -> bytes:
    """A set of places as a bitmap, first place in the lowest bit."""
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(data: bytes, places: int) -> Bool[np.ndarray, " places"] | None:
    """The set, or None if the bitmap has another length or a bit beyond the last place."""
    if len(data) != (places + 7) // 8:
        return None
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(np.bool_)
    return None if bits[places:].any() else bits[:places]


def commit_seed(session: bytes, participant: str, seed: bytes) -> bytes:
    """Commitment to a participant's mask seed b."""
    return digest("b", session, participant, seed)


def adverts_digest(session: bytes, bodies: Sequence[bytes]) -> bytes:
    """A: whose keys this session is made of."""
    return digest("adverts", session, enc(*bodies))


def scope_of(session: bytes, adverts: bytes) -> bytes:
    """Salt of every key derived in the session: other adverts, other keys."""
    return sha256(enc(session, adverts))


def seal_context(session: bytes, adverts: bytes, sender: str, receiver: str) -> bytes:
    """What a sealed pair of shares is bound to."""
    return enc(session, adverts, sender, receiver)


def edges_digest(session: bytes, adverts: bytes, bodies: Sequence[bytes]) -> bytes:
    """E: who dealt shares, to whom, and which; so also who masks with whom."""
    return digest("edges", session, adverts, enc(*bodies))


def survivors_digest(session: bytes, adverts: bytes, edges: bytes, survivors: bytes, salt: bytes) -> bytes:
    """What is consented to: one set of survivors on one graph."""
    return digest("U", session, adverts, edges, survivors, salt)


def share_hash(kind: str, scope: bytes, dealer: str, holder: str, share: bytes) -> bytes:
    """Commitment to one share; kind is "b share" or "seed share"."""
    return digest(kind, scope, dealer, holder, share)


def share_hashes(scope: bytes, dealer: str, holder: str, pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Commitments to a holder's two shares: of b, of the mask key's seed."""
    return share_hash("b share", scope, dealer, holder, pair[0]), share_hash(
        "seed share", scope, dealer, holder, pair[1]
    )


def leaf_hash(holder: str, leaf: Leaf) -> bytes:
    """One leaf of a dealer's tree of shares."""
    return digest("leaf", holder, leaf.self_hash, leaf.seed_hash, sha256(leaf.sealed))


def tree(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Levels of a hash tree, leaves first, filled up with zeros to a power of two."""
    level = [*leaves, *[SMALLEST_PATH_NODE] * ((1 << (len(leaves) - 1).bit_length()) - len(leaves))]
    levels = [level]
    while len(level) > 1:
        level = [digest("node", level[at], level[at + 1]) for at in range(0, len(level), 2)]
        levels.append(level)
    return levels


def path_of(levels: Sequence[Sequence[bytes]], index: int) -> tuple[bytes, ...]:
    """What is needed besides the leaf to compute the root."""
    return tuple(level[(index >> height) ^ 1] for height, level in enumerate(levels[:-1]))


def root_from(leaf: bytes, path: Sequence[bytes], index: int) -> bytes:
    """The root that a leaf and its path lead to."""
    node = leaf
    for height, other in enumerate(path):
        node = digest("node", other, node) if index >> height & 1 else digest("node", node, other)
    return node


def path_length(leaves: int) -> int:
    """Nodes on the path of a tree of so many leaves."""
    return (leaves - 1).bit_length()


@dataclass(frozen=True)
class Graph:
    """Who holds whose shares and who masks with whom, over the adverts' order.

    Args:
        names: The adverts' order.
        dealt: Who dealt shares, B.
        holders: Row u is True where somebody holds shares of u; u itself always does.
        partners: Row u is True where somebody shares a pair mask with u.
    """

    names: tuple[str, ...]
    dealt: Bool[np.ndarray, " adverts"]
    holders: Matrix
    partners: Matrix

    def holders_within(self, members: Bool[np.ndarray, " adverts"]) -> np.ndarray:
        """How many holders each participant has among `members`."""
        return self.holders @ members.astype(np.int64)

    def named(self, members: Bool[np.ndarray, " adverts"]) -> tuple[str, ...]:
        """Names of a set, in order."""
        return tuple(self.names[at] for at in np.flatnonzero(members).tolist())

    def places(self, members: Bool[np.ndarray, " adverts"]) -> list[int]:
        """Places of a set, in order."""
        return np.flatnonzero(members).tolist()


def make_graph(names: tuple[str, ...], edges: Mapping[int, Bool[np.ndarray, " adverts"]]) -> Graph:
    """The graph that dealers' choices make; edges of those who did not deal count for nothing."""
    size = len(names)
    dealt = np.zeros(size, dtype=np.bool_)
    chosen = np.zeros((size, size), dtype=np.bool_)
    for place, row in edges.items():
        dealt[place] = True
        chosen[place] = row
    partners = (chosen | chosen.T) & np.outer(dealt, dealt)
    holders = chosen.copy()
    holders[np.diag_indices(size)] = dealt
    return Graph(names, dealt, holders, partners)


def empty_graph() -> Graph:
    """The graph before anybody has dealt."""
    return make_graph((), {})


def read_edges(bitmap: bytes, place: int, *, adverts: int, neighbours: int) -> Bool[np.ndarray, " adverts"] | None:
    """A dealer's choice of other holders: None unless it is as many as the plan says, without itself.

    On the complete graph (`neighbours` 0) the bitmap is empty and everybody else is a holder.
    """
    if not neighbours:
        everybody = np.ones(adverts, dtype=np.bool_)
        everybody[place] = False
        return None if bitmap else everybody
    row = unpack_bits(bitmap, adverts)
    return row if row is not None and not row[place] and int(row.sum()) == neighbours else None
