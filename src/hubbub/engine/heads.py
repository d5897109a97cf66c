"""The signed heads of a home's log: the newest one, and those that witnesses have cosigned."""

from pathlib import Path

from hubbub.errors import VerificationError
from hubbub.tlog import Note, Signer, Store, sign_checkpoint, tiles
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.note import parse_note


class Heads:
    """Heads of one log.

    Args:
        store: The log.
        key: What signs its heads.
        folder: Where cosigned heads are kept.
    """

    def __init__(self, store: Store, key: Signer, folder: Path) -> None:
        self.store = store
        self.key = key
        self._folder = folder

    def head(self) -> Note:
        """The signed head, with the cosignatures it has."""
        note = sign_checkpoint(self.store, self.key)
        return {known.text: known for known in self.cosigned()}.get(note.text, note)

    def cosigned(self) -> list[Note]:
        """Cosigned heads, the smallest first.

        Raises:
            VerificationError: The log no longer begins as it did when one of them was cosigned.
        """
        notes = [parse_note(path.read_bytes()) for path in self._folder.glob("*") if path.name.isdecimal()]
        heads = {(head := parse_checkpoint(note.text)).size: (head, note) for note in notes}
        for head, _ in heads.values():
            if head.size > self.store.size or self.store.root(head.size) != head.root:
                raise VerificationError(
                    f"{head.origin}, must begin with the {head.size} entries that were cosigned, found "
                    f"{self.store.size} entries that do not; nothing signed",
                    hint="restore the log from a copy; it was cut or rewritten",
                )
        return [heads[size][1] for size in sorted(heads)]

    def keep(self, note: Note) -> Path:
        """Remember a cosigned head."""
        path = self._folder / str(parse_checkpoint(note.text).size)
        tiles.replace_file(path, bytes(note))
        return path
