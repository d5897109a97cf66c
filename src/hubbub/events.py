"""Everything that is ever recorded: one frozen type per kind of event.

Ledger, report and metrics are folds over these: ``state = reduce(apply, events, start)``. Every field is
`Public` (known to all before any data is read, or chosen by somebody who has not seen data) or `Released`
(computed from data, after a mechanism made it private, or named as unprotected in the claim). There is no
third kind: a type that needs one does not belong here.

*Trust:* whoever writes the file can write anything; what makes it evidence is the log that holds it.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from hubbub.errors import InputError

Value = TypeVar("Value")
Public = Annotated[Value, Meta(extra={"exposure": "public"})]
Released = Annotated[Value, Meta(extra={"exposure": "released"})]

EventDocument = dict[str, Any]
"""A DpEvent as JSON; `accounting.codec` says what it may hold."""


NOT_PRIVATE: EventDocument = {"@": "NonPrivateDpEvent"}
"""What is done without noise, or with noise that somebody can repeat."""


def repeated(dp_event: EventDocument, count: int) -> EventDocument:
    """`count` times the same event."""
    return {"@": "SelfComposedDpEvent", "count": count, "event": dp_event}


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event"):
    """Something that happened; immutable, one line of JSON."""


class RunStarted(Event, frozen=True, tag="run-started"):
    """A run begins: what it is bound to. `hosts`: one process ran everybody, or each participant is on its own."""

    run: Public[str]
    study: Public[str]
    plan_hash: Public[str]
    code_hash: Public[str]
    noise_source: Public[str]
    is_test_public: Public[bool]
    versions: Public[dict[str, str]]
    secagg: Public[Literal["run", "elide", "none"]] = "none"
    hosts: Public[Literal["one", "own"]] = "one"


class RunResumed(Event, frozen=True, tag="run-resumed"):
    """A run goes on after it was interrupted, with its next round; noise and samples are drawn anew."""

    run: Public[str]
    round_number: Public[int]
    attempts_lost: Public[int]


class ParticipantJoined(Event, frozen=True, tag="participant-joined"):
    """A participant takes part, with so many slots and data that it committed to under its own salt."""

    run: Public[str]
    participant: Public[str]
    slots: Public[int]
    data_commitment: Public[str]


class ParticipantRefused(Event, frozen=True, tag="participant-refused"):
    """A participant refused to take part in a run, or in one of its rounds (0: in any); `code` says of what kind."""

    run: Public[str]
    participant: Public[str]
    round_number: Public[int]
    code: Public[str]


class BudgetGranted(Event, frozen=True, tag="budget-granted"):
    """An owner allows its dataset to be used up to (epsilon, delta).

    Kind "filter" admits any run while RDP at `order` fits; "gaussian" any whose noise is Gaussian without sampling
    while sum 1/z^2 fits; "schedule" admits the listed plans only; "unbounded" everything, without noise too.
    """

    dataset: Public[str]
    unit: Public[str]
    kind: Public[Literal["filter", "gaussian", "schedule", "unbounded"]]
    epsilon: Public[float]
    delta: Public[float]
    order: Public[float]
    plan_hashes: Public[tuple[str, ...]]
    granted_by: Public[Literal["sandbox", "owner"]]


class BudgetReserved(Event, frozen=True, tag="budget-reserved"):
    """A whole schedule is set aside for a run: `attempts` times `dp_event` on each dataset, before round 1."""

    run: Public[str]
    plan_hash: Public[str]
    unit: Public[str]
    datasets: Public[tuple[str, ...]]
    dp_event: Public[EventDocument]
    attempts: Public[int]
    inflation: Public[float]


class BudgetCharged(Event, frozen=True, tag="budget-charged"):
    """One round attempt is spent, on disk before any update leaves its participant."""

    run: Public[str]
    round_number: Public[int]
    attempt: Public[int]


class BudgetSettled(Event, frozen=True, tag="budget-settled"):
    """A run ended; attempts never opened return to datasets that a filter guards."""

    run: Public[str]
    charged: Public[int]


class RoundClosed(Event, frozen=True, tag="round-closed", omit_defaults=True):
    """A round's sum was released and the model moved. `participants` is None where the cohort is secret.

    The last five are hexadecimal and empty where sums are plain: what `secagg.closing` makes of a session, so that
    each member finds itself in it and no reader of the log finds anybody.
    """

    run: Public[str]
    round_number: Public[int]
    attempt: Public[int]
    participants: Public[int | None]
    step_norm: Released[float]
    session: Public[str] = ""
    adverts: Public[str] = ""
    survivors: Public[str] = ""
    members: Public[str] = ""
    aggregate: Released[str] = ""


class RoundFailed(Event, frozen=True, tag="round-failed", omit_defaults=True):
    """A round attempt was given up; `reason` says how many were there and which were missing, nothing private.

    `session` is its session's name in hexadecimal, empty where sums are plain.
    """

    run: Public[str]
    round_number: Public[int]
    attempt: Public[int]
    reason: Public[str]
    session: Public[str] = ""


class Evaluated(Event, frozen=True, tag="evaluated"):
    """The model after a round, measured on test records disjoint from training (named in the claim)."""

    run: Public[str]
    round_number: Public[int]
    metrics: Released[dict[str, float]]


class RunFinished(Event, frozen=True, tag="run-finished"):
    """The last round is closed; the model has this hash."""

    run: Public[str]
    rounds: Public[int]
    model_hash: Released[str]


class ModelReleased(Event, frozen=True, tag="model-released"):
    """A finished run's model left under its claim, signed with this key."""

    run: Public[str]
    model_hash: Released[str]
    claim_hash: Released[str]
    release_key: Public[str]


class Proposed(Event, frozen=True, tag="proposed"):
    """Somebody asks for what needs permission: a signed envelope, valid where it stands in the log."""

    envelope: Public[str]


class Decided(Event, frozen=True, tag="decided"):
    """Somebody approves or denies exactly one proposal's bytes: a signed envelope."""

    envelope: Public[str]


class RequestRefused(Event, frozen=True, tag="request-refused"):
    """Somebody asked for what the rules or a budget do not allow, and nothing followed from it; `reason` as told."""

    asked: Public[str]
    reason: Public[str]


AnyEvent = (
    RunStarted
    | RunResumed
    | ParticipantJoined
    | ParticipantRefused
    | BudgetGranted
    | BudgetReserved
    | BudgetCharged
    | BudgetSettled
    | RoundClosed
    | RoundFailed
    | Evaluated
    | RunFinished
    | ModelReleased
    | Proposed
    | Decided
    | RequestRefused
)

_decoder = msgspec.json.Decoder(AnyEvent)


def decode_event(line: bytes | str) -> AnyEvent:
    """Read one event.

    Raises:
        InputError: The bytes are no event; one line says why.
    """
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(
            f"event, must be one JSON object of a known kind, {error}",
            hint="an event file is written by hubbub only: restore it from a copy",
        ) from None


def encode_event(event: Event) -> bytes:
    """One event as one line of JSON, without the newline; the same event gives the same bytes."""
    return msgspec.json.encode(event, order="deterministic")
