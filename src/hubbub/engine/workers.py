"""Who trains where everybody is in one process: this process, or forked ones that share its records.

A worker is a copy of this process from when the run began: it has every participant's records and the learner, and
nothing but names and a model travels to it, sums or vectors back. Whether an attempt was checked and charged is
decided before (`Participant.begin`), in this process.

*Trust:* a worker sees all that this process sees.
"""

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from mmap import mmap
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt32

import hubbub.errors
from hubbub.errors import HubbubError, WorkerError
from hubbub.local.learner import Learner, Measured, means
from hubbub.messages import pack_parameters
from hubbub.participant.records import Records, Work, make_vectors
from hubbub.study import Slots
from hubbub.study.config import Settings

if TYPE_CHECKING:
    Pipe = Connection[Any, Any]
else:
    Pipe = Connection  # which has no arguments when it runs


class Job(NamedTuple):
    """What each worker is asked: vectors for one attempt of those groups that it takes, or only their sum.

    Where the model of `work` is empty, it lies in the shared room.
    """

    groups: Sequence[Sequence[str]]
    work: Work
    is_sum: bool


class Exam(NamedTuple):
    """What a worker is asked about the model in the shared room: how it does on these pieces of the test records."""

    at: Sequence[int]


class Turns:
    """A counter that processes share: whoever is free takes the next group, so that all end at about the same time."""

    def __init__(self) -> None:
        self._next = np.frombuffer(mmap(-1, 8), np.int64)
        self._lock = multiprocessing.get_context("fork").Lock()

    def restart(self) -> None:
        """Begin anew, while nobody takes any."""
        self._next[0] = 0

    def take(self, count: int) -> Iterator[int]:
        """Numbers below `count`, each for one process only."""
        while True:
            with self._lock:
                mine = int(self._next[0])
                self._next[0] += 1
            if mine >= count:
                return
            yield mine


class Room(NamedTuple):
    """Memory that this process shares with one worker, so that large vectors need not travel.

    Args:
        model: What this process writes, before it asks anybody: one for all workers.
        turns: Who takes what: one for all workers.
        total: What the worker writes, before it replies.
    """

    model: Float32[np.ndarray, " params"]
    turns: Turns
    total: UInt32[np.ndarray, " length"]


class Failure(NamedTuple):
    """A refusal, on its way back from a worker."""

    kind: str
    message: str
    hint: str


