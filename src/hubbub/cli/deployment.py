"""coordinate, join, recover, submit, status; and resume, stop, release of runs that are elsewhere."""

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

from hubbub.cli.acts import asked
from hubbub.engine.commands import (
    Done,
    FetchFile,
    FilePart,
    HaltRun,
    ReleaseRun,
    ResumeRun,
    RunStatus,
    ShowStatus,
    Started,
    Status,
    SubmitStudy,
)
from hubbub.errors import InputError, RefusedError

EVERY = 0.5
"""Seconds between looks at a run that is waited for."""


# --- processes


def coordinate(options: argparse.Namespace) -> None:
    """Run a coordinator until it is told to stop."""
    from hubbub.engine.away import Deadlines
    from hubbub.engine.coordinate import Coordinating
    from hubbub.engine.direct import Credentials, DirectServer, Spool
    from hubbub.engine.home import server_credentials
    from hubbub.governance.enrolment import check_address

    home = Path(options.folder)
    deadlines = Deadlines(stage=options.stage, training=options.training, patience=options.patience)
    hosts = [check_address(options.address), *options.host]
    credentials = Credentials(*server_credentials(home, hosts, now=int(time.time())))
    with _held(home, "coordinator.lock"), _told_to_stop() as stop:
        coordinating = Coordinating(home, deadlines)
        server = DirectServer(
            credentials,
            coordinating.identify,
            spool=Spool(home / "spool"),
            address=options.address,
            command=coordinating.command,
        )
        coordinating.attach(server)
        print(f"hubbub: the coordinator of {home} listens at {options.address}", file=sys.stderr, flush=True)
        for run in options.resume:
            coordinating.go_on(run)
        stop.wait()
        coordinating.close()


def join(options: argparse.Namespace) -> None:
    """Run a participant until it is told to stop."""
    from hubbub.engine.direct import Credentials, Spool, serve
    from hubbub.governance.enrolment import client_credentials
    from hubbub.participant.folder import SiteFolder
    from hubbub.participant.host import Host

    folder = SiteFolder(Path(options.folder))
    membership = folder.membership()
    credentials = Credentials(*client_credentials(folder.keys(), membership, now=int(time.time())))
    with _held(folder.path, "site.lock"), _told_to_stop() as stop:
        Host.warm()
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


# --- what people ask


def submit(options: argparse.Namespace) -> None:
    """Have an approved study run."""
    from hubbub.planning import make_plan
    from hubbub.study import load_study

    study = load_study(options.study)
    plan = make_plan(study)
    assert study.lock is not None  # noqa: S101, there is a plan
    lock = (study.lock_path or Path()).read_bytes()
    order = SubmitStudy(study_hash=plan.study_hash, code_hash=plan.code_hash, plan_hash=plan.hash, lock=lock)
    started = asked(options, order, Started)
    print(started.run)
    if options.wait:
        _wait(options, started.run)


def resume(options: argparse.Namespace) -> None:
    """Have a run go on."""
    started = asked(options, ResumeRun(options.folder), Started)
    print(f"run {started.run} goes on")


def stop(options: argparse.Namespace) -> None:
    """Have a run halted after its attempt."""
    asked(options, HaltRun(options.folder), Done)
    print(f"run {options.folder} is halted after the attempt that goes on; it stays reserved")


def status(options: argparse.Namespace) -> None:
    """Show who is there and what goes on."""
    from hubbub.cli import show, show_deployment

    found = asked(options, ShowStatus(), Status)
    (show.json if options.json else show_deployment.status)(found)


def release(options: argparse.Namespace) -> None:
    """Have a run released, and fetch its bundle."""
    out = Path(options.out or f"{options.folder}-bundle")
    if out.exists():
        raise InputError(f"{out}, must be a new folder, found one that is there; nothing released", hint="--out DIR")
    asked(options, ReleaseRun(options.folder), Done)
    names = asked(options, FetchFile(options.folder, "bundle", 0), FilePart).names
    for name in names:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_fetched(options, options.folder, f"bundle/{name}"))
    print(f"released: {out}; anybody can check it: hubbub verify {out}")


def fetch(options: argparse.Namespace) -> None:
    """Fetch a file of a run."""
    data = _fetched(options, options.folder, options.file)
    Path(options.out or options.file).write_bytes(data)
    print(f"wrote {options.out or options.file}")


def _fetched(options: argparse.Namespace, run: str, name: str) -> bytes:
    data = b""
    while True:
        part = asked(options, FetchFile(run, name, len(data)), FilePart)
        data += part.data
        if part.is_last:
            return data


def _wait(options: argparse.Namespace, run: str) -> None:
    """Show how a run goes on until it does not."""
    from hubbub.cli import show_deployment

    with show_deployment.progress(run) as tell:
        while True:
            told = next(one for one in asked(options, ShowStatus(), Status).runs if one.run == run)
            tell(told)
            if told.state != "running":
                break
            time.sleep(EVERY)
    if told.state != "finished":
        raise RefusedError(told.words or f"run {run}, has {told.state}", hint="hubbub status")
    _print_ended(told)


def _print_ended(told: RunStatus) -> None:
    print(f"run {told.run}: {told.rounds} rounds, {told.attempts} attempts charged, model {told.model_hash[:16]}")
