"""What training draws, from the seed of one participant in one round: public, and the same on any machine."""

import hashlib

import numpy as np
from jaxtyping import Int


def shuffled(rows: Int[np.ndarray, " rows"], seed: bytes, epoch: int) -> Int[np.ndarray, " rows"]:
    """Rows in the order of one epoch.

    Sorted by words of SHAKE-256: for few rows several times faster than to make a generator, and no matter of
    numpy's version.
    """
    words = hashlib.shake_256(seed + epoch.to_bytes(4, "little")).digest(8 * len(rows))
    return rows.take(np.frombuffer(words, dtype="<u8").argsort(kind="stable"))


def layer_seed(seed: bytes) -> int:
    """Of layers that draw, such as dropout."""
    return int.from_bytes(hashlib.sha256(seed + b"layers").digest()[:7], "little")


def make_rng(seed: bytes) -> np.random.Generator:
    """For code of others that asks for a generator."""
    return np.random.default_rng(int.from_bytes(seed, "little"))
