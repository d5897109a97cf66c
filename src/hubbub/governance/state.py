"""What follows from the acts of a log: keys, datasets, runs, incidents, and every case with its decisions.

A *case* is one proposal and the decisions on it. It is pending until everybody whom the rules name has
approved; then it is in force and takes effect, once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from hubbub.errors import RefusedError
from hubbub.governance.acts import (
    Act,
    AnyAct,
    EnrolKey,
    EraseDataset,
    FoundFederation,
    PassReview,
    ProposeStudy,
    RaiseBudget,
    RegisterDataset,
    ReleaseModel,
    RevokeKey,
    RotateKey,
    Severity,
    StopRun,
)
from hubbub.governance.keys import Card
from hubbub.governance.roles import Escalation, Rule, Rules, packaged
from hubbub.governance.statement import Decision, Proposal

Kind = TypeVar("Kind", bound=Act)
Standing = Literal["pending", "in force", "denied", "lapsed"]


@dataclass
class Holder:
    """A card that was in force from an epoch of the roster on, and how it ended."""

    card: Card
    epoch: int
    revoked_at: int | None = None
    reason: Literal["", "rotated", "left", "stolen"] = ""


@dataclass
class Dataset:
    """A registered dataset. Versions with one `account` share its budget."""

    registered: RegisterDataset
    account: str
    is_erased: bool = False


@dataclass
class Budget:
    """What an account may spend."""

    unit: str
    epsilon: float
    delta: float
    kind: Literal["filter", "gaussian", "unbounded"] = "filter"

    def __str__(self) -> str:
        noise = {
            "filter": "",
            "gaussian": ", for Gaussian noise without sampling",
            "unbounded": ", which bounds nothing",
        }
        return f"budget of epsilon {self.epsilon:.12g} at delta {self.delta:.12g} per {self.unit}{noise[self.kind]}"


@dataclass
class Run:
    """A run that the log tells of: ids of the studies of its plan and code in force when it started, and its records.

    Args:
        studies: Oldest first; which one allowed it is told by the records: `State.case_of`.
        data: Commitment to each participant's records, as it joined.
    """

    studies: tuple[str, ...]
    data: dict[str, str] = field(default_factory=dict[str, str])
    rounds: int = 0
    model_hash: str | None = None
    is_stopped: bool = False
    reviews: set[int] = field(default_factory=set[int])


@dataclass
class Incident:
    """An incident, from opening to closing."""

    severity: Severity
    summary: str
    run: str
    opened_at: int
    acknowledged_at: int | None = None
    closed_at: int | None = None


@dataclass
class Case:
    """A proposal, who asked, and who decided what (by key)."""

    id: str
    proposal: Proposal
    proposer: Card
    rule: Rule
    decisions: dict[str, tuple[Card, Decision]] = field(default_factory=dict[str, tuple[Card, Decision]])
    status: Literal["pending", "in force", "denied"] = "pending"

    @property
    def act(self) -> AnyAct:
        """What is asked for."""
        return self.proposal.act


class Missing(msgspec.Struct, frozen=True):
    """Who must still approve: so many of a role, of one organisation if it is named."""

    role: str
    organisation: str
    count: int

    def __str__(self) -> str:
        of = f" of {self.organisation}" if self.organisation else ""
        return f"{self.count} {self.role}{of}"


@dataclass
class State:
    """Everything that questions are answered from."""

    id: str = ""
    name: str = ""
    rules: Rules = field(default_factory=lambda: packaged()[0])
    epoch: int = 0
    latest: int = 0
    holders: dict[str, Holder] = field(default_factory=dict[str, Holder])
    datasets: dict[str, Dataset] = field(default_factory=dict[str, Dataset])
    budgets: dict[str, Budget] = field(default_factory=dict[str, Budget])
    cases: dict[str, Case] = field(default_factory=dict[str, Case])
    runs: dict[str, Run] = field(default_factory=dict[str, Run])
    incidents: dict[str, Incident] = field(default_factory=dict[str, Incident])

    @property
    def is_sandbox(self) -> bool:
        """Whether nothing is founded: one person, everything automatic."""
        return not self.id

    def in_force(self) -> list[Card]:
        """Cards in force, by key id."""
        return [self.holders[key].card for key in sorted(self.holders) if self.holders[key].revoked_at is None]

    def held(self) -> dict[str, str]:
        """The newest dataset that each participant holds, by the participant's name."""
        return {known.registered.participant: key for key, known in self.datasets.items() if not known.is_erased}

    def case_of(self, run: str) -> Case | None:
        """The newest study that was in force when a run started and is on exactly the records that joined it."""
        begun = self.runs.get(run)
        cases = [self.cases[key] for key in begun.studies] if begun else []
        fitting = [case for case in cases if begun and self._records(case.act) == begun.data]
        return fitting[-1] if fitting else None

    def _records(self, act: AnyAct) -> dict[str, str]:
        """What participants join a study with: its commitments, by participant."""
        data = act.data if isinstance(act, ProposeStudy) else {}
        return {self.datasets[name].registered.participant: data[name] for name in data}

    def study_of(self, run: str) -> ProposeStudy | None:
        """The approved study that a run belongs to."""
        case = self.case_of(run)
        return case.act if case and isinstance(case.act, ProposeStudy) else None

    def rule(self, act: Act, proposer: str) -> Rule:
        """The rule for an act that this key asks for."""
        match act:
            case RegisterDataset() if act.is_disjoint:
                kind = "register-disjoint-version"
            case RotateKey() if act.key != proposer:
                kind = "replace-stolen-key"
            case ProposeStudy() if act.change != "C":
                kind = f"change-{act.change.lower()}"
            case _:
                kind = act.kind
        return self.rules.acts[kind]

    def touched(self, act: Act) -> set[str]:
        """Organisations whose data, run or key an act touches; none for what is not known."""
        owners: Iterable[str] = ()
        match act:
            case RegisterDataset():
                owners = [act.organisation]
            case EnrolKey():
                owners = [act.card.organisation]
            case RaiseBudget() | EraseDataset():
                owners = self._owners([act.dataset])
            case ProposeStudy():
                owners = self._owners(act.data)
            case ReleaseModel() | PassReview():
                study = self.study_of(act.run)
                owners = self._owners(study.data) if study else ()
            case StopRun():
                joined = self.runs[act.run].data if act.run in self.runs else {}
                owners = [holder.card.organisation for holder in self.holders.values() if holder.card.name in joined]
            case RotateKey() | RevokeKey():
                owners = [self.holders[act.key].card.organisation] if act.key in self.holders else ()
            case _:
                pass
        return set(owners)

    def _owners(self, datasets: Iterable[str]) -> list[str]:
        return [self.datasets[name].registered.organisation for name in datasets if name in self.datasets]

    def is_one_of(self, card: Card, selector: str, act: Act) -> bool:
        """Whether the rules' words "ROLE", "own ROLE", "self" or "founder" mean this holder."""
        relation, _, role = selector.rpartition(" ")
        if selector == "self":
            return isinstance(act, RotateKey) and act.key == card.key_id
        if selector == "founder":
            return isinstance(act, FoundFederation) and card in act.cards
        return card.role == role and (not relation or card.organisation in self.touched(act))

    def missing(self, case: Case, time: int) -> list[Missing]:
        """Who must still approve a case at this time; nobody: it is approved.

        Guarantees:
            An approval that has expired or was signed with a stolen key is not counted; a role's approvals count
            one for each organisation. Whoever asked has none: `admit` refuses it.
        """
        signers = [card for card, decision in case.decisions.values() if self._counts(card, decision, time)]
        needed: list[Missing] = []
        for selector, count in case.rule.approve.items():
            signed = [card for card in signers if self.is_one_of(card, selector, case.act)]
            role = selector.removeprefix("own ")
            if isinstance(case.act, FoundFederation):
                have = {card.name for card in signed} | {case.proposer.name}
                absent = [card for card in case.act.cards if card.name not in have]
                needed += [Missing(card.name, card.organisation, 1) for card in absent]
            elif role != selector:
                for owner in sorted(self.touched(case.act)) or [""]:  # nobody owns it: nobody can approve
                    people = len({card.name for card in signed if card.organisation == owner})
                    needed += [Missing(role, owner, count - people)] * (people < count)
            else:
                organisations = len({card.organisation for card in signed})
                needed += [Missing(role, "", count - organisations)] * (organisations < count)
        return needed

    def _counts(self, card: Card, decision: Decision, time: int) -> bool:
        return decision.verdict == "approve" and time < decision.expires and not self.is_stolen(card)

    def is_stolen(self, card: Card) -> bool:
        """Whether a card's keys were reported stolen."""
        return card.key_id in self.holders and self.holders[card.key_id].reason == "stolen"

    def standing(self, case: Case, time: int) -> Standing:
        """Where a case stands at this time; a change stands no longer than the study that it changes."""
        if case.status == "denied":
            return "denied"
        if case.status == "pending":
            return "pending" if time < case.proposal.expires else "lapsed"
        if not isinstance(case.act, ProposeStudy | ReleaseModel):
            return "in force"  # what was done once is done
        base = self.changed(case)
        holds = not self.missing(case, time) and not self.is_stolen(case.proposer)
        return "in force" if holds and (base is None or self.standing(base, time) == "in force") else "lapsed"

    def escalation(self, incident: Incident) -> Escalation:
        """How soon an incident must be acknowledged, and who may besides afterwards."""
        return self.rules.escalation[incident.severity]

    def deadline(self, incident: Incident) -> int:
        """Second from which an incident that nobody acknowledged is the next role's too."""
        return incident.opened_at + self.escalation(incident).acknowledge_hours * 3600

    def cases_of(self, kind: type[Kind]) -> list[tuple[Case, Kind]]:
        """Cases that ask for one kind of act, with that act, oldest first."""
        return [(case, case.act) for case in self.cases.values() if isinstance(case.act, kind)]

    def studies(self, plan_hash: str) -> list[tuple[Case, ProposeStudy]]:
        """Cases that ask for runs of this plan, oldest first."""
        return [pair for pair in self.cases_of(ProposeStudy) if pair[1].plan_hash == plan_hash]

    def changed(self, case: Case) -> Case | None:
        """The case of the study that a study changes."""
        return self.cases[case.act.changes] if isinstance(case.act, ProposeStudy) and case.act.changes else None


def refuse(who: str, rule: str, found: str, hint: str) -> RefusedError:
    """A refusal of an act, ready to be raised."""
    return RefusedError(f"{who}, {rule}, found {found}; nothing done", hint=hint)
