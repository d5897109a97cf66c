"""A coordinator's end of the pipes: participants dial in, each on one stream, and are asked.

gRPC's threads do not survive a fork: start worker processes before, or by spawning.
"""

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from secrets import token_bytes
from typing import Any

import grpc

from hubbub.engine.direct.credentials import ATTEND, COMMAND, VERSION, Credentials, Tuning, fingerprint
from hubbub.engine.direct.frames import Assembly, PipeError, Spool, frames, whole
from hubbub.engine.transport import Reply
from hubbub.errors import InputError

_log = logging.getLogger(__name__)

Identify = Callable[[str], str | None]
"""The name that a key's fingerprint has in the roster now; None: nobody's."""
Command = Callable[[str, bytes], bytes]
"""A named person's request, and the answer; never raises."""

_numbers = itertools.count()
_COMMANDS = 4
"""Commands of one name at the same time."""
_FAREWELL = 0.5
"""Seconds in which everybody is told that the coordinator closes."""
_CODES = {
    "unknown": grpc.StatusCode.UNAUTHENTICATED,
    "replaced": grpc.StatusCode.ABORTED,
    "garbage": grpc.StatusCode.INVALID_ARGUMENT,
    "oversize": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "storage": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "failed": grpc.StatusCode.INTERNAL,
    "closing": grpc.StatusCode.UNAVAILABLE,
    "gone": grpc.StatusCode.CANCELLED,
}


class _Question:
    """One participant's open question, and where its answer goes."""

    def __init__(self, message: bytes, answers: deque[tuple[str, Reply | None]]) -> None:
        self.call = token_bytes(16)  # random: a restarted coordinator's calls are never taken for its earlier ones
        self.message = message
        self.answers = answers


class _Pipe:
    """One participant's stream."""

    def __init__(self, name: str, key: str, context: Any) -> None:
        self.name, self.key, self.context = name, key, context
        self.questions: SimpleQueue[_Question | None] = SimpleQueue()
        self.number = next(_numbers)
        self.word = ""
        self.is_sending = False

    def cut(self, word: str) -> None:
        """End the stream, once; at once also if the other end does not read."""
        if not self.word:
            self.word = word
            self.questions.put(None)
            if self.is_sending and word != "gone":
                self.context.cancel()


