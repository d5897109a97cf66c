"""enrol, admit: from a key file to a membership."""

import argparse
import datetime as dt
import time
from pathlib import Path

from hubbub.cli.home import home_with_log
from hubbub.engine.enrol import admit as admit_all
from hubbub.errors import InputError
from hubbub.governance import load_keys
from hubbub.governance.certificates import Request, make_request, read_request
from hubbub.governance.enrolment import write_membership
from hubbub.tlog.tiles import replace_file


def enrol(options: argparse.Namespace) -> None:
    """Write a request for a certificate."""
    keys = load_keys(Path(options.keys))
    path = Path(options.out or f"{keys.card.name}.request")
    _check_replaceable(path)
    replace_file(path, make_request(keys))
    print(f"wrote {path}, for the operator")


def admit(options: argparse.Namespace) -> None:
    """Write a membership for each request; all or none."""
    home = home_with_log(options, "no certificate made", hint="hubbub federation found comes first")
    requests = [_request(Path(path)) for path in options.requests]
    made = admit_all(home, requests, address=options.address, now=int(time.time()), days=options.days)
    for name, membership in made.items():
        path = Path(options.out) / f"{name}.membership"
        write_membership(membership, path)
        ends = dt.datetime.fromtimestamp(membership.issued.ends, dt.UTC)
        print(f"wrote {path}: federation {membership.federation[:12]}, certificate until {ends:%Y-%m-%d}")


def _check_replaceable(path: Path) -> None:
    """An older request is written over, and nothing else: not a key file that was named by mistake."""
    try:
        read_request(path.read_bytes())
    except FileNotFoundError:
        return
    except InputError:
        raise InputError(
            f"{path}, must be a new file or an older request, found another file; nothing written",
            hint="--out FILE names another",
        ) from None


def _request(path: Path) -> Request:
    try:
        return read_request(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}, must be a request, {error.strerror}; no certificate made", hint="hubbub enrol makes one"
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None
