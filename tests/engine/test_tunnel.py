"""Connections carried over one message at a time: whole and in order, or closed at both ends."""

import random
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest

from hubbub.engine.flare import tunnel
from hubbub.engine.flare.tunnel import CHUNK, Tunnel

OPEN, DATA, END, BEAT = range(4)


def message(kind, name=b"12345678", data=b"", number=0):
    return struct.pack(">8sBQ", name, kind, number) + data


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def read(local):
    chunks = []
    with suppress(ConnectionError):
        while chunk := local.recv(1 << 16):
            chunks.append(chunk)
    return b"".join(chunks)


class Pair:
    """Two ends; what the near one opens comes out of a socket in `far`. The link can refuse, and keeps count."""

    def __init__(self):
        self.far_sockets, self.near_sockets, self.is_up, self.taken = [], [], True, []
        self.near = Tunnel(lambda one, _: self._pass(one, self.far))
        self.far = Tunnel(lambda one, _: self._pass(one, self.near), self._connect)

    def _pass(self, one, end):
        if not self.is_up:
            return False
        self.taken.append(one[8])
        return end.take(one)

    def _connect(self):
        ours, theirs = socket.socketpair()
        self.far_sockets.append(theirs)
        return ours

    def open(self):
        ours, theirs = socket.socketpair()
        self.near_sockets.append(theirs)
        self.near.open(ours)
        return theirs

    def both(self):
        local = self.open()
        until(lambda: self.far_sockets)
        return local, self.far_sockets[-1]


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.near.close()
    made.far.close()
    for local in made.near_sockets + made.far_sockets:
        local.close()
    until(lambda: not [thread for thread in threading.enumerate() if "hubbub-tunnel" in thread.name])


@pytest.mark.parametrize("size", [1, CHUNK, 50 * CHUNK + 7])
def test_bytes_come_out_as_they_went_in_both_ways(pair, size):
    local, remote = pair.both()
    for source, target in ((local, remote), (remote, local)):
        data = random.Random(size).randbytes(size)
        sending = threading.Thread(target=source.sendall, args=(data,))
        sending.start()
        received = b""
        while len(received) < size:
            received += target.recv(1 << 20)
        sending.join()
        assert received == data


def test_many_connections_at_once_do_not_mix(pair):
    locals_ = [pair.open() for _ in range(20)]
    for number, local in enumerate(locals_):
        local.sendall(bytes([number]) * 1000)
        local.shutdown(socket.SHUT_WR)
    until(lambda: len(pair.far_sockets) == 20)
    assert sorted(read(remote) for remote in pair.far_sockets) == [bytes([number]) * 1000 for number in range(20)]


@pytest.mark.parametrize("closes_near", [True, False])
def test_who_closes_closes_both_ends(pair, closes_near):
    local, remote = pair.both()
    closing, other = (local, remote) if closes_near else (remote, local)
    closing.sendall(b"the last words")
    closing.close()
    assert read(other) == b"the last words"
    until(lambda: not pair.near._connections and not pair.far._connections)


def test_a_receiver_that_does_not_read_makes_the_sender_wait(pair):
    local, remote = pair.both()
    local.settimeout(0.3)
    with pytest.raises(TimeoutError):
        local.sendall(bytes(200 * CHUNK))
    assert pair.taken.count(DATA) < 20 + tunnel.WINDOW
    remote.close()


def test_a_link_that_breaks_closes_connections(pair):
    local, remote = pair.both()
    pair.is_up = False
    local.sendall(b"into nothing")
    assert read(local) == b""
    pair.is_up = True
    remote.sendall(b"nobody has this connection any more")
    assert read(remote) == b""


def test_a_connection_that_nobody_takes_is_closed(pair):
    pair.far._connect = None
    assert read(pair.open()) == b""

    def refused():
        raise ConnectionRefusedError

    pair.far._connect = refused
    assert read(pair.open()) == b""
    assert not pair.near._connections


def test_an_end_takes_no_more_connections_than_its_limit(pair):
    locals_ = [pair.open() for _ in range(tunnel._MOST)]
    until(lambda: len(pair.far._connections) == tunnel._MOST)
    assert read(pair.open()) == b""
    assert not pair.far.take(message(OPEN))
    locals_[0].close()
    until(lambda: len(pair.far._connections) == tunnel._MOST - 1)
    assert pair.far.take(message(OPEN))


def test_messages_that_overtake_each_other_wait_for_their_turn(pair):
    assert pair.far.take(message(OPEN))
    late = [(message(DATA, data=b"b", number=1)), message(END, number=3), message(DATA, data=b"c", number=2)]
    waiting = [threading.Thread(target=pair.far.take, args=(one,)) for one in late]
    for thread in waiting:
        thread.start()
    assert pair.far.take(message(DATA, data=b"a"))
    for thread in waiting:
        thread.join()
    assert read(pair.far_sockets[0]) == b"abc"
    assert not pair.far._connections


def test_a_message_whose_turn_never_comes_closes_the_connection(pair, monkeypatch):
    monkeypatch.setattr(tunnel, "_DELIVERY", 0.1)
    assert pair.far.take(message(OPEN))
    assert not pair.far.take(message(DATA, data=b"b", number=1))
    assert read(pair.far_sockets[0]) == b""
    assert pair.far.take(message(OPEN))
    assert pair.far.take(message(DATA, data=b"a"))
    assert not pair.far.take(message(DATA, data=b"a"))


def test_a_connection_is_opened_once(pair):
    assert pair.far.take(message(OPEN))
    assert not pair.far.take(message(OPEN))
    assert len(pair.far._connections) == 1


@pytest.mark.parametrize(
    ("data", "is_taken"),
    [(b"", False), (b"1234567", False), (message(DATA, data=b"?"), False), (message(END), False), (message(99), False)],
)
def test_a_message_of_no_connection_changes_nothing(pair, data, is_taken):
    assert pair.far.take(data) is is_taken
    assert not pair.far._connections
    assert not pair.far_sockets


def test_a_closed_end_takes_nothing(pair):
    pair.far.close()
    assert not pair.far.take(message(BEAT))
    assert not pair.far.take(message(OPEN))
    assert read(pair.open()) == b""


def test_silence_counts_from_the_last_sign_of_life(pair, monkeypatch):
    now = [time.monotonic()]
    monkeypatch.setattr(tunnel.time, "monotonic", lambda: now[0])
    fresh = Pair()
    now[0] += tunnel._BEGIN - 1
    assert not fresh.near.is_lost
    fresh.near.beat()
    now[0] += tunnel._PATIENCE - 0.1
    assert not fresh.near.is_lost
    assert not fresh.far.is_lost
    fresh.is_up = False
    fresh.near.beat()
    now[0] += 0.2
    assert fresh.near.is_lost
    assert fresh.far.is_lost
    fresh.is_up = True
    fresh.near.beat()
    assert not fresh.near.is_lost
    assert not fresh.far.is_lost


def test_never_heard_is_lost_at_last(monkeypatch):
    alone = Tunnel(lambda *_: False)
    alone.beat()
    assert not alone.is_lost
    later = time.monotonic() + tunnel._BEGIN + 1
    monkeypatch.setattr(tunnel.time, "monotonic", lambda: later)
    assert alone.is_lost
