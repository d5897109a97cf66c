"""Keys of a person or a participant: four, one purpose each, in one file.

Identity signs proposals, decisions and the card that shows the other three; protocol signs the messages of
rounds; witness cosigns the log; transport opens a TLS connection, and nothing that is believed later is signed
with it. The file is its owner's, the card is everybody's.

Source:
    RFC 8032 (Ed25519); FIPS 186-5 and RFC 5480 (transport: ECDSA on P-256, since gRPC's TLS library takes no
    Ed25519 certificate); docs/spec/secagg.md for what the protocol key signs.
"""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta

from hubbub.errors import InputError, RefusedError, typed
from hubbub.governance.envelope import fits_everything, is_signed, key_id, pae

Role = Literal["data-owner", "data-scientist", "privacy-officer", "operator", "auditor", "node"]
NAME = r"\A(?!none\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
NAMED = "1 to 63 ASCII letters, digits, '.', '_' and '-', the first a letter or a digit, and not 'none'"
"""The same in words; in a policy `none` is nobody."""
Name = Annotated[str, Meta(pattern=NAME)]
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
SIGNATURE = r"\A[0-9a-f]{128}\Z"
CARD = "application/vnd.hubbub.card+json"
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What everybody may know of a holder of keys. One card, one role: whoever has two roles has two cards.

    Args:
        name: Of the person or participant, once in a federation.
        organisation: Who answers for it.
        role: What it may do.
        identity: Public key in hexadecimal.
        protocol: Likewise.
        witness: Likewise.
        transport: SHA-256 of the public key of its TLS connections, in hexadecimal.
        signature: Of all of this by `identity`, in hexadecimal.
    """

    name: Name
    organisation: Name
    role: Role
    identity: Hex32
    protocol: Hex32
    witness: Hex32
    transport: Hex32
    signature: Annotated[str, Meta(pattern=SIGNATURE)] = "0" * 128

    @property
    def key_id(self) -> str:
        """How its acts are marked: 16 hexadecimal digits of the identity key's SHA-256."""
        return key_id(bytes.fromhex(self.identity))

    @property
    def public_keys(self) -> tuple[str, str, str, str]:
        """Identity, protocol, witness and transport, the last by its SHA-256."""
        return self.identity, self.protocol, self.witness, self.transport

    @property
    def message(self) -> bytes:
        """What `signature` is of."""
        return pae(CARD, msgspec.json.encode(msgspec.structs.replace(self, signature="0" * 128)))

    def check(self) -> None:
        """Refuse a card that its identity key did not sign, or whose keys are not four that only their holder can use.

        Raises:
            RefusedError: Somebody changed it, or one key has two purposes, or anybody can sign for one.
        """
        if not is_signed(bytes.fromhex(self.identity), bytes.fromhex(self.signature), self.message):
            raise RefusedError(
                f"card of {self.name}, must be signed by its identity key, found another signature; nothing recorded",
                hint=f"ask {self.name} for the card again",
            )
        if len(set(self.public_keys)) != len(self.public_keys):
            raise RefusedError(
                f"card of {self.name}, must show a key of its own for each purpose, found one twice; nothing recorded",
                hint=f"hubbub keys new {self.name} --organisation {self.organisation} --role {self.role}",
            )
        if any(fits_everything(bytes.fromhex(key)) for key in self.public_keys[:3]):
            raise RefusedError(
                f"card of {self.name}, must show keys whose signatures fit one message, found one of small order, for "
                "which anybody can sign; nothing recorded",
                hint=f"hubbub keys new {self.name} --organisation {self.organisation} --role {self.role}",
            )


def in_words(error: msgspec.ValidationError) -> str:
    """Which field broke which rule, as people say it."""
    rule, _, field = str(error).partition(" - at `$.")
    rule = f"must be {NAMED}" if f"{NAME!r}"[1:-1] in rule else rule
    return f"{field.rstrip('`')} {rule.replace('Expected', 'must be')}".strip()


