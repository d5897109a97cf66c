"""One participant's side of a round: bytes in, bytes out, no clock, no socket, no file.

Rules it enforces, in this order:

1. a message belongs to this run and this plan;
2. (round, attempt) is one that the plan has and only ever grows, so no noise and no sample is asked for twice; no
   more attempts are entered than the plan has, charged or not;
3. the charge for (run, round, attempt) is durable *before* the contribution exists;
4. what is sent is clipped, encoded and noised where this side owes noise; nothing else leaves;
5. where sums are masked it leaves masked, in a session that `secagg.Client` has checked.

What it does never depends on its records: no slot, an empty batch and a NaN all end in a contribution of
the same length.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt32

from hubbub.errors import CodeError, RoundError
from hubbub.local.learner import Learner
from hubbub.messages import (
    Contribution,
    RoundContinued,
    RoundOpened,
    decode_message,
    encode_message,
    pack_values,
    unpack_parameters,
)
from hubbub.planning import Plan, check_plan
from hubbub.randomness import Randomness
from hubbub.secagg import Client, Session
from hubbub.study import Slots
from hubbub.study.config import Settings

_site_log = logging.getLogger("hubbub.site")
"""For the data owner's eyes: what it says may depend on records, and stays at the site."""

Charge = Callable[[int, int], None]
OwnSession = Callable[[int, int, bytes], Session]
"""(round, attempt, model bytes) -> the session as this participant knows it."""


