"""Coordinator and sites as processes of their own on loopback: killed in every stage and anywhere, frozen, stopped.

The referee is what left the sites: `host_process.py` notes each masked vector before it is handed on, in a file that
a kill cannot take back; it stands against the sites' own memory and the coordinator's ledger.
"""

import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubbub.accounting.accounts import Accounts
from hubbub.engine.direct import Credentials, send_command
from hubbub.engine.home import open_log
from hubbub.engine.record import events_of
from hubbub.errors import HostError
from hubbub.events import ParticipantRefused, RoundClosed, RunFinished
from hubbub.governance.enrolment import client_credentials, read_membership
from hubbub.participant.log_view import LogView

pytestmark = pytest.mark.slow


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deployment = load("deployment")
SCRIPT = str(Path(__file__).with_name("host_process.py"))
ROUNDS, RETRIES, LAST, KILLED = 8, 8, 4, -signal.SIGKILL
STUDY = deployment.STUDY.replace("rounds = 4", f"rounds = {ROUNDS}").replace("retries = 4", f"retries = {RETRIES}")
NOISY = {"study": STUDY, "epsilon": 1000.0}
NOISELESS = {  # all are needed and all records are used: nothing of a model is left to chance
    "study": STUDY.replace("epsilon = 30.0\n", "")
    .replace('"distributed"', '"none"\nsums = "masked"')
    .replace("minimum = 4\ndropouts = 0.2\n", ""),
    "code": deployment.CODE.replace("rng.permutation(len(examples.x))[:8]", "slice(None)"),
    "grant": "unbounded",
}


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Federation(deployment.Deployment):
    """A deployment in processes, by the real commands."""

    def __init__(self, root, **options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"localhost:{free.getsockname()[1]}"
        super().__init__(root, address=address, **options)
        self.control, self.processes = root / "control", {}
        self.control.mkdir()
        self.order()
        self.people = {}
        for name in ("scientist", "operator"):
            membership = read_membership(self.admit(name, root / f"{name}.membership"))
            self.keys[name].save(root / f"{name}.key")
            self.people[name] = Credentials(*client_credentials(self.keys[name], membership, now=int(time.time())))
        for name in self.names:
            self.join(name)
        self.coordinate()
        self.all_there()
        self.submission = self.approve_study(self.command)

    # --- processes

    def spawn(self, name, *arguments, kill=""):
        environment = os.environ | ({"HUBBUB_KILL": kill} if kill else {})
        with (self.root / f"{name}.err").open("a") as errors:
            command = [sys.executable, SCRIPT, str(self.control), *arguments]
            self.processes[name] = subprocess.Popen(command, stderr=errors, stdout=errors, env=environment)

    def join(self, name):
        self.spawn(name, "join", str(self.site(name)))

    def coordinate(self, *runs, kill=""):
        resumed = [word for run in runs for word in ("--resume", run)]
        times = ["--stage", "60", "--training", "60", "--patience", "90"]
        self.spawn("", "coordinate", str(self.home), "--address", self.address, *times, *resumed, kill=kill)

    @property
    def coordinator(self):
        return self.processes[""]

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    def come_back(self, name):
        """Start a site again once it has been killed."""
        assert self.processes[name].wait(120) == KILLED
        self.join(name)
        self.all_there()

    def close(self):
        self.let_go()
        for name in self.processes:
            self.kill(name)

    # --- what is asked

    def command(self, name, data):
        return send_command(self.address, self.people[name], data, seconds=60)

    def connected(self):
        try:
            return set(self.ask(self.command, "operator", deployment.ShowStatus()).connected)
        except HostError:
            assert self.coordinator.poll() is None
            return set()

    def all_there(self):
        until(lambda: self.connected() == set(self.names))

    def submit(self):
        """The name of a new run; its coordinator may be killed before it says it."""
        before = set(self.runs())
        with contextlib.suppress(HostError):
            self.ask(self.command, "scientist", self.submission)
        return next(iter(set(self.runs()) - before))

    def runs(self):
        folder = self.home / "runs"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def model(self, run):
        return (self.home / "runs" / run / "model.safetensors").read_bytes()

    def is_over(self, run):
        return (self.home / "runs" / run / "checkpoint").exists()

    # --- what sites do

    def order(self, gates=None, kills=None):
        """Have sites wait in some rounds, {round: stage}, until `open_gate`; and one die, {round: (name, stage)}."""
        for path in [*self.control.glob("gate-*"), *self.control.glob("killed-*")]:
            path.unlink()
        orders = {"gates": gates or {}, "kills": kills or {}}
        (self.control / "new").write_text(json.dumps(orders))
        (self.control / "new").replace(self.control / "orders")

    def open_gate(self, number):
        (self.control / f"gate-{number}").touch()

    # --- what is on the disk

    def revealed(self, name, run):
        """(round, attempt) of each masked vector that a site made in a run."""
        path = self.control / f"masked-{name}"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(number), int(attempt)) for of, number, attempt in lines if of == run]

    def charged(self, name, index):
        with contextlib.closing(sqlite3.connect(self.site(name) / "memory.db", timeout=30)) as memory:
            return set(memory.execute("SELECT round, attempt FROM charge WHERE run = ?", (index,)))

    def read(self, run):
        """The run's account, its number, its events."""
        with contextlib.closing(open_log(self.home)) as log:
            account, number = log.fold(Accounts).runs[run], log.fold(LogView).reservation_of(run).index
            return account, number, events_of(log, run)

    def check(self, run):
        """What holds at any time: revealed <= charged by the site <= charged by the coordinator <= planned."""
        seen = {name: self.revealed(name, run) for name in self.names}
        _, number, _ = self.read(run)
        own = {name: self.charged(name, number) for name in self.names}
        account = self.read(run)[0]
        for name in self.names:
            assert len(set(seen[name])) == len(seen[name]), (name, seen)
            assert set(seen[name]) <= own[name] <= account.charged, (name, seen, own, account)
        assert len(account.charged) <= account.reserved.attempts == ROUNDS + RETRIES

    def check_end(self, run):
        """What holds of a run that is over; its rounds, by number."""
        self.check(run)
        account, _, events = self.read(run)
        closed = [event for event in events if isinstance(event, RoundClosed)]
        assert [event.round_number for event in closed] == list(range(1, ROUNDS + 1))
        assert sum(isinstance(event, RunFinished) for event in events) == 1
        assert account.is_settled
        told = self.status(self.command, run)
        assert (told.state, told.attempts) == ("finished", len(account.charged)), told
        return {event.round_number: event for event in closed}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make federations that are there for all tests of this file."""
    made = []

    def federation(**options):
        made.append(None)
        made[-1] = Federation(tmp_path_factory.mktemp("federation"), **options)
        return made[-1]

    yield federation
    for one in made:
        if one is not None:
            one.close()


@pytest.fixture(scope="module")
def noisy(make):
    """Give a federation with noise, its coordinator and five sites."""
    return make(**NOISY)


def test_a_site_killed_in_any_stage_is_one_dropout_and_takes_part_again(noisy):
    kills = {number + 2: (name, number) for number, name in enumerate(noisy.names)}
    noisy.order(dict.fromkeys(kills, LAST), kills)
    run = noisy.submit()
    for number, (name, _) in kills.items():
        noisy.come_back(name)
        noisy.open_gate(number)
    until(lambda: noisy.is_over(run))
    rounds = noisy.check_end(run)
    assert {event.attempt for event in rounds.values()} == {1}
    for number, (name, stage) in kills.items():
        seen = {at for at, _ in noisy.revealed(name, run)}
        assert rounds[number].participants == (4 if stage < 3 else 5), stage  # its vector came, or did not
        assert (number in seen) == (stage >= 2)
        assert number + 1 in seen


def test_a_site_that_was_away_for_a_round_charges_it_and_takes_part_again(noisy):
    noisy.order({4: 0}, {2: ("a", 2)})
    run = noisy.submit()
    until(lambda: (3, 1) in noisy.revealed("b", run))
    noisy.come_back("a")
    noisy.open_gate(4)
    until(lambda: noisy.is_over(run))
    assert {event.attempt for event in noisy.check_end(run).values()} == {1}
    assert [at for at, _ in noisy.revealed("a", run)] == [1, 2, *range(5, ROUNDS + 1)]
    assert {(3, 1), (4, 1)} <= noisy.charged("a", noisy.read(run)[1])


def test_a_frozen_site_is_a_dropout_and_takes_part_again(noisy):
    noisy.order({1: 1, 3: 0})
    run = noisy.submit()
    until(lambda: noisy.read(run)[0].charged)
    noisy.processes["c"].send_signal(signal.SIGSTOP)
    noisy.open_gate(1)
    until(lambda: (2, 1) in noisy.revealed("b", run))
    noisy.processes["c"].send_signal(signal.SIGCONT)
    noisy.all_there()
    noisy.open_gate(3)
    until(lambda: noisy.is_over(run))
    assert {event.attempt for event in noisy.check_end(run).values()} == {1}
    assert {at for at, _ in noisy.revealed("c", run)} | {3} == set(range(3, ROUNDS + 1))


def test_a_coordinator_told_to_stop_ends_well_and_the_run_goes_on_when_asked(noisy):
    noisy.order({3: 2})
    run = noisy.submit()
    until(lambda: (2, 1) in noisy.revealed("a", run))
    noisy.coordinator.terminate()
    noisy.open_gate(3)
    assert noisy.coordinator.wait(60) == 0
    noisy.check(run)
    noisy.coordinate()
    noisy.all_there()
    at = ["--at", str(noisy.root / "operator.membership"), "--key", str(noisy.root / "operator.key")]
    assert subprocess.run([sys.executable, "-m", "hubbub", "resume", run, *at], check=True, capture_output=True).stdout
    until(lambda: noisy.is_over(run))
    noisy.check_end(run)


def test_a_stranger_is_refused(noisy, certificates):
    stranger, own = certificates.Authority().participant("operator"), noisy.people["operator"]
    foreign = Credentials(own.authority, stranger.certificate, stranger.key)
    with pytest.raises(HostError, match="must answer within"):
        send_command(noisy.address, foreign, deployment.ShowStatus().encode(), seconds=5)
    assert noisy.connected() == set(noisy.names)


# --- the coordinator, killed


def live(federation, dice, most):
    """One run whose coordinator is killed up to so often; its name, and how often it was."""
    federation.kill("")
    federation.coordinate(kill=draw(dice))
    federation.all_there()
    run = federation.submit()
    for killed in range(most):
        until(lambda: federation.coordinator.poll() is not None or federation.is_over(run))
        if federation.is_over(run):
            break
        assert federation.coordinator.wait() == KILLED
        federation.check(run)
        federation.coordinate(run, kill=draw(dice) if killed + 1 < most else "")
    else:
        killed = most
    until(lambda: federation.is_over(run))
    if federation.coordinator.poll() is not None:  # at its very end
        federation.coordinate()
    federation.all_there()
    federation.check_end(run)
    refused = {event.code for event in federation.read(run)[2] if isinstance(event, ParticipantRefused)}
    assert "log" not in refused  # nobody is shown a head while too few are back to cosign it
    return run, killed


def draw(dice):
    """After how many places, of about fifty in a round, and seconds after that; see `host_process.py`."""
    return f"{dice.randrange(1, 90)} {dice.choice([0.0, dice.random() / 50])} {dice.choice('0111')}"


def test_a_coordinator_killed_anywhere_never_under_charges_and_ends_its_run(noisy):
    noisy.order()
    dice, killed = random.Random(1), 0
    while killed < 14:
        killed += live(noisy, dice, min(7, 14 - killed))[1]
    lost = sum(len(noisy.read(run)[0].charged) - ROUNDS for run in noisy.runs())
    assert lost >= 3  # kills between charge and end of a round: without them nothing would be shown


def test_a_coordinator_killed_anywhere_ends_with_the_same_model_where_there_is_no_noise(make):
    noiseless = make(**NOISELESS)
    run = noiseless.submit()
    until(lambda: noiseless.is_over(run))
    noiseless.check_end(run)
    model, dice, killed = noiseless.model(run), random.Random(2), 0
    while killed < 6:
        run, times = live(noiseless, dice, 6 - killed)
        killed += times
        assert noiseless.model(run) == model
