"""The seam between a coordinator and its participants: who is there, and one question to many.

Carriers implement it and pass one suite of tests: `InProcess` here (everybody in this process) and `direct` (gRPC
over mTLS), the second also through `flare` (jobs of NVIDIA FLARE as its wire). A carrier moves bytes and knows
nothing of what they say.

*Trust:* a carrier can lose, delay, repeat or swap messages: then sessions end. What is believed of a message
stands in its signatures.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

Handler = Callable[[bytes | memoryview], bytes | None]
"""A participant's side: one question's bytes in, the answer's bytes out; None, or nothing, where there is none."""

Reply = bytes | memoryview
"""An answer; large ones may lie in a file of the carrier's that is gone when the view is."""


@runtime_checkable
class Transport(Protocol):
    """Authenticated requests to participants that dialled in, and their replies.

    Guarantees:
        A reply belongs to the question that it is given as the answer to, and came through the pipe of the
        participant that it is given as the answer of. Whoever comes back while a question is open is asked again
        with the same bytes. Late replies are dropped.
    """

    def sites(self) -> Mapping[str, int]:
        """Who is connected now, and may be, with a number that is another after each time they came."""
        ...

    def ask(self, messages: Mapping[str, bytes], *, seconds: float) -> Iterator[tuple[str, Reply]]:
        """Ask some participants, each its own question; yields (name, reply) as replies come.

        Ends when all have answered or said that they will not, when the deadline has passed, or when nobody who has
        not answered is there and none comes back within the carrier's grace.

        Args:
            messages: By name; a name that is not connected is waited for.
            seconds: Deadline.
        """
        ...

    def close(self) -> None:
        """Let go of everybody."""
        ...


class InProcess:
    """Participants that live in this process: a question is a call.

    Args:
        handlers: By name.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def sites(self) -> Mapping[str, int]:
        """Everybody, from the start."""
        return dict.fromkeys(self._handlers, 0)

    def ask(self, messages: Mapping[str, bytes], *, seconds: float) -> Iterator[tuple[str, Reply]]:  # noqa: ARG002, a call has no deadline
        """Call one after the other; what a handler raises is raised here, since there is no wire to lose it on."""
        for name, message in messages.items():
            if name in self._handlers:
                yield name, self._handlers[name](message) or b""

    def close(self) -> None:
        """Nothing to let go of."""
