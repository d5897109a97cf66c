"""What somebody outside checks, offline: heads, entries and growth of a log, under a policy of their own.

Vendor this folder and `errors`: it needs the standard library and `cryptography`.

*Trust:* it is the verifier; what it accepts is believed.

Source:
    c2sp.org/tlog-policy, c2sp.org/tlog-proof.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hubbub.errors import VerificationError
from hubbub.tlog.checkpoint import Checkpoint, parse_checkpoint
from hubbub.tlog.keys import Verifier
from hubbub.tlog.merkle import is_consistent, is_included, leaf_hash
from hubbub.tlog.note import Note, parse_note
from hubbub.tlog.policy import Policy
from hubbub.tlog.proof import Proof

FRESH: Final = 24 * 3600
"""Seconds after which a cosignature no longer says that a head is the newest: an old head hides revocations."""

AHEAD: Final = 300
"""Seconds that a witness's clock may run ahead of the verifier's."""


@dataclass(frozen=True)
class Verified:
    """A head that a policy accepts.

    Args:
        checkpoint: The head.
        log: The key that signed it.
        cosigned: When each witness of the policy cosigned it, by name, in POSIX seconds.
    """

    checkpoint: Checkpoint
    log: Verifier
    cosigned: Mapping[str, int]


def verify_checkpoint(note: Note | bytes, policy: Policy, *, now: int | None = None, fresh: int = FRESH) -> Verified:
    """Check that one of the policy's logs signed a head and that a quorum of its witnesses cosigned it.

    Args:
        note: The signed checkpoint.
        policy: From somewhere else than the note.
        now: POSIX seconds; cosignatures older than `fresh`, or more than `AHEAD` in the future, do not count. None:
            the head may be of any age.
        fresh: In seconds.

    Raises:
        VerificationError: A line of a known key is forged, no log of the policy signed, or too few cosigned.
    """
    note = note if isinstance(note, Note) else parse_note(note)
    checkpoint = parse_checkpoint(note.text)
    logs = [party.key for party in policy.logs if party.key.name == checkpoint.origin]
    log = next((key for key in logs if key.signed_at(note) is not None), None)
    if log is None:
        raise VerificationError(
            f"a checkpoint, must be signed by a log of the policy under its own origin, found {checkpoint.origin!r}",
            hint="add `log VKEY` to the policy, if you know from elsewhere whose key it is",
        )
    times = {party.name: party.key.signed_at(note) for party in policy.witnesses}
    cosigned = {name: time for name, time in times.items() if time is not None and _counts(time, now, fresh)}
    if not policy.is_quorum(cosigned):
        age = "" if now is None else f" within {fresh / 3600:g} h"
        raise VerificationError(
            f"{checkpoint.origin} at size {checkpoint.size}, must be cosigned by the policy's quorum{age}, "
            f"found {', '.join(sorted(cosigned)) or 'none'}, where {policy.rule} must",
            hint="ask the log for a head with more cosignatures",
        )
    return Verified(checkpoint, log, cosigned)


def verify_entry(proof: Proof, body: bytes, policy: Policy, *, now: int | None = None, fresh: int = FRESH) -> Verified:
    """Check that an entry stands in a log, at the proof's index, under a head that the policy accepts.

    Raises:
        VerificationError: The head is not accepted, or the proof does not lead from this entry to it.
    """
    verified = verify_checkpoint(proof.checkpoint, policy, now=now, fresh=fresh)
    head = verified.checkpoint
    if not is_included(leaf_hash(body), proof.index, head.size, proof.hashes, head.root):
        raise VerificationError(
            f"{head.origin}, must hold this entry at index {proof.index} of {head.size}, "
            "found a proof that does not lead to the signed root",
            hint="check that entry and proof belong together, byte by byte",
        )
    return verified


def verify_consistency(old: Verified, new: Verified, proof: Sequence[bytes]) -> None:
    """Check that one accepted head of a log continues another.

    Raises:
        VerificationError: The heads are of two logs, or the proof does not join them.
    """
    before, after = old.checkpoint, new.checkpoint
    is_one_log = before.origin == after.origin
    if not is_one_log or not is_consistent(before.size, after.size, proof, before.root, after.root):
        raise VerificationError(
            f"{after.origin} at size {after.size}, must continue {before.origin} at size {before.size}, "
            "found no proof that joins them",
            hint="keep both heads: if no proof joins them, the log has shown two histories",
        )


def is_fork(one: Note, other: Note, log: Verifier) -> bool:
    """Whether a log signed two heads of one size with different roots: no proof can ever join them.

    Raises:
        VerificationError: A line of the log's key is forged, or a note is no checkpoint.
    """
    first, second = parse_checkpoint(one.text), parse_checkpoint(other.text)
    is_signed = log.signed_at(one) is not None and log.signed_at(other) is not None
    names = {first.origin, second.origin, log.name}
    return is_signed and len(names) == 1 and first.size == second.size and first.root != second.root


def _counts(time: int, now: int | None, fresh: int) -> bool:
    return now is None or now - fresh <= time <= now + AHEAD
