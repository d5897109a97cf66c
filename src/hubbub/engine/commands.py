"""What people ask of a coordinator, on the wire.

    ReadLog, RecordAct       -> LogPart, Done      its log
    OfferStudy               -> StudyOffers        who holds this study, with how many slots
    SubmitStudy, ResumeRun   -> Started            run what was approved; go on with what was interrupted
    HaltRun, ReleaseRun      -> Done               interrupt a run after its attempt; make its bundle
    ShowStatus, FetchFile    -> Status, FilePart   who is there, what became of the runs, and their files
    whatever is refused      -> Failed             the error that a person sees

*Trust:* a command is bytes that somebody enrolled wrote: it is read strictly. Asking allows nothing: what may be done
stands in the log.
"""

import logging
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from hubbub.errors import HubbubError, InputError, RefusedError, VerificationError
from hubbub.governance.acts import Hash
from hubbub.governance.envelope import LARGEST_BYTES

PART_BYTES: Final = 4 << 20
"""Most bytes of entries, or of a file, in one answer."""

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


_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
FILE_PATH: Final = rf"\A{_WORD}(/{_WORD}){{0,9}}\Z"
"""A file below a run's directory, and nowhere else; a log's tiles lie deep."""
Word = Annotated[str, Meta(pattern=rf"\A{_WORD}\Z")]
FilePath = Annotated[str, Meta(pattern=FILE_PATH)]
Count = Annotated[int, Meta(ge=0, lt=2**62)]


class OfferStudy(Command, frozen=True, tag="offer-study"):
    """Ask which participants hold a study, by hash."""

    study_hash: Hash
    code_hash: Hash


class SubmitStudy(Command, frozen=True, tag="submit-study"):
    """Ask for a run of an approved plan; `lock` is what it follows from."""

    study_hash: Hash
    code_hash: Hash
    plan_hash: Hash
    lock: Annotated[bytes, Meta(max_length=1_000_000)]


class ResumeRun(Command, frozen=True, tag="resume-run"):
    """Ask that a run goes on."""

    run: Word


class HaltRun(Command, frozen=True, tag="halt-run"):
    """Ask that a run is interrupted; what it reserved stays reserved."""

    run: Word


class ReleaseRun(Command, frozen=True, tag="release-run"):
    """Ask for a run's bundle."""

    run: Word


class ShowStatus(Command, frozen=True, tag="show-status"):
    """Ask who is there and what goes on."""


class FetchFile(Command, frozen=True, tag="fetch-file"):
    """Ask for a part of a file in a run directory."""

    run: Word
    path: FilePath
    start: Count


class Offer(Answer, frozen=True, tag="offer"):
    """One participant's answer; `refused` is a code, or empty."""

    participant: str
    slots: int
    data_commitment: str
    parameters: int
    refused: str = ""


class StudyOffers(Answer, frozen=True, tag="study-offers"):
    """Everybody's answers who is connected."""

    offers: tuple[Offer, ...]


class Started(Answer, frozen=True, tag="started"):
    """The run has begun, or goes on; or it had ended: then nothing is trained."""

    run: str
    had_ended: bool = False


class RunStatus(Answer, frozen=True, tag="run-status"):
    """What became of one run; hashes are of what it left, empty while it has left nothing."""

    run: str
    study: str
    state: str
    rounds: int
    of: int
    attempts: int
    words: str = ""
    model_hash: str = ""
    claim_hash: str = ""


class Status(Answer, frozen=True, tag="status"):
    """Who is connected, who of the roster is not, and every run."""

    connected: tuple[str, ...]
    absent: tuple[str, ...]
    runs: tuple[RunStatus, ...]


class FilePart(Answer, frozen=True, tag="file-part"):
    """Bytes of a file from where they were asked for; `names` are the files below a folder instead."""

    data: bytes
    is_last: bool
    names: tuple[str, ...] = ()


AnyCommand = ReadLog | RecordAct | OfferStudy | SubmitStudy | ResumeRun | HaltRun | ReleaseRun | ShowStatus | FetchFile
AnyAnswer = LogPart | Done | Failed | StudyOffers | Started | Status | FilePart

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


def _one_line(text: str) -> str:
    return " ".join(text.split())
