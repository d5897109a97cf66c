"""The file that proves one entry: where it is, the way to the root, and the signed root.

*Trust:* none by itself; `verify.verify_entry` says what it is worth under a policy.

Source:
    c2sp.org/tlog-proof.
"""

from dataclasses import dataclass
from typing import Final

from hubbub.tlog.checkpoint import parse_decimal, parse_hash
from hubbub.tlog.note import Note, as_text, from_base64, malformed, parse_note, to_base64

HEADER: Final = "c2sp.org/tlog-proof@v1"
MOST_HASHES: Final = 63


@dataclass(frozen=True, slots=True)
class Proof:
    """One entry's index, inclusion proof and checkpoint; `extra` is opaque and signed by nobody."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: Note
    extra: bytes = b""

    def __bytes__(self) -> bytes:
        extra = [f"extra {to_base64(self.extra)}"] if self.extra else []
        lines = [HEADER, *extra, f"index {self.index}", *map(to_base64, self.hashes), "", ""]
        return "\n".join(lines).encode() + bytes(self.checkpoint)


def parse_proof(data: bytes) -> Proof:
    """Read a proof file.

    Guarantees:
        `bytes(parse_proof(data)) == data`.

    Raises:
        VerificationError: It is none.
    """
    head, blank, note = as_text(data).partition("\n\n")
    header, *lines = head.split("\n")
    extra = lines.pop(0).removeprefix("extra ") if lines and lines[0].startswith("extra ") else None
    if header != HEADER or not blank or not lines or not lines[0].startswith("index "):
        raise malformed(f"a proof, must be {HEADER!r}, an index, hashes, a blank line and a checkpoint", head)
    if len(lines) > 1 + MOST_HASHES:
        raise malformed(f"a proof, must have at most {MOST_HASHES} hashes", len(lines) - 1)
    return Proof(
        parse_decimal(lines[0].removeprefix("index ")),
        tuple(map(parse_hash, lines[1:])),
        parse_note(note.encode()),
        b"" if extra is None else from_base64(extra),
    )
