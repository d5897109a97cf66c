"""Keys of a person or a participant: three of Ed25519, one purpose each, in one file.

Identity signs proposals, decisions and the card that shows the other two; protocol signs the messages of
rounds; witness cosigns the log. The file is its owner's, the card is everybody's.

Source:
    RFC 8032; docs/spec/secagg.md for what the protocol key signs.
"""

import os
import stat
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from hubbub.errors import InputError, RefusedError
from hubbub.governance.envelope import is_signed, key_id, pae

Role = Literal["data-owner", "data-scientist", "privacy-officer", "operator", "auditor", "node"]
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
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
        signature: Of all of this by `identity`, in hexadecimal.
    """

    name: Name
    organisation: Name
    role: Role
    identity: Hex32
    protocol: Hex32
    witness: Hex32
    signature: Annotated[str, Meta(pattern=SIGNATURE)] = "0" * 128

    @property
    def key_id(self) -> str:
        """How its acts are marked: 16 hexadecimal digits of the identity key's SHA-256."""
        return key_id(bytes.fromhex(self.identity))

    @property
    def public_keys(self) -> tuple[str, str, str]:
        """Identity, protocol and witness."""
        return self.identity, self.protocol, self.witness

    @property
    def message(self) -> bytes:
        """What `signature` is of."""
        return pae(CARD, msgspec.json.encode(msgspec.structs.replace(self, signature="0" * 128)))

    def check(self) -> None:
        """Refuse a card that its identity key did not sign, or whose keys are not three.

        Raises:
            RefusedError: Somebody changed it, or one key has two purposes.
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


class Keys:
    """Three private keys and their card.

    Args:
        card: The public half.
        seeds: 32 secret bytes each: identity, protocol, witness.
    """

    def __init__(self, card: Card, seeds: tuple[bytes, bytes, bytes]) -> None:
        self.card = card
        self.identity, self.protocol, self.witness = map(Ed25519PrivateKey.from_private_bytes, seeds)

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
                f"{path}, must be a new key file, {error.strerror}; no key made", hint="--out FILE names another"
            ) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _document(self) -> "_KeyFile":
        seeds = (key.private_bytes_raw().hex() for key in (self.identity, self.protocol, self.witness))
        return _KeyFile(self.card, *seeds)


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key file holds."""

    card: Card
    identity: Hex32
    protocol: Hex32
    witness: Hex32


def new_keys(name: str, *, organisation: str, role: Role) -> Keys:
    """Make three keys from the operating system's randomness, and their card.

    Raises:
        InputError: Name, organisation or role are not ones that a card may carry.
    """
    made = [Ed25519PrivateKey.generate() for _ in range(3)]
    identity, protocol, witness = (key.public_key().public_bytes_raw().hex() for key in made)
    fields = {"name": name, "organisation": organisation, "role": role}
    public = {"identity": identity, "protocol": protocol, "witness": witness}
    try:
        unsigned = msgspec.convert(fields | public, Card)
    except msgspec.ValidationError as error:
        raise InputError(
            f"card of {name!r}, must name a holder in letters, digits, hyphens, dots and underscores, "
            f"{str(error).partition(' matching')[0]}; no key made",
            hint="hubbub keys new ana --organisation clinic-1 --role data-owner",
        ) from None
    card = msgspec.structs.replace(unsigned, signature=made[0].sign(unsigned.message).hex())
    return Keys(card, (made[0].private_bytes_raw(), made[1].private_bytes_raw(), made[2].private_bytes_raw()))


def load_keys(path: Path) -> Keys:
    """Read a key file.

    Raises:
        InputError: There is none, it is damaged, or keys and card do not belong together.
        RefusedError: Others than its owner may read it.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & OTHERS:
                raise RefusedError(
                    f"{path}, must be readable by its owner only, found it open to others; nothing signed",
                    hint=f"chmod 600 {path}, and hubbub keys rotate if somebody may have read it",
                )
            document = msgspec.json.decode(file.read(), type=_KeyFile)
    except OSError as error:
        raise InputError(
            f"{path}, must be a key file, {error.strerror}; nothing signed", hint="hubbub keys new makes one"
        ) from None
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path}, must be a key file, {error}; nothing signed", hint="restore it from a copy"
        ) from None
    seeds = (bytes.fromhex(document.identity), bytes.fromhex(document.protocol), bytes.fromhex(document.witness))
    keys = Keys(document.card, seeds)
    shown = tuple(key.public_key().public_bytes_raw().hex() for key in (keys.identity, keys.protocol, keys.witness))
    if shown != document.card.public_keys:
        raise InputError(
            f"{path}, must hold the keys of its card, found others; nothing signed", hint="restore it from a copy"
        )
    document.card.check()
    return keys


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
    except (OSError, msgspec.DecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{path}, must be a card, {found}; nothing recorded", hint="hubbub keys new makes one beside the key"
        ) from None
    card.check()
    return card
