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
_LEAP = 8.0
_CLOSE = 4
_STEEPNESS = 1.2  # -d log(epsilon) / d log(z), until two values are known

_Cost = Callable[[int], float]


def _aim(here: tuple[int, float], last: tuple[int, float] | None) -> int:
    """Guess where the logarithm of the ratio becomes 0, from one or two points (steps, ratio)."""
    (n, ratio), steepness = here, _STEEPNESS
    if last and last[0] != n and last[1] not in (0.0, math.inf, ratio) and ratio not in (0.0, math.inf):
        slope = -math.log(ratio / last[1]) / math.log(n / last[0])
        steepness = slope if slope > 0 else steepness
    leap = _LEAP if math.isinf(ratio) else math.exp(math.log(max(ratio, 1e-9)) / steepness)
    return math.ceil(n * min(max(leap, 1 / _LEAP), _LEAP))


def _solve(cost: _Cost, target: float, guess: int, tolerance: int) -> int:
    """Return steps of noise that cost at most `target`, about `tolerance` above the fewest that do."""
    low, high, last = 0, _MOST + 1, None
    while high - low > 1:
        n = guess if low < guess < high else (math.isqrt(max(low, 1) * high) if low else max(high // 8, 1))
        n = min(max(n, low + 1), high - 1)
        here = (n, cost(n) / target)
        guess = _aim(here, last)
        if here[1] > 1:
            low, guess = n, max(guess, n + 1)
        else:
            high = n
            if n - guess <= tolerance:
                break
            guess = min(guess, n - 1)
        last = here
    return high


def _cost(make_event: Callable[[float], Event], delta: float, interval: float, steps: int) -> float:
    return spend([make_event(steps / _STEPS)], delta, interval=interval).epsilon


def calibrate(make_event: Callable[[float], Event], epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier, in steps of 10^-6, that keeps an event within `epsilon`.

    The search runs on a coarse grid of losses. The fine one, ten times slower, is asked only at its
    answers; the ratio of the two moves the target of the next search.

    Args:
        make_event: What will be run, as a function of its noise multiplier.
        epsilon: Most that may be spent. Positive, finite.
        delta: Above 0, below 1.

    Guarantees:
        ``epsilon([make_event(z)], delta).epsilon <= epsilon`` for the z that is returned, on the grid that
        claims are made on. A z smaller by 10^-5 is not enough.

    Raises:
        InputError: Epsilon is out of range, or no noise multiplier up to 10^6 is enough.
    """
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon, must be positive and finite, found {epsilon!r}", hint="use 8 or less")
    sketch, search, confirm = (partial(_cost, make_event, delta, grid) for grid in (SKETCH, SEARCH, CONFIRM))
    guess = _solve(sketch, epsilon, _STEPS, _STEPS // 100)
    guess = _solve(search, epsilon, min(guess, _MOST), 2)
    found = _confirm(search, confirm, epsilon, min(guess, _MOST))
    if found > _MOST:
        raise InputError(
            f"epsilon, must be reachable with a noise multiplier up to {_MOST // _STEPS}, found {epsilon!r}",
            hint="fewer rounds, a smaller sampling probability, or a larger epsilon",
        )
    return found / _STEPS


def _confirm(search: _Cost, confirm: _Cost, target: float, guess: int) -> int:
    """Move the target of the coarse search until the fine grid is just satisfied."""
    low, high = 0, _MOST + 1
    while high - low > 1:
        n = min(max(guess, low + 1), high - 1)
        fine, coarse = confirm(n), search(n)
        low, high = (n, high) if fine > target else (low, n)
        if 0 < fine < math.inf and 0 < coarse < math.inf:
            guess = _solve(search, target * coarse / fine, n, 1)
        else:
            guess = (low + high) // 2
        if high - guess <= _CLOSE and high == n:
            break
    return high
