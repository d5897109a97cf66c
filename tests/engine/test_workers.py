"""Other processes train: the same results, nothing left behind, and whatever ends, ends in one line."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import read_events

import hubbub
from hubbub.accounting.ledger import Ledger
from hubbub.engine.prepare import prepare
from hubbub.engine.workers import Alone, Pool, Turns
from hubbub.errors import InputError, StoppedError, WorkerError
from hubbub.eventlog import EventLog
from hubbub.events import BudgetCharged, RoundClosed
from hubbub.mechanism.encode import from_ring
from hubbub.messages import pack_parameters
from hubbub.participant.records import Records, Work
from hubbub.planning import make_plan
from hubbub.randomness import OperatingSystemRandomness, Randomness, SeededRandomness
from hubbub.study import Slots

NAMES = ["a", "b", "c", "d", "e", "f", "g"]
EXACT = {"noise": "none", "epsilon": None, "sums": "clear"}
DISTRIBUTED = {"privacy": {"noise": "distributed"}, "cohort": {"colluding": 1}}


def nothing():
    """What is done meanwhile."""


def model_bytes(result):
    return Path(result.out, "model.safetensors").read_bytes()


def uneven(name):
    """Records of one participant, of which there are more or fewer."""
    rows = 5 + 9 * NAMES.index(name)
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    return hubbub.Examples(x, (x.sum(axis=1) > 0).astype(np.int64), slots=rows + 3)


def dropping():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 2))


@pytest.fixture
def same(make_study, run):
    """Assert that a study gives the same bytes with one, two and three workers."""

    def check(tables, randomness=lambda: None, **functions):
        functions = {"participants": lambda: NAMES, "data": uneven} | functions
        models = set()
        for workers in (1, 2, 3):
            speed = tables.get("speed", {}) | {"workers": workers}
            models.add(model_bytes(run(make_study(tables | {"speed": speed}, **functions), randomness=randomness())))
        assert len(models) == 1

    return check


@pytest.mark.parametrize("model", [None, dropping], ids=["linear", "dropout"])
def test_exact_sums_of_updates_do_not_depend_on_the_number_of_workers(client_settings, same, model):
    functions = {} if model is None else {"model": model}
    same(client_settings(privacy=EXACT, training={"local_epochs": 2}), **functions)


def test_weights_by_examples_do_not_depend_on_the_number_of_workers(client_settings, same):
    same(client_settings(privacy=EXACT, training={"weights": "examples"}))


@pytest.mark.parametrize("noise", ["server", "local"])
def test_simulated_noise_and_samples_do_not_depend_on_the_number_of_workers(settings, same, noise):
    same(settings(privacy={"noise": noise, "noise_source": "float-simulation"}))


def test_noise_in_local_steps_does_not_depend_on_the_number_of_workers(settings, same):
    tables = settings(
        privacy={"noise": "local", "epsilon": 20.0}, training={"algorithm": "local-dp-sgd", "local_steps": 3}
    )
    same(tables, randomness=lambda: SeededRandomness(5))


@pytest.mark.parametrize("way", ["run", "elide"])
def test_masked_sums_do_not_depend_on_the_number_of_workers(client_settings, same, way):
    same(client_settings(**DISTRIBUTED, speed={"secagg": way}), randomness=lambda: SeededRandomness(5))


def test_the_cohort_that_was_drawn_is_trained_and_nobody_else(client_settings, same):
    cohort = {"participants": "fixed", "size": 3}
    same(client_settings(cohort=cohort, privacy={"noise": "server"}), randomness=lambda: SeededRandomness(5))


def test_every_attempt_is_charged_before_a_worker_is_asked(client_settings, make_study, run, tmp_path, monkeypatch):
    seen = []
    total = Pool.total

    def watched(self, names, work, meanwhile):
        log = EventLog(tmp_path / "home" / "log.db")
        (account,) = Ledger(log).accounts().runs.values()
        seen.append((work.round_number, work.attempt) in account.charged)
        log.close()
        return total(self, names, work, meanwhile=meanwhile)

    monkeypatch.setattr(Pool, "total", watched)
    run(make_study(client_settings(speed={"workers": 2})))
    assert seen == [True] * 3


# --- what a worker is


@pytest.fixture
def workers(make_study, settings):
    """Make a pool over seven participants' records, one in this process, and what they are asked."""
    pools = []

    def make(tables=None, count=3, randomness=None, **functions):
        study = make_study(tables or settings(), **{"participants": lambda: NAMES, "data": uneven} | functions)
        prepared = prepare(study)
        plan = make_plan(prepared.study)
        common = {"settings": study.settings, "plan": plan, "randomness": randomness or OperatingSystemRandomness()}
        records = {name: Records(name, slots=slots, **common) for name, slots in prepared.slots.items()}
        alone = Alone(records, prepared.learner, study.settings, length=plan.mechanism.length, test=prepared.test)
        pools.append(Pool(alone, count, in_child=lambda: None))
        return pools[-1], alone, Work(bytes(pack_parameters(prepared.learner.initial())), 1, 1), plan

    yield make
    for pool in pools:
        pool.close()