class Masking(NamedTuple):
    """A participant's half of secure aggregation, and what its sessions must be bound to.

    Args:
        client: Its half.
        own_session: What a session must be bound to.
        remember: Called with what it consents to, before that leaves; returns once it is durable.
    """

    client: Client
    own_session: OwnSession
    remember: Callable[[bytes], object] = bytes


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
        masking: Its half of secure aggregation, with the same `charge`; None where sums are plain.
        is_elided: Whether its owner accepts that sums are made in the clear though the plan says otherwise.
        last_mark: The last (round, attempt) that it answered in this run, before it was started again.

    Raises:
        PlanError: The plan is not what these settings allow, or its thresholds are weaker than they must be.
        RoundError: The plan needs secure aggregation, and there is no client.
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
        masking: Masking | None = None,
        is_elided: bool = False,
        last_mark: tuple[int, int] = (0, 0),
    ) -> None:
        check_plan(plan, settings)
        if not is_elided and plan.secagg != (masking.client.parameters if masking else None):
            raise RoundError(
                f"{name}, must send masked vectors as its plan says, found a client with other thresholds or none; "
                "nothing sent",
                hint="give it a client with the plan's thresholds",
            )
        self.name = name
        self.run = run
        self._settings = settings
        self._plan = plan
        self._plan_hash = plan.hash
        self._slots = slots
        self._randomness = randomness
        self._charge = charge
        self._masking = masking
        self._parameters: Float32[np.ndarray, " params"] | None = None
        self._mark = last_mark
        self._entered = max(last_mark[0] - 1, 0)

    def receive(self, data: bytes, learner: Learner) -> bytes | None:
        """Answer one message of the coordinator; None where it needs no answer.

        Args:
            data: The message.
            learner: Any learner of this study; it holds no state between rounds.

        Raises:
            RoundError: The message is for another run or plan, asks again for an answered attempt, or breaks a
                rule of secure aggregation.
            BudgetError: The ledger does not admit this attempt.
        """
        message = decode_message(data)
        is_asked = isinstance(message, RoundOpened | RoundContinued)
        if not is_asked or (message.run, message.plan_hash) != (self.run, self._plan_hash):
            raise RoundError(
                f"{self.name}, must be asked under the run and plan it joined, found another's; nothing sent",
                hint="both sides must run the same approved study",
            )
        is_opening = isinstance(message, RoundOpened)
        payload = self._open(message, learner) if is_opening else self._continue(message, learner)
        return None if payload is None else self._contribution(message, payload)

    def _open(self, opened: RoundOpened, learner: Learner) -> bytes | None:
        attempt = (opened.round_number, opened.attempt)
        self._check_planned(*attempt)
        parameters = unpack_parameters(opened.parameters, self._plan.mechanism.dimension)
        if self._masking is not None:
            own = self._masking.own_session(*attempt, opened.parameters)
            reply = self._masking.client.open(opened.payload, own)
            self._enter(attempt)
            self._parameters = parameters
            return reply
        if attempt <= self._mark:
            raise RoundError(
                f"{self.name}, must be asked for each attempt once and in order, found round {attempt[0]} "
                f"attempt {attempt[1]} after {self._mark}; nothing sent, no budget spent",
                hint="a retry is a new attempt",
            )
        self._enter(attempt)
        self._charge(*attempt)
        return pack_values(self._vector(parameters, learner))

    def _check_planned(self, round_number: int, attempt: int) -> None:
        """No more attempts than the plan has, charged or not: each is one more chance for who picks dropouts."""
        plan, is_again = self._plan, (round_number, attempt) == self._mark
        is_planned = 1 <= round_number <= plan.rounds and 1 <= attempt <= plan.retries + 1
        if not (is_planned and self._entered < plan.attempts + is_again):
            raise RoundError(
                f"{self.name}, must be asked for one of {plan.rounds} rounds and {plan.retries} retries, "
                f"found round {round_number} attempt {attempt} after {self._entered} attempts; "
                "nothing sent, no budget spent",
                hint="both sides must run the same plan",
            )

    def _enter(self, attempt: tuple[int, int]) -> None:
        """The same attempt again counts once."""
        self._entered += attempt != self._mark
        self._mark = attempt

    def _continue(self, message: RoundContinued, learner: Learner) -> bytes | None:
        if self._masking is None or self._parameters is None or (message.round_number, message.attempt) != self._mark:
            raise RoundError(
                f"{self.name}, takes later messages of the attempt it answered last, found another's; nothing sent",
                hint="a late message is dropped",
            )
        reply = self._masking.client.receive(message.payload)
        if reply is not None and self._masking.client.stage == "consented":
            self._masking.remember(reply)
        if self._masking.client.stage != "training":
            return reply
        self._masking.client.charge()
        return self._masking.client.mask(self._vector(self._parameters, learner))

    def _contribution(self, message: RoundOpened | RoundContinued, payload: bytes) -> bytes:
        return encode_message(
            Contribution(
                run=self.run,
                plan_hash=self._plan_hash,
                round_number=message.round_number,
                attempt=message.attempt,
                participant=self.name,
                payload=payload,
            )
        )

    def _vector(self, parameters: Float32[np.ndarray, " params"], learner: Learner) -> UInt32[np.ndarray, " length"]:
        """This attempt's one vector: a fresh sample, trained, clipped, encoded, with fresh noise where it is owed."""
        return self._plan.mechanism.send(self._train(parameters, self._mark[0], learner), self._randomness)

    def _train(
        self, parameters: Float32[np.ndarray, " params"], round_number: int, learner: Learner
    ) -> Int64[np.ndarray, " length"]:
        mechanism = self._plan.mechanism
        if mechanism.noises_steps:
            return self._private_steps(parameters, learner)
        if mechanism.unit == "example":
            return self._gradient_sum(parameters, learner)
        rng = np.random.default_rng(self._public_seed(round_number))
        try:
            with np.errstate(all="ignore"):
                update = learner.update(parameters, self._slots, self._settings.training, rng)
        except CodeError as error:
            # An abort would tell the others something about these records, so only this site is told.
            _site_log.warning("%s trained nothing in round %d: %s", self.name, round_number, error.message)
            update = np.zeros(mechanism.dimension)
        return mechanism.weigh(mechanism.encode_update(mechanism.clip(update)), int(self._slots.is_real.sum()))

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
