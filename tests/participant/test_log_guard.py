"""Every attack on the log that a participant enters a session under ends in the refusal named for it.

An attack plays it out in a folder of its own and returns its world and whether it succeeded. test_guard_bites.py
removes the one check that stands against each and sees it succeed. The log, its acts, the heads and the cosignatures
are real; the witnesses w1 to w4 sign what they are told to here, since each attack says which of them lie.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import shutil

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hubbub.accounting.accounts import owners_grant
from hubbub.errors import HubbubError, InputError, VerificationError
from hubbub.events import (
    BudgetCharged,
    BudgetReserved,
    BudgetSettled,
    Decided,
    ParticipantJoined,
    RoundClosed,
    RoundFailed,
    RunStarted,
    encode_event,
)
from hubbub.governance.acts import EnrolKey, RevokeKey, StopRun
from hubbub.governance.federation import Roster
from hubbub.participant import LogGuard, Memory, Opening, Site, read_opening
from hubbub.secagg import SUITE, Session
from hubbub.secagg.closing import Receipt, close_session
from hubbub.secagg.messages import Envelope, Signed
from hubbub.tlog import Note, Policy, Signer, Store, sign_checkpoint
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import COSIGNATURE, ED25519
from hubbub.tlog.policy import majority_policy
from hubbub.tlog.verify import is_fork


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


federations = load(pathlib.Path(__file__).parents[1] / "governance" / "conftest.py")
replace = msgspec.structs.replace
HOUR = 3600
NOISE = {"@": "GaussianDpEvent", "noise_multiplier": 2.0}
WITNESSES = ("w1", "w2", "w3", "w4")


@functools.cache
def key(name, kind):
    return Signer(name, kind, federations.hashlib.sha256(name.encode()).digest())


LOG = key("example.com/log", ED25519)
POLICY = majority_policy(LOG.verifier, {name: key(name, COSIGNATURE).verifier for name in WITNESSES}, 1)


def word(what):
    return federations.hashlib.sha256(what.encode()).digest()


@functools.cache
def approved():
    """A federation of two clinics with an approved study: its log, once for all tests."""
    world = federations.World().found()
    world.datasets = (world.register(1), world.register(2))
    world.approve_study(*world.datasets, days=300)
    return world


class World:
    """A coordinator that keeps a log, and participants that guard themselves."""

    def __init__(self, folder, *, rounds=4):
        self.folder = folder
        self.federation = federations.World()
        self.federation.log, self.federation.state = list(approved().log), federations.copy.deepcopy(approved().state)
        self.rounds = rounds
        self.now = federations.START
        self.guards, self.memories, self.refusals, self.opened = {}, {}, {}, []
        self.record(*(owners_grant(self.federation.state, account, None) for account in approved().datasets))
        self.planned = self.reservation("")
        self.reserve("run-1")

    def close(self):
        for one in (*self.memories.values(), *self.opened):
            one.close()

    # --- the log ---

    @property
    def log(self):
        return self.federation.log

    def record(self, *events):
        for event in events:
            self.federation.record(event)

    def reservation(self, run, **changes):
        """What a run of the plan sets aside."""
        made = BudgetReserved(
            run=run, plan_hash=federations.digest("plan"), unit="example", datasets=approved().datasets, dp_event=NOISE,
            attempts=self.rounds, inflation=0.0,
        )  # fmt: skip
        return replace(made, **changes)

    def reserve(self, run, *, started=True, **changes):
        """Record a run up to its reservation, whose index is its number."""
        if started:
            code = federations.digest("code")
            self.record(
                RunStarted(
                    run=run, study="heart", plan_hash=federations.digest("plan"), code_hash=code, noise_source="os",
                    is_test_public=False, versions={},
                ),
                *(
                    ParticipantJoined(
                        run=run, participant=f"node-{at}", slots=1, data_commitment=federations.digest(name)
                    )
                    for at, name in enumerate(approved().datasets, start=1)
                ),
            )  # fmt: skip
        self.run, self.name = len(self.log), run
        self.record(self.reservation(run, **changes))

    def charge(self, round_number, attempt=1):
        self.record(BudgetCharged(run=self.name, round_number=round_number, attempt=attempt))

    def store(self, events):
        """A log of these events."""
        store = Store(self.folder / f"log-{len(self.opened)}.db")
        self.opened.append(store)
        store.append(lambda _: [encode_event(event) for event in events])
        return store

    def head(self, events=None, *, by=WITNESSES, at=None, log=LOG):
        """The head of these events, default of the whole log, cosigned by some witnesses."""
        note = sign_checkpoint(self.store(self.log if events is None else events), log)
        cosignatures = tuple(key(name, COSIGNATURE).sign(note.text, self.now if at is None else at) for name in by)
        return Note(note.text, note.signatures + cosignatures)

    # --- sessions ---

    def session(self, note, round_number, attempt=1, **changes):
        head, roster = parse_checkpoint(note.text), self.federation.state.roster()
        made = Session(
            suite=SUITE, coordinator=word("coordinator"), study="heart", plan=word("plan"), run=self.run,
            parameters=word("parameters"), roster_epoch=roster.epoch, roster=bytes.fromhex(roster.hash),
            payload="update", round_number=round_number, attempt=attempt, model=word("model"),
            log_origin=head.origin, log_size=head.size, log_root=head.root,
        )  # fmt: skip
        return replace(made, **changes)

    def path(self, name):
        return self.folder / name / "memory.db"

    def guard(self, name="node-1", **site):
        """The guard of a participant; made at first, and after each restart."""
        if name not in self.guards:
            self.memories[name] = Memory(self.path(name))
            account = approved().datasets[int(name[-1]) - 1]
            known = {"name": name, "account": account, "policy": POLICY, "org_min": 2} | site
            self.guards[name] = LogGuard(self.memories[name], Site(**known), self.now)
        return self.guards[name]

    def restart(self, name="node-1", **site):
        self.memories.pop(name).close()
        del self.guards[name]
        return self.guard(name, **site)

    def opening(self, note, events=None, name="node-1"):
        """What an honest coordinator shows this participant."""
        self.guard(name)
        start = self.memories[name].size
        events = self.log if events is None else events
        return Opening(bytes(note), start, tuple(encode_event(event) for event in events[start:]))

    def enter(self, session, opening, name="node-1"):
        """Ask a participant into a session, as its host does: whether it enters."""
        guard = self.guard(name)
        try:
            guard.check(read_opening(opening.encode()), session, self.now, self.planned)
            guard.mark(*session.mark)
        except HubbubError as error:
            self.refusals.setdefault(name, []).append(error.message)
            return False
        return True

    def ask(self, round_number, attempt=1, *, names=("node-1",), charge=True, **changes):
        """Open an attempt for some participants; its session if all of them entered it."""
        self.charge(round_number, attempt)
        note = self.head()
        session = self.session(note, round_number, attempt, **changes)
        entered = [self.enter(session, self.opening(note, name=name), name) for name in names]
        for name, is_in in zip(names, entered, strict=True):
            if is_in and charge:
                self.guard(name).charge(round_number, attempt)
        return session if all(entered) else None

    def end(self, session, **fields):
        """Record a session's result."""
        self.record(
            RoundClosed(
                run=self.name, round_number=session.round_number, attempt=session.attempt, participants=2,
                step_norm=1.0, session=session.id.hex(), **fields,
            )
        )  # fmt: skip

    def consent(self, session, name="node-1"):
        """A participant's reply to `survivors`; what stands in its leaf."""
        said = Signed(b"consent of " + name.encode(), bytes(64))
        self.guard(name).consent(Envelope("consent", session.id, said.body, said.signature, b"").encode())
        return said.encode()

    def close_over(self, session, consents):
        """Record a session over these members; their receipts."""
        fields = {"salt": word("rho"), "adverts": word("A"), "survivors": word("hU"), "aggregate": b"sum"}
        closing, receipts = close_session(consents, most=2, **fields)
        self.end(session, **{name: value.hex() for name, value in msgspec.structs.asdict(closing).items()})
        return receipts

    def play(self, *rounds, **options):
        """Honest rounds; the last session."""
        for number in rounds:
            session = self.ask(number, **options)
            self.end(session)
        return session

    def charges(self, name="node-1"):
        return [mark[1:] for mark in self.memories[name].charges]


