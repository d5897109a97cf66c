"""Vectors of integers modulo 2^32, and the masks that hide them.

A mask is a keystream read as little-endian 32-bit words. Masks are added where the vector lies, a stretch
at a time, all keys on one stretch before the next: the stretch stays in the processor's cache, so masking
costs little more than the cipher.

*Trust:* none of its own: it adds what it is given.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext
from jaxtyping import UInt32

from hubbub.secagg.keys import mask_stream

CHUNK = 1 << 15
"""Words per stretch: 128 KiB."""

_STREAMS = 64  # keystreams open at a time
_ZEROS = bytes(4 * CHUNK)


def add_masks(
    values: UInt32[np.ndarray, " params"], *, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()
) -> None:
    """Add the masks of the keys `plus` and subtract those of `minus`, in place."""
    signed = [(key, np.add) for key in plus] + [(key, np.subtract) for key in minus]
    for start in range(0, len(signed), _STREAMS):
        _add_some(values, [(mask_stream(key), operation) for key, operation in signed[start : start + _STREAMS]])


def _add_some(values: UInt32[np.ndarray, " params"], streams: Sequence[tuple[CipherContext, np.ufunc]]) -> None:
    mask = np.empty(CHUNK + 4, dtype="<u4")  # `update_into` asks for 15 bytes of room at the end
    room = mask.data.cast("B")
    for start in range(0, values.size, CHUNK):
        stretch = values[start : start + CHUNK]
        zeros = _ZEROS if stretch.size == CHUNK else _ZEROS[: 4 * stretch.size]
        words = mask[: stretch.size]
        for stream, operation in streams:
            stream.update_into(zeros, room)
            operation(stretch, words, out=stretch)


def pack(values: UInt32[np.ndarray, " params"]) -> memoryview:
    """Ring elements as little-endian bytes, without a copy where the machine is little-endian."""
    return np.ascontiguousarray(values, dtype="<u4").data.cast("B")


def unpack(data: bytes | memoryview) -> UInt32[np.ndarray, " params"]:
    """Ring elements from little-endian bytes whose number is a multiple of four; read only."""
    return np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
