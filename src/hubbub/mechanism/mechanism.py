"""One object makes the guarantee: `Mechanism` clips, encodes, adds noise, and says what that costs."""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Int64, UInt32

from hubbub.accounting.discrete import effective_noise_multiplier
from hubbub.cohort import ExampleSampler, ParticipantSampler
from hubbub.errors import RoundError
from hubbub.events import NOT_PRIVATE, EventDocument, repeated
from hubbub.mechanism.clip import UNIT_ROUNDOFF, clip_factors
from hubbub.mechanism.discrete_gaussian import discrete_gaussian
from hubbub.mechanism.encode import FINER, clamp, encode_sum, encode_update, from_ring, to_ring
from hubbub.randomness import Randomness

_NOISE = {
    "server": "by the coordinator",
    "distributed": "in shares, one by each participant",
    "local": "in full by each participant",
    "none": "none",
}
_PIECE = 2**20
"""Coordinates whose noise is in memory at once."""

MOST_ROWS = 256
"""Most rows of a microbatch, the one shape in which a run computes gradients; a record touches one of them only."""


class Mechanism(msgspec.Struct, frozen=True, kw_only=True):
    """The privacy mechanism of a study, all of it public.

    Args:
        unit: Who is protected: one record of one participant, or one participant.
        noise: Who adds the noise: the coordinator, each participant a share, each in full, or nobody.
        noise_source: "os" draws exact discrete Gaussians; "float-simulation" rounds numpy's floats.
        max_norm: Clipping norm C, in units of the weights.
        dimension: Number of parameters d.
        scale: Power of two s that turns weights into integers.
        largest: Largest absolute coordinate that a participant sends before noise.
        sigma: Integer standard deviation of the noise that one sender adds; 0 without noise.
        shares: Independent noises of `sigma` that every released sum holds at least: with distributed noise
            the fewest survivors less those who may collude, each of whom can subtract its own; else 1.
        largest_weight: Most that one participant's update may count for; 0: all count alike, and no weight is sent.
        steps: Noised releases per round and participant (local steps of local-dp-sgd, else 1).
        noises_steps: Whether each local step adds its own noise, so that the result is released already.
        examples: Sampler of examples.
        participants: Sampler of participants.

    Guarantees:
        `sensitivity` follows from `max_norm`, `scale` and how the unit is rounded; `dp_event` from
        `sigma`, `sensitivity` and the samplers. None can be set.
    """

    unit: Literal["example", "client"]
    noise: Literal["server", "distributed", "local", "none"]
    noise_source: Literal["os", "float-simulation"]
    max_norm: float
    dimension: int
    scale: float
    largest: int
    sigma: int
    shares: int = 1
    largest_weight: int = 0
    steps: int
    noises_steps: bool
    examples: ExampleSampler
    participants: ParticipantSampler

    @property
    def length(self) -> int:
        """Coordinates of the one vector that a participant sends: the parameters, and its weight where there is one."""
        return self.dimension + bool(self.largest_weight)

    @property
    def noise_words(self) -> str:
        """Who adds the noise, for a reader."""
        return _NOISE[self.noise]

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance between the integer sums of neighbouring data (null-replacement).

        A client's update is truncated: s C exactly. Clipped gradients are summed in float64 within a microbatch and
        rounded once: s C (1 + 4 m gamma) + sqrt(d) (1 + 2^-19), gamma = (m + 2) u for the matrix product of at most
        m = `MOST_ROWS` rows. That is also the distance between a record drawn and not drawn, on which amplification
        rests: it differs in two microbatches (docs/proofs/discrete-gaussian.md).

        Source:
            Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1 (gamma).
        """
        if self.unit == "client":
            return self.scale * self.max_norm
        return integer_sensitivity(self.max_norm, self.scale, self.dimension)

    @property
    def noise_multiplier(self) -> float:
        """z_eff = sqrt(shares sigma^2 - 4) / sensitivity, a 6-digit decimal rounded down; 0 without noise."""
        return effective_noise_multiplier(self.sigma, self.sensitivity, shares=self.shares) if self.sigma else 0.0

    @property
    def dp_event(self) -> EventDocument:
        """What one round attempt costs one unit, against whoever sees the released models and the log."""
        return self.dp_event_at(self.noise_multiplier)

    def dp_event_at(self, noise_multiplier: float) -> EventDocument:
        """What a round attempt would cost at another noise multiplier; 0 is no noise at all."""
        if not noise_multiplier:
            return NOT_PRIVATE
        release: EventDocument = {"@": "GaussianDpEvent", "noise_multiplier": noise_multiplier}
        if self.unit == "example":
            event = self.examples.dp_event(release)
        else:
            event = self.participants.dp_event(release) if self.noise == "server" else release
        return event if self.steps == 1 else repeated(event, self.steps)

    def clip_factors(self, norms: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Factors that bound each record's gradient; see `clip.clip_factors`."""
        return clip_factors(norms, self.max_norm, self.dimension)

    def encode_update(self, update: Float32[np.ndarray, " params"]) -> Int32[np.ndarray, " params"]:
        """Integers of one participant's update, clipped; see `encode.encode_update`."""
        return encode_update(update, self.scale, self.max_norm)

    def weigh(self, values: Int32[np.ndarray, " params"], weight: int) -> Int[np.ndarray, " length"]:
        """Multiply an update by its weight and send that along as one more coordinate; without weights, as it is.

        Guarantees:
            None of privacy: weights are for studies without noise. One participant counts for no more than
            `largest_weight`.

        Raises:
            RoundError: The weight is above the bound.
        """
        if not self.largest_weight:
            return values
        if not 0 <= weight <= self.largest_weight:
            raise RoundError(
                f"weight, must be 0 to {self.largest_weight}, found {weight}; nothing sent",
                hint="the bound is the largest number of slots in the plan",
            )
        return np.append(values.astype(np.int64) * weight, weight)

    def encode_sum(self, parts: Iterable[Float[np.ndarray, " params"]]) -> Int[np.ndarray, " params"]:
        """Integers of the clipped gradient sums of all microbatches together; see `encode.encode_sum`."""
        return encode_sum(parts, self.scale, largest=self.largest, size=self.dimension)

    def encode_released(self, values: Float[np.ndarray, " params"]) -> Int[np.ndarray, " params"]:
        """Integers of a vector that is already private: no sensitivity is claimed for it."""
        finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        return clamp(np.rint(finite * self.scale), self.largest)

    def noised(self, values: Int[np.ndarray, " params"], randomness: Randomness) -> Int[np.ndarray, " params"]:
        """Add what one sender owes: discrete Gaussian noise of `sigma`, or nothing without noise."""
        if not self.sigma:
            return values
        noise = self._noise(values.size, randomness)
        return np.add(noise, values, out=noise)

    def _noise(self, count: int, randomness: Randomness) -> Int64[np.ndarray, " {count}"]:
        if self.noise_source == "float-simulation":
            generator = np.random.default_rng(randomness.words(4))
            return np.rint(generator.normal(0.0, self.sigma, count)).astype(np.int64)
        return discrete_gaussian(self.sigma, count, randomness)

    def send(self, values: Int[np.ndarray, " length"], randomness: Randomness) -> UInt32[np.ndarray, " length"]:
        """What one participant sends for its integer vector: clamped, noised where it owes noise, in the ring.

        Args:
            values: Given up: what is sent takes their memory where it fits.
            randomness: Of the noise.

        Guarantees:
            With local noise what is returned is private. With distributed noise it holds one share, too little
            by itself: only a sum of at least the fewest survivors may be shown. With server noise it is exact
            and must reach nobody but the coordinator.
        """
        sent = to_ring(clamp(values, self.largest))
        if self.sigma and self.noise in {"local", "distributed"} and not self.noises_steps:
            for start in range(0, sent.size, _PIECE):
                piece = sent[start : start + _PIECE]
                piece += to_ring(self._noise(piece.size, randomness))
        return sent

    def owed(self, randomness: Randomness) -> Int64[np.ndarray, " length"] | None:
        """Noise that the coordinator owes one sum, which may not be there yet; None where it owes none."""
        return self._noise(self.length, randomness) if self.noise == "server" and self.sigma else None

    def release(
        self,
        total: UInt32[np.ndarray, " length"],
        randomness: Randomness,
        *,
        owed: Int64[np.ndarray, " length"] | None = None,
    ) -> Int[np.ndarray, " length"]:
        """The integer sum that a round releases: noised here if the coordinator owes the noise, else as it is.

        Args:
            total: What participants sent, modulo 2^32.
            randomness: Of the noise.
            owed: What `owed` drew before, for this sum and no other; given up. None: it is drawn now.
        """
        exact, noise = from_ring(total), self.owed(randomness) if owed is None else owed
        return exact if noise is None else np.add(noise, exact, out=noise)


def integer_sensitivity(max_norm: float, scale: float, dimension: int) -> float:
    """Sensitivity of sums of clipped gradients in microbatches of at most `MOST_ROWS` rows, of which two differ.

    >>> round(integer_sensitivity(1.0, 2.0**20, 31), 3)
    1048581.568
    """
    gamma = (MOST_ROWS + 2) * UNIT_ROUNDOFF
    exact = scale * max_norm * (1.0 + 4.0 * MOST_ROWS * gamma) + math.sqrt(dimension) * (1.0 + 2.0 / FINER)
    return exact * (1.0 + 8.0 * UNIT_ROUNDOFF)  # these few operations round too
