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

from hubbub.errors import InputError
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.note import Note
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


def _files(store: Store, size: int) -> Generator[tuple[str, bytes]]:
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
