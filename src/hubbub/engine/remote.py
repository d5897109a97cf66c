"""A coordinator's log from afar: read, verified, kept, and added to.

Whoever reads keeps every entry beside the membership, so what is shown later must continue what was shown before; all
else is read from the entries here, and nothing is believed that the coordinator says of them.

*Trust:* the coordinator can be silent, or show an old state; it cannot show two histories, leave an entry out, or say
that an act is recorded which is not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hubbub.engine.commands import Done, Failed, LogPart, ReadLog, RecordAct, read_answer
from hubbub.errors import InputError, VerificationError
from hubbub.events import decode_event, encode_event
from hubbub.governance import Federation
from hubbub.governance.enrolment import Membership
from hubbub.tlog import Note
from hubbub.tlog.checkpoint import Checkpoint, parse_checkpoint
from hubbub.tlog.copy import Copy
from hubbub.tlog.note import parse_note
from hubbub.tlog.tiles import replace_file

Kind = TypeVar("Kind", LogPart, Done)
Ask = Callable[[bytes], bytes]
"""Sends one command to the coordinator; its answer. Raises if there is none."""


class RemoteActs:
    """Acts in a coordinator's log.

    Args:
        membership: Whose log is meant.
        folder: Where the copy lies, and heads that contradict each other.
        name: What files there begin with.
        ask: The connection.

    Raises:
        InputError: The copy is of another log than the membership's.
    """

    def __init__(self, membership: Membership, folder: Path, name: str, ask: Ask) -> None:
        self._membership = membership
        self._log = membership.verifier
        self._evidence = folder / f"{name}.heads"
        self._ask = ask
        self._state = Federation()
        self._copy = Copy(folder / f"{name}.log.db")
        head = self._copy.head
        if head is not None and parse_checkpoint(head.text).origin != self._log.name:
            self._copy.close()
            raise InputError(
                f"{folder / name}.log.db, must be a copy of {self._log.name}, found one of another log; nothing sent",
                hint="move it away if the operator has told you of a new log",
            )

    def close(self) -> None:
        """Close the copy."""
        self._copy.close()

    def state(self) -> Federation:
        """What follows from the coordinator's log as it is now.

        Raises:
            VerificationError: What it shows does not add up, or does not continue what it showed before.
            InputError: The coordinator does not answer.
        """
        self._follow()
        return self._folded()

    def record(self, envelope: str, now: int) -> None:
        """Have a signed act recorded, and find it in the log.

        Raises:
            HubbubError: It may not be recorded, as found here or there; or it is not in the log that was shown after.
        """
        event = self.state().event(envelope, now)
        before = self._copy.size
        self._asked(RecordAct(envelope).encode(), Done)
        self._follow()
        if encode_event(event) not in self._copy.entries(before):
            raise VerificationError(
                f"{self._log.name}, must show an act that it says it recorded, found it nowhere in "
                f"{self._copy.size} entries",
                hint="keep the copy, and tell the others: the coordinator said what is not so",
            )

    def _folded(self) -> Federation:
        for body in self._copy.entries(self._state.entries):
            self._state.apply(decode_event(body))
        meant, found = self._membership.federation, self._state.id
        if found not in ("", meant):
            raise VerificationError(
                f"{self._log.name}, must be the log of federation {meant[:16]}, found {found[:16]} founded in it; "
                "nothing sent",
                hint="ask the operator which founding act your membership is for",
            )
        return self._state

    def _follow(self) -> None:
        """Take in what is new."""
        is_last = False
        while not is_last:
            part = self._asked(ReadLog(self._copy.size).encode(), LogPart)
            is_last = part.is_last
            if not part.entries and not is_last:
                raise self._broken("more entries promised and none sent")
            self._take(part)

    def _take(self, part: LogPart) -> None:
        note = parse_note(part.checkpoint)
        head = parse_checkpoint(note.text)
        if head.origin != self._log.name or self._log.signed_at(note) is None:
            raise self._broken("a head that its key did not sign")
        self._copy.extend(note, lambda size: self._continuing(part, note, head, size))

    def _continuing(self, part: LogPart, note: Note, head: Checkpoint, size: int) -> tuple[bytes, ...]:
        """The new entries, if they and the copy lead to the head."""
        if head.size < size:
            raise self._contradicted(note, f"a head of {head.size} entries after one of {size}")
        if (part.start, part.start + len(part.entries)) != (size, head.size):
            raise self._broken("other entries than those under its head")
        if self._copy.root_with(part.entries) == head.root:
            return part.entries
        found = "entries that do not lead to the root it signed"
        raise self._contradicted(note, found) if size else self._broken(found)

    def _asked(self, command: bytes, kind: type[Kind]) -> Kind:
        answer = read_answer(self._ask(command))
        if isinstance(answer, Failed):
            raise answer.error()
        if not isinstance(answer, kind):
            raise self._broken(f"an answer of type {type(answer).__name__}")
        return answer

    def _broken(self, found: str) -> VerificationError:
        return VerificationError(
            f"{self._log.name}, must show its log as its key signed it, found {found}; nothing taken in",
            hint="ask again, and tell the operator if it stays so",
        )

    def _contradicted(self, shown: Note, found: str) -> VerificationError:
        """Two heads that no entries join: both are kept, since only both together convict."""
        for word, note in (("known", self._copy.head), ("shown", shown)):
            if note is not None:
                replace_file(self._evidence / f"{word}-{parse_checkpoint(note.text).size}", bytes(note))
        return VerificationError(
            f"{self._log.name}, must show one history, found {found}: the log was cut or rewritten; nothing taken in",
            hint=f"both heads are in {self._evidence}: show them to the other members, and sign nothing here",
        )
