"""Runs a plan: everybody in this process.

    prepare.py     a study's code and data, loaded and checked; study.lock
    home.py        what survives runs: the event log and the participants' salts
    folder.py      the run directory, and what a run goes on from after it was interrupted
    record.py      a run's events, into log and directory
    permission.py  what a federation says of a run
    federation.py  everybody's keys, where everybody lives in one process
    transport.py   the seam between coordinator and participants
    running.py     one run from reservation to claim, wherever its participants are
    embedded.py    `run`, `resume`, `stop`: everybody in this process
    heads.py       signed heads of the log, and those that witnesses have cosigned
    publish.py     `release_run`: gate, log entry, quorum, bundle

*Trust:* the embedded engine holds all participants' records in one process; it simulates a federation and
protects the released model, not the participants from whoever runs it.
"""

from hubbub.engine.embedded import resume, run, stop
from hubbub.engine.prepare import check, plan, prepare
from hubbub.engine.publish import release_run
from hubbub.engine.running import RunResult

__all__ = ["RunResult", "check", "plan", "prepare", "release_run", "resume", "run", "stop"]
