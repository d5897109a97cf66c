"""Shamir's sharing of 32 secret bytes: any `threshold` shares give them back, fewer say nothing.

Over the integers modulo the prime 2^256 + 297, so that every 32-byte secret is an element; a share is
33 bytes. The holder's number x is not in the share: both sides know it.

*Trust:* shares are secrets; a holder's share is checked against its dealer's commitment before it comes here.
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence

from hubbub.errors import RoundError

PRIME = 2**256 + 297
SHARE_BYTES = 33
COEFFICIENT_BYTES = 48
"""Random bytes per coefficient: reduced modulo the prime they are uniform up to 2^-127."""


def split(secret: bytes, holders: Sequence[int], coefficients: bytes) -> list[bytes]:
    """Share a secret among holders.

    Args:
        secret: 32 bytes.
        holders: Their numbers x, each from 1 on, no two alike.
        coefficients: Fresh random bytes, `COEFFICIENT_BYTES` for each coefficient above the constant: their
            number makes the threshold.

    Source:
        Shamir 1979, doi:10.1145/359168.359176.
    """
    polynomial = [
        int.from_bytes(coefficients[at : at + COEFFICIENT_BYTES]) % PRIME
        for at in range(0, len(coefficients), COEFFICIENT_BYTES)
    ]
    polynomial.append(int.from_bytes(secret))
    return [_evaluate(polynomial, x).to_bytes(SHARE_BYTES) for x in holders]


def _evaluate(polynomial: Sequence[int], x: int) -> int:
    """Horner's rule, constant last; x is small, so the products grow slowly and are reduced now and then."""
    value = 0
    for number, coefficient in enumerate(polynomial):
        value = value * x + coefficient
        if number % 16 == 15:  # noqa: PLR2004, any number does
            value %= PRIME
    return value % PRIME


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from shares by holder's number: exactly as many as the threshold.

    Raises:
        RoundError: A share is no element of the field, or the secret has more than 32 bytes: a dealer or a
            holder lied.
    """
    holders = tuple(sorted(shares))
    elements = [_element(shares[x]) for x in holders]
    total = sum(map(operator.mul, _lagrange(holders), elements)) % PRIME
    if total >> 256:
        raise RoundError(
            "shares, must give a secret of 32 bytes, found a larger number; nothing revealed",
            hint="the dealer of these shares did not run an unmodified hubbub",
        )
    return total.to_bytes(32)


def is_share(share: bytes) -> bool:
    """Whether these bytes are an element of the field, written in the one way."""
    return len(share) == SHARE_BYTES and int.from_bytes(share) < PRIME


def _element(share: bytes) -> int:
    element = int.from_bytes(share)
    if element >= PRIME or len(share) != SHARE_BYTES:
        raise RoundError(
            f"share, must be a number of {SHARE_BYTES} bytes below the prime, found another; nothing revealed",
            hint="the dealer of this share did not run an unmodified hubbub",
        )
    return element


@functools.lru_cache(maxsize=256)
def _lagrange(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Weights that interpolate at zero, with one inversion for all of them."""
    everybody = math.prod(holders)
    denominators = [x * math.prod([other - x for other in holders if other != x]) % PRIME for x in holders]
    before = [1]
    for denominator in denominators:
        before.append(before[-1] * denominator % PRIME)
    inverse = pow(before.pop(), -1, PRIME) * everybody % PRIME
    weights: list[int] = []
    for denominator in reversed(denominators):
        weights.append(before.pop() * inverse % PRIME)
        inverse = inverse * denominator % PRIME
    return tuple(reversed(weights))
