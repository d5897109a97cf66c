"""Runs are killed with SIGKILL, hundreds of times: never under-charged, nothing acknowledged lost, all end well.

The referee is not the ledger but what left the participants: `crash_server.py` notes each reply that carries a
vector just before it is handed on, in a file that a kill cannot take back.
"""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hubbub.accounting.ledger import Ledger
from hubbub.engine.home import open_log_key
from hubbub.engine.record import events_of
from hubbub.eventlog import EventLog
from hubbub.events import RoundClosed, RunFinished, encode_event
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.note import parse_note

KILLED = -9
ROUNDS = RETRIES = 4

SETTINGS = """
[study]
name = "crashed"
seed = 3
[data.x]
dtype = "float32"
shape = [4]
[data.y]
dtype = "int64"
classes = 2
"""
CLIENT = f"""
[training]
algorithm = "fedavg"
rounds = {ROUNDS}
learning_rate = 0.5
batch_size = 8
[privacy]
unit = "client"
retries = {RETRIES}
"""
STEPS = f"""
[training]
algorithm = "dp-sgd"
rounds = {ROUNDS}
learning_rate = 1.0
[privacy]
unit = "example"
retries = {RETRIES}
epsilon = 4.0
noise = "server"
"""
KINDS = {
    "server": CLIENT + 'noise = "server"\nepsilon = 30.0',
    "distributed": CLIENT + 'noise = "distributed"\nepsilon = 30.0\n[cohort]\ncolluding = 1\nminimum = 3',
    "exact": CLIENT + 'noise = "none"\nsums = "clear"',
    "exact, masked": CLIENT + 'noise = "none"\nsums = "masked"',
    "dp-sgd": STEPS + '[sampling]\nexamples = "poisson"\nprobability = 0.5',
}

DATA = """
import numpy as np
from hubbub import Examples

def participants():
    return ["a", "b", "c"]

def data(name):
    x = np.random.default_rng(ord(name[0])).normal(size=(20, 4)).astype(np.float32)
    return Examples(x, (x.sum(axis=1) > 0).astype(np.int64))

def test_data():
    return data("test")
"""
ARRAYS = """
def parameters():
    return {"w": np.zeros(16, dtype=np.float32)}

def train(parameters, examples, rng):
    rows = rng.permutation(len(examples.x))[:8]
    signs = 2 * examples.y[rows, None] - 1 - parameters["w"][:4].sum()
    return {"w": parameters["w"] + np.tile((signs * examples.x[rows]).mean(axis=0), 4)}

def evaluate(parameters, examples):
    return {"accuracy": ((examples.x @ parameters["w"][:4] > 0) == examples.y).mean()}
"""
MODEL = """
import torch

def model():
    return torch.nn.Linear(4, 2)
"""


class UnderChargedError(AssertionError):
    """Something left a participant that the log on the disk does not charge."""


