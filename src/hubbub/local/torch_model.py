"""A PyTorch module as a learner."""

import hashlib
import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from hubbub.errors import CodeError
from hubbub.local.bookkeeping import Loss, cross_entropy
from hubbub.local.dense import dense
from hubbub.local.gradients import Clipper, choose, clipped_sums, made_up_rows
from hubbub.local.layout import Layout
from hubbub.local.learner import Measured, means
from hubbub.local.module import arrays_of, make_module, trained_of
from hubbub.local.seeds import layer_seed, shuffled
from hubbub.local.stack import MOST, Stack, Way, is_right, logistic, made_up_slots, vectorised
from hubbub.mechanism import Mechanism
from hubbub.study import Code, Slots
from hubbub.study.code import running
from hubbub.study.config import Training

EVALUATION_ROWS, EVALUATION_VALUES = 512, 2**22
"""Most test records, and values that one layer makes of them, in a piece: more would not stay near the processor."""

LARGE = 2**22
"""Parameters above which a model is large: no formula is tried for it, since that takes a dozen models in memory and
gains it little, and its memory is given back while nobody trains or measures it."""

_add = torch._foreach_add_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]  # what torch's own optimisers call


_DEFAULT_LOSS = (
    "without a loss(outputs, y) of the study's own, model() takes x as declared and gives one score per class of y; "
    "define loss() for anything else, such as a regression"
)