def refused(world, words, name="node-1"):
    return any(words in message for message in world.refusals.get(name, ()))


# --- a memory that was put back ---


def put_back(world, *rounds):
    """Play rounds, and put the directory back that was there before them."""
    world.memories.pop("node-1").close()
    del world.guards["node-1"]
    shutil.copytree(world.path("node-1").parent, world.folder / "yesterday")
    yield from (world.play(number) for number in rounds)
    world.memories.pop("node-1").close()
    del world.guards["node-1"]
    shutil.rmtree(world.path("node-1").parent)
    shutil.copytree(world.folder / "yesterday", world.path("node-1").parent)


def rollback_backup(folder):
    """The directory of yesterday comes back after round 1; the coordinator goes on with round 3."""
    world = World(folder)
    world.play(1)
    list(put_back(world, 2))
    entered = world.ask(3) is not None
    return world, entered and (2, 1) not in world.charges()


def rollback_and_old_head(folder):
    """Rounds 2 and 3 are forgotten; the coordinator first shows a head of some hours ago, from within round 2.

    It gives the session that it opens so up, and goes on with round 4.
    """
    world = World(folder)
    world.play(1)
    within = len(world.log) + 1
    for _ in put_back(world, 2, 3):
        world.now += HOUR
    events = world.log[:within]
    old = world.head(events, at=world.now - HOUR)
    session = world.session(old, 2, model=word("another"))
    world.enter(session, world.opening(old, events))
    world.record(RoundFailed(run="run-1", round_number=2, attempt=1, reason="few", session=session.id.hex()))
    return world, world.ask(4) is not None and (3, 1) not in world.charges()


