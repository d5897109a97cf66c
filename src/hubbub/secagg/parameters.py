"""How many: participants to start with, holders of a secret, shares that rebuild it, inputs in a sum.

Up to 128 participants everybody holds shares of everybody. Above, each chooses k holders at random after it
saw the adverts; k and the threshold t are then the smallest for which a server that picks the adverts, the
dropouts and the survivors, together with all c corrupt keys, opens one input with probability at most 2^-50
in a session, however many adverts it withholds.

*Trust:* public; a participant checks what it is given with `check` before it enters a session.
"""

import functools
import hashlib
import math
from fractions import Fraction

import msgspec
import numpy as np
from jaxtyping import Float, Int

from hubbub.errors import PlanError

LARGEST_COMPLETE = 128
LARGEST = 10_000
SECRECY = -50.0
"""Log2 of the chance, per session, that some input is not hidden in one sum: 2^-40 in 1024 sessions."""

CORRECTNESS = -20.0
"""Log2 of the chance that the planned dropouts leave a dropped dealer, or a survivor, with too few holders."""

HONEST = 2
"""Fewest honest inputs in a sum."""

Floats = Float[np.ndarray, "..."]
Many = int | Int[np.ndarray, "..."]


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds of one study, public, part of the plan.

    Args:
        n: Most keys that can be in a session: the roster.
        n_min: Fewest participants that a session starts with.
        u_min: Fewest inputs in a sum.
        threshold: Shares that give a secret back, at n adverts; for fewer see `threshold_for`.
        neighbours: Holders k that each participant chooses besides itself; 0 is everybody.
        colluding: Corrupt keys c in the whole cohort.
        org_min: Fewest organisations in a session.
        dimension: Length d of every vector.
    """

    n: int
    n_min: int
    u_min: int
    threshold: int
    neighbours: int
    colluding: int
    org_min: int
    dimension: int

    @property
    def hash(self) -> bytes:
        """SHA-256 of all fields."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).digest()

    @property
    def survives(self) -> int:
        """Dropouts that a session of all n still completes with."""
        return self.n - max(self.u_min, self.quorum_for(self.n))

    def threshold_for(self, adverts: int) -> int:
        """Shares that give a secret back in a session of so many participants."""
        return self.threshold if self.neighbours else majority(adverts, self.colluding)

    def quorum_for(self, adverts: int) -> int:
        """Consents over one set of survivors without which nobody unmasks; on the complete graph, the threshold.

        Guarantees:
            No two sets of survivors get that many, as an honest participant consents once. Counting only the
            dealer's own holders does not give this on the k-neighbour graph.
        """
        return majority(adverts, self.colluding)

    def check(self) -> None:
        """Refuse thresholds with which the server could learn more than one sum.

        Raises:
            PlanError: In one line, with the value that would do.
        """
        n, c = self.n, self.colluding
        _within("cohort", n, (HONEST, LARGEST), "participants")
        _within("cohort.colluding", c, (0, n - HONEST), f"of {n} participants, so that {HONEST} are honest")
        _within("dimension", self.dimension, (1, 2**32), "coordinates")
        _within("cohort.organisations", self.org_min, (1, n), f"for {n} participants")
        sizes = (majority(n, c), n)
        reason = f"of {n} participants with {c} colluding, so that no two groups of them can each make a sum"
        _within("cohort.minimum", self.u_min, sizes, reason)
        _within("secagg.n_min", self.n_min, sizes, reason)
        if not self.neighbours:
            _within("secagg.threshold", self.threshold, (sizes[0], sizes[0]), reason)
            return
        _within("secagg.neighbours", self.neighbours, (1, self.n_min - 2), f"in a session of {self.n_min}")
        _within("secagg.threshold", self.threshold, (1, self.neighbours + 1), f"of {self.neighbours + 1} holders")
        adverts = np.arange(self.n_min, n + 1)
        reached = failure(adverts, c, k=self.neighbours, t=self.threshold)
        if reached > SECRECY:
            raise PlanError(
                f"secagg.threshold, must keep the chance to open one input at most 2^{SECRECY:.0f} in a session, found "
                f"2^{reached:.2f} with {self.threshold} of {self.neighbours + 1} holders; nothing planned",
                hint="neighbours = {}, threshold = {}".format(*search(n, self.n_min, c, dropped=n - self.n_min)),
            )


def majority(members: int, corrupt: int) -> int:
    """Fewest of `members` such that two such groups share an honest one; `corrupt` may be in both."""
    return (members + corrupt) // 2 + 1


