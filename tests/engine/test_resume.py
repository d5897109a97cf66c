"""A run that was interrupted goes on: nothing charged is forgotten, nothing asked twice, nothing else changes."""

import hashlib
from functools import partial
from pathlib import Path

import pytest
from recorded import read_events

import hubbub
from hubbub.accounting.ledger import Ledger
from hubbub.errors import InputError, RefusedError, StoppedError
from hubbub.eventlog import EventLog
from hubbub.events import BudgetCharged, Evaluated, RoundClosed, RunFinished, RunResumed
from hubbub.randomness import SeededRandomness
from hubbub.tlog import Store

EXACT = {
    "privacy": {"noise": "none", "epsilon": None, "retries": 4},
    "sampling": {"examples": "everything", "probability": None},
}


def stop_when(kind, round_number):
    """Press Ctrl-C when an event of a kind arrives."""

    def watch(event, _plan):
        if isinstance(event, kind) and event.round_number == round_number:
            raise KeyboardInterrupt

    return watch


def model_bytes(result):
    return hashlib.sha256((Path(result.out) / "model.safetensors").read_bytes()).hexdigest()


def events(result):
    return read_events(Path(result.out) / "events.jsonl")


@pytest.fixture
def exact(make_study, settings):
    """Make a study without noise and sampling, whose result is a matter of its data alone."""

    def make(**changes):
        return make_study(settings(**EXACT), **changes)

    return make


@pytest.fixture
def interrupted(run, tmp_path):
    """Stop a run when an event happens; returns its folder."""

    def stop(study, kind, round_number, out="stopped"):
        with pytest.raises(StoppedError, match="what was charged stays charged, the rest of its budget stays reserved"):
            run(study, out=tmp_path / out, watch=stop_when(kind, round_number))
        return tmp_path / out

    return stop


@pytest.mark.parametrize("kind", [BudgetCharged, RoundClosed, Evaluated])
@pytest.mark.parametrize("round_number", [1, 3, 4])
def test_the_model_has_the_bytes_of_an_uninterrupted_run(exact, run, interrupted, kind, round_number):
    whole = run(exact())
    folder = interrupted(exact(), kind, round_number)
    result = hubbub.resume(folder, study=exact())
    assert model_bytes(result) == model_bytes(whole)
    assert [event.round_number for event in events(result) if isinstance(event, RoundClosed)] == [1, 2, 3, 4]
    measured = [[one for one in events(done) if isinstance(one, Evaluated)] for done in (result, whole)]
    assert [one.metrics for one in measured[0]] == [one.metrics for one in measured[1]]
    (resumed,) = (event for event in events(result) if isinstance(event, RunResumed))
    assert resumed.attempts_lost == (kind is BudgetCharged)


def test_a_run_stopped_many_times_still_ends_the_same(exact, run, interrupted):
    whole = run(exact())
    folder = interrupted(exact(), BudgetCharged, 1)
    for round_number in (2, 3):
        with pytest.raises(StoppedError):
            hubbub.resume(folder, study=exact(), watch=stop_fresh(folder, BudgetCharged, round_number))
    assert model_bytes(hubbub.resume(folder, study=exact())) == model_bytes(whole)


def stop_fresh(folder, kind, round_number):
    """Press Ctrl-C at an event of this process, not at one that is told again."""
    told = iter(range(1000))
    known = len(read_events(folder / "events.jsonl"))

    def watch(event, _plan):
        if next(told) >= known and isinstance(event, kind) and event.round_number == round_number:
            raise KeyboardInterrupt

    return watch


def test_an_attempt_that_was_charged_is_a_retry_and_stays_charged(make_study, interrupted, tmp_path):
    folder = interrupted(make_study(), BudgetCharged, 2)
    result = hubbub.resume(folder, study=make_study())
    charged = [(one.round_number, one.attempt) for one in events(result) if isinstance(one, BudgetCharged)]
    assert charged == [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)]
    log = EventLog(tmp_path / "home" / "log.db")
    assert Ledger(log).accounts().runs[result.run].charged == set(charged)
    log.close()
    assert result.epsilon_spent > hubbub.plan(make_study()).epsilon_after(4)


