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

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32

from hubbub.errors import RoundError
from hubbub.local.learner import Learner
from hubbub.messages import (
    Contribution,
    Message,
    RoundContinued,
    RoundOpened,
    decode_message,
    encode_message,
    pack_values,
    unpack_parameters,
)
from hubbub.participant.records import Records, Work, make_vectors
from hubbub.planning import Plan, check_plan
from hubbub.randomness import Randomness
from hubbub.secagg import Client, Session
from hubbub.study import Slots
from hubbub.study.config import Settings

Charge = Callable[[int, int], None]
OwnSession = Callable[[int, int, memoryview], Session]
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
        self.records = Records(name, settings=settings, plan=plan, slots=slots, randomness=randomness)
        self._charge = charge
        self._masking = masking
        self._model: memoryview | None = None
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
        return self.answer(decode_message(data), learner)

    def answer(self, message: Message, learner: Learner) -> bytes | None:
        """As `receive`, of a message that was read already."""
        reply = self.begin(message)
        if not isinstance(reply, Work):
            return reply
        # In one expression, so that nobody holds the update when there is a vector, nor the vector when it is sent.
        return self._contribution(self._sent(next(make_vectors([self.records], reply, learner, self._settings))))

    def begin(self, message: Message) -> bytes | Work | None:
        """Take in one message: check it, and charge what it asks for.

        Returns:
            The answer; or what must be made of the records first, for `finish`; None where it needs no answer.

        Raises:
            RoundError, BudgetError: As in `receive`.
        """
        is_asked = isinstance(message, RoundOpened | RoundContinued)
        if not is_asked or (message.run, message.plan_hash) != (self.run, self._plan_hash):
            raise RoundError(
                f"{self.name}, must be asked under the run and plan it joined, found another's; nothing sent",
                hint="both sides must run the same approved study",
            )
        reply = self._open(message) if isinstance(message, RoundOpened) else self._continue(message)
        return self._contribution(reply) if isinstance(reply, bytes) else reply

    def finish(self, vector: UInt32[np.ndarray, " length"]) -> bytes:
        """The answer that carries what was made of the records; the vector is given up."""
        return self._contribution(self._sent(vector))

    def _sent(self, vector: UInt32[np.ndarray, " length"]) -> bytes | memoryview:
        return pack_values(vector) if self._masking is None else self._masking.client.mask(vector)

    def _open(self, opened: RoundOpened) -> bytes | Work | None:
        attempt = (opened.round_number, opened.attempt)
        self._check_planned(*attempt)
        unpack_parameters(opened.parameters, self._plan.mechanism.dimension)  # refused before it costs anything
        if self._masking is not None:
            own = self._masking.own_session(*attempt, opened.parameters)
            reply = self._masking.client.open(opened.payload, own)
            self._enter(attempt)
            self._model = opened.parameters
            return reply
        if attempt <= self._mark:
            raise RoundError(
                f"{self.name}, must be asked for each attempt once and in order, found round {attempt[0]} "
                f"attempt {attempt[1]} after {self._mark}; nothing sent, no budget spent",
                hint="a retry is a new attempt",
            )
        self._enter(attempt)
        self._charge(*attempt)
        return Work(opened.parameters, *attempt)

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

    def _continue(self, message: RoundContinued) -> bytes | Work | None:
        if self._masking is None or self._model is None or (message.round_number, message.attempt) != self._mark:
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
        return Work(self._model, *self._mark)

    def _contribution(self, payload: bytes | memoryview) -> bytes:
        round_number, attempt = self._mark
        return encode_message(
            Contribution(
                run=self.run,
                plan_hash=self._plan_hash,
                round_number=round_number,
                attempt=attempt,
                participant=self.name,
                payload=memoryview(payload),
            )
        )
