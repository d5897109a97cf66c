"""Arguments of coordinate, join, recover, submit, status, fetch; `--at` for runs elsewhere. Nothing heavy here."""

from argparse import ArgumentParser
from typing import Any

from hubbub.cli.governance_arguments import Add


def add_deployment_commands(add: Add, commands: Any) -> None:
    """Add what runs a federation on hosts of its own, and what people ask of it."""

    def adding(name: str, summary: str, module: str = "deployment") -> ArgumentParser:
        return add(commands, name, summary, name, module)

    coordinate = adding("coordinate", "run a coordinator, to which participants and people dial in", "processes")
    coordinate.add_argument("folder", metavar="DIR", help="its home: log, keys, studies/, runs/")
    coordinate.add_argument("--address", metavar="HOST:PORT", required=True, help="where it listens")
    coordinate.add_argument("--host", metavar="NAME", action="append", default=[], help="another name it is dialled by")
    coordinate.add_argument("--stage", type=float, default=20.0, metavar="SECONDS", help="for an answer (default: 20)")
    coordinate.add_argument("--training", type=float, default=600.0, metavar="SECONDS", help="for training (600)")
    coordinate.add_argument("--patience", type=float, default=120.0, metavar="SECONDS", help="for participants (120)")
    coordinate.add_argument("--resume", metavar="RUN", action="append", default=[], help="go on with a run at once")
    join = adding("join", "run a participant, which dials its coordinator and nobody else", "processes")
    recover = adding(
        "recover", "charge what the log holds and a restored participant forgot, at its next start", "processes"
    )
    for parser in (join, recover):
        parser.add_argument("folder", metavar="DIR", help="the participant's folder, with site.toml")
    submit = adding("submit", "have an approved study run")
    submit.add_argument("study", metavar="STUDY", help="folder of the study, with the lock that was proposed")
    submit.add_argument("--wait", action="store_true", help="show how it goes on until it has ended")
    status = adding("status", "show who is connected to a coordinator, and what became of its runs")
    status.add_argument("--wait", type=int, metavar="N", help="until N participants are connected, 120 s at most")
    status.add_argument("--json", action="store_true", help="print for a machine")
    fetch = adding("fetch", "fetch a file of a run: its claim, plan, report, metrics")
    fetch.add_argument("folder", metavar="RUN", help="name of the run")
    fetch.add_argument("file", metavar="FILE", help="claim.json, plan.json, report.html, metrics.jsonl, ...")
    fetch.add_argument("--out", metavar="FILE", help="where to (default: the same name here)")
    for parser in (submit, status, fetch):
        add_at(parser, is_required=True)


def add_at(parser: ArgumentParser, *, is_required: bool = False) -> None:
    """Let a command be about a coordinator's run."""
    what = "the coordinator" if is_required else "the run's coordinator, if that is elsewhere"
    parser.add_argument("--at", metavar="MEMBERSHIP", required=is_required, help=f"membership that leads to {what}")
    parser.add_argument("--key", metavar="FILE", required=is_required, help="your key file")
