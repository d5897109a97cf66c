"""A note: a text and the signature lines under it, read in one way only.

*Trust:* a note says nothing until a key of `keys` has been checked on it.

Source:
    c2sp.org/signed-note.
"""

import base64
import re
import reprlib
from dataclasses import dataclass
from typing import Final

from hubbub.errors import VerificationError

MOST_SIGNATURES: Final = 100
MOST_BYTES: Final = 1_000_000
_MARK: Final = "— "
_KEY_ID_BYTES: Final = 4
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: whose key, by name and four-byte id, and what it made."""

    name: str
    key_id: bytes
    blob: bytes

    def __str__(self) -> str:
        return f"{_MARK}{self.name} {to_base64(self.key_id + self.blob)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text, ending in a newline, and its signatures in the order of their lines."""

    text: str
    signatures: tuple[Signature, ...]

    def __bytes__(self) -> bytes:
        return f"{self.text}\n{''.join(map(str, self.signatures))}".encode()


def parse_note(data: bytes) -> Note:
    """Read a note; whether anybody signed it is not looked at.

    Guarantees:
        `bytes(parse_note(data)) == data`.

    Raises:
        VerificationError: These bytes are no note, or one with too many signatures.
    """
    content = as_text(data)
    text, blank, lines = content.rpartition("\n\n")
    if not blank:
        raise malformed("a note, must hold a blank line before its signatures", content)
    return Note(text + "\n", parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Read signature lines, at least one.

    Raises:
        VerificationError: One of them is none.
    """
    *found, rest = lines.split("\n")
    if rest or not 0 < len(found) <= MOST_SIGNATURES:
        raise malformed(f"a note, must end in 1 to {MOST_SIGNATURES} signature lines", lines)
    return tuple(_parse_signature(line) for line in found)


def _parse_signature(line: str) -> Signature:
    name, space, code = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not space or not is_key_name(name):
        raise malformed("a signature line, must read '— NAME BASE64'", line)
    raw = from_base64(code)
    if len(raw) <= _KEY_ID_BYTES:
        raise malformed("a signature, must be longer than its key id of 4 bytes", line)
    return Signature(name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])


def is_key_name(name: str) -> bool:
    """Whether a key may have this name: not empty, UTF-8, no space of any alphabet, no plus sign, no control."""
    return name != "" and not any(
        sign.isspace() or sign == "+" or sign < " " or "\ud800" <= sign <= "\udfff" for sign in name
    )


def as_text(data: bytes) -> str:
    """UTF-8 without control characters other than newlines, at most a million bytes.

    Raises:
        VerificationError: It is something else.
    """
    try:
        text = data.decode() if len(data) <= MOST_BYTES else "\x00"
    except UnicodeDecodeError:
        text = "\x00"
    if _CONTROL.search(text):
        raise malformed(f"a note, must be at most {MOST_BYTES} bytes of UTF-8 without control characters", data)
    return text


def to_base64(data: bytes) -> str:
    """Standard base64, padded."""
    return base64.b64encode(data).decode()


def from_base64(code: str) -> bytes:
    """Read base64 in its one canonical spelling.

    Raises:
        VerificationError: There is another way to write it, or it is none.
    """
    try:
        data = base64.b64decode(code, validate=True)
    except ValueError:
        data = b""
    if not data or to_base64(data) != code:  # b64decode ignores the bits that the last sign has to spare
        raise malformed("a signature or hash, must be canonical base64", code)
    return data


def malformed(rule: str, found: object) -> VerificationError:
    """What parsers raise: what was read is not evidence of anything."""
    return VerificationError(
        f"{rule}, found {reprlib.repr(found)}; nothing verified",
        hint="ask for it again: it was cut, damaged or changed",
    )
