"""Connections of one site, carried over whatever delivers messages, in any order.

A message is a connection's identity (8 random bytes), one byte that says what happens to it, its number in that
connection, and bytes. The other end takes the messages of a connection in the order of their numbers and says when it
has taken one; at most `WINDOW` of them are under way, which makes a sender as slow as a receiver.
"""

import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_log = logging.getLogger(__name__)

CHUNK = 1 << 18
"""Bytes of one message; a slow line must carry it well within the patience below."""
WINDOW = 8
BEAT_SECONDS = 0.5
"""How often the site's end asks whether the other is there."""
_BEGIN, _PATIENCE = 60.0, 2.5
"""Seconds until the other end must have been heard first, and of silence until it counts as lost."""
_DELIVERY = 20.0
"""Seconds for one message."""
_HEADER = struct.Struct(">8sBQ")
_OPEN, _DATA, _END, _BEAT = range(4)
_MOST = 64
"""Connections at the same time: a participant's, and what people of its site ask."""
_THREADS = 32

Send = Callable[[bytes, float], bool]
"""Deliver a message to the other end within some seconds; whether it was taken. Called by several threads."""


class _Connection:
    """A local socket, and how far each direction has come."""

    def __init__(self, local: socket.socket) -> None:
        self.local = local
        self.slots = threading.Semaphore(WINDOW)
        self.turn = threading.Condition()
        self.taken = 0
        self.is_open = True

    def write(self, number: int, data: memoryview) -> bool:
        """Write a message when it is its turn; whether it was written."""
        with self.turn:
            is_next = self.turn.wait_for(lambda: not self.is_open or self.taken == number, _DELIVERY)
            if not (is_next and self.is_open):
                return False
            try:
                self.local.sendall(data)
            except OSError:
                return False
            self.taken += 1
            self.turn.notify_all()
            return True

    def close(self) -> None:
        """Close the socket, and let everybody go who waits for it."""
        self.is_open = False
        with suppress(OSError):
            self.local.shutdown(socket.SHUT_RDWR)
        with self.turn:
            self.turn.notify_all()
            self.local.close()
        self.slots.release(2 * WINDOW)  # more than anybody waits for


class Tunnel:
    """One end: local sockets, whose bytes come out of sockets at the other end.

    Args:
        send: To the other end.
        connect: Makes a local socket for a connection that the other end opens; None where only this end opens.

    Guarantees:
        Bytes come out as they went in, in order, or the connection is closed at both ends.
    """

    def __init__(self, send: Send, connect: Callable[[], socket.socket] | None = None) -> None:
        self._send, self._connect = send, connect
        self._lock = threading.Lock()
        self._connections: dict[bytes, _Connection] = {}
        self._senders = ThreadPoolExecutor(_THREADS, "hubbub-tunnel")
        self._deadline = time.monotonic() + _BEGIN
        self._is_closed = False

    @property
    def is_lost(self) -> bool:
        """Whether the other end has been silent for too long."""
        return time.monotonic() > self._deadline

    def beat(self) -> None:
        """Ask whether the other end is there."""
        self._deliver(bytes(8), _BEAT, seconds=2 * BEAT_SECONDS)

    def open(self, local: socket.socket) -> None:
        """Carry a local socket's bytes, until either side closes."""
        name = secrets.token_bytes(8)
        connection = self._keep(name, local)
        if connection:
            self._start(name, connection, is_ours=True)

    def take(self, message: bytes) -> bool:
        """Take what the other end sent; blocks until it is where it belongs.

        Returns:
            Whether it is; if not, the other end closes that connection.
        """
        if len(message) < _HEADER.size:
            return False
        name, kind, number = _HEADER.unpack_from(message)
        self._deadline = time.monotonic() + _PATIENCE
        if kind == _BEAT:
            return not self._is_closed
        if kind == _OPEN:
            return self._opened(name)
        connection = self._connections.get(name)
        if connection is None:
            return False
        is_taken = connection.write(number, memoryview(message)[_HEADER.size :])
        if not is_taken or kind != _DATA:
            self._drop(name, connection)
        return is_taken

    def close(self) -> None:
        """Close every local socket."""
        with self._lock:
            self._is_closed = True
            kept = dict(self._connections)
        for name, connection in kept.items():
            self._drop(name, connection)
        self._senders.shutdown(wait=False, cancel_futures=True)

    def _opened(self, name: bytes) -> bool:
        try:
            local = self._connect() if self._connect else None
        except OSError as error:
            _log.debug("nobody is there to connect to: %s", type(error).__name__)
            return False
        connection = self._keep(name, local) if local else None
        if connection is None:
            return False
        self._start(name, connection, is_ours=False)
        return True

    def _keep(self, name: bytes, local: socket.socket) -> _Connection | None:
        with self._lock:
            if self._is_closed or len(self._connections) >= _MOST or name in self._connections:
                local.close()
                return None
            kept = self._connections[name] = _Connection(local)
        with suppress(OSError):
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return kept

    def _start(self, name: bytes, connection: _Connection, *, is_ours: bool) -> None:
        arguments = (name, connection, is_ours)
        threading.Thread(target=self._read, args=arguments, name="hubbub-tunnel", daemon=True).start()

    def _read(self, name: bytes, connection: _Connection, is_ours: bool) -> None:  # noqa: FBT001, a thread's arguments
        number = 0
        with suppress(OSError, RuntimeError):  # closed, here or by whoever closed the tunnel
            if is_ours and not self._deliver(name, _OPEN):
                connection.is_open = False
            while connection.is_open and (data := connection.local.recv(CHUNK)):
                connection.slots.acquire()
                self._senders.submit(self._pass, name, connection, number, data)
                number += 1
            for _ in range(WINDOW):  # wait until all of it has been taken
                connection.slots.acquire()
        if self._drop(name, connection):
            self._deliver(name, _END, number)

    def _pass(self, name: bytes, connection: _Connection, number: int, data: bytes) -> None:
        if connection.is_open and self._deliver(name, _DATA, number, data):
            connection.slots.release()
        else:
            self._drop(name, connection)

    def _drop(self, name: bytes, connection: _Connection) -> bool:
        """Close a connection here; whether it was open."""
        with self._lock:
            was_open = self._connections.get(name) is connection
            if was_open:
                del self._connections[name]
        connection.close()
        return was_open

    def _deliver(
        self, name: bytes, kind: int, number: int = 0, data: bytes = b"", *, seconds: float = _DELIVERY
    ) -> bool:
        is_taken = self._send(_HEADER.pack(name, kind, number) + data, seconds)
        if is_taken:
            self._deadline = time.monotonic() + _PATIENCE
        return is_taken
