"""Everything that needs permission: one type per kind of act.

Nothing personal belongs in an act: names of holders are handles, and texts are read by everybody.
"""

import datetime as dt
import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from hubbub.governance.keys import Card, Name
from hubbub.governance.roles import Tightening
from hubbub.study.config import Purpose, Settings
from hubbub.study.rules import LARGEST_DELTA

Hash = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
KeyId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
DATASET = r"\A[0-9a-f]{32}\Z"
"""Name of a registered dataset, which was drawn at random."""
DatasetId = Annotated[str, Meta(pattern=DATASET)]
Seconds = Annotated[int, Meta(ge=0, lt=2**40)]
Round = Annotated[int, Meta(ge=1, le=1_000_000)]
Epsilon = Annotated[float, Meta(gt=0, le=1e6)]
Delta = Annotated[float, Meta(gt=0, le=LARGEST_DELTA)]
Text = Annotated[str, Meta(max_length=500)]
Run = Annotated[str, Meta(min_length=1, max_length=100)]
Severity = Literal["S1", "S2", "S3"]


class Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, and an unknown field is an error."""


class Act(Frozen, frozen=True, tag_field="act"):
    """Something that needs permission."""

    @property
    def kind(self) -> str:
        """Name of the act, as rules and logs write it."""
        return str(self.__struct_config__.tag)

    @property
    def subjects(self) -> dict[str, str]:
        """SHA-256 of everything that this is about, by name."""
        return {self.kind: hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()}


class FoundFederation(Act, frozen=True, tag="found-federation"):
    """Begin: from here on nothing is automatic. In force when every founder has signed.

    Args:
        name: Of the federation.
        cards: The founders' cards.
        roles: SHA-256 of the roles file that says who may.
        tighter: What this federation asks beyond it.
    """

    name: Name
    cards: tuple[Card, ...]
    roles: Hash
    tighter: Tightening = Tightening()


class EnrolKey(Act, frozen=True, tag="enrol-key"):
    """Let a new holder act."""

    card: Card


class RotateKey(Act, frozen=True, tag="rotate-key"):
    """Replace a holder's keys: asked for by the old identity, or by others if that was stolen."""

    key: KeyId
    card: Card


class RevokeKey(Act, frozen=True, tag="revoke-key"):
    """End a key. What it signed before counts on if its holder left, and no longer if it was stolen."""

    key: KeyId
    reason: Literal["left", "stolen"]


class RegisterDataset(Act, frozen=True, tag="register-dataset"):
    """Make a dataset known: whose it is, what it may be used for, until when, at which cost.

    Args:
        dataset: Random id, minted once.
        participant: Name of the node that holds it.
        organisation: The owner.
        unit: Who its budget protects.
        unit_column: Column that says which records are one unit; empty if each record is one.
        purposes: What it may be used for.
        retention: Last day on which it may exist, in UTC.
        epsilon: The most that may ever be spent.
        delta: At this delta, fixed.
        grant: How runs that are chosen one after the other are composed, fixed: "filter" takes any noise,
            "gaussian" only Gaussian noise without sampling, which costs less there. "unbounded" is for records that
            their owner would publish: any approved study may use them, without noise too, and epsilon says nothing.
        version_of: An older dataset whose budget this one shares; None for a first version.
        is_disjoint: Whether no unit of the older one is in here: then the budget is its own, and a second
            person of the owner must say so too.
    """

    dataset: DatasetId
    participant: Name
    organisation: Name
    unit: Literal["example", "client"]
    purposes: tuple[Purpose, ...]
    retention: dt.date
    epsilon: Epsilon
    delta: Delta
    grant: Literal["filter", "gaussian", "unbounded"] = "filter"
    unit_column: Annotated[str, Meta(max_length=100)] = ""
    version_of: DatasetId | None = None
    is_disjoint: bool = False

    @property
    def ends(self) -> int:
        """First second at which it may no longer exist."""
        last = dt.datetime(self.retention.year, self.retention.month, self.retention.day, tzinfo=dt.UTC)
        return int(last.timestamp()) + 86_400


class RaiseBudget(Act, frozen=True, tag="raise-budget"):
    """Let a dataset, and all versions that share its budget, spend up to a larger epsilon."""

    dataset: DatasetId
    epsilon: Epsilon


class Terms(Frozen, frozen=True):
    """What of a study decides over privacy, in numbers that approvers can read and a run is held to.

    Args:
        rest: SHA-256 of every setting that only a full approval may change; `terms_of` says which.
    """

    unit: Literal["example", "client"]
    noise: Literal["distributed", "server", "local", "none"]
    noise_source: Literal["os", "float-simulation"]
    epsilon: Epsilon | None
    delta: Delta
    max_norm: Annotated[float, Meta(gt=0)]
    minimum: Annotated[int, Meta(ge=0)]
    colluding: Annotated[int, Meta(ge=0)]
    reviews: tuple[Round, ...]
    rest: Hash

    def within(self, approved: "Terms") -> bool:
        """Whether this costs nobody more privacy than `approved` allows: epsilon or delta smaller, all else equal."""
        same = msgspec.structs.replace(self, epsilon=approved.epsilon, delta=approved.delta)
        less = approved.epsilon is None or (self.epsilon is not None and self.epsilon <= approved.epsilon)
        return same == approved and less and self.delta <= approved.delta


