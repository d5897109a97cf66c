"""How a coordinator answers what people ask; the part that is about its log.

Each command has one function that answers it, in a dict by type: whoever answers more commands adds them to it.

*Trust:* an act counts for its signature, not for the connection that it came through.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from hubbub.engine.acts import record_act
from hubbub.engine.commands import PART_BYTES, Answer, Done, Failed, LogPart, ReadLog, RecordAct, read_command
from hubbub.errors import HubbubError, InputError
from hubbub.eventlog import EventLog
from hubbub.tlog import Signer, sign_checkpoint

_PIECE: Final = 64
"""Entries read at once: of the longest ones, as many as fit."""
_log = logging.getLogger(__name__)

Handlers = Mapping[type[Any], Callable[[Any, str], Answer]]
"""What answers each type of command, given the command and the name of whoever asks."""


def answer(data: bytes, name: str, handlers: Handlers) -> bytes:
    """Answer one command of whoever has this name; never raises.

    Args:
        data: The command.
        name: Who asks, as the connection's certificate and the roster say.
        handlers: `log_handlers`, and what else this coordinator answers.
    """
    try:
        return _answered(data, name, handlers).encode()
    except HubbubError as error:
        return Failed(error.message[:10_000], error.hint[:10_000], error.exit_code).encode()
    except Exception:  # noqa: BLE001, whoever asks is told nothing of it: it may quote what is not theirs to see
        _log.exception("a command of %s failed", name)
        what = "coordinator, must answer, found a fault of its own; what was asked may have been done"
        return Failed(what, "ask the operator to look at its log file", InputError.exit_code).encode()


def _answered(data: bytes, name: str, handlers: Handlers) -> Answer:
    command = read_command(data)
    if type(command) not in handlers:
        raise InputError(
            f"coordinator, must be asked for what it does, found {type(command).__name__}; nothing done",
            hint="both sides must run the same version",
        )
    return handlers[type(command)](command, name)


def log_handlers(log: EventLog, key: Signer, clock: Callable[[], int]) -> dict[type[Any], Callable[[Any, str], Answer]]:
    """What answers questions about a log.

    Args:
        log: An `EventLog` that nobody else folds: states are not shared between threads. Of one file there may be
            any number.
        key: Signs its heads.
        clock: POSIX seconds.
    """
    turn = threading.Lock()

    def read_log(command: ReadLog, _name: str) -> LogPart:
        return _part(log, key, command.start)

    def record(command: RecordAct, _name: str) -> Done:
        with turn:
            record_act(log, command.envelope, clock())
        return Done()

    return {ReadLog: read_log, RecordAct: record}


def _part(log: EventLog, key: Signer, start: int) -> LogPart:
    size, entries, room = log.store.size, list[bytes](), PART_BYTES
    first = min(start, size)
    while room > 0 and (piece := log.store.entries(first + len(entries), min(first + len(entries) + _PIECE, size))):
        fitting = piece[: sum(1 for length in itertools.accumulate(map(len, piece)) if length <= room)]
        entries += fitting
        room = room - sum(map(len, fitting)) if len(fitting) == len(piece) else 0
    end = first + len(entries)
    head = sign_checkpoint(log.store, key, end)
    return LogPart(bytes(head), first, tuple(entries), is_last=end == size)
