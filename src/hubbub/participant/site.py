"""One participant's side of a round: bytes in, bytes out, no clock, no socket, no file.

Rules it enforces, in this order:

1. a message belongs to this run and this plan;
2. (round, attempt) only ever grows, so no noise and no sample is asked for twice;
3. the charge for (run, round, attempt) is durable *before* the contribution exists;
4. what is sent is clipped, encoded and, where noise is local, noised; nothing else leaves.

What it does never depends on its records: no slot, an empty batch and a NaN all end in a contribution of
the same length.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64

from hubbub.errors import RoundError
from hubbub.local.learner import Learner
from hubbub.messages import (
    Contribution,
    RoundOpened,
    decode_message,
    encode_message,
    pack_values,
    unpack_parameters,
)
from hubbub.planning import Plan
from hubbub.randomness import Randomness
from hubbub.study import Slots
from hubbub.study.config import Settings

Charge = Callable[[int, int], None]


class Participant:
    """One site in one run.

    Args:
        name: The participant's name.
        run: The run it has joined.
        settings: The approved settings.
        plan: The approved plan.
        slots: Its records.
        randomness: Of its secret sample and its noise.
        charge: Called with (round, attempt); returns once that attempt is durably charged, raises to refuse.
    """

    def __init__(
        self,
        name: str,
        run: str,
        *,
        settings: Settings,
        plan: Plan,
        slots: Slots,
        randomness: Randomness,
        charge: Charge,
    ) -> None:
        self.name = name
        self.run = run
        self._settings = settings
        self._plan = plan
        self._plan_hash = plan.hash
        self._slots = slots
        self._randomness = randomness
        self._charge = charge
        self._mark = (0, 0)

    def receive(self, data: bytes, learner: Learner) -> bytes:
        """Answer one `RoundOpened` with one `Contribution`.

        Args:
            data: The message.
            learner: Any learner of this study; it holds no state between rounds.

        Raises:
            RoundError: The message is for another run or plan, or asks again for an answered attempt.
            BudgetError: The ledger does not admit this attempt.
        """
        opened = decode_message(data)
        if not isinstance(opened, RoundOpened) or (opened.run, opened.plan_hash) != (
            self.run,
            self._plan_hash,
        ):
            raise RoundError(
                f"{self.name}, must be asked under the run and plan it joined, found another's; nothing sent",
                hint="both sides must run the same approved study",
            )
        attempt = (opened.round_number, opened.attempt)
        if attempt <= self._mark or opened.attempt < 1 or opened.round_number > self._plan.rounds:
            raise RoundError(
                f"{self.name}, must be asked for each attempt once and in order, found round {attempt[0]} "
                f"attempt {attempt[1]} after {self._mark}; nothing sent, no budget spent",
                hint="a retry is a new attempt",
            )
        parameters = unpack_parameters(opened.parameters, self._plan.mechanism.dimension)
        self._mark = attempt
        self._charge(*attempt)
        values = self._plan.mechanism.send(self._train(parameters, opened.round_number, learner), self._randomness)
        return encode_message(
            Contribution(
                run=self.run,
                plan_hash=self._plan_hash,
                round_number=opened.round_number,
                attempt=opened.attempt,
                participant=self.name,
                values=pack_values(values),
            )
        )

    def _train(
        self, parameters: Float32[np.ndarray, " params"], round_number: int, learner: Learner
    ) -> Int64[np.ndarray, " params"]:
        mechanism = self._plan.mechanism
        if mechanism.noises_steps:
            return self._private_steps(parameters, learner)
        if mechanism.unit == "example":
            return self._gradient_sum(parameters, learner)
        rng = np.random.default_rng(self._public_seed(round_number))
        with np.errstate(all="ignore"):
            update = learner.update(parameters, self._slots, self._settings.training, rng)
        return mechanism.encode_update(mechanism.clip(update))

    def _gradient_sum(
        self, parameters: Float32[np.ndarray, " params"], learner: Learner
    ) -> Int64[np.ndarray, " params"]:
        """Sum of clipped gradients over a fresh secret sample, rounded once per microbatch."""
        mechanism = self._plan.mechanism
        drawn = mechanism.examples.select(len(self._slots), self._randomness)
        total = np.zeros(mechanism.dimension, dtype=np.int64)
        for microbatch in learner.clipped_sums(parameters, self._slots, drawn, mechanism):
            total += mechanism.encode_sum(microbatch)
        return total

    def _private_steps(
        self, parameters: Float32[np.ndarray, " params"], learner: Learner
    ) -> Int64[np.ndarray, " params"]:
        """Local DP-SGD: every step has its own sample and its own noise, so the update is released already."""
        mechanism, training = self._plan.mechanism, self._settings.training
        expected = mechanism.scale * mechanism.examples.sampling_probability * len(self._slots)
        weights = parameters
        for _ in range(mechanism.steps):
            noised = mechanism.noised(self._gradient_sum(weights, learner), self._randomness)
            weights = (weights - training.learning_rate * noised / expected).astype(np.float32)
        return mechanism.encode_released(weights.astype(np.float64) - parameters)

    def _public_seed(self, round_number: int) -> list[int]:
        """Seed of the order of local batches: inside one client, so not a matter of its privacy."""
        digest = hashlib.sha256(f"{self._settings.study.seed}/{self.name}/{round_number}".encode()).digest()
        return list(np.frombuffer(digest, dtype="<u4").tolist())