class Server:
    """The process that forks; it has imported everything already."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("crash_server.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.whole = {}
        """By kind, the model of a run that nobody killed."""

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        with self._process:  # closes the pipes, at which it ends, and waits
            pass


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


class World:
    """One run from its first command to its end, and all that is demanded of it on the way."""

    def __init__(self, server, folder, kind, mutant=None):
        self.folder, self.kind, self._server, self._mutant = folder, kind, server, mutant
        self.notes, self.out, self._home = folder / "notes", folder / "run", folder / ".hubbub"
        self.notes.mkdir(parents=True)
        (folder / "study.toml").write_text(SETTINGS + KINDS[kind])
        (folder / "study.py").write_text(DATA + (MODEL if kind == "dp-sgd" else ARRAYS))
        self._known = (0, None)
        self.history = []

    def __repr__(self):
        return f"a run of kind {self.kind!r} after {self.history}"

    @property
    def arguments(self):
        """What a person would type next."""
        if self.out.exists():
            return ["resume", str(self.out), "--quiet"]
        return ["run", str(self.folder), "--out", str(self.out), "--quiet"]

    def go(self, **how):
        """Run or resume, perhaps to be killed; then everything is checked. Returns the exit code."""
        self.history.append(how)
        answer = self._server.ask(arguments=self.arguments, notes=str(self.notes), mutant=self._mutant, **how)
        self.seconds = answer["seconds"]
        self.check()
        return answer["code"]

    def lines(self, name):
        file = self.notes / name
        return file.read_text().splitlines() if file.exists() else []

    @property
    def sent(self):
        return [(int(line.split()[1]), int(line.split()[2])) for line in self.lines("sent")]

    def model(self):
        return (self.out / "model.safetensors").read_bytes()

    def check(self):
        """What holds after every kill, read from the disk by a process that was not killed."""
        if not (self._home / "log.db").exists():
            assert not self.lines("acked"), self
            assert not self.sent, self
            return
        log = EventLog(self._home / "log.db")
        try:
            self._check_log(log)
            self._check_charges(Ledger(log).accounts().runs)
        finally:
            log.close()
        for name in ("sent", "noise"):  # who answered which attempt; which noise was drawn
            assert len(set(self.lines(name))) == len(self.lines(name)), (name, self)

    def _check_log(self, log):
        """No acknowledged entry is lost or changed, and no signed head is ahead of the disk."""
        log.store.check()
        size, root = self._known
        assert log.store.size >= max([size, *map(int, self.lines("acked"))]), self
        assert size == 0 or log.store.root(size) == root, self
        self._known = (log.store.size, log.store.root())
        heads = [json.loads(line).encode() for line in self.lines("heads")]
        if (self.out / "checkpoint").exists():
            heads.append((self.out / "checkpoint").read_bytes())
        for head in heads:
            stated = parse_checkpoint(parse_note(head).text)
            assert stated.size <= log.store.size, self
            assert stated.root == log.store.root(stated.size), self

    def _check_charges(self, runs):
        charged = {pair for account in runs.values() for pair in account.charged}
        if missing := set(self.sent) - charged:
            raise UnderChargedError(f"{sorted(missing)} left and is not charged: {self}")
        assert all(len(account.charged) <= account.reserved.attempts == ROUNDS + RETRIES for account in runs.values())

    def refused(self):
        """Whether the run never came to be, and what the last command said is one error and one hint that say so."""
        error, hint = (self.notes / "output").read_text().splitlines()[-2:]
        is_clear = "must be a run directory" in error or " to go on, found none: it was interrupted before" in error
        return is_clear and hint.startswith("hubbub: hint: ") and not self.sent

    def check_end(self):
        """What holds of a run that has ended: everything is there, once, and says the same."""
        log = EventLog(self._home / "log.db")
        try:
            (account,) = Ledger(log).accounts().runs.values()
            events = events_of(log, account.reserved.run)
        finally:
            log.close()
        assert account.is_settled, self
        assert [event.round_number for event in events if isinstance(event, RoundClosed)] == [1, 2, 3, 4], self
        assert sum(isinstance(event, RunFinished) for event in events) == 1, self
        told = (self.out / "events.jsonl").read_bytes().splitlines()
        assert told == [encode_event(event) for event in events], self
        claim = json.loads((self.out / "claim.json").read_bytes())
        assert claim["attempts_charged"] == len(account.charged), self
        assert (self.out / "report.html").read_text().rstrip().endswith("</html>"), self
        head = parse_note((self.out / "checkpoint").read_bytes())
        assert open_log_key(self._home).verifier.signed_at(head) is not None, self
        assert parse_checkpoint(head.text).size == self._known[0], self
        whole = self._server.whole.get(self.kind) if self.kind.startswith("exact") else None
        assert whole is None or self.model() == whole, self


def worlds(server, folder, kind, mutant=None):
    """Make worlds of one kind, one after the other; the server's caches are filled first."""
    if kind not in server.whole:
        first, modules = World(server, folder / "warm", kind), []
        warming = first.arguments
        if kind == "dp-sgd":  # a process that has trained with torch cannot be forked: its threads would be missing
            assert first.go() == 0, first
            warming, modules = ["plan", str(first.folder), "--json"], ["torch", "torch._dynamo"]
        assert server.ask(is_warming=True, arguments=warming, modules=modules)["code"] == 0
        server.whole[kind] = first.model()
    for number in range(1000):
        yield World(server, folder / str(number), kind, mutant)


