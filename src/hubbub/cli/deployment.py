"""submit, status, fetch; and resume, stop, release of runs that are elsewhere: what people ask a coordinator."""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hubbub.cli.acts import LONG, asked
from hubbub.cli.plain import plain
from hubbub.engine.commands import (
    FILE_PATH,
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
from hubbub.errors import AT, HostError, InputError, RefusedError, VerificationError, typed

if TYPE_CHECKING:
    from hubbub.release import ReleaseClaim

EVERY = 0.5
"""Seconds between looks at what is waited for."""
PATIENCE = 120.0
"""Seconds that participants are waited for."""


def submit(options: argparse.Namespace) -> None:
    """Have an approved study run."""
    from hubbub.planning import make_plan
    from hubbub.study import load_study

    study = load_study(options.study)
    plan = make_plan(study)
    assert study.lock is not None  # noqa: S101, there is a plan
    lock = (study.lock_path or Path()).read_bytes()
    order = SubmitStudy(study_hash=plan.study_hash, code_hash=plan.code_hash, plan_hash=plan.hash, lock=lock)
    started = asked(options, order, Started, seconds=LONG)
    if options.wait:
        _wait(options, started.run)
    else:
        print(plain(f"{started.run}: started"))


def resume(options: argparse.Namespace) -> None:
    """Have a run go on."""
    started = asked(options, ResumeRun(options.folder), Started, seconds=LONG)
    print(plain(f"run {started.run} {'had ended: nothing is trained' if started.had_ended else 'goes on'}"))


def stop(options: argparse.Namespace) -> None:
    """Have a run halted after its attempt."""
    asked(options, HaltRun(options.folder), Done)
    print(f"run {options.folder} is halted after the attempt that goes on; it stays reserved")


def status(options: argparse.Namespace) -> None:
    """Show who is there and what goes on."""
    from hubbub.cli import show, show_deployment

    found = asked(options, ShowStatus(), Status) if options.wait is None else _connected(options, options.wait)
    (show.json if options.json else show_deployment.status)(found)


def _connected(options: argparse.Namespace, fewest: int = 0) -> Status:
    """The status once enough participants are connected; a coordinator that does not listen now is waited for."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            found = asked(options, ShowStatus(), Status)
        except HostError:
            if time.monotonic() > until:
                raise
        else:
            if len(found.connected) >= fewest:
                return found
            if time.monotonic() > until:
                raise RefusedError(
                    f"coordinator, must have {fewest} participants connected within {PATIENCE:g} s, "
                    f"found {', '.join(found.connected) or 'none'}",
                    hint="look at what the others' hubbub join says",
                )
        time.sleep(EVERY)


def release(options: argparse.Namespace) -> None:
    """Have a run released, and fetch its bundle."""
    out = Path(options.out or f"{options.folder}-bundle")
    if out.exists():
        raise InputError(f"{out}, must be a new folder, found one that is there; nothing released", hint="--out DIR")
    asked(options, ReleaseRun(options.folder), Done, seconds=LONG)
    names = asked(options, FetchFile(options.folder, "bundle", 0), FilePart).names
    for name in names:
        path = _inside(out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_fetched(options, options.folder, f"bundle/{name}"))
    print(f"released: {out}; anybody can check it: hubbub verify {typed(out)}")


def _inside(folder: Path, name: str) -> Path:
    """A file below a folder, where it is, whatever a coordinator calls it.

    Raises:
        VerificationError: It would lie elsewhere.
    """
    if re.fullmatch(FILE_PATH, name) is None:
        raise VerificationError(
            f"coordinator, must name files of a bundle, found {name!r}; it was not written",
            hint="tell the others: no bundle has such a file",
        )
    return folder / name


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

    print(plain(f"hubbub: run {run} has begun"), file=sys.stderr)
    with show_deployment.progress(run) as tell:
        while (told := _told(options, run)) is None or told.state == "running":
            if told is not None:
                tell(told)
            time.sleep(EVERY)
    if told.state != "finished":
        raise RefusedError(
            told.words or f"run {run}, must finish, found it {told.state}", hint=f"hubbub resume {run} {AT}"
        )
    print(plain(f"{run}: finished, {show_deployment.outcome(told, _claim(options, run))}"))


def _claim(options: argparse.Namespace, run: str) -> "ReleaseClaim":
    from hubbub.release import ReleaseClaim

    try:
        return msgspec.json.decode(_fetched(options, run, "claim.json"), type=ReleaseClaim)
    except msgspec.DecodeError as error:
        raise InputError(
            f"claim of {run}, must be one, {error}", hint="both sides must run the same version of hubbub"
        ) from None


def _told(options: argparse.Namespace, run: str) -> RunStatus | None:
    """What a coordinator says of a run; None while it has written nothing down yet."""
    return next((one for one in _connected(options).runs if one.run == run), None)
