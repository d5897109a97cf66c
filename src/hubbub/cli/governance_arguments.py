"""Arguments of keys, enrol, admit, federation, dataset, propose, approve, approvals, incident. Nothing heavy here."""

import datetime as dt
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from typing import Any

Add = Callable[..., ArgumentParser]
"""Adds a command to a group: group, name, summary, its function, the file that holds it."""
Group = Callable[[str, str], Any]
"""Makes a group of commands: name, summary."""

PURPOSES = (
    "research", "care", "quality", "public-health", "statistics", "education", "fraud-prevention", "security", "product"
)  # fmt: skip
ROLES = ("data-owner", "data-scientist", "privacy-officer", "operator", "auditor", "node")


def add_governance_commands(group: Group, add: Add, commands: Any) -> None:
    """Add every command that says who may."""
    _add_keys(group("keys", "who may sign"), add)
    _add_federation(group("federation", "begin a federation of organisations, or look at it"), add)
    _add_dataset(group("dataset", "whose data, for what, until when"), add)
    _add_propose(group("propose", "ask for what needs permission"), add)
    _add_approve(add, commands)
    _add_incident(group("incident", "say that something is wrong, and what was done"), add)
    _add_enrolment(add, commands)


def _add_keys(actions: Any, add: Add) -> None:
    new = add(actions, "new", "make four keys and a card", "keys_new")
    new.add_argument("name", metavar="NAME", help="who: once in a federation")
    new.add_argument("--organisation", metavar="ORG", required=True, help="who answers for it")
    new.add_argument("--role", choices=ROLES, required=True, help="what it may do; one card, one role")
    new.add_argument("--out", metavar="DIR", default=".", help="folder for NAME.key and NAME.card (default: here)")

    listed = add(actions, "list", "list every key that was ever in force", "keys_list", "governance_lists")
    _add_home(listed)
    listed.add_argument("--json", action="store_true", help="print for a machine")

    rotate = add(actions, "rotate", "make new keys and ask for them in place of your own", "keys_rotate")
    rotate.add_argument("--out", metavar="FILE", required=True, help="file for the new keys, not there yet")
    revoke = add(actions, "revoke", "ask that a key ends", "keys_revoke")
    revoke.add_argument("holder", metavar="KEY", help="id of the key")
    revoke.add_argument("--reason", choices=["left", "stolen"], required=True, help="stolen: what it approved lapses")
    _add_signing(rotate, revoke)


def _add_federation(actions: Any, add: Add) -> None:
    found = add(actions, "found", "ask all founders to begin", "federation_found")
    found.add_argument("name", metavar="NAME", help="name of the federation")
    found.add_argument("cards", metavar="CARD", nargs="+", help="cards of all founders, yours too")
    found.add_argument("--tighten", metavar="FILE", help="ask for more than the rules do: a file like roles.toml")
    _add_signing(found)
    show = add(
        actions, "show", "show who belongs to it and how many it has of what", "federation_show", "governance_lists"
    )
    _add_home(show)
    show.add_argument("--json", action="store_true", help="print for a machine")


def _add_dataset(actions: Any, add: Add) -> None:
    register = add(actions, "register", "ask that a dataset of yours is known", "dataset_register")
    register.add_argument("participant", metavar="PARTICIPANT", help="name of your node that holds it")
    register.add_argument(
        "--purpose", action="append", choices=PURPOSES, required=True, help="what it may be used for; again for more"
    )
    register.add_argument(
        "--retention", metavar="DAY", type=_day, required=True, help="last day of its life, YYYY-MM-DD"
    )
    register.add_argument("--epsilon", type=float, required=True, help="total epsilon that may ever be spent")
    register.add_argument("--delta", type=float, default=1e-5, help="at this delta (default: 1e-5)")
    register.add_argument(
        "--unit", choices=["example", "client"], default="example", help="who is protected (default: example)"
    )
    kind = register.add_mutually_exclusive_group()
    kind.add_argument(
        "--gaussian", action="store_true", help="for Gaussian noise without sampling only, which costs less there"
    )
    kind.add_argument(
        "--unbounded",
        action="store_true",
        help="for records that you would publish: without noise too",
    )
    register.add_argument("--unit-column", metavar="COLUMN", default="", help="what says which records are one unit")
    register.add_argument("--version-of", metavar="DATASET", help="an older dataset, whose budget this one shares")
    register.add_argument(
        "--disjoint", action="store_true", help="no unit of the older one is in here: a budget of its own"
    )
    listed = add(actions, "list", "list every dataset", "dataset_list", "governance_lists")
    _add_home(listed)
    listed.add_argument("--json", action="store_true", help="print for a machine")
    sweep = add(actions, "sweep", "delete what is past its last day, and say so", "dataset_sweep")
    sweep.add_argument("records", metavar="DIR", help="folder that holds each dataset's records under its id")
    sweep.add_argument("--gone", action="store_true", help="records that are not there were deleted by hand: record it")
    _add_signing(register, sweep)


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a day as YYYY-MM-DD, found {text!r}") from None


