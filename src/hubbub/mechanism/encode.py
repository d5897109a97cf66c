"""From real vectors to integers in a ring, where addition is exact and noise is discrete.

A sensitivity is only real if it is the sensitivity of what is summed. Floating-point sums are not what
the proofs are about (they round, and rounding leaks), so everything that leaves a participant is a
vector of integers modulo 2^32.
"""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int64, UInt32

from hubbub.errors import RoundError

RING_BITS = 32
HALF_RING = 2 ** (RING_BITS - 1)
_CHUNK = 2**20


def encode_update(clipped: Float[np.ndarray, " params"], scale: float, max_norm: float) -> Int64[np.ndarray, " params"]:
    """Scale a clipped update to integers, truncating toward zero.

    Args:
        clipped: Update of norm at most `max_norm`.
        scale: Power of two s.
        max_norm: Clipping norm C.

    Guarantees:
        The L2 norm of the result, in exact integer arithmetic, is at most s C (up to 2^21), whatever the
        input: while it is not, the integers are shrunk and truncated again.

    Raises:
        RoundError: The input is not finite; nothing was encoded.
    """
    if not np.isfinite(clipped).all():
        raise RoundError(
            "update, must be finite before it is encoded, found a NaN or an infinity; nothing sent",
            hint="clip it first",
        )
    bound = Fraction(scale) * Fraction(max_norm)
    largest, largest_square = math.floor(bound), math.floor(bound**2)
    with np.errstate(over="ignore"):
        encoded = clamp(np.trunc(clipped.astype(np.float64) * scale), largest)
    while (square := _square_sum(encoded)) > largest_square:
        shrink = math.sqrt(largest_square / square) * (1.0 - 2.0**-20)  # below 1: each integer but 0 gets smaller
        encoded = np.trunc(encoded * shrink).astype(np.int64)
    return encoded


def _square_sum(encoded: Int64[np.ndarray, " params"]) -> int:
    chunks = range(0, encoded.size, _CHUNK)
    return sum(int(np.dot(encoded[at : at + _CHUNK], encoded[at : at + _CHUNK])) for at in chunks)


def encode_sum(total: Float[np.ndarray, " params"], scale: float, largest: int) -> Int64[np.ndarray, " params"]:
    """Round one microbatch's sum of clipped gradients to integers.

    Args:
        total: Float64 sum over the rows of one microbatch.
        scale: Power of two s.
        largest: Largest absolute value of a coordinate.

    Guarantees:
        Two sums at distance r give integers at distance at most s r + sqrt(d), per coordinate
        |round(a) - round(b)| <= |a - b| + 1; clamping moves no two values apart.

    Raises:
        RoundError: The sum is not finite; nothing was encoded.
    """
    if not np.isfinite(total).all():
        raise RoundError(
            "gradient sum, must be finite, found a NaN or an infinity; nothing sent",
            hint="clipped gradients cannot do this: report it",
        )
    return clamp(np.rint(total * scale), largest)


def clamp(
    values: Float[np.ndarray, " params"] | Int64[np.ndarray, " params"], largest: int
) -> Int64[np.ndarray, " params"]:
    """Limit each coordinate to [-largest, largest] (1-Lipschitz, so no sensitivity grows)."""
    return np.clip(values, -largest, largest).astype(np.int64)


def to_ring(values: Int64[np.ndarray, " params"]) -> UInt32[np.ndarray, " params"]:
    """Reduce integers modulo 2^32."""
    return (values & (2**RING_BITS - 1)).astype(np.uint32)


def from_ring(values: UInt32[np.ndarray, " params"]) -> Int64[np.ndarray, " params"]:
    """The representative of each residue in [-2^31, 2^31).

    Guarantees:
        `from_ring(to_ring(v)) == v` for every v in that range, and so for every sum that the plan's ring
        check admits.
    """
    return values.astype(np.int64) - ((values >= HALF_RING).astype(np.int64) << RING_BITS)
