"""Many waiting writers, one commit: the cost of a durable write is shared by all who wait for it.

*Trust:* as `store`, which it only calls.
"""

import threading
from dataclasses import dataclass

from hubbub.tlog.store import Store, checked_entry


@dataclass
class _Ticket:
    body: bytes
    index: int = -1
    error: BaseException | None = None


class GroupedAppends:
    """Appends of many threads, gathered: whoever comes first writes for all who came meanwhile."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Ticket] = []
        self._queue = threading.Lock()
        self._turn = threading.Lock()

    def append(self, body: bytes) -> int:
        """Append one entry; returns its index when it is durable."""
        ticket = _Ticket(checked_entry(body, self._store.size))
        with self._queue:
            self._waiting.append(ticket)
        with self._turn:
            if ticket.index < 0 and ticket.error is None:
                self._write()
        if ticket.error is not None:
            raise ticket.error
        return ticket.index

    def _write(self) -> None:
        with self._queue:
            batch, self._waiting = self._waiting, []
        try:
            for ticket, index in zip(batch, self._store.append(lambda _: [it.body for it in batch]), strict=True):
                ticket.index = index
        except BaseException as error:  # noqa: BLE001 each of those who wait raises it
            for ticket in batch:
                ticket.error = error
