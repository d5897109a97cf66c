"""The ndarray hook: any framework that takes and returns arrays, as a learner (client-level privacy only)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray

from hubbub.errors import CodeError
from hubbub.local.layout import Layout
from hubbub.local.learner import Measured, means
from hubbub.local.seeds import make_rng
from hubbub.mechanism import Mechanism
from hubbub.study import Code, Examples, Slots
from hubbub.study.code import call, running
from hubbub.study.config import Training


class ArrayModel:
    """The user's `parameters`, `train` and `evaluate` as a learner.

    Args:
        code: The study's functions.

    Raises:
        CodeError: `parameters()` fails or returns no finite arrays.
    """

    def __init__(self, code: Code) -> None:
        self._code = code
        self.layout = Layout.of(self._parameters())
        if not np.isfinite(self.initial()).all():
            raise CodeError("parameters(), must be finite, found a NaN or an infinity", hint="np.zeros(...)")

    def _parameters(self) -> dict[str, NDArray[np.generic]]:
        returned = _named("parameters()", call(self._code.parameters or dict))
        return {name: np.asarray(array) for name, array in returned.items()}

    @property
    def dimension(self) -> int:
        """Number of trained parameters d."""
        return self.layout.size

    @property
    def together(self) -> int:
        """How many participants train at once."""
        return 1

    def initial(self) -> Float32[np.ndarray, " params"]:
        """What `parameters()` returns: asked anew, none are kept for it."""
        return self.layout.flatten(self._parameters(), "parameters()")

    def clipped_sums(
        self,
        parameters: Float32[np.ndarray, " params"],  # noqa: ARG002, one signature for all learners
        slots: Slots,  # noqa: ARG002
        drawn: Int[np.ndarray, " drawn"],  # noqa: ARG002
        mechanism: Mechanism,  # noqa: ARG002
    ) -> Iterator[Float[np.ndarray, " params"]]:
        """Refuse: the hook gives no per-example gradients.

        Raises:
            CodeError: Always.
        """
        raise _refusal()

    def self_test(self, example: Slots, *, microbatch: int | None) -> None:
        """Run train() and evaluate() once on made-up records.

        Raises:
            CodeError: Gradients of single examples are needed, or one of the two fails.
        """
        if microbatch is not None:
            raise _refusal()
        rng = np.random.default_rng(0)
        returned = call(self._code.train or dict, self.layout.unflatten(self.initial()), _records(example), rng)
        self.layout.check(_named("train()", returned), "train()")
        del returned
        self.evaluate(self.initial(), example)

    def rehearse(self, example: Slots, training: Training, *, participants: int, rows: int) -> None:
        """There is one way: the user's."""

    def updates(
        self,
        parameters: Float32[np.ndarray, " params"],
        everyone: Sequence[Slots],
        training: Training,  # noqa: ARG002, the user's train() has its own settings
        seeds: Sequence[bytes],
    ) -> Iterator[Float32[np.ndarray, " params"] | CodeError]:
        """The user's training on each participant's real records; zeros where there is none."""
        for slots, seed in zip(everyone, seeds, strict=True):
            try:
                yield self._update(parameters, slots, make_rng(seed))
            except CodeError as error:
                yield error

    def _update(
        self, parameters: Float32[np.ndarray, " params"], slots: Slots, rng: np.random.Generator
    ) -> Float32[np.ndarray, " params"]:
        if not slots.is_real.any():
            return np.zeros(self.dimension, dtype=np.float32)
        with running("train()"):
            trained = call(self._code.train or dict, self.layout.unflatten(parameters), _records(slots), rng)
            update = self.layout.flatten(_named("train()", trained), "train()")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.subtract(update, parameters, out=update)

    def pieces(self, slots: Slots) -> list[Slots]:
        """One: what the user's metrics are of is the user's to say."""
        return [slots]

    def measure(self, parameters: Float32[np.ndarray, " params"], piece: Slots) -> Measured:
        """The user's metrics, as if of one record."""
        returned = call(self._code.evaluate or dict, self.layout.unflatten(parameters), _records(piece))
        metrics = _named("evaluate()", returned)
        with running("evaluate()"):
            return Measured(1, {name: float(value) for name, value in metrics.items()})

    def evaluate(self, parameters: Float32[np.ndarray, " params"], slots: Slots) -> dict[str, float]:
        """The user's metrics on the test records."""
        return means([self.measure(parameters, slots)])

    def export(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, in the same memory."""
        return self.layout.views(parameters)


def _records(slots: Slots) -> Examples:
    return Examples(slots.x[slots.is_real], slots.y[slots.is_real])


def _named(where: str, returned: Any) -> dict[str, Any]:
    if not isinstance(returned, dict) or not returned or not all(isinstance(name, str) for name in returned):
        raise CodeError(
            f"{where}, must return a dict by name, found {type(returned).__name__}",
            hint='return {"weights": ..., "bias": ...}',
        )
    return returned


def _refusal() -> CodeError:
    return CodeError(
        "train(), protects whole participants only, found unit = 'example'",
        hint='unit = "client", or define model() for record-level privacy',
    )
