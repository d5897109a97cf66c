"""Where every secret coin comes from: an AES-256-CTR keystream, turned into exact draws.

Noise and sampling hide people only if nobody can predict or replay them, and only if their
distribution is the promised one to the last bit. So there is one source of uniform words, and every
draw made from it here is exact: rejection and lazy comparison, never a rounded float.

*Trust:* whoever learns a key can subtract the noise it made and name the records it sampled.
"""

import hashlib
import json
import os
import threading
from abc import ABC, abstractmethod
from typing import ClassVar, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import Bool, Int64, UInt64

from hubbub.errors import InputError

WORD: Final = 64
_PIECE: Final = 1 << 15  # words enciphered at a time: what a processor's second cache holds
_ZEROS: Final = bytes(8 * _PIECE)


class Keystream:
    """The AES-256-CTR keystream of one key, read as little-endian 64-bit words.

    Args:
        key: 32 bytes.
        counter: The first counter block, 16 bytes.

    Guarantees:
        Reads from several threads get disjoint stretches of the stream. Two reads get what one
        read of both lengths would get.

    Source:
        NIST SP 800-38A, section 6.5.
    """

    def __init__(self, key: bytes, counter: bytes = bytes(16)) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
        self._lock = threading.Lock()

    def read(self, count: int) -> UInt64[np.ndarray, " {count}"]:
        """Advance by `count` words and return them."""
        words = np.empty(count + 2, dtype="<u8")  # `update_into` asks for 15 bytes of room at the end
        room = words.data.cast("B")
        with self._lock:
            for start in range(0, count, _PIECE):
                size = 8 * min(_PIECE, count - start)
                self._encryptor.update_into(_ZEROS[:size], room[8 * start :])
        return words[:count].astype(np.uint64, copy=False)


class Randomness(ABC):
    """Exact draws from uniform 64-bit words; what every other module annotates with.

    Draws are independent. `name` tells a log where the words came from, never which they were.
    """

    name: ClassVar[str]
    is_apart_after_fork: ClassVar[bool] = False
    """Whether copies in forked processes never draw alike, each from what it derives."""

    @abstractmethod
    def words(self, count: int) -> UInt64[np.ndarray, " {count}"]:
        """Draw uniform 64-bit words."""

    def derive(self, *labels: str | int) -> "Randomness":
        """A source for one purpose: what it gives does not depend on who drew for another purpose before, or where.

        This one, where nobody could tell.
        """
        del labels
        return self

    def uniform_below(self, bound: int, count: int) -> Int64[np.ndarray, " {count}"]:
        """Draw integers, each uniform on 0, ..., bound - 1.

        Guarantees:
            Exact: words at or above the largest multiple of `bound` are drawn again.

        Raises:
            InputError: `bound` is not in 1..2^63.
        """
        if not 1 <= bound <= 1 << 63:
            raise InputError(
                f"uniform_below, bound must be from 1 to 2**63, this one is {bound!r}; nothing drawn",
                hint="give the number of possible outcomes, e.g. uniform_below(6, count=1)",
            )
        largest = np.uint64((1 << WORD) - (1 << WORD) % bound - 1)
        drawn = self.words(count)
        while (again := np.flatnonzero(drawn > largest)).size:
            drawn[again] = self.words(again.size)
        return (drawn % np.uint64(bound)).astype(np.int64)

    def bernoulli(self, probability: float, count: int) -> Bool[np.ndarray, " {count}"]:
        """Draw coins, each True with exactly the rational number that `probability` stores.

        Guarantees:
            Exact: a uniform real, unrolled 64 bits at a time, is compared with the finite binary
            expansion of the float64. 0.1 means 3602879701896397 / 2^55.

        Raises:
            InputError: `probability` is not in [0, 1].

        Source:
            Karney 2016, arXiv:1303.6257, section 2 (lazy comparison of uniform deviates).
        """
        if not 0 <= probability <= 1:
            raise InputError(
                f"bernoulli, probability must be from 0 to 1, this one is {probability!r}; nothing drawn",
                hint="give a fraction, e.g. bernoulli(0.25, count=1)",
            )
        if probability == 1:
            return np.ones(count, dtype=np.bool_)
        coins = np.zeros(count, dtype=np.bool_)
        undecided = np.arange(count)
        remainder, denominator = float(probability).as_integer_ratio()
        while remainder and undecided.size:
            digit, remainder = divmod(remainder << WORD, denominator)
            words = self.words(undecided.size)
            coins[undecided] = words < np.uint64(digit)
            undecided = undecided[words == np.uint64(digit)]
        return coins

    def choose(self, population: int, size: int) -> Int64[np.ndarray, " {size}"]:
        """Draw `size` distinct integers below `population`, every subset equally likely, sorted.

        Guarantees:
            Exact: the first `size` distinct values of a uniform sequence, in order of appearance;
            of more than half the population, the ones left out are drawn.

        Raises:
            InputError: `size` is not in 0..population.
        """
        if not 0 <= size <= population:
            raise InputError(
                f"choose, size must be from 0 to the population of {population!r}, this one is {size!r}; nothing drawn",
                hint=f"ask for fewer, e.g. choose({population!r}, {max(population, 0)!r})",
            )
        if 2 * size > population:
            kept = np.ones(population, dtype=np.bool_)
            kept[self.choose(population, population - size)] = False
            return np.flatnonzero(kept).astype(np.int64)
        drawn = first = np.empty(0, dtype=np.int64)
        while first.size < size:
            drawn = np.concatenate([drawn, self.uniform_below(population, size)])
            first = np.sort(np.unique(drawn, return_index=True)[1])
        return np.sort(drawn[first[:size]])

    def order(self, count: int) -> Int64[np.ndarray, " {count}"]:
        """Draw an order of 0, ..., count - 1, every one equally likely.

        Guarantees:
            Exact: that of distinct words; while two are equal, all are drawn again.
        """
        words = self.words(count)
        while np.unique(words).size < count:
            words = self.words(count)
        return np.argsort(words).astype(np.int64)


