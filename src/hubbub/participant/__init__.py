"""One site: its records, its refusals, and the one vector per round that it sends.

    site.py          `Participant`: a sans-I/O state machine, `RoundOpened` in, `Contribution` out
    commitment.py    salted commitment to the site's data

Imports nothing of the coordinator, so that a data owner can review and install this half alone.

*Trust:* sees its own raw records and nobody else's; compromised, it loses those and can poison the model.
"""

from hubbub.participant.commitment import commit
from hubbub.participant.site import Participant

__all__ = ["Participant", "commit"]
