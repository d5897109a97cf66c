"""Runs a plan: everybody in this process, or each on a host of its own.

    prepare.py     a study's code and data, loaded and checked; study.lock
    home.py        what survives runs: the event log and the participants' salts
    folder.py      the run directory, and what a run goes on from after it was interrupted
    record.py      a run's events, into log and directory
    permission.py  what a federation says of a run
    federation.py  everybody's keys, where everybody lives in one process
    transport.py   the seam between coordinator and participants: one question to many
    direct/        a carrier: gRPC over mutual TLS, dialled by the participants
    flare/         a wire for it: its connections through jobs of NVIDIA FLARE
    running.py     one run from reservation to claim, wherever its participants are
    embedded.py    `run`, `resume`, `stop`: everybody in this process
    workers.py     who trains there: this process, or some that were forked from it
    coordinate.py  a coordinator's process, but for its carrier: orders, one run at a time
    away.py        the participants of a run behind a carrier: who is there, charge, head, session, deadlines
    cosign.py      a head, cosigned by the participants that are there
    commands.py    what people ask of a coordinator, on the wire; answering.py, status.py: what it answers
    remote.py      a coordinator's log from afar, verified and kept; acts.py: here or there; enrol.py: memberships
    heads.py       signed heads of the log, and those that witnesses have cosigned
    publish.py     `release_run`: gate, log entry, quorum, bundle

What is exported here is imported when it is first used: a participant's host loads its half of a carrier and no
coordinator.

*Trust:* the embedded engine holds all participants' records in one process; it simulates a federation and
protects the released model, not the participants from whoever runs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubbub.engine.embedded import resume, run, stop
    from hubbub.engine.prepare import check, plan
    from hubbub.engine.publish import release_run
    from hubbub.engine.running import RunResult

__all__ = ["RunResult", "check", "plan", "release_run", "resume", "run", "stop"]

_FILES = {
    "RunResult": "hubbub.engine.running",
    "check": "hubbub.engine.prepare",
    "plan": "hubbub.engine.prepare",
    "release_run": "hubbub.engine.publish",
    "resume": "hubbub.engine.embedded",
    "run": "hubbub.engine.embedded",
    "stop": "hubbub.engine.embedded",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'hubbub.engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_FILES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