def test_a_sum_is_the_sum_of_the_vectors(workers, client_settings):
    pool, alone, work, _ = workers(client_settings())
    vectors = dict(pool.vectors(NAMES, work))
    assert set(vectors) == set(NAMES)
    for name, vector in alone.vectors(NAMES, work):
        np.testing.assert_array_equal(vector, vectors[name])
    expected = sum(vectors.values(), np.zeros_like(vector))
    for way in (pool, alone):
        np.testing.assert_array_equal(way.total(NAMES, work, meanwhile=nothing), expected)
        np.testing.assert_array_equal(way.total(["c"], work, meanwhile=nothing), vectors["c"])  # fewer than workers
        assert not way.total([], work, meanwhile=nothing).any()


def test_what_is_done_meanwhile_is_done_once_and_while_workers_work(workers, client_settings):
    pool, alone, work, _ = workers(client_settings())
    seen = []
    for way in (pool, alone):
        way.total(NAMES, work, meanwhile=lambda: seen.append(len(pool._waiting)))
    assert seen == [3, 0]


def test_what_workers_measure_adds_up_to_what_one_process_measures(workers, client_settings):
    functions = {"test_data": lambda: uneven("g"), "model": lambda: torch.nn.Sequential(torch.nn.Linear(4, 2))}
    found = set()
    for count in (2, 3, 5):
        pool, alone, work, _ = workers(client_settings(), count=count, **functions)
        assert len(alone.pieces) == 1
        alone.pieces[:] = [Slots(*(part[at : at + 16] for part in parts(alone))) for at in range(0, 59, 16)]
        pool.close()
        pool = Pool(alone, count, in_child=lambda: None)
        model = np.frombuffer(work.model, dtype="<f4")
        found.add(tuple(pool.evaluate(model).items()))
        assert pool.evaluate(model) == alone.evaluate(model)
        pool.close()
    assert len(found) == 1


def parts(alone):
    (piece,) = alone.pieces
    return piece.x, piece.y, piece.is_real


def test_no_two_workers_draw_the_same_noise(workers, settings):
    pool, _, work, plan = workers(
        settings(privacy={"noise": "local", "epsilon": 1.0}), data=lambda _: hubbub.Examples(*EMPTY, slots=9)
    )
    noises = {from_ring(vector).tobytes() for _ in range(3) for _, vector in pool.vectors(NAMES, work)}
    assert plan.mechanism.sigma > 16
    assert len(noises) == 3 * len(NAMES)


EMPTY = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


@pytest.mark.parametrize(("together", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (64, [4, 3])])
def test_groups_are_the_largest_first_and_leave_no_worker_without(workers, together, sizes, monkeypatch):
    _, alone, *_ = workers(count=2)
    monkeypatch.setattr(type(alone._learner), "together", together)
    groups = alone.groups(NAMES, 2)
    assert [len(group) for group in groups] == sizes
    assert [name for group in groups for name in group] == NAMES[::-1]
    assert alone.groups([], 2) == []


def test_each_group_is_taken_by_one_process_only():
    turns, context = Turns(), multiprocessing.get_context("fork")

    def take(pipe):
        pipe.send(list(turns.take(3000)))

    for _ in range(3):
        turns.restart()
        pipes = [context.Pipe(duplex=False) for _ in range(3)]
        processes = [context.Process(target=take, args=(theirs,)) for _, theirs in pipes]
        for process in processes:
            process.start()
        assert sorted(number for ours, _ in pipes for number in ours.recv()) == list(range(3000))
        for process in processes:
            process.join()


class Handmade(Randomness):
    """A source that knows nothing of processes."""

    name = "handmade"

    def words(self, count):
        return np.arange(count, dtype=np.uint64)


def test_randomness_of_which_forks_would_draw_alike_is_never_forked(client_settings, make_study, run, monkeypatch):
    monkeypatch.setattr(Pool, "__init__", None)
    study = make_study(client_settings(speed={"workers": 2}, cohort={"participants": "fixed", "size": 2}))
    assert run(study, randomness=Handmade()).rounds == 3


def test_a_refusal_in_a_worker_is_the_same_refusal(workers):
    pool, alone, work, _ = workers()
    broken = work._replace(model=b"\0" * 4)
    told = []
    for way in (pool, alone):
        with pytest.raises(hubbub.errors.RoundError) as caught:
            way.total(NAMES, broken, meanwhile=nothing)
        told.append((caught.value.message, caught.value.hint))
    assert told[0] == told[1]


# --- a worker that ends by itself


def kill_workers(event, _plan):
    if isinstance(event, RoundClosed) and event.round_number == 1:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)


