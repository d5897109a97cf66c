"""A run on hosts of their own, from offer to verified bundle, and what goes wrong on the way: all in one process.

The bytes are those between hosts; the carrier is a call that a test may spoil. A host crashes by being made anew from
its folder, a coordinator by being made anew on its home.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
import time

import deployment
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hubbub
from hubbub.engine.away import Deadlines
from hubbub.engine.commands import HaltRun, OfferStudy, ResumeRun, SubmitStudy
from hubbub.engine.coordinate import Coordinating
from hubbub.engine.home import open_coordinator_key, open_log, open_log_key
from hubbub.errors import InputError, RefusedError
from hubbub.events import ParticipantRefused, RoundClosed, RoundFailed
from hubbub.governance.acts import RevokeKey, StopRun
from hubbub.messages import (
    Contribution,
    CosignAsked,
    Done,
    LogShown,
    Refused,
    RoundContinued,
    RoundOpened,
    RunOffered,
    decode_message,
    encode_message,
)
from hubbub.participant.evidence import MOST_FILES
from hubbub.participant.opening import Opening
from hubbub.secagg.messages import Envelope, Survivors, is_by, read, write
from hubbub.tlog import Note, Signer, Store, sign_checkpoint
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import COSIGNATURE
from hubbub.tlog.note import parse_note
from hubbub.tlog.verify import is_fork
from hubbub.tlog.witness import Request


class Wires:
    """A transport of calls; `spoil` maps (name, number of the message in its round, message) to what becomes of it.

    It returns the message to let it through, None to lose it, or raises to crash the coordinator.
    """

    def __init__(self, world):
        self.world = world
        self.spoil = lambda _name, _stage, message: message
        self.numbers = dict.fromkeys(world.hosts, 0)
        self.away = set()
        self._stages = {}

    def sites(self):
        return {name: number for name, number in self.numbers.items() if name not in self.away}

    def ask(self, messages, *, seconds):
        assert seconds > 0
        for name, data in messages.items():
            if name in self.away:
                continue
            message = decode_message(data)
            if isinstance(message, RoundOpened):
                self._stages[name] = 0
            elif isinstance(message, RoundContinued):
                self._stages[name] += 1
            stage = self._stages.get(name) if isinstance(message, RoundOpened | RoundContinued) else None
            let_through = message if stage is None else self.spoil(name, stage, message)
            if let_through is not None:
                reply = self.world.hosts[name].answer(encode_message(let_through))
                self.world.note(name, message, reply)
                yield name, reply

    def close(self):
        pass


class Watched(Coordinating):
    """A coordinator of which a test knows the run before it has begun."""

    last = ""

    def _start(self, running, log):
        self.last = running.name
        return super()._start(running, log)


class World(deployment.Deployment):
    """A deployment whose carrier is a call."""

    def __init__(self, root, **options):
        super().__init__(root, **options)
        self.hosts = {name: self.host(name) for name in self.names}
        self.sent = []
        """Who sent a masked vector in which round and attempt."""
        self.start()

    def close(self):
        self.let_go()
        self.coordinating.close()
        for host in self.hosts.values():
            host.close()

    def note(self, name, message, reply):
        said = decode_message(reply) if reply else Done()
        if isinstance(message, RoundContinued) and isinstance(said, Contribution) and self.stage_of(said) == "masked":
            self.sent.append((name, message.round_number, message.attempt))

    @staticmethod
    def stage_of(contribution):
        return read(Envelope, contribution.payload).kind

    def crash(self, name):
        """A host's process ends and another one starts on its folder."""
        self.hosts[name].close()
        self.hosts[name] = self.host(name)
        self.wires.numbers[name] += 1

    def events(self, kind):
        log = open_log(self.home)
        try:
            return [event for event in log.events() if isinstance(event, kind)]
        finally:
            log.close()

    def refusals(self, name):
        file = self.site(name) / "refusals"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def start(self):
        self.wires = Wires(self)
        self.coordinating = Watched(self.home, Deadlines(stage=5, training=20, patience=1))
        self.coordinating.transport = self.wires
        self.command = self.coordinating.command

    @property
    def run(self):
        """The run that began last."""
        return self.coordinating.last

    def go(self, order=None):
        """Have the study approved and run; its last status."""
        order = order or self.approve_study(self.command)
        run = self.ask(self.command, "scientist", order).run
        return self.ended(self.command, run)

    def check_charges(self):
        """Nothing left a site that it did not charge, and nothing that the coordinator's ledger does not hold."""
        log = open_log(self.home)
        try:
            from hubbub.accounting.ledger import Ledger

            charged = Ledger(log).accounts().runs[self.run].charged
        finally:
            log.close()
        for name in self.names:
            own = {mark[1:] for mark in self.hosts[name]._memory.charges}
            assert {(at, attempt) for who, at, attempt in self.sent if who == name} <= own <= charged


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBBUB_DATA", str(tmp_path))  # hosts set it, each for itself: put back afterwards
    made = World(tmp_path)
    yield made
    made.close()