def _add_propose(actions: Any, add: Add) -> None:
    study = add(actions, "study", "ask for runs of a study's plan on registered data", "propose_study")
    study.add_argument("study", metavar="STUDY", help="folder of the study, or its study.toml")
    study.add_argument("--change", choices=["A", "B", "C"], default="C", help="class of change (default: C)")
    study.add_argument("--changes", metavar="ID", help="the fully approved study that a change of class A or B is of")
    release = add(actions, "release", "ask to give a run's model to others", "propose_release")
    release.add_argument("folder", metavar="DIR", help="run directory of a finished run")
    budget = add(actions, "budget", "ask that a dataset may spend more", "propose_budget")
    budget.add_argument("dataset", metavar="DATASET", help="id of the dataset")
    budget.add_argument("--epsilon", type=float, required=True, help="total epsilon that may ever be spent")
    key = add(actions, "key", "ask that a new holder may act", "propose_key")
    key.add_argument("card", metavar="CARD", help="card of the new holder")
    key.add_argument("--replaces", metavar="KEY", help="id of a stolen key of the same holder")
    review = add(actions, "review", "ask that a run goes on after a round at which it waits", "propose_review")
    review.add_argument("run", metavar="RUN", help="name of the run")
    review.add_argument("round_number", metavar="ROUND", type=int, help="the round")
    stop = add(actions, "stop", "end a run for good", "propose_stop")
    stop.add_argument("run", metavar="RUN", help="name of the run")
    for parser in (release, budget, key, review, stop):
        _add_signing(parser)
    _add_signing(study, has_study=True)


def _add_approve(add: Add, commands: Any) -> None:
    approve = add(commands, "approve", "approve or deny exactly one proposal's bytes", "approve")
    approve.add_argument("case", metavar="ID", help="id of the proposal, or its beginning")
    approve.add_argument("--deny", action="store_true", help="deny it; that ends it")
    approve.add_argument("--condition", action="append", default=[], metavar="TEXT", help="recorded with your decision")
    _add_signing(approve)
    approvals = add(
        commands, "approvals", "show what waits for whom, and what is late", "approvals", "governance_lists"
    )
    approvals.add_argument("case", metavar="ID", nargs="?", help="show one proposal whole: read it before you sign")
    _add_home(approvals)
    approvals.add_argument("--json", action="store_true", help="print for a machine")


def _add_incident(actions: Any, add: Add) -> None:
    opened = add(actions, "open", "say that something is wrong", "incident_open")
    opened.add_argument("severity", metavar="SEVERITY", choices=["S1", "S2", "S3"], help="S1 is worst")
    opened.add_argument("summary", metavar="TEXT", help="what is wrong; everybody can read it for ever")
    opened.add_argument("--run", metavar="RUN", default="", help="the run that it is about")
    acknowledge = add(actions, "acknowledge", "say that you are at it", "incident_acknowledge")
    acknowledge.add_argument("incident", metavar="ID", help="id of the incident, or its beginning")
    close = add(actions, "close", "ask that it is over", "incident_close")
    close.add_argument("incident", metavar="ID", help="id of the incident, or its beginning")
    close.add_argument("summary", metavar="TEXT", help="what was done")
    _add_signing(opened, acknowledge, close)
    listed = add(
        actions, "list", "list every incident and how soon it was acknowledged", "incident_list", "governance_lists"
    )
    _add_home(listed)
    listed.add_argument("--json", action="store_true", help="print for a machine")


def _add_enrolment(add: Add, commands: Any) -> None:
    enrol = add(commands, "enrol", "ask for a certificate: what a coordinator is reached with", "enrol", "enrolment")
    enrol.add_argument("keys", metavar="KEYFILE", help="your key file")
    enrol.add_argument("--out", metavar="FILE", help="the request, for the operator (default: NAME.request here)")
    admit = add(commands, "admit", "give holders a membership, each for its request", "admit", "enrolment")
    admit.add_argument("requests", metavar="REQUEST", nargs="+", help="requests that holders made")
    admit.add_argument("--address", metavar="HOST:PORT", required=True, help="where they dial the coordinator")
    admit.add_argument(
        "--days", type=int, default=365, metavar="N", help="how long a certificate is good (default: 365)"
    )
    admit.add_argument("--out", metavar="DIR", default=".", help="folder for NAME.membership (default: here)")
    admit.add_argument("--home", metavar="DIR", help="the coordinator's home (default: HUBBUB_HOME, or .hubbub here)")
    admit.add_argument("--study", metavar="STUDY", help="use the home beside this study")


def _add_log(parser: ArgumentParser, *, has_study: bool = False) -> None:
    """Where the log is: one of three answers."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--home", metavar="DIR", help="folder of the log (default: HUBBUB_HOME, or .hubbub here)")
    if not has_study:
        place.add_argument("--study", metavar="STUDY", help="use the log beside this study")
    place.add_argument("--at", metavar="MEMBERSHIP", help="use the log of the coordinator that this is for, with --key")


def _add_home(parser: ArgumentParser) -> None:
    parser.add_argument("--key", metavar="FILE", help="your key file, with --at")
    _add_log(parser)


def _add_signing(*parsers: ArgumentParser, has_study: bool = False) -> None:
    for parser in parsers:
        parser.add_argument("--key", metavar="FILE", required=True, help="your key file")
        parser.add_argument("--expires", type=int, metavar="DAYS", help="sign for so long (default: as the rules say)")
        _add_log(parser, has_study=has_study)
