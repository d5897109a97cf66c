"""One site: its records, its refusals, and the one vector per round that it sends.

    host.py          `Host`: a participant's process but for its carrier, every message of the coordinator in it
    folder.py        its own directory
    admission.py     what it asks of a run before it takes part
    site.py          `Participant`: a sans-I/O state machine, `RoundOpened` in, `Contribution` out
    records.py       what it makes of its records: per attempt one vector, clipped, encoded, noised
    commitment.py    salted commitment to the site's data
    log_guard.py     what it checks of the log before it enters a session
    opening.py       what it is shown of the log, on the wire
    log_view.py      what the log says about sessions
    evidence.py      what convicts whoever signed it, on disk
    memory.py        what it must never forget: its copy of the log, its mark, its charges

Imports nothing of the coordinator, so that a data owner can review and install this half alone.

*Trust:* sees its own raw records and nobody else's; compromised, it loses those and can poison the model.
"""

from hubbub.participant.commitment import commit
from hubbub.participant.log_guard import LogGuard, Site
from hubbub.participant.memory import Memory
from hubbub.participant.opening import Opening, read_opening
from hubbub.participant.site import Participant

__all__ = ["LogGuard", "Memory", "Opening", "Participant", "Site", "commit", "read_opening"]
