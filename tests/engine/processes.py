"""A federation in processes of its own, by the real commands, and what holds of it at any time.

The referee is what left the sites: `host_process.py` notes each masked vector before it is handed on, in a file that
a kill cannot take back; it stands against the sites' own memory and the coordinator's ledger.
"""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import deployment

from hubbub.accounting.accounts import Accounts
from hubbub.engine.direct import Credentials, send_command
from hubbub.engine.home import open_log
from hubbub.engine.record import events_of
from hubbub.errors import HostError
from hubbub.events import RoundClosed, RunFinished
from hubbub.governance.enrolment import client_credentials, read_membership
from hubbub.participant.log_view import LogView

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

    def __init__(self, root, *, listen=None, within=lambda _name: [], patience=90, **options):
        """`listen`: where the coordinator does, if not where others dial; `within`: what a command is run by."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            loopback = f"localhost:{free.getsockname()[1]}"
        super().__init__(root, **{"address": listen or loopback} | options)
        self.listen, self.within, self.patience = listen or self.address, within, str(patience)
        self.control, self.processes = root / "control", {}
        self.control.mkdir()
        self.order()
        self.people = {}
        for name in ("scientist", "operator"):
            membership = read_membership(self.admit(name, root / f"{name}.membership"))
            self.keys[name].save(root / f"{name}.key")
            self.people[name] = Credentials(*client_credentials(self.keys[name], membership, now=int(time.time())))
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        for name in self.names:
            self.join(name)
        self.coordinate()
        self.all_there()
        self.submission = self.approve_study(self.command)

    # --- processes

    def spawn(self, name, *arguments, kill=""):
        environment = os.environ | ({"HUBBUB_KILL": kill} if kill else {})
        with (self.root / f"{name}.err").open("a") as errors:
            command = [*self.within(name), sys.executable, SCRIPT, str(self.control), *arguments]
            self.processes[name] = subprocess.Popen(command, stderr=errors, stdout=errors, env=environment)

    def join(self, name):
        self.spawn(name, "join", str(self.site(name)))

    def coordinate(self, *runs, kill=""):
        resumed = [word for run in runs for word in ("--resume", run)]
        times = ["--stage", "60", "--training", "60", "--patience", self.patience]
        self.spawn("", "coordinate", str(self.home), "--address", self.listen, *times, *resumed, kill=kill)

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
        return send_command(self.listen, self.people[name], data, seconds=60)

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
        return self.noted("masked", name, run)

    def wait_at_gate(self, number, run):
        """Wait until every site stands at the gate in the first attempt of a round."""
        until(lambda: all((number, 1) in self.noted("waiting", name, run) for name in self.names))

    def noted(self, what, name, run):
        path = self.control / f"{what}-{name}"
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
