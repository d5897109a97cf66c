"""Connections of one site, carried over whatever delivers one message at a time.

A message is a connection's identity (8 random bytes), one byte that says what happens to it, and bytes of it. The next
message of a connection is sent when the other end has taken the one before: that keeps them in order, and makes a
sender as slow as a receiver.
"""

import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger(__name__)

CHUNK = 1 << 20
BEAT_SECONDS = 0.5
"""How often the site's end asks whether the other is there."""
_BEGIN, _PATIENCE = 60.0, 2.5
"""Seconds until the other end must have been heard first, and of silence until it counts as lost."""
_HEADER = struct.Struct(">8sB")
BEAT_BYTES = _HEADER.size
"""Bytes of a message without data."""
_OPEN, _DATA, _END, _BEAT = range(4)
_MOST = 64
"""Connections at the same time: a participant's, and what people of its site ask."""

Send = Callable[[bytes], bool]
"""Deliver a message to the other end; whether it was taken."""


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
        self._sockets: dict[bytes, socket.socket] = {}
        self._deadline = time.monotonic() + _BEGIN
        self._is_closed = False

    @property
    def is_lost(self) -> bool:
        """Whether the other end has been silent for too long."""
        return time.monotonic() > self._deadline

    def beat(self) -> None:
        """Ask whether the other end is there."""
        if self._deliver(bytes(8), _BEAT):
            self._deadline = time.monotonic() + _PATIENCE

    def open(self, local: socket.socket) -> None:
        """Carry a local socket's bytes, until either side closes."""
        name = secrets.token_bytes(8)
        if self._keep(name, local):
            self._start(name, local, is_ours=True)

    def take(self, message: bytes) -> bool:
        """Take what the other end sent; blocks until it is where it belongs.

        Returns:
            Whether it is; if not, the other end closes that connection.
        """
        if len(message) < _HEADER.size:
            return False
        name, kind = _HEADER.unpack_from(message)
        self._deadline = time.monotonic() + _PATIENCE
        if kind == _BEAT:
            return not self._is_closed
        if kind == _OPEN:
            return self._opened(name)
        if kind == _DATA:
            return self._write(name, memoryview(message)[_HEADER.size :])
        self._drop(name)
        return True

    def close(self) -> None:
        """Close every local socket."""
        with self._lock:
            self._is_closed = True
            names = list(self._sockets)
        for name in names:
            self._drop(name)

    def _opened(self, name: bytes) -> bool:
        try:
            local = self._connect() if self._connect else None
        except OSError as error:
            _log.debug("nobody is there to connect to: %s", type(error).__name__)
            return False
        if local is None or not self._keep(name, local):
            return False
        self._start(name, local, is_ours=False)
        return True

    def _keep(self, name: bytes, local: socket.socket) -> bool:
        with self._lock:
            is_kept = not self._is_closed and len(self._sockets) < _MOST and name not in self._sockets
            if is_kept:
                self._sockets[name] = local
        if is_kept:
            with suppress(OSError):
                local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            local.close()
        return is_kept

    def _start(self, name: bytes, local: socket.socket, *, is_ours: bool) -> None:
        threading.Thread(target=self._read, args=(name, local, is_ours), name="hubbub-tunnel", daemon=True).start()

    def _read(self, name: bytes, local: socket.socket, is_ours: bool) -> None:  # noqa: FBT001, a thread's arguments
        is_open = not is_ours or self._deliver(name, _OPEN)
        with suppress(OSError):
            while is_open and (data := local.recv(CHUNK)):
                is_open = self._deliver(name, _DATA, data)
        if self._drop(name):
            self._deliver(name, _END)

    def _write(self, name: bytes, data: memoryview) -> bool:
        local = self._sockets.get(name)
        if local is None:
            return False
        try:
            local.sendall(data)
        except OSError:
            self._drop(name)
            return False
        return True

    def _drop(self, name: bytes) -> bool:
        """Close a connection here; whether it was open."""
        with self._lock:
            local = self._sockets.pop(name, None)
        if local is None:
            return False
        with suppress(OSError):
            local.shutdown(socket.SHUT_RDWR)
        local.close()
        return True

    def _deliver(self, name: bytes, kind: int, data: bytes = b"") -> bool:
        return self._send(_HEADER.pack(name, kind) + data)
