"""What a participant makes of its records: per attempt one vector, clipped, encoded, and noised where it owes noise.

Apart from messages and marks (`site.py`), because this half is the work: where everybody is in one process, other
processes do it for many participants at once. What comes out does not depend on who did it, or beside whom.

*Trust:* whoever runs this sees the records; with server noise, whoever gets a vector sees one participant's update.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int64, UInt32

from hubbub.errors import CodeError
from hubbub.local.learner import Learner
from hubbub.messages import unpack_parameters
from hubbub.planning import Plan
from hubbub.randomness import Randomness
from hubbub.study import Slots
from hubbub.study.config import Settings

_site_log = logging.getLogger("hubbub.site")
"""For the data owner's eyes: what it says may depend on records, and stays at the site."""


class Work(NamedTuple):
    """What an attempt asks of records.

    Args:
        model: d little-endian float32, found finite.
        round_number: The round.
        attempt: The attempt at it.
    """

    model: bytes | memoryview
    round_number: int
    attempt: int


class Records:
    """One participant's records.

    Args:
        name: The participant's name.
        settings: The approved settings.
        plan: The approved plan.
        slots: The records.
        randomness: Of its secret samples and its noise.
    """

    def __init__(self, name: str, *, settings: Settings, plan: Plan, slots: Slots, randomness: Randomness) -> None:
        self.name = name
        self.slots = slots
        self._settings = settings
        self._mechanism = plan.mechanism
        self._randomness = randomness

    def vector_of(
        self, update: Float32[np.ndarray, " params"] | CodeError, work: Work
    ) -> UInt32[np.ndarray, " length"]:
        """What is sent of an update that training gave; of training that failed, zeros.

        An abort would tell the others something about these records, so only this site is told.
        """
        mechanism = self._mechanism
        if isinstance(update, CodeError):
            _site_log.warning("%s trained nothing in round %d: %s", self.name, work.round_number, update.message)
            update = np.zeros(mechanism.dimension, dtype=np.float32)
        weight = self.slots.real.size if mechanism.largest_weight else 0
        values = mechanism.weigh(mechanism.encode_update(update), weight)
        return mechanism.send(values, self._source(work))

    def vector_of_gradients(self, work: Work, learner: Learner) -> UInt32[np.ndarray, " length"]:
        """What is sent of clipped gradients: their sum over a fresh sample, or what local steps made of them."""
        parameters, source = unpack_parameters(work.model, self._mechanism.dimension), self._source(work)
        make = self._private_steps if self._mechanism.noises_steps else self._gradient_sum
        return self._mechanism.send(make(parameters, learner, source), source)

    def public_seed(self, round_number: int) -> bytes:
        """Seed of the order of local batches: inside one client, so not a matter of its privacy."""
        return hashlib.sha256(f"{self._settings.study.seed}/{self.name}/{round_number}".encode()).digest()

    def _source(self, work: Work) -> Randomness:
        return self._randomness.derive(self.name, work.round_number, work.attempt)

    def _gradient_sum(
        self, parameters: Float32[np.ndarray, " params"], learner: Learner, source: Randomness
    ) -> Int64[np.ndarray, " params"]:
        """Sum of clipped gradients over a fresh secret sample, rounded once."""
        mechanism = self._mechanism
        drawn = mechanism.examples.select(len(self.slots), source)
        return mechanism.encode_sum(learner.clipped_sums(parameters, self.slots, drawn, mechanism))

    def _private_steps(
        self, parameters: Float32[np.ndarray, " params"], learner: Learner, source: Randomness
    ) -> Int[np.ndarray, " params"]:
        """Local DP-SGD: every step has its own sample and its own noise, so the update is released already."""
        mechanism, training = self._mechanism, self._settings.training
        expected = mechanism.scale * mechanism.examples.sampling_probability * len(self.slots)
        weights = parameters
        for _ in range(mechanism.steps):
            noised = mechanism.noised(self._gradient_sum(weights, learner, source), source)
            weights = (weights - training.learning_rate * noised / expected).astype(np.float32)
        return mechanism.encode_released(weights.astype(np.float64) - parameters)


def make_vectors(
    records: Sequence[Records], work: Work, learner: Learner, settings: Settings
) -> Iterator[UInt32[np.ndarray, " length"]]:
    """The vectors of several participants for one attempt, in order.

    Guarantees:
        Each is what it would be alone.
    """
    if settings.privacy.unit == "example":
        for one in records:
            yield one.vector_of_gradients(work, learner)
        return
    parameters = unpack_parameters(work.model, learner.dimension)
    seeds = [one.public_seed(work.round_number) for one in records]
    updates = learner.updates(parameters, [one.slots for one in records], settings.training, seeds)
    for one, update in zip(records, updates, strict=True):
        yield one.vector_of(update, work)
