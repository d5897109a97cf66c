"""What survives runs, in one folder: the event log, the participants' salts, a coordinator's keys."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

import msgspec

from hubbub.errors import InputError, typed
from hubbub.eventlog import EventLog
from hubbub.governance.certificates import Authority, End, new_authority_key, read_authority, self_signed
from hubbub.participant.commitment import SALT_BYTES
from hubbub.secagg.keys import KEY_BYTES, SigningKey
from hubbub.tlog import Signer
from hubbub.tlog.database import create_file
from hubbub.tlog.keys import open_key

VARIABLE = "HUBBUB_HOME"
LOG = "log.db"
ORIGIN = "hubbub.local/"


def home_folder(beside: Path | None) -> Path:
    """HUBBUB_HOME, or `.hubbub` beside the study."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else (beside or Path()) / ".hubbub"


def open_log(home: Path) -> EventLog:
    """The event log of a home, made where there is none.

    Raises:
        InputError: The folder cannot be written, or holds no log of ours.
    """
    return EventLog(home / LOG)


def open_log_of(run: str, home: Path) -> EventLog:
    """The event log that a run is in; none is made.

    Raises:
        InputError: It is not there any more.
    """
    if not (home / LOG).is_file():
        raise InputError(
            f"{home}, must hold the log of run {run}, found none; nothing done",
            hint='put the home back, or write into run.json, under "home", where it is now',
        )
    return open_log(home)


def cosignatures(home: Path) -> Path:
    """Where heads of the log are kept that witnesses have cosigned."""
    return home / "cosignatures"


def open_log_key(home: Path) -> Signer:
    """The key that signs a home's log; its name is the log's origin. Made where there is none."""
    return open_key(home / "log.key", ORIGIN)


def open_coordinator_key(home: Path) -> SigningKey:
    """The key with which a home's coordinator signs messages of rounds. Made where there is none.

    Raises:
        InputError: Others may read the file, or it holds no key.
    """
    path = home / "coordinator.key"
    try:
        seed = bytes.fromhex(own_secret(path, _new_seed).decode().strip())
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise InputError(
            f"{path}, must hold the coordinator's key in hexadecimal, found something else; nothing signed",
            hint="restore it from a copy: with a new key everybody needs a new membership",
        )
    return SigningKey(seed)


def _new_seed() -> bytes:
    return f"{secrets.token_hex(KEY_BYTES)}\n".encode()


def open_authority(home: Path, *, now: int) -> Authority:
    """Who signs the certificates of a home's federation. Made where there is none.

    Raises:
        InputError: Others may read its key, or key and certificate are damaged.
    """
    key = own_secret(home / "ca.key", new_authority_key)
    return read_authority(key, _made(home / "ca.crt", lambda: self_signed(key, now=now)))


def server_credentials(home: Path, hosts: Iterable[str], *, now: int) -> End:
    """What a coordinator's end of connections needs, for hosts that others dial; the private key is in memory only.

    Raises:
        InputError: As `open_authority`; or a host can have no certificate.
    """
    return open_authority(home, now=now).serve(hosts, now=now)


def own_secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """A secret that only its owner may read, made where there is none.

    Raises:
        InputError: Others may read the file, or it cannot be read or made.
    """
    content = _made(path, make)
    mode = path.stat().st_mode
    if mode & 0o077:
        raise InputError(
            f"{path}, must be readable by its owner only, found mode {mode & 0o777:03o}; nothing signed",
            hint=f"chmod 600 {typed(path)}",
        )
    return content


def _made(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            create_file(path, make())
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}, must be a file that can be read, {error.strerror}; nothing signed", hint="restore it from a copy"
        ) from None


def salts(home: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The 32-byte salt of each participant, made from the operating system's randomness at first use.

    Raises:
        InputError: The file of salts is damaged.
    """
    path = home / "salts.json"
    try:
        with _turn(home):
            known = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
            made = {name: secrets.token_hex(SALT_BYTES) for name in names if name not in known}
            if made:
                _replace(path, msgspec.json.encode(known | made))
        return {name: bytes.fromhex(salt) for name, salt in (known | made).items()}
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise InputError(
            f"{path}, must hold the participants' salts, {error}; nothing trained",
            hint="restore it from a copy: with new salts old data commitments cannot be opened",
        ) from None


@contextlib.contextmanager
def _turn(home: Path) -> Generator[None]:
    """One process at a time: of two that made a salt, one would have committed under what is kept nowhere."""
    descriptor = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, all of it or none."""
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class Receipts:
    """What finds each participant in the record of the last sum that it is in; on the disk when `keep` returns.

    Args:
        home: Where they are kept, in one file.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "receipts.json"
        try:
            content = self._path.read_bytes() if self._path.exists() else b"{}"
            self._held = {
                name: bytes.fromhex(at) for name, at in msgspec.json.decode(content, type=dict[str, str]).items()
            }
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise InputError(
                f"{self._path}, must hold the participants' receipts, {error}; nothing asked",
                hint="restore it from a copy: without a receipt a participant enters no further session",
            ) from None

    def of(self, name: str) -> bytes:
        """A participant's receipt; empty if it has none."""
        return self._held.get(name, b"")

    def keep(self, receipts: Mapping[str, bytes]) -> None:
        """Keep newer ones."""
        if receipts:
            self._held |= receipts
            _replace(self._path, msgspec.json.encode({name: held.hex() for name, held in self._held.items()}))
