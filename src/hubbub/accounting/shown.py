"""Epsilons as people read them: what was spent is never shown smaller than it is, what is left never larger.

*Trust:* a number that is rounded the other way is a promise that nobody computed.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def at_least(epsilon: float, places: int = 4) -> str:
    """A cost, rounded up.

    Guarantees:
        `float(at_least(epsilon)) >= epsilon`.

    >>> at_least(2.90001), at_least(2.9), at_least(math.inf)
    ('2.9001', '2.9000', 'inf')
    """
    return _rounded(epsilon, places, ROUND_CEILING)


def at_most(epsilon: float, places: int = 4) -> str:
    """What may still be spent, rounded down.

    Guarantees:
        `float(at_most(epsilon)) <= epsilon`.

    >>> at_most(0.14859), at_most(3.0)
    ('0.1485', '3.0000')
    """
    return _rounded(epsilon, places, ROUND_FLOOR)


def _rounded(epsilon: float, places: int, way: str) -> str:
    """The shortest decimal that is this float, and no other, rounded one way."""
    if not math.isfinite(epsilon):
        return f"{epsilon}"
    return f"{Decimal(repr(float(epsilon))).quantize(Decimal(1).scaleb(-places), way):f}"
