"""A workload through the public interface of Apple's pfl-research; `--workers 2` is its own distributed mode.

At its best: client data are tensors before training starts, and clients come from its cheapest sampler.
"""

import os
import subprocess
import sys
import time
import types
from functools import partial
from typing import Any

import numpy as np
import torch
from laps import Laps
from torch.nn import functional
from workloads import MAX_NORM, SEED, torch_model

laps = Laps()
asked, workload = laps.asked, laps.workload
others = []
if asked.workers > 1 and "PFL_WORKER_RANK" not in os.environ:
    port = 29600 + os.getpid() % 3000
    os.environ["PFL_WORKER_ADDRESSES"] = ",".join(f"localhost:{port + rank}" for rank in range(asked.workers))
    for rank in range(1, asked.workers):
        environment = {**os.environ, "PFL_WORKER_RANK": str(rank)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        others.append(subprocess.Popen([sys.executable, *sys.argv], env=environment, **quiet))
    os.environ["PFL_WORKER_RANK"] = "0"

# Its workers are told by the environment, before it is imported.
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.callback.central_evaluation import CentralEvaluationCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.sampling import get_user_sampler  # noqa: E402
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from pfl.privacy.gaussian_mechanism import GaussianMechanism  # noqa: E402
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism  # noqa: E402

torch.set_num_threads(1)
np.random.seed(SEED)  # noqa: NPY002, what pfl draws from
data = laps.load()
net = torch_model(workload)
round_number = 1


def loss(self: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **_: Any) -> torch.Tensor:
    return functional.cross_entropy(self(x), y)


def metrics(self: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **_: Any) -> dict[str, Weighted]:
    with torch.no_grad():
        scores = self(x)
        right = float((scores.argmax(1) == y).sum())
        return {
            "loss": Weighted(float(functional.cross_entropy(scores, y)) * len(y), len(y)),
            "accuracy": Weighted(right, len(y)),
        }


net.loss, net.metrics = types.MethodType(loss, net), types.MethodType(metrics, net)
tensors = {number: [torch.from_numpy(part) for part in data.client(number)] for number in range(asked.clients)}


def records(number: int) -> Dataset:
    if asked.exact:
        return Dataset([torch.from_numpy(part) for part in data.shuffled(number, round_number)], user_id=number)
    return Dataset(tensors[number], user_id=number)


class Evaluation(CentralEvaluationCallback):
    """Its own evaluation on the test records, timed."""

    def after_central_iteration(self, *rest: Any, **named: Any) -> tuple[bool, Metrics]:
        """Measure the model after a round."""
        start = time.perf_counter()
        result = super().after_central_iteration(*rest, **named)
        laps.measuring.append(time.perf_counter() - start)
        return result


class Rounds(TrainingProcessCallback):
    """Counts rounds and takes the time."""

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """A round has ended."""
        global round_number  # noqa: PLW0603
        round_number += 1
        laps.lap()
        return False, Metrics()


users = FederatedDataset(records, get_user_sampler("minimize_reuse", list(tensors)))
noise = CentrallyAppliedPrivacyMechanism(GaussianMechanism(MAX_NORM, 0.0 if asked.exact else 0.5))
evaluation = NNEvalHyperParams(local_batch_size=workload.piece)
test = Dataset([torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)])
FederatedAveraging().run(
    backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=[noise]),
    model=PyTorchModel(net, partial(torch.optim.SGD), torch.optim.SGD(net.parameters(), lr=1.0)),
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=asked.rounds,
        evaluation_frequency=10**9,
        train_cohort_size=asked.cohort,
        val_cohort_size=None,
    ),
    model_train_params=NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=workload.rate, local_batch_size=workload.batch
    ),
    model_eval_params=evaluation,
    callbacks=[Evaluation(test, evaluation), Rounds()],
    send_metrics_to_platform=False,
)
laps.finish([value.detach().numpy() for value in net.parameters()])
for other in others:
    other.wait()
