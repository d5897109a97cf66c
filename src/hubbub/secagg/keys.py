"""The few primitives that the protocol stands on, each under one name and with one way to use it.

`enc` writes fields so that no two lists of fields share their bytes; `digest` and `SigningKey.sign` put a
domain in front, so that bytes made for one purpose never serve another. Everything cryptographic is
`cryptography`'s; nothing is implemented here.

*Trust:* all of secagg's promises end here: whoever learns a signing key is that participant.
"""

import functools
import hashlib
import secrets

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hubbub.errors import RoundError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
_FIELD_PRIME = 2**255 - 19
_NONCE = bytes(12)  # every AEAD key seals one message, so a counter would only ever be zero

Field = int | str | bytes | memoryview


def enc(*fields: Field) -> bytes:
    """Fields as bytes that can be cut only one way: each with its length before it, u32 big-endian.

    An integer is 8 bytes, big-endian; a string is UTF-8.

    >>> enc("a", 1).hex()
    '0000000161000000080000000000000001'
    """
    return b"".join(_pieces(fields))


def _pieces(fields: tuple[Field, ...]) -> list[bytes | memoryview]:
    pieces: list[bytes | memoryview] = []
    for field in fields:
        piece = field if isinstance(field, bytes) else _plain(field)
        pieces += (len(piece).to_bytes(4), piece)
    return pieces


def _plain(field: Field) -> bytes | memoryview:
    return field.to_bytes(8) if isinstance(field, int) else field.encode() if isinstance(field, str) else field


@functools.cache
def domain(kind: str) -> bytes:
    """What stands in front of everything hashed or signed for one purpose."""
    return b"hubbub/secagg/1/" + kind.encode() + b"\x00"


def digest(kind: str, *fields: Field) -> bytes:
    """SHA-256 of the fields, in the domain `kind`."""
    state = hashlib.sha256(domain(kind))
    for piece in _pieces(fields):
        state.update(piece)
    return state.digest()


def sha256(data: bytes | memoryview) -> bytes:
    """SHA-256 of bytes whose domain is fixed by what holds the hash."""
    return hashlib.sha256(data).digest()


def fresh(size: int) -> bytes:
    """Bytes from the operating system that nobody can predict."""
    return secrets.token_bytes(size)


class SigningKey:
    """A long-term Ed25519 key: a participant's protocol key, or the coordinator's.

    Args:
        seed: 32 secret bytes.

    Source:
        RFC 8032.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, kind: str, session: bytes, body: bytes) -> bytes:
        """Sign one message body of one session."""
        return self.sign_bytes(_signed(kind, session, body))

    def sign_bytes(self, data: bytes) -> bytes:
        """Sign bytes that carry their own domain."""
        return self._key.sign(data)


def _signed(kind: str, session: bytes, body: bytes) -> bytes:
    return domain(kind) + session + sha256(body)


def is_signed(public: bytes, signature: bytes, kind: str, session: bytes, body: bytes) -> bool:
    """Whether `public` signed this body of this kind in this session."""
    return is_signed_bytes(public, signature, _signed(kind, session, body))


def is_signed_bytes(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `public` signed these bytes; a key that is no point signs nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


class ExchangeKey:
    """A one-session X25519 key.

    Args:
        seed: 32 secret bytes.

    Source:
        RFC 7748.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes, peer: str) -> bytes:
        """The secret shared with `peer`.

        Raises:
            RoundError: The peer's key is of small order: the secret would be all zeros, known to everybody.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:  # both OpenSSL and cryptography refuse the all-zero output, RFC 7748 section 6.1
            raise RoundError(
                f"{peer}, must advertise keys of large order, found one that agrees on zero with anybody; nothing sent",
                hint=f"ask {peer} to run an unmodified hubbub",
            ) from None


def is_exchange_key(public: bytes) -> bool:
    """Whether these bytes are the one way to write an X25519 key: 32 bytes, below the field's prime."""
    return len(public) == KEY_BYTES and int.from_bytes(public, "little") < _FIELD_PRIME


def derive(secret: bytes, *, salt: bytes, info: bytes, size: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), size, salt, info).derive(secret)


def share_key(secret: bytes, scope: bytes, *, sender: str, receiver: str) -> bytes:
    """Key under which `sender` seals its one message to `receiver`; the way back has another."""
    return derive(secret, salt=scope, info=enc("share", sender, receiver))


def pair_key(secret: bytes, scope: bytes, one: str, other: str) -> bytes:
    """Key of the mask that two participants add and subtract; the same whoever asks."""
    low, high = sorted((one, other), key=str.encode)
    return derive(secret, salt=scope, info=enc("pair", low, high))


def self_key(secret: bytes, scope: bytes, owner: str) -> bytes:
    """Key of a participant's own mask."""
    return derive(secret, salt=scope, info=enc("self", owner))


def seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypt and authenticate the one message of a key (ChaCha20-Poly1305, nonce zero)."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, plaintext, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes | None:
    """The plaintext, or None if key, context or a byte is not the sealer's."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, context)
    except InvalidTag:
        return None


def mask_stream(key: bytes, counter: bytes = bytes(16)) -> CipherContext:
    """The AES-256-CTR keystream of a mask key (SP 800-38A), which no other call uses from zero."""
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
