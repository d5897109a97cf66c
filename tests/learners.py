"""Small models, and records of nobody, for the ways of local training."""

import numpy as np

from hubbub.local.torch_model import TorchModel
from hubbub.study import Code, Examples, Slots
from hubbub.study.config import Training


def learner(model, loss=None):
    nothing = Examples([], [])
    return TorchModel(
        Code(participants=lambda: ["a"], data=lambda _: nothing, test_data=lambda: nothing, model=model, loss=loss), 0
    )


def slots(rows, seed=0, shape=(4,), classes=3, nulls=()):
    rng, is_real = np.random.default_rng(seed), np.ones(rows, dtype=bool)
    is_real[list(nulls)] = False
    return Slots(rng.normal(size=(rows, *shape)).astype(np.float32), rng.integers(0, classes, size=rows), is_real)


def training(**changes):
    return Training(**({"algorithm": "fedavg", "rounds": 1, "learning_rate": 0.3, "batch_size": 4} | changes))