def test_a_study_is_offered_approved_run_released_and_verified(world):
    told = world.go()
    assert (told.state, told.rounds, told.words) == ("finished", 4, "")
    closed = world.events(RoundClosed)
    assert len({event.session for event in closed}) == 4
    assert all(event.members and event.adverts for event in closed)
    bundle = world.release(world.command, world.run)
    assert hubbub.verify_bundle(bundle)
    assert msgspec.json.decode((bundle / "claim.json").read_bytes())["federation"] == (
        "federation heart of 8 organisations, approved for the purpose research; "
        "each participant on a host of its own, says the coordinator"
    )
    world.check_charges()


STAGES = ["advert", "share", "masked", "consent", "unmask"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(5), ids=STAGES)
def test_a_site_that_crashes_in_a_stage_drops_out_and_comes_back(world, stage):
    def spoil(name, at, message):
        if (name, at) == ("c", stage) and message.round_number == 2 and "c" not in crashed:
            crashed.append("c")
            world.crash("c")
            return None
        return message

    crashed = []
    world.wires.spoil = spoil
    told = world.go()
    assert (told.state, told.rounds, told.attempts) == ("finished", 4, 4)
    assert crashed
    in_sums = [event.participants for event in world.events(RoundClosed)]
    assert in_sums == [5, 4 if stage < 3 else 5, 5, 5]
    world.check_charges()


@pytest.mark.slow
def test_two_sites_lost_in_a_stage_end_the_attempt_by_name_and_the_next_one_completes(world):
    def spoil(name, at, message):
        is_lost = name in "cd" and at == 2 and (message.round_number, message.attempt) == (2, 1)
        return None if is_lost else message

    world.wires.spoil = spoil
    told = world.go()
    assert (told.state, told.rounds, told.attempts) == ("finished", 4, 5)
    (failed,) = world.events(RoundFailed)
    assert (failed.round_number, failed.attempt) == (2, 1)
    assert "needs 4 survivors, found 3" in failed.reason
    world.check_charges()


@pytest.mark.slow
def test_a_site_that_restarts_while_it_is_offered_the_run_is_offered_it_once_more(world):
    offered, ask = [], world.wires.ask

    def ask_again(messages, *, seconds):
        for name, data in messages.items():
            if isinstance(decode_message(data), RunOffered):
                offered.append(name)
                if name == "c" and offered.count("c") == 1:
                    world.crash("c")  # a carrier asks whoever comes back again, with the same bytes
        yield from ask(messages, seconds=seconds)

    world.wires.ask = ask_again
    assert world.go().state == "finished"
    assert [line["code"] for line in world.refusals("c")] == ["round"]
    assert {name: offered.count(name) for name in "abcde"} == dict.fromkeys("abde", 1) | {"c": 2}


def test_with_too_few_sites_the_run_waits_by_name_and_goes_on_when_they_are_back(world):
    def spoil(_name, at, message):
        if at == 0 and message.round_number == 2:
            world.wires.away |= {"d", "e"}
        return message

    world.wires.spoil = spoil
    told = world.go()
    assert told.state == "interrupted"
    assert "waits for 4 participants and a quorum of 6 witnesses, found a, b, c; nothing more asked" in told.words
    world.wires.spoil, world.wires.away = (lambda *spoiled: spoiled[2]), set()
    assert not world.resume(world.command, world.run).had_ended
    told = world.ended(world.command, world.run)
    assert (told.state, told.rounds) == ("finished", 4)
    world.check_charges()
    assert world.resume(world.command, world.run).had_ended
    assert world.ended(world.command, world.run) == told