class TorchModel:
    """A module, its per-example loss, and one flat vector that its trained parameters are views into while it is used.

    Args:
        code: The study's functions.
        seed: Public seed of the initialisation.

    Raises:
        CodeError: `model()` fails, mixes examples (BatchNorm), trains nothing, or is not float32.
    """

    def __init__(self, code: Code, seed: int) -> None:
        self.loss: Loss = code.loss or cross_entropy
        self._made = partial(make_module, code, seed)
        self.module = self._made()
        trained = trained_of(self.module)
        self.layout = Layout.of(arrays_of(trained))
        self.parameters = list(trained.values())
        self._untrained = {name: value.detach().clone() for name, value in self._state() if name not in trained}
        self._lay(torch.from_numpy(self.layout.flatten(arrays_of(trained), "model()")))
        self._users = 0
        self._is_default_loss = code.loss is None
        self._way: Way | None = None
        self._clipper: Clipper | None = None
        self._rows = EVALUATION_ROWS

    def _lay(self, flat: Tensor) -> None:
        """Make the parameters views into a flat vector, but for weights of convolutions: these lie apart.

        Channels last, as here, a convolution takes less time; a grouped one takes more to train, so a model that has
        one keeps to the flat vector.
        """
        layers = [layer for layer in self.module.modules() if type(layer) is nn.Conv2d]
        convolved = {id(layer.weight) for layer in layers if all(other.groups == 1 for other in layers)}
        self.flat, self._apart = flat, list[tuple[Tensor, Tensor]]()
        for value, view in zip(self.parameters, self.views(flat), strict=True):
            value.data = view
            if id(value) in convolved:
                value.data = torch.empty(view.shape, memory_format=torch.channels_last).copy_(view)
                self._apart.append((value.data, view))
        self._values = [value.data for value in self.parameters]

    def _load(self, parameters: Float32[np.ndarray, " params"]) -> None:
        """Make these the module's parameters."""
        if not self._values:
            self._lay(torch.empty(self.dimension))
        self.flat.numpy()[:] = parameters
        for value, view in self._apart:
            value.copy_(view)

    @contextmanager
    def _in_use(self) -> Generator[None]:
        """Give a large model's memory back when nobody uses it any more; `_load` takes it again."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and len(self.flat) > LARGE:
                self.flat, self._apart, self._values = torch.empty(0), [], []
                for value in self.parameters:
                    value.data = self.flat

    @property
    def dimension(self) -> int:
        """Number of trained parameters d."""
        return self.layout.size

    @property
    def together(self) -> int:
        """How many participants train at once."""
        return self._way.rows if isinstance(self._way, Stack) else 1

    def initial(self) -> Float32[np.ndarray, " params"]:
        """The parameters that `model()` makes under the study's seed: made anew, none are kept for it."""
        return self.layout.flatten(arrays_of(trained_of(self._made())), "model()")

    def views(self, flat: Tensor) -> list[Tensor]:
        """The trained parameters as views into a flat vector."""
        sizes = [math.prod(shape) for shape in self.layout.shapes]
        return [p.view(s) for p, s in zip(flat.split(sizes), self.layout.shapes, strict=True)]

    def self_test(self, example: Slots, *, microbatch: int | None) -> None:
        """Run the model on made-up records of the declared shapes, and choose how to clip; see `gradients.choose`.

        Whatever the unit, nothing that the model has seen may stay in it: it would reach the next
        participant's update, or the released file, without noise.

        Args:
            example: Any participant's slots, for their shapes.
            microbatch: Rows in which gradients of single examples are computed; None if they are not needed.

        Raises:
            CodeError: The model does not run on the declared columns, rows depend on each other, or it
                remembers what it has seen.
        """
        hint = _DEFAULT_LOSS if self._is_default_loss else None
        with running("model() or loss() on the declared columns", hint=hint), torch.random.fork_rng(), self._in_use():
            self._rows = _most_rows(self.module.eval(), made_up_rows(example, len(example))[0])
            self.module.train()
            if microbatch is not None:
                self._clipper = choose(self.module, self.loss, example, microbatch)
            else:
                self._forgets(*made_up_rows(example, len(example)))
                has_formula = self._is_default_loss and self.dimension <= LARGE
                formula = (
                    (logistic(self.module, self.layout) or dense(self.module, self.layout)) if has_formula else None
                )
                self._way = self._fit(formula, example)
            for name, value in self._state():
                if name in self._untrained and not torch.equal(value, self._untrained[name]):
                    raise _memory(name)

    def _fit(self, way: Way | None, example: Slots) -> Way | None:
        """A way that was tried on made-up records, or None."""
        if way is None:
            return None

        def one_by_one(
            everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes]
        ) -> list[Float32[np.ndarray, " params"]]:
            pairs = zip(everyone, seeds, strict=True)
            return [self._update(start, slots, training, seed).copy() for slots, seed in pairs]

        start = self.initial() + np.random.default_rng(0).normal(scale=0.1, size=self.dimension).astype(np.float32)
        return way if is_right(way, start, example, one_by_one) else None

    def rehearse(self, example: Slots, training: Training, *, participants: int, rows: int) -> None:
        """Train made-up participants one by one and stacked by vmap; whichever is faster is used from now on."""
        together, one_by_one = min(participants, MOST), self._way
        if isinstance(one_by_one, Stack) or together == 1:
            return
        few, start = [made_up_slots(example, rows)] * min(together, 4), self.initial()

        def seconds() -> float:
            started = time.perf_counter()
            for _ in self.updates(start, few, training, [bytes(32)] * len(few)):
                pass
            return time.perf_counter() - started

        with running("model() or loss() in training"), torch.random.fork_rng():
            self.module.train()
            stack = self._fit(vectorised(self.module, self.loss, self.layout), example)
            if stack is None:
                return
            alone = min(seconds() for _ in range(3)) * together / len(few)
            self._way = stack
            if min(seconds() for _ in range(3)) > alone:  # a stack takes as long for few as for many
                self._way = one_by_one

    def _forgets(self, x: Tensor, y: Tensor) -> None:
        def digest(inputs: Tensor) -> bytes:
            torch.manual_seed(0)
            found = hashlib.sha256()
            for gradient in self._gradients(inputs, y):
                found.update(gradient.contiguous().numpy().data)
            return found.digest()

        first = digest(x)
        digest(torch.ones_like(x) if x.is_floating_point() else torch.zeros_like(x))
        if digest(x) != first:
            raise _memory("the module")

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def clipped_sums(
        self,
        parameters: Float32[np.ndarray, " params"],
        slots: Slots,
        drawn: Int[np.ndarray, " drawn"],
        mechanism: Mechanism,
    ) -> Iterator[Float[np.ndarray, " params"]]:
        """Sums of clipped per-example gradients, one per microbatch; see `gradients.clipped_sums`."""
        assert self._clipper is not None  # noqa: S101, self_test has chosen one
        with self._in_use(), running("model() or loss() in training"):
            self._load(parameters)
            self.module.train()
            yield from clipped_sums(self._clipper, slots, drawn, mechanism)

    def updates(
        self,
        parameters: Float32[np.ndarray, " params"],
        everyone: Sequence[Slots],
        training: Training,
        seeds: Sequence[bytes],
    ) -> Iterator[Float32[np.ndarray, " params"] | CodeError]:
        """Local SGD in place on the flat vector, `local_epochs` over the real records in shuffled batches.

        Guarantees:
            Deterministic in its arguments, one participant by one. Only ever sent after clipping: what it does
            inside one participant is covered by client-level privacy.
        """
        with self._in_use(), running("model() or loss() in training"):
            for start in range(0, len(everyone), MOST):
                part = slice(start, start + MOST)
                yield from self._stacked(parameters, everyone[part], training, seeds[part])

    def _stacked(
        self,
        parameters: Float32[np.ndarray, " params"],
        everyone: Sequence[Slots],
        training: Training,
        seeds: Sequence[bytes],
    ) -> Iterator[Float32[np.ndarray, " params"] | CodeError]:
        """Those who may, in the way that was chosen; the others, or all where there is none, by autograd."""
        way = self._way
        at = [index for index, slots in enumerate(everyone) if way is not None and way.takes(slots)]
        made = iter(())
        if way is not None and at:
            made = self._by_way(way, parameters, [everyone[i] for i in at], training, [seeds[i] for i in at])
        together = set(at)
        for index, (slots, seed) in enumerate(zip(everyone, seeds, strict=True)):
            yield next(made) if index in together else self._alone(parameters, slots, training, seed)

    def _by_way(
        self,
        way: Way,
        parameters: Float32[np.ndarray, " params"],
        everyone: Sequence[Slots],
        training: Training,
        seeds: Sequence[bytes],
    ) -> Iterator[Float32[np.ndarray, " params"] | CodeError]:
        """Where somebody's records make the study's code raise, each by itself: the others' updates stay the same."""
        for start in range(0, len(everyone), self.together):
            part = slice(start, start + self.together)
            given = everyone[part], training, seeds[part]
            try:
                with running("model() or loss() in training"):
                    made: Sequence[Float32[np.ndarray, " params"] | CodeError] = list(way.updates(parameters, *given))
            except CodeError as error:
                made = [error]
            if len(made) == len(given[0]):
                yield from made
            else:
                for slots, seed in zip(given[0], given[2], strict=True):
                    yield from self._by_way(way, parameters, [slots], training, [seed])

    def _alone(
        self, parameters: Float32[np.ndarray, " params"], slots: Slots, training: Training, seed: bytes
    ) -> Float32[np.ndarray, " params"] | CodeError:
        try:
            return self._update(parameters, slots, training, seed)
        except CodeError as error:
            return error

    def _update(
        self, parameters: Float32[np.ndarray, " params"], slots: Slots, training: Training, seed: bytes
    ) -> Float32[np.ndarray, " params"]:
        if not slots.real.size:
            return np.zeros(self.dimension, dtype=np.float32)
        self._load(parameters)
        self.module.train()
        # For layers that draw, such as dropout. torch.manual_seed formats a traceback, for GPUs that are not there:
        # more work than a small participant's whole training.
        torch.default_generator.manual_seed(layer_seed(seed))
        for epoch in range(training.local_epochs):
            order = shuffled(slots.real, seed, epoch)
            x, y = torch.from_numpy(slots.x[order]), torch.from_numpy(slots.y[order])
            with running("model() or loss() in training"):
                for batch in zip(x.split(training.batch_size), y.split(training.batch_size), strict=True):
                    _add(self._values, self._gradients(*batch), alpha=-training.learning_rate)
        for value, view in self._apart:
            view.copy_(value)
        update = self.flat.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            return np.subtract(update, parameters, out=update)

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        loss = self.loss(self.module(x), y).mean()
        return torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)

    def pieces(self, slots: Slots) -> list[Slots]:
        """The test records in their order, so many at a time that what layers make of them is small."""
        rows = slots.real
        parts = [rows[start : start + self._rows] for start in range(0, max(len(rows), 1), self._rows)]
        return [Slots(slots.x[part], slots.y[part], slots.is_real[part]) for part in parts]

    def measure(self, parameters: Float32[np.ndarray, " params"], piece: Slots) -> Measured:
        """The sum of losses over a piece, and of right answers where outputs are scores of classes.

        One output per record is the score of class 1 against class 0; more are one score per class.
        """
        loss, correct, is_classified = 0.0, 0, piece.y.dtype.kind in "iu"
        if len(piece):
            x, y = torch.from_numpy(piece.x), torch.from_numpy(piece.y)
            with torch.no_grad(), running("model() or loss() on test data"), self._in_use():
                self._load(parameters)
                outputs = self.module.eval()(x)
                loss = float(self.loss(outputs, y).double().sum())
            correct = int((_classes(outputs) == y.reshape(len(piece), -1)[:, 0]).sum()) if is_classified else 0
        return Measured(len(piece), {"accuracy": float(correct), "loss": loss} if is_classified else {"loss": loss})

    def evaluate(self, parameters: Float32[np.ndarray, " params"], slots: Slots) -> dict[str, float]:
        """Mean loss over the test records, and accuracy where they have classes."""
        with self._in_use():
            return means([self.measure(parameters, piece) for piece in self.pieces(slots)])

    def export(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, NDArray[np.generic]]:
        """The module's whole state dict; frozen parameters and buffers are as `model()` made them."""
        self._load(parameters)
        state = self.module.state_dict()
        state |= {name: value for name, value in self._untrained.items() if name in state}
        return {name: np.asarray(array, order="C") for name, array in arrays_of(state).items()}


def _most_rows(module: nn.Module, x: Tensor) -> int:
    """How many records to measure at once, a power of two: by the widest that any layer makes of one."""
    widest = 1

    def note(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        nonlocal widest
        widest = max(widest, outputs.numel() // len(x) if isinstance(outputs, Tensor) else 1)

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return 1 << (min(EVALUATION_ROWS, max(EVALUATION_VALUES // widest, 1)).bit_length() - 1)


def _classes(outputs: Tensor) -> Tensor:
    scores = outputs.reshape(len(outputs), -1)
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(dim=1)


def _memory(name: str) -> CodeError:
    return CodeError(
        f"model(): {name}, must not remember what it has seen, found that it does",
        hint="torch.nn.GroupNorm normalises without running statistics; what is learned belongs in parameters",
    )
