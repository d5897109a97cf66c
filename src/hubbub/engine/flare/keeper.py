"""Keeps jobs running for each site that is connected to FLARE's server, for as long as it is told to."""

# FLARE lives in environments of its own, not in the one where types are checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import new_secure_session

from hubbub.engine.flare.kits import write_job

_log = logging.getLogger(__name__)

_POLL = 0.5
_START = 30.0
"""Seconds between looks, and until a job that was submitted must be running."""


def keep(kit: Path, user: str, sites: Collection[str], *, stop: threading.Event, jobs: int = 2) -> None:
    """Submit jobs for each site, again whenever one has ended; abort them when told to stop.

    What runs is asked of FLARE's server each time, so a keeper that is started again goes on where the last one was.

    Args:
        kit: Start-up kit of an administrator with the role "lead".
        user: The administrator's name.
        sites: Names of FLARE clients.
        stop: Ends this.
        jobs: For each site: one that carries, and others that take over within seconds when its processes die, which
            FLARE needs a quarter of a minute to see.
    """
    session: Any = None
    submitted: list[tuple[float, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        while not stop.wait(_POLL):
            try:
                session = session or new_secure_session(user, str(kit))
                _fill(session, dict.fromkeys(sites, jobs), submitted, Path(folder))
            except Exception as error:  # noqa: BLE001, whatever FLARE raises: it is tried again
                _log.warning("FLARE's server cannot be asked: %s", type(error).__name__)
                session = _closed(session)
        if session is not None:
            _abort(session, sites)
            _closed(session)


def _fill(session: Any, wanted: Mapping[str, int], submitted: list[tuple[float, str, str]], folder: Path) -> None:
    """Submit one job for each site that lacks one; those that were submitted just now may not be running yet."""
    system, now = session.get_system_info(), time.monotonic()
    connected = {client.name for client in system.client_info}
    running = {job.job_id: job.app_name for job in system.job_info}
    submitted[:] = [(since, job, site) for since, job, site in submitted if now - since < _START and job not in running]
    jobs = Counter(running.values()) + Counter(site for _, _, site in submitted)
    for site in sorted(connected & set(wanted)):
        if jobs[site] < wanted[site]:
            job = session.submit_job(str(write_job(folder, site)))
            submitted.append((now, job, site))
            _log.info("%s gets job %s", site, job)


def _abort(session: Any, sites: Collection[str]) -> None:
    try:
        for job in session.get_system_info().job_info:
            if job.app_name in sites:
                session.abort_job(job.job_id)
    except Exception as error:  # noqa: BLE001, the jobs end when their sites do
        _log.warning("jobs were left: %s", type(error).__name__)


def _closed(session: Any) -> None:
    try:
        if session is not None:
            session.close()
    except Exception as error:  # noqa: BLE001, it was of no use any more
        _log.debug("the session was gone: %s", type(error).__name__)
