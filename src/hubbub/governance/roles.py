"""Rules as data: who may propose each kind of act, who must approve it. `roles.toml` holds them."""

import hashlib
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from hubbub.errors import InputError, RefusedError
from hubbub.governance.keys import Role

_ROLE = r"(own )?(data-owner|data-scientist|privacy-officer|operator|auditor|node)"
Holders = Annotated[str, Meta(pattern=rf"\A{_ROLE}\Z")]
Selector = Annotated[str, Meta(pattern=rf"\A(self|founder|{_ROLE})\Z")]
Count = Annotated[int, Meta(ge=1, le=100)]
Days = Annotated[int, Meta(ge=1, le=3650)]
Hours = Annotated[int, Meta(ge=1, le=10_000)]


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the rules: immutable, and an unknown key is an error."""


class Rule(Frozen, frozen=True):
    """Who may propose one kind of act, how many of whom must approve it, and for how long."""

    propose: tuple[Selector, ...]
    approve: dict[Selector, Count]
    expires_days: Days


class Escalation(Frozen, frozen=True):
    """How soon an incident must be acknowledged, and who may besides once it was not."""

    acknowledge_hours: Hours
    next: Role


class Rules(Frozen, frozen=True):
    """A whole roles file."""

    format: int
    acts: dict[str, Rule]
    escalation: dict[str, Escalation]


class TighterRule(Frozen, frozen=True):
    """What a federation asks beyond a rule; what is left out stays."""

    propose: tuple[Selector, ...] | None = None
    approve: dict[Holders, Count] = {}
    expires_days: Days | None = None


class Tightening(Frozen, frozen=True):
    """What a federation asks beyond the rules: kinds of act, and hours by severity."""

    acts: dict[str, TighterRule] = {}
    acknowledge_hours: dict[str, Hours] = {}


@cache
def packaged() -> tuple[Rules, str]:
    """The rules that come with hubbub, and the SHA-256 of their file."""
    content = (files("hubbub.governance") / "roles.toml").read_bytes()
    return msgspec.convert(tomllib.loads(content.decode()), Rules), hashlib.sha256(content).hexdigest()


def read_tightening(path: Path) -> Tightening:
    """Read a site file that asks for more than the rules do.

    Raises:
        InputError: It is no such file.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_bytes().decode()), Tightening)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, must be a file of tighter rules, {error}; nothing recorded",
            hint="[acts.propose-study] approve = { privacy-officer = 2 }",
        ) from None


def tighten(rules: Rules, site: Tightening) -> Rules:
    """The rules with what a site asks beyond them.

    Guarantees:
        Whatever the result allows, `rules` allows: nobody may propose who might not before, no approval
        falls away, nothing holds longer.

    Raises:
        RefusedError: The site asks for less somewhere; the message names where.
    """
    for kind in site.acts.keys() - rules.acts.keys():
        raise _looser(f"acts.{kind}", f"one of {', '.join(rules.acts)}", repr(kind))
    for severity in site.acknowledge_hours.keys() - rules.escalation.keys():
        raise _looser("acknowledge_hours", f"one of {', '.join(rules.escalation)}", repr(severity))
    acts = {kind: _tighter(kind, rule, site.acts.get(kind, TighterRule())) for kind, rule in rules.acts.items()}
    escalation = {
        severity: _sooner(severity, limit, site.acknowledge_hours.get(severity, limit.acknowledge_hours))
        for severity, limit in rules.escalation.items()
    }
    return msgspec.structs.replace(rules, acts=acts, escalation=escalation)


def _tighter(kind: str, rule: Rule, more: TighterRule) -> Rule:
    proposers = rule.propose if more.propose is None else more.propose
    if added := sorted(set(proposers) - set(rule.propose)):
        raise _looser(f"acts.{kind}.propose", f"some of {', '.join(rule.propose)}", added[0])
    for selector, count in more.approve.items():
        if count < rule.approve.get(selector, 1):
            raise _looser(f"acts.{kind}.approve", f"at least {rule.approve[selector]} {selector}", str(count))
    days = rule.expires_days if more.expires_days is None else more.expires_days
    if days > rule.expires_days:
        raise _looser(f"acts.{kind}.expires_days", f"at most {rule.expires_days}", str(days))
    return Rule(proposers, rule.approve | more.approve, days)


def _sooner(severity: str, limit: Escalation, hours: int) -> Escalation:
    if hours > limit.acknowledge_hours:
        raise _looser(f"acknowledge_hours.{severity}", f"at most {limit.acknowledge_hours}", str(hours))
    return Escalation(hours, limit.next)


def _looser(where: str, rule: str, found: str) -> RefusedError:
    return RefusedError(
        f"{where}, may only be tighter than the rules: {rule}, found {found}; nothing recorded",
        hint="leave it out: the rules hold",
    )
