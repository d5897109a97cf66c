"""Epsilon of a list of events under null-replacement, by the tightest accountant that covers them all.

1. Gaussians without sampling: closed form ("gdp").
2. Gaussians, some of them Poisson-sampled: privacy loss distributions ("pld"), always pessimistic.
3. Anything with zCDP in it, noise so small that no grid would fit in memory, more than 200 000 equal
   releases, or a delta so small that the rounding of Fourier transforms shows: Renyi ("rdp").

Before that the events are flattened and equal ones are counted together, so the result depends neither
on their order nor on how they are nested. Sampling that has no theorem under null-replacement (a fixed
size without replacement, sampling of something sampled already) is counted as if all had been sampled,
which is never too little.

*Trust:* every claim, plan and ledger entry rests on these numbers.
"""

import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union

import msgspec

from hubbub.accounting import codec, gaussian
from hubbub.errors import InputError
from hubbub.events import repeated

if TYPE_CHECKING:
    import dp_accounting

Event = Union[Mapping[str, Any], "dp_accounting.DpEvent"]
"""An event, or its document."""

CONFIRM, SEARCH, SKETCH = 1e-4, 1e-3, 1e-2
"""Grid of privacy losses: what is claimed, what a search may use, what only guides it."""

ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *map(float, range(11, 64)), 128.0, 256.0, 512.0, 1024.0)
_QUICK_ORDERS = (2.0, 4.0, 8.0, 16.0, 32.0)
_MAX_GRID = 2**18
_LEAST_Q, _MOST_Q, _MOST_NOISE, _MOST_RELEASES = 1e-12, 1 - 1e-9, 1e6, 10**12
_MOST_COMPOSED = 200_000  # the library takes (points of the grid)^count as an integer; at 10^7 that is a minute


class Spent(msgspec.Struct, frozen=True):
    """What a list of events costs at one delta.

    Args:
        epsilon: The privacy loss; infinite if anything was revealed without noise.
        delta: The delta it holds at.
        accountant: How it was computed.
        interval: Grid of the privacy loss distribution, coarser for an epsilon above 25 or so; 0 for the
            other two accountants.
    """

    epsilon: float
    delta: float
    accountant: Literal["pld", "gdp", "rdp"]
    interval: float = 0.0


class Terms(NamedTuple):
    """Flattened events, hashable: equal whenever the events are the same multiset.

    Args:
        plain: sqrt(sum 1/z^2) over Gaussians without sampling.
        sampled: (sampling probability, noise multiplier, count), sorted, 0 < q < 1.
        rho: Sum of the rho of zCDP events.
        xi: Sum of their xi.
    """

    plain: float
    sampled: tuple[tuple[float, float, int], ...]
    rho: float
    xi: float


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the accounting library's log lines and warnings off the terminal, inside the block only."""
    logger = logging.getLogger("absl")

    def is_foreign(record: logging.LogRecord) -> bool:
        return "dp_accounting" not in record.pathname

    logger.addFilter(is_foreign)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(is_foreign)


_Leaf = tuple[str, float, float]  # ("gaussian", q, z), ("zcdp", rho, xi) or _BARE: not private
_BARE: _Leaf = ("bare", 0.0, 0.0)


def _sampled(q: float, inner: list[tuple[_Leaf, int]]) -> list[tuple[_Leaf, int]]:
    """Sample Gaussians that share one sample; several of them are one of less noise (joint dominance)."""
    if q == 0:
        return []
    q = max(q, _LEAST_Q) if q < _MOST_Q else 1.0
    if any(kind != "gaussian" or leaf_q != 1 for (kind, leaf_q, _), _ in inner):
        return inner
    if len(inner) == 1 and inner[0][1] == 1:
        return [(("gaussian", q, inner[0][0][2]), 1)]
    together = gaussian.mu((z, count) for (_, _, z), count in inner)
    return [(("gaussian", q, 1 / together), 1)] if 0 < together < math.inf else inner


def _leaves(document: Mapping[str, Any]) -> list[tuple[_Leaf, int]]:
    leaves: list[tuple[_Leaf, int]] = [(_BARE, 1)]
    match document["@"]:
        case "NoOpDpEvent":
            leaves = []
        case "GaussianDpEvent" if document["noise_multiplier"] > 0:
            leaves = [(("gaussian", 1.0, document["noise_multiplier"]), 1)]
        case "ZCDpEvent":
            leaves = [(("zcdp", document["rho"], document["xi"]), 1)]
        case "SelfComposedDpEvent":
            times = document["count"]
            leaves = [(leaf, count * times) for leaf, count in _leaves(document["event"]) if times]
        case "ComposedDpEvent":
            leaves = list(itertools.chain.from_iterable(map(_leaves, document["events"])))
        case "PoissonSampledDpEvent":
            leaves = _sampled(document["sampling_probability"], _leaves(document["event"]))
        case "SampledWithoutReplacementDpEvent":
            leaves = _leaves(document["event"])
        case _:
            pass
    return leaves


