"""Rounds as a state machine: `open` asks, `receive` takes answers, `advance` ends a stage, `close` moves the model.

No clock, no socket, no file: whoever drives it decides when a deadline has passed and calls `advance`. A
round with too few contributions fails by name and is tried again as a new attempt, with a fresh cohort,
fresh samples and fresh noise, as often as the plan pays for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt32

from hubbub.coordinator.step import ServerStep
from hubbub.coordinator.sums import MakeSum, PlainSum, Sum
from hubbub.errors import RoundError
from hubbub.events import RoundClosed, RoundFailed
from hubbub.messages import (
    Contribution,
    RoundContinued,
    RoundOpened,
    decode_message,
    encode_message,
    pack_parameters,
)
from hubbub.planning import Plan
from hubbub.randomness import Randomness
from hubbub.study.config import Settings


@dataclass(frozen=True)
class Progress:
    """How far a run is: all that its next round rests on.

    Args:
        parameters: The model.
        velocity: What the server's momentum has gathered; None before round 1, and where there is none.
        round_number: The next round.
        attempt: Attempts at that round that were asked for already.
        failures: Attempts of the run that gave no round.
    """

    parameters: Float32[np.ndarray, " params"]
    velocity: Float[np.ndarray, " params"] | None = None
    round_number: int = 1
    attempt: int = 0
    failures: int = 0


class Coordinator:
    """One run, round after round.

    Args:
        run: The run's name.
        settings: The approved settings.
        plan: The approved plan.
        start: Where it goes on from: the initial model, or what a run that was interrupted had reached.
        randomness: Of secret cohorts and of server noise.
        make_sum: How an attempt adds up; default: in the clear, where the plan allows that.

    Raises:
        RoundError: The plan needs secure sums, and there is no way to make one.
    """

    def __init__(
        self,
        run: str,
        *,
        settings: Settings,
        plan: Plan,
        start: Progress,
        randomness: Randomness,
        make_sum: MakeSum | None = None,
    ) -> None:
        if plan.secagg is not None and make_sum is None:
            raise RoundError(
                "coordinator, must add up by secure aggregation under this plan, found sums in the clear",
                hint="give it make_sum",
            )
        self.run = run
        self.parameters = start.parameters
        self.round_number = start.round_number
        self.attempt = start.attempt
        self._failures = start.failures
        self._plan = plan
        self._plan_hash = plan.hash
        self._step = ServerStep(plan, settings.training)
        self._step.velocity = start.velocity
        self._randomness = randomness
        self._make_sum = make_sum
        self._sum = self._no_sum()
        self._owed: Int64[np.ndarray, " length"] | None = None
        self._failure: str | None = None
        self.farewell: Mapping[str, bytes] = {}
        """What tells the participants of the last attempt how it ended, where sums are secure."""
        self.receipts: Mapping[str, bytes] = {}
        """By survivor of the last attempt: what finds it in the record."""

    @property
    def is_finished(self) -> bool:
        """Whether every round of the plan is closed."""
        return self.round_number > self._plan.rounds

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(self.parameters, self._step.velocity, self.round_number, self.attempt, self._failures)

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
        self._owed, self._failure = None, None
        model = pack_parameters(self.parameters)
        self._sum = self._start_sum(online, model)
        payloads = self._sum.open()
        messages = {
            payload: encode_message(RoundOpened(**self._address, parameters=model, payload=payload))
            for payload in set(payloads.values())
        }
        return {name: messages[payload] for name, payload in payloads.items()}

    def _no_sum(self) -> Sum:
        """Of nobody: before an attempt and after it, so that no sum is released twice."""
        return PlainSum((), dimension=self._plan.mechanism.length, minimum=self._plan.minimum)

    def _start_sum(self, online: Sequence[str], model: memoryview) -> Sum:
        if self._make_sum is not None:
            return self._make_sum(self.round_number, self.attempt, model)
        sampler = self._plan.mechanism.participants
        cohort = sampler.select(online, self._randomness)
        minimum = 0 if sampler.is_secret else self._plan.minimum
        return PlainSum(cohort, dimension=self._plan.mechanism.length, minimum=minimum)

    @property
    def _attempt(self) -> dict[str, Any]:
        return {"run": self.run, "round_number": self.round_number, "attempt": self.attempt}

    @property
    def _address(self) -> dict[str, Any]:
        return {**self._attempt, "plan_hash": self._plan_hash}

    def receive(self, data: bytes | memoryview) -> None:
        """Add one contribution to the sum.

        Raises:
            RoundError: Not an answer to what was asked, or a second one; nothing was added.
        """
        message = decode_message(data)
        address = self._address
        if not isinstance(message, Contribution) or any(
            getattr(message, key) != value for key, value in address.items()
        ):
            raise RoundError(
                f"round {self.round_number}, takes answers to attempt {self.attempt}, found another; nothing added",
                hint="a late answer is dropped, its attempt stays charged",
            )
        self._sum.receive(message.participant, message.payload)

    @property
    def is_clear(self) -> bool:
        """Whether this side adds up in the clear, so that `add` may be used."""
        return isinstance(self._sum, PlainSum)

    def add(self, participants: Sequence[str], vector: UInt32[np.ndarray, " length"]) -> None:
        """Add the sum of several participants' vectors of this attempt, where they were made in one process.

        Raises:
            RoundError: The sum is secure, or one of them has not to answer; nothing was added.
        """
        if not isinstance(self._sum, PlainSum):
            raise RoundError(
                f"round {self.round_number}, must be added up by secure aggregation, found a clear sum; nothing added",
                hint="mask each vector",
            )
        self._sum.add(participants, vector)

    def advance(self) -> dict[str, bytes]:
        """End a stage: everything asked and not answered by now has dropped out.

        Returns:
            What to send next, by receiver; nothing when the attempt has ended: then `close` it.
        """
        try:
            payloads = self._sum.advance()
        except RoundError as error:
            self._failure = error.message
            return {}
        return self._continued(payloads)

    def _continued(self, payloads: Mapping[str, bytes]) -> dict[str, bytes]:
        return {
            name: encode_message(RoundContinued(**self._address, payload=payload)) for name, payload in payloads.items()
        }

    def draw_ahead(self) -> None:
        """Draw the noise that this side owes this attempt, before `close` would: while others train, say.

        Guarantees:
            What was drawn is added to this attempt's sum, once, or to none.
        """
        self._owed = self._plan.mechanism.owed(self._randomness)

    def close(self) -> RoundClosed | RoundFailed:
        """End the attempt: release the sum, once, and move the model, or fail and leave the model as it was."""
        total, survivors, ending = self._sum.total, self._sum.survivors, self._sum.end()
        self._sum = self._no_sum()
        owed, self._owed = self._owed, None
        self.farewell, self.receipts = self._continued(ending.messages), ending.receipts
        if total is None:
            self._failures += 1
            reason = self._failure or "given up before its sum was complete"
            return RoundFailed(**self._attempt, reason=reason, **ending.record)
        mechanism = self._plan.mechanism
        released = mechanism.release(total, self._randomness, owed=owed)
        self.parameters, norm = self._step.move(self.parameters, released)
        closed = RoundClosed(
            **self._attempt,
            participants=None if mechanism.participants.is_secret else len(survivors),
            step_norm=norm,
            **ending.record,
        )
        self.round_number += 1
        self.attempt = 0
        return closed