def test_while_it_may_go_on_the_whole_schedule_stays_reserved_until_it_is_given_up(make_study, interrupted, tmp_path):
    folder = interrupted(make_study(), RoundClosed, 2)
    log = EventLog(tmp_path / "home" / "log.db")
    (account,) = Ledger(log).accounts().runs.values()
    assert not account.is_settled
    assert account.counted("filter") == account.reserved.attempts
    settled = hubbub.stop(folder)
    assert settled.charged == 2
    (account,) = Ledger(log).accounts().runs.values()
    assert account.counted("filter") == 2
    log.close()
    with pytest.raises(RefusedError, match="must be open to go on, found that it was given up") as found:
        hubbub.resume(folder, study=make_study())
    assert found.value.hint == "hubbub run STUDY starts a new one"
    with pytest.raises(RefusedError, match="must be the directory of a run that has ended") as found:
        hubbub.release_run(folder)
    assert found.value.hint == "hubbub run STUDY starts a new one: this one cannot go on"
    with pytest.raises(RefusedError, match="must hold a reservation, found none that is open"):
        hubbub.stop(folder)


def test_where_the_home_is_gone_nothing_is_made_in_its_place(make_study, run, tmp_path):
    study = make_study()
    result = run(study)
    home = Path(result.home)
    home.rename(tmp_path / "moved")
    for act in (partial(hubbub.resume, study=study), hubbub.stop, hubbub.release_run):
        with pytest.raises(InputError, match=rf"{home}, must hold the log of run {result.run}, found none"):
            act(result.out)
    assert not home.exists()


def test_a_run_that_ended_tells_its_result_again(make_study, run):
    first = run(make_study())
    (Path(first.out) / "claim.json").unlink()
    again = hubbub.resume(first.out, study=make_study())
    assert (again.run, again.metrics, again.epsilon_spent) == (first.run, first.metrics, first.epsilon_spent)
    assert (Path(first.out) / "claim.json").exists()
    assert (first.had_ended, again.had_ended) == (False, True)


def test_ctrl_c_between_the_end_and_the_settlement_leaves_a_run_that_resume_settles(make_study, run, tmp_path):
    def watch(event, _plan):
        if isinstance(event, RunFinished):
            raise KeyboardInterrupt

    with pytest.raises(StoppedError):
        run(make_study(), out=tmp_path / "stopped", watch=watch)
    told = hubbub.resume(tmp_path / "stopped", study=make_study())
    assert (told.rounds, told.had_ended) == (4, True)
    log = EventLog(tmp_path / "home" / "log.db")
    (account,) = Ledger(log).accounts().runs.values()
    log.close()
    assert (account.is_settled, len(account.charged)) == (True, 4)
    assert hubbub.verify_bundle(hubbub.release_run(tmp_path / "stopped"))


def test_a_run_that_cannot_write_its_beginning_leaves_nothing(make_study, run, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run(make_study(), out=tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_lost_attempts_use_up_the_retries(make_study, interrupted):
    folder = interrupted(make_study(), BudgetCharged, 1)
    for _ in range(2):
        with pytest.raises(StoppedError):
            hubbub.resume(folder, study=make_study(), watch=stop_fresh(folder, BudgetCharged, 1))
    with pytest.raises(RefusedError, match="may be tried again 2 times in a run, found 3 failed attempts"):
        hubbub.resume(folder, study=make_study())


@pytest.mark.parametrize("seed", [1, 2])
def test_masked_sums_resume_too(exact, run, interrupted, settings, make_study, seed):
    tables = settings(privacy={"noise": "distributed"}, cohort={"colluding": 1, "minimum": 3})
    folder = interrupted(make_study(tables), BudgetCharged, 1 + seed)
    result = hubbub.resume(folder, study=make_study(tables))
    assert result.rounds == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"shift": 1.0}}, "must go on with the data commitment that it began with, found another"),
        ({"learning_rate": 2.0}, "must go on with the plan hash that it began with, found another"),
    ],
)
def test_a_run_goes_on_with_what_it_began_with_or_not_at_all(make_study, settings, interrupted, change, words):
    def data(name, *, shift=0.0):
        import numpy as np

        x = np.full((20, 4), len(name) + shift, dtype=np.float32)
        return hubbub.Examples(x, np.zeros(20, dtype=np.int64))

    folder = interrupted(make_study(data=data), RoundClosed, 1)
    tables = settings(training={"learning_rate": change.get("learning_rate", 1.0)})
    shift = change.get("data", {}).get("shift", 0.0)
    data.__kwdefaults__ = {"shift": shift}
    with pytest.raises(RefusedError, match=words):
        hubbub.resume(folder, study=make_study(tables, data=data))


