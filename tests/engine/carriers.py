"""Carriers as the conformance suite drives them: join, leave, wait; and a wire that can be cut."""

import socket
import threading
import time
from contextlib import suppress

from hubbub.engine.direct import DirectServer, Spool, Tuning, fingerprint, serve
from hubbub.engine.flare.tunnel import Tunnel
from hubbub.engine.transport import InProcess

QUICK = Tuning(grace=0.3, keepalive=0.5, limit=64 << 20)


def until(condition, seconds=10.0):
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Here:
    """Everybody in this process."""

    def __init__(self):
        self._handlers = {}
        self.transport = InProcess(self._handlers)

    def there(self):
        return set(self.transport.sites())

    def join(self, name, handler):
        self._handlers[name] = handler

    def close(self):
        self.transport.close()


class Direct:
    """A coordinator on a loopback port, participants in threads of this process, each with its own connection."""

    def __init__(self, authority, folder, *, command=None, tuning=QUICK, address="127.0.0.1:0"):
        self.authority, self.spool, self.tuning = authority, Spool(folder), tuning
        self.roster, self.keys, self._sites = {}, {}, []
        self.transport = DirectServer(
            authority.host("localhost", "127.0.0.1"),
            self.roster.get,
            spool=self.spool,
            address=address,
            command=command,
            tuning=tuning,
        )
        self.listen(self.transport.port)

    def listen(self, port):
        """Say where participants dial."""
        self.port, self.address = port, f"localhost:{port}"

    def there(self):
        """Who is connected."""
        return set(self.transport.sites())

    def enrol(self, name):
        """Give a name a key of its own, once."""
        if name not in self.keys:
            self.keys[name] = self.authority.participant(name)
            self.roster[fingerprint(self.keys[name].certificate)] = name
        return self.keys[name]

    def strike(self, name):
        """Take a name out of the roster."""
        del self.roster[fingerprint(self.keys.pop(name).certificate)]

    def dial(self, name, handler, credentials, address=None):
        """Start a participant's half; returns what stops it."""
        stop = threading.Event()
        thread = threading.Thread(
            target=serve,
            args=(address or self.address, credentials, handler),
            kwargs={"stop": stop, "spool": self.spool, "tuning": self.tuning},
        )
        thread.start()
        self._sites.append((name, stop, thread))
        return stop

    def join(self, name, handler, address=None):
        """Enrol, dial, and wait until connected."""
        stop = self.dial(name, handler, self.enrol(name), address)
        until(lambda: name in self.transport.sites())
        return stop

    def leave(self, name):
        """Stop every participant's half of that name."""
        for other, stop, _ in self._sites:
            if other == name:
                stop.set()
        until(lambda: name not in self.transport.sites())

    def close(self):
        for _, stop, _ in self._sites:
            stop.set()
        self.transport.close()
        for _, _, thread in self._sites:
            thread.join()


class Tunnelled(Direct):
    """The same; between participants and coordinator there is a tunnel, whose messages are function calls."""

    def __init__(self, authority, folder, **options):
        super().__init__(authority, folder, **options)
        coordinator = ("127.0.0.1", self.transport.port)
        self.near = Tunnel(self._to_far)
        self.far = Tunnel(lambda message, _: self.near.take(message), lambda: socket.create_connection(coordinator))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.listen(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _to_far(self, message, _):
        return self.far.take(message)

    def _accept(self):
        with suppress(OSError):
            while True:
                self.near.open(self._listener.accept()[0])

    def close(self):
        super().close()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for end in (self.near, self.far):
            end.close()
        until(lambda: not [thread for thread in threading.enumerate() if "hubbub-tunnel" in thread.name])


class Wire:
    """Forwards one port to another; can be cut, be slow, or go silent without closing."""

    def __init__(self, port):
        self.port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        self.pause, self.forwarded = (lambda _size: 0.0), 0
        self._open = threading.Event()
        self._open.set()
        self._lines, self._threads = [], []
        self._start(self._accept)

    def _start(self, run, *args):
        self._threads.append(threading.Thread(target=run, args=args))
        self._threads[-1].start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                try:
                    far = socket.create_connection(("127.0.0.1", self.port))
                except OSError:  # nobody is there yet
                    near.close()
                    continue
                self._lines.append((near, far))
                self._start(self._forward, near, far)
                self._start(self._forward, far, near)

    def _forward(self, source, target):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._open.wait()
                time.sleep(self.pause(len(data)))
                target.sendall(data)
                self.forwarded += len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def silence(self):
        """Forward nothing, close nothing."""
        self._open.clear()

    def resume(self):
        self._open.set()

    def cut(self, newest=None):
        """Close every connection, or so many of the newest; others are let through."""
        for line in self._lines[-(newest or 0) :]:
            for end in line:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.resume()
        self.cut()
        for thread in self._threads:
            thread.join()
        for line in self._lines:
            for end in line:
                end.close()
