"""A log as a folder of static files, which any web server can serve and any tlog-tiles client can check.

    checkpoint                          the signed head
    tile/LEVEL/N, tile/LEVEL/N.p/WIDTH  256 hashes, or the fewer that there are so far
    tile/entries/N[.p/WIDTH]            256 entries, each after its length in two bytes

*Trust:* none; whoever reads it checks it against the checkpoint.

Source:
    c2sp.org/tlog-tiles.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

from hubbub.errors import InputError, VerificationError
from hubbub.tlog import merkle
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.note import Note, parse_note
from hubbub.tlog.store import Store

WIDTH: Final = 256
_HEIGHT: Final = 8


def tile_path(kind: str, number: int, width: int = WIDTH) -> str:
    """Where a tile lies; `kind` is a level or "entries".

    >>> tile_path("0", 1234067, 5)
    'tile/0/x001/x234/067.p/5'
    """
    parts = [f"{number % 1000:03}"]
    while number := number // 1000:
        parts.insert(0, f"x{number % 1000:03}")
    return "/".join(["tile", kind, *parts]) + (f".p/{width}" if width < WIDTH else "")


def export(store: Store, checkpoint: Note, folder: Path) -> int:
    """Write a log, as large as its checkpoint says, to a folder; returns the number of tiles and bundles.

    The checkpoint comes last: a reader that sees it finds everything it needs.

    Raises:
        InputError: The checkpoint is not this log's, or the folder cannot be written.
    """
    head = parse_checkpoint(checkpoint.text)
    if store.root(head.size) != head.root:
        raise InputError(
            f"{head.origin}, must be the log whose checkpoint is exported, found another root at size {head.size}; "
            "nothing written",
            hint="sign a checkpoint of this log",
        )
    count = 0
    for path, content in _files(store, head.size):
        replace_file(folder / path, content)
        count += 1
    replace_file(folder / "checkpoint", bytes(checkpoint))
    return count


def read_export(folder: Path) -> tuple[Note, list[bytes]]:
    """Read a whole exported log: its signed head, and every entry under it.

    Guarantees:
        The folder holds exactly the files that `export` writes for these entries, byte by byte, and they lead to
        the root of the checkpoint. Who signed that is another question: `verify_checkpoint`.

    Raises:
        VerificationError: A file is missing, changed, or one too many.
    """
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    note = parse_note(found.pop("checkpoint", b""))
    head = parse_checkpoint(note.text)
    bodies = [body for number in range(0, head.size, WIDTH) for body in _unbundle(found, number, head.size)]
    memory = _Memory(bodies)
    if memory.root() != head.root or dict(_files(memory, head.size)) != found:
        raise _not_exported(folder, "other entries, hashes or files")
    return note, bodies


def _unbundle(found: dict[str, bytes], start: int, size: int) -> Generator[bytes]:
    width = min(WIDTH, size - start)
    data, at = found.get(tile_path("entries", start // WIDTH, width), b""), 0
    for _ in range(width):
        end = at + 2 + int.from_bytes(data[at : at + 2])
        if not at + 2 <= end <= len(data):
            raise _not_exported(Path("tile/entries"), "an entry that is cut")
        yield data[at + 2 : end]
        at = end


def _not_exported(folder: Path, found: str) -> VerificationError:
    return VerificationError(
        f"{folder}, must hold a log as it was exported, found {found}",
        hint="export it again, or fetch it again from whoever serves it",
    )


class _Memory:
    """Entries and hashes of a log in memory."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = bodies
        grown = merkle.grow([], 0, map(merkle.leaf_hash, bodies))
        self._nodes = {(level, index): hash_ for level, index, hash_ in grown}

    def hashes(self, level: int, start: int, end: int) -> list[bytes]:
        return [self._nodes[level, index] for index in range(start, end)]

    def entries(self, start: int, end: int) -> list[bytes]:
        return self._bodies[start:end]

    def root(self) -> bytes:
        return merkle.range_hash(0, len(self._bodies), lambda level, index: self._nodes[level, index])


def _files(store: "Store | _Memory", size: int) -> Generator[tuple[str, bytes]]:
    """Path and content of every tile and entry bundle of the first `size` entries."""
    level, hashes = 0, size
    while hashes:
        for number, start in enumerate(range(0, hashes, WIDTH)):
            end = min(start + WIDTH, hashes)
            yield tile_path(str(level), number, end - start), b"".join(store.hashes(level * _HEIGHT, start, end))
            if level == 0:
                bodies = store.entries(start, end)
                bundle = b"".join(len(body).to_bytes(2) + body for body in bodies)
                yield tile_path("entries", number, end - start), bundle
        level, hashes = level + 1, hashes >> _HEIGHT


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, with the folders above it.

    Raises:
        InputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_bytes(content)
        new.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}, must be a file that can be written, {error.strerror}", hint="name another folder"
        ) from None