SNAPSHOT = {"place": "Running._train > RunFolder.write_snapshot after", "nth": 2}


def trace(world, name):
    """All places of one command that was not killed, with how often it comes by each."""
    assert world.go(trace=str(world.notes / name)) == 0
    return Counter(json.loads((world.notes / name).read_text()))


WHERE_IT_COUNTS = ("SitesHere._carry ", "Running.charge ", "SitesHere.attempt ", "Running._train ", "Participant.")
WHERE_IT_COUNTS += ("SitesHere._train ", "Alone.total ", "Alone.vectors ", "Records.", "make_vectors ")
WHERE_IT_COUNTS += (
    "Client.",
    "Ledger.charge",
    "EventLog.",
    "Store.append ",
    "Database.transaction ",
    "RunFolder.write",
)


class Killer:
    """Draws where the next command is killed: at some time, anywhere, or where it charges, sends and writes."""

    def __init__(self, stream, seed):
        whole, traced, cut = next(stream), next(stream), next(stream)
        assert whole.go() == 0
        self._seconds = whole.seconds
        self._places = {"run": trace(traced, "places")}
        assert cut.go(**SNAPSHOT) == KILLED
        self._places["resume"] = trace(cut, "places")
        self._dice = random.Random(seed)

    def draw(self, command):
        way, places = self._dice.randrange(3), self._places[command]
        if way == 0:
            return {"seconds": self._dice.uniform(0, self._seconds)}
        place = self._dice.choice([place for place in sorted(places) if way == 1 or place.startswith(WHERE_IT_COUNTS)])
        return {"place": place, "nth": 1 + int(places[place] * self._dice.random() ** 2)}


def live(world, killer, most):
    """Kill a run up to so often, then let it end; returns how often it was killed. Each loses one attempt at most."""
    killed = 0
    while killed < most:
        code = world.go(**killer.draw(world.arguments[0]))
        if code != KILLED:
            break
        killed += 1
    else:
        code = world.go()
    if code == 0:
        assert world.go() == 0, world  # it tells its result again
        world.check_end()
    else:
        assert world.refused(), world
    return killed


def kill_often(server, folder, kind, *, kills, seed, mutant=None):
    """Kill runs of a kind so often, at random; returns how many attempts were lost."""
    stream = worlds(server, folder, kind, mutant)
    killer, killed, lost = Killer(stream, seed), 1, 0
    while killed < kills:
        world = next(stream)
        killed += live(world, killer, min(RETRIES, kills - killed))
        lost += len(set(world.sent) - {(number, 1) for number in range(ROUNDS + 1)})
    return lost


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("server", 50), ("distributed", 50), ("exact", 50), ("exact, masked", 50)])
def test_a_run_killed_anywhere_is_never_under_charged_and_ends_well(server, tmp_path, kind, kills):
    lost = kill_often(server, tmp_path, kind, kills=kills, seed=1)
    assert lost >= kills // 8  # kills between charge and end of a round; without them nothing would be shown


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "distributed", "exact"])
@pytest.mark.parametrize("mutant", ["late", "in memory"])
def test_a_charge_after_sending_is_found(server, tmp_path, kind, mutant):
    with pytest.raises(UnderChargedError, match="left and is not charged"):
        kill_often(server, tmp_path, kind, kills=96, seed=1, mutant=mutant)


def test_killed_when_vectors_leave_the_charge_is_on_the_disk_already(server, tmp_path):
    world = next(worlds(server, tmp_path, "distributed"))
    for nth in (2, 1, 1):
        assert world.go(place="Client.mask > Client._write after", nth=nth) == KILLED
    assert world.go() == 0
    world.check_end()
    charged = {(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1)}
    assert set(world.sent) <= charged