def choose(
    n: int,
    *,
    colluding: int,
    dropouts: float,
    dimension: int,
    minimum: int | None = None,
    org_min: int = 1,
    distributed: bool = False,
) -> Parameters:
    """The thresholds of a plan.

    Args:
        n: Roster.
        colluding: Corrupt keys c among them, all colluding with the server.
        dropouts: Fraction that may drop out; the round still completes.
        dimension: Length of every vector.
        minimum: Fewest inputs in a sum; by default nine in ten, or what secrecy needs.
        org_min: Fewest organisations in a session.
        distributed: Participants bring the noise, so somebody who subtracts its own share must be counted.

    Raises:
        PlanError: No thresholds satisfy all of these; the hint is the value of one that does.
    """
    if not 0 <= dropouts < 1:
        raise PlanError(
            f"cohort.dropouts, must be a fraction from 0 to below 1, found {dropouts!r}; nothing planned",
            hint="dropouts = 0.1",
        )
    _within("cohort", n, (HONEST, LARGEST), "participants")
    least = 1 if distributed else 0
    _within("cohort.colluding", colluding, (least, n - HONEST), f"of {n} participants, so that {HONEST} are honest")
    dropped = math.floor(Fraction(str(dropouts)) * n)
    needed = majority(n, colluding)
    n_min = max(n - dropped, needed)
    k, t = (0, needed) if n <= LARGEST_COMPLETE else search(n, n_min, colluding, dropped=dropped)
    chosen = Parameters(
        n=n,
        n_min=n_min,
        u_min=max(needed, n - n // 10) if minimum is None else minimum,
        threshold=t,
        neighbours=k,
        colluding=colluding,
        org_min=org_min,
        dimension=dimension,
    )
    chosen.check()
    if dropped > chosen.survives:
        fits = n - dropped >= needed
        raise PlanError(
            f"cohort.dropouts, must leave {chosen.u_min} of {n} participants with {colluding} colluding, found "
            f"{dropouts!r}, which leaves {n - dropped}; nothing planned",
            hint=f"minimum = {n - dropped}" if fits else f"dropouts = {math.floor(1000 * chosen.survives / n) / 1000}",
        )
    return chosen


def search(n: int, n_min: int, corrupt: int, *, dropped: int) -> tuple[int, int]:
    """The smallest k, with its largest correct t, that is secret in every session; (0, t) if only everybody will do."""
    adverts = np.arange(n_min, n + 1)
    for k in range(2, n_min - 1):
        t = _largest_correct(n, dropped, k)
        if failure(adverts[:1], corrupt, k=k, t=t) <= SECRECY and failure(adverts, corrupt, k=k, t=t) <= SECRECY:
            return k, t
    return 0, majority(n, corrupt)


def failure(adverts: Int[np.ndarray, " sessions"], corrupt: int, *, k: int, t: int) -> float:
    """Log2 of a bound on the chance that the server opens anything but one sum, in the worst of these sessions.

    A dealer may have 2t - k - 1 corrupt holders: they give both kinds of share, the others one each, so both
    its secrets can reach t. Or a set S of at most half of the honest may be closed: each member finds t holders
    in S or among the corrupt, so S is cut off and nobody sees it.

    Source:
        Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, eprint 2020/704, section 4; docs/proofs/secagg.md.
    """
    others = (adverts - 1)[:, None]
    hits = np.arange(max(2 * t - k - 1, 0), k + 1)
    dealers = np.logaddexp2.reduce(_log2_hits(hits, others, corrupt, k), axis=1) + np.log2(adverts - corrupt)
    honest = (adverts - corrupt)[:, None]
    size = np.arange(1, int(honest.max()) // 2 + 1)
    closed = _log2_choose(honest, size) + size * _log2_tail(t - 1, others, corrupt + size - 1, k)
    closed = np.where(size <= honest // 2, closed, -np.inf)
    return float(np.logaddexp2(dealers, np.logaddexp2.reduce(closed, axis=1)).max())


def _largest_correct(n: int, dropped: int, k: int) -> int:
    """Largest t that dropouts spare: a survivor holds a share of its own, a dropped dealer does not."""
    dead = np.arange(k + 1)
    survivor = (n - dropped) * np.exp2(_log2_hits(dead, n - 1, dropped, k))[::-1].cumsum()[::-1]
    dealer = dropped * np.exp2(_log2_hits(dead, n - 1, max(dropped - 1, 0), k))[::-1].cumsum()[::-1]
    correct = (t for t in range(k + 1, 1, -1) if max(survivor[k - t + 2], dealer[k - t + 1]) <= 2**CORRECTNESS)
    return next(correct, 1)


def _log2_tail(x: int, population: Many, marked: Many, k: int) -> Floats:
    """An upper bound of log2 P[at least x of k draws are marked].

    Ratios of neighbouring terms fall, so the tail is at most its first term over 1 - (second / first).
    """
    below = (x + 1) * (population - marked - k + x + 1)
    ratio = np.maximum(marked - x, 0) * (k - x) / np.maximum(below, 1)
    is_falling = (ratio < 1) & (below > 0)
    tail = _log2_hits(np.array(x), population, marked, k) - np.log2(np.where(is_falling, 1 - ratio, 1))
    return np.where(is_falling, np.minimum(tail, 0), 0)


def _log2_hits(x: Many, population: Many, marked: Many, k: int) -> Floats:
    """Log2 P[exactly x of k draws without replacement are marked]."""
    unmarked = np.subtract(population, marked)
    return _log2_choose(marked, x) + _log2_choose(unmarked, np.subtract(k, x)) - _log2_choose(population, k)


def _log2_choose(n: Many, k: Many) -> Floats:
    n, k = np.broadcast_arrays(n, k)
    is_possible = (k >= 0) & (k <= n)
    k = np.where(is_possible, k, 0)
    logs = _log2_factorials()
    return np.where(is_possible, logs[n] - logs[k] - logs[n - k], -np.inf)


@functools.cache
def _log2_factorials() -> Floats:
    return np.array([math.lgamma(number + 1) for number in range(LARGEST + 1)]) / math.log(2)


def _within(where: str, found: int, limits: tuple[int, int], what: str) -> None:
    if not limits[0] <= found <= limits[1]:
        nearest = min(max(found, limits[0]), limits[1])
        raise PlanError(
            f"{where}, must be from {limits[0]} to {limits[1]} {what}, found {found}; nothing planned",
            hint=f"{where.rpartition('.')[2]} = {nearest}",
        )
