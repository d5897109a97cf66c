"""Which home a command on this machine is about."""

import argparse
from pathlib import Path

from hubbub.engine.home import LOG, VARIABLE, home_folder
from hubbub.errors import InputError

NAMED = f"--study STUDY, --home DIR or {VARIABLE}=DIR says where it is"


def chosen_home(options: argparse.Namespace) -> Path:
    """The home that `--home`, `--study` or HUBBUB_HOME names."""
    study = options.study or getattr(options, "planned", None)  # what is forecast lies beside its home too
    beside = Path(study) if isinstance(study, str) else None
    if beside is not None and beside.is_file():
        beside = beside.parent
    return Path(options.home) if options.home else home_folder(beside)


def home_with_log(options: argparse.Namespace, undone: str, *, hint: str = NAMED) -> Path:
    """That home, in which something must have happened before.

    Raises:
        InputError: It holds no log.
    """
    home = chosen_home(options)
    if not (home / LOG).exists():
        raise InputError(f"{home}, must hold a log, found none; {undone}", hint=hint)
    return home