@runtime_checkable
class Workers(Protocol):
    """Makes participants' vectors for an attempt that they have been asked, and charged, for.

    Guarantees:
        The same integers, however many workers there are.
    """

    def total(
        self, names: Sequence[str], work: Work, *, meanwhile: Callable[[], object]
    ) -> UInt32[np.ndarray, " length"]:
        """The sum of their vectors, modulo 2^32; `meanwhile` is called once before it is there."""
        ...

    def vectors(self, names: Sequence[str], work: Work) -> Iterator[tuple[str, UInt32[np.ndarray, " length"]]]:
        """Each one's vector, as it is made."""
        ...

    def evaluate(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records."""
        ...

    def close(self) -> None:
        """End them."""
        ...


class Alone:
    """This process.

    Args:
        records: Everybody's, by name.
        learner: The study's.
        settings: The study's.
        length: Coordinates of a vector.
        test: The test records.
    """

    def __init__(
        self, records: Mapping[str, Records], learner: Learner, settings: Settings, *, length: int, test: Slots
    ) -> None:
        self.records = records
        self.pieces = learner.pieces(test)
        self._sizes = {name: len(one.slots) for name, one in records.items()}
        self._learner = learner
        self._settings = settings
        self.length = length

    @property
    def dimension(self) -> int:
        """Number of trained parameters d."""
        return self._learner.dimension

    def groups(self, names: Sequence[str], workers: int) -> list[list[str]]:
        """Who trains together, the largest first: their sizes are much alike, and public."""
        ordered = sorted(names, key=self._sizes.__getitem__, reverse=True)
        most = min(self._learner.together, -(-len(ordered) // workers)) or 1
        return [ordered[start : start + most] for start in range(0, len(ordered), most)]

    def total(
        self, names: Sequence[str], work: Work, *, meanwhile: Callable[[], object]
    ) -> UInt32[np.ndarray, " length"]:
        """The sum of their vectors, modulo 2^32."""
        meanwhile()
        total = np.zeros(self.length, dtype=np.uint32)
        for group in self.groups(names, 1):
            self.add(group, work, total)
        return total

    def add(self, names: Sequence[str], work: Work, total: UInt32[np.ndarray, " length"]) -> None:
        """Add their vectors to a sum."""
        for _, vector in self.vectors(names, work):
            total += vector

    def vectors(self, names: Sequence[str], work: Work) -> Iterator[tuple[str, UInt32[np.ndarray, " length"]]]:
        """Each one's vector, in order."""
        asked = [self.records[name] for name in names]
        yield from zip(names, make_vectors(asked, work, self._learner, self._settings), strict=True)

    def measure(self, parameters: Float32[np.ndarray, " params"], at: Sequence[int]) -> list[Measured]:
        """How a model does on some pieces of the test records."""
        return [self._learner.measure(parameters, self.pieces[one]) for one in at]

    def evaluate(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records."""
        return means(self.measure(parameters, range(len(self.pieces))))

    def close(self) -> None:
        """Nothing to end."""


class Pool:
    """Several processes forked from this one.

    Args:
        alone: What each of them does.
        count: How many.
        in_child: Called in each of them first: lets go of what belongs to this process only.

    Raises:
        WorkerError: From `total` and `vectors`: a worker ended by itself.
    """

    def __init__(self, alone: Alone, count: int, *, in_child: Callable[[], None]) -> None:
        self._alone = alone
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []
        self._waiting: dict[Pipe, BaseProcess] = {}
        self._model = np.frombuffer(mmap(-1, max(4 * alone.dimension, 1)), np.float32, alone.dimension)
        self._turns = Turns()
        self._totals: list[UInt32[np.ndarray, " length"]] = []
        # A child must not see Ctrl-C before it ignores it: it is meant for this process, which then ends them all.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                self._start(alone, in_child)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self, alone: Alone, in_child: Callable[[], None]) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = cast("tuple[Pipe, Pipe]", context.Pipe())
        total = np.frombuffer(mmap(-1, max(4 * alone.length, 1)), np.uint32, alone.length)
        room = Room(self._model, self._turns, total)

        def child() -> None:
            for pipe in (*self._pipes, ours):  # or nobody would notice that this process is gone
                pipe.close()
            in_child()
            _work(alone, theirs, room)

        process = context.Process(target=child, name=f"hubbub worker {len(self._pipes) + 1}")
        with warnings.catch_warnings():
            # Since 3.12, where there are threads: a child uses none of their locks, it has streams of its own.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        self._pipes.append(ours)
        self._totals.append(room.total)
        self._processes.append(process)

    def total(
        self, names: Sequence[str], work: Work, *, meanwhile: Callable[[], object]
    ) -> UInt32[np.ndarray, " length"]:
        """The sum of their vectors, modulo 2^32."""
        jobs = self._jobs(names, work, is_sum=True)
        replies = self._ask(jobs, work.model)
        meanwhile()
        for _ in replies:
            pass
        total = np.zeros_like(self._totals[0])
        for one in self._totals[: len(jobs)]:
            total += one
        return total

    def vectors(self, names: Sequence[str], work: Work) -> Iterator[tuple[str, UInt32[np.ndarray, " length"]]]:
        """Each one's vector, as they come."""
        return self._ask(self._jobs(names, work, is_sum=False), work.model)

    def evaluate(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records: each worker measures some pieces, if there are several."""
        count, workers = len(self._alone.pieces), len(self._pipes)
        if count == 1:
            return self._alone.evaluate(parameters)
        exams = [Exam(range(first, count, workers)) for first in range(min(workers, count))]
        replies = self._ask(exams, pack_parameters(parameters))
        found = dict(pair for exam, measured in replies for pair in zip(exam, measured, strict=True))
        return means([found[at] for at in range(count)])

    def _jobs(self, names: Sequence[str], work: Work, *, is_sum: bool) -> list[Job]:
        """One for each worker that finds something to do."""
        groups = self._alone.groups(names, len(self._pipes))
        is_shared = len(work.model) == self._model.nbytes  # another length is the worker's to refuse
        work = work._replace(model=b"" if is_shared else bytes(work.model))
        return [Job(groups, work, is_sum)] * min(len(groups), len(self._pipes))

    def _ask(self, jobs: Sequence[Job | Exam], model: bytes | memoryview) -> Iterator[Any]:
        """Ask some workers, now; what they reply, as it comes."""
        assert not self._waiting  # noqa: S101, who was asked before has replied: model and turns are nobody's now
        if len(model) == self._model.nbytes:
            self._model[:] = np.frombuffer(model, "<f4")
        self._turns.restart()
        for pipe, process, job in zip(self._pipes, self._processes, jobs, strict=False):
            self._waiting[pipe] = process
            with _alive(process):
                pipe.send(job)
        return self._replies()

    def _replies(self) -> Iterator[Any]:
        while self._waiting:
            for pipe in cast("list[Pipe]", wait(list(self._waiting))):
                with _alive(self._waiting[pipe]):
                    reply = pipe.recv()
                if isinstance(reply, Failure):
                    raise getattr(hubbub.errors, reply.kind)(reply.message, hint=reply.hint)
                if reply is None:
                    del self._waiting[pipe]
                else:
                    yield reply

    def close(self) -> None:
        """End them at once, whatever they do: nothing of theirs is kept."""
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            pipe.close()


@contextmanager
def _alive(process: BaseProcess) -> Generator[None]:
    """Turn a broken pipe into one line that says what became of the worker."""
    try:
        yield
    except (EOFError, OSError):
        process.join(timeout=10)
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise WorkerError(
            f"{process.name}, must live as long as the run, found that it {how}",
            hint="fewer workers need less memory: [speed] workers = 1",
        ) from None


def _work(alone: Alone, pipe: Pipe, room: Room) -> None:
    """Be a worker: answer jobs until nobody asks any more. Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w") for number in (1, 2))
    try:
        while True:
            _answer(alone, pipe, pipe.recv(), room)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # who asked is gone
    except BaseException:  # noqa: BLE001, what is told here is told before the process ends, whatever it is
        os.write(2, traceback.format_exc().encode())
        os._exit(1)


def _answer(alone: Alone, pipe: Pipe, job: Job | Exam, room: Room) -> None:
    try:
        if isinstance(job, Exam):
            pipe.send((job.at, alone.measure(room.model, job.at)))
        else:
            work = job.work if job.work.model else job.work._replace(model=bytes(pack_parameters(room.model)))
            room.total[:] = 0
            for at in room.turns.take(len(job.groups)):
                if job.is_sum:
                    alone.add(job.groups[at], work, room.total)
                else:
                    for reply in alone.vectors(job.groups[at], work):
                        pipe.send(reply)
        pipe.send(None)
    except HubbubError as error:
        pipe.send(Failure(type(error).__name__, error.message, error.hint))