def rollback_in_a_round(folder):
    """The directory comes back while round 2 is under way, which is then asked again and given up."""
    world = World(folder)
    world.play(1)
    steps = put_back(world, 2)
    next(steps)
    world.log.pop()  # its record, which is not there yet
    list(steps)
    note = world.head()
    session = world.session(note, 2, model=word("another"))
    world.enter(session, world.opening(note))
    world.record(RoundFailed(run="run-1", round_number=2, attempt=1, reason="few", session=session.id.hex()))
    assert world.ask(3) is not None
    return world, (2, 1) not in world.charges()


def closed_attempt(folder):
    """A participant that was away in round 2 is asked for it when it is over."""
    world = World(folder)
    world.play(1)
    world.play(2, names=())
    note = world.head()
    return world, world.enter(world.session(note, 2), world.opening(note))


# --- heads ---


def revoke(world):
    """End node-2's key; what the log held until then."""
    before = list(world.log)
    world.federation.agree("owner-2", RevokeKey(key=federations.KEYS["node-2"].card.key_id, reason="stolen"), "officer")
    return before


def fork_two_groups(folder):
    """One history for node-1, another for node-2; one of four witnesses signs both. Who has a quorum gets a session."""
    world = World(folder)
    base, charges = list(world.log), [BudgetCharged(run="run-1", round_number=1, attempt=at) for at in (1, 2)]
    one, other = [*base, *charges], [*base, *reversed(charges)]
    left, right = world.head(one, by=("w1", "w2", "w4")), world.head(other, by=("w3", "w4"))
    assert world.enter(world.session(left, 1), world.opening(left, one))
    world.forked = left, right
    world.sessions = world.session(left, 1).id, world.session(right, 1).id
    return world, world.enter(world.session(right, 1), world.opening(right, other, "node-2"), "node-2")


def other_history(folder):
    """All witnesses lie: a history in which what this participant saw never was."""
    world = World(folder)
    base = list(world.log)
    world.play(1)
    other = [*base, *[BudgetCharged(run="run-1", round_number=2, attempt=at) for at in (1, 2, 3)]]
    note = world.head(other)
    known = world.memories["node-1"].size
    shown = Opening(bytes(note), known, tuple(encode_event(event) for event in other[known:]))
    world.enter(world.session(note, 2), shown)
    return world, world.memories["node-1"].size == len(other)


def two_roots(folder):
    """All witnesses lie, and the log signed two heads of one size."""
    world = World(folder)
    base = list(world.log)
    session = world.ask(1)
    other = [*base, BudgetCharged(run="run-1", round_number=1, attempt=2)]
    note = world.head(other)
    world.enter(world.session(note, 1, 2), world.opening(note, other))
    return world, session is not None and not world.guard().evidence


def frozen_head(folder):
    """A revocation is in the log; the operator shows the head from before it, which all had cosigned."""
    world = World(folder)
    world.guard()
    world.charge(1)
    old = world.head()
    session = world.session(old, 1)
    before = revoke(world)
    world.now += 25 * HOUR
    return world, world.enter(session, world.opening(old, before))


def behind_its_back(folder):
    """All other witnesses cosign a history that the participant's own witness was never shown."""
    world = World(folder)
    world.guard(witness=key("w1", COSIGNATURE).verifier)
    world.charge(1)
    note = world.head(by=WITNESSES[1:])
    return world, world.enter(world.session(note, 1), world.opening(note))


def other_head(folder):
    """The session is bound to another log's head than the one that is shown."""
    world = World(folder)
    world.charge(1)
    note = world.head()
    session = world.session(note, 1, log_root=word("the root that the others are shown"))
    return world, world.enter(session, world.opening(note))


# --- what the log says ---


def left_out(folder):
    """A sum that holds a participant's vector is recorded as one of others, with a receipt of somebody else's."""
    world = World(folder)
    session = world.ask(1)
    world.consent(session)
    receipts = world.close_over(session, {"node-2": b"consent of node-2"})
    world.charge(2)
    note = world.head()
    shown = replace(world.opening(note), receipt=receipts["node-2"].encode())
    return world, world.enter(world.session(note, 2), shown)


def omitted_record(folder):
    """Round 1 ends without a record: whatever became of it, nobody can prove that it was opened."""
    world = World(folder)
    assert world.ask(1) is not None
    return world, world.ask(2) is not None


