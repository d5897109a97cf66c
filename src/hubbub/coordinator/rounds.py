"""Rounds as a state machine: `open` asks, `receive` adds up, `close` releases and moves the model.

No clock, no socket, no file: whoever drives it decides when a deadline has passed and calls `close`. A
round with too few contributions fails by name and is tried again as a new attempt, with a fresh cohort,
fresh samples and fresh noise, as often as the plan pays for.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from hubbub.coordinator.step import ServerStep
from hubbub.errors import RoundError
from hubbub.events import RoundClosed, RoundFailed
from hubbub.messages import (
    Contribution,
    RoundOpened,
    decode_message,
    encode_message,
    pack_parameters,
    unpack_values,
)
from hubbub.planning import Plan
from hubbub.randomness import Randomness
from hubbub.study.config import Settings


class Coordinator:
    """One run, round after round.

    Args:
        run: The run's name.
        settings: The approved settings.
        plan: The approved plan.
        parameters: The initial model.
        randomness: Of secret cohorts and of server noise.
    """

    def __init__(
        self,
        run: str,
        *,
        settings: Settings,
        plan: Plan,
        parameters: Float32[np.ndarray, " params"],
        randomness: Randomness,
    ) -> None:
        self.run = run
        self.parameters = parameters
        self.round_number = 1
        self.attempt = 0
        self._failures = 0
        self._plan = plan
        self._plan_hash = plan.hash
        self._step = ServerStep(plan, settings.training)
        self._randomness = randomness
        self._waiting: set[str] = set()
        self._received = 0
        self._total = np.zeros(0, dtype=np.uint32)

    @property
    def is_finished(self) -> bool:
        """Whether every round of the plan is closed."""
        return self.round_number > self._plan.rounds

    def open(self, online: Sequence[str]) -> dict[str, bytes]:
        """Start the next attempt: draw a cohort and ask each of its members.

        Args:
            online: Members of the roster that can be asked. The minimum is tested on this public list,
                before the secret draw: a test after it would tell how many were drawn.

        Returns:
            One message per member of the cohort.

        Raises:
            RoundError: Too few are online (nothing asked), or the plan's retries are used up.
        """
        if len(online) < self._plan.minimum:
            raise RoundError(
                f"round {self.round_number}, needs {self._plan.minimum} participants online, found {len(online)}; "
                "nothing asked, no budget spent",
                hint="wait for more participants, or plan with a smaller cohort.minimum",
            )
        if self._failures > self._plan.retries:
            raise RoundError(
                f"round {self.round_number}, may be tried again {self._plan.retries} times in a run, "
                f"found {self._failures} failed attempts; nothing asked",
                hint="plan with more privacy.retries",
            )
        self.attempt += 1
        cohort = self._plan.mechanism.participants.select(online, self._randomness)
        self._waiting = set(cohort)
        self._received = 0
        self._total = np.zeros(self._plan.mechanism.dimension, dtype=np.uint32)
        message = encode_message(
            RoundOpened(
                run=self.run,
                plan_hash=self._plan_hash,
                round_number=self.round_number,
                attempt=self.attempt,
                parameters=pack_parameters(self.parameters),
            )
        )
        return dict.fromkeys(cohort, message)

    def receive(self, data: bytes) -> None:
        """Add one contribution to the sum.

        Raises:
            RoundError: Not an answer to what was asked, or a second one; nothing was added.
        """
        message = decode_message(data)
        asked = (self.run, self._plan_hash, self.round_number, self.attempt)
        if not isinstance(message, Contribution) or asked != (
            message.run,
            message.plan_hash,
            message.round_number,
            message.attempt,
        ):
            raise RoundError(
                f"round {self.round_number}, takes answers to attempt {self.attempt}, found another; nothing added",
                hint="a late answer is dropped, its attempt stays charged",
            )
        if message.participant not in self._waiting:
            raise RoundError(
                f"round {self.round_number}, takes one answer from each member of its cohort, found another from "
                f"{message.participant!r}; nothing added",
                hint="an answer is sent once",
            )
        self._total += unpack_values(message.values, self._plan.mechanism.dimension)
        self._waiting.remove(message.participant)
        self._received += 1

    def close(self) -> RoundClosed | RoundFailed:
        """End the attempt: release the sum and move the model, or fail and leave the model as it was.

        Everything asked and not received by now has dropped out.
        """
        mechanism = self._plan.mechanism
        is_secret = mechanism.participants.is_secret
        if not is_secret and self._received < self._plan.minimum:
            self._failures += 1
            return RoundFailed(
                run=self.run,
                round_number=self.round_number,
                attempt=self.attempt,
                reason="too few contributions",
            )
        self.parameters, norm = self._step.move(self.parameters, mechanism.release(self._total, self._randomness))
        closed = RoundClosed(
            run=self.run,
            round_number=self.round_number,
            attempt=self.attempt,
            participants=None if is_secret else self._received,
            step_norm=norm,
        )
        self.round_number += 1
        self.attempt = 0
        return closed
