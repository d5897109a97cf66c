"""Exact discrete Gaussian noise, by the million.

The magnitudes are cut into strips of one power-of-two width. An integer alias table picks a strip, a
strip's low bits are uniform, and rejection turns the staircase into the curve. All weights are
integers that provably lie above the curve, acceptance is decided exactly, and the infinite tail is
one more cell: given ideal bits nothing is truncated or rounded. docs/decisions/exact-noise.md argues it.

*Trust:* whoever changes this module changes what every claim of privacy says.
"""

import operator
from dataclasses import dataclass
from decimal import MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from hubbub.errors import InputError, RoundError
from hubbub.randomness import WORD, Randomness

LARGEST_SIGMA: Final = 1 << 25
LARGEST_DRAW: Final = 1 << 31
MARGIN: Final = 2.0**-40
_STRIPS: Final = (1 << 11) - 2  # at most; with the tail and the rejecting cell, 2048 columns
_BLOCK: Final = 1 << 14
_FIXED: Final = 128  # bits after the point while tables are computed
_UNIFORM: Final = WORD - 1  # bits of the acceptance uniform; the word's last bit is the sign


@dataclass(frozen=True, eq=False)
class Strips:
    """The staircase over one discrete Gaussian: the strips in order, the tail, a cell that rejects.

    Guarantees:
        For each k in strip j, scale * exp(-k^2 / 2 sigma^2) <= weights[j]; quick[j] / 2^64 <= the
        quotient of the two at every k of the strip; left[j] is the quotient at its first k to 2^-52.
    """

    sigma: int
    column_bits: int
    width_bits: int
    tail_width_bits: int
    scale: int
    weights: tuple[int, ...]
    threshold: UInt64[np.ndarray, " columns"]
    alias: Int64[np.ndarray, " columns"]
    quick: UInt64[np.ndarray, " columns"]
    left: Float64[np.ndarray, " columns"]

    @property
    def tail(self) -> int:
        """Index of the tail's cell, which is also the number of strips."""
        return (1 << self.column_bits) - 2