class OperatingSystemRandomness(Randomness):
    """Words nobody can predict: a keystream under a key that the operating system drew.

    The only randomness with which a claim can be certified. It takes no seed, cannot be copied
    deeply or pickled, and never repeats: a forked child draws a key of its own before its first word.
    """

    name: ClassVar[str] = "os"
    is_apart_after_fork: ClassVar[bool] = True
    _process: ClassVar[object] = object()

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._keystream = Keystream(os.urandom(32))
        self._keyed_in = OperatingSystemRandomness._process

    def words(self, count: int) -> UInt64[np.ndarray, " {count}"]:
        """Draw uniform 64-bit words that no other process and no other call gets."""
        if self._keyed_in is not OperatingSystemRandomness._process:
            self._rekey()
        return self._keystream.read(count)

    @classmethod
    def notice_fork(cls) -> None:
        """Make every stream of this process draw a new key before its next word."""
        # Not the process number: after two forks a grandchild may bear its dead grandparent's.
        # A new keystream brings a new lock: the inherited one may be held by a thread that is gone.
        cls._process = object()


# Systems without fork have nothing to register.
getattr(os, "register_at_fork", dict)(after_in_child=OperatingSystemRandomness.notice_fork)


class SeededRandomness(Randomness):
    """Words that repeat: for tests and simulation only, never where privacy is claimed.

    Whoever knows seed and labels knows every draw. A claim made with it says "injected".

    Args:
        seed: Any integer.
        labels: What the stream is for, e.g. a round number and a participant's name. Different
            labels give unrelated streams.

    Example:
        >>> SeededRandomness(7, "cohort", 1).uniform_below(6, 5)
        array([5, 4, 5, 3, 1])
    """

    name: ClassVar[str] = "injected"
    is_apart_after_fork: ClassVar[bool] = True

    def __init__(self, seed: int, *labels: str | int) -> None:
        self._labels = (seed, *labels)
        domain = json.dumps(["hubbub seeded randomness", seed, *labels])
        self._keystream = Keystream(hashlib.sha256(domain.encode()).digest())

    def words(self, count: int) -> UInt64[np.ndarray, " {count}"]:
        """Draw the next words of the stream that seed and labels fix."""
        return self._keystream.read(count)

    def derive(self, *labels: str | int) -> "SeededRandomness":
        """The stream of seed, labels, and these labels."""
        return SeededRandomness(*self._labels, *labels)
