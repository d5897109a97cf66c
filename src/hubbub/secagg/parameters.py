"""How many: participants to start with, holders of a secret, shares that rebuild it, inputs in a sum.

Up to 128 participants everybody holds shares of everybody. Above, each chooses k holders at random after it saw
the adverts; k is the smallest for which a server that picks adverts, dropouts and survivors, with all c corrupt
keys, opens a second sum with probability at most 2^-40 in a run, 2^-50 in a session (less where a run has over 1024).

*Trust:* public; a participant runs `check` on what it is given before it enters a session.
"""

import hashlib
import math
from collections.abc import Collection
from fractions import Fraction

import msgspec
import numpy as np
from jaxtyping import Float, Int

from hubbub.errors import PlanError

LARGEST_COMPLETE = 128
LARGEST = 10_000
SECRECY = -40.0
"""Log2 of the chance, in all sessions of a run together, that more than one sum of one of them is opened."""

SESSIONS = 1024
"""Sessions that every plan's thresholds are good for, however few it has: 2^-50 in each."""

HONEST = 2
"""Fewest honest participants in a sum, in a block, and among the shares of noise."""

CORRECTNESS = -20.0
"""Log2 of the chance that the planned dropouts leave a survivor, or a dropped dealer, too few holders."""

Floats = Float[np.ndarray, "..."]
Many = int | Int[np.ndarray, "..."]
_LOG2_FACTORIALS: Floats = np.array([math.lgamma(number + 1) for number in range(LARGEST + 1)]) / math.log(2)


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds of one study, public, part of the plan.

    Args:
        n: Most keys that can be in a session.
        n_min: Fewest participants that a session starts with.
        u_min: Fewest inputs in a sum.
        threshold: Shares that give a secret back, at n adverts; for fewer see `threshold_for`.
        neighbours: Holders k that each participant chooses besides itself; 0 is everybody.
        colluding: Corrupt keys c in the whole cohort.
        org_min: Fewest organisations in a session.
        dimension: Length d of every vector.
        block: Participants who are in a sum together or not at all; 0: any survivors. Without noise two sums show
            their difference, so every sum must be one of whole blocks (`blocks_of`).
    """

    n: int
    n_min: int
    u_min: int
    threshold: int
    neighbours: int
    colluding: int
    org_min: int
    dimension: int
    block: int = 0

    @property
    def hash(self) -> bytes:
        """SHA-256 of all fields."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).digest()

    @property
    def survives(self) -> int:
        """Dropouts, at whatever stage, that a session still completes with."""
        return self.n - max(self.n_min, self.u_min)

    def threshold_for(self, adverts: int) -> int:
        """Shares that give a secret back in a session of so many participants."""
        return self.threshold if self.neighbours else majority(adverts, self.colluding)

    def quorum_for(self, adverts: int) -> int:
        """Consents, of any survivors, that one set of survivors needs before anybody unmasks: no two get as many."""
        return majority(adverts, self.colluding)

    def check(self, sessions: int = SESSIONS) -> None:
        """Refuse, as PlanError, thresholds with which the server could open more than one sum in so many sessions."""
        n, k, needed = self.n, self.neighbours, majority(self.n, self.colluding)
        one_sum = f"of {n} participants, {self.colluding} of them colluding, or one round could give two sums"
        _check_roster(n, 2)
        _within("cohort.colluding", self.colluding, (0, n - 2), f"of {n} participants, so that two are honest")
        _within("secagg.dimension", self.dimension, (1, 2**32), "coordinates")
        _within("cohort.org_min", self.org_min, (1, n), f"with {n} participants")
        _within("cohort.minimum", self.u_min, (needed, n), one_sum)
        _within("secagg.n_min", self.n_min, (needed, n), one_sum)
        _within("secagg.neighbours", k, (0, max(self.n_min - 2, 0)), f"of the {self.n_min} in a session")
        _within("secagg.block", self.block, (self.colluding + HONEST, n) if self.block else (0, 0), "participants")
        _within("secagg.threshold", self.threshold, (2, k + 1) if k else (needed, needed), "shares")
        adverts, most = np.arange(self.n_min, n + 1), secrecy(sessions)
        if k and (reached := failure(adverts, self.colluding, k=k, t=self.threshold)) > most:
            found = search(n, self.n_min, self.colluding, n - self.n_min, most=most)
            raise PlanError(
                f"secagg.threshold, must keep the chance of a second sum at most 2^{most:.0f} in a session, found "
                f"2^{reached:.2f} with {self.threshold} of {k + 1} holders; nothing planned",
                hint="neighbours = {}, threshold = {}".format(*found),
            )