def sybil_org(folder):
    """The operator alone enrols five keys of one organisation and opens a session with them."""
    world = World(folder)
    for number in range(5):
        card = federations.made_keys(f"sybil-{number}", "shell", "node").card
        world.federation.propose("operator", EnrolKey(card=card))
    signed = world.federation.state.roster()
    sybils = tuple(federations.made_keys(f"sybil-{number}", "shell", "node").card for number in range(5))
    roster = Roster(federation=signed.federation, epoch=signed.epoch + 5, members=signed.members + sybils)
    session = world.ask(1, roster_epoch=roster.epoch, roster=bytes.fromhex(roster.hash))
    return world, session is not None


def sybils_of_one_organisation(folder):
    """An officer who signs anything: five keys of one organisation, properly enrolled."""
    world = World(folder)
    for number in range(5):
        card = federations.made_keys(f"sybil-{number}", "shell", "node").card
        world.federation.agree("operator", EnrolKey(card=card), "officer")
    return world, world.ask(1) is not None


def alone(folder):
    """The other organisation's key is ended; the session goes on with one."""
    world = World(folder)
    revoke(world)
    return world, world.ask(1) is not None


def uncharged_attempt(folder):
    """The coordinator asks for an attempt that it did not charge: no log would show it to a memory put back."""
    world = World(folder)
    note = world.head()
    return world, world.enter(world.session(note, 1), world.opening(note))


def other_plan(folder):
    """The reservation is of a plan that costs less."""
    world = World(folder)
    world.reserve("run-2", plan_hash=federations.digest("a cheaper plan"))
    return world, world.ask(1) is not None


def cheap_reservation(folder):
    """The plan's name is on the reservation, but fewer attempts are set aside than it makes."""
    world = World(folder)
    world.reserve("run-2", attempts=world.rounds - 1)
    return world, world.ask(1) is not None


def overspent(folder):
    """The log holds a third run of the plan, for which the owner's budget has no room."""
    world = World(folder)
    for run in ("run-2", "run-3"):
        world.reserve(run)
    return world, world.ask(1) is not None


def paid_back(folder):
    """So does this one; one more reservation, of a run that nobody plays, has an allowance below zero."""
    world = World(folder)
    for run in ("run-2", "run-3"):
        world.reserve(run)
    number, name = world.run, world.name
    world.reserve("refund", started=False, dp_event={"@": "NoOpDpEvent"}, inflation=-9.0)
    world.run, world.name = number, name
    return world, world.ask(1) is not None


def granted_before_the_founding(folder):
    """So does this one; a grant for the dataset stands before the founding act, when nobody had to register it."""
    world = World(folder)
    for run in ("run-2", "run-3"):
        world.reserve(run)
    grant = world.log.pop(len(approved().log))
    world.log.insert(0, replace(grant, epsilon=80.0))
    return world, world.ask(1) is not None


def stopped_run(folder):
    """An owner has stopped the run."""
    world = World(folder)
    world.federation.agree("owner-1", StopRun(run="run-1"))
    return world, world.ask(1) is not None


ATTACKS = {
    attack.__name__: attack
    for attack in (
        rollback_backup, rollback_and_old_head, rollback_in_a_round, closed_attempt, uncharged_attempt,
        fork_two_groups, other_history, two_roots, frozen_head, behind_its_back, other_head, left_out, omitted_record,
        sybil_org, sybils_of_one_organisation, alone, other_plan, cheap_reservation, overspent, paid_back,
        granted_before_the_founding, stopped_run,
    )
}  # fmt: skip

WORDS = {
    "rollback_backup": "node-1, must remember every attempt of its runs when it starts, its mark is (25, 1, 1), found "
    "1 in the log above it, the last (25, 2, 1): it was restored from a copy, or was away; nothing sent",
    "rollback_and_old_head": "must be shown, when it starts, a head that a quorum cosigned since, found an older one",
    "uncharged_attempt": "must find this attempt charged in the log before it is asked, found no charge",
    "closed_attempt": "must be asked for each (run, round, attempt) once and in order, its mark is (25, 2, 1), found "
    "(25, 2, 1)",
    "fork_two_groups": "must be cosigned by the policy's quorum, found 2 of 4 witnesses: w3, w4",
    "other_history": "must be shown a head that continues the 27 entries it knows, found entries that lead to another",
    "two_roots": "must be shown one history by example.com/log, found two signed heads of one size",
    "frozen_head": "must be shown a head that a quorum cosigned in the last 24 hours, found older cosignatures",
    "behind_its_back": "must be shown a head that it cosigned itself, found one that it did not",
    "other_head": "must be asked into a session bound to the head it is shown, found another",
    "left_out": "must be shown its receipt of the session it consented in last, (25, 1, 1), found one that does",
    "omitted_record": "must find the record of the session it entered last, (25, 1, 1), found none",
    "sybil_org": "must be asked with the signed roster in force, epoch 1, found another",
    "sybils_of_one_organisation": "must be in a roster with at most 1 keys of one organisation, found 5 of 'shell'",
    "alone": "must be in a roster of 2 organisations, found 1",
    "other_plan": "must find the plan that it knows reserved, found another plan",
    "cheap_reservation": "must find its plan reserved at its whole cost, found another reservation",
    "overspent": "must find room for its runs on the budget that its owner registered, found a filter of epsilon 8 per "
    "example and more reserved on it",
    "paid_back": "run refund, reserves one attempt or more at no negative cost, found otherwise in the log; nothing",
    "granted_before_the_founding": "must find room for its runs on the budget that its owner registered, found a "
    "filter of epsilon 80 per example",
    "stopped_run": "must find a run that nobody stopped, found it stopped",
}