def transport_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key with this secret number, 32 bytes, big-endian.

    Raises:
        ValueError: Zero, or not below the order of the curve.
    """
    return ec.derive_private_key(int.from_bytes(secret), ec.SECP256R1())


def fingerprint(public: PublicKeyTypes) -> str:
    """SHA-256 of a public key as a certificate holds it (DER SubjectPublicKeyInfo), in hexadecimal."""
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


class Keys:
    """Four private keys and their card.

    Args:
        card: The public half.
        secrets: 32 secret bytes each: identity, protocol, witness, transport.

    Raises:
        ValueError: The last one is no secret of P-256.
    """

    def __init__(self, card: Card, secrets: tuple[bytes, bytes, bytes, bytes]) -> None:
        self.card = card
        self.identity, self.protocol, self.witness = map(Ed25519PrivateKey.from_private_bytes, secrets[:3])
        self.transport = transport_key(secrets[3])

    @property
    def public_keys(self) -> tuple[str, str, str, str]:
        """What its card must show."""
        identity, protocol, witness = (key.public_key().public_bytes_raw().hex() for key in self._signing)
        return identity, protocol, witness, fingerprint(self.transport.public_key())

    @property
    def _signing(self) -> tuple[Ed25519PrivateKey, Ed25519PrivateKey, Ed25519PrivateKey]:
        return self.identity, self.protocol, self.witness

    def save(self, path: Path) -> None:
        """Write a key file that only its owner may read, and never over another.

        Raises:
            InputError: The file exists, or cannot be made.
        """
        content = msgspec.json.format(msgspec.json.encode(self._document()), indent=1) + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except OSError as error:
            raise InputError(
                f"{path}, must be a new key file, {error.strerror}; no key made", hint="--out says where else"
            ) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _document(self) -> "_KeyFile":
        identity, protocol, witness = (key.private_bytes_raw().hex() for key in self._signing)
        return _KeyFile(self.card, identity, protocol, witness, _secret(self.transport).hex())


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key file holds."""

    card: Card
    identity: Hex32
    protocol: Hex32
    witness: Hex32
    transport: Hex32

    @property
    def secrets(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Identity, protocol, witness, transport."""
        identity, protocol, witness, transport = map(
            bytes.fromhex, (self.identity, self.protocol, self.witness, self.transport)
        )
        return identity, protocol, witness, transport


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32)


def new_keys(name: str, *, organisation: str, role: Role) -> Keys:
    """Make four keys from the operating system's randomness, and their card.

    Raises:
        InputError: Name, organisation or role are not ones that a card may carry.
    """
    made = [Ed25519PrivateKey.generate() for _ in range(3)]
    transport = ec.generate_private_key(ec.SECP256R1())
    identity, protocol, witness = (key.public_key().public_bytes_raw().hex() for key in made)
    fields = {"name": name, "organisation": organisation, "role": role}
    public = {"identity": identity, "protocol": protocol, "witness": witness}
    try:
        unsigned = msgspec.convert(fields | public | {"transport": fingerprint(transport.public_key())}, Card)
    except msgspec.ValidationError as error:
        raise InputError(
            f"card of {name[:60]!r}, {in_words(error)}; no key made",
            hint="hubbub keys new ana --organisation clinic-1 --role data-owner",
        ) from None
    card = msgspec.structs.replace(unsigned, signature=made[0].sign(unsigned.message).hex())
    first, second, third = (key.private_bytes_raw() for key in made)
    return Keys(card, (first, second, third, _secret(transport)))


def load_keys(path: Path) -> Keys:
    """Read a key file.

    Raises:
        InputError: There is none, it is damaged, or keys and card do not belong together.
        RefusedError: Others than its owner may read it.
    """
    try:
        with path.open("rb") as file:
            content = file.read()
            _refuse_card(path, content)
            if os.fstat(file.fileno()).st_mode & OTHERS:
                raise RefusedError(
                    f"{path}, must be readable by its owner only, found it open to others; nothing signed",
                    hint=f"chmod 600 {typed(path)}, and hubbub keys rotate if somebody may have read it",
                )
            document = msgspec.json.decode(content, type=_KeyFile)
        keys = Keys(document.card, document.secrets)
    except OSError as error:
        raise InputError(
            f"{path}, must be a key file, {error.strerror}; nothing signed", hint="hubbub keys new makes one"
        ) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, must be a key file, {error}; nothing signed", hint="restore it from a copy"
        ) from None
    if keys.public_keys != document.card.public_keys:
        raise InputError(
            f"{path}, must hold the keys of its card, found others; nothing signed", hint="restore it from a copy"
        )
    document.card.check()
    return keys


def _refuse_card(path: Path, content: bytes) -> None:
    with suppress(msgspec.DecodeError, ValueError, RecursionError):
        msgspec.json.decode(content, type=Card)
        raise InputError(
            f"{path}, must be a key file, found a card, which is for everybody; nothing signed",
            hint=f"the key file that was made with it: {path.with_suffix('.key')}",
        )


def write_card(card: Card, path: Path) -> None:
    """Write a card for others to read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")


def read_card(path: Path) -> Card:
    """Read a card, and check it.

    Raises:
        InputError: There is none, or it is damaged.
        RefusedError: Somebody changed it.
    """
    try:
        card = msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        found = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{path}, must be a card, {found}; nothing recorded", hint="hubbub keys new makes one beside the key"
        ) from None
    card.check()
    return card
