"""The event log of one home: everything that happened there, in order, and the states that follow from it.

    state = reduce(apply, events, start)

Ledger and governance are folds over this one list; there is no second store that could drift from it. Writers
in any number of processes are serialised by SQLite: what is decided is decided on the newest state, and what
is appended is durable when `append` returns.

*Trust:* whoever can write this file can write anything from then on; it stays with its owner.
"""

import os
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from hubbub.errors import InputError
from hubbub.events import AnyEvent, decode_event, encode_event


@runtime_checkable
class Fold(Protocol):
    """A state that starts empty and takes in one event after the other."""

    def apply(self, event: AnyEvent) -> None:
        """Take one more event in."""
        ...


State = TypeVar("State", bound=Fold)


class EventLog:
    """A durable list of events, and the only way to add to it.

    Args:
        path: SQLite file; made, readable by its owner only, where there is none.

    Raises:
        InputError: The file is no event log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folds: dict[type, tuple[Any, int]] = {}
        self._noted: list[AnyEvent] = []
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with self._named_errors():
            self._database = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")

    def close(self) -> None:
        """Write what was noted, and close the file."""
        if self._noted:
            self.append(lambda: ())
        self._database.close()

    def append(self, decide: Callable[[], Sequence[AnyEvent]]) -> list[AnyEvent]:
        """Decide on the newest state and append what was decided, all or nothing, in one transaction.

        Args:
            decide: Returns events to append, or raises to refuse. What it reads by `fold` is the state
                that its events will follow: nobody else writes meanwhile.

        Returns:
            The events, durable.
        """
        with self._named_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._insert(self._noted)
                events = list(decide())
                self._insert(events)
            except BaseException:
                self._database.execute("ROLLBACK")
                self._folds.clear()
                raise
            self._database.execute("COMMIT")
        self._noted = []
        return events

    def note(self, *events: AnyEvent) -> None:
        """Add events that nothing is decided on; they are written before the next append, or on closing.

        So a round costs one write to disk, its charge's; what it released follows with the next.
        """
        self._noted += events

    def fold(self, kind: type[State]) -> State:
        """The state that follows from all events: `kind()`, then each applied once."""
        with self._named_errors():
            state, after = self._folds.get(kind) or (kind(), 0)
            rows = self._database.execute("SELECT id, body FROM entry WHERE id > ? ORDER BY id", (after,)).fetchall()
            for identity, body in rows:
                state.apply(decode_event(body))
                after = identity
            self._folds[kind] = (state, after)
        return state

    def events(self) -> list[AnyEvent]:
        """Every event ever appended, in order."""
        with self._named_errors():
            rows = self._database.execute("SELECT body FROM entry ORDER BY id").fetchall()
        return [decode_event(body) for (body,) in rows]

    def _insert(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            self._database.execute("INSERT INTO entry (body) VALUES (?)", (encode_event(event),))

    @contextmanager
    def _named_errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"{self.path}, must be an event log, {error}; nothing spent",
                hint="restore it from a copy; a new log would forget what was spent",
            ) from None
