"""A study's model as something that can be trained, after its self-tests."""

import math
from collections.abc import Mapping

from hubbub.local.learner import Learner
from hubbub.mechanism.mechanism import MOST_ROWS
from hubbub.study import Study, made_up

FEW_ROWS = 64
"""Rows that a microbatch may have however large the model."""

FORMED = 2**26
"""Values of single examples' gradients that are formed at once, in larger microbatches than that."""


def make_learner(study: Study, slots: Mapping[str, int]) -> Learner:
    """The study's model, after its self-tests on made-up records of the study's shapes.

    Args:
        study: The study.
        slots: Public number of slots of each participant.

    Raises:
        CodeError: The model cannot be trained as the study asks.
    """
    if study.code.model is not None:
        from hubbub.local.torch_model import TorchModel

        learner: Learner = TorchModel(study.code, study.settings.study.seed)
    else:
        from hubbub.local.arrays import ArrayModel

        learner = ArrayModel(study.code)
    settings = study.settings
    if settings.privacy.unit == "client":
        learner.self_test(made_up(settings.data), microbatch=None)
    else:
        rows = microbatch_rows(settings.sampling.probability, slots, learner.dimension)
        learner.self_test(made_up(settings.data, rows), microbatch=rows)
    return learner


def microbatch_rows(probability: float | None, slots: Mapping[str, int], dimension: int) -> int:
    """Rows of every microbatch of a run, so that most batches take few passes and little padding.

    What a plan says is all it depends on: everybody finds the same number, and it tells nobody of a batch.

    Args:
        probability: Chance that a slot is drawn; None for all slots, every round.
        slots: Public number of slots of each participant.
        dimension: Number of parameters d.

    Guarantees:
        A multiple of 8, at most `MOST_ROWS`.

    >>> microbatch_rows(None, {"a": 100, "b": 92}, 1000)
    96
    >>> microbatch_rows(0.25, {"a": 1024}, 1000)
    144
    """
    chance = 1.0 if probability is None else probability
    mean = chance * sum(slots.values()) / max(len(slots), 1)
    usual = max(math.ceil(mean + 2.0 * math.sqrt(mean * (1.0 - chance))), 1)
    most = min(max(FORMED // dimension, FEW_ROWS), MOST_ROWS) // 8 * 8
    passes = -(-usual // most)
    return 8 * -(-usual // (8 * passes))
