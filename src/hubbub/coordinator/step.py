"""From a released sum to the next model. All of it is post-processing: no data is read here.

Source:
    McMahan et al. 2017, arXiv:1602.05629 (FedAvg); Hsu, Qi, Brown 2019, arXiv:1909.06335 (FedAvgM);
    Abadi et al. 2016, arXiv:1607.00133 (the dp-sgd step).
"""

import numpy as np
from jaxtyping import Float, Float32, Int64

from hubbub.errors import RoundError
from hubbub.planning import Plan
from hubbub.study.config import Training


class ServerStep:
    """The server's optimiser: SGD on the released mean, with momentum.

    For dp-sgd the mean is a gradient over the *expected* batch; for the fedavg family it is the mean
    update over the expected cohort. Dividing by what was really drawn would publish its size.
    """

    def __init__(self, plan: Plan, training: Training) -> None:
        self._divisor = plan.mechanism.scale * plan.expected_batch
        is_gradient = training.algorithm == "dp-sgd"
        self._rate = -training.learning_rate if is_gradient else training.server_learning_rate
        self._momentum = training.momentum
        self._velocity = np.zeros(plan.mechanism.dimension)

    def move(
        self, parameters: Float32[np.ndarray, " params"], released: Int64[np.ndarray, " params"]
    ) -> tuple[Float32[np.ndarray, " params"], float]:
        """Return the next parameters and the L2 norm of the step that led there.

        Raises:
            RoundError: The step leaves the range of float32.
        """
        mean: Float[np.ndarray, " params"] = released / self._divisor
        self._velocity = self._momentum * self._velocity + mean
        step = self._rate * self._velocity
        with np.errstate(over="ignore"):
            moved = (parameters.astype(np.float64) + step).astype(np.float32)
        if not np.isfinite(moved).all():
            raise RoundError(
                "model, must stay finite, found an overflow in the server's step; the attempt stays charged",
                hint="lower training.learning_rate or training.server_learning_rate",
            )
        return moved, float(np.linalg.norm(step))
