"""The direct carrier between processes: killed, frozen, sent 400 MB."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from hubbub.engine.direct import Tuning

pytestmark = pytest.mark.slow


class Process:
    """A participant in a process of its own, which gives back what it is sent."""

    def __init__(self, one, name, folder):
        self._name, self._one = name, one
        credentials = one.enrol(name)
        folder.mkdir()
        for field in fields(credentials):
            (folder / field.name).write_bytes(getattr(credentials, field.name))
        script = str(Path(__file__).with_name("echo_site.py"))
        self._command = [sys.executable, script, one.address, str(folder), str(one.tuning.keepalive)]

    def start(self):
        self.process = subprocess.Popen(self._command)
        while self._name not in self._one.there():
            assert self.process.poll() is None
            time.sleep(0.002)

    def gone(self, seconds):
        """Wait until the coordinator knows; returns how long that took."""
        start = time.monotonic()
        while self._name in self._one.there():
            assert time.monotonic() < start + seconds
            time.sleep(0.002)
        return time.monotonic() - start

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def federation(direct, tmp_path):
    """Make a coordinator and processes."""
    made = []

    def make(*names, **options):
        one = direct(**options)
        made.extend(Process(one, name, tmp_path / name) for name in names)
        for process in made:
            process.start()
        return one, *made

    yield make
    for process in made:
        process.kill()


def peak(pid):
    """Bytes that a process has had in memory at most, pages of files included."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def test_a_killed_process_is_known_to_be_gone_at_once_and_takes_part_again(federation):
    one, north, _ = federation("north", "south")
    for _ in range(3):
        answers = one.transport.ask({"north": bytes(30_000_000), "south": b"1"}, seconds=30)
        north.kill()
        assert north.gone(5) < 1
        north.start()
        assert {name: len(reply) for name, reply in answers} == {"north": 30_000_000, "south": 1}


def test_a_frozen_process_is_a_dropout_and_comes_back(federation):
    one, north, _ = federation("north", "south", tuning=Tuning(grace=0.3, keepalive=1.0))
    north.process.send_signal(signal.SIGSTOP)
    assert dict(one.transport.ask({"north": b"1", "south": b"2"}, seconds=30)) == {"south": b"2"}
    assert one.there() == {"south"}
    north.process.send_signal(signal.SIGCONT)
    start = time.monotonic()
    while "north" not in one.there():
        assert time.monotonic() < start + 5
        time.sleep(0.01)
    assert dict(one.transport.ask({"north": b"3"}, seconds=30)) == {"north": b"3"}


def test_four_hundred_megabytes_both_ways_are_in_memory_at_most_thrice(direct, federation):
    size = 400_000_000
    one, north = federation("north", tuning=Tuning())
    before = peak(os.getpid())
    message = os.urandom(size)
    for _ in range(2):
        [(_, reply)] = one.transport.ask({"north": message}, seconds=120)
        assert reply == message
        del reply
    assert peak(north.process.pid) < 1.5 * size
    assert peak(os.getpid()) - before < 2.5 * size


def test_a_slow_wire_is_not_a_dead_one(direct, wire):
    one = direct()
    line = wire(one.transport.port)
    line.pause = lambda size: size / 4_000_000
    seen = []
    one.join("north", lambda question: seen.append(1) or bytes(question), line.address)
    [(_, reply)] = one.transport.ask({"north": bytes(12_000_000)}, seconds=60)
    assert len(reply) == 12_000_000
    assert seen == [1]
