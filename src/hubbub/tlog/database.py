"""One SQLite file: all or nothing, durable when it returns, for any number of processes and threads.

*Trust:* as far as the disk; whoever can write the file can change what it says, and `Store.check` shows it.
"""

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Final

from hubbub.errors import InputError

_PAGES: Final = 200
"""Of the write-ahead log, from which on it is written again from its start: a file that grows is slower to flush."""


def create_file(path: Path, content: bytes = b"") -> None:
    """Make a file for its owner only, whole or not at all; one that is there stays, whoever made it.

    It is never opened under its own name: closing any descriptor of a SQLite file drops the locks that this process
    holds on it, and another process would take the write-ahead log away (sqlite.org/howtocorrupt.html, 2.2).
    """
    if path.exists():
        return
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(new)
    new.unlink()


class Database:
    """A file with fixed tables; made, readable by its owner only, where there is none.

    Args:
        path: The file.
        tables: A CREATE TABLE IF NOT EXISTS for each.

    Raises:
        InputError: The file cannot be written, or is something else.
    """

    def __init__(self, path: Path, tables: Sequence[str]) -> None:
        self.path = path
        self._turn = threading.RLock()
        with self._named_errors():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            create_file(path)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(f"PRAGMA wal_autocheckpoint={_PAGES}")
        with self.transaction():
            for table in tables:
                self.run(table)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @property
    def is_writing(self) -> bool:
        """Whether this thread is inside a transaction: what it reads may never come to be."""
        with self._turn:
            return self._connection.in_transaction

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """Everything run inside is durable when the block ends, or undone if it raises."""
        with self._turn, self._named_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # not after a full disk, or Ctrl-C after a commit
                    self._connection.execute("ROLLBACK")
                raise

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one statement; returns its rows. Never sees another thread's open transaction."""
        with self._turn, self._named_errors():
            return self._connection.execute(statement, values).fetchall()

    def run_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each row."""
        with self._named_errors():
            self._connection.executemany(statement, rows)

    @contextlib.contextmanager
    def _named_errors(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            folder = quote(str(self.path.parent))
            look = f"ls -ld {folder} shows who may write there, df -h {folder} if a disk is full, ulimit -f a limit"
            # An older copy is a log that has forgotten: only for one that is no log any more.
            is_damaged = type(error) is sqlite3.DatabaseError
            raise InputError(
                f"{self.path}, must be a log's database that can be written, {error}; nothing recorded",
                hint="restore it from a copy" if is_damaged else look,
            ) from None
