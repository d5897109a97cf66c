"""Which log a command of governance is about: a home's on this machine, or a coordinator's over the wire."""

import argparse
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hubbub.cli.budget import chosen_home
from hubbub.engine.acts import Acts, LocalActs
from hubbub.engine.commands import PART_BYTES
from hubbub.engine.home import LOG, VARIABLE, open_log
from hubbub.errors import InputError
from hubbub.governance import Federation, load_keys
from hubbub.governance.certificates import End
from hubbub.governance.enrolment import client_credentials, read_membership

SECONDS = 30.0
"""How long a coordinator may take to answer."""


@contextmanager
def opened(options: argparse.Namespace, *, must_exist: bool = True) -> Generator[Acts]:
    """The log that `--at`, `--home`, `--study` or HUBBUB_HOME names, until the block ends.

    Raises:
        InputError: There is none; or two are named.
    """
    acts = _remote(options) if options.at else _local(options, must_exist=must_exist)
    try:
        yield acts
    finally:
        acts.close()


def state_of(options: argparse.Namespace) -> Federation:
    """The state as it is."""
    with opened(options) as acts:
        return acts.state()


def _local(options: argparse.Namespace, *, must_exist: bool) -> Acts:
    home = chosen_home(options)
    if must_exist and not (home / LOG).exists():
        raise InputError(
            f"{home}, must hold a log, found none; nothing recorded",
            hint=f"--study STUDY, --home DIR or {VARIABLE}=DIR says where it is, --at MEMBERSHIP that it is elsewhere",
        )
    return LocalActs(open_log(home))


def _remote(options: argparse.Namespace) -> Acts:
    from hubbub.engine.remote import RemoteActs

    path = Path(options.at)
    if not options.key:
        raise InputError(f"{path}, must be used with the key that it is for, found no --key", hint="--key FILE")
    keys, membership = load_keys(Path(options.key)), read_membership(path)
    end = client_credentials(keys, membership, now=int(time.time()))

    def ask(command: bytes) -> bytes:
        return _sent(membership.address, end, command)

    return RemoteActs(membership, path.parent, path.stem, ask)


def _sent(address: str, end: End, command: bytes) -> bytes:
    try:
        from hubbub.engine.direct import Credentials, Tuning, send_command
    except ImportError as error:
        raise InputError(
            f"--at, must reach a coordinator over gRPC, found no module {error.name!r}; nothing sent",
            hint="pip install 'hubbub[direct]'",
        ) from None
    return send_command(address, Credentials(*end), command, seconds=SECONDS, tuning=Tuning(limit=2 * PART_BYTES))