def _terms(events: Iterable[Event]) -> Terms:
    """Flatten and count; numbers beyond any use are moved to the worse side so that nothing overflows."""
    counts: Counter[_Leaf] = Counter()
    for event in events:
        document = codec.check(event) if isinstance(event, Mapping) else codec.encode(event)
        for leaf, count in _leaves(document):
            counts[leaf] += count
    plain = [(b, n) for (kind, a, b), n in counts.items() if kind == "gaussian" and a == 1]
    sampled = Counter[tuple[float, float]]()
    for (kind, a, b), n in counts.items():
        if kind == "gaussian" and a < 1:
            sampled[a, min(b, _MOST_NOISE)] += n
    bare = _BARE in counts or any(z < 1 / _MOST_NOISE or n > _MOST_RELEASES for (_, z), n in sampled.items())
    mu = gaussian.mu(plain)
    if bare or mu > _MOST_NOISE:
        return Terms(plain=math.inf, sampled=(), rho=0.0, xi=0.0)
    return Terms(
        plain=mu,
        sampled=tuple(sorted((q, z, n) for (q, z), n in sampled.items())),
        rho=math.fsum(a * n for (kind, a, _), n in counts.items() if kind == "zcdp"),
        xi=math.fsum(b * n for (kind, _, b), n in counts.items() if kind == "zcdp"),
    )


