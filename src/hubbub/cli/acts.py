"""Which log a command of governance is about: a home's on this machine, or a coordinator's over the wire."""

import argparse
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hubbub.cli.home import NAMED, chosen_home, home_with_log
from hubbub.engine.acts import Acts, LocalActs
from hubbub.engine.commands import PART_BYTES, AnyAnswer, Command, Failed, read_answer
from hubbub.engine.home import open_log
from hubbub.errors import InputError
from hubbub.governance import Federation, load_keys
from hubbub.governance.enrolment import client_credentials, read_membership

Kind = TypeVar("Kind", bound=AnyAnswer)
SECONDS = 30.0
"""How long a coordinator may take to answer what it knows."""
LONG = 900.0
"""How long it may take where it asks its participants first, or loads a study."""


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
    if must_exist:
        home_with_log(options, "nothing recorded", hint=f"{NAMED}, --at MEMBERSHIP that it is elsewhere")
    return LocalActs(open_log(chosen_home(options)))


def _remote(options: argparse.Namespace) -> Acts:
    from hubbub.engine.remote import RemoteActs

    path = Path(options.at)
    return RemoteActs(read_membership(path), path.parent, path.stem, connection(options))


def connection(options: argparse.Namespace, seconds: float = SECONDS) -> Callable[[bytes], bytes]:
    """Sends commands to the coordinator that `--at` is about, as the holder of `--key`.

    Raises:
        InputError: Membership and key do not belong together, or what is needed to connect is not installed.
    """
    if not options.key:
        raise InputError(f"{options.at}, must be used with the key that it is for, found no --key", hint="--key FILE")
    membership = read_membership(Path(options.at))
    end = client_credentials(load_keys(Path(options.key)), membership, now=int(time.time()))
    try:
        from hubbub.engine.direct import Credentials, Tuning, send_command
    except ImportError as error:
        raise InputError(
            f"--at, must reach a coordinator over gRPC, found no module {error.name!r}; nothing sent",
            hint="pip install '.[direct]' in a checkout of hubbub",
        ) from None
    credentials, tuning = Credentials(*end), Tuning(limit=2 * PART_BYTES)

    def ask(command: bytes) -> bytes:
        return send_command(membership.address, credentials, command, seconds=seconds, tuning=tuning)

    return ask


def asked(options: argparse.Namespace, order: Command, kind: type[Kind], *, seconds: float = SECONDS) -> Kind:
    """Ask the coordinator that `--at` is about; what it refuses is raised here.

    Raises:
        HubbubError: It refuses, does not answer, or answers something else.
    """
    answer = read_answer(connection(options, seconds)(order.encode()))
    if isinstance(answer, Failed):
        raise answer.error()
    if not isinstance(answer, kind):
        raise InputError(
            f"coordinator, must answer what it was asked, found {type(answer).__name__}",
            hint="both sides must run the same version",
        )
    return answer
