"""Two ways to add up a round: in the clear, or so that only the sum is seen. Both are driven alike.

    open -> (receive each answer, advance) until `total` is there

Nobody is waited for here: who has not answered when `advance` is called has dropped out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from jaxtyping import UInt32

from hubbub.errors import RoundError
from hubbub.messages import pack_values, unpack_values
from hubbub.secagg import Server


class Ending(NamedTuple):
    """How an attempt ended, for those who took part; empty where sums are plain.

    Args:
        record: Fields of its closing record, in hexadecimal.
        messages: The last message to each participant.
        receipts: By survivor: what finds it in the record.
    """

    record: Mapping[str, Any] = {}
    messages: Mapping[str, bytes] = {}
    receipts: Mapping[str, bytes] = {}


@runtime_checkable
class Sum(Protocol):
    """One attempt at one round's sum."""

    @property
    def total(self) -> UInt32[np.ndarray, " params"] | None:
        """The sum over the survivors, modulo 2^32; None until it is complete."""
        ...

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum."""
        ...

    def open(self) -> dict[str, bytes]:
        """What each member is asked with."""
        ...

    def receive(self, participant: str, payload: bytes | memoryview) -> None:
        """Take one answer."""
        ...

    def advance(self) -> dict[str, bytes]:
        """End a stage: what to send next, by receiver; nothing when the sum is complete."""
        ...

    def end(self) -> Ending:
        """End the attempt, whether or not the sum is complete."""
        ...


MakeSum = Callable[[int, int, memoryview], Sum]
"""(round, attempt, model bytes) -> a sum over the whole roster."""


class PlainSum:
    """Adds up what it receives. Whoever runs it sees each vector.

    Args:
        cohort: Who is asked.
        dimension: Length of every vector.
        minimum: Fewest vectors in a sum.
    """

    def __init__(self, cohort: Sequence[str], *, dimension: int, minimum: int) -> None:
        self.total: UInt32[np.ndarray, " params"] | None = None
        self.survivors: tuple[str, ...] = ()
        self._waiting = dict.fromkeys(cohort)
        self._minimum = minimum
        self._running = np.zeros(dimension, dtype=np.uint32)

    def open(self) -> dict[str, bytes]:
        """Nothing beyond the model."""
        return dict.fromkeys(self._waiting, b"")

    def receive(self, participant: str, payload: bytes | memoryview) -> None:
        """Add one vector.

        Raises:
            RoundError: Not a member of the cohort that has still to answer, or no vector; nothing was added.
        """
        self._check(participant)  # before the bytes are read
        self.add((participant,), unpack_values(payload, self._running.size))

    def add(self, participants: Sequence[str], vector: UInt32[np.ndarray, " params"]) -> None:
        """Add the sum of several members' vectors: where everybody is in one process, nobody sends a vector.

        Raises:
            RoundError: As in `receive`, of any of them.
        """
        for participant in participants:
            self._check(participant)
        self._running += vector
        for participant in participants:
            del self._waiting[participant]
        self.survivors = (*self.survivors, *participants)

    def _check(self, participant: str) -> None:
        if participant not in self._waiting:
            raise RoundError(
                f"round, takes one answer from each member of its cohort, found another from {participant!r}; "
                "nothing added",
                hint="an answer is sent once",
            )

    def advance(self) -> dict[str, bytes]:
        """Complete the sum.

        Raises:
            RoundError: Fewer vectors than a round accepts; nothing was released.
        """
        if len(self.survivors) < self._minimum:
            raise RoundError(
                f"round, needs {self._minimum} contributions, found {len(self.survivors)}; nothing released",
                hint="try again, or plan with a smaller cohort.minimum",
            )
        self.total = self._running
        return {}

    def end(self) -> Ending:
        """Nobody is told."""
        return Ending()


class SecureSum:
    """Adds up by secure aggregation: this side sees the sum of the survivors, and no vector.

    Args:
        server: The server's half of one session.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def total(self) -> UInt32[np.ndarray, " params"] | None:
        """The sum over the survivors, modulo 2^32; None until every mask is off."""
        return self._server.total

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum."""
        return self._server.survivors

    def open(self) -> dict[str, bytes]:
        """Message 0."""
        return self._server.open()

    def receive(self, participant: str, payload: bytes | memoryview) -> None:  # noqa: ARG002, the envelope is signed by its sender
        """Take one envelope.

        Raises:
            RoundError: Late, out of order, or not as the protocol says; nothing was taken.
        """
        self._server.receive(payload)

    def advance(self) -> dict[str, bytes]:
        """End a stage; after the last, the sum is there.

        Raises:
            RoundError: Too few are left; the error says whether masked vectors had been sent.
        """
        return self._server.advance()

    def end(self) -> Ending:
        """Tell everybody how it ended; a complete sum has a record in which its survivors find themselves."""
        record, receipts = {"session": self._server.session.id.hex()}, dict[str, bytes]()
        if self.total is not None:
            closing, made = self._server.record(pack_values(self.total))
            record |= {name: value.hex() for name, value in msgspec.structs.asdict(closing).items()}
            receipts = {name: receipt.encode() for name, receipt in made.items()}
        return Ending(record, self._server.close(), receipts)
