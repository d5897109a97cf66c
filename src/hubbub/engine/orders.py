"""What people ask of a coordinator besides its log, on the wire.

    OfferStudy  -> StudyOffers     who holds this study, with how many slots
    SubmitStudy -> Started         run what was approved
    ResumeRun   -> Started         go on with a run that was interrupted or waits
    HaltRun     -> Done            interrupt a run after its attempt; it stays reserved
    ShowStatus  -> Status          who is there, what became of the runs
    ReleaseRun  -> Done            make the bundle, under a quorum of witnesses
    FetchFile   -> FilePart        a file of a run that may be read

*Trust:* as `commands`: bytes that somebody enrolled wrote. That something is asked for allows nothing: what may be done
stands in the log.
"""

from typing import Annotated

from msgspec import Meta

from hubbub.engine.commands import Answer, Command
from hubbub.governance.acts import Hash

Word = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
FilePath = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}\Z")]
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
    """The run has begun, or goes on."""

    run: str


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
