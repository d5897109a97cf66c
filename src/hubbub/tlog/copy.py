"""Somebody else's log, as far as it was seen: a party's own copy, and the head that it was last compared with.

Whoever keeps every entry needs no proof of any: a newer head is right if and only if the copy and the entries that
came with it lead to its root.

*Trust:* whoever can write the file, or put an older one in its place, decides what its owner remembers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hubbub.tlog.database import Database
from hubbub.tlog.merkle import complete_subtrees, grow, join, leaf_hash
from hubbub.tlog.note import Note, parse_note
from hubbub.tlog.store import Store

_HEAD: Final = "CREATE TABLE IF NOT EXISTS head (one INT PRIMARY KEY, note BLOB)"


class Copy:
    """A copy of a log in one file.

    Args:
        path: SQLite file; made, readable by its owner only, where there is none.
        tables: What else its owner keeps in it.

    Raises:
        InputError: The file is something else.
    """

    def __init__(self, path: Path, tables: Sequence[str] = ()) -> None:
        self._store = Store(path)
        self._database = Database(path, (_HEAD, *tables))

    def close(self) -> None:
        """Close the file."""
        self._store.close()
        self._database.close()

    @property
    def size(self) -> int:
        """Entries in the copy."""
        return self._store.size

    @property
    def head(self) -> Note | None:
        """The head that the copy was last compared with."""
        return next((parse_note(note) for (note,) in self._database.run("SELECT note FROM head")), None)

    def entries(self, start: int) -> list[bytes]:
        """Entries of the copy from an index on."""
        return self._store.entries(start)

    def root(self, size: int) -> bytes:
        """The root over the first `size` entries."""
        return self._store.root(size)

    def root_with(self, entries: Sequence[bytes]) -> bytes:
        """The root over the copy with these entries after it."""
        size = self._store.size
        edge = [self._store.hashes(level, at, at + 1)[0] for level, at in complete_subtrees(0, size)]
        grow(edge, size, map(leaf_hash, entries))
        return join(edge)

    def extend(self, head: Note, decide: Callable[[int], Sequence[bytes]]) -> None:
        """Add what `decide` makes of the copy's size, all or nothing; it raises to refuse."""
        self._store.append(decide)
        self._database.run("INSERT OR REPLACE INTO head VALUES (1, ?)", (bytes(head),))
