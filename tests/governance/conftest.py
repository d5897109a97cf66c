"""A federation of two clinics, a lab, a board, an operator and an auditor, in memory."""

import copy
import datetime as dt
import functools
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hubbub.events import ParticipantJoined, RoundClosed, RunFinished, RunStarted
from hubbub.governance import Federation, Keys, Terms, decide, propose, read
from hubbub.governance.acts import FoundFederation, ProposeStudy, RegisterDataset
from hubbub.governance.keys import Card, fingerprint, transport_key
from hubbub.governance.roles import Tightening, packaged

DAY = 86_400
START = 1_750_000_000
PEOPLE = {
    "owner-1": ("clinic-1", "data-owner"),
    "owner-1b": ("clinic-1", "data-owner"),
    "owner-2": ("clinic-2", "data-owner"),
    "scientist": ("lab", "data-scientist"),
    "scientist-b": ("lab", "data-scientist"),
    "officer": ("board", "privacy-officer"),
    "officer-b": ("board", "privacy-officer"),
    "officer-1": ("clinic-1", "privacy-officer"),
    "operator": ("it", "operator"),
    "auditor": ("watch", "auditor"),
    "node-1": ("clinic-1", "node"),
    "node-2": ("clinic-2", "node"),
}
TERMS = Terms(
    unit="example",
    noise="server",
    noise_source="os",
    epsilon=2.0,
    delta=1e-5,
    max_norm=1.0,
    minimum=2,
    colluding=1,
    reviews=(2,),
    rest="e" * 64,
)


def digest(word):
    return hashlib.sha256(word.encode()).hexdigest()


def made_keys(name, organisation, role, version=""):
    """Keys that are the same in every test: from a name instead of from the operating system."""
    seeds = tuple(hashlib.sha256(f"{name}{version}/{use}".encode()).digest() for use in range(4))
    public = [Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex() for seed in seeds[:3]]
    public.append(fingerprint(transport_key(seeds[3]).public_key()))
    shown = dict(zip(("identity", "protocol", "witness", "transport"), public, strict=True))
    card = Card(name=name, organisation=organisation, role=role, **shown)
    signature = Ed25519PrivateKey.from_private_bytes(seeds[0]).sign(card.message).hex()
    return Keys(
        Card(**{field: getattr(card, field) for field in card.__struct_fields__[:-1]}, signature=signature), seeds
    )


KEYS = {name: made_keys(name, *who) for name, who in PEOPLE.items()}


