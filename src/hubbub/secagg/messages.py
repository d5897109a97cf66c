"""What the two halves say to each other: every message as fields with their lengths, and nothing else.

One format is hashed, signed and sent (`keys.enc`), so bytes have one reading and a reading has one way to
write it. A message is an `Envelope`: what it is, in which session, a body, the sender's signature over that
body, and an attachment that the body fixes by hash. docs/spec/secagg.md says it byte by byte.

*Trust:* a message is bytes somebody else wrote: `read` refuses all that is not exactly of its type, and the
receiver checks the rest.
"""

import functools
import struct
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, TypeVar

import msgspec

from hubbub.errors import InputError
from hubbub.secagg.keys import SIGNATURE_BYTES, Field, SigningKey, digest, enc, is_signed

SUITE: Final = "X25519 Ed25519 HKDF-SHA256 ChaCha20-Poly1305 AES-256-CTR uint32"
_INTEGER_BYTES = 8
_LENGTH = struct.Struct(">I")

Bytes32 = Annotated[bytes, 32]
Signature = Annotated[bytes, SIGNATURE_BYTES]


class Part(msgspec.Struct, frozen=True):
    """A list of typed fields: a body, or something inside one."""

    def encode(self) -> bytes:
        """The fields in order, each with its length before it."""
        return enc(*map(_field, msgspec.structs.astuple(self)))


def _field(value: Any) -> Field:
    if isinstance(value, bytes):  # most are
        return value
    if isinstance(value, Part):
        return value.encode()
    return enc(*map(_field, value)) if isinstance(value, tuple) else value


class Envelope(Part, frozen=True):
    """One message on the wire."""

    kind: str
    session: Bytes32
    body: bytes
    signature: Signature
    attachment: bytes | memoryview


class Signed(Part, frozen=True):
    """A body and its author's signature, passed on by the server as it came."""

    body: bytes
    signature: Signature


class Session(Part, frozen=True):
    """What one session is bound to, and the body of message 0, `open`.

    Args:
        suite: Names of the primitives.
        coordinator: Its public key.
        study: The study's name.
        plan: SHA-256 of the plan.
        run: Number of the run: a participant enters runs in increasing order, each once.
        parameters: SHA-256 of the thresholds.
        roster_epoch: Number of the roster.
        roster: SHA-256 of the roster file.
        payload: What is summed: "update", "statistic" or "evaluation".
        round_number: From 1.
        attempt: From 1.
        model: SHA-256 of the model's bytes, as each participant computes it.
        log_origin: Name of the transparency log.
        log_size: Its entries.
        log_root: Its root; without a log, SHA-256 of the event file.
    """

    suite: str
    coordinator: Bytes32
    study: str
    plan: Bytes32
    run: int
    parameters: Bytes32
    roster_epoch: int
    roster: Bytes32
    payload: str
    round_number: int
    attempt: int
    model: Bytes32
    log_origin: str
    log_size: int
    log_root: Bytes32

    @property
    def id(self) -> bytes:
        """Hash that every later signature and key of the session is bound to."""
        return digest("session", *(getattr(self, name) for name in self.__struct_fields__))

    @property
    def mark(self) -> tuple[int, int, int]:
        """(run, round, attempt), which only ever grows."""
        return (self.run, self.round_number, self.attempt)


class Advert(Part, frozen=True):
    """Message 1: a participant's keys for this session, and a commitment to its mask seed b."""

    participant: str
    cipher_key: Bytes32
    mask_key: Bytes32
    commitment: Bytes32


class Adverts(Part, frozen=True):
    """Message 1': everybody's keys, sorted by name."""

    adverts: tuple[Signed, ...]


class Dealing(Part, frozen=True):
    """Body of message 2: whom a participant chose as holders, and a commitment to all their shares.

    `edges` is a bitmap over the adverts' order, empty on the complete graph.
    """

    participant: str
    adverts: Bytes32
    edges: bytes
    shares: Bytes32


class Leaf(Part, frozen=True):
    """One holder's shares, committed and sealed; `sealed` is empty for the dealer itself."""

    self_hash: Bytes32
    seed_hash: Bytes32
    sealed: bytes


class Leaves(Part, frozen=True):
    """Attachment of message 2: one leaf per holder, in the adverts' order."""

    leaves: tuple[Leaf, ...]


class Delivered(Part, frozen=True):
    """One leaf on its way to its holder, with the path to the dealer's commitment."""

    leaf: Leaf
    path: tuple[Bytes32, ...]


class Deliver(Part, frozen=True):
    """Message 2': every dealing, and the leaves that the receiver holds, both in the adverts' order."""

    receiver: str
    dealings: tuple[Signed, ...]
    delivered: tuple[Delivered, ...]