class DirectServer:
    """A `Transport` over one port of gRPC with mutual TLS, to which participants dial out.

    Args:
        credentials: The certificate names the hosts under which participants dial this one.
        identify: Says whose key a fingerprint is. Asked when a stream opens, with every question and every answer.
        spool: Folder for large answers.
        address: HOST:PORT to listen at; port 0 takes a free one.
        command: Answers what people send (`send_command`).
        tuning: Limits and times.

    Attributes:
        port: Where it listens.

    Guarantees:
        An answer is given as a participant's only if it came through a stream whose certificate's key was that
        participant's in the roster, both when the question was sent and when the answer was whole.
        What is sent to anybody about a failure is a code word.
    """

    def __init__(
        self,
        credentials: Credentials,
        identify: Identify,
        *,
        spool: Spool,
        address: str = "127.0.0.1:0",
        command: Command | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self._identify, self._command, self._spool = identify, command, spool
        self._tuning = tuning or Tuning()
        self._changed = threading.Condition()
        self._pipes: dict[str, _Pipe] = {}
        self._open: dict[str, _Question] = {}
        self._commands: Counter[str] = Counter()
        self._readers: set[threading.Thread] = set()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(self._tuning.capacity, "hubbub-direct")
        self._server = grpc.server(
            self._pool, options=self._tuning.options(), maximum_concurrent_rpcs=self._tuning.capacity
        )
        self._server.add_generic_rpc_handlers((_Methods({ATTEND: self._attend, COMMAND: self._people}),))
        self.port = self._listen(address, credentials)

    def _listen(self, address: str, credentials: Credentials) -> int:
        ends = grpc.ssl_server_credentials(
            [(credentials.key, credentials.certificate)], credentials.authority, require_client_auth=True
        )
        try:
            port = self._server.add_secure_port(address, ends)
        except RuntimeError as error:
            self._pool.shutdown()
            raise InputError(
                f"coordinator, must listen at {address!r}, cannot; nobody was let in",
                hint="choose an address of this host that nothing else listens at",
            ) from error
        self._server.start()
        return port

    # --- the transport

    def sites(self) -> Mapping[str, int]:
        """Who is connected now, and still in the roster, with the number of the connection."""
        self.recheck()
        with self._changed:
            return {name: pipe.number for name, pipe in self._pipes.items()}

    def recheck(self) -> None:
        """End the streams of whoever is not in the roster any more."""
        with self._changed:
            pipes = list(self._pipes.values())
        for pipe in pipes:
            self._is_admitted(pipe)

    def ask(self, messages: Mapping[str, bytes], *, seconds: float) -> Iterator[tuple[str, Reply]]:
        """Ask some participants, each its own question; yields (name, reply) as replies come.

        A large reply is a view of a file: whoever drops the view drops the file.

        Args:
            messages: By name; a name that is not connected is waited for.
            seconds: Deadline.

        Raises:
            ValueError: A name is being asked something already.
        """
        deadline = time.monotonic() + seconds
        answers: deque[tuple[str, Reply | None]] = deque()
        questions = {name: _Question(message, answers) for name, message in messages.items()}
        self._put(questions)
        missing = set(questions)
        try:
            while missing and (answer := self._next(answers, missing, deadline)):
                name, reply = answer
                missing.discard(name)
                if reply is not None:
                    yield name, reply
        finally:
            with self._changed:
                for name in [name for name, question in questions.items() if self._open.get(name) is question]:
                    del self._open[name]

    def _put(self, questions: Mapping[str, _Question]) -> None:
        with self._changed:
            busy = sorted(questions.keys() & self._open.keys())
            if busy:
                raise ValueError(f"asked already: {busy}")
            self._open.update(questions)
            pipes = [pipe for name, pipe in self._pipes.items() if name in questions]
        for pipe in pipes:
            if self._is_admitted(pipe):
                pipe.questions.put(questions[pipe.name])

    def _next(
        self, answers: deque[tuple[str, Reply | None]], missing: set[str], deadline: float
    ) -> tuple[str, Reply | None] | None:
        """Wait for an answer until the deadline, or until nobody has been there for as long as the grace is."""
        alone_since: float | None = None
        with self._changed:
            while not answers:
                now = time.monotonic()
                alone_since = None if missing & self._pipes.keys() else alone_since or now
                until = deadline if alone_since is None else min(deadline, alone_since + self._tuning.grace)
                if now >= until or self._is_closed:
                    return None
                self._changed.wait(until - now)
            return answers.popleft()

    def close(self) -> None:
        """Let go of everybody; returns when no thread is left."""
        with self._changed:
            self._is_closed = True
            pipes = list(self._pipes.values())
            self._changed.notify_all()
        for pipe in pipes:
            self._drop(pipe, "closing")
        until = time.monotonic() + _FAREWELL
        readers = list(self._readers)
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))
        self._server.stop(None).wait()
        self._pool.shutdown()
        for reader in readers:
            reader.join()

    # --- one stream

    def _attend(self, incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
        name, key = self._admit(context)
        pipe = _Pipe(name, key, context)
        reader = threading.Thread(target=self._read, args=(pipe, incoming), name="hubbub-direct-read", daemon=True)
        self._attach(pipe, reader)
        context.send_initial_metadata(VERSION)
        if not context.add_callback(lambda: self._drop(pipe, "gone")):
            self._drop(pipe, "gone")
        yield from self._send(pipe)

    def _admit(self, context: Any) -> tuple[str, str]:
        key = fingerprint(context.auth_context()["x509_pem_cert"][0])
        name = self._name(key)
        if name is None:
            _log.warning("a stranger is refused: key %s", key)
            raise PipeError("unknown")
        return name, key

    def _name(self, key: str) -> str | None:
        try:
            return self._identify(key)
        except Exception:  # noqa: BLE001, whatever it is, nobody is admitted by it
            _log.exception("the roster cannot be read; nobody is admitted")
            return None

    def _is_admitted(self, pipe: _Pipe) -> bool:
        if self._name(pipe.key) == pipe.name:
            return True
        self._drop(pipe, "unknown")
        return False

    def _attach(self, pipe: _Pipe, reader: threading.Thread) -> None:
        with self._changed:
            if self._is_closed:
                raise PipeError("closing")
            older = self._pipes.get(pipe.name)
            self._pipes[pipe.name] = pipe
            self._readers = {thread for thread in self._readers if thread.is_alive()} | {reader}
            if pipe.name in self._open:
                pipe.questions.put(self._open[pipe.name])
            self._changed.notify_all()
            reader.start()
        if older is not None:
            older.cut("replaced")
        _log.info("%s is connected", pipe.name)

    def _drop(self, pipe: _Pipe, word: str) -> None:
        with self._changed:
            was_current = self._pipes.get(pipe.name) is pipe
            if was_current:
                del self._pipes[pipe.name]
                self._changed.notify_all()
        pipe.cut(word)
        if was_current:
            _log.info("%s is disconnected: %s", pipe.name, pipe.word)

    def _send(self, pipe: _Pipe) -> Iterator[bytes]:
        while (question := pipe.questions.get()) is not None:
            for frame in frames(question.call, question.message):
                pipe.is_sending = True
                if pipe.word or self._open.get(pipe.name) is not question:
                    break
                yield frame
                pipe.is_sending = False
            pipe.is_sending = False
        if pipe.word != "gone":
            raise PipeError(pipe.word)

    def _read(self, pipe: _Pipe, incoming: Iterator[bytes]) -> None:
        assembly = Assembly(self._tuning.limit, self._spool, lambda call: self._is_open(pipe, call))
        word = "gone"
        try:
            for frame in incoming:
                arrived = assembly.add(frame)
                if arrived is not None:
                    call, body = arrived
                    self._answered(pipe, call, None if body is None else body.view())
        except PipeError as error:
            word = error.word
        except OSError:
            _log.exception("an answer cannot be spooled")
            word = "storage"
        except grpc.RpcError:
            pass
        finally:
            assembly.discard()
            if word != "gone":
                self._answered(pipe, None, None)
            self._drop(pipe, word)

    def _is_open(self, pipe: _Pipe, call: bytes | None) -> bool:
        question = self._open.get(pipe.name)
        return question is not None and call in (None, question.call) and self._pipes.get(pipe.name) is pipe

    def _answered(self, pipe: _Pipe, call: bytes | None, reply: Reply | None) -> None:
        """Close a question (whichever is open, if `call` is None); no reply means that there will be none."""
        if not self._is_admitted(pipe):
            return
        with self._changed:
            if self._is_open(pipe, call):
                self._open.pop(pipe.name).answers.append((pipe.name, reply))
                self._changed.notify_all()

    # --- people

    def _people(self, incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
        name, _ = self._admit(context)
        with self._changed:
            self._commands[name] += 1
        try:
            if self._command is None or self._commands[name] > _COMMANDS:
                raise PipeError("busy")
            request = whole(incoming, Assembly(self._tuning.limit, self._spool, lambda _: True))
            yield from frames(bytes(16), self._command(name, request))
        finally:
            with self._changed:
                self._commands[name] -= 1


class _Methods(grpc.GenericRpcHandler):
    """Both methods, on bytes."""

    def __init__(self, methods: Mapping[str, Callable[[Iterator[bytes], Any], Iterator[bytes]]]) -> None:
        self._methods = {path: grpc.stream_stream_rpc_method_handler(_coded(run)) for path, run in methods.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


def _coded(run: Callable[[Iterator[bytes], Any], Iterator[bytes]]) -> Callable[[Iterator[bytes], Any], Iterator[bytes]]:
    """Let no text of an exception onto the wire, where gRPC would put it: a code word goes instead."""

    def call(incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
        try:
            yield from run(incoming, context)
        except PipeError as error:
            word = error.word
        except grpc.RpcError:
            word = "gone"
        except Exception:  # noqa: BLE001, gRPC would send its text
            _log.exception("a call failed")
            word = "failed"
        else:
            return
        context.abort(_CODES[word], word)

    return call
