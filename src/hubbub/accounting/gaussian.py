"""Plain Gaussian mechanisms in closed form: no grid, no library, no error but the last digits of a float.

Gaussian mechanisms without sampling compose to one Gaussian mechanism of sensitivity `mu` and unit
noise, and its (epsilon, delta) curve is exact.

*Trust:* a number that is too small here is a false claim; the tests compare it with 50 digits.
"""

import math
from collections.abc import Iterable

_ROUNDING = 2e-13  # relative; bounds every rounding below, the tests look for a worse one
_ASYMPTOTIC = 25.0


def mu(noise: Iterable[tuple[float, int]]) -> float:
    """Compose Gaussian mechanisms given as (noise multiplier, count): ``sqrt(sum count / z^2)``.

    Guarantees:
        Never below the exact value; infinite if a noise multiplier of 0 is used at all.

    Source:
        Dong, Roth, Su 2022, arXiv:1905.02383, Corollary 3.3.
    """
    used = [(z, count) for z, count in noise if count > 0]
    if any(z == 0 for z, _ in used):
        return math.inf
    square = math.fsum(count / z / z for z, count in used)
    return math.sqrt(square) * (1 + 1e-15)


def _erfcx(x: float) -> float:
    """Return ``exp(x^2) erfc(x)`` for x >= 0, also where erfc underflows."""
    if x < _ASYMPTOTIC:
        return math.exp(x * x) * math.erfc(x)
    t = 1 / (2 * x * x)
    series = 1 - t * (1 - 3 * t * (1 - 5 * t * (1 - 7 * t * (1 - 9 * t))))
    return series / (x * math.sqrt(math.pi))


def delta(epsilon: float, mu: float) -> float:
    """Return the delta at which a `mu`-Gaussian mechanism is (epsilon, delta)-DP, rounded up.

    With a = epsilon/mu - mu/2 and b = a + mu it is Phi(-a) - e^epsilon Phi(-b); because
    b^2 - a^2 = 2 epsilon, the second term is exp(-a^2/2) erfcx(b/sqrt 2)/2 and nothing overflows.

    Guarantees:
        At least the exact value and at most 1.

    Source:
        Balle and Wang 2018, arXiv:1805.06530, Theorem 8.
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    density = math.exp(-a * a / 2) / 2
    above = density * _erfcx(a / math.sqrt(2)) if a >= 0 else math.erfc(a / math.sqrt(2)) / 2
    below = density * _erfcx(b / math.sqrt(2))
    margin = _ROUNDING * (above + below) * (1 + min(a * a, 2000)) + math.ulp(0.0)
    return min(1.0, max(0.0, above - below) + margin)


def epsilon(delta: float, mu: float) -> float:
    """Return the smallest epsilon at which a `mu`-Gaussian mechanism is (epsilon, delta)-DP, rounded up.

    Guarantees:
        Never below the exact value; above it by less than one part in 10^9 for delta >= 1e-12.
    """
    if math.isinf(mu) or (mu > 0 and delta <= 0):
        return math.inf
    if _delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, (mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))) * (1 + 1e-9)
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _delta(middle, mu) <= delta else (middle, high)
    return high


_delta = delta