@pytest.mark.slow
def test_record_level_runs_killed_between_vectors_are_never_under_charged_and_end_well(server, tmp_path):
    world = next(worlds(server, tmp_path, "dp-sgd"))
    for nth in (2, 6, 3, 1):  # the vectors of one process
        assert world.go(place="make_vectors > observe.<locals>.noting_vector_of_gradients after", nth=nth) == KILLED
    assert world.go() == 0
    world.check_end()
    asked = {(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (4, 1)}
    assert asked - {(2, 3)} <= set(world.sent) <= asked


BEFORE_IT_IS = {
    "Running.reserve > RunFolder.make after": "must be a run directory",
    "RunFolder.write_start > RunFolder.write before": "must be a run directory",
    "Running.reserve > RunFolder.write_start after": "it was interrupted before it made one, or that log is another's; "
    "nothing trained, nothing spent",
    "Running.reserve > Ledger.reserve before": "must hold a reservation in the log of ",
}


@pytest.mark.parametrize("place", BEFORE_IT_IS)
def test_a_run_killed_before_its_reservation_never_was(server, tmp_path, place):
    world = next(worlds(server, tmp_path, "exact"))
    assert world.go(place=place, nth=1) == KILLED
    assert world.go() in {1, 2}
    assert world.refused()
    assert BEFORE_IT_IS[place] in (world.notes / "output").read_text()


AT_ITS_BEGINNING = [
    "Running.reserve > Ledger.reserve after",
    "Running.run > Running._begin before",
    "Running.run > Record.__init__ before",
    "Running.run > EventLog.flush before",
    "Running.run > EventLog.flush after",
]
AT_ITS_END = [
    "Running._finish > RunFolder.write_model before",
    "Running._finish > RunFolder.write_model after",
    "Running._finish > Record.append after",
    "Running._finish > Ledger.settle before",
    "Running._finish > Ledger.settle after",
    "Running._result > claim_from_log before",
    "Running._result > write_report before",
    "Running._result > write_report after",
    "Running._result > observe.<locals>.noting_sign after",
]


@pytest.mark.slow
@pytest.mark.parametrize("place", [*AT_ITS_BEGINNING, *AT_ITS_END])
def test_killed_at_its_beginning_or_end_it_ends_well(server, tmp_path, place):
    world = next(worlds(server, tmp_path, "exact, masked"))
    assert world.go(place=place, nth=1) == KILLED
    assert world.go() == 0
    world.check_end()


AT_RESUMING = [
    "_study_of > load_study before",
    "resume > Running.run before",
    "Running.run > Record.__init__ before",
    "Record.__init__ > Record.copy before",
    "Record.copy > FileIO.write after",
    "Running.run > Record.append after",
    "Running.run > EventLog.flush before",
    "Running.run > EventLog.flush after",
    "Running._coordinator > SitesHere.begin after",
    "SitesHere.attempt > Coordinator.open after",
]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_killed_while_it_writes_a_snapshot_it_goes_on_from_the_one_before(server, tmp_path, nth):
    world = next(worlds(server, tmp_path, "exact"))
    assert world.go(place="RunFolder.write_snapshot > BufferedWriter.write before", nth=2 * nth) == KILLED
    assert world.go() == 0, (world.notes / "output").read_text()
    world.check_end()
    assert set(world.sent) == {(1, 1), (2, 1), (3, 1), (4, 1), (nth, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [SNAPSHOT, {"place": "Ledger.charge > EventLog.append after", "nth": 3}], ids=["a", "b"]
)
@pytest.mark.parametrize("place", AT_RESUMING)
def test_killed_while_it_resumes_it_ends_well(server, tmp_path, place, first):
    world = next(worlds(server, tmp_path, "exact, masked"))
    assert world.go(**first) == KILLED
    for _ in range(2):
        assert world.go(place=place, nth=1) == KILLED
    assert world.go() == 0
    world.check_end()


def test_a_reservation_is_for_its_own_plan_even_before_the_run_began(server, tmp_path):
    world = next(worlds(server, tmp_path, "server"))
    assert world.go(place="Running.reserve > Ledger.reserve after", nth=1) == KILLED
    file = world.folder / "study.toml"
    file.write_text(file.read_text().replace("learning_rate = 0.5", "learning_rate = 0.25"))
    assert world.go() == 1
    assert "must go on with the plan hash that it began with, found another" in (world.notes / "output").read_text()
    assert not world.sent
