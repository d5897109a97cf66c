"""Runs a plan: everybody in this process.

    prepare.py     a study's code and data, loaded and checked; study.lock
    home.py        what survives runs: the event log and the participants' salts
    embedded.py    `run`: drives coordinator and participants, writes the run directory

*Trust:* the embedded engine holds all participants' records in one process; it simulates a federation and
protects the released model, not the participants from whoever runs it.
"""

from hubbub.engine.embedded import RunResult, run
from hubbub.engine.prepare import check, plan, prepare

__all__ = ["RunResult", "check", "plan", "prepare", "run"]
