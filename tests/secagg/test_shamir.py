"""Threshold shares give the secret back, fewer do not, and lies are refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import RoundError
from hubbub.secagg import shamir


def test_the_prime_is_prime():
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 60):
        power = pow(base, odd, shamir.PRIME)
        assert power in (1, shamir.PRIME - 1) or any(
            pow(base, odd << up, shamir.PRIME) == shamir.PRIME - 1 for up in range(1, twos)
        )


@given(data=st.data())
def test_any_threshold_shares_give_the_secret_back(data):
    secret = data.draw(st.binary(min_size=32, max_size=32))
    holders = data.draw(st.lists(st.integers(1, 1000), min_size=2, max_size=40, unique=True))
    threshold = data.draw(st.integers(2, len(holders)))
    random = data.draw(st.randoms(use_true_random=False))
    size = shamir.COEFFICIENT_BYTES * (threshold - 1)
    shares = dict(zip(holders, shamir.split(secret, holders, random.randbytes(size)), strict=True))
    chosen = data.draw(st.permutations(holders))
    assert shamir.combine({x: shares[x] for x in chosen[:threshold]}) == secret


def test_fewer_shares_than_the_threshold_give_another_secret():
    secret, random = b"\x2a" * 32, bytes(range(96)) + bytes(range(96, 144))
    shares = dict(zip(range(1, 6), shamir.split(secret, range(1, 6), random), strict=True))
    assert shamir.combine({x: shares[x] for x in (1, 2, 4, 5)}) == secret
    for some in ((1, 2, 3), (2, 4, 5), (1, 5), (3,)):
        total = sum(int.from_bytes(shares[x]) * weight for x, weight in zip(some, shamir._lagrange(some), strict=True))
        assert total % shamir.PRIME != int.from_bytes(secret)


def test_a_polynomial_is_evaluated_as_the_textbook_says():
    coefficients = [(7**number).to_bytes(48) for number in range(40)]
    (share,) = shamir.split(bytes(31) + b"\x05", [12], b"".join(coefficients))
    expected = 5 + sum(7**number * 12 ** (40 - number) for number in range(40))
    assert int.from_bytes(share) == expected % shamir.PRIME


@pytest.mark.parametrize("share", [shamir.PRIME.to_bytes(33), b"\xff" * 33, bytes(32), b""])
def test_what_is_no_element_of_the_field_is_refused(share):
    assert not shamir.is_share(share)
    with pytest.raises(RoundError, match="share, must be a number of 33 bytes below the prime, found another"):
        shamir.combine({1: share, 2: bytes(33)})


def test_a_secret_of_more_than_32_bytes_is_refused():
    largest = (shamir.PRIME - 1).to_bytes(33)
    with pytest.raises(RoundError, match="must give a secret of 32 bytes, found a larger number"):
        shamir.combine({1: largest, 2: largest})