def bound_gaussian(magnitude: int, sigma: int, bits: int = _FIXED) -> tuple[int, int]:
    """Enclose exp(-magnitude^2 / 2 sigma^2) between two multiples of 2^-bits, at most 3 apart.

    Guarantees:
        lower <= 2^bits exp(...) < upper. `Context.divide` and `exp` are correctly rounded; with 10^-p
        the relative spacing, an exponent off by x 10^-p moves exp(-x) by less than 10^-p, because
        x exp(-x) < 1; and 10^p > 100 * 2^bits leaves the product within half a unit.
    """
    context = Context(prec=bits * 302 // 1000 + 4, Emin=MIN_EMIN, traps=[])
    exponent = context.divide(Decimal(-magnitude * magnitude), Decimal(2 * sigma * sigma))
    scaled = int(context.multiply(context.exp(exponent), Decimal(1 << bits)))
    return max(scaled - 1, 0), scaled + 2


def fill_alias_table(weights: list[int], capacity: int) -> tuple[list[int], list[int]]:
    """Split weights that sum to columns * capacity into columns of at most two cells each.

    Guarantees:
        Exact, in integers: cell i gets threshold[i] of column i, and of every other column whose
        alias it is what lies above that column's threshold.

    Source:
        Vose 1991, IEEE Trans. Software Engineering 17(9).
    """
    threshold, alias = list(weights), list(range(len(weights)))
    small = [cell for cell, weight in enumerate(weights) if weight < capacity]
    large = [cell for cell, weight in enumerate(weights) if weight >= capacity]
    while small:
        cell, giver = small.pop(), large[-1]
        alias[cell] = giver
        threshold[giver] -= capacity - threshold[cell]
        if threshold[giver] < capacity:
            small.append(large.pop())
    return threshold, alias


@lru_cache(maxsize=64)
def build_strips(sigma: int, reach: int = 10) -> Strips:
    """Compute the staircase of one sigma, in at most 0.1 s.

    `reach` is how many sigmas the strips cover at least. Any from 1 to 10 gives the same distribution;
    a small one sends tests through the tail.
    """
    width_bits = ((reach * sigma - 1) // _STRIPS).bit_length()
    column_bits = (((reach * sigma - 1) >> width_bits) + 2).bit_length()
    strips, low_bits = (1 << column_bits) - 2, column_bits + width_bits
    tail_width_bits = ((sigma * sigma - 1) // (strips << width_bits)).bit_length()
    total, capacity = 1 << WORD - width_bits, 1 << WORD - low_bits

    heights = [bound_gaussian(j << width_bits, sigma)[1] for j in range(strips + 1)]
    lowest = [bound_gaussian((j + 1 << width_bits) - 1, sigma)[0] for j in range(strips)]
    heights[strips] = (heights[strips] << tail_width_bits + 1 >> width_bits) + 1
    scale = (total - (2 << column_bits) << _FIXED) // sum(heights)
    weights = [(scale * height >> _FIXED) + 1 for height in heights]
    weights.append(total - sum(weights))
    threshold, alias = fill_alias_table(weights, capacity)
    ones = [weight << _FIXED for weight in weights]
    quick = [2 * ((scale * lowest[j] << _UNIFORM) // ones[j]) for j in range(strips)]
    left = [scale * heights[j] / ones[j] for j in range(strips)]
    return Strips(
        sigma=sigma,
        column_bits=column_bits,
        width_bits=width_bits,
        tail_width_bits=tail_width_bits,
        scale=scale,
        weights=tuple(weights),
        # A full column is its own alias: its threshold of 2^64 may wrap to zero.
        threshold=np.array([(mass << low_bits) % (1 << WORD) for mass in threshold], np.uint64),
        alias=np.array(alias, np.int64),
        quick=np.array([*quick, 0, 0], np.uint64),
        left=np.array([*left, 0, 0], np.float64),
    )


def is_below_gaussian(uniform: int, magnitude: int, sigma: int, *, factor: Fraction, randomness: Randomness) -> bool:
    """Decide a uniform real < factor * exp(-magnitude^2 / 2 sigma^2), exactly.

    `uniform` holds the real's first 63 bits; further ones are drawn only while these do not decide.

    Guarantees:
        Never true or false by rounding. Ends with probability one.

    Source:
        Karney 2016, arXiv:1303.6257, section 2 (lazy comparison).
    """
    bits = _UNIFORM
    while True:
        lower, upper = bound_gaussian(magnitude, sigma, bits + WORD)
        if (uniform + 1) * factor.denominator << WORD <= factor.numerator * lower:
            return True
        if uniform * factor.denominator << WORD >= factor.numerator * upper:
            return False
        uniform = uniform << WORD | int(randomness.words(1)[0])
        bits += WORD


def draw_tail(table: Strips, uniform: int, randomness: Randomness) -> tuple[int, bool]:
    """Propose a magnitude beyond the strips, and say whether it is accepted.

    Tail strip g, of width V from the edge R on, is proposed with probability 2^-(g+1): an envelope,
    since V R >= sigma^2 gives exp(-(R + g V)^2 / 2 sigma^2) <= 2^-g exp(-R^2 / 2 sigma^2).

    Raises:
        RoundError: The magnitude exceeds 2^31, which no ring of 32 bits holds.
    """
    strip = 0
    while randomness.words(1)[0] & 1:
        strip += 1
    offset = int(randomness.uniform_below(1 << table.tail_width_bits, 1)[0])
    magnitude = (table.tail << table.width_bits) + (strip << table.tail_width_bits) + offset
    if magnitude > LARGEST_DRAW:
        raise RoundError(
            f"discrete Gaussian of sigma {table.sigma}, a draw must be at most {LARGEST_DRAW} in magnitude, "
            "this one is larger; no noise returned",
            hint="sound random bits never do this; test the machine: rngtest -c 1000 < /dev/random",
        )
    scale = table.scale << strip + 1 + table.tail_width_bits
    factor = Fraction(scale, table.weights[table.tail] << table.width_bits)
    return magnitude, is_below_gaussian(uniform, magnitude, table.sigma, factor=factor, randomness=randomness)


def decide_strips(
    table: Strips,
    magnitude: Int64[np.ndarray, " n"],
    uniform: UInt64[np.ndarray, " n"],
    *,
    randomness: Randomness,
    margin: float = MARGIN,
) -> Bool[np.ndarray, " n"]:
    """Accept or reject the candidates that their strip's lower bound did not settle.

    exp is a polynomial here, so only IEEE 754's correctly rounded + - * / are trusted. Inside a strip
    the exponent stays under 0.2: 12 terms err by under 2^-60, all roundings together by under 2^-49.
    Where float64 comes within `margin` (2^-49 or more) of a tie, the exact decision is made instead.
    """
    strip = magnitude >> table.width_bits
    start = strip << table.width_bits
    exponent = (magnitude - start) * (magnitude + start) / (2 * table.sigma * table.sigma)
    decay = np.ones_like(exponent)
    for term in range(12, 0, -1):
        decay = 1 - exponent * decay / term
    surplus = table.left[strip] * decay - uniform * 2.0**-_UNIFORM
    accepted = surplus > 0
    for i in np.flatnonzero(np.abs(surplus) <= margin):
        factor = Fraction(table.scale, table.weights[strip[i]])
        accepted[i] = is_below_gaussian(
            int(uniform[i]), int(magnitude[i]), table.sigma, factor=factor, randomness=randomness
        )
    return accepted


def propose(
    table: Strips, count: int, randomness: Randomness, *, margin: float = MARGIN
) -> Int64[np.ndarray, " accepted"]:
    """Make `count` proposals and return the accepted ones, in the order proposed.

    The order matters: were slow acceptances put last, they would be cut off more often than others,
    and they are larger.
    """
    words = randomness.words(2 * count)
    first, second = words[:count], words[count:]
    column = (first & np.uint64((1 << table.column_bits) - 1)).view(np.int64)
    cell = np.where(first < table.threshold.take(column), column, table.alias.take(column))
    position = (first >> np.uint64(table.column_bits)) & np.uint64((1 << table.width_bits) - 1)
    magnitude = (cell << table.width_bits) | position.view(np.int64)
    accepted = second < table.quick.take(cell)

    uniform = second >> np.uint64(1)
    slow = np.flatnonzero(~accepted)
    inside = slow[cell[slow] < table.tail]
    accepted[inside] = decide_strips(table, magnitude[inside], uniform[inside], randomness=randomness, margin=margin)
    for i in slow[cell[slow] == table.tail]:
        magnitude[i], accepted[i] = draw_tail(table, int(uniform[i]), randomness)

    negative = (second & np.uint64(1)).view(np.int64)
    accepted &= magnitude >= negative  # zero is proposed with both signs and kept with one
    return ((magnitude ^ -negative) + negative)[accepted]


def discrete_gaussian(sigma: int, count: int, randomness: Randomness) -> Int64[np.ndarray, " {count}"]:
    """Draw integers, each k with probability proportional to exp(-k^2 / 2 sigma^2).

    The only noise that a certifiable claim rests on; sigma is in units of the encoded integers.

    Guarantees:
        Exact: given ideal bits the draws are independent and follow this distribution on all the
        integers; nothing is truncated or rounded. Either every draw is at most 2^31 in magnitude, or
        nothing is returned.

    Raises:
        InputError: sigma is not in 1..2^25.
        RoundError: A draw exceeds 2^31.

    Source:
        Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Definition 1 (the distribution).
    """
    sigma = operator.index(sigma)
    if not 1 <= sigma <= LARGEST_SIGMA:
        raise InputError(
            f"discrete Gaussian, sigma must be from 1 to {LARGEST_SIGMA}, this one is {sigma}; nothing drawn",
            hint="encode with a smaller scale, so that sigma in integer units fits",
        )
    table = build_strips(sigma)
    draws = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        accepted = propose(table, min(_BLOCK, count - filled + 64), randomness)[: count - filled]
        draws[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return draws
