"""Masks are the keystream's words, added modulo 2^32, and cancel to the last bit."""

import numpy as np
import pytest

from hubbub.secagg import ring
from hubbub.secagg.keys import mask_stream


def mask_of(key, size):
    return np.frombuffer(mask_stream(key).update(bytes(4 * size)), dtype="<u4").astype(np.uint32)


@pytest.mark.parametrize("size", [1, 3, 4, ring.CHUNK - 1, ring.CHUNK, ring.CHUNK + 1, 3 * ring.CHUNK + 5])
def test_a_mask_is_one_keystream_over_the_whole_vector(size):
    values = np.random.default_rng(0).integers(0, 2**32, size, dtype=np.uint32)
    masked = values.copy()
    ring.add_masks(masked, plus=[b"p" * 32], minus=[b"m" * 32])
    np.testing.assert_array_equal(masked, values + mask_of(b"p" * 32, size) - mask_of(b"m" * 32, size))


def test_more_masks_than_open_streams_cancel():
    keys = [bytes([number]) * 32 for number in range(150)]
    values = np.arange(1000, dtype=np.uint32)
    masked = values.copy()
    ring.add_masks(masked, plus=keys)
    assert (masked != values).sum() > 990
    ring.add_masks(masked, minus=keys)
    np.testing.assert_array_equal(masked, values)


def test_the_wire_is_little_endian():
    values = np.array([1, 2**32 - 2], dtype=np.uint32)
    assert bytes(ring.pack(values)).hex() == "01000000feffffff"
    np.testing.assert_array_equal(ring.unpack(bytes(ring.pack(values))), values)
