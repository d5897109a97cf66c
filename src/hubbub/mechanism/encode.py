"""From real vectors to integers in a ring, where addition is exact and noise is discrete.

A sensitivity is only real if it is the sensitivity of what is summed. Floating-point sums are not what
the proofs are about (they round, and rounding leaks), so everything that leaves a participant is a
vector of integers modulo 2^32.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt32

from hubbub.errors import RoundError
from hubbub.mechanism.clip import slack

RING_BITS = 32
HALF_RING = 2 ** (RING_BITS - 1)
FINER = 2**20
"""How much finer than its integers a sum of microbatches is added up."""

_LARGEST_PART = 2**52
"""No part reaches it: a whole batch that the ring of its plan has room for adds up to less than half."""

_BLOCK = 2**13
"""Coordinates that are encoded at a time: so few that no matrix library wakes threads to add up their squares."""


def encode_update(
    update: Float32[np.ndarray, " params"], scale: float, max_norm: float
) -> Int32[np.ndarray, " params"]:
    """Clip a participant's update, scale it to integers and truncate these toward zero.

    Every noise scale downstream is a multiple of `max_norm`, and this is what makes that true.

    Args:
        update: New weights minus old weights, flattened.
        scale: Power of two s.
        max_norm: Clipping norm C, in units of the weights; s C at most 2^21.

    Guarantees:
        The L2 norm of the result, in exact integer arithmetic, is at most s C, whatever comes in: while it is not,
        the update is shrunk and truncated again. An update that holds a NaN or an infinity becomes zeros: dropped,
        never spread.

    Source:
        McMahan et al. 2018, arXiv:1710.06963, Algorithm 1.
    """
    norm = _norm(update)
    if not math.isfinite(norm):
        return np.zeros(update.size, dtype=np.int32)
    encoded = np.empty(update.size, dtype=np.int32)
    reach, largest_square = max_norm * slack(update.size), _largest_square(scale, max_norm)
    factor = scale if norm <= reach else scale * (reach / norm)
    while (square := _truncate(update, factor, encoded)) > largest_square:
        factor *= math.sqrt(largest_square / square) * (1.0 - 2.0**-20)
    return encoded


def _norm(update: Float32[np.ndarray, " params"]) -> float:
    """The L2 norm to float32's rounding: it says which factor to try first, and no more."""
    square = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, update.size, _BLOCK):
            block = update[start : start + _BLOCK]
            square += float(block.dot(block))
    if not math.isfinite(square):  # too large for squares in float32, or no number
        square = float(np.square(update, dtype=np.float64).sum())
    return math.sqrt(square)


def _truncate(update: Float32[np.ndarray, " params"], factor: float, out: Int32[np.ndarray, " params"]) -> float:
    """Write the integers, and return the sum of the squares of what was written.

    The sum is of integers in float64: exact up to 2^53, in any order, and too large where it is not exact. Block by
    block, in places that stay in the processor's cache.
    """
    square, most = 0.0, min(_BLOCK, update.size)
    narrow, wide = np.empty(most, dtype=np.float32), np.empty(most)
    for start in range(0, update.size, _BLOCK):
        block, written = update[start : start + _BLOCK], out[start : start + _BLOCK]
        written[:] = np.multiply(block, factor, out=narrow[: block.size])  # as C does, toward zero
        exact = wide[: block.size]
        exact[:] = written
        square += float(exact.dot(exact))
    return square


@lru_cache(maxsize=64)
def _largest_square(scale: float, max_norm: float) -> int:
    """The largest sum of squares of integers that is within the bound."""
    return math.floor((Fraction(scale) * Fraction(max_norm)) ** 2)


def encode_sum(
    parts: Iterable[Float[np.ndarray, " params"]], scale: float, *, largest: int, size: int
) -> Int[np.ndarray, " params"]:
    """Round the sum of clipped gradients to integers, once for all its microbatches.

    Microbatches are added up in integers 2^20 times finer, where addition is exact. So it does not matter to the rest
    in which of them a record's part is; were each rounded by itself, a record that is drawn or not would move the
    rounding of every one that others were shifted into.

    Args:
        parts: Float64 sum over the rows of each microbatch.
        scale: Power of two s.
        largest: Largest absolute value of a coordinate.
        size: Number of coordinates.

    Guarantees:
        Two lists of parts, of which at most two differ, whose sums are at distance r give integers at distance at most
        s r + (1 + 2^-19) sqrt(d): per coordinate each rounding of a part moves by at most one fine unit, and the last
        by less than one. Clamping moves no two values apart.

    Raises:
        RoundError: A part is not finite; nothing was encoded.
    """
    whole = np.zeros(size, dtype=np.int64)
    for part in parts:
        if not np.isfinite(part).all():
            raise RoundError(
                "gradient sum, must be finite, found a NaN or an infinity; nothing sent",
                hint="clipped gradients cannot do this: report it",
            )
        whole += clamp(np.rint(part * (scale * FINER)), _LARGEST_PART)
    return clamp((whole + FINER // 2) // FINER, largest)


def clamp(
    values: Float[np.ndarray, " params"] | Int[np.ndarray, " params"], largest: int
) -> Int[np.ndarray, " params"]:
    """Limit each coordinate to [-largest, largest] (1-Lipschitz, so no sensitivity grows)."""
    is_integer = values.dtype.kind == "i"
    if is_integer and -largest <= values.min(initial=0) and values.max(initial=0) <= largest:
        return values  # as most are: to look takes a fraction of what a copy takes
    limited = np.maximum(np.minimum(values, largest), -largest)
    return limited if is_integer else limited.astype(np.int64)


def to_ring(values: Int[np.ndarray, " params"]) -> UInt32[np.ndarray, " params"]:
    """Reduce integers modulo 2^32; without a copy where that changes no bit."""
    return values.view(np.uint32) if values.dtype == np.int32 else values.astype(np.uint32)


def from_ring(values: UInt32[np.ndarray, " params"]) -> Int32[np.ndarray, " params"]:
    """The representative of each residue in [-2^31, 2^31), in the same memory.

    Guarantees:
        `from_ring(to_ring(v)) == v` for every v in that range, and so for every sum that the plan's ring
        check admits.
    """
    return values.view(np.int32)
