"""A federation: the fold of everything that was proposed and decided, and the questions others ask of it.

What needs permission is a signed proposal; it comes into force when enough others have signed decisions on
exactly its bytes. Nothing else changes who may do what. Without a founding act it is a sandbox: one person,
everything automatic, and claims say so.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from hubbub.errors import HubbubError, RefusedError, VerificationError
from hubbub.events import AnyEvent, Decided, ParticipantJoined, Proposed, RoundClosed, RunFinished, RunStarted
from hubbub.governance.acts import FoundFederation, ProposeStudy, ReleaseModel, Terms
from hubbub.governance.admission import DAY, admit
from hubbub.governance.checks import check_usable
from hubbub.governance.effects import take_effect
from hubbub.governance.keys import Card
from hubbub.governance.state import Case, Run, State, refuse
from hubbub.governance.statement import Proposal, Signed, read

EARLY = 600
"""Most seconds by which a signer's clock may be ahead."""


class Permit(msgspec.Struct, frozen=True, kw_only=True):
    """What allows a run or a release: the case, who approved it on which conditions, until when."""

    case: str
    approved_by: tuple[str, ...]
    conditions: tuple[str, ...]
    expires: int


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """Participants' cards in force, by key id, as sessions bind them."""

    federation: str
    epoch: int
    members: tuple[Card, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the roster."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """Something whose deadline has passed, and who must act: a role, of one organisation if it is named."""

    kind: Literal["incident", "retention"]
    id: str
    role: str
    organisation: str
    deadline: int


@dataclass
class Federation(State):
    """The state after some events of a log; it starts empty, as a sandbox.

    Guarantees:
        The same events give the same state. No act comes into force before everybody whom the rules name has
        approved exactly its bytes, and whoever asked is never one of them.
    """

    entries: int = 0
    """Events taken in: the index of the next one in its log."""

    def apply(self, event: AnyEvent) -> None:
        """Take one more event in.

        Raises:
            VerificationError: An act that was not valid where it stands in the log; its index is named, and the
                state is what it was.
        """
        match event:
            case Proposed() | Decided():
                self._take(event)
            case RunStarted():
                self.runs.setdefault(event.run, Run(self._studies_in_force(event)))
            case ParticipantJoined() if event.run in self.runs:
                self.runs[event.run].data.setdefault(event.participant, event.data_commitment)
            case RoundClosed() if event.run in self.runs:
                self.runs[event.run].rounds = max(self.runs[event.run].rounds, event.round_number)
            case RunFinished() if event.run in self.runs and self.runs[event.run].model_hash is None:
                self.runs[event.run].model_hash = event.model_hash
            case _:
                pass
        self.entries += 1

    def _studies_in_force(self, started: RunStarted) -> tuple[str, ...]:
        return tuple(
            case.id
            for case, study in self.studies(started.plan_hash)
            if study.code_hash == started.code_hash and self.standing(case, self.latest) == "in force"
        )

    def check(self, envelope: str, now: int) -> Signed:
        """Read an envelope and refuse it if it may not be recorded now; changes nothing.

        Raises:
            InputError: It is no envelope of ours.
            RefusedError: An unknown or ended key, a role that may not, the wrong order, the requester's own
                approval, changed bytes, a second decision, a purpose or a date that an owner does not allow.
        """
        signed = read(envelope)
        at = signed.predicate.at
        if not now - DAY <= at <= now + EARLY:
            raise refuse("act", "must be recorded within a day of signing", f"{now - at} s between", "sign it again")
        admit(self, signed, max(now, at, self.latest))
        return signed

    def event(self, envelope: str, now: int) -> Proposed | Decided:
        """The event that records an envelope, if it may be recorded now: for `decide` of an event log.

        Raises:
            InputError, RefusedError: As `check`.
        """
        signed = self.check(envelope, now)
        return Proposed(envelope=envelope) if isinstance(signed.predicate, Proposal) else Decided(envelope=envelope)

    def _take(self, event: Proposed | Decided) -> None:
        try:
            signed = read(event.envelope)
            if isinstance(event, Proposed) != isinstance(signed.predicate, Proposal):
                raise refuse("event", "must hold what its name says", "the other kind", "hubbub log show")
            time = max(signed.predicate.at, self.latest)
            card = admit(self, signed, time)
        except HubbubError as error:
            raise VerificationError(
                f"entry {self.entries}, must be a valid act where it stands, {error.message}",
                hint="ask the keeper of the log for the true one, and open an incident",
            ) from None
        self.latest = time
        case = self._record(signed, card)
        if case.status == "pending" and not self.missing(case, time):
            case.status = "in force"
            take_effect(case.act, self, case, time)

    def _record(self, signed: Signed, card: Card) -> Case:
        if isinstance(signed.predicate, Proposal):
            rule = self.rule(signed.predicate.act, card.key_id)
            return self.cases.setdefault(signed.id, Case(signed.id, signed.predicate, card, rule))
        case = self.cases[signed.about]
        case.decisions[card.key_id] = (card, signed.predicate)
        if signed.predicate.verdict == "deny":
            case.status = "denied"
        return case

    def may_run(
        self,
        *,
        plan_hash: str,
        study_hash: str,
        code_hash: str,
        datasets: Mapping[str, str],
        purpose: str,
        terms: Terms,
        now: int,
    ) -> Permit | None:
        """What allows a run of this plan now; None in a sandbox, where nobody is asked.

        Args:
            plan_hash: Of the plan that is about to run.
            study_hash: Of its settings.
            code_hash: Of its code.
            datasets: Commitment to each dataset's records, by dataset, all of them.
            purpose: Of the study.
            terms: As the asker computed them from the study itself (`terms_of`): a change inside the envelope
                is approved by nobody, and held to its terms here.
            now: Seconds since 1970.

        Raises:
            RefusedError: Nobody proposed it, it is not in force, or something differs from what was approved.
        """
        if self.is_sandbox:
            return None
        now = max(now, self.latest)  # a clock that is behind the log makes nothing last longer
        what, hint = f"plan {plan_hash[:16]}", "hubbub propose study STUDY"
        asked = (study_hash, code_hash, dict(datasets), purpose, terms)
        cases = [(case, _asked_for(study)) for case, study in self.studies(plan_hash)]
        same = [case for case, approved in cases if approved == asked]
        if cases and not same:
            differs = [pair[0] != pair[1] for pair in zip(cases[-1][1], asked, strict=True)]
            name = ("settings", "code", "data", "purpose", "terms")[differs.index(True)]
            raise _not_allowed(what, f"must have the {name} that was proposed", "another", hint)
        case = self._in_force(same, what, hint, now)
        for dataset in datasets:
            check_usable(self, dataset, now)
        return self._permit(case)

    def may_release(self, *, run: str, model_hash: str, claim_hash: str, now: int) -> Permit | None:
        """What allows this model to leave under this claim; None in a sandbox.

        Raises:
            RefusedError: Nobody asked, or not everybody who must has approved exactly these bytes.
        """
        if self.is_sandbox:
            return None
        now = max(now, self.latest)  # a clock that is behind the log makes nothing last longer
        what, hint = f"release of {run}", "hubbub propose release DIR, the folder of the run"
        asked = [(case, act) for case, act in self.cases_of(ReleaseModel) if act.run == run]
        same = [case for case, act in asked if (act.model_hash, act.claim_hash) == (model_hash, claim_hash)]
        if asked and not same:
            raise _not_allowed(what, "must be of the model and the claim that were proposed", "others", hint)
        case = self._in_force(same, what, hint, now)
        if self.is_stopped(run):
            raise _not_allowed(what, "needs a run that nobody stopped", "a stopped one", "hubbub approvals")
        return self._permit(case)

    def review_passed(self, run: str, round_number: int) -> bool:
        """Whether a run may go on after a round at which it waits."""
        return self.is_sandbox or (run in self.runs and round_number in self.runs[run].reviews)

    def is_stopped(self, run: str) -> bool:
        """Whether somebody who may has ended a run."""
        return run in self.runs and self.runs[run].is_stopped

    def roster(self) -> Roster:
        """The participants' keys in force."""
        members = tuple(card for card in self.in_force() if card.role == "node")
        return Roster(federation=self.id, epoch=self.epoch, members=members)

    def holder_of_transport(self, fingerprint: str) -> Card | None:
        """Who is at the other end of a TLS connection with this key: a holder in force; None is nobody.

        While nothing is founded, the founders who are asked to begin: they sign over such connections.
        """
        cards = self.in_force()
        if self.is_sandbox:
            cards = [card for _, founding in self.foundings() for card in founding.cards]
        found = {card for card in cards if card.transport == fingerprint}
        return found.pop() if len(found) == 1 else None

    def foundings(self) -> list[tuple[Case, FoundFederation]]:
        """Founding acts that wait for somebody."""
        return [pair for pair in self.cases_of(FoundFederation) if self.standing(pair[0], self.latest) == "pending"]

    def due(self, now: int) -> list[Due]:
        """What should have happened by now: incidents nobody acknowledged, datasets past their last day."""
        late = [
            Due(kind="incident", id=key, role=self.escalation(item).next, organisation="", deadline=self.deadline(item))
            for key, item in self.incidents.items()
            if item.acknowledged_at is None and now >= self.deadline(item)
        ]
        late += [
            Due(
                kind="retention",
                id=key,
                role="data-owner",
                organisation=item.registered.organisation,
                deadline=item.registered.ends,
            )
            for key, item in self.datasets.items()
            if not item.is_erased and now >= item.registered.ends
        ]
        return sorted(late, key=lambda item: item.deadline)

    def pending(self, now: int) -> list[Case]:
        """Proposals that wait for somebody, oldest first; none to found what is founded."""
        waiting = [case for case in self.cases.values() if self.standing(case, now) == "pending"]
        return [case for case in waiting if self.is_sandbox or not isinstance(case.act, FoundFederation)]

    def _in_force(self, cases: list[Case], what: str, hint: str, now: int) -> Case:
        """The newest of some cases that is in force."""
        standing = {case.id: self.standing(case, now) for case in cases}
        found = [case for case in cases if standing[case.id] == "in force"]
        if found:
            return found[-1]
        if not cases:
            raise _not_allowed(what, "must be approved", "no proposal", hint)
        newest, waits = standing[cases[-1].id], ", ".join(map(str, self.missing(cases[-1], now)))
        words = f"it {newest}" + (f" without {waits}" if waits else "")
        raise _not_allowed(what, "must be approved", words, "hubbub approvals" if newest == "pending" else hint)

    def _permit(self, case: Case) -> Permit:
        """The approvals of a case, and of the study that it changes."""
        base = self.changed(case)
        decided = case.decisions | (base.decisions if base else {})
        approvals = [decision for _, decision in decided.values()]
        return Permit(
            case=case.id,
            approved_by=tuple(sorted(decided)),
            conditions=tuple(condition for decision in approvals for condition in decision.conditions),
            expires=min(decision.expires for decision in approvals),
        )


def _asked_for(study: ProposeStudy) -> tuple[str, str, dict[str, str], str, Terms]:
    return study.study_hash, study.code_hash, study.data, study.purpose, study.terms


def _not_allowed(what: str, rule: str, found: str, hint: str) -> RefusedError:
    return RefusedError(f"{what}, {rule}, found {found}; nothing trained, nothing spent, nothing released", hint=hint)
