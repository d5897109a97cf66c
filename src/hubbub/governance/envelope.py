"""Signed bytes that can be read one way only: DSSE envelopes with one Ed25519 signature.

Source:
    DSSE 1.0.0, github.com/secure-systems-lab/dsse (protocol.md, envelope.md); RFC 8032. Points of small order:
    Chalkias, Garillot, Nikolaenko 2020, eprint.iacr.org/2020/1244, table 1.
"""

import hashlib
from base64 import b64decode
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hubbub.errors import InputError, RefusedError
from hubbub.tlog.note import to_base64

STATEMENT = "application/vnd.in-toto+json"
LARGEST_BYTES = 60_000
"""Most bytes of an envelope: an entry of the log, which holds it, has at most 65,535."""

_FIELD = 2**255 - 19
_EIGHTH = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
"""The y of a point of order 8."""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who signed, as a hint, and what."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A DSSE envelope as it stands in JSON, in this order, without white space."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = msgspec.field(name="payloadType")
    signatures: tuple[Signature]

    @property
    def body(self) -> bytes:
        """The payload's bytes."""
        return b64decode(self.payload, validate=True)

    @property
    def key_id(self) -> str:
        """The key that is said to have signed."""
        return self.signatures[0].keyid


def pae(payload_type: str, body: bytes) -> bytes:
    """What is signed: type and body, so that no other type and body share the bytes.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def key_id(public: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a public key."""
    return hashlib.sha256(public).hexdigest()[:16]


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `public` signed this; a key that is no point signs nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def fits_everything(public: bytes) -> bool:
    """Whether this is a point of small order: one signature by it fits many messages, and anybody can make it."""
    height = int.from_bytes(public, "little") % (1 << 255) % _FIELD
    return height in {0, 1, _FIELD - 1, _EIGHTH, _FIELD - _EIGHTH}


def seal(body: bytes, key: Ed25519PrivateKey) -> str:
    """Sign a statement's bytes; the envelope as text.

    Raises:
        InputError: The envelope is longer than an entry of the log may be.
    """
    signature = Signature(key_id(key.public_key().public_bytes_raw()), to_base64(key.sign(pae(STATEMENT, body))))
    text = msgspec.json.encode(Envelope(to_base64(body), STATEMENT, (signature,))).decode()
    _check_size(text)
    return text


def unseal(text: str) -> Envelope:
    """Read an envelope; whether its signature is right is another question: `check_signature`.

    Guarantees:
        Writing the envelope again gives these bytes: one meaning has one form.

    Raises:
        InputError: The text is no envelope of ours, or not in its one form.
    """
    _check_size(text)
    try:
        envelope = msgspec.json.decode(text, type=Envelope)
        is_canonical = msgspec.json.encode(envelope) == text.encode()
        is_canonical &= to_base64(envelope.body) == envelope.payload
        is_canonical &= to_base64(b64decode(envelope.signatures[0].sig, validate=True)) == envelope.signatures[0].sig
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"envelope, must be a DSSE envelope, {error}; nothing recorded", hint="ask whoever signed for it again"
        ) from None
    if not is_canonical:
        raise InputError(
            "envelope, must be written in its one form, found another; nothing recorded",
            hint="ask whoever signed for it again",
        )
    return envelope


def check_signature(envelope: Envelope, public: bytes, who: str) -> None:
    """Refuse an envelope that `public` did not sign.

    Raises:
        RefusedError: A byte of it is not what was signed, or somebody else signed it.
    """
    signature = b64decode(envelope.signatures[0].sig)
    if not is_signed(public, signature, pae(envelope.payload_type, envelope.body)):
        raise RefusedError(
            f"{who}, must have signed exactly these bytes, found a signature that does not fit; nothing done",
            hint=f"ask {who} to sign again",
        )


def _check_size(text: str) -> None:
    if len(text) > LARGEST_BYTES:
        raise InputError(
            f"envelope, must be at most {LARGEST_BYTES} characters, found {len(text)}; nothing recorded",
            hint="name fewer keys or datasets at once",
        )
