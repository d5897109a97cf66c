"""Clipping: the only step that bounds what one record or one participant adds to a sum."""

import math

import numpy as np
from jaxtyping import Float

UNIT_ROUNDOFF = 2.0**-53
SMALLEST_NORMAL = 2.0**-1022


def clip_update(update: Float[np.ndarray, " params"], max_norm: float) -> Float[np.ndarray, " params"]:
    """Scale an update down until its L2 norm is at most `max_norm`.

    Every noise scale downstream is a multiple of `max_norm`, and this is what makes that true.

    Args:
        update: New weights minus old weights, flattened.
        max_norm: Clipping norm C, in units of the weights, from 1e-9 to 1e9.

    Returns:
        The clipped update, float64.

    Guarantees:
        The norm of the result, computed in float64, is at most `max_norm`. An update holding a NaN or
        an infinity becomes zeros: dropped, never spread.

    Source:
        McMahan et al. 2018, arXiv:1710.06963, Algorithm 1.
    """
    wide = update.astype(np.float64)
    largest = float(np.max(np.abs(wide), initial=0.0))
    if not math.isfinite(largest) or largest == 0.0:
        return np.zeros_like(wide)
    direction = wide / largest
    norm = float(np.linalg.norm(direction))  # the largest entry is 1: its squares neither overflow nor vanish
    reach = max_norm * _slack(wide.size)
    return wide if norm * largest <= reach else direction * (reach / norm)


def clip_factors(norms: Float[np.ndarray, " rows"], max_norm: float, dimension: int) -> Float[np.ndarray, " rows"]:
    """The factor, at most 1, by which each row must be multiplied.

    Args:
        norms: L2 norms computed in float64 over `dimension` values each.
        max_norm: Clipping norm C.
        dimension: Values per row; bounds the rounding error of the norms.

    Returns:
        Factors in [0, 1]; 0 for a norm that is not finite.

    Guarantees:
        factor x true norm <= `max_norm`: the factor is lowered by more than the rounding error of a
        float64 sum of `dimension` squares. A factor too small for float64's full precision is 0.
    """
    reach = max_norm * _slack(dimension)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        factors = np.where(norms <= reach, 1.0, reach / norms)
    return np.where(np.isfinite(norms) & (factors >= SMALLEST_NORMAL), factors, 0.0)


def _slack(dimension: int) -> float:
    """What is left of a bound after the rounding errors of a norm over `dimension` values, and of scaling by it."""
    return 1.0 - 2.0 * (dimension + 16) * UNIT_ROUNDOFF