class World:
    """A log in a list, the state that follows, and a clock."""

    def __init__(self):
        self.keys = dict(KEYS)
        self.log = []
        self.state = Federation()
        self.now = START

    def record(self, event):
        self.state.apply(event)
        self.log.append(event)

    def propose(self, who, act, *, days=30, at=None):
        """Sign and record a proposal; its id."""
        envelope = self.proposal(who, act, days=days, at=at)
        self.record(self.state.event(envelope, self.now))
        return read(envelope).id

    def proposal(self, who, act, *, days=30, at=None):
        at = self.now if at is None else at
        key, until = self.keys[who].identity, at + int(days * DAY)
        return propose(act, key, at=at, expires=until, federation=self.state.id)

    def decide(self, who, case, verdict="approve", *, days=30, at=None, conditions=()):
        """Sign and record a decision."""
        envelope = self.decision(who, case, verdict, days=days, at=at, conditions=conditions)
        self.record(self.state.event(envelope, self.now))

    def decision(self, who, case, verdict="approve", *, days=30, at=None, conditions=()):
        at = self.now if at is None else at
        key = self.keys[who].identity
        return decide(case, key, at=at, expires=at + int(days * DAY), verdict=verdict, conditions=conditions)

    def agree(self, who, act, *others, days=30):
        """Propose, and let others approve."""
        case = self.propose(who, act, days=days)
        for other in others:
            self.decide(other, case, days=days)
        return case

    def standing(self, case):
        return self.state.standing(self.state.cases[case], self.now)

    def replayed(self):
        """What an auditor who has the log alone finds."""
        state = Federation()
        for event in self.log:
            state.apply(event)
        return state

    # --- acts that most tests need

    def founding(self, tighter=None, **changes):
        fields = {"name": "heart", "cards": tuple(keys.card for keys in KEYS.values()), "roles": packaged()[1]}
        return FoundFederation(**(fields | {"tighter": tighter or Tightening()} | changes))

    def found(self, tighter=None):
        """Found by everybody; the same founding is checked once and copied from then on."""
        if tighter is not None:
            return self._found(tighter)
        log, state = founded_once()
        self.log, self.state = list(log), copy.deepcopy(state)
        return self

    def _found(self, tighter):
        case = self.propose("operator", self.founding(tighter))
        for name in PEOPLE:
            if name != "operator":
                self.decide(name, case)
        return self

    def dataset(self, number=1, version="", **changes):
        fields = {
            "dataset": digest(f"data-{number}{version}")[:32],
            "participant": f"node-{number}",
            "organisation": f"clinic-{number}",
            "unit": "example",
            "purposes": ("research", "quality"),
            "retention": "2030-12-31",
            "epsilon": 8.0,
            "delta": 1e-5,
        }
        fields |= changes
        if isinstance(fields["retention"], str):
            fields["retention"] = dt.date.fromisoformat(fields["retention"])
        return RegisterDataset(**fields)

    def register(self, number=1, **changes):
        """Register a clinic's dataset; its id."""
        act = self.dataset(number, **changes)
        self.agree(f"owner-{number}", act, "officer")
        return act.dataset

    def study(self, *datasets, **changes):
        fields = {
            "study": "heart",
            "study_hash": digest("study"),
            "code_hash": digest("code"),
            "plan_hash": digest("plan"),
            "data": {name: digest(name) for name in datasets},
            "purpose": "research",
            "terms": TERMS,
        }
        return ProposeStudy(**(fields | changes))

    def approve_study(self, *datasets, days=30, **changes):
        """A study on these datasets of clinics 1 and 2, with everybody's approval; its case."""
        study = self.study(*datasets, **changes)
        owners = sorted(f"owner-{name[-1]}" for name in self.state.touched(study))
        return self.agree("scientist", study, *owners, "officer", days=days)

    def run(self, name="run-1", *, rounds=3, finish=True, commitments=None, **hashes):
        """What an engine records of a run."""
        plan, code = hashes.get("plan", digest("plan")), hashes.get("code", digest("code"))
        self.record(
            RunStarted(
                run=name,
                study="heart",
                plan_hash=plan,
                code_hash=code,
                noise_source="os",
                is_test_public=False,
                versions={},
            )
        )
        held = {one.registered.participant: digest(key) for key, one in self.state.datasets.items()}
        for node, commitment in (held | (commitments or {})).items():
            self.record(ParticipantJoined(run=name, participant=node, slots=1, data_commitment=commitment))
        for number in range(1, rounds + 1):
            self.record(RoundClosed(run=name, round_number=number, attempt=1, participants=2, step_norm=0.0))
        if finish:
            self.record(RunFinished(run=name, rounds=rounds, model_hash=digest("model")))
        return name


@functools.cache
def founded_once():
    world = World()._found(None)
    return tuple(world.log), world.state


@pytest.fixture
def world():
    """Give an empty log: a sandbox."""
    return World()


@pytest.fixture
def founded(world):
    """Give a federation with everybody's keys and nothing else."""
    return world.found()


@pytest.fixture
def approved(founded):
    """Give a federation with two datasets and an approved study; the case is `study_case`."""
    founded.datasets = (founded.register(1), founded.register(2))
    founded.study_case = founded.approve_study(*founded.datasets)
    return founded


@pytest.fixture(scope="session")
def make_world():
    """Make an empty log."""
    return World


@pytest.fixture(scope="session", name="digest")
def give_digest():
    """Give SHA-256 of a word in hexadecimal."""
    return digest


@pytest.fixture(scope="session", name="made_keys")
def give_made_keys():
    """Give keys that follow from a name."""
    return made_keys
