"""Integer noise accounted as Gaussian noise: what may be claimed, and what it costs in addition.

A discrete Gaussian of parameter sigma is, up to a factor ``e^omega`` per coordinate that no float can
see, a randomised rounding of a continuous Gaussian of variance ``sigma^2 - r^2``. So privacy is
accounted at ``z_eff = sqrt(sigma^2 - r^2) / sensitivity`` and the result (epsilon, delta) becomes
(epsilon + 2H, e^H delta). The proof is docs/proofs/discrete-gaussian.md.

*Trust:* `effective_noise_multiplier` is the only number that accounting learns about the noise; one that
is too large is a false claim, so both roundings here are exact integer arithmetic.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from hubbub.errors import InputError

SMOOTHING = 2
MIN_SIGMA = 16
MIN_SHARE = 4
_DECIMALS = 10**6


def _up(value: float) -> float:
    """Return a float above everything that rounds to `value` after the few operations used here."""
    return math.nextafter(value * (1 + 1e-12), math.inf)


def _theta(r: float) -> float:
    """Bound ``2 sum_{m>=1} exp(-2 pi^2 r^2 m^2)``, how far a sum of Gaussians over Z strays from 1."""
    if not r >= 0.5:  # noqa: PLR2004 - below it the constant 2.01 and the domain of atanh need care
        raise InputError(f"smoothing, must be at least 0.5, found {r!r}", hint="use the default of 2")
    return 2.01 * math.exp(-2 * math.pi**2 * r**2)


def log_ratio_bound(r: float = SMOOTHING) -> float:
    """Bound omega: how far the discrete Gaussian and the rounded Gaussian differ in one coordinate.

    ``omega = log((1 + theta) / (1 - theta))``; 2.1e-34 at r = 2.

    Guarantees:
        For every sigma > r, integer shift and integer k, ``|log P(k) / N(k)| <= omega``; rounded up.

    Source:
        docs/proofs/discrete-gaussian.md, Theorem 1.
    """
    return _up(2 * math.atanh(_theta(r)))


def share_bound(sigmas: Sequence[float]) -> float:
    """Bound tau: how far a sum of discrete Gaussians is from the one of the summed variance.

    Args:
        sigmas: Parameter of each share, in the order in which they are thought to be added.

    Guarantees:
        For every integer k, the logarithm of the ratio of the two probabilities of k is at most tau in
        absolute value; rounded up.

    Source:
        docs/proofs/discrete-gaussian.md, Theorem 3; Kairouz, Liu, Steinke 2021, arXiv:2102.06387,
        Corollary 12 for equal shares, 10 sum_{k<n} exp(-2 pi^2 sigma^2 k/(k+1)).
    """
    if not all(sigma >= 0.5 for sigma in sigmas):  # noqa: PLR2004 - the domain of Theorem 3
        raise InputError(f"share, sigma must be at least 0.5, found {min(sigmas)!r}", hint="raise the scale")
    variance, tau = 0.0, 0.0
    for sigma in sigmas:
        if variance:
            merged = 1 / (1 / variance + 1 / sigma**2)
            tau += 10 * math.exp(-2 * math.pi**2 * merged * (1 - 1e-12))
        variance += sigma**2
    return _up(tau) if len(sigmas) > 1 else 0.0


def inflation(dimension: int, releases: int, *, shares: Sequence[int] = ()) -> float:
    """Return H: an (epsilon, delta) of the Gaussian schedule holds as (epsilon + 2H, e^H delta).

    Args:
        dimension: Coordinates of one release, private metrics included.
        releases: Noised sums that are ever revealed, retries included.
        shares: Sigma of each honest share that makes up the accounted noise; empty if one party
            draws it.

    Guarantees:
        Rounded up. 2H is below 1e-24 for 10^6 coordinates and 1000 releases.

    Raises:
        InputError: A share below `MIN_SHARE`, outside of what the theorem is claimed for.
    """
    if any(share < MIN_SHARE for share in shares):
        raise InputError(
            f"noise share, sigma must be at least {MIN_SHARE}, found {min(shares)!r}",
            hint="encode at a larger scale, or plan for a smaller epsilon",
        )
    return _up(dimension * releases * (log_ratio_bound() + share_bound(shares)))


def _check_sigma(sigma: int) -> int:
    if sigma < MIN_SIGMA:
        raise InputError(
            f"integer noise, sigma must be at least {MIN_SIGMA}, found {sigma!r}",
            hint="encode at a larger scale, or plan for a smaller epsilon",
        )
    return sigma


def _positive(value: float, where: str) -> Fraction:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{where}, must be positive and finite, found {value!r}", hint="check the plan")
    return Fraction(value)


@lru_cache(maxsize=64)
def effective_noise_multiplier(sigma: int, sensitivity: float, *, shares: int = 1) -> float:
    """Return z_eff = sqrt(shares sigma^2 - r^2) / sensitivity with six decimals, rounded down; r is `SMOOTHING`.

    Args:
        sigma: Parameter of each discrete Gaussian, an integer.
        sensitivity: L2 sensitivity of the *integer* query.
        shares: How many such Gaussians, drawn independently, the noise holds at least.

    Guarantees:
        The float that is returned, taken exactly, is at most z_eff.

    Raises:
        InputError: Sigma below `MIN_SIGMA`.
    """
    square = Fraction(shares * _check_sigma(sigma) ** 2 - SMOOTHING**2) / _positive(sensitivity, "sensitivity") ** 2
    steps = math.isqrt(math.floor(square * _DECIMALS**2))
    below = math.nextafter(steps / _DECIMALS, 0)  # where floats are further apart than the decimals
    candidates = ((steps + 1) / _DECIMALS, steps / _DECIMALS, below)
    return next(z for z in candidates if Fraction(z) ** 2 <= square)


def integer_sigma(noise_multiplier: float, sensitivity: float) -> int:
    """Return the smallest integer sigma with ``sqrt(sigma^2 - r^2) / sensitivity >= noise_multiplier``.

    Guarantees:
        The inequality holds exactly. For a noise multiplier of six decimals,
        ``effective_noise_multiplier(integer_sigma(z, s), s) >= z``.

    Raises:
        InputError: That sigma is below `MIN_SIGMA`: the scale of the integers is too coarse.
    """
    factor = _positive(noise_multiplier, "noise multiplier") * _positive(sensitivity, "sensitivity")
    return _check_sigma(math.isqrt(math.ceil(factor**2 + SMOOTHING**2) - 1) + 1)
