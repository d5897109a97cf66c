"""Whose word counts: the logs that are meant, the witnesses that are known, and how many of them must have cosigned.

*Trust:* whoever writes the policy decides what is believed; it comes from somewhere else than the log.

Source:
    c2sp.org/tlog-policy. The quorum rule is ours: docs/spec/log.md.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from hubbub.errors import InputError
from hubbub.tlog.keys import COSIGNATURE, ED25519, ML_DSA_44, Verifier, parse_verifier

NONE: Final = "none"
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_BLANKS: Final = re.compile("[ \t]+")
_DECIMAL: Final = re.compile("[1-9][0-9]{0,8}")


def quorum(witnesses: int, lying: int) -> int:
    """Fewest cosignatures such that two quorums share an honest witness, if `lying` of the witnesses lie.

    >>> [quorum(w, c) for w, c in ((3, 0), (3, 1), (4, 1), (5, 1), (7, 2), (10, 3), (20, 6), (50, 16))]
    [2, 3, 3, 4, 5, 7, 14, 34]
    """
    return (witnesses + lying) // 2 + 1


@dataclass(frozen=True)
class Party:
    """A log or a witness: its key, its name in the policy (a log has none), where it may be reached."""

    key: Verifier
    name: str = ""
    url: str = ""


@dataclass(frozen=True)
class Group:
    """At least `threshold` of some witnesses and groups."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """Logs, witnesses, groups, and the name of the witness or group that makes a quorum."""

    logs: tuple[Party, ...] = ()
    witnesses: tuple[Party, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NONE

    def __bytes__(self) -> bytes:
        lines = [f"log {log.key} {log.url}" for log in self.logs]
        lines += [f"witness {witness.name} {witness.key} {witness.url}" for witness in self.witnesses]
        lines += [f"group {group.name} {group.threshold} {' '.join(group.members)}" for group in self.groups]
        lines += [f"quorum {self.quorum}"]
        return "".join(f"{line.rstrip(' ')}\n" for line in lines).encode(errors="surrogateescape")

    @property
    def rule(self) -> str:
        """The quorum in words."""
        groups = {group.name: group for group in self.groups}
        group = groups.get(self.quorum)
        return f"{group.threshold} of {', '.join(sorted(group.members))}" if group else self.quorum

    def is_quorum(self, names: Collection[str]) -> bool:
        """Whether witnesses with these names are enough."""
        reached = set(names)
        for group in self.groups:  # a group names earlier ones only
            if len(reached.intersection(group.members)) >= group.threshold:
                reached.add(group.name)
        return self.quorum == NONE or self.quorum in reached


def majority_policy(log: Verifier, witnesses: Mapping[str, Verifier], lying: int) -> Policy:
    """The policy of one log and its witnesses by name, `lying` of which may lie."""
    needed = quorum(len(witnesses), lying)
    if needed > len(witnesses):
        raise InputError(
            f"a quorum of {needed}, must be found among the witnesses, found {len(witnesses)} of which {lying} may lie",
            hint="add witnesses: an auditor, a privacy officer",
        )
    parties = tuple(Party(key, name) for name, key in witnesses.items())
    group = "_quorum"  # no holder of a card can have this name
    return Policy((Party(log),), parties, (Group(group, needed, tuple(witnesses)),), group)


def parse_policy(data: bytes) -> Policy:
    """Read a policy file.

    Guarantees:
        `parse_policy(bytes(policy)) == policy`. A group named here counts each witness once.

    Raises:
        InputError: A line is wrong, by its number.
    """
    text = data.decode(errors="surrogateescape")  # names are octets to this format
    if _CONTROL.search(text) or not text.endswith("\n"):
        raise InputError(
            "a policy, must be lines of text that each end in a newline, found other control characters or no newline",
            hint="write it again with an editor for text",
        )
    reader = _Reader()
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        words = _BLANKS.split(line.strip(" \t"))
        if words != [""] and not words[0].startswith("#"):
            reader.read(number, words)
    if reader.quorum is None:
        raise InputError("a policy, must have a quorum line, found none", hint="quorum none")
    return Policy(tuple(reader.logs), tuple(reader.witnesses), tuple(reader.groups), reader.quorum)


class _Reader:
    """What the lines so far have defined."""

    def __init__(self) -> None:
        self.logs: list[Party] = []
        self.witnesses: list[Party] = []
        self.groups: list[Group] = []
        self.quorum: str | None = None
        self._grouped: set[str] = set()

    def read(self, number: int, words: list[str]) -> None:
        """Take one line in."""
        match words:
            case ["log", vkey, *url] if len(url) < 2:  # noqa: PLR2004
                self._add(number, self.logs, Party(parse_verifier(vkey), "", *url), {ED25519, ML_DSA_44})
            case ["witness", name, vkey, *url] if len(url) < 2 and self._is_new(name):  # noqa: PLR2004
                party = Party(parse_verifier(vkey), name, *url)
                self._add(number, self.witnesses, party, {COSIGNATURE, ML_DSA_44})
            case ["group", name, threshold, *members] if self._is_new(name) and self._are_free(members):
                self.groups.append(Group(name, self._threshold(number, threshold, len(members)), tuple(members)))
                self._grouped.update(members)
            case ["quorum", name] if self.quorum is None and (name == NONE or name in self._names()):
                self.quorum = name
            case _:
                raise self._wrong(number, "names of earlier lines, each once, and its own form", " ".join(words))

    def _names(self) -> set[str]:
        return {known.name for known in (*self.witnesses, *self.groups)}

    def _is_new(self, name: str) -> bool:
        return name not in self._names() | {NONE}

    def _are_free(self, members: list[str]) -> bool:
        return bool(members) and len(set(members)) == len(members) and set(members) <= self._names() - self._grouped

    def _add(self, number: int, known: list[Party], party: Party, kinds: set[int]) -> None:
        if party.key.kind not in kinds or party.key.public in {other.key.public for other in known}:
            raise self._wrong(number, "a key of a type that its owner signs with, each key once", str(party.key)[:80])
        known.append(party)

    def _threshold(self, number: int, word: str, members: int) -> int:
        words = {"any": 1, "all": members}
        threshold = words[word] if word in words else int(word) if _DECIMAL.fullmatch(word) else 0
        if not 1 <= threshold <= members:
            raise self._wrong(number, f"'any', 'all' or 1 to {members} of its members", word)
        return threshold

    @staticmethod
    def _wrong(number: int, rule: str, found: str) -> InputError:
        return InputError(
            f"a policy: line {number}, must have {rule}, found {found!r}",
            hint="forms of a line: log VKEY, witness NAME VKEY, group NAME K MEMBER..., quorum NAME",
        )