def blocks_of(names: Collection[str], block: int) -> list[list[str]]:
    """A roster in blocks of at least `block`, the same for every session and study of that roster.

    In order of the hashes of their names, so that nobody chose its neighbours by choosing a name.

    >>> [len(one) for one in blocks_of([f"site-{number}" for number in range(11)], 3)]
    [3, 3, 5]
    """
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    ends = [*range(block, len(ordered) - block + 1, block), len(ordered)]
    return [ordered[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if start < end]


def majority(members: int, corrupt: int) -> int:
    """Fewest of `members` such that two such groups share an honest one; `corrupt` may be in both."""
    return (members + corrupt) // 2 + 1


def secrecy(sessions: int) -> float:
    """Log2 of the chance that each of so many sessions may have: the server may have any of them drawn again.

    >>> secrecy(60), secrecy(2000)
    (-50.0, -51.0)
    """
    return SECRECY - math.ceil(math.log2(max(sessions, SESSIONS)))


def choose(
    n: int,
    *,
    colluding: int,
    dropouts: float,
    dimension: int,
    minimum: int | None = None,
    org_min: int = 1,
    distributed: bool = False,
    in_blocks: bool = False,
    sessions: int = SESSIONS,
) -> Parameters:
    """The thresholds of a plan for n participants, of whom `colluding` work with the server.

    A round still completes when the fraction `dropouts` leaves. `minimum` is the fewest inputs in a sum, by default
    nine in ten or what secrecy needs; `org_min` the fewest organisations in a session. With `distributed` noise
    somebody counts as colluding: whoever subtracts its own share of it. `in_blocks`: sums are of whole blocks, and a
    dropout takes its block along. `sessions`: most that a participant enters in a run.

    Raises:
        PlanError: No thresholds satisfy all of these; the hint is a value with which some do.
    """
    _check_roster(n, 2 + distributed)
    _within("cohort.colluding", colluding, (int(distributed), n - 2), f"of {n} participants, so that two are honest")
    dropped, needed = math.floor(Fraction(str(dropouts)) * n), majority(n, colluding)
    block = colluding + HONEST if in_blocks else 0
    lost = _lost(n, dropped, block)
    least = n - (lost if in_blocks else n // 10)
    u_min = max(needed, least) if minimum is None else minimum
    draft = Parameters(
        n=n, n_min=u_min if n <= LARGEST_COMPLETE else max(n - dropped, needed), u_min=u_min, threshold=needed,
        neighbours=0, colluding=colluding, org_min=org_min, dimension=dimension, block=block,
    )  # fmt: skip
    draft.check()
    if lost > draft.survives:
        spared = max(count for count in range(n) if _lost(n, count, block) <= draft.survives)
        fits = f"minimum = {n - lost}" if n - lost >= needed else f"dropouts = {1000 * spared // n / 1000}"
        left = f"found {dropouts!r}, which leaves {max(n - lost, 0)}"
        raise PlanError(f"cohort.dropouts, must leave {u_min} of {n} participants, {left}; nothing planned", hint=fits)
    k, t = (0, needed) if n <= LARGEST_COMPLETE else search(n, draft.n_min, colluding, dropped, most=secrecy(sessions))
    return msgspec.structs.replace(draft, neighbours=k, threshold=t)


def _lost(n: int, dropped: int, block: int) -> int:
    """Most inputs that so many dropouts take away: with blocks, the larger last one and then whole ones."""
    if not block or not dropped:
        return dropped
    return min(n, block * dropped + n % block)


def search(n: int, n_min: int, corrupt: int, dropped: int, *, most: float) -> tuple[int, int]:
    """The smallest k, with its largest correct t, that is secret in every session; (0, t) if only everybody will do."""
    adverts = np.arange(n_min, n + 1)
    for k in range(2, n_min - 1):
        t = _largest_correct(n, dropped, k)
        if failure(adverts[:1], corrupt, k=k, t=t) <= most and failure(adverts, corrupt, k=k, t=t) <= most:
            return k, t
    return 0, majority(n, corrupt)


def failure(adverts: Int[np.ndarray, " sessions"], corrupt: int, *, k: int, t: int) -> float:
    """Log2 of a bound on the chance that the server opens anything but one sum, in the worst of these sessions.

    A dealer may have 2t - k - 1 corrupt holders, who give both kinds of share: both its secrets can reach t. Or
    a set S of at most half of the honest may be closed: each member finds t holders in S or among the corrupt.

    Source:
        Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, eprint 2020/704, section 4; docs/proofs/secagg.md.
    """
    others, honest = (adverts - 1)[:, None], (adverts - corrupt)[:, None]
    hits, size = np.arange(max(2 * t - k - 1, 0), k + 1), np.arange(1, honest.max() // 2 + 1)
    dealers = np.log2(honest) + np.logaddexp2.reduce(_log2_hits(hits, others, corrupt, k), axis=1, keepdims=True)
    closed = _log2_choose(honest, size) + size * _log2_tail(t - 1, others, corrupt + size - 1, k)
    closed = np.where(size <= honest // 2, closed, -np.inf)
    return float(np.logaddexp2.reduce(np.hstack([dealers, closed]), axis=1).max())


def _largest_correct(n: int, dropped: int, k: int) -> int:
    """Largest t that dropouts spare: a survivor holds a share of its own, a dropped dealer does not."""
    dead = np.arange(k + 1)
    survivor = (n - dropped) * np.exp2(_log2_hits(dead, n - 1, dropped, k))[::-1].cumsum()[::-1]
    dealer = dropped * np.exp2(_log2_hits(dead, n - 1, max(dropped - 1, 0), k))[::-1].cumsum()[::-1]
    return next((t for t in range(k + 1, 1, -1) if max(survivor[k - t + 2], dealer[k - t + 1]) <= 2**CORRECTNESS), 1)


def _log2_tail(x: int, population: Many, marked: Many, k: int) -> Floats:
    """Upper bound of log2 P[at least x of k draws are marked]: ratios of terms fall, so a geometric series."""
    below = (x + 1) * (population - marked - k + x + 1)
    ratio = np.maximum(marked - x, 0) * (k - x) / np.maximum(below, 1)
    is_falling = (ratio < 1) & (below > 0)
    tail = _log2_hits(x, population, marked, k) - np.log2(np.where(is_falling, 1 - ratio, 1))
    return np.where(is_falling, np.minimum(tail, 0), 0)


def _log2_hits(x: Many, size: Many, marked: Many, k: int) -> Floats:
    """Log2 P[exactly x of k draws without replacement are marked]."""
    return _log2_choose(marked, x) + _log2_choose(size - marked, k - x) - _log2_choose(size, k)


def _log2_choose(n: Many, k: Many) -> Floats:
    n, k = np.broadcast_arrays(n, k)
    k = np.where(is_possible := (k >= 0) & (k <= n), k, 0)
    return np.where(is_possible, _LOG2_FACTORIALS[n] - _LOG2_FACTORIALS[k] - _LOG2_FACTORIALS[n - k], -np.inf)


def _check_roster(n: int, least: int) -> None:
    if not least <= n <= LARGEST:
        raise PlanError(
            f"participants(), must name from {least} to {LARGEST} participants for masked sums, found {n}; "
            "nothing planned",
            hint=f"participants() in study.py returns {min(max(n, least), LARGEST)} names",
        )


def _within(where: str, found: int, limits: tuple[int, int], what: str) -> None:
    if not limits[0] <= found <= limits[1]:
        allowed = f"from {limits[0]} to {limits[1]}" if limits[0] < limits[1] else f"{limits[0]}"
        raise PlanError(
            f"{where}, must be {allowed} {what}, found {found!r}; nothing planned",
            hint=f"{where.rpartition('.')[2]} = {min(max(found, limits[0]), limits[1])}",
        )
