"""What people ask of a coordinator, on the wire, and how it answers about its log.

    ReadLog(start)        -> LogPart(checkpoint, start, entries, is_last)
    RecordAct(envelope)   -> Done
    whatever is refused   -> Failed(message, hint, exit_code)

Each command has one function that answers it, in a dict by type: whoever answers more commands adds them to it.

*Trust:* a command is bytes that somebody enrolled wrote: it is read strictly, and an act counts for its signature, not
for the connection that it came through.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from hubbub.errors import HubbubError, InputError, RefusedError, VerificationError
from hubbub.eventlog import EventLog
from hubbub.governance import Federation
from hubbub.governance.envelope import LARGEST_BYTES
from hubbub.tlog import Signer, sign_checkpoint

PART_BYTES: Final = 4 << 20
"""Most bytes of entries in one answer."""
_PIECE: Final = 64
"""Entries read at once: of the longest ones, as many as fit."""

_log = logging.getLogger(__name__)


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command"):
    """Something that a person asks."""

    def encode(self) -> bytes:
        """Itself as msgpack."""
        return msgspec.msgpack.encode(self)


class ReadLog(Command, frozen=True, tag="read-log"):
    """Ask for entries from an index on."""

    start: Annotated[int, Meta(ge=0, lt=2**62)]


class RecordAct(Command, frozen=True, tag="record-act"):
    """Ask that a signed act is recorded."""

    envelope: Annotated[str, Meta(max_length=LARGEST_BYTES)]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="answer"):
    """What a coordinator says to it."""

    def encode(self) -> bytes:
        """Itself as msgpack."""
        return msgspec.msgpack.encode(self)


class LogPart(Answer, frozen=True, tag="log-part"):
    """Entries, and the signed head of the log as it was when the last of them was its last.

    Args:
        checkpoint: That head; of the whole log if that is shorter than what was asked for.
        start: Index of the first entry.
        entries: As many as fit.
        is_last: Whether the log has no more.
    """

    checkpoint: Annotated[bytes, Meta(max_length=1_000_000)]
    start: Annotated[int, Meta(ge=0, lt=2**62)]
    entries: tuple[bytes, ...]
    is_last: bool


class Done(Answer, frozen=True, tag="done"):
    """It is done, and durable."""


class Failed(Answer, frozen=True, tag="failed"):
    """It is not done: the error that a person sees."""

    message: Annotated[str, Meta(max_length=10_000)]
    hint: Annotated[str, Meta(max_length=10_000)]
    exit_code: Annotated[int, Meta(ge=1, le=255)]

    def error(self) -> HubbubError:
        """The error, to be raised where the command was typed: one line and a hint, as everywhere."""
        kinds: dict[int, type[HubbubError]] = {1: RefusedError, 3: VerificationError}
        return kinds.get(self.exit_code, InputError)(_one_line(self.message), hint=_one_line(self.hint))


AnyCommand = ReadLog | RecordAct
AnyAnswer = LogPart | Done | Failed
Handlers = Mapping[type[Any], Callable[[Any, str], Answer]]
"""What answers each type of command, given the command and the name of whoever asks."""

_commands = msgspec.msgpack.Decoder(AnyCommand)
_answers = msgspec.msgpack.Decoder(AnyAnswer)


def read_command(data: bytes) -> AnyCommand:
    """Read a command, strictly: written again it has the same bytes.

    Raises:
        InputError: The bytes are no command, or one written in another way.
    """
    return _read(data, _commands, "command")


def read_answer(data: bytes) -> AnyAnswer:
    """Read an answer, strictly: written again it has the same bytes.

    Raises:
        InputError: The bytes are no answer, or one written in another way.
    """
    return _read(data, _answers, "answer")


def _read(data: bytes, decoder: msgspec.msgpack.Decoder[Any], what: str) -> Any:
    try:
        message = decoder.decode(data)
        found = "another way to write one"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message, found = None, str(error)
    if message is None or message.encode() != data:
        raise InputError(
            f"{what}, must be of a known type in msgpack, {found}; nothing done",
            hint="both sides must run the same version",
        )
    return message


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

    def record_act(command: RecordAct, _name: str) -> Done:
        with turn:
            log.append(lambda: [log.fold(Federation).event(command.envelope, clock())])
        return Done()

    return {ReadLog: read_log, RecordAct: record_act}


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


def _one_line(text: str) -> str:
    return " ".join(text.split())