@pytest.fixture
def world(tmp_path):
    """Give an honest world with a run that is about to begin."""
    made = World(tmp_path)
    yield made
    made.close()


def played(name, folder):
    world, succeeded = ATTACKS[name](folder)
    world.close()
    return world, succeeded


@pytest.mark.parametrize("name", WORDS)
def test_the_attack_ends_in_its_refusal(name, tmp_path):
    world, succeeded = played(name, tmp_path)
    assert not succeeded
    assert refused(world, WORDS[name], "node-2" if name == "fork_two_groups" else "node-1"), world.refusals


def test_an_attempt_that_is_asked_again_after_a_rollback_is_charged_when_it_is_entered(tmp_path):
    world, succeeded = played("rollback_in_a_round", tmp_path)
    assert not succeeded
    assert world.refusals == {}


# --- honest participants ---


def test_honest_rounds_are_entered_by_all(world):
    for number in (1, 2, 3):
        world.play(number, names=("node-1", "node-2"))
    assert world.refusals == {}
    assert world.charges("node-1") == world.charges("node-2") == [(1, 1), (2, 1), (3, 1)]
    assert world.memories["node-1"].last.mark == (world.run, 3, 1)


def test_the_roster_in_force_is_returned(world):
    world.charge(1)
    note = world.head()
    roster = world.guard().check(world.opening(note), world.session(note, 1), world.now, world.planned)
    assert roster == world.federation.state.roster()
    assert {card.name for card in roster.members} == {"node-1", "node-2"}


def test_a_failed_attempt_is_closed_by_its_record_and_followed_by_a_retry(world):
    session = world.ask(1)
    world.record(RoundFailed(run="run-1", round_number=1, attempt=1, reason="few", session=session.id.hex()))
    assert world.ask(1, 2) is not None
    assert world.charges() == [(1, 1), (1, 2)]


@pytest.mark.parametrize("session", ["", "ab" * 32])
def test_a_record_that_names_another_session_closes_nothing(world, session):
    world.ask(1)
    world.record(RoundFailed(run="run-1", round_number=1, attempt=1, reason="few", session=session))
    assert world.ask(2) is None
    assert refused(world, "must find the record of the session it entered last, (25, 1, 1), found none")


def test_a_restart_between_rounds_needs_nothing(world):
    world.play(1)
    world.restart()
    world.play(2)
    world.restart()
    assert world.charges() == [(1, 1), (2, 1)]


def test_a_crash_in_a_round_forfeits_it_and_keeps_its_charge(world):
    session = world.ask(1)
    world.restart()
    world.end(session)
    assert world.ask(2) is not None
    assert world.charges() == [(1, 1), (2, 1)]


def test_the_same_session_is_checked_again_and_entered_once(world):
    world.charge(1)
    note = world.head()
    session = world.session(note, 1)
    assert world.enter(session, world.opening(note))
    assert world.guard().check(world.opening(note), session, world.now, world.planned)
    with pytest.raises(HubbubError, match=r"must enter sessions in order, its mark is \(25, 1, 1\)"):
        world.guard().mark(*session.mark)
    assert not world.enter(world.session(note, 1, model=word("another")), world.opening(note))
    assert refused(world, "must find the record of the session it entered last, (25, 1, 1), found none")


def test_a_lost_delivery_is_delivered_again_with_entries_that_are_known(world):
    world.charge(1)
    note = world.head()
    shown, session = world.opening(note), world.session(note, 1)
    assert shown.start == 0
    assert world.enter(session, shown)
    assert world.guard().check(shown, session, world.now, world.planned)
    assert world.memories["node-1"].size == len(world.log)


def test_a_participant_that_was_not_asked_goes_on_without_anybody(world):
    world.play(1)
    world.play(2, names=())
    world.play(3)
    world.restart()
    world.play(4)
    assert world.charges() == [(1, 1), (3, 1), (4, 1)]


def test_two_processes_on_one_memory_enter_a_session_once(world):
    world.charge(1)
    note = world.head()
    session = world.session(note, 1)
    world.guard().check(world.opening(note), session, world.now, world.planned)
    memory = Memory(world.path("node-1"))
    other = LogGuard(memory, world.guard()._site, world.now)
    other.check(world.opening(note), session, world.now, world.planned)
    other.mark(*session.mark)
    with pytest.raises(HubbubError, match="must enter sessions in order"):
        world.guard().mark(*session.mark)
    memory.close()


