"""A checkpoint: the head of a log in three lines, origin, size and root.

*Trust:* as a note: nothing until a key has been checked on it.

Source:
    c2sp.org/tlog-checkpoint.
"""

from dataclasses import dataclass
from typing import Final

from hubbub.tlog.merkle import HASH_BYTES
from hubbub.tlog.note import as_text, from_base64, malformed, to_base64

MOST_ORIGIN_BYTES: Final = 255
"""What the longest origin may be: an ML-DSA-44 cosignature has one byte for its length."""

_MOST_SIZE: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How many entries a log had, and the root over them; extension lines are opaque and best left out."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in (self.origin, self.size, to_base64(self.root), *self.extensions))


def parse_checkpoint(text: str) -> Checkpoint:
    """Read the text of a note as a checkpoint.

    Guarantees:
        `str(parse_checkpoint(text)) == text`.

    Raises:
        VerificationError: It is none.
    """
    as_text(text.encode(errors="surrogatepass"))
    *lines, rest = text.split("\n")
    if rest or len(lines) < 3 or "" in lines or len(lines[0].encode()) > MOST_ORIGIN_BYTES:  # noqa: PLR2004
        raise malformed("a checkpoint, must be the lines origin, size and root, none of them empty", text)
    return Checkpoint(lines[0], parse_decimal(lines[1]), parse_hash(lines[2]), tuple(lines[3:]))


def parse_decimal(text: str) -> int:
    """Read a number below 2^63 in ASCII digits, without a leading zero.

    Raises:
        VerificationError: It is none.
    """
    if len(text) > len(str(_MOST_SIZE)) or not (text.isascii() and text.isdigit()) or str(int(text)) != text:
        raise malformed("a size or index, must be decimal without leading zeros", text)
    if int(text) > _MOST_SIZE:
        raise malformed("a size or index, must be below 2^63", text)
    return int(text)


def parse_hash(code: str) -> bytes:
    """Read a SHA-256 hash in base64.

    Raises:
        VerificationError: It is none.
    """
    hash_ = from_base64(code)
    if len(hash_) != HASH_BYTES:
        raise malformed(f"a hash, must be {HASH_BYTES} bytes", code)
    return hash_
