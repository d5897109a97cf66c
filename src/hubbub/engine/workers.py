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
    """What a worker is asked: these participants' vectors for one attempt, or only their sum.

    Where the model of `work` is empty, it lies in the shared room.
    """

    names: Sequence[str]
    work: Work
    is_sum: bool


class Exam(NamedTuple):
    """What a worker is asked about the model in the shared room: how it does on these pieces of the test records."""

    at: Sequence[int]


class Room(NamedTuple):
    """Memory that this process shares with one worker, so that large vectors need not travel.

    Args:
        model: What this process writes, before it asks anybody: one for all workers.
        total: What the worker writes, before it replies.
    """

    model: Float32[np.ndarray, " params"]
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

    def total(self, names: Sequence[str], work: Work) -> UInt32[np.ndarray, " length"]:
        """The sum of their vectors, modulo 2^32."""
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
        self._learner = learner
        self._settings = settings
        self.length = length

    @property
    def dimension(self) -> int:
        """Number of trained parameters d."""
        return self._learner.dimension

    def total(self, names: Sequence[str], work: Work) -> UInt32[np.ndarray, " length"]:
        """The sum of their vectors, modulo 2^32."""
        total = np.zeros(self.length, dtype=np.uint32)
        for _, vector in self.vectors(names, work):
            total += vector
        return total

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
        self._sizes = {name: len(one.slots) for name, one in alone.records.items()}
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []
        self._model = np.frombuffer(mmap(-1, max(4 * alone.dimension, 1)), np.float32, alone.dimension)
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
        room = Room(self._model, np.frombuffer(mmap(-1, max(4 * alone.length, 1)), np.uint32, alone.length))

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

    def total(self, names: Sequence[str], work: Work) -> UInt32[np.ndarray, " length"]:
        """The sum of their vectors, modulo 2^32."""
        asked = [vector for _, vector in self._train(names, work, is_sum=True)]
        total = np.zeros_like(self._totals[0])
        for one in self._totals[: len(asked)]:
            total += one
        return total

    def vectors(self, names: Sequence[str], work: Work) -> Iterator[tuple[str, UInt32[np.ndarray, " length"]]]:
        """Each one's vector, as they come."""
        return self._train(names, work, is_sum=False)

    def evaluate(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records: each worker measures some pieces, if there are several."""
        count, workers = len(self._alone.pieces), len(self._pipes)
        if count == 1:
            return self._alone.evaluate(parameters)
        exams = [Exam(range(first, count, workers)) for first in range(min(workers, count))]
        replies = self._ask(exams, parameters)
        found = dict(pair for exam, measured in replies for pair in zip(exam, measured, strict=True))
        return means([found[at] for at in range(count)])

    def _train(
        self, names: Sequence[str], work: Work, *, is_sum: bool
    ) -> Iterator[tuple[str, UInt32[np.ndarray, " length"]]]:
        model, work = work.model, work._replace(model=b"")
        if len(model) != self._model.nbytes:  # another length is the worker's to refuse
            model, work = None, work._replace(model=bytes(model))
        shared = None if model is None else np.frombuffer(model, "<f4")
        return self._ask([Job(share, work, is_sum) for share in self._shares(names) if share], shared)

    def _ask(self, jobs: Sequence[Job | Exam], model: Float32[np.ndarray, " params"] | None) -> Iterator[Any]:
        """What workers reply to a job each, as it comes."""
        if model is not None:
            self._model[:] = model  # nobody reads it now: whoever was asked before has replied
        waiting: dict[Pipe, BaseProcess] = {}
        for pipe, process, job in zip(self._pipes, self._processes, jobs, strict=False):
            with _alive(process):
                pipe.send(job)
            waiting[pipe] = process
        while waiting:
            for pipe in cast("list[Pipe]", wait(list(waiting))):
                with _alive(waiting[pipe]):
                    reply = pipe.recv()
                if isinstance(reply, Failure):
                    raise getattr(hubbub.errors, reply.kind)(reply.message, hint=reply.hint)
                if reply is None:
                    del waiting[pipe]
                else:
                    yield reply

    def _shares(self, names: Sequence[str]) -> list[list[str]]:
        """Whom each worker gets: the largest first, each to who has least to do. Sizes are public."""
        shares: list[list[str]] = [[] for _ in self._pipes]
        loads = [0] * len(shares)
        for name in sorted(names, key=self._sizes.__getitem__, reverse=True):
            least = loads.index(min(loads))
            shares[least].append(name)
            loads[least] += self._sizes[name] + 1
        return shares

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
            if job.is_sum:
                room.total[:] = alone.total(job.names, work)
                pipe.send(("", None))
            else:
                for reply in alone.vectors(job.names, work):
                    pipe.send(reply)
        pipe.send(None)
    except HubbubError as error:
        pipe.send(Failure(type(error).__name__, error.message, error.hint))
