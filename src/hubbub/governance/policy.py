"""A site's own policy: what it refuses although everybody else agreed.

`[policy]` of site.toml. It is asked after the federation, never instead of it, so it can only forbid.
"""

import datetime as dt
import tomllib
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from hubbub.errors import InputError, RefusedError
from hubbub.governance.acts import Frozen, Hash, KeyId
from hubbub.study.config import Purpose

Table = TypeVar("Table", bound=msgspec.Struct)


class _SiteFile(Frozen, frozen=True):
    """All tables that a site file may have."""

    site: Any = None
    policy: Any = None
    attestation: Any = None


class Facts(Frozen, frozen=True):
    """What a site knows of a study before it takes part.

    Args:
        federation: Id of the founding act; empty in a sandbox.
        epsilon: Cost of the whole plan; None is infinite.
        minimum: Fewest contributions in a sum.
        purpose: Of the study.
        code_hash: Of its code.
        peers: Key ids of the participants in the roster.
    """

    federation: str
    epsilon: float | None
    minimum: int
    purpose: Purpose
    code_hash: Hash
    peers: frozenset[str]


class SitePolicy(Frozen, frozen=True):
    """`[policy]`: limits of one site; what is left out is not limited here.

    Args:
        federation: Id of the only federation this site belongs to: it then takes part in no sandbox.
        epsilon: The most that one study may cost.
        minimum: Fewest contributions in a sum that holds this site's.
        purposes: What its data may be used for.
        code_hashes: The only code that may run here.
        peers: Key ids that must be in the roster.
        retention: Last day, in UTC, on which this site takes part in anything.
    """

    federation: Hash | None = None
    epsilon: Annotated[float, Meta(gt=0)] | None = None
    minimum: Annotated[int, Meta(ge=1)] | None = None
    purposes: tuple[Purpose, ...] | None = None
    code_hashes: tuple[Hash, ...] | None = None
    peers: tuple[KeyId, ...] = ()
    retention: dt.date | None = None

    def check(self, facts: Facts, *, today: dt.date) -> None:
        """Refuse a study that this site does not want.

        Guarantees:
            A limit more never admits more.

        Raises:
            RefusedError: The first limit that it breaks.
        """
        if self.federation is not None and facts.federation != self.federation:
            raise _refuse("federation", self.federation[:16], facts.federation[:16] or "a sandbox")
        if self.epsilon is not None and (facts.epsilon is None or facts.epsilon > self.epsilon):
            raise _refuse(
                "epsilon", f"at most {self.epsilon:g}", "infinite" if facts.epsilon is None else f"{facts.epsilon:g}"
            )
        if self.minimum is not None and facts.minimum < self.minimum:
            raise _refuse("minimum", f"at least {self.minimum}", str(facts.minimum))
        _check_member("purposes", self.purposes, facts.purpose)
        _check_member("code_hashes", self.code_hashes, facts.code_hash)
        _check_peers(self.peers, facts.peers)
        if self.retention is not None and today > self.retention:
            raise _refuse("retention", f"until {self.retention}", str(today))


def read_policy(path: Path) -> SitePolicy:
    """Read `[policy]` of a site file.

    Raises:
        InputError: As `read_site_table`.
    """
    return read_site_table(path, "policy", SitePolicy)


def read_site_table(path: Path, name: str, kind: type[Table], *, default: Table | None = None) -> Table:
    """Read one table of a site file.

    Args:
        path: The file.
        name: Of the table.
        kind: What it holds.
        default: What a file without the table means; None refuses it.

    Guarantees:
        The file has no table that nobody reads: a limit under a misspelt name would limit nothing.

    Raises:
        InputError: There is no such table, or one, a key or a value that is not known.
    """
    found = f"no table [{name}]"
    try:
        table = getattr(msgspec.convert(tomllib.loads(path.read_bytes().decode()), _SiteFile), name)
        read = default if table is None else msgspec.convert(table, kind)
    except (OSError, ValueError, RecursionError) as error:
        found, read = str(error), None
    if read is None:
        hint = f"[{name}] knows {', '.join(kind.__struct_fields__)}"
        raise InputError(f"{path}, must be a site file, found {found}", hint=hint)
    return read


def _check_member(key: str, allowed: tuple[str, ...] | None, found: str) -> None:
    if allowed is not None and found not in allowed:
        raise _refuse(key, f"one of {', '.join(allowed) or 'nothing'}", found)


def _check_peers(pinned: tuple[str, ...], roster: AbstractSet[str]) -> None:
    for peer in pinned:
        if peer not in roster:
            raise _refuse("peers", f"{peer} in the roster", "it absent")


def _refuse(key: str, rule: str, found: str) -> RefusedError:
    return RefusedError(
        f"this site's policy: {key}, must be {rule}, found {found}; nothing trained, nothing sent",
        hint=f"[policy] {key} in site.toml is this site's to change",
    )
