"""new, check, plan, run, resume, stop, release, verify, registry."""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubbub.errors import InputError, typed

if TYPE_CHECKING:
    from hubbub.tlog import Policy

TEMPLATE = Path(__file__).parent / "template"


def new(options: argparse.Namespace) -> None:
    """Write a study that runs."""
    folder = Path(options.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "one that holds files" if folder.is_dir() else "a file"
        raise InputError(
            f"{folder}, must be a new or empty folder, found {found}; nothing written",
            hint="name another folder",
        )
    try:
        shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise InputError(
            f"{folder}, must be a folder that can be made, {error.strerror}; nothing written",
            hint="name another folder",
        ) from None
    print(f"wrote {folder}/study.toml and {folder}/study.py; next: hubbub run {typed(folder)}")


def check(options: argparse.Namespace) -> None:
    """Check file, code and data."""
    from hubbub.cli import show
    from hubbub.engine.prepare import prepare
    from hubbub.study import load_study

    prepared = prepare(load_study(options.study))
    show.checked(prepared, with_null_slots=options.private)


def plan(options: argparse.Namespace) -> None:
    """Show the plan."""
    from hubbub.cli import show
    from hubbub.planning import make_plan
    from hubbub.study import load_study

    study = load_study(options.study)
    if study.current_lock is None:
        from hubbub.engine import check as check_study

        print("hubbub: study.lock is not current: checking code and data first", file=sys.stderr)
        study = check_study(study)
    (show.plan_json if options.json else show.plan)(make_plan(study))


def run(options: argparse.Namespace) -> None:
    """Train."""
    from hubbub.engine import run as run_study
    from hubbub.study import load_study

    study = load_study(options.study)
    _train(options, lambda watch: run_study(study, out=options.out, watch=watch))


def resume(options: argparse.Namespace) -> None:
    """Go on with a run."""
    from hubbub.engine import resume as resume_run

    _train(options, lambda watch: resume_run(options.folder, watch=watch))


def stop(options: argparse.Namespace) -> None:
    """Give a run up."""
    from hubbub.engine import stop as stop_run

    settled = stop_run(options.folder)
    print(f"run {settled.run} is given up; {settled.charged} round attempts stay charged")


def release(options: argparse.Namespace) -> None:
    """Release a run."""
    from hubbub.engine import release_run

    bundle = release_run(options.folder, out=options.out)
    print(f"released: {bundle}; anybody can check it: hubbub verify {typed(bundle)}")


def verify(options: argparse.Namespace) -> None:
    """Check a bundle."""
    from hubbub.cli import checks
    from hubbub.release.verify import verify_steps

    folder, policy = _bundle(options), _policy(options)
    found = verify_steps(folder, policy=policy, recompute=not options.no_recompute)
    checks.verified(found, as_json=options.json)


def registry(options: argparse.Namespace) -> None:
    """Print a bundle's claim as an entry of the deployments registry, if all of the bundle adds up."""
    import msgspec

    from hubbub.planning import Plan
    from hubbub.release.registry import read_publication, registry_entry, registry_text
    from hubbub.release.verify import verify_bundle

    publication, folder = read_publication(Path(options.publication)), _bundle(options)
    claim = verify_bundle(folder, policy=_policy(options)).claim
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    sys.stdout.write(registry_text(registry_entry(claim, plan, publication)))


def _bundle(options: argparse.Namespace) -> Path:
    """The bundle that is named, if it may be one."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise InputError(f"{folder}, must be a bundle, found no folder", hint="name one that `hubbub release` made")
    if (folder / "run.json").exists():
        raise InputError(
            f"{folder}, must be a bundle, found the directory of a run",
            hint=f"{typed('hubbub', 'release', folder)} makes the bundle, {typed(folder / 'bundle')}",
        )
    return folder


def _policy(options: argparse.Namespace) -> "Policy | None":
    """Whose keys are believed: as a policy file says, or a membership; None is the bundle's own."""
    if options.policy is None:
        return None
    path = Path(options.policy)
    if path.suffix == ".membership":
        from hubbub.governance.enrolment import read_membership

        return read_membership(path).witnesses
    from hubbub.cli.log import read_policy

    return read_policy(path)


def _train(options: argparse.Namespace, train: Callable[[Any], Any]) -> None:
    from hubbub.cli import show
    from hubbub.cli.plain import json

    with show.progress(is_shown=not (options.quiet or options.json)) as watch:
        result = train(watch)
    if options.json:
        json(result)
    elif not options.quiet:
        show.result(result)
