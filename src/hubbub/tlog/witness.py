"""A witness: signs a log's head only if it continues what it signed before; and how a log asks for that.

No network here: request bytes in, status and answer bytes out, over whatever carries them.

*Trust:* a quorum of witnesses, not one: a log and a lying witness can still show two histories. One that lost its
database is retired with its key: begun again, it would sign a fork.

Source:
    c2sp.org/tlog-witness, c2sp.org/tlog-cosignature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.tlog.checkpoint import Checkpoint, parse_checkpoint, parse_decimal, parse_hash
from hubbub.tlog.database import Database
from hubbub.tlog.keys import ED25519, ML_DSA_44, Signer, Verifier
from hubbub.tlog.merkle import EMPTY_ROOT, is_consistent
from hubbub.tlog.note import Note, as_text, malformed, parse_note, parse_signatures, to_base64
from hubbub.tlog.proof import MOST_HASHES
from hubbub.tlog.store import Store

SIGNED, BAD, UNTRUSTED, UNKNOWN, CONFLICT, UNPROVEN = 200, 400, 403, 404, 409, 422

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS head (origin TEXT PRIMARY KEY, size INT, root BLOB, note BLOB) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS fork (origin TEXT, size INT, cosigned BLOB, submitted BLOB, UNIQUE (origin, size))",
)
_TRIES: Final = 3


@dataclass(frozen=True)
class Request:
    """What a log sends: the size that the witness signed last, the proof from there, the new head."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Note

    def __bytes__(self) -> bytes:
        return "\n".join([f"old {self.old}", *map(to_base64, self.proof), "", ""]).encode() + bytes(self.checkpoint)


@dataclass(frozen=True)
class Evidence:
    """Two heads that a log signed and that are not joined.

    Args:
        cosigned: What the witness signed last.
        submitted: What it was asked to sign.
        is_fork: True: one size and two roots, no proof can exist. False: the proof that came does not join them.
    """

    cosigned: Note
    submitted: Note
    is_fork: bool


