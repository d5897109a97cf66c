"""How the end of a session is written down: each member finds itself in it, and a reader of the log finds nobody.

Everything that could be guessed is under a salt: the survivors, of whom there are few sets; the sum, which may be a
count; each member's leaf. Consents stand in the leaves only: a signature names its signer to anybody with the roster.

*Trust:* whoever knows the salts, the members and the coordinator, can tell others who was there; that the coordinator
wrote down the truth is checked by each member with its receipt.
"""

from collections.abc import Callable, Mapping

import msgspec

from hubbub.secagg import agreement as agreed
from hubbub.secagg.keys import KEY_BYTES, digest, fresh
from hubbub.secagg.messages import Bytes32, Part


class Receipt(Part, frozen=True):
    """Shows its owner its own leaf: the leaf's salt, its place, and the path to the root."""

    salt: Bytes32
    place: int
    path: tuple[Bytes32, ...]


class Closing(msgspec.Struct, frozen=True, kw_only=True):
    """What a log may show of a session whose sum was released, beside its name and how many there were.

    Args:
        adverts: A; of keys that were fresh and that no reader has.
        survivors: Commitment to U.
        members: Root over one leaf for each member of U, among random ones.
        aggregate: Commitment to the sum.
    """

    adverts: bytes
    survivors: bytes
    members: bytes
    aggregate: bytes


def close_session(
    consents: Mapping[str, bytes],
    *,
    salt: bytes,
    adverts: bytes,
    survivors: bytes,
    aggregate: bytes | memoryview,
    most: int,
    draw: Callable[[int], bytes] = fresh,
) -> tuple[Closing, dict[str, Receipt]]:
    """What to write down of a session, and each member's receipt.

    Args:
        consents: By name, what each member of U signed: body and signature as `Signed` encodes them; empty where
            nothing arrived.
        salt: rho, which the members have and no reader.
        adverts: A.
        survivors: hU.
        aggregate: The bytes of the sum, as every member is sent them.
        most: Most members that a session of the plan could have: the tree has room for them, however few there were.
        draw: Gives fresh random bytes.

    Guarantees:
        Without `salt` and the salts in the receipts, all sets of as many members look alike, also to whoever has the
        roster, all keys, all vectors and hU. A receipt's place says nothing about its owner.
    """
    salts = {name: draw(KEY_BYTES) for name in consents}
    own = {name: _leaf(salts[name], name, consent) for name, consent in consents.items()}
    room = 1 << agreed.path_length(most)
    leaves = _arrange([*own.values(), *(draw(KEY_BYTES) for _ in range(room - len(own)))])
    levels = agreed.tree(leaves)
    places = {name: leaves.index(leaf) for name, leaf in own.items()}
    receipts = {name: Receipt(salts[name], places[name], agreed.path_of(levels, places[name])) for name in consents}
    closing = Closing(
        adverts=adverts,
        survivors=_commit("survivors", salt, survivors),
        members=levels[-1][0],
        aggregate=_commit("aggregate", salt, aggregate),
    )
    return closing, receipts


def is_member(receipt: Receipt, members: str, name: str, consent: bytes) -> bool:
    """Whether a receipt leads from this participant to the root that the log shows, in hexadecimal.

    Its consent stands in the leaf, or nothing where it did not arrive.
    """
    if receipt.place >> len(receipt.path):
        return False
    leaves = [_leaf(receipt.salt, name, said) for said in (consent, b"")]
    return members in {agreed.root_from(leaf, receipt.path, receipt.place).hex() for leaf in leaves}


def _commit(kind: str, salt: bytes, value: bytes | memoryview) -> bytes:
    return digest(kind, salt, value)


def _leaf(salt: bytes, name: str, consent: bytes) -> bytes:
    return digest("member", salt, name, consent)


def _arrange(leaves: list[bytes]) -> list[bytes]:
    """In an order that says nothing: hashes under fresh salts fall anywhere among random ones."""
    return sorted(leaves)