class Header(Part, frozen=True):
    """Body of message 3, whose attachment is the masked vector; `bad_dealers` sent a share that does not open."""

    participant: str
    adverts: Bytes32
    edges: Bytes32
    vector: Bytes32
    dimension: int
    bad_dealers: tuple[str, ...]


class Survivors(Part, frozen=True):
    """Message 4: who is in the sum (a bitmap over the dealers' order), a salt, and the headers that prove it."""

    receiver: str
    survivors: bytes
    salt: Bytes32
    headers: tuple[Signed, ...]


class Consent(Part, frozen=True):
    """Message 4a: the one set of survivors to which a participant ever agrees in this session."""

    participant: str
    survivors: Bytes32


class Consents(Part, frozen=True):
    """Message 4b: consents of a quorum of the survivors."""

    consents: tuple[Signed, ...]


class Unmask(Part, frozen=True):
    """Message 5: one share per dealer of whom the sender holds any, in order; empty where it got none.

    Of a survivor it is the share of b, of a dropout that of the mask key: which, nobody can ask for.
    """

    participant: str
    survivors: Bytes32
    shares: tuple[bytes, ...]


class Close(Part, frozen=True):
    """Message 6: how the session ended ("released" or "aborted"), over which survivors, with what."""

    outcome: str
    survivors: bytes
    aggregate: bytes


class Evidence(msgspec.Struct, frozen=True):
    """Signed messages that an honest sender would not have sent, with what is wrong."""

    reason: str
    messages: tuple[bytes, ...]


Read = TypeVar("Read", bound=Part)


def read(kind: type[Read], data: bytes | memoryview) -> Read:
    """Read one part, strictly.

    Guarantees:
        What is returned encodes to `data` again: no byte is skipped and none has two readings. An attachment is
        not copied: it shows the bytes of `data`.

    Raises:
        InputError: The bytes are not exactly of this type.
    """
    return _read_part(kind, memoryview(data))


def _read_part(kind: type[Read], data: memoryview) -> Read:
    pieces, readers = _cut(data), _readers(kind)
    fields = [reader(piece) for reader, piece in zip(readers, pieces, strict=False)]
    if len(fields) != len(readers) or next(pieces, None) is not None:
        raise _malformed(f"{len(readers)} fields in {kind.__name__.lower()}", "another number")
    return kind(*fields)


def _cut(data: memoryview) -> Iterator[memoryview]:
    at, end = 0, len(data)
    while at < end:
        if end - at < _LENGTH.size:
            raise _malformed("a length of 4 bytes before each field", f"{end - at} bytes")
        (size,) = _LENGTH.unpack_from(data, at)
        start, at = at + _LENGTH.size, at + _LENGTH.size + size
        if at > end:
            raise _malformed(f"a field of {size} bytes", f"{end - start} bytes")
        yield data[start:at]


Reader = Callable[[memoryview], Any]


@functools.cache
def _readers(kind: type[Part]) -> tuple[Reader, ...]:
    return tuple(_reader(annotation) for annotation in typing.get_type_hints(kind, include_extras=True).values())


def _reader(annotation: Any) -> Reader:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return functools.partial(_read_bytes, size=arguments[1])
    if typing.get_origin(annotation) is tuple:
        return functools.partial(_read_many, item=_reader(arguments[0]))
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return functools.partial(_read_part, annotation)
    return {int: _read_integer, str: _read_string, bytes | memoryview: _read_view}.get(annotation, _read_bytes)


def _read_bytes(data: memoryview, size: int | None = None) -> bytes:
    if size is not None and size != len(data):
        raise _malformed(f"{size} bytes in a field", f"{len(data)}")
    return bytes(data)


def _read_view(data: memoryview) -> memoryview:
    return data


def _read_many(data: memoryview, item: Reader) -> tuple[Any, ...]:
    return tuple(item(piece) for piece in _cut(data))


def _read_integer(data: memoryview) -> int:
    return int.from_bytes(_read_bytes(data, _INTEGER_BYTES))


def _read_string(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise _malformed("UTF-8 in a name", "other bytes") from None


def _malformed(rule: str, found: str) -> InputError:
    return InputError(
        f"secagg message, must have {rule}, found {found}; nothing done", hint="both sides must run the same version"
    )


def write(kind: str, session: bytes, body: Part | bytes, *, key: SigningKey) -> bytes:
    """Sign a body and wrap it."""
    encoded = body.encode() if isinstance(body, Part) else body
    return Envelope(kind, session, encoded, key.sign(kind, session, encoded), b"").encode()


def is_by(public: bytes, kind: str, session: bytes, signed: Signed | Envelope) -> bool:
    """Whether `public` signed this body, as a message of this kind, in this session."""
    return is_signed(public, signed.signature, kind, session, signed.body)
