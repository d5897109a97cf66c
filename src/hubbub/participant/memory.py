"""What a participant must never forget, in one file: its copy of the log, its mark, its charges.

*Trust:* whoever can write the file, or put an older one in its place, can make a participant answer twice;
`LogGuard` compares it with the log at every start.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hubbub.participant.log_view import Mark
from hubbub.tlog.copy import Copy

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS entered (one INT PRIMARY KEY, run INT, round INT, attempt INT, name BLOB, said BLOB)",
    "CREATE TABLE IF NOT EXISTS charge (run INT, round INT, attempt INT, PRIMARY KEY (run, round, attempt))",
)


class Entered(NamedTuple):
    """The last session that a participant entered.

    Args:
        mark: Its mark.
        session: Its name; empty if it was lost.
        consent: What the participant consented to in it, body and signature; empty if to nothing.
    """

    mark: Mark = (0, 0, 0)
    session: bytes = b""
    consent: bytes = b""


class Memory(Copy):
    """One participant's memory: its copy of the log, and what it did.

    Args:
        path: SQLite file; made, readable by its owner only, where there is none.

    Guarantees:
        What a method wrote is on the disk when it returns. Marks only grow, also if two processes share the file.

    Raises:
        InputError: The file is something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _TABLES)

    @property
    def last(self) -> Entered:
        """The last session that was entered."""
        rows = self._database.run("SELECT run, round, attempt, name, said FROM entered")
        return next((Entered((run, number, attempt), *rest) for run, number, attempt, *rest in rows), Entered())

    @property
    def charges(self) -> list[Mark]:
        """Every attempt that was charged, in order."""
        return self._database.run("SELECT run, round, attempt FROM charge ORDER BY run, round, attempt")

    def enter(self, mark: Mark, session: bytes) -> bool:
        """Raise the mark; False if it is not above the last."""
        with self._database.transaction():
            is_above = mark > self.last.mark
            if is_above:
                self._database.run("INSERT OR REPLACE INTO entered VALUES (1, ?, ?, ?, ?, ?)", (*mark, session, b""))
        return is_above

    def consent(self, session: bytes, consent: bytes) -> bool:
        """Remember what was consented to; False if another session was entered last."""
        with self._database.transaction():
            self._database.run("UPDATE entered SET said = ? WHERE name = ?", (consent, session))
        return self.last[1:] == (session, consent)

    def charge(self, mark: Mark, most: int) -> bool:
        """Charge an attempt, once; False if its run has `most` others already."""
        with self._database.transaction():
            others = [other for other in self.charges if other[0] == mark[0] and other != mark]
            if len(others) < most:
                self._database.run("INSERT OR IGNORE INTO charge VALUES (?, ?, ?)", mark)
        return len(others) < most

    def recover(self, lost: Sequence[Mark]) -> None:
        """Charge attempts that were forgotten, in order, and raise the mark to the last of them."""
        with self._database.transaction():
            self._database.run_many("INSERT OR IGNORE INTO charge VALUES (?, ?, ?)", lost)
            for mark in lost[-1:]:
                self._database.run("INSERT OR REPLACE INTO entered VALUES (1, ?, ?, ?, ?, ?)", (*mark, b"", b""))
