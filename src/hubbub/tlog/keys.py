"""Who signs notes: names, public keys, and three types of signature.

ED25519 signs the text of any note, as logs do. COSIGNATURE (Ed25519) and ML_DSA_44 sign a checkpoint together
with the time, as witnesses do; the second also binds the witness's name, and holds against quantum computers.

*Trust:* whoever holds a log's key can sign another history; witnesses exist because of that.

Source:
    c2sp.org/signed-note, c2sp.org/tlog-cosignature; RFC 8032; FIPS 204. The text form of a secret key is that of
    golang.org/x/mod/sumdb/note.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hubbub.errors import HubbubError, InputError, VerificationError, typed
from hubbub.tlog.checkpoint import MOST_ORIGIN_BYTES, parse_checkpoint
from hubbub.tlog.database import create_file
from hubbub.tlog.note import Note, Signature, from_base64, is_key_name, malformed, to_base64

ED25519: Final = 1
COSIGNATURE: Final = 4
ML_DSA_44: Final = 6

SEED_BYTES: Final = 32
_PUBLIC_BYTES: Final = {ED25519: 32, COSIGNATURE: 32, ML_DSA_44: 1312}
_TIME_BYTES: Final = 8
_LAST_TIME: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Verifier:
    """A public key under a name, for one type of signature.

    Raises:
        InputError: No such type, a name that is none, or a key of another length.
    """

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        is_name = is_key_name(self.name) and len(self.name.encode()) <= MOST_ORIGIN_BYTES
        if not is_name or len(self.public) != _PUBLIC_BYTES.get(self.kind):
            raise InputError(
                "a key, must have a name without spaces or plus signs, a known type and that type's length, "
                f"found {self.name!r}, type {self.kind}, {len(self.public)} bytes",
                hint="copy the whole line NAME+ID+KEY, as `hubbub log show` prints it",
            )

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell this key from others of its name; no proof of anything."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{to_base64(bytes([self.kind]) + self.public)}"

    def signed_at(self, note: Note) -> int | None:
        """When this key last signed the note, in POSIX seconds; 0 if it does not say, None if it did not sign.

        Raises:
            VerificationError: A line carries this key's name and id and is not its signature.
        """
        own = [line.blob for line in note.signatures if (line.name, line.key_id) == (self.name, self.key_id)]
        return max((self._signed_at(note.text, blob) for blob in own), default=None)

    def _signed_at(self, text: str, blob: bytes) -> int:
        head = 0 if self.kind == ED25519 else _TIME_BYTES
        time = int.from_bytes(blob[:head])
        if time > _LAST_TIME or not self._made(blob[head:], _message(self, text, time)):
            raise VerificationError(
                f"a note, must be signed by {self.name}, found a line of that key that it did not make",
                hint="ask for the note again: it was changed, or the line is forged",
            )
        return time

    def _made(self, signature: bytes, message: bytes) -> bool:
        try:
            _public_key(self.kind, self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A secret key under a name; the seed shows in no representation.

    Args:
        name: For a log's key, the log's origin.
        kind: ED25519 for logs, COSIGNATURE or ML_DSA_44 for witnesses.
        seed: 32 secret bytes.
    """

    name: str
    kind: int
    seed: bytes = field(repr=False)

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(self.name, self.kind, _private_key(self.kind, self.seed).public_key().public_bytes_raw())

    def secret_text(self) -> str:
        """What a key file holds."""
        code = to_base64(bytes([self.kind]) + self.seed)
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id.hex()}+{code}"

    def sign(self, text: str, now: int = 0) -> Signature:
        """Sign the text of a note.

        Args:
            text: For a cosignature, a checkpoint.
            now: POSIX seconds, which a cosignature states.
        """
        verifier = self.verifier
        head = b"" if self.kind == ED25519 else now.to_bytes(_TIME_BYTES)
        blob = head + _private_key(self.kind, self.seed).sign(_message(verifier, text, now))
        return Signature(self.name, verifier.key_id, blob)