_FREE = {
    "study": {"seed"},
    "privacy": {"epsilon", "delta", "retries"},
    "sampling": {"examples", "probability"},
    "training": {
        "rounds",
        "learning_rate",
        "server_learning_rate",
        "momentum",
        "local_epochs",
        "local_steps",
        "batch_size",
    },
    "success": {"accuracy", "loss"},
    "speed": {"workers", "secagg"},
}
"""All that a change of class A or B may touch: what it does to privacy is in epsilon."""

_FREE_WITHOUT_NOISE = {table: _FREE[table] for table in ("study", "success", "speed")}
"""Without noise no epsilon says what more rounds or other rates let out."""


def terms_of(settings: Settings, *, minimum: int) -> Terms:
    """The terms of a study whose plan accepts at least `minimum` contributions."""
    privacy = settings.privacy
    tables: dict[str, dict[str, Any]] = msgspec.to_builtins(settings)
    free = _FREE_WITHOUT_NOISE if privacy.epsilon is None else _FREE
    rest = {
        name: {key: value for key, value in table.items() if key not in free.get(name, ())}
        for name, table in tables.items()
    }
    return Terms(
        unit=privacy.unit,
        noise=privacy.noise,
        noise_source=privacy.noise_source,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        max_norm=privacy.max_norm,
        minimum=minimum,
        colluding=settings.cohort.colluding,
        reviews=settings.governance.reviews,
        rest=hashlib.sha256(msgspec.json.encode(rest, order="deterministic")).hexdigest(),
    )


class ProposeStudy(Act, frozen=True, tag="propose-study"):
    """Ask for runs of one plan on named data for one purpose.

    Args:
        study: Its name.
        study_hash: SHA-256 of all settings that approvers approve.
        code_hash: SHA-256 of its code.
        plan_hash: SHA-256 of its plan.
        data: Commitment to each dataset's records, by dataset.
        purpose: What the result is for.
        terms: What decides over privacy.
        change: "C": full approval. "A", no effect on privacy, and "B", inside what is approved, change the
            study that `changes` names.
        changes: Id of a fully approved study; None for "C".
    """

    study: Name
    study_hash: Hash
    code_hash: Hash
    plan_hash: Hash
    data: dict[DatasetId, Hash]
    purpose: Purpose
    terms: Terms
    change: Literal["A", "B", "C"] = "C"
    changes: Hash | None = None

    @property
    def subjects(self) -> dict[str, str]:
        """Settings, code, plan, and every dataset's commitment."""
        named = {"study": self.study_hash, "code": self.code_hash, "plan": self.plan_hash}
        return named | {f"data/{name}": self.data[name] for name in sorted(self.data)}


class ReleaseModel(Act, frozen=True, tag="release-model"):
    """Ask to give a finished run's model to others."""

    run: Run
    model_hash: Hash
    claim_hash: Hash

    @property
    def subjects(self) -> dict[str, str]:
        """Model and claim."""
        return {"model": self.model_hash, "claim": self.claim_hash}


class PassReview(Act, frozen=True, tag="pass-review"):
    """Let a run go on after a round at which it waits."""

    run: Run
    round_number: Round


class StopRun(Act, frozen=True, tag="stop-run"):
    """End a run for good, and its release with it."""

    run: Run


class OpenIncident(Act, frozen=True, tag="open-incident"):
    """Say that something is wrong; the clock of its severity starts."""

    severity: Severity
    summary: Text
    run: Annotated[str, Meta(max_length=100)] = ""


class AcknowledgeIncident(Act, frozen=True, tag="acknowledge-incident"):
    """Say that somebody is at it."""

    incident: Hash


class CloseIncident(Act, frozen=True, tag="close-incident"):
    """Say that it is over, and what was done."""

    incident: Hash
    summary: Text


class EraseDataset(Act, frozen=True, tag="erase-dataset"):
    """Say that a dataset's records are deleted; nothing can be run on it any more."""

    dataset: DatasetId


AnyAct = (
    FoundFederation
    | EnrolKey
    | RotateKey
    | RevokeKey
    | RegisterDataset
    | RaiseBudget
    | ProposeStudy
    | ReleaseModel
    | PassReview
    | StopRun
    | OpenIncident
    | AcknowledgeIncident
    | CloseIncident
    | EraseDataset
)