class CoordinatorCrash(BaseException):
    """The coordinator's process is gone; nothing in it may clean up."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 4])
def test_a_coordinator_that_crashes_goes_on_with_another_attempt(world, stage, monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda _: None)

    def spoil(_name, at, message):
        if at == stage and message.round_number == 2:
            raise CoordinatorCrash
        return message

    world.wires.spoil = spoil
    told = world.go()
    assert told.state == "interrupted"
    run = world.run
    world.start()
    world.resume(world.command, run)
    told = world.ended(world.command, world.run)
    assert (told.state, told.rounds, told.attempts) == ("finished", 4, 5), told
    (failed,) = world.events(RoundFailed)
    assert failed.reason == "the coordinator was interrupted"
    assert hubbub.verify_bundle(world.release(world.command, world.run))
    world.check_charges()


@pytest.mark.slow
def test_a_halted_run_stays_reserved_and_goes_on(world):
    def spoil(_name, at, message):
        if at == 0 and message.round_number == 2:
            world.ask(world.command, "officer", HaltRun(world.run))
        return message

    world.wires.spoil = spoil
    told = world.go()
    assert (told.state, told.rounds) == ("interrupted", 2)
    assert "was halted; nothing more asked, it stays reserved" in told.words
    world.wires.spoil = lambda _name, _at, message: message
    world.resume(world.command, world.run)
    assert world.ended(world.command, world.run).state == "finished"


# --- refusals


def evidence(world, name, kind):
    """What a site keeps of a kind, by its path in the last refusal."""
    line = world.refusals(name)[-1]
    folder = world.site(name) / "evidence"
    assert line["hint"] == f"{folder} holds it: show it to the other members, and report the coordinator"
    kept = {world.site(name) / path for path in line["evidence"]}
    assert {path.parent for path in kept} == {folder / kind}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in kept)
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    return [(world.site(name) / path).read_bytes() for path in line["evidence"]]


def entries(world):
    """What the log holds, copied from a database that nobody has open."""
    with contextlib.closing(open_log(world.home)) as log:
        return log.store.entries(0, log.store.size)


def history(world, bodies):
    """A log of these entries, and its head, signed by the key of the federation's log."""
    store = Store(world.root / secrets.token_hex(8))
    store.append(lambda _size: bodies)
    return sign_checkpoint(store, open_log_key(world.home)), store


def asked_to_cosign(world, name, note, store, old=0):
    request = bytes(Request(old, tuple(store.consistency(old, parse_checkpoint(note.text).size)), note))
    return decode_message(world.hosts[name].answer(encode_message(CosignAsked(request)))).status


def test_a_fork_that_a_site_is_asked_to_cosign_leaves_both_heads_on_its_disk(world):
    log = open_log_key(world.home).verifier
    known = entries(world)
    one, store = history(world, [*known, b"1"])
    other, forked = history(world, [*known, b"2"])
    longer, third = history(world, [*known, b"3", b"4"])
    assert asked_to_cosign(world, "a", one, store) == 200
    assert asked_to_cosign(world, "a", other, forked) == 409
    heads = [parse_note(data) for data in evidence(world, "a", "forks")]
    assert heads == [one, other]
    assert is_fork(*heads, log)
    (line,) = world.refusals("a")
    assert line["error"] == (
        f"a, must be asked to cosign one history by {log.name}, found two signed heads of one size; not cosigned"
    )
    size = parse_checkpoint(one.text).size
    assert asked_to_cosign(world, "a", longer, third, size) == 422
    heads = [parse_note(data) for data in evidence(world, "a", "heads")]
    assert heads == [one, longer]
    assert all(log.signed_at(head) is not None for head in heads)
    assert not world.hosts["a"].guard.evidence


def test_a_fork_that_a_quorum_has_cosigned_leaves_both_heads_on_the_disk_of_a_site(world):
    def shown(bodies):
        head, _ = history(world, bodies)
        nodes = [Signer(name, COSIGNATURE, world.keys[name].witness.private_bytes_raw()) for name in world.names]
        head = Note(head.text, (*head.signatures, *(node.sign(head.text, int(time.time())) for node in nodes)))
        opening = Opening(bytes(head), 0, tuple(bodies))
        return head, decode_message(world.hosts["a"].answer(encode_message(LogShown(opening.encode()))))

    bodies = entries(world)
    one, said = shown(bodies)
    assert said == Done()
    other, said = shown([*bodies[:-1], b"{}"])
    assert said == Refused("log")
    heads = [parse_note(data) for data in evidence(world, "a", "forks")]
    assert heads == [one, other]
    assert is_fork(*heads, open_log_key(world.home).verifier)


