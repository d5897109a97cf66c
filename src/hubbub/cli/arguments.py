"""Every command, option and help text. Imports nothing heavy: `hubbub --help` is instant."""

import argparse
import difflib
import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hubbub.errors import InputError

Command = Callable[[argparse.Namespace], None]

_DESCRIPTION = """\
Train one model on data that many holders keep to themselves, and prove what it cost them.

a study, from nothing to a model:
  hubbub new my-study          write a study that runs
  hubbub check my-study        file, code and data; nothing is trained
  hubbub plan my-study         what it will cost, and who must be trusted
  hubbub run my-study          train under the plan
  hubbub resume RUN            go on after an interruption
  hubbub release RUN           give the model to others, with evidence
  hubbub verify BUNDLE         check that evidence, offline
  hubbub budget show           what the datasets have spent
  hubbub log show              what happened, provably
  hubbub approvals             what waits for whose permission
"""

_CODES = "exit codes: 0 done, 1 refused by policy or budget, 2 wrong input, 3 verification failed"


COMMANDS = (
    "new",
    "check",
    "plan",
    "run",
    "resume",
    "stop",
    "release",
    "verify",
    "registry",
    "budget",
    "log",
    "keys",
    "federation",
    "dataset",
    "propose",
    "approve",
    "approvals",
    "incident",
    "enrol",
    "admit",
    "coordinate",
    "join",
    "recover",
    "submit",
    "status",
    "fetch",
)


class _Parser(argparse.ArgumentParser):
    """Argparse with our one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}, {message}", hint=f"{self.prog} --help")


def parse(arguments: list[str]) -> tuple[Command, argparse.Namespace]:
    """Read a command line.

    Raises:
        InputError: It is not one of ours.
    """
    for argument in arguments:
        if not argument or argument.encode(errors="ignore").decode() != argument:
            raise InputError(
                f"hubbub, must be given arguments that are text in UTF-8, found {argument!r}",
                hint="an empty one is often a variable of the shell that is not set: echo $id",
            )
    parser = _parser()
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        close = difflib.get_close_matches(first, COMMANDS, n=1)
        raise InputError(
            f"hubbub, must be given a command it has, found {first!r}",
            hint=f"hubbub {close[0]}" if close else "hubbub --help",
        )
    if first is None and not arguments:
        parser.print_help()
        sys.exit(0)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        prog = getattr(options, "prog", "hubbub")
        raise InputError(f"{prog}, unrecognized arguments: {' '.join(unknown)}", hint=f"{prog} --help")
    command: Command | None = getattr(options, "command", None)
    if command is None:
        raise InputError("hubbub, must be given a command, found none", hint="hubbub --help")
    return command, options


def _parser() -> _Parser:
    parser = _Parser(
        prog="hubbub",
        description=_DESCRIPTION,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    _add_study_commands(commands)
    _add_budget_commands(commands)
    _add_log_commands(commands)
    _add_governance_commands(commands)
    return parser


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str, **others: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help=str(others.get("help", "")))

    def __call__(self, *_: object) -> None:
        from importlib.metadata import version

        print(f"hubbub {version('hubbub')}")
        sys.exit(0)


def _lazy(module: str, function: str) -> Command:
    def command(options: argparse.Namespace) -> None:
        import importlib

        getattr(importlib.import_module(f"hubbub.cli.{module}"), function)(options)

    return command


def _here_or_away(function: str) -> Command:
    """The command on a run directory; with `--at` on a coordinator's run."""

    def command(options: argparse.Namespace) -> None:
        _lazy("deployment" if options.at else "commands", function)(options)

    return command


def _add_governance_commands(commands: Any) -> None:
    from hubbub.cli.deployment_arguments import add_deployment_commands
    from hubbub.cli.governance_arguments import add_governance_commands

    def group(name: str, summary: str) -> Any:
        return _group(commands, name, summary)

    def add(actions: Any, name: str, summary: str, function: str, module: str = "governance") -> _Parser:
        return _add(actions, name, summary, _lazy(module, function))

    add_governance_commands(group, add, commands)
    add_deployment_commands(add, commands)


def _group(commands: Any, name: str, summary: str) -> Any:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=_CODES)
    return parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=_Parser)


def _add(commands: Any, name: str, summary: str, command: Command) -> _Parser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=_CODES)
    parser.set_defaults(command=command, prog=parser.prog)
    return parser


