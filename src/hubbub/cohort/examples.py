"""Samplers of a participant's slots. The draw is over all N_i slots, so its size says nothing about records."""

import math

import msgspec
import numpy as np
from jaxtyping import Int

from hubbub.events import EventDocument
from hubbub.randomness import Randomness

DEVIATIONS = 6
"""Standard deviations above the mean at which a batch is taken as full: exceeded once in 10^9 rounds."""


class EveryExample(msgspec.Struct, frozen=True, tag="everything"):
    """All slots, every round."""

    @property
    def sampling_probability(self) -> float:
        """Probability that one slot is drawn."""
        return 1.0

    def select(self, slots: int, randomness: Randomness) -> Int[np.ndarray, " drawn"]:  # noqa: ARG002
        """All slots, in order."""
        return np.arange(slots)

    def largest_batch(self, slots: int) -> int:
        """Size that a batch never exceeds."""
        return slots

    def dp_event(self, release: EventDocument) -> EventDocument:
        """What a release costs one record: all of it."""
        return release


class PoissonExamples(msgspec.Struct, frozen=True, tag="poisson"):
    """Each slot independently with one probability, drawn in secret by the participant.

    Guarantees:
        `select` is exactly what `dp_event` describes, given uniform random words. Amplifies against
        everybody outside the participant.
    """

    probability: float

    @property
    def sampling_probability(self) -> float:
        """Probability that one slot is drawn."""
        return self.probability

    def select(self, slots: int, randomness: Randomness) -> Int[np.ndarray, " drawn"]:
        """Draw a batch, in an order drawn as well; it may be empty.

        In slot order, a slot that is drawn would shift all that follow to other rows and microbatches. In a random
        one it takes another's place, which goes to the end: those two are all that differs from the batch without it.
        """
        drawn = np.flatnonzero(randomness.bernoulli(self.probability, slots))
        return drawn[randomness.order(drawn.size)]

    def largest_batch(self, slots: int) -> int:
        """Size that a batch exceeds less than once in 10^9 rounds (beyond it a sum is clamped)."""
        mean = self.probability * slots
        return min(slots, math.ceil(mean + DEVIATIONS * math.sqrt(mean) + DEVIATIONS))

    def dp_event(self, release: EventDocument) -> EventDocument:
        """What a release costs one record."""
        return {"@": "PoissonSampledDpEvent", "sampling_probability": self.probability, "event": release}


ExampleSampler = EveryExample | PoissonExamples
