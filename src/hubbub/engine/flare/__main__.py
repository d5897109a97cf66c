"""On FLARE's machines: `python -m hubbub.engine.flare configure KIT`, `... keep KIT USER SITE...`."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from hubbub.engine.flare.kits import configure_kit
from hubbub.errors import HubbubError


def main(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except HubbubError as error:
        print(f"hubbub: error: {error.message}\nhubbub: hint: {error.hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hubbub.engine.flare", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configure = commands.add_parser(
        "configure", help="let a server's or client's kit load our two classes, and no code"
    )
    configure.add_argument("kit", type=Path, help="a server's or client's: holds startup/ and local/")
    configure.add_argument("--storage", type=Path, help="where a server keeps jobs (default: KIT/storage)")
    configure.set_defaults(command=_configure)
    keep = commands.add_parser("keep", help="keep jobs running for sites, until stopped")
    keep.add_argument("kit", type=Path, help="kit of an administrator with the role lead")
    keep.add_argument("user", help="the administrator's name")
    keep.add_argument("sites", nargs="+", metavar="SITE", help="name of a FLARE client")
    keep.add_argument(
        "--jobs", type=int, default=2, help="for each site: one carries, the others take over (default: 2)"
    )
    keep.set_defaults(command=_keep)
    return parser


def _configure(options: argparse.Namespace) -> None:
    configure_kit(options.kit.resolve(), storage=options.storage and options.storage.resolve())
    print(f"wrote {options.kit / 'local'}/resources.json and authorization.json")  # noqa: T201


def _keep(options: argparse.Namespace) -> None:
    from hubbub.engine.flare.keeper import keep

    stop = threading.Event()

    def end(_number: int, _frame: object) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    logging.getLogger("hubbub").setLevel(logging.INFO)
    logging.getLogger("hubbub").addHandler(logging.StreamHandler())
    keep(options.kit.resolve(), options.user, options.sites, stop=stop, jobs=options.jobs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
