"""Clipping: the only step that bounds what one record or one participant adds to a sum; `encode.py` clips updates."""

import numpy as np
from jaxtyping import Float

UNIT_ROUNDOFF = 2.0**-53
SMALLEST_NORMAL = 2.0**-1022


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
    reach = max_norm * slack(dimension)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        factors = np.where(norms <= reach, 1.0, reach / norms)
    return np.where(np.isfinite(norms) & (factors >= SMALLEST_NORMAL), factors, 0.0)


def slack(dimension: int) -> float:
    """What is left of a bound after the rounding errors of a norm over `dimension` values, and of scaling by it."""
    return 1.0 - 2.0 * (dimension + 16) * UNIT_ROUNDOFF
