"""A head of the log, cosigned by the participants that are there, over the channel that carries everything else."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hubbub.engine.transport import Transport
from hubbub.errors import AT, HubbubError, RefusedError
from hubbub.messages import CosignAsked, Cosigned, decode_message, encode_message
from hubbub.tlog import Note, Store, Verifier
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.witness import Answer, ask

SECONDS: Final = 10.0
"""A witness that does not answer in this time does not count for this head."""


class Cosigners:
    """The participants as witnesses.

    Args:
        transport: Reaches them.
        store: The log.
    """

    def __init__(self, transport: Transport, store: Store) -> None:
        self._transport = transport
        self._store = store
        self._signed: dict[str, int] = {}
        self.copies: dict[str, int] = {}
        """By participant: entries in its copy of the log, as it last said."""

    def cosign(self, note: Note, witnesses: Mapping[str, Verifier]) -> Note:
        """The head with the cosignatures of all who are there and sign.

        Args:
            note: The head, signed by the log.
            witnesses: Whose keys count, by name.
        """
        names = sorted(witnesses.keys() & self._transport.sites())
        if not names:
            return note
        with ThreadPoolExecutor(len(names)) as pool:
            asked = [pool.submit(self._ask_one, name, note, witnesses[name]) for name in names]
        added = [line for one in asked for line in one.result().signatures if line not in note.signatures]
        return Note(note.text, note.signatures + tuple(added))

    def _ask_one(self, name: str, note: Note, key: Verifier) -> Note:
        def send(request: bytes) -> Answer:
            question = encode_message(CosignAsked(request))
            for _, reply in self._transport.ask({name: question}, seconds=SECONDS):
                message = decode_message(reply)
                if isinstance(message, Cosigned):
                    self.copies[name] = message.entries
                    return Answer(message.status, message.body, message.content_type)
            raise RefusedError(
                f"{name}, was asked to cosign and did not answer; not cosigned",
                hint=f"hubbub status {AT} shows who is there",
            )

        try:
            signed = ask(send, note, self._store, [key], known=self._signed.get(name, 0))
        except HubbubError:
            self._signed.pop(name, None)
            return note
        self._signed[name] = parse_checkpoint(note.text).size
        return signed
