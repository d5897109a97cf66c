"""The end of a pipe that dials: a participant's, and a person's. Nothing listens here."""

import logging
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc

from hubbub.engine.direct.credentials import ATTEND, COMMAND, VERSION, Credentials, Tuning
from hubbub.engine.direct.frames import Assembly, Body, PipeError, Spool, frames, no_answer, whole
from hubbub.engine.transport import Handler
from hubbub.errors import HostError, RefusedError

_log = logging.getLogger(__name__)
_SHORTEST, _LONGEST = 0.05, 2.0
"""Seconds between attempts to connect, doubling."""
_WORDS = frozenset({"unknown", "replaced", "garbage", "oversize", "busy", "storage", "failed", "closing"})
_ABSENT = ("connection refused", "no route to host", "dns resolution failed")
"""In what gRPC says of a connection that was never made."""


def serve(
    address: str,
    credentials: Credentials,
    handler: Handler,
    *,
    stop: threading.Event,
    spool: Spool,
    tuning: Tuning | None = None,
) -> None:
    """Dial a coordinator and answer its questions, one at a time, until told to stop.

    Connects again whenever it is cut, for ever. A question that is asked again while it is being answered, or after
    it was, is not handled twice; an answer goes only to a connection on which its question came. Of questions that
    come while one is being answered the newest waits: whoever asks again has given up what was asked before.

    Args:
        address: HOST:PORT; the coordinator's certificate must name this host.
        credentials: The participant's.
        handler: Called in one thread. An exception of it is logged by its type and answered by "no answer".
        stop: Ends this; a question that is being handled has `tuning.grace` seconds.
        spool: Folder for large questions.
        tuning: Limits and times.
    """
    site = _Site(handler, stop)
    tuning = tuning or Tuning()
    threads = [threading.Thread(target=run, name="hubbub-site", daemon=True) for run in (site.work, site.watch)]
    for thread in threads:
        thread.start()
    pause = _SHORTEST
    while not stop.is_set():
        was_admitted = site.attend(address, credentials, Assembly(tuning.limit, spool, lambda _: True), tuning)
        pause = _SHORTEST if was_admitted else min(2 * pause, _LONGEST)
        stop.wait(pause * secrets.SystemRandom().uniform(0.5, 1))
    for thread in threads:
        thread.join(tuning.grace)


@dataclass
class _Stream:
    """One connection: what was asked on it and may still be answered, and what is to be sent."""

    asked: set[bytes] = field(default_factory=set)
    answers: "SimpleQueue[tuple[bytes, bytes | None] | None]" = field(default_factory=SimpleQueue)

    def frames(self) -> Iterator[bytes]:
        while (answer := self.answers.get()) is not None:
            call, message = answer
            yield from [no_answer(call)] if message is None else frames(call, message)
            del answer, message  # else a large answer stays until there is another


