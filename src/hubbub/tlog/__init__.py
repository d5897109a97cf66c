"""What happened, provably: an append-only log that outsiders verify with tools of their own.

    merkle.py       hashes of entries and of the tree; inclusion and consistency proofs
    note.py         a text with signature lines under it
    checkpoint.py   the head of a log: origin, size, root
    keys.py         who signs notes, in three signature types
    database.py     one SQLite file, all or nothing, durable
    store.py        the entries and the tree above them
    copy.py         somebody else's log, as far as it was seen
    proof.py        the file that proves one entry
    tiles.py        a log as a folder of static files
    policy.py       which logs and whose cosignatures count
    witness.py      signs only heads that continue what it signed before; and how a log asks it
    verify.py       what somebody outside checks, offline

The formats are C2SP's: docs/spec/log.md. Nothing here imports anything of ours but `errors`.

*Trust:* whoever holds the log's key can show two histories, until a quorum of witnesses is asked for; that an
entry is true is not promised here, only that it was there, in this place, for everybody.
"""

from hubbub.tlog.checkpoint import Checkpoint
from hubbub.tlog.keys import Signer, Verifier
from hubbub.tlog.note import Note
from hubbub.tlog.policy import Policy
from hubbub.tlog.proof import Proof
from hubbub.tlog.store import Store, sign_checkpoint
from hubbub.tlog.verify import verify_checkpoint, verify_consistency, verify_entry
from hubbub.tlog.witness import Witness

__all__ = [
    "Checkpoint",
    "Note",
    "Policy",
    "Proof",
    "Signer",
    "Store",
    "Verifier",
    "Witness",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_entry",
]