def _add_study_commands(commands: Any) -> None:
    new = _add(commands, "new", "write a study that runs", _lazy("commands", "new"))
    new.add_argument("folder", metavar="DIR", help="folder to make")

    check = _add(commands, "check", "check file, code and data; nothing is trained", _lazy("commands", "check"))
    check.add_argument("study", metavar="STUDY", help="folder of the study, or its study.toml")
    check.add_argument(
        "--private",
        action="store_true",
        help="also show how many slots of each participant are null: for the data owner's eyes only",
    )

    plan = _add(commands, "plan", "show what a study will cost and who must be trusted", _lazy("commands", "plan"))
    plan.add_argument("study", metavar="STUDY", help="folder of the study, or its study.toml")
    plan.add_argument("--json", action="store_true", help="print the plan for a machine")

    run = _add(commands, "run", "train under the plan, everybody in this process", _lazy("commands", "run"))
    run.add_argument("study", metavar="STUDY", help="folder of the study, or its study.toml")
    run.add_argument("--out", metavar="DIR", help="run directory, not there yet (default: runs/RUN beside the study)")
    resume = _add(commands, "resume", "go on with a run that was interrupted", _here_or_away("resume"))
    for parser in (run, resume):
        parser.add_argument("--json", action="store_true", help="print the result for a machine")
        parser.add_argument("--quiet", action="store_true", help="print errors only")
    stop = _add(
        commands,
        "stop",
        "give up an interrupted run; what it did not charge returns",
        _here_or_away("stop"),
    )
    release = _add(
        commands, "release", "release a run's model under its claim, in a signed bundle", _here_or_away("release")
    )
    release.add_argument("--out", metavar="DIR", help="the bundle, not there yet (default: RUN/bundle)")
    from hubbub.cli.deployment_arguments import add_at

    for parser in (resume, stop, release):
        parser.add_argument("folder", metavar="RUN", help="run directory; with --at the name of a run")
        add_at(parser)
    verify = _add(commands, "verify", "check a bundle, offline", _lazy("commands", "verify"))
    registry = _add(
        commands, "registry", "print a bundle's claim for the OpenDP registry", _lazy("commands", "registry")
    )
    for parser in (verify, registry):
        parser.add_argument("folder", metavar="BUNDLE", help="folder that `hubbub release` made")
        parser.add_argument(
            "--policy",
            metavar="FILE",
            help="whose keys are believed: a policy, or a membership (default: those in the bundle)",
        )
    registry.add_argument("publication", metavar="FILE", help="who publishes what for: curators, authors, ... in TOML")
    verify.add_argument("--no-recompute", action="store_true", help="check all but plan and epsilon: faster")
    verify.add_argument("--json", action="store_true", help="print for a machine")


def _add_budget_commands(commands: Any) -> None:
    actions = _group(commands, "budget", "what datasets may spend and have spent")

    show = _add(actions, "show", "show what each dataset has spent, and has left", _lazy("budget", "show"))
    grant = _add(actions, "grant", "allow datasets to spend more", _lazy("budget", "grant"))
    forecast = _add(actions, "forecast", "show how often a study's plan still fits", _lazy("budget", "forecast"))
    history = _add(actions, "history", "list grants, reservations and charges, in order", _lazy("budget", "history"))
    for parser in (show, grant, forecast, history):
        _add_home(parser, "ledger")
    for parser in (show, forecast, history):
        parser.add_argument("--json", action="store_true", help="print for a machine")
    show.add_argument(
        "--planned",
        action="store_true",
        help="also show what all runs would have cost, had they been planned in advance; no bound if they were not",
    )
    forecast.add_argument("planned", metavar="STUDY", help="folder of the study, or its study.toml")
    grant.add_argument("datasets", metavar="DATASET", nargs="+", help="name, or a pattern such as 'hospital-*'")
    grant.add_argument("--epsilon", type=float, required=True, help="total epsilon that the dataset may ever spend")
    grant.add_argument("--lower", action="store_true", help="lower budgets that have more")
    grant.add_argument("--delta", type=float, help="delta of a new budget (default: 1e-5)")
    grant.add_argument(
        "--unit",
        choices=["example", "client"],
        help="who a new budget protects (default: example)",
    )
    grant.add_argument(
        "--gaussian",
        action="store_true",
        help="make a budget for Gaussian noise without sampling only, which costs less there",
    )
    grant.add_argument(
        "--plan",
        metavar="STUDY",
        action="append",
        default=[],
        help="make a schedule: exactly this plan is admitted, once for each time it is named",
    )


def _hours(text: str) -> float:
    hours = float(text)
    if not math.isfinite(hours):
        raise argparse.ArgumentTypeError(f"must be a number of hours, found {text!r}")
    return hours


def _add_home(parser: _Parser, what: str) -> None:
    parser.add_argument("--home", metavar="DIR", help=f"folder of the {what} (default: HUBBUB_HOME, or .hubbub here)")
    parser.add_argument("--study", metavar="STUDY", help=f"use the {what} beside this study")


def _add_log_commands(commands: Any) -> None:
    actions = _group(commands, "log", "what happened, provably")

    show = _add(actions, "show", "show the log's head, key and last entries", _lazy("log", "show"))
    show.add_argument("--last", type=int, default=10, metavar="N", help="how many entries (default: 10)")
    show.add_argument("--check", action="store_true", help="compute every hash from the entries again")
    show.add_argument("--json", action="store_true", help="print for a machine")

    prove = _add(actions, "prove", "write an entry and the proof that it is in the log", _lazy("log", "prove"))
    prove.add_argument("index", type=int, metavar="INDEX", help="number of the entry, from 0")
    prove.add_argument("--out", metavar="DIR", default=".", help="folder for INDEX.json and INDEX.tlog-proof")

    export = _add(
        actions, "export", "write the log as static files that a web server can serve", _lazy("log", "export")
    )
    export.add_argument("folder", metavar="DIR", help="folder to write to")

    witness = _add(actions, "witness", "have a witness cosign the log's head", _lazy("log", "witness"))
    witness.add_argument("folder", metavar="DIR", help="the witness's own folder: its key and what it has signed")
    witness.add_argument("--key", metavar="FILE", help="key file of a holder, whose witness key signs (default: DIR's)")

    verify = _add(actions, "verify", "check a proof or a checkpoint offline", _lazy("log", "verify"))
    verify.add_argument("file", metavar="FILE", help="a proof (.tlog-proof) or a checkpoint")
    verify.add_argument("--policy", required=True, metavar="FILE", help="which logs and whose cosignatures count")
    verify.add_argument("--entry", metavar="FILE", help="the entry that a proof is about")
    verify.add_argument("--fresh", type=_hours, metavar="HOURS", help="count only cosignatures at most so old")

    for parser in (show, prove, export, witness):
        _add_home(parser, "log")