class _Site:
    """What outlives connections: the question at hand, the one that waits, and the last answer."""

    def __init__(self, handler: Handler, stop: threading.Event) -> None:
        self._handler, self._stop = handler, stop
        self._changed = threading.Condition()
        self._stream = _Stream()
        self._connection: Any = None
        self._waiting: tuple[bytes, Body] | None = None
        self._at_hand: bytes | None = None
        self._last: tuple[bytes, bytes | None] | None = None
        self._word = ""

    def watch(self) -> None:
        """Cut the connection when told to stop."""
        self._stop.wait()
        with self._changed:
            self._changed.notify_all()
            if self._connection is not None:
                self._connection.cancel()

    def work(self) -> None:
        """Answer questions, one after the other."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
                if self._stop.is_set() or self._waiting is None:
                    return self._wait_for(None)
                (self._at_hand, body), self._waiting, self._last = self._waiting, None, None
            self._finish(self._at_hand, self._answer(body))

    def _answer(self, body: Body) -> bytes | None:
        try:
            return self._handler(body.view())
        except Exception as error:  # noqa: BLE001, its text may hold what must not be told, here or there
            _log.error("a question was not answered: %s", type(error).__name__)
            return None

    def _finish(self, call: bytes, answer: bytes | None) -> None:
        with self._changed:
            self._at_hand, self._last = None, (call, answer)
            if call in self._stream.asked:
                self._stream.answers.put(self._last)

    def _wait_for(self, question: tuple[bytes, Body] | None) -> None:
        """Put a question last; one that has not been begun when another comes was given up by who asked it."""
        if self._waiting is not None:
            self._waiting[1].discard()
        self._waiting = question
        self._changed.notify_all()

    def attend(self, address: str, credentials: Credentials, assembly: Assembly, tuning: Tuning) -> bool:
        """Keep one connection for as long as it lasts.

        Returns:
            Whether it is worth coming back at once.
        """
        stream = _Stream()
        was_admitted, is_well, word = False, True, ""
        with _channel(address, credentials, tuning) as channel:
            connection = channel.stream_stream(ATTEND)(stream.frames())
            try:
                self._take(stream, connection)
                was_admitted = set(VERSION) <= set(connection.initial_metadata())
                if was_admitted:
                    _log.info("connected to %s", address)
                for frame in connection:
                    call, body = assembly.add(frame) or (b"", None)
                    if body is not None:
                        self._arrived(stream, call, body)
            except grpc.RpcError:
                word = _word(connection)
            except (PipeError, OSError) as error:
                is_well, word = False, type(error).__name__
                connection.cancel()
            finally:
                stream.answers.put(None)
                assembly.discard()
        is_news = was_admitted or word != self._word
        self._word = word
        _log.log(logging.WARNING if is_news else logging.DEBUG, "not connected to %s: %s", address, word or "closed")
        return was_admitted and is_well and word != "replaced"

    def _take(self, stream: _Stream, connection: Any) -> None:
        with self._changed:
            self._stream, self._connection = stream, connection
            if self._stop.is_set():
                connection.cancel()

    def _arrived(self, stream: _Stream, call: bytes, body: Body) -> None:
        with self._changed:
            stream.asked = {call} | (stream.asked & {self._at_hand})
            is_waiting = self._waiting is not None and self._waiting[0] == call
            if self._last is not None and self._last[0] == call:
                stream.answers.put(self._last)
            elif call != self._at_hand and not is_waiting:
                return self._wait_for((call, body))
        return body.discard()


def send_command(
    address: str, credentials: Credentials, data: bytes, *, seconds: float, tuning: Tuning | None = None
) -> bytes:
    """Ask a coordinator something as a person.

    Args:
        address: HOST:PORT; the coordinator's certificate must name this host.
        credentials: The person's.
        data: What its `command` is given.
        seconds: Deadline.
        tuning: Limits.

    Raises:
        RefusedError: The key is in no roster.
        HostError: Nobody is there, or the answer is too late, too large or none.
    """
    tuning = tuning or Tuning()
    with _channel(address, credentials, tuning) as channel:
        connection = channel.stream_stream(COMMAND)(frames(bytes(16), data), timeout=seconds)
        try:
            return whole(connection, Assembly(tuning.limit, None, lambda _: True))
        except PipeError as error:
            word = error.word
        except grpc.RpcError:
            word = _word(connection)
        finally:
            connection.cancel()
    if word == "unknown":
        raise RefusedError(
            f"coordinator {address!r}, knows those in its roster, not this key; nothing done",
            hint="have this certificate's key enrolled, or ask whether it was revoked",
        )
    if word in _ABSENT:
        raise HostError(
            f"coordinator {address!r}, must listen there, found {word!r}; nothing was asked",
            hint="start it, or see what address it listens at: hubbub coordinate DIR --address HOST:PORT",
        )
    raise HostError(
        f"coordinator {address!r}, must answer within {seconds:g} s, found {word!r}; what was asked may have been done",
        hint="see that it runs and that its certificate names this host, then ask again",
    )


def _channel(address: str, credentials: Credentials, tuning: Tuning) -> Any:
    ends = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    return grpc.secure_channel(address, ends, options=tuning.options())


def _word(connection: Any) -> str:
    """Why a call ended: the coordinator's code word, gRPC's code, or why nobody was reached; nobody's free text."""
    details, code = connection.details(), connection.code().name.lower()
    absent = next((word for word in _ABSENT if word in str(details).lower()), code)
    return details if details in _WORDS else absent if code == "unavailable" else code