def _renyi(terms: Terms, delta: float, orders: Sequence[float]) -> tuple[float, float]:
    """Compose at each order; the divergence of a sampled Gaussian is raised by more than its roundoff."""
    import dp_accounting as dp
    from dp_accounting import rdp

    margin = 4e-15 * sum(count for _, _, count in terms.sampled)
    events: list[Any] = [dp.ZCDpEvent(rho=terms.rho, xi=terms.xi + margin)]
    if terms.plain > 0:
        events.append(dp.GaussianDpEvent(noise_multiplier=1 / terms.plain))
    for q, z, count in terms.sampled:
        release = dp.PoissonSampledDpEvent(sampling_probability=q, event=dp.GaussianDpEvent(noise_multiplier=z))
        events.append(dp.SelfComposedDpEvent(event=release, count=count))
    accountant = rdp.RdpAccountant(list(orders), neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
    with _quiet():
        for event in events:
            accountant.compose(event)
        epsilon, order = accountant.get_epsilon_and_optimal_order(delta)
    return float(epsilon), float(order)


@lru_cache(maxsize=16)
def _loss(q: float, z: float, interval: float) -> Any:
    """Build the privacy loss distribution of one Gaussian; the slow part, and shared by all counts."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=z,
        sampling_prob=q,
        value_discretization_interval=interval,
        pessimistic_estimate=True,
        neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
    )


def _roundoff(terms: Terms) -> float:
    """Bound what the library's Fourier transforms may take from delta by rounding alone.

    Its distributions are pessimistic, its floats are not: raising a spectrum to the T-th power loses
    about 10^-16 T of probability (measured; the tests look for worse), which at delta = 1e-11 and
    T = 10^4 made epsilon too small. So delta is lowered by ten times that.
    """
    return 1e-15 * sum(count + 10 for _, _, count in terms.sampled)


def _pld(terms: Terms, delta: float, interval: float) -> float:
    with _quiet():
        losses = [_loss(q, z, interval).self_compose(count) for q, z, count in terms.sampled]
        if terms.plain > 0:
            losses.append(_loss(1.0, 1 / terms.plain, interval))
        composed = reduce(lambda one, other: one.compose(other), losses)
        return max(0.0, float(composed.get_epsilon_for_delta(delta - _roundoff(terms))))


def _grid(terms: Terms, delta: float, interval: float) -> float:
    """Choose `interval`, or ten or a hundred times it, so that all losses fit; 0 if PLD cannot be used."""
    most = max((count for _, _, count in terms.sampled), default=0)
    if terms.rho or terms.xi or most > _MOST_COMPOSED or _roundoff(terms) > delta / 10:
        return 0.0
    noises = [z for _, z, _ in terms.sampled] + ([1 / terms.plain] if terms.plain else [])
    one = max(0.5 / z**2 + 10 / z for z in noises)
    extent = max(one, _renyi(terms, delta, _QUICK_ORDERS)[0])
    return next((grid for grid in (interval, 10 * interval, 100 * interval) if extent <= _MAX_GRID * grid), 0.0)


@lru_cache(maxsize=4096)
def _spend(terms: Terms, delta: float, interval: float) -> Spent:
    if math.isinf(terms.plain):
        return Spent(math.inf, delta, "gdp")
    if not (terms.sampled or terms.rho or terms.xi):
        return Spent(gaussian.epsilon(delta, terms.plain), delta, "gdp")
    grid = _grid(terms, delta, interval)
    if not grid:
        return Spent(_renyi(terms, delta, ORDERS)[0], delta, "rdp")
    return Spent(_pld(terms, delta, grid), delta, "pld", grid)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InputError(f"delta, must be above 0 and below 1, found {delta!r}", hint="use 1e-5 or less")


def epsilon(events: Sequence[Event], delta: float, *, interval: float = CONFIRM) -> Spent:
    """Return what a list of events, fixed in advance, costs in total.

    Args:
        events: Events or their documents.
        delta: Above 0, below 1.
        interval: Grid of the privacy loss distribution; `CONFIRM` for anything that is claimed.

    Guarantees:
        Adaptively chosen queries under these events are (epsilon, delta)-DP under null-replacement.
        Order, nesting and repetition of equal events do not change the result. 0 for no events,
        infinite as soon as one is not private.

    Raises:
        InputError: An event is not whitelisted, or delta is out of range.
    """
    _check_delta(delta)
    return _spend(_terms(events), delta, interval)


def gdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Return what Gaussians without sampling cost in total, in closed form; infinite if anything else is among them.

    Guarantees:
        Holds also for events that were chosen one after the other, each after seeing the results of those before.

    Source:
        Koskela, Tobaben, Honkela 2022, arXiv:2209.15596; Smith and Thakurta 2022, arXiv:2210.17520.

    Raises:
        InputError: An event is not whitelisted, or delta is out of range.
    """
    _check_delta(delta)
    terms = _terms(events)
    return math.inf if terms.sampled or terms.rho or terms.xi else gaussian.epsilon(delta, terms.plain)


def epsilon_schedule(event: Event, counts: Sequence[int], delta: float, *, interval: float = CONFIRM) -> list[float]:
    """Return epsilon after each of these counts of one event; the loss of one event is built once."""
    document = codec.check(event) if isinstance(event, Mapping) else codec.encode(event)
    return [epsilon([repeated(document, count)], delta, interval=interval).epsilon for count in counts]


def epsilon_after_each(
    event: Event, rounds: int, delta: float, points: int = 20, *, interval: float = SEARCH
) -> list[float]:
    """Return an upper bound of epsilon after round 1, 2, ..., `rounds`.

    At most `points` rounds are computed, denser early because epsilon grows like the square root; a
    round between two of them gets the value of the later one.

    Args:
        event: The event of one round.
        rounds: How many there will be.
        delta: Above 0, below 1.
        points: Most values that are computed.
        interval: Grid for all but the last round; `SEARCH` is five times faster than `CONFIRM`, and its
            bounds higher by less than one per cent.

    Guarantees:
        Never below epsilon of that many rounds, never decreasing. The last value is what `epsilon` says
        of all rounds.
    """
    counts = sorted({math.ceil(rounds * (i / points) ** 2) for i in range(1, points)} - {0, rounds})
    last = epsilon_schedule(event, [rounds], delta)
    early = [min(value, *last) for value in epsilon_schedule(event, counts, delta, interval=interval)]
    values = itertools.accumulate([*early, *last], max)
    steps = zip([0, *counts], [*counts, rounds], values, strict=True)
    return [value for before, after, value in steps for _ in range(after - before)]


def rdp_epsilon(events: Sequence[Event], delta: float, order: float | None = None) -> tuple[float, float]:
    """Return epsilon by Renyi accounting at one order, or at the best of `ORDERS`, and that order.

    At a fixed order this is what a filter may add up over runs that were chosen one after the other.

    Args:
        events: Events or their documents.
        delta: Above 0, below 1.
        order: Renyi order, above 1.

    Raises:
        InputError: A value is out of range.
    """
    _check_delta(delta)
    if order is not None and not order > 1:
        raise InputError(f"Renyi order, must be above 1, found {order!r}", hint="use an order such as 8")
    return _renyi(_terms(events), delta, ORDERS if order is None else (order,))
