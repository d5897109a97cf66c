"""What a coordinator shows of the log beside message 0, on the wire.

*Trust:* bytes that somebody else wrote: `LogGuard` believes none of them before a quorum of witnesses has.
"""

import msgspec

from hubbub.errors import InputError


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A head, and every entry from where the participant's own copy of the log ends.

    The entries are there themselves: whoever has all of them needs no proof of any, and nobody can leave one out,
    be it a revocation or a closing record.

    Args:
        checkpoint: The newest head, signed by the log and cosigned.
        start: Index of the first entry; at most the size of the participant's copy.
        entries: From `start` up to the head.
        receipt: The participant's own, of the last session whose sum it consented to; empty if there was none.
    """

    checkpoint: bytes
    start: int
    entries: tuple[bytes, ...]
    receipt: bytes = b""

    def encode(self) -> bytes:
        """The opening as msgpack: an array of its fields."""
        return msgspec.msgpack.encode(self)


_decoder = msgspec.msgpack.Decoder(Opening)


def read_opening(data: bytes) -> Opening:
    """Read an opening, strictly.

    Guarantees:
        `read_opening(data).encode() == data`.

    Raises:
        InputError: The bytes are no opening, or one written in another way.
    """
    try:
        opening = _decoder.decode(data)
        found = "another way to write one"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        opening, found = None, str(error)
    if opening is None or opening.encode() != data:
        raise InputError(
            f"opening, must be a head, an index, entries and a receipt in msgpack, {found}; nothing taken in",
            hint="both sides must run the same version",
        )
    return opening