@pytest.mark.slow
def test_contradictory_messages_of_a_session_are_kept_and_verify_under_the_coordinators_key(world):
    key, lied = open_coordinator_key(world.home), []

    def spoil(name, at, message):
        if (name, at, message.round_number) == ("c", 3, 2) and not lied:
            said = read(Envelope, message.payload)
            other = msgspec.structs.replace(read(Survivors, said.body), salt=bytes(32))
            lied.extend([message.payload, write(said.kind, said.session, other, key=key)])
            world.hosts["c"].answer(encode_message(message))
            false = msgspec.structs.replace(message, payload=lied[1])
            assert decode_message(world.hosts["c"].answer(encode_message(false))) == Refused("round")
        return message

    world.wires.spoil = spoil
    assert world.go().state == "finished"
    kept = evidence(world, "c", "messages")
    assert kept == lied
    one, other = (read(Envelope, data) for data in kept)
    assert (one.kind, one.session) == (other.kind, other.session) == ("survivors", one.session)
    assert one.body != other.body
    assert all(is_by(key.public, "survivors", one.session, said) for said in (one, other))


@pytest.mark.slow
def test_a_site_keeps_no_more_heads_of_a_lying_log_than_its_bound(world):
    known, size = entries(world), MOST_FILES + 6
    for number in range(size):
        asked_to_cosign(world, "a", *history(world, [*known, b"%d" % number]))
    assert len(list((world.site("a") / "evidence" / "forks").iterdir())) == MOST_FILES
    assert len(world.refusals("a")) == size - 1
    last = world.refusals("a")[-1]
    assert (last["hint"], "evidence" in last) == ("report the coordinator to the other members", False)


def refusal(world, name, code):
    """Whether a site refused with a code, told its owner, and sent nothing."""
    noted = [event for event in world.events(ParticipantRefused) if event.participant == name]
    told = [line for line in world.refusals(name) if line["code"] == code]
    return bool(told) and code in {event.code for event in noted} and not [one for one in world.sent if one[0] == name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ('purposes = ["audit"]', "this site's policy: purposes, must be one of audit, found research"),
        ("epsilon = 1.0", "this site's policy: epsilon, must be at most 1, found"),
        ("minimum = 5", "this site's policy: minimum, must be at least 5, found 4"),
        ("retention = 2020-01-01", "this site's policy: retention, must be until 2020-01-01, found"),
    ],
)
def test_a_site_whose_policy_forbids_the_study_refuses_and_the_run_goes_on_without_it(world, policy, words):
    order = world.approve_study(world.command)
    file = world.site("b") / "site.toml"
    if "purposes" in policy:
        policy = 'purposes = ["quality"]'
        words = words.replace("audit", "quality")
    file.write_text(file.read_text().partition("[policy]")[0] + f"[policy]\n{policy}\n")
    told = world.go(order)
    assert (told.state, told.rounds) == ("finished", 4)
    assert refusal(world, "b", "policy")
    assert any(words in line["error"] for line in world.refusals("b")), world.refusals("b")


@pytest.mark.slow
def test_a_site_whose_code_is_another_refuses_and_is_not_in_the_run(world):
    order = world.approve_study(world.command)
    code = world.site("b") / "studies" / "away" / "study.py"
    code.write_text(code.read_text() + "\n# read, and changed\n")
    assert world.go(order).state == "finished"
    assert refusal(world, "b", "code")


@pytest.mark.slow
def test_a_site_whose_records_are_not_those_that_were_approved_refuses(world):
    order = world.approve_study(world.command)
    (world.site("b") / "data" / "seed").write_text("77")
    assert world.go(order).state == "finished"
    assert refusal(world, "b", "policy")


def test_a_study_that_is_not_approved_is_not_started(world):
    order = world.approve_study(world.command)
    study = world.home / "studies" / "away" / "study.toml"
    study.write_text(study.read_text().replace("seed = 3", "seed = 4"))
    with pytest.raises(InputError, match="must be in the folder 'studies' here, found none; nothing trained"):
        world.ask(world.command, "scientist", order)
    with pytest.raises(RefusedError, match="owner-a, must be data-scientist or operator to ask for this"):
        world.ask(world.command, "owner-a", order)
    other = SubmitStudy(order.study_hash, order.code_hash, "0" * 64, order.lock)
    shutil.copy(world.study_folder / "study.toml", study)
    with pytest.raises(RefusedError, match="must give the plan 000000000000 that was asked for"):
        world.ask(world.command, "scientist", other)
    assert not (world.home / "runs").exists() or not list((world.home / "runs").iterdir())


def test_a_revoked_site_is_asked_no_more(world):
    def spoil(name, at, message):
        if at == 0 and message.round_number == 2 and name == "a" and not revoked:
            revoked.append(world.propose("operator", RevokeKey(key=world.keys["e"].card.key_id, reason="stolen")))
            world.approve(revoked[0], "officer")
        return message

    revoked = []
    world.wires.spoil = spoil
    told = world.go()
    assert told.rounds == 4, told
    assert max(at for name, at, _ in world.sent if name == "e") <= 2