# --- receipts ---


def go_on(world, **changes):
    """Ask for round 2 with something else shown than entries alone: whether it is entered."""
    world.charge(2)
    note = world.head()
    return world.enter(world.session(note, 2), replace(world.opening(note), **changes))


@pytest.mark.parametrize("arrived", [True, False])
def test_a_member_goes_on_with_its_receipt(world, arrived):
    session = world.ask(1)
    consent = world.consent(session)
    receipts = world.close_over(session, {"node-1": consent if arrived else b"", "node-2": b""})
    assert go_on(world, receipt=receipts["node-1"].encode())


def test_a_member_without_a_receipt_stays(world):
    session = world.ask(1)
    world.close_over(session, {"node-1": world.consent(session), "node-2": b""})
    assert not go_on(world)
    assert refused(world, "must be shown its receipt of the session it consented in last, (25, 1, 1), found none")


@pytest.mark.parametrize("members", ["", "no root"])
def test_a_record_without_a_root_is_none_of_a_masked_sum(world, members):
    session = world.ask(1)
    world.consent(session)
    world.end(session, members=members)
    assert not go_on(world, receipt=Receipt(bytes(32), 2**63, ()).encode())
    assert not go_on(world, receipt=Receipt(bytes(32), 0, ()).encode())
    assert refused(world, "found one that does not lead to the record's members")


def test_a_failure_needs_no_receipt(world):
    session = world.ask(1)
    world.consent(session)
    world.record(RoundFailed(run="run-1", round_number=1, attempt=1, reason="few", session=session.id.hex()))
    assert go_on(world)


def test_a_release_is_not_undone_by_a_failure_of_the_same_session(world):
    session = world.ask(1)
    world.close_over(session, {"node-1": world.consent(session), "node-2": b""})
    world.record(RoundFailed(run="run-1", round_number=1, attempt=1, reason="few", session=session.id.hex()))
    assert not go_on(world)
    assert refused(world, "must be shown its receipt")


def test_a_consent_to_another_session_is_not_remembered(world):
    session = world.ask(1)
    with pytest.raises(HubbubError, match="must remember consents to the session that it entered, found 'consent'"):
        world.consent(replace(session, attempt=2))
    with pytest.raises(HubbubError, match="found 'masked'"):
        world.guard().consent(Envelope("masked", session.id, b"", bytes(64), b"").encode())
    assert world.memories["node-1"].last.consent == b""


# --- recovery ---


def test_recovery_takes_the_maximum_and_charges_the_gap(tmp_path):
    world, _ = rollback_backup(tmp_path)
    note = world.head()
    assert not world.enter(world.session(note, 4), world.opening(note))  # whatever it is asked for
    assert world.guard().recover(world.opening(note), world.now) == [(world.run, 2, 1), (world.run, 3, 1)]
    assert world.charges() == [(1, 1), (2, 1), (3, 1)]
    assert world.memories["node-1"].last == ((world.run, 3, 1), b"", b"")
    world.play(4)
    assert world.charges() == [(1, 1), (2, 1), (3, 1), (4, 1)]
    world.close()


def test_a_lost_memory_is_as_an_old_one(world):
    world.play(1, 2)
    world.memories.pop("node-1").close()
    del world.guards["node-1"]
    shutil.rmtree(world.path("node-1").parent)
    assert world.ask(3) is None
    assert refused(world, "must remember every attempt of its runs when it starts, its mark is (0, 0, 0)")
    assert refused(world, "found 2 in the log above it, the last (25, 2, 1)")
    assert world.memories["node-1"].charges == []


def test_recovery_with_nothing_lost_changes_nothing(world):
    session = world.play(1)
    world.restart()
    assert world.guard().recover(world.opening(world.head()), world.now) == []
    assert world.memories["node-1"].last == (session.mark, session.id, b"")


def test_recovery_takes_no_old_head(tmp_path):
    world, _ = rollback_backup(tmp_path)
    note = world.head(at=world.now - 25 * HOUR)
    with pytest.raises(HubbubError, match="must be shown a head that a quorum cosigned in the last 24 hours"):
        world.guard().recover(world.opening(note), world.now)
    assert world.charges() == [(1, 1)]
    world.close()


# --- charges and marks ---


def test_no_more_attempts_are_charged_than_were_reserved(tmp_path):
    world = World(tmp_path, rounds=2)
    world.play(1, 2)
    assert world.ask(3, charge=False) is None
    assert refused(world, "run run-1, is charged within its reservation, found otherwise in the log")
    assert not world.memories["node-1"].charge((world.run, 3, 1), 2)
    assert world.charges() == [(1, 1), (2, 1)]
    world.close()


