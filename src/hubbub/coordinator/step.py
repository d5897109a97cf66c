"""From a released sum to the next model. All of it is post-processing: no data is read here.

Source:
    McMahan et al. 2017, arXiv:1602.05629 (FedAvg); Hsu, Qi, Brown 2019, arXiv:1909.06335 (FedAvgM);
    Abadi et al. 2016, arXiv:1607.00133 (the dp-sgd step).
"""

import math

import numpy as np
from jaxtyping import Float, Float32, Int

from hubbub.errors import RoundError
from hubbub.planning import Plan
from hubbub.study.config import Training

_BLOCK = 1 << 14
"""Coordinates that are moved at a time, in float64: so few that they stay in the processor's cache."""


class ServerStep:
    """The server's optimiser: SGD on the released mean, with momentum.

    For dp-sgd the mean is a gradient over the *expected* batch; for the fedavg family it is the mean
    update over the expected cohort. Dividing by what was really drawn would publish its size. Only where the
    study adds no noise and weighs by examples is the sum divided by the weight that came with it.
    """

    def __init__(self, plan: Plan, training: Training) -> None:
        self._scale = plan.mechanism.scale
        self._batch = plan.expected_batch
        self._heaviest = sum(plan.slots.values()) if plan.mechanism.largest_weight else 0
        is_gradient = training.algorithm == "dp-sgd"
        self._rate = -training.learning_rate if is_gradient else training.server_learning_rate
        self._momentum = training.momentum
        self.velocity: Float[np.ndarray, " params"] | None = None
        """What momentum has gathered; None before round 1, and where there is none."""

    def move(
        self, parameters: Float32[np.ndarray, " params"], released: Int[np.ndarray, " length"]
    ) -> tuple[Float32[np.ndarray, " params"], float]:
        """Return the next parameters and the L2 norm of the step that led there.

        Args:
            parameters: The model; stays as it is.
            released: The sum; given up, since the next parameters take its memory where they fit.

        Raises:
            RoundError: The step leaves the range of float32, or the weights are none that the plan has.
        """
        total, batch = (released[:-1], self._weight(int(released[-1]))) if self._heaviest else (released, self._batch)
        moved = total.view(np.float32) if total.dtype == np.int32 else np.empty_like(parameters)
        velocity = np.empty(parameters.size) if self._momentum else None
        square, is_finite = 0.0, True
        for start in range(0, parameters.size, _BLOCK):
            at = slice(start, start + _BLOCK)
            step = total[at] / (self._scale * batch)
            if velocity is not None:
                step += 0.0 if self.velocity is None else self._momentum * self.velocity[at]
                velocity[at] = step
            step *= self._rate
            with np.errstate(over="ignore"):
                moved[at] = parameters[at] + step
                square += float(np.square(step, out=step).sum())
            is_finite = is_finite and bool(np.isfinite(moved[at]).all())
        if not is_finite:
            raise RoundError(
                "model, must stay finite, found an overflow in the server's step; the attempt stays charged",
                hint="lower training.learning_rate or training.server_learning_rate",
            )
        self.velocity = velocity
        return moved, math.sqrt(square)

    def _weight(self, weight: int) -> float:
        if not 0 <= weight <= self._heaviest:
            raise RoundError(
                f"weights, must add up to 0 to {self._heaviest} examples, found {weight}; the model stays as it was",
                hint="a participant sent more than its slots",
            )
        return float(max(weight, 1))  # of nobody's examples the sum is zero
