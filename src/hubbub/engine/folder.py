"""The run directory: what a run writes, and what it needs to go on after it was interrupted.

    run.json              which run, whose study, whose home; locked while the run is alive
    study.json            settings and lock, from which anybody makes the plan again
    plan.json             the plan
    snapshot-0|1          the model after the last closed round and the one before: a line of facts, then arrays
    events.jsonl          the run's events: a copy of what is in the log, written again on resume
    metrics.jsonl         metrics by round, from the events
    model.safetensors, claim.json, report.html, checkpoint    at the end

*Trust:* a copy; what counts is the log.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hubbub.coordinator import Progress
from hubbub.errors import InputError, RefusedError
from hubbub.events import RoundClosed, decode_event, encode_event
from hubbub.planning import Plan
from hubbub.release.bundle import StudyFacts, as_json
from hubbub.study import Study

FORMAT = 1
MODEL = "model.safetensors"
SNAPSHOTS = ("snapshot-0", "snapshot-1")
_KINDS = (np.float32, np.float64)


class RunFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """run.json: where a run belongs.

    Args:
        format: Version of this document.
        run: The run's name.
        study: Folder of the study; None for one that was made in a notebook.
        home: Folder of the log.
    """

    format: int
    run: str
    study: str | None
    home: str


class SnapshotFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First line of a snapshot, before its arrays of as many values as the model has parameters.

    Args:
        closed: The closing event of its round, as it stands in the log.
        sha256: Of the arrays that follow.
        arrays: How many follow, in the machine's order of bytes: the parameters, float32, and what momentum has
            gathered, float64, where there is momentum.
    """

    closed: str
    sha256: str
    arrays: int


class RunFolder:
    """One run directory.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None

    def make(self) -> None:
        """Make the directory, which must not be there yet."""
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"{self.path}, must be a new folder that can be made, {error.strerror or error}; "
                "nothing trained, nothing spent",
                hint="name another one with --out",
            ) from None

    def remove(self) -> None:
        """Take the directory away again: nothing was run."""
        for file in self.path.iterdir():
            file.unlink()
        self.path.rmdir()

    def write_start(self, facts: RunFacts, study: Study, plan: Plan) -> None:
        """Write what a run is bound to."""
        lock = study.current_lock
        assert lock is not None  # noqa: S101, there is a plan
        self.write("study.json", as_json(StudyFacts(settings=study.settings, lock=lock)))
        self.write("plan.json", as_json(plan))
        self.write("run.json", as_json(facts))

    def facts(self) -> RunFacts:
        """Where the run belongs.

        Raises:
            InputError: The folder is no run directory.
        """
        try:
            return msgspec.json.decode((self.path / "run.json").read_bytes(), type=RunFacts)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{self.path}, must be a run directory, {error}", hint="name the folder that `hubbub run` made"
            ) from None

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Keep the run to this process.

        Raises:
            RefusedError: Another process is running it; nothing done.
        """
        with (self.path / "run.json").open("rb") as self._lock:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RefusedError(
                    f"{self.path}, is being run by another process; nothing done, nothing spent",
                    hint="wait until it has ended",
                ) from None
            yield

    def let_go(self) -> None:
        """In a forked process: leave the run to the process that holds it, so that it ends with that one."""
        if self._lock is not None:
            self._lock.close()

    def write(self, name: str, content: bytes) -> Path:
        """Write a file, all of it or none."""
        new = self.path / f"{name}.new"
        new.write_bytes(content)
        return new.replace(self.path / name)

    def write_model(self, arrays: Mapping[str, NDArray[np.generic]]) -> str:
        """Write the model that a run ends with, all of it or none; its SHA-256."""
        new = self.path / f"{MODEL}.new"
        save_file(dict(arrays), new)
        with new.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        new.replace(self.path / MODEL)
        return digest

    def write_snapshot(self, progress: Progress, closed: RoundClosed) -> None:
        """Keep the model after a round, in turns in two files: one of them is whole at any time.

        Written before the round's closing event, so that resuming finds both or this. Not flushed to disk: after a
        power cut the run may have lost its snapshot, never what it charged.
        """
        arrays = [progress.parameters] if progress.velocity is None else [progress.parameters, progress.velocity]
        facts = SnapshotFacts(closed=encode_event(closed).decode(), sha256=_digest(arrays), arrays=len(arrays))
        with _overwritten(self.path / SNAPSHOTS[closed.round_number % 2]) as file:
            file.write(msgspec.json.encode(facts) + b"\n")
            for array in arrays:
                file.write(np.ascontiguousarray(array).data)

    def read_snapshot(self, plan: Plan, closed: int) -> tuple[Progress, RoundClosed] | None:
        """The model after the last closed round, and that round's closing event; None before the first.

        Args:
            plan: The run's plan.
            closed: Rounds that the log says are closed. While it says none, a snapshot that is not whole is the
                first, which was being written: the run begins anew.

        Raises:
            InputError: No snapshot is whole though a round is closed, or they are of another model.
        """
        paths = [path for name in SNAPSHOTS if (path := self.path / name).exists()]
        found = [_read_snapshot(path, plan.mechanism.dimension) for path in paths]
        whole = [one for one in found if one is not None]
        if paths and closed and not whole:
            raise InputError(
                f"{paths[0]}, must be the snapshot of this run, found it damaged; nothing trained, nothing spent",
                hint="restore it from a copy, or start a new run",
            )
        return max(whole, key=lambda one: one[0].round_number, default=None)


def _digest(arrays: Sequence[NDArray[np.generic]]) -> str:
    """SHA-256 of the arrays one after the other, without a copy of them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _overwritten(path: Path) -> Generator[BinaryIO]:
    """Write in place: a file system flushes one that is cut or renamed, and this one is a matter of speed."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644), "wb") as file:
        yield file
        file.truncate()


def _read_snapshot(path: Path, dimension: int) -> tuple[Progress, RoundClosed] | None:
    """A snapshot, or None if it is not whole: being written when the process was killed, or damaged."""
    try:
        with path.open("rb") as file:
            facts = msgspec.json.decode(file.readline(), type=SnapshotFacts)
            arrays: list[Any] = [np.fromfile(file, kind, dimension) for kind in _KINDS[: facts.arrays]]
            is_whole = all(array.size == dimension for array in arrays) and not file.read(1)
        closed = decode_event(facts.closed)
    except (OSError, ValueError, InputError):  # msgspec's errors are ValueErrors
        return None
    if not isinstance(closed, RoundClosed) or not is_whole or not arrays or _digest(arrays) != facts.sha256:
        return None
    return Progress(arrays[0], arrays[1] if arrays[1:] else None, closed.round_number + 1), closed