def test_noise_that_began_as_real_goes_on_as_real(make_study, interrupted):
    folder = interrupted(make_study(), RoundClosed, 1)
    with pytest.raises(RefusedError, match="must go on with the noise source that it began with, found another"):
        hubbub.resume(folder, study=make_study(), randomness=SeededRandomness(1))


SNAPSHOTS = ("snapshot-0", "snapshot-1")


@pytest.mark.parametrize("content", [b"", b"not a snapshot", b"\x08" + bytes(200), None])
def test_damaged_snapshots_are_one_clear_error_and_lose_nothing(make_study, interrupted, content):
    folder = interrupted(make_study(), RoundClosed, 3)
    kept = {name: (folder / name).read_bytes() for name in SNAPSHOTS}
    for name in SNAPSHOTS:
        flipped = bytearray(kept[name])
        flipped[-1] ^= 1
        (folder / name).write_bytes(bytes(flipped) if content is None else content)
    with pytest.raises(InputError, match="must be the snapshot of this run, found it damaged; nothing trained"):
        hubbub.resume(folder, study=make_study())
    for name in SNAPSHOTS:
        (folder / name).unlink()
    with pytest.raises(RefusedError, match="must have its snapshot of round"):
        hubbub.resume(folder, study=make_study())
    for name in SNAPSHOTS:
        (folder / name).write_bytes(kept[name])
    assert hubbub.resume(folder, study=make_study()).rounds == 4


def test_a_snapshot_that_was_being_written_leaves_the_one_before(exact, run, interrupted):
    """Killed while it wrote round 3's snapshot, before that round's closing event."""
    whole = run(exact())
    folder = interrupted(exact(), BudgetCharged, 3)
    (folder / SNAPSHOTS[1]).write_bytes(b"half of it")
    assert model_bytes(hubbub.resume(folder, study=exact())) == model_bytes(whole)


def test_one_process_runs_a_run(make_study, interrupted):
    import fcntl

    folder = interrupted(make_study(), RoundClosed, 2)
    with (folder / "run.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="is being run by another process; nothing done, nothing spent"):
            hubbub.resume(folder, study=make_study())
        with pytest.raises(RefusedError, match="is being run by another process"):
            hubbub.stop(folder)
    assert hubbub.resume(folder, study=make_study()).rounds == 4


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b'{"format":1,"run":"\xff","study":null,"home":""}'])
def test_a_folder_that_is_no_run_directory_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match="must be a run directory"):
        hubbub.resume(tmp_path)


def test_a_notebook_study_must_be_given_again(make_study, interrupted):
    folder = interrupted(make_study(), RoundClosed, 2)
    with pytest.raises(InputError, match="was made from functions in a notebook, found no study to go on with"):
        hubbub.resume(folder)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_ctrl_c_right_after_a_write_writes_nothing_twice(exact, run, tmp_path, monkeypatch, count):
    whole = run(exact())
    append, appends = Store.append, iter(range(1000))

    def append_then_stop(self, decide):
        indexes = append(self, decide)
        if next(appends) == count:
            raise KeyboardInterrupt
        return indexes

    monkeypatch.setattr(Store, "append", append_then_stop)
    with pytest.raises(StoppedError):
        run(exact(), out=tmp_path / "stopped")
    result = hubbub.resume(tmp_path / "stopped", study=exact())
    assert [event.round_number for event in events(result) if isinstance(event, RoundClosed)] == [1, 2, 3, 4]
    assert model_bytes(result) == model_bytes(whole)


def test_ctrl_c_right_after_a_commit_is_ctrl_c_and_what_was_committed_stays(tmp_path):
    store = Store(tmp_path / "log.db")
    connection = store._database._connection

    class Interrupted:
        def __getattr__(self, name):
            return getattr(connection, name)

        def execute(self, statement, *values):
            result = connection.execute(statement, *values)
            if statement == "COMMIT":
                raise KeyboardInterrupt
            return result

    store._database._connection = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        store.append(lambda _: [b"{}"])
    store._database._connection = connection
    assert store.entries() == [b"{}"]
    store.check()
    store.close()
