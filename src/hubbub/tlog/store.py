"""The log itself: entries in order, and the hashes of all complete subtrees above them.

*Trust:* the file's owner can rewrite it; signed heads that others hold, and witnesses, make that show.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.tlog import merkle
from hubbub.tlog.checkpoint import Checkpoint
from hubbub.tlog.database import Database
from hubbub.tlog.keys import Signer
from hubbub.tlog.note import Note

MOST_ENTRY_BYTES: Final = 65_535
"""Entry bundles of a static log have two bytes for an entry's length."""

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS entry (idx INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS node (level INT, idx INT, hash BLOB NOT NULL, PRIMARY KEY (level, idx)) WITHOUT ROWID",
)
_ENTRIES: Final = (
    "SELECT entry.idx, CAST(body AS BLOB), CAST(hash AS BLOB) FROM entry "
    "LEFT JOIN node ON level = 0 AND node.idx = entry.idx WHERE entry.idx >= ? AND entry.idx < ? ORDER BY entry.idx"
)
_MOST: Final = 2**62
_PIECE: Final = 4096


class Store:
    """An append-only log in one file; any number of threads and processes may append.

    Args:
        path: SQLite file; made, readable by its owner only, where there is none.

    Raises:
        InputError: The file is no log.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _TABLES)
        self._edge: tuple[int, list[bytes]] = (0, [])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def append(self, decide: Callable[[int], Sequence[bytes]]) -> range:
        """Decide on the newest state and append what was decided, all or nothing, in one transaction.

        Args:
            decide: Given the size, reads `entries` if it wants to, and returns bodies, or raises to refuse.

        Returns:
            The indexes of the new entries, durable.

        Guarantees:
            No other entry comes between what `decide` read and what it returned. If it raises, or a body is no
            entry, nothing is written.
        """
        with self._database.transaction():
            size = self.size
            bodies = [checked_entry(body, index) for index, body in enumerate(decide(size), start=size)]
            edge = self._edge_of(size)
            nodes = merkle.grow(edge, size, map(merkle.leaf_hash, bodies))
            self._database.run_many("INSERT INTO entry VALUES (?, ?)", enumerate(bodies, start=size))
            self._database.run_many("INSERT INTO node VALUES (?, ?, ?)", sorted(nodes))
        self._edge = (size + len(bodies), edge)
        return range(size, size + len(bodies))

    def _edge_of(self, size: int) -> list[bytes]:
        """Hashes of the complete subtrees of the first `size` entries: known from the last append, or read."""
        known, edge = self._edge
        return edge.copy() if known == size else [self._node(*at) for at in merkle.complete_subtrees(0, size)]

    @property
    def size(self) -> int:
        """Number of entries."""
        ((last,),) = self._database.run("SELECT MAX(idx) FROM entry")
        return 0 if last is None else last + 1

    @property
    def is_writing(self) -> bool:
        """Whether this thread is inside `append`: what it reads may never come to be."""
        return self._database.is_writing

    def entries(self, start: int = 0, end: int | None = None) -> list[bytes]:
        """Entries from `start` up to but without `end`, as they were appended.

        Raises:
            VerificationError: One of them is gone, or is not what its hash says.
        """
        end = _MOST if end is None else min(end, self.size)
        found = self._database.run(_ENTRIES, (start, end))
        for expected, (index, body, hash_) in enumerate(found, start=start):
            if index != expected or merkle.leaf_hash(body) != hash_:
                raise self._damaged(f"entry {expected}")
        if end < _MOST and len(found) < end - start:
            raise self._damaged(f"entry {start + len(found)}")
        return [body for _, body, _ in found]

    def root(self, size: int | None = None) -> bytes:
        """The root over the first `size` entries, default all."""
        size = self.size if size is None else size
        self._require(size, is_sound=True)
        return merkle.range_hash(0, size, self._node)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The proof that entry `index` is among the first `size`."""
        self._require(size, is_sound=0 <= index < size)
        return merkle.inclusion_proof(index, size, self._node)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the first `new` entries begin with the first `old`."""
        self._require(new, is_sound=0 <= old <= new)
        return merkle.consistency_proof(old, new, self._node)

    def check(self) -> None:
        """Compute every hash from the entries again.

        Raises:
            VerificationError: A stored hash or entry is gone, new or changed.
        """
        edge: list[bytes] = []
        size, count = self.size, 0
        for start in range(0, size, _PIECE):
            bodies = self.entries(start, min(start + _PIECE, size))
            nodes = sorted(merkle.grow(edge, start, map(merkle.leaf_hash, bodies)))
            count += len(nodes)
            for level, group in itertools.groupby(nodes, key=lambda node: node[0]):
                _, places, hashes = zip(*group, strict=True)
                if self.hashes(level, places[0], places[-1] + 1) != list(hashes):
                    raise self._damaged(f"a hash at level {level}, places {places[0]} to {places[-1]}")
        ((stored,),) = self._database.run("SELECT COUNT(*) FROM node WHERE (idx + 1) << level <= ?", (size,))
        ((beyond,),) = self._database.run("SELECT COUNT(*) FROM node WHERE (idx + 1) << level > ?", (self.size,))
        if stored != count or beyond:
            raise self._damaged("the number of hashes")

    def hashes(self, level: int, start: int, end: int) -> list[bytes]:
        """Hashes of the complete subtrees of one level, from place `start` up to but without `end`."""
        rows = self._database.run(
            "SELECT CAST(hash AS BLOB) FROM node WHERE level = ? AND idx >= ? AND idx < ? ORDER BY idx",
            (level, start, end),
        )
        if len(rows) < end - start:
            raise self._damaged(f"a hash at level {level}, places {start} to {end - 1}")
        return [hash_ for (hash_,) in rows]

    def _node(self, level: int, index: int) -> bytes:
        return self.hashes(level, index, index + 1)[0]

    def _require(self, size: int, *, is_sound: bool) -> None:
        if not is_sound or not 0 <= size <= self.size:
            raise InputError(
                f"{self._database.path}, has {self.size} entries, found a question about others; nothing answered",
                hint="hubbub log show",
            )

    def _damaged(self, what: str) -> VerificationError:
        return VerificationError(
            f"{self._database.path}, must hold all as it was appended, found {what} missing or changed",
            hint="restore the log from a copy; heads that others hold tell which copy is right",
        )


def checked_entry(body: bytes, index: int) -> bytes:
    """Let a body through that a log may hold: UTF-8 JSON of at most 65,535 bytes.

    Raises:
        InputError: It is something else.
    """
    if len(body) > MOST_ENTRY_BYTES:
        found = f"{len(body)} bytes"
    else:
        try:
            _JSON.decode(body.decode())
        except (ValueError, RecursionError) as error:
            found = str(error)
        else:
            return body
    raise InputError(
        f"entry {index}, must be JSON in UTF-8 of at most {MOST_ENTRY_BYTES} bytes, found {found}; nothing appended",
        hint="log the SHA-256 of large things",
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is Python's and not JSON's")


_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def sign_checkpoint(store: Store, key: Signer, size: int | None = None) -> Note:
    """Sign the head of a log as it is on the disk, or as it was at a size; the origin is the key's name.

    Raises:
        RefusedError: Asked for inside `append`, where entries are not committed yet.
    """
    if store.is_writing:
        raise RefusedError(
            "a checkpoint, is signed after its entries are committed, found an open transaction; nothing signed",
            hint="sign when `append` has returned",
        )
    size = store.size if size is None else size
    text = str(Checkpoint(key.name, size, store.root(size)))
    return Note(text, (key.sign(text),))
