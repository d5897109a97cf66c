"""The smallest noise that keeps a plan within its epsilon.

*Trust:* only for usefulness: what comes out has been confirmed by `epsilon` at this very value.
"""

import math
from collections.abc import Callable
from functools import partial

from hubbub.accounting.epsilon import CONFIRM, SEARCH, SKETCH, Event
from hubbub.accounting.epsilon import epsilon as spend
from hubbub.errors import InputError

_STEPS = 10**6  # noise multipliers are searched in whole steps of 10^-6
_MOST = 10**6 * _STEPS
_LEAP = 2.0  # in logarithms
_STAGES = ((SKETCH, _STEPS // 100), (SEARCH, 20), (CONFIRM, 3))

_Cost = Callable[[int], float]
_Point = tuple[int, float]  # steps of noise, epsilon / target


def _steepness(here: _Point, last: _Point, old: float) -> float:
    """Return -d log(epsilon) / d log(z) between two points, or the old value if they cannot tell."""
    if not (0 < here[1] < math.inf and 0 < last[1] < math.inf):
        return old
    slope = -math.log(here[1] / last[1]) / math.log(here[0] / last[0])
    return slope if slope > 0 else old


def _aim(here: _Point, steepness: float) -> int:
    """Guess where epsilon meets its target, at most one leap away."""
    n, ratio = here
    leap = math.log(min(max(ratio, 1e-9), 1e9)) / steepness
    return math.ceil(n * math.exp(min(max(leap, -_LEAP), _LEAP)))


def _solve(cost: _Cost, target: float, start: tuple[int, float], tolerance: int) -> tuple[int, float]:
    """Search by secants in logarithms, inside a bracket.

    Returns:
        Steps of noise that cost at most `target`, by estimate at most `tolerance` above the fewest that
        do; and the steepness there.
    """
    (guess, steepness), low, high = start, 0, _MOST + 1
    last: _Point | None = None
    while high - low > 1:
        n = guess if low < guess < high else (math.isqrt(max(low, 1) * high) if low else high // 8)
        n = min(max(n, low + 1), high - 1)
        here = (n, cost(n) / target)
        steepness = _steepness(here, last, steepness) if last else steepness
        guess, last = _aim(here, steepness), here
        if here[1] > 1:
            low, guess = n, guess + tolerance // 2
        else:
            high = n
            if n - guess <= tolerance:
                break
    return high, steepness


def _cost(make_event: Callable[[float], Event], delta: float, interval: float, steps: int) -> float:
    return spend([make_event(steps / _STEPS)], delta, interval=interval).epsilon


def calibrate(make_event: Callable[[float], Event], epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier, in steps of 10^-6, that keeps an event within `epsilon`.

    Three searches on ever finer grids of losses, each starting where the last one ended; only the last,
    which needs two or three values, runs on the grid that claims are made on.

    Args:
        make_event: What will be run, as a function of its noise multiplier.
        epsilon: Most that may be spent. Positive, finite.
        delta: Above 0, below 1.

    Guarantees:
        The z that is returned costs at most `epsilon`. A z smaller by 10^-5 costs more.

    Raises:
        InputError: Epsilon is out of range, or no noise multiplier up to 10^6 is enough.
    """
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon, must be positive and finite, found {epsilon!r}", hint="use 8 or less")
    best = (_STEPS, 1.2)
    for interval, tolerance in _STAGES:
        cost = partial(_cost, make_event, delta, interval)
        best = _solve(cost, epsilon, (min(best[0], _MOST), best[1]), tolerance)
    if best[0] > _MOST:
        raise InputError(
            f"epsilon, must be reachable with a noise multiplier up to {_MOST // _STEPS}, found {epsilon!r}",
            hint="fewer rounds, a smaller sampling probability, or a larger epsilon",
        )
    return best[0] / _STEPS