def test_an_attempt_is_charged_once(world):
    world.ask(1)
    world.guard().charge(1, 1)
    assert world.charges() == [(1, 1)]


def test_only_the_attempt_that_was_entered_is_charged(world):
    world.guard().follow(world.opening(world.head()), world.now)
    world.ask(1, charge=False)
    with pytest.raises(HubbubError, match=r"must charge the attempt that it entered, found \(2, 1\)"):
        world.guard().charge(2, 1)
    world.restart()
    with pytest.raises(HubbubError, match="must charge the attempt that it entered"):
        world.guard().charge(1, 1)
    assert world.charges() == []


def test_no_session_is_entered_that_was_not_checked(world):
    with pytest.raises(HubbubError, match=r"must enter the session that was checked, found \(25, 1, 1\)"):
        world.guard().mark(25, 1, 1)
    world.charge(1)
    note = world.head()
    world.guard().check(world.opening(note), world.session(note, 1), world.now, world.planned)
    with pytest.raises(HubbubError, match="must enter the session that was checked"):
        world.guard().mark(25, 1, 2)
    assert not world.enter(world.session(note, 1, plan=word("dear")), world.opening(note))
    with pytest.raises(HubbubError, match="must enter the session that was checked"):
        world.guard().mark(25, 1, 1)


# --- reservation, study, roster ---


def asked(world, words, *, attempt=1, **changes):
    """Whether a session is refused with these words."""
    return world.ask(1, attempt, **changes) is None and refused(world, words)


def test_a_run_has_the_index_of_its_reservation_as_number(world):
    assert asked(world, "must find its run's reservation at entry 22, found none", run=22)
    assert asked(world, f"must find its run's reservation at entry {2**64 - 1}, found none", attempt=2, run=2**64 - 1)


def test_a_plan_that_was_not_reserved_is_refused(world):
    assert asked(world, "must find the plan that it knows reserved, found another plan", plan=word("dear"))


def test_a_run_that_others_pay_for_is_refused(world):
    world.reserve("run-2", datasets=approved().datasets[1:])
    assert asked(world, "must find its own budget among those reserved, found others")


def test_a_run_that_is_settled_is_refused(world):
    world.charge(1)
    world.record(BudgetSettled(run="run-1", charged=1))
    note = world.head()
    assert not world.enter(world.session(note, 1), world.opening(note))
    assert refused(world, "must find the run's reservation open, found it settled")


def test_accounts_that_no_ledger_wrote_are_refused(world):
    world.charge(1)
    assert asked(world, "is charged once for an attempt, found otherwise in the log")


@pytest.mark.parametrize("change", [{"epsilon": 80.0}, {"order": 1.5}, {"delta": 1e-6}, {"kind": "gaussian"}])
def test_a_grant_that_no_owner_made_is_refused(world, change):
    world.record(replace(world.log[world.run - 1 - 3], **change))
    assert asked(world, "must be what its owner registered, found a")


def test_a_run_that_never_began_under_an_approval_is_refused(world):
    world.reserve("run-2", started=False)
    assert asked(world, "must find its study approved when the run began, found no approval of it")
    assert asked(world, "must find its study approved", attempt=2, study="lungs")


def test_an_approval_that_has_lapsed_is_refused(world):
    world.now += 300 * federations.DAY
    assert asked(world, "must find the approval of its study in force, found it lapsed")


def test_a_participant_without_a_card_is_refused(world):
    world.guard(name="node-1")
    world.guard()._site = dataclasses.replace(world.guard()._site, name="node-3")
    assert world.ask(1) is None
    assert refused(world, "node-3, must be in the roster in force, found no card of that name")


def test_a_roster_of_an_older_epoch_is_refused(world):
    note = world.head()
    world.guard().follow(world.opening(note), world.now)
    session = world.session(note, 1)
    card = federations.made_keys("node-3", "clinic-3", "node").card
    world.federation.agree("operator", EnrolKey(card=card), "officer")
    assert asked(world, "must be asked with the signed roster in force, epoch 2, found another",
                 roster_epoch=1, roster=session.roster)  # fmt: skip
    assert world.ask(1, 2) is not None


def test_a_log_without_a_federation_has_no_roster(tmp_path):
    world = World(tmp_path)
    world.federation.log, world.federation.state = [], federations.Federation()
    world.reserve("run-1")
    assert asked(world, "must find its study approved when the run began, found no approval of it")
    world.close()


# --- heads and entries ---


def test_members_on_two_forks_have_no_common_session_and_two_heads_convict_the_log(tmp_path):
    world, _ = played("fork_two_groups", tmp_path)
    assert world.sessions[0] != world.sessions[1]
    assert is_fork(*world.forked, LOG.verifier)


def test_two_signed_heads_of_one_size_are_kept_as_evidence(tmp_path):
    world, _ = played("two_roots", tmp_path)
    (evidence,) = world.guard().evidence
    assert evidence.is_fork
    assert is_fork(evidence.cosigned, evidence.submitted, LOG.verifier)