def test_a_worker_that_is_killed_is_named_and_the_run_goes_on_later(client_settings, make_study, run, tmp_path):
    study = make_study(client_settings(privacy=EXACT, speed={"workers": 2}))
    whole = run(study)
    with pytest.raises(WorkerError) as caught:
        run(study, out=tmp_path / "killed", watch=kill_workers)
    assert caught.value.message.removeprefix("hubbub worker ")[1:] == (
        f", must live as long as the run, found that it was killed by SIGKILL; {stopped(tmp_path, 1)}"
    )
    assert caught.value.hint == (
        "fewer workers need less memory: [speed] workers = 1; "
        f"hubbub resume {tmp_path / 'killed'}, or give it up: hubbub stop {tmp_path / 'killed'}"
    )
    assert caught.value.exit_code == 130
    assert multiprocessing.active_children() == []
    assert model_bytes(hubbub.resume(tmp_path / "killed", study=study)) == model_bytes(whole)


def stopped(folder, rounds):
    (name,) = {event.run for event in read_events(folder / "killed" / "events.jsonl")}
    return (
        f"run {name}, was stopped after round {rounds} of 3; what was charged stays charged, "
        "the rest of its budget stays reserved"
    )


class Leaving(torch.nn.Linear):
    """Ends its process when it trains in one that is not this."""

    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            os._exit(7)
        return super().forward(x)


def test_a_worker_that_leaves_is_named_too(client_settings, make_study, run):
    study = make_study(client_settings(speed={"workers": 2}), model=lambda: Leaving(4, 2))
    with pytest.raises(WorkerError, match=r"hubbub worker \d, must live as long as the run, found that it ended with "):
        run(study)


def test_no_worker_outlives_a_run(client_settings, make_study, run):
    run(make_study(client_settings(speed={"workers": 3})))
    assert multiprocessing.active_children() == []


def test_no_worker_outlives_a_run_that_fails(client_settings, make_study, run, tmp_path):
    def press(event, _plan):
        if isinstance(event, BudgetCharged):
            raise KeyboardInterrupt

    with pytest.raises(StoppedError):
        run(make_study(client_settings(speed={"workers": 2})), out=tmp_path / "stopped", watch=press)
    assert multiprocessing.active_children() == []
    with pytest.raises(InputError):
        run(make_study(client_settings(speed={"workers": 2})), out=tmp_path / "stopped")
    assert multiprocessing.active_children() == []


# --- from outside, with real signals

STUDY = """
[study]
name = "long"
[data.x]
dtype = "float32"
shape = [4]
[data.y]
dtype = "int64"
classes = 2
[privacy]
unit = "client"
noise = "none"
sums = "clear"
retries = 6
[training]
algorithm = "fedavg"
rounds = 6
learning_rate = 0.5
[speed]
workers = 2
"""
CODE = """
import time
import numpy as np
from hubbub import Examples

def participants():
    return ["a", "b", "c", "d"]

def data(name):
    x = np.random.default_rng(ord(name[0])).normal(size=(20, 4)).astype(np.float32)
    return Examples(x, (x.sum(axis=1) > 0).astype(np.int64))

def test_data():
    return data("test")

def parameters():
    return {"w": np.zeros(4, dtype=np.float32)}

def train(parameters, examples, rng):
    time.sleep(0.4)
    return {"w": parameters["w"] + examples.x[rng.permutation(20)[:8]].mean(axis=0)}

def evaluate(parameters, examples):
    return {"accuracy": float(((examples.x @ parameters["w"] > 0) == examples.y).mean())}
"""


@pytest.fixture
def started(tmp_path):
    """Start the command line in a process group of its own, and wait until a worker trains in round 2."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.toml").write_text(STUDY)
    (folder / "study.py").write_text(CODE)
    out = folder / "run"
    command = [sys.executable, "-m", "hubbub", "run", str(folder), "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            until(lambda: (out / "events.jsonl").exists() and "round-closed" in (out / "events.jsonl").read_text())
            time.sleep(0.1)
            yield process, out
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def until(is_so, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def ends_well(out):
    """The run goes on to its end, and has the model of one that nobody stopped."""
    result = hubbub.resume(out)
    log = EventLog(out.parent / ".hubbub" / "log.db")
    charged = Ledger(log).accounts().runs[result.run].charged
    log.close()
    events = read_events(out / "events.jsonl")
    assert charged == {(one.round_number, one.attempt) for one in events if isinstance(one, BudgetCharged)}
    assert [one.round_number for one in events if isinstance(one, RoundClosed)] == [1, 2, 3, 4, 5, 6]
    assert model_bytes(hubbub.run(hubbub.load_study(out.parent), out=out.parent / "whole")) == model_bytes(result)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_in_one_line_with_the_ledger_true_and_the_run_open(started):
    process, out = started
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    error, hint = stderr.strip().splitlines()[-2:]
    assert error.startswith("hubbub: error: run long-")
    assert error.endswith("what was charged stays charged, the rest of its budget stays reserved")
    assert hint == f"hubbub: hint: hubbub resume {out}, or give it up: hubbub stop {out}"
    assert "Traceback" not in stderr
    assert is_gone(process.pid)
    ends_well(out)


@pytest.mark.slow
def test_workers_end_with_the_process_that_they_work_for_and_do_not_hold_its_run(started):
    process, out = started
    process.kill()
    process.wait()
    ends_well(out)  # at once: the lock went with the process that was killed
    until(lambda: is_gone(process.pid), seconds=5)
