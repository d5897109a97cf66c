"""coordinate, join, recover: the processes of a federation on hosts of its own.

Each imports its own half only: `join` loads no path of a coordinator.
"""

import argparse
import fcntl
import logging
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hubbub.errors import InputError, RefusedError, typed


def coordinate(options: argparse.Namespace) -> None:
    """Run a coordinator until it is told to stop."""
    from hubbub.engine.away import Deadlines
    from hubbub.engine.coordinate import Coordinating
    from hubbub.engine.direct import Credentials, DirectServer, Spool
    from hubbub.engine.home import LOG, server_credentials
    from hubbub.governance.enrolment import check_address
    from hubbub.local.threads import one_thread

    home = Path(options.folder)
    if not (home / LOG).exists():
        raise InputError(
            f"{home}, must hold the log of a federation, found none; nothing made, nothing started",
            hint=f"hubbub federation found NAME CARD... --key FILE --home {typed(home)} begins one",
        )
    deadlines = Deadlines(stage=options.stage, training=options.training, patience=options.patience)
    hosts = [check_address(options.address), *options.host]
    credentials = Credentials(*server_credentials(home, hosts, now=int(time.time())))
    with _held(home, "coordinator.lock"), one_thread(), _told_to_stop() as stop:
        coordinating = Coordinating(home, deadlines)
        server = DirectServer(
            credentials,
            coordinating.identify,
            spool=Spool(home / "spool"),
            address=options.address,
            command=coordinating.command,
        )
        coordinating.transport = server
        print(f"hubbub: the coordinator of {home} listens at {options.address}", file=sys.stderr, flush=True)
        for run in options.resume:
            coordinating.go_on(run)
        stop.wait()
        coordinating.close()


def join(options: argparse.Namespace) -> None:
    """Run a participant until it is told to stop."""
    from hubbub.engine.direct import Credentials, Spool, serve
    from hubbub.governance.enrolment import client_credentials
    from hubbub.local.threads import one_thread
    from hubbub.participant.folder import SiteFolder
    from hubbub.participant.host import Host

    folder = SiteFolder(Path(options.folder))
    membership = folder.membership()
    credentials = Credentials(*client_credentials(folder.keys(), membership, now=int(time.time())))
    with _held(folder.path, "site.lock"), _told_to_stop() as stop:
        Host.warm()
        with one_thread():
            host = Host(folder, lambda: int(time.time()))
            print(f"hubbub: {host.name} dials {membership.address}", file=sys.stderr, flush=True)
            serve(membership.address, credentials, host.answer, stop=stop, spool=Spool(folder.path / "spool"))
            host.close()


@contextmanager
def _held(folder: Path, name: str) -> Generator[IO[bytes]]:
    """Keep a folder to this process.

    Raises:
        RefusedError: Another process has it.
    """
    with (folder / name).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RefusedError(
                f"{folder}, must be used by one process, found another; nothing started", hint="end the other one first"
            ) from None
        yield file


@contextmanager
def _told_to_stop() -> Generator[threading.Event]:
    """An event that SIGINT and SIGTERM set; diagnostics go to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="hubbub: %(message)s")
    stop = threading.Event()

    def tell(_number: int, _frame: object) -> None:
        stop.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def recover(options: argparse.Namespace) -> None:
    """Have a participant take the maximum of its memory and the log, at its next start."""
    from hubbub.participant.folder import SiteFolder

    folder = SiteFolder(Path(options.folder))
    with _held(folder.path, "site.lock"):
        folder.ask_recovery()
    print("at its next start this site charges every attempt in the log that it does not remember")
