"""study.lock: what a plan needs to know of code and data, so that planning imports neither."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hubbub.errors import StudyError, typed

Positive = Annotated[int, Meta(ge=1)]


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Public facts of a study's code and data.

    Args:
        format: Version of this file, 1.
        code_hash: SHA-256 of the study's Python files.
        schema_hash: SHA-256 of the declared columns the data was checked against.
        parameters: Number of parameters d.
        slots: Public number of slots N_i of each participant.
    """

    format: Literal[1]
    code_hash: str
    schema_hash: str
    parameters: Positive
    slots: Annotated[dict[str, Positive], Meta(min_length=1)]


def read_lock(path: Path) -> Lock | None:
    """Read study.lock; None where there is none.

    Raises:
        StudyError: The file is not a lock.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Lock)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StudyError(
            f"{path.name}, must be what hubbub check wrote, {error}",
            hint=f"rm {typed(path)} && hubbub check {typed(path.parent)}",
        ) from None


def decode_lock(data: bytes) -> Lock:
    """Read a lock as it travels, with a proposal and a run.

    Raises:
        StudyError: The bytes are no lock.
    """
    try:
        return msgspec.json.decode(data, type=Lock)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StudyError(
            f"study.lock, must be what hubbub propose wrote, {error}; nothing trained, nothing sent",
            hint="propose the study again",
        ) from None


def write_lock(path: Path, lock: Lock) -> None:
    """Write study.lock for people to read, all of it or none: one line per participant."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(lock, order="sorted"), indent=1) + b"\n")
    new.replace(path)
