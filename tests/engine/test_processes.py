"""Coordinator and sites as processes of their own on loopback: killed in every stage and anywhere, frozen, stopped.

The referee is in `processes.py`.
"""

import random
import signal
import subprocess
import sys

import processes
import pytest

from hubbub.engine.commands import ShowStatus
from hubbub.engine.direct import Credentials, send_command
from hubbub.errors import HostError
from hubbub.events import ParticipantRefused

pytestmark = pytest.mark.slow


KILLED, LAST, ROUNDS, until = processes.KILLED, processes.LAST, processes.ROUNDS, processes.until


@pytest.fixture(scope="module")
def noisy(federations):
    """Give a federation with noise, its coordinator and five sites."""
    return federations(**processes.NOISY)


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
        send_command(noisy.address, foreign, ShowStatus().encode(), seconds=5)
    assert noisy.connected() == set(noisy.names)


def test_a_model_that_is_spooled_at_both_ends_goes_through_its_rounds(federations):
    code = processes.deployment.CODE.replace("dtype=np.float32)}", 'dtype=np.float32), "b": np.ones(1 << 20, "f4")}')
    code = code.replace("astype(np.float32)}", 'astype(np.float32), "b": parameters["b"]}')
    large = federations(**processes.NOISY, code=code)
    run = large.submit()
    until(lambda: large.is_over(run))
    assert {event.attempt for event in large.check_end(run).values()} == {1}
    assert len(large.model(run)) > 4 << 20
    assert [list((folder / "spool").iterdir()) for folder in (large.home, large.site("a"))] == [[], []]


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


def test_a_coordinator_killed_anywhere_ends_with_the_same_model_where_there_is_no_noise(federations):
    noiseless = federations(**processes.NOISELESS)
    run = noiseless.submit()
    until(lambda: noiseless.is_over(run))
    noiseless.check_end(run)
    model, dice, killed = noiseless.model(run), random.Random(2), 0
    while killed < 6:
        run, times = live(noiseless, dice, 6 - killed)
        killed += times
        assert noiseless.model(run) == model