def parse_verifier(text: str) -> Verifier:
    """Read a verifier key: NAME+ID+KEY.

    Raises:
        InputError: It is none, or its id is another key's.
    """
    try:
        name, key_id, code = text.split("+", 2)
        raw = from_base64(code)
        verifier = Verifier(name, raw[0], raw[1:])
        if verifier.key_id.hex() != key_id:
            raise malformed("a verifier key, must carry its own id", text)
    except (ValueError, VerificationError):
        raise InputError(
            f"{text[:80]!r}, must be a verifier key NAME+ID+KEY with its own id",
            hint="copy the whole line, as `hubbub log show` prints it",
        ) from None
    return verifier


def parse_signer(text: str, where: object = "a key file") -> Signer:
    """Read a secret key: PRIVATE+KEY+NAME+ID+KEY. Never quotes it.

    Raises:
        InputError: It is none, or its id is another key's.
    """
    try:
        private, key, name, key_id, code = text.split("+", 4)
        raw = from_base64(code)
        signer = Signer(name, raw[0], raw[1:])
        is_right = (private, key, signer.verifier.key_id.hex()) == ("PRIVATE", "KEY", key_id)
    except (ValueError, KeyError, HubbubError):
        is_right, signer = False, None
    if signer is None or not is_right:
        raise InputError(
            f"{where}, must hold one secret key PRIVATE+KEY+NAME+ID+KEY with its own id, found something else",
            hint="restore it from a copy; a new key is a new log or a new witness",
        )
    return signer


def open_key(path: Path, prefix: str, kind: int = ED25519) -> Signer:
    """The key of a file that only its owner may read; made where there is none.

    Args:
        path: The file.
        prefix: What a new key's name begins with; 16 random hexadecimal digits follow.
        kind: Type of a new key.

    Raises:
        InputError: Others may read the file, or it holds no key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            new = Signer(prefix + secrets.token_hex(8), kind, secrets.token_bytes(SEED_BYTES))
            create_file(path, f"{new.secret_text()}\n".encode())
        mode, text = path.stat().st_mode, path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}, must be a key file, {error}", hint="restore it from a copy") from None
    if mode & 0o077:
        raise InputError(
            f"{path}, must be readable by its owner only, found mode {mode & 0o777:03o}", hint=typed("chmod", 600, path)
        )
    return parse_signer(text.removesuffix("\n"), path)


def _message(verifier: Verifier, text: str, time: int) -> bytes:
    """The bytes that a signature is over."""
    if verifier.kind == ED25519:
        return text.encode()
    checkpoint = parse_checkpoint(text)
    if verifier.kind == COSIGNATURE:
        return f"cosignature/v1\ntime {time}\n{text}".encode()
    if checkpoint.extensions:  # the format leaves them unsigned: nobody would have vouched for them
        raise malformed("a checkpoint under an ML-DSA-44 signature, must have no extension lines", text)
    name, origin = verifier.name.encode(), checkpoint.origin.encode()
    fields = (b"subtree/v1\n\x00", bytes([len(name)]), name, time.to_bytes(_TIME_BYTES), bytes([len(origin)]), origin)
    return b"".join((*fields, bytes(_TIME_BYTES), checkpoint.size.to_bytes(_TIME_BYTES), checkpoint.root))


def _private_key(kind: int, seed: bytes) -> Any:
    return (
        _ml_dsa("PrivateKey", "from_seed_bytes", seed)
        if kind == ML_DSA_44
        else Ed25519PrivateKey.from_private_bytes(seed)
    )


def _public_key(kind: int, public: bytes) -> Any:
    return (
        _ml_dsa("PublicKey", "from_public_bytes", public)
        if kind == ML_DSA_44
        else Ed25519PublicKey.from_public_bytes(public)
    )


def _ml_dsa(half: str, make: str, raw: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa

        return getattr(getattr(mldsa, f"MLDSA44{half}"), make)(raw)
    except (ImportError, UnsupportedAlgorithm):
        raise InputError(
            "an ML-DSA-44 key, must be used with a `cryptography` that has ML-DSA, found one without; nothing signed",
            hint="pip install -U cryptography",
        ) from None