@pytest.mark.slow
def test_a_run_that_an_owner_stopped_ends(world):
    def spoil(name, at, message):
        if at == 0 and message.round_number == 2 and name == "a" and not stopped:
            stopped.append(world.propose("owner-a", StopRun(run=world.run)))
        return message

    stopped = []
    world.wires.spoil = spoil
    told = world.go()
    assert told.state == "ended"
    assert "must not be stopped by anybody who may" in told.words


@pytest.mark.slow
def test_a_coordinator_that_puts_its_home_back_gets_no_session(world, tmp_path):
    def spoil(name, at, message):
        if (name, at, message.round_number) == ("a", 0, 2):
            shutil.copytree(world.home, tmp_path / "yesterday")
        if (name, at, message.round_number) == ("a", 0, 3):
            world.ask(world.command, "officer", HaltRun(world.run))
        return message

    world.wires.spoil = spoil
    assert world.go().state == "interrupted"
    world.coordinating.close()
    world.let_go()
    shutil.rmtree(world.home)
    shutil.copytree(tmp_path / "yesterday", world.home)
    run, sent = world.run, len(world.sent)
    world.start()
    world.ask(world.command, "operator", ResumeRun(run))
    told = world.ended(world.command, run)
    assert told.state == "interrupted", told
    assert "waits for" in told.words
    assert len(world.sent) == sent


@pytest.mark.slow
@pytest.mark.parametrize("recovery", ["ask", "charge"])
def test_a_site_restored_from_a_backup_charges_what_it_forgot_before_it_takes_part(world, tmp_path, recovery):
    def spoil(name, at, message):
        if (name, at) != ("c", 0) or message.round_number in done:
            return message
        if message.round_number == 2:  # the copy is made while it waits, and it takes part
            done.append(2)
            shutil.copytree(world.site("c"), backup)
        if message.round_number == 4:
            done.append(4)
            world.hosts["c"].close()
            shutil.rmtree(world.site("c"))
            shutil.copytree(backup, world.site("c"))
            world.hosts["c"] = world.host("c")
            world.wires.numbers["c"] += 1
            return None
        return message

    file = world.site("c") / "site.toml"
    file.write_text(file.read_text().replace("[policy]", f'recovery = "{recovery}"\n[policy]'))
    done, backup = [], tmp_path / "backup"
    world.wires.spoil = spoil
    assert world.go().state == "finished"
    assert done == [2, 4]
    before = {one for one in world.sent if one[0] == "c"}
    if recovery == "ask":
        asked = []
        world.wires.spoil = lambda name, _stage, message: asked.append(name) or message
        assert world.go().state == "finished"
        assert set(asked) == {"a", "b", "d", "e"}  # it says so when it is offered the run: nobody counts on it
        assert {one for one in world.sent if one[0] == "c"} == before
        assert any("must remember every attempt of its runs" in line["error"] for line in world.refusals("c"))
        world.hosts["c"]._folder.ask_recovery()
    del world.sent[:]
    assert world.go().state == "finished"
    assert ("c", 2, 1) in world.sent
    charged = {mark[1:] for mark in world.hosts["c"]._memory.charges}
    assert {(1, 1), (2, 1), (3, 1)} <= charged


# --- what strangers may send


BYTES = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda data: encode_message(LogShown(data)), st.binary(max_size=64)),
    st.builds(
        lambda run, number, payload: encode_message(
            RoundContinued(run=run, plan_hash="", round_number=number, attempt=1, payload=payload)
        ),
        st.text(max_size=8),
        st.integers(-1, 2**40),
        st.binary(max_size=64),
    ),
)


@pytest.fixture(scope="module")
def one_host(tmp_path_factory):
    made = deployment.Deployment(tmp_path_factory.mktemp("one"))
    made.let_go()
    host = made.host("a")
    yield host
    host.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(BYTES)
@example(b"")
def test_whatever_comes_a_host_answers_a_code_and_charges_nothing(one_host, data):
    answer = decode_message(one_host.answer(data))
    assert isinstance(answer, Refused)
    assert answer.code in {"message", "round", "log", "policy"}
    assert not one_host._memory.charges


def test_offers_say_who_holds_the_study_and_who_does_not(world):
    shutil.rmtree(world.site("d") / "studies")
    study = hubbub.load_study(world.study_folder)
    order = OfferStudy(study.settings.approved_hash(), study.code_hash)
    offers = world.ask(world.command, "scientist", order).offers
    assert {offer.participant: offer.refused for offer in offers} == dict.fromkeys("abce", "") | {"d": "code"}
    assert {offer.slots for offer in offers if not offer.refused} == {20}
