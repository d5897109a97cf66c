"""Who is connected to a coordinator, what became of its runs, and the files of a run that people may read."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from hubbub.accounting.accounts import Accounts
from hubbub.engine.commands import PART_BYTES, Answer, FetchFile, FilePart, RunStatus, ShowStatus, Status
from hubbub.engine.folder import RunFolder
from hubbub.engine.transport import Transport
from hubbub.errors import InputError
from hubbub.eventlog import EventLog
from hubbub.events import AnyEvent, RoundClosed, RunFinished
from hubbub.governance import Federation
from hubbub.planning import Plan

READABLE: Final = frozenset({"plan.json", "study.json", "claim.json", "metrics.jsonl", "report.html", "checkpoint"})
"""Files of a run that say nothing but what the log does; the model leaves in a bundle, when it is released."""
BUNDLE: Final = "bundle"


@runtime_checkable
class Coordinator(Protocol):
    """What is asked about."""

    words: dict[str, str]
    transport: Transport

    @property
    def current(self) -> str:
        """The run that goes on."""
        ...

    def folder(self, run: str) -> RunFolder:
        """The directory of a run."""
        ...


@dataclass
class _Runs:
    """How far each run is."""

    rounds: dict[str, int] = field(default_factory=dict[str, int])
    models: dict[str, str] = field(default_factory=dict[str, str])

    def apply(self, event: AnyEvent) -> None:
        """Take one more event in."""
        match event:
            case RoundClosed():
                self.rounds[event.run] = event.round_number
            case RunFinished():
                self.models[event.run] = event.model_hash
            case _:
                pass


def status_handlers(coordinator: Coordinator, log: EventLog) -> dict[type[Any], Callable[[Any, str], Answer]]:
    """What answers questions about a coordinator.

    Args:
        coordinator: The coordinator.
        log: Its log, folded by nobody else.
    """
    turn = threading.Lock()

    def show(_order: ShowStatus, _name: str) -> Status:
        with turn:
            federation, accounts, runs = log.fold(Federation), log.fold(Accounts), log.fold(_Runs)
        connected = sorted(coordinator.transport.sites())
        absent = sorted({card.name for card in federation.roster().members} - set(connected))
        told = [_run_status(coordinator, name, accounts, runs) for name in accounts.runs]
        return Status(tuple(connected), tuple(absent), tuple(one for one in told if one is not None))

    def fetch(order: FetchFile, _name: str) -> FilePart:
        return _part(coordinator.folder(order.run).path, order.path, order.start)

    return {ShowStatus: show, FetchFile: fetch}


def _run_status(coordinator: Coordinator, run: str, accounts: Accounts, runs: _Runs) -> RunStatus | None:
    try:
        path = coordinator.folder(run).path
        plan = msgspec.json.decode((path / "plan.json").read_bytes(), type=Plan)
    except (InputError, OSError, ValueError, RecursionError):
        return None  # a run that this coordinator did not carry
    account, model, claim = accounts.runs[run], runs.models.get(run, ""), path / "claim.json"
    if run == coordinator.current:
        state = "running"
    elif account.is_settled:
        state = "finished" if model else "ended"
    else:
        state = "interrupted"
    return RunStatus(
        run=run,
        study=plan.study,
        state=state,
        rounds=runs.rounds.get(run, 0),
        of=plan.rounds,
        attempts=len(account.charged),
        words=coordinator.words.get(run, ""),
        model_hash=model,
        claim_hash=hashlib.sha256(claim.read_bytes()).hexdigest() if state == "finished" and claim.exists() else "",
    )


def _part(folder: Path, name: str, start: int) -> FilePart:
    """A part of a file that may be read, or the names of a bundle's files.

    Raises:
        InputError: There is no such file, or nobody may read it this way.
    """
    path, parts = folder / name, Path(name).parts
    is_readable = name in READABLE or parts[0] == BUNDLE
    if not is_readable or ".." in parts or path.is_symlink() or not path.exists():
        raise InputError(
            f"{name}, must be one of {', '.join(sorted(READABLE))} or in a bundle that was released, found none",
            hint="hubbub release RUN makes the bundle",
        )
    if path.is_dir():
        return FilePart(
            b"", is_last=True, names=tuple(sorted(str(at.relative_to(path)) for at in path.rglob("*") if at.is_file()))
        )
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(PART_BYTES)
        return FilePart(data, is_last=not file.read(1))
