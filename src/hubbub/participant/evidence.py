"""What convicts whoever signed it, on the disk of the party that was shown it: one file per signed piece, as it is.

    forks/HASH      heads of one size and two roots, both signed by one log
    heads/HASH      heads that a log signed and that the proof which came with the later one does not join
    messages/HASH   secure aggregation: a message that breaks a rule and those of its session before it; or two for one
                    answer

HASH is the SHA-256 of the file. Which pieces belong together, and what rule they break, is told where they are named.

*Trust:* none is needed: whoever is shown a piece checks its signature. A liar may have more kept of itself than
convicts it, up to the bound.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hubbub.secagg.keys import sha256
from hubbub.secagg.messages import Evidence as Broken
from hubbub.tlog.database import create_file
from hubbub.tlog.witness import Evidence as Unjoined

EVIDENCE: Final = "evidence"
"""Folder of it."""
MOST_FILES: Final = 64
"""In a folder of one kind: later pieces are not kept, so no kind can crowd another one out."""
MOST_BYTES: Final = 16 * 2**20
"""In a folder of one kind."""


def keep(folder: Path, found: Unjoined | Broken) -> list[Path]:
    """Keep all pieces of what was found, or none if the folder of their kind would hold too much then.

    Args:
        folder: Where the three kinds lie.
        found: Heads, or messages.

    Returns:
        The pieces' files; none if too much is there already, or the disk takes no more.

    Guarantees:
        Each file holds its piece whole, is named by its hash and can be read by its owner only; the same piece is kept
        once. A folder of one kind holds at most `MOST_FILES` pieces and `MOST_BYTES` bytes.
    """
    kind, pieces = _pieces(found)
    files = {folder / kind / sha256(piece).hex(): piece for piece in pieces}
    new = {file: piece for file, piece in files.items() if not file.exists()}
    with contextlib.suppress(OSError):
        for made in (folder, folder / kind):
            made.mkdir(exist_ok=True, mode=0o700)
        sizes = [file.stat().st_size for file in (folder / kind).iterdir()] + [len(piece) for piece in new.values()]
        if not new or (len(sizes) <= MOST_FILES and sum(sizes) <= MOST_BYTES):
            for file, piece in new.items():
                create_file(file, piece)
            return list(files)
    return []


def _pieces(found: Unjoined | Broken) -> tuple[str, Sequence[bytes]]:
    if isinstance(found, Broken):
        return "messages", [bytes(message) for message in found.messages]
    return "forks" if found.is_fork else "heads", [bytes(found.cosigned), bytes(found.submitted)]