@dataclass(frozen=True)
class Answer:
    """What a witness says: status, body and content type as in HTTP, and evidence for its own operator."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    evidence: Evidence | None = None


@dataclass(frozen=True)
class _Head:
    size: int = 0
    root: bytes = EMPTY_ROOT
    note: Note | None = None


def parse_request(data: bytes) -> Request:
    """Read the body of an add-checkpoint request.

    Guarantees:
        `bytes(parse_request(data)) == data`.

    Raises:
        VerificationError: It is none.
    """
    head, blank, note = as_text(data).partition("\n\n")
    old, *hashes = head.split("\n")
    if not blank or not old.startswith("old ") or len(hashes) > MOST_HASHES:
        raise malformed(
            f"a request, must be 'old SIZE', at most {MOST_HASHES} hashes, a blank line, a checkpoint", head
        )
    return Request(parse_decimal(old.removeprefix("old ")), tuple(map(parse_hash, hashes)), parse_note(note.encode()))


class Witness:
    """Remembers one head of each log it knows, and cosigns what provably continues it.

    Args:
        path: SQLite file of its memory; made where there is none.
        keys: Its keys, each of a type that cosigns.
        logs: Keys of the logs it cosigns for; a key's name is the log's origin.

    Guarantees:
        A head is on the disk before its cosignature is returned. Of one log, no two cosigned heads have one size
        and two roots, and none is smaller than one cosigned before, in any number of processes on one file.

    Raises:
        InputError: A key is no cosigner's, or the file is something else.
    """

    def __init__(self, path: Path, keys: Sequence[Signer], logs: Sequence[Verifier]) -> None:
        if not keys or any(key.kind == ED25519 for key in keys):
            raise InputError(
                "a witness, must have keys that cosign, found a log's key or none", hint="a key of its own"
            )
        self._keys, self._logs = tuple(keys), tuple(logs)
        self._database = Database(path, _TABLES)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add_checkpoint(self, body: bytes, now: int) -> Answer:
        """Answer one request.

        Args:
            body: The request.
            now: POSIX seconds, stated in the cosignature.
        """
        try:
            request = parse_request(body)
            head = parse_checkpoint(request.checkpoint.text)
        except VerificationError as error:
            return _say(BAD, error.message)
        if head.origin not in {key.name for key in self._logs}:
            return _say(UNKNOWN, "this log is not known here")
        if not self._is_signed(head.origin, request.checkpoint):
            return _say(UNTRUSTED, "no trusted key of this log signed this, or a line of such a key is forged")
        if request.old > head.size:
            return _say(BAD, "the old size is larger than the checkpoint's")
        if head.extensions and any(key.kind == ML_DSA_44 for key in self._keys):
            return _say(BAD, "extension lines are not cosigned here")
        with self._database.transaction():
            refusal = self._refusal(request, head)
            if refusal is None:
                row = (head.origin, head.size, head.root, bytes(request.checkpoint))
                self._database.run("INSERT OR REPLACE INTO head VALUES (?, ?, ?, ?)", row)
        text = request.checkpoint.text
        return refusal or Answer(SIGNED, "".join(str(key.sign(text, now)) for key in self._keys).encode())

    def forks(self) -> list[Evidence]:
        """Every fork that it has ever been shown."""
        rows = self._database.run("SELECT cosigned, submitted FROM fork ORDER BY origin, size")
        return [Evidence(parse_note(cosigned), parse_note(submitted), is_fork=True) for cosigned, submitted in rows]

    def _is_signed(self, origin: str, note: Note) -> bool:
        try:
            return any(key.signed_at(note) is not None for key in self._logs if key.name == origin)
        except VerificationError:
            return False

    def _refusal(self, request: Request, head: Checkpoint) -> Answer | None:
        """Why this head is not signed, if it is not; a fork is remembered in the open transaction."""
        known = self._known(head.origin)
        is_fork = head.size == known.size and head.root != known.root
        evidence = None if known.note is None else Evidence(known.note, request.checkpoint, is_fork)
        if is_fork and known.note is not None:
            row = (head.origin, head.size, bytes(known.note), bytes(request.checkpoint))
            self._database.run("INSERT OR IGNORE INTO fork VALUES (?, ?, ?, ?)", row)
        if is_fork or request.old != known.size:
            return Answer(CONFLICT, b"%d\n" % known.size, "text/x.tlog.size", evidence if is_fork else None)
        if not is_consistent(known.size, head.size, request.proof, known.root, head.root):
            return _say(UNPROVEN, "the proof does not lead from the head signed here to this one", evidence)
        return None

    def _known(self, origin: str) -> _Head:
        rows = self._database.run("SELECT size, root, note FROM head WHERE origin = ?", (origin,))
        return next((_Head(size, root, parse_note(note)) for size, root, note in rows), _Head())


def ask(
    send: Callable[[bytes], Answer], note: Note, store: Store, witness: Sequence[Verifier], *, known: int = 0
) -> Note:
    """Ask a witness to cosign a head; returns the note with its cosignatures added.

    Args:
        send: Carries a request to the witness and brings the answer back.
        note: The head, signed by the log.
        store: The log.
        witness: The witness's keys; lines of other keys in its answer are left out.
        known: Size that the witness is thought to have signed last; if it says another, that one is taken.

    Raises:
        RefusedError: The witness does not know the log, or has seen a larger one: no evidence of anything.
        VerificationError: It knows a head that this one does not continue, or did not sign.
    """
    head = parse_checkpoint(note.text)
    old = min(known, head.size)
    answer = send(bytes(Request(old, tuple(store.consistency(old, head.size)), note)))
    for _ in range(_TRIES):
        seen = parse_decimal(as_text(answer.body).removesuffix("\n")) if answer.status == CONFLICT else old
        if seen > head.size:
            raise RefusedError(
                f"{head.origin} at size {head.size}, is behind what the witness signed, found {seen}; not cosigned",
                hint="sign the newest head and ask again; if the log has none so large, it lost entries",
            )
        if seen == old:
            break
        old = seen
        answer = send(bytes(Request(old, tuple(store.consistency(old, head.size)), note)))
    if answer.status == SIGNED:
        return _with_cosignatures(note, answer.body, witness)
    words = f"{answer.status} {answer.body[:200].decode(errors='replace').strip()}"
    if answer.status in {CONFLICT, UNPROVEN}:
        raise VerificationError(
            f"{head.origin} at size {head.size}, must continue what the witness signed at size {old}, found answer "
            f"{words!r}; not cosigned",
            hint="keep this head: if the witness's own head is of this log's key, the log has shown two histories",
        )
    raise RefusedError(
        f"{head.origin} at size {head.size}, was sent to a witness, which answered {words!r}; not cosigned",
        hint="tell the witness the log's key, as `hubbub log show` prints it",
    )


def _with_cosignatures(note: Note, lines: bytes, witness: Sequence[Verifier]) -> Note:
    """The note with the lines that the witness's keys made, in place of older ones of theirs."""
    told = Note(note.text, parse_signatures(as_text(lines)))
    keys = {(key.name, key.key_id) for key in witness if key.signed_at(told) is not None}
    if not keys:
        raise VerificationError(
            "a witness, must sign with a key that is known to be its own, found other lines; not cosigned",
            hint="compare the key that the witness shows with the one in the policy",
        )
    kept = tuple(line for line in note.signatures if (line.name, line.key_id) not in keys)
    return Note(note.text, kept + tuple(line for line in told.signatures if (line.name, line.key_id) in keys))


def _say(status: int, words: str, evidence: Evidence | None = None) -> Answer:
    return Answer(status, f"{words}\n".encode(), evidence=evidence)
