"""The event log of one home: everything that happened there, in order, and the states that follow from it.

    state = reduce(apply, events, start)

Ledger and governance are folds over this one list; there is no second store that could drift from it. It is a
transparency log (`tlog`), one event an entry: writers in any number of processes are serialised, what is
decided is decided on the newest state, and what is appended is durable when `append` returns.

*Trust:* whoever can write this file can write anything from then on; rewriting what a witness has cosigned
shows.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from hubbub.errors import HubbubError, InputError, RefusedError
from hubbub.events import AnyEvent, RequestRefused, decode_event, encode_event
from hubbub.tlog import Store


@runtime_checkable
class Fold(Protocol):
    """A state that starts empty and takes in one event after the other."""

    def apply(self, event: AnyEvent) -> None:
        """Take one more event in."""
        ...


State = TypeVar("State", bound=Fold)
_LONGEST: Final = 1000
"""Characters of a reason that are kept."""


class EventLog:
    """A durable list of events, and the only way to add to it.

    Args:
        path: SQLite file; made, readable by its owner only, where there is none.

    Raises:
        InputError: The file is no log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path)
        self._folds: dict[type, tuple[Any, int]] = {}
        self._noted: list[AnyEvent] = []
        self._newest: tuple[int, list[AnyEvent]] = (0, [])

    def close(self) -> None:
        """Write what was noted, and close the file."""
        self.flush()
        self.store.close()

    def append(self, decide: Callable[[], Sequence[AnyEvent]], *, asked: str = "") -> list[AnyEvent]:
        """Decide on the newest state and append what was decided, all or nothing, in one transaction.

        Args:
            decide: Returns events to append, or raises to refuse. What it reads by `fold` is the state
                that its events will follow: nobody else writes meanwhile.
            asked: For what; where it is told, a refusal is recorded too.

        Returns:
            The events, durable.
        """
        events: list[AnyEvent] = []
        read: list[AnyEvent] = []

        def bodies(_size: int) -> list[bytes]:
            events.extend(decide())
            written = [encode_event(event) for event in (*noted, *events)]
            read.extend(map(decode_event, written))
            return written

        noted, self._noted = self._noted, []  # at Ctrl-C they may be written already, and twice would be wrong
        try:
            span = self.store.append(bodies)
        except HubbubError as error:
            self._noted = noted
            if asked and isinstance(error, RefusedError):
                self._record_refusal(asked, error.message)
            raise
        self._newest = (span.start, read)
        return events

    def _record_refusal(self, asked: str, message: str) -> None:
        reason = message.partition("; nothing")[0][:_LONGEST]  # what follows told the asker what was not done
        refused = RequestRefused(asked=asked, reason=reason.encode(errors="backslashreplace").decode())
        with contextlib.suppress(InputError):  # refused it is also on a full disk
            self.append(lambda: [refused])

    def note(self, *events: AnyEvent) -> None:
        """Add events on which nothing is ever decided; they are written with the next append, before its own.

        So a round costs one write to disk, its charge's; what it released follows with the next.
        """
        self._noted += events

    def flush(self) -> None:
        """Write what was noted."""
        if self._noted:
            self.append(tuple)

    def fold(self, kind: type[State]) -> State:
        """The state that follows from all events that are written: `kind()`, then each applied once."""
        state, after = self._folds.pop(kind, None) or (kind(), 0)
        for event in self._since(after):
            state.apply(event)
            after += 1
        self._folds[kind] = (state, after)
        return state

    def _since(self, after: int) -> list[AnyEvent]:
        """Events written, from an index on; the newest are read once for all states, those of our own not at all."""
        start, known = self._newest
        known = known[after - start :] if start <= after <= start + len(known) else []
        new = self.events(after + len(known))
        if new:
            known = [*known, *new]
            self._newest = (after, known)
        return known

    def events(self, start: int = 0) -> list[AnyEvent]:
        """Every event written, in order, from an index on."""
        return [decode_event(body) for body in self.store.entries(start)]
