"""Coordinator and sites as processes on hosts of their own, and what happens to the network between them.

The referee is in `processes.py`.
"""

import random
import socket
import time

import network as networks
import processes
import pytest

from hubbub.events import RoundFailed

pytestmark = pytest.mark.slow


ROUNDS, until = processes.ROUNDS, processes.until


def permitted(make):
    """What `make` makes; skips, with the system's words, where it is not permitted."""
    try:
        return make()
    except networks.ForbiddenError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cables():
    """Lay a network for five sites."""
    made = permitted(lambda: networks.Network("abcde"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def apart(cables, federations):
    """Give a federation whose hosts have that network between them."""
    options = {"listen": f"{cables.coordinator}:8443", "within": cables.within, "patience": 10}
    return federations(**processes.NOISY, **options)


@pytest.fixture
def mended(cables):
    """Give the network, and have all of it as it was after the test."""
    yield cables
    cables.mend(*"abcde")


def test_a_site_that_is_cut_off_is_a_dropout_and_takes_part_again(apart, mended):
    apart.order({2: 2, 5: 0})
    run = apart.submit()
    apart.wait_at_gate(2, run)
    mended.cut("c")
    apart.open_gate(2)
    until(lambda: (4, 1) in apart.revealed("b", run))
    assert apart.connected() == set("abde")
    mended.mend("c")
    apart.all_there()
    apart.open_gate(5)
    until(lambda: apart.is_over(run))
    rounds = apart.check_end(run)
    assert {event.attempt for event in rounds.values()} == {1}
    assert [event.participants for event in rounds.values()] == [5, 4, 4, 4, 4, 5, 5, 5]
    assert {at for at, _ in apart.revealed("c", run)} == {1, 2, 6, 7, 8}  # made in 2, never arrived, and charged


def test_with_two_sites_cut_off_the_run_waits_by_name_and_goes_on_when_they_are_back(apart, mended):
    apart.order({3: 2})
    run = apart.submit()
    apart.wait_at_gate(3, run)
    mended.cut("d", "e")
    apart.open_gate(3)
    told = apart.ended(apart.command, run)
    assert told.state == "interrupted"
    assert "waits for 4 participants and a quorum of 6 witnesses, found a, b, c; nothing more asked" in told.words
    (failed,) = (event for event in apart.read(run)[2] if isinstance(event, RoundFailed))
    assert "needs 4 survivors, found 3" in failed.reason
    apart.check(run)
    mended.mend("d", "e")
    apart.all_there()
    apart.resume(apart.command, run)
    until(lambda: apart.is_over(run))
    assert {at: event.attempt for at, event in apart.check_end(run).items() if event.attempt > 1} == {3: 2}


def test_a_run_ends_well_over_a_network_that_is_slow_and_loses_packets(apart, mended):
    permitted(lambda: mended.disturb("delay 50ms loss 2%", *"abcde"))
    apart.order()
    run = apart.submit()
    until(lambda: apart.is_over(run))
    apart.check_end(run)


def test_a_run_ends_well_over_lines_that_are_slow_stall_and_are_cut(federations, wire):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line, dice = wire(port), random.Random(4)
    line.pause = lambda _size: 0.05 + 0.3 * (dice.random() < 0.02)  # what a lost packet is to whoever waits for it
    away = federations(listen=f"localhost:{port}", address=line.address, **processes.NOISY)
    run, cuts = away.submit(), 0
    while not away.is_over(run):
        time.sleep(dice.uniform(1, 4))
        line.cut(newest=dice.randrange(1, 6))
        cuts += 1
    away.check_end(run)
    assert cuts >= 3