def test_a_policy_without_a_quorum_is_refused(tmp_path):
    memory = Memory(tmp_path / "memory.db")
    with pytest.raises(InputError, match="must have a policy with a quorum of witnesses, found 'quorum none'"):
        LogGuard(memory, Site(name="node-1", account="", policy=Policy(POLICY.logs)), 0)
    memory.close()


def test_a_head_of_another_log_is_refused(world):
    note = world.head(log=key("example.com/other", ED25519))
    with pytest.raises(VerificationError, match="must be signed by a log of the policy"):
        world.guard().follow(world.opening(note), world.now)


def test_a_smaller_head_than_one_seen_before_is_refused(world):
    small = list(world.log)
    world.play(1)
    assert not world.enter(world.session(world.head(small), 2), world.opening(world.head(small), small))
    assert refused(world, "must be shown a head of 27 entries or more, found 26")


@pytest.mark.parametrize("cut", [slice(1, None), slice(-1), slice(0, 0)])
def test_entries_that_are_left_out_are_missed(world, cut):
    shown = world.opening(world.head())
    with pytest.raises(HubbubError, match="must be shown the entries 0 to 26, found others"):
        world.guard().follow(replace(shown, entries=shown.entries[cut]), world.now)
    assert world.memories["node-1"].size == 0


def test_an_entry_that_is_changed_is_found(world):
    shown = world.opening(world.head())
    changed = (*shown.entries[:-1], shown.entries[-1].replace(b'"attempts":4', b'"attempts":9'))
    assert changed != shown.entries
    with pytest.raises(VerificationError, match="must be shown a head that continues the 0 entries it knows"):
        world.guard().follow(replace(shown, entries=changed), world.now)


def test_a_start_beyond_its_copy_is_refused(world):
    shown = world.opening(world.head())
    with pytest.raises(HubbubError, match="must be shown the entries 0 to 26, found others"):
        world.guard().follow(replace(shown, start=5, entries=shown.entries[5:]), world.now)


def test_an_act_that_nobody_was_allowed_spoils_the_log_for_good(world):
    """The operator approves the key that it asked for."""
    card = federations.made_keys("sybil", "shell", "node").card
    proposed = world.federation.propose("operator", EnrolKey(card=card))
    forged = world.federation.decision("operator", proposed)
    world.log.append(Decided(envelope=forged))
    note = world.head()
    for _ in range(2):
        assert not world.enter(world.session(note, 1), world.opening(note))
    assert len([message for message in world.refusals["node-1"] if "entry 27, must be a valid act" in message]) == 2


# --- bytes ---

BINARY = st.binary(max_size=20)
OPENINGS = st.builds(Opening, BINARY, st.integers(0, 2**64 - 1), st.lists(BINARY, max_size=4).map(tuple), BINARY)


@given(OPENINGS)
def test_an_opening_is_read_as_it_was_written(opening):
    assert read_opening(opening.encode()) == opening


def is_orderly(data):
    """Whether these bytes are the one form of an opening, or refused in one line with a hint."""
    try:
        return read_opening(data).encode() == data
    except InputError as error:
        is_worded = error.message.startswith("opening, must be a head, an index, entries and a receipt in msgpack, ")
        return is_worded and error.hint == "both sides must run the same version"


@given(st.binary(max_size=60))
@example(b"\x91" * 100_000)
@example(b"\x94\xc4\x00\xcc\x05\x90\xc4\x00")
@example(b"\x95\xc4\x00\x05\x90\xc4\x00\xc0")
@example(b"\x93\xc4\x00\x05\x90")
def test_any_bytes_are_an_opening_or_refused(data):
    assert is_orderly(data)


@given(OPENINGS, st.data())
def test_a_damaged_opening_is_an_opening_or_refused(opening, data):
    line = bytearray(opening.encode())
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= data.draw(st.integers(1, 255))
    assert is_orderly(bytes(line))
    with pytest.raises(InputError):
        read_opening(opening.encode()[:at])


@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode), st.integers(-3, 30), st.lists(BINARY, max_size=3))
def test_no_bytes_of_a_head_or_an_entry_are_taken_in_unless_a_quorum_signed_them(shared_world, head, start, entries):
    shown = Opening(head, start, tuple(entries))
    with pytest.raises(HubbubError):
        shared_world.guard().follow(shown, shared_world.now)
    with pytest.raises(HubbubError):
        shared_world.guard().follow(replace(shown, checkpoint=shared_world.note), shared_world.now)
    assert shared_world.memories["node-1"].size == 0


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory):
    """Give one world whose memory stays empty."""
    made = World(tmp_path_factory.mktemp("shared"))
    made.guard()
    made.note = bytes(made.head())
    yield made
    made.close()
