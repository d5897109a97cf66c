"""Local training of many participants side by side: one batched operation where each would need its own.

For small models an operation costs more than its arithmetic. So each step trains many participants at once: their
weights lie in one array, a row each, and batches are padded to one shape with rows of weight zero. Two ways to get a
step's gradients: a formula for logistic regression (`logistic`), and `torch.func.vmap` for any model that it can run.

A way is only used after `fit` has tried it on made-up records: against training one by one, and for whether anybody's
result depends on who else is in the stack.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad

from hubbub.local.apart import each
from hubbub.local.bookkeeping import is_plain
from hubbub.local.layout import Layout
from hubbub.local.seeds import shuffled
from hubbub.study import Slots
from hubbub.study.config import Training

MOST = 64
"""Most participants in a stack. With fewer, the rest of its rows train on nothing. One shape: a library may choose
another kernel for another one, and then a result would depend on how many there are."""

FEW = 16
"""Participants in a stack of logistic regression: numpy's operations cost so little that more would only be padded to
the longest among more."""

AGREEMENT = 1e-4
"""Largest difference from training one by one, relative to the update: float32's rounding, and no mistake."""

ROOM = 2**23
"""Most weights in a stack: 32 MiB."""

Update = Float32[np.ndarray, " params"]


class Batch(NamedTuple):
    """What everybody in a stack trains on in one step.

    Args:
        x: [stack, batch, ...].
        y: [stack, batch, ...].
        share: What each record's loss counts for: 1 over the records of its batch, 0 for padding.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    share: Float32[np.ndarray, "stack batch"]


Weights = Float32[np.ndarray, "stack params"]
Step = Callable[[Weights, Batch, float], None]
"""One step of SGD for everybody in a stack: moves their weights, a row each, in place, at a learning rate."""


@runtime_checkable
class Way(Protocol):
    """A way to train participants other than by autograd, one by one."""

    def takes(self, slots: Slots) -> bool:
        """Whether it may be used for a participant."""
        ...

    def updates(
        self, parameters: Update, everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes]
    ) -> Iterator[Update]:
        """New weights minus old weights, in order; each is good until the next is asked for."""
        ...


@dataclass(frozen=True)
class Stack:
    """Trains participants side by side.

    Args:
        step: How everybody moves.
        rows: How many move at once.
        classes: Labels must be below this; 0 if any will do.
    """

    step: Step
    rows: int = MOST
    classes: int = 0

    def takes(self, slots: Slots) -> bool:
        """Whether a participant may be in a stack: it has records, and no label at which training one by one fails."""
        return bool(slots.real.size) and (not self.classes or are_labels(slots, self.classes))

    def updates(
        self, parameters: Update, everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes]
    ) -> Iterator[Update]:
        """New weights minus old weights, in order; batches as in training one by one."""
        for start in range(0, len(everyone), self.rows):
            part = slice(start, start + self.rows)
            yield from self._trained(parameters, everyone[part], training, seeds[part])

    def _trained(
        self, parameters: Update, everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes]
    ) -> Float32[np.ndarray, "some params"]:
        flat = np.broadcast_to(parameters, (self.rows, parameters.size)).copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for batch in _lay(everyone, training, seeds, self.rows):
                self.step(flat, batch, training.learning_rate)
            flat -= parameters
        return flat[: len(everyone)]


def are_labels(slots: Slots, classes: int) -> bool:
    """Whether each y is a class."""
    least, greatest = slots.y_range
    return bool(least >= 0 and greatest < classes)


def _lay(everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes], rows: int) -> Iterator[Batch]:
    """Everybody's shuffled records, step by step."""
    size, first = training.batch_size, everyone[0]
    batches = [-(-slots.real.size // size) for slots in everyone]
    room = (rows, training.local_epochs * max(batches) * size)
    x = np.zeros((*room, *first.x.shape[1:]), dtype=first.x.dtype)
    y = np.zeros((*room, *first.y.shape[1:]), dtype=first.y.dtype)
    share = np.zeros(room, dtype=np.float32)
    for at, (slots, seed, count) in enumerate(zip(everyone, seeds, batches, strict=True)):
        for epoch in range(training.local_epochs):
            order, start = shuffled(slots.real, seed, epoch), epoch * count * size
            end, rest = start + order.size, order.size % size
            slots.x.take(order, 0, out=x[at, start:end], mode="clip")  # half as long as by index
            slots.y.take(order, 0, out=y[at, start:end], mode="clip")
            share[at, start : end - rest] = 1 / size
            share[at, end - rest : end] = 1 / max(rest, 1)
    return map(Batch, *(_by_step(laid, size) for laid in (x, y, share)))


def _by_step(laid: NDArray[Any], size: int) -> NDArray[Any]:
    """[stack, steps x batch, ...] as [steps, stack, batch, ...], each step in one piece whatever their number is."""
    return np.ascontiguousarray(laid.reshape(len(laid), -1, size, *laid.shape[2:]).swapaxes(0, 1))


def logistic(module: nn.Module, layout: Layout) -> Stack | None:
    """A stack for one dense layer under cross-entropy, perhaps of flattened records; None for any other model.

    Its gradient is (softmax - label) times the inputs.
    """
    layers = list(module) if type(module) is nn.Sequential else [module]
    if len(layers) > 1 and type(layers[0]) is nn.Flatten and (layers[0].start_dim, layers[0].end_dim) == (1, -1):
        del layers[0]
    layer = layers[0]
    has_bias = "bias" in dict(layer.named_parameters())
    if len(layers) != 1 or type(layer) is not nn.Linear or len(layout.names) != 1 + has_bias or not is_plain(layer):
        return None
    return Stack(_logistic_step(layer.in_features, layer.out_features, has_bias=has_bias), FEW, layer.out_features)


def _logistic_step(inputs: int, classes: int, *, has_bias: bool) -> Step:
    """In numpy, as each operation costs a fraction of torch's; scores lie by class first, one stride in each."""
    size = classes * inputs

    def step(flat: Weights, batch: Batch, rate: float) -> None:
        x, y, share = batch
        weights, rows = flat[:, :size].reshape(-1, classes, inputs), x.reshape(*share.shape, inputs)
        scores = np.empty((classes, *share.shape), dtype=np.float32)
        np.matmul(weights, rows.swapaxes(1, 2), out=scores.swapaxes(0, 1))
        if has_bias:
            scores += flat[:, size:].T[:, :, None]
        scores -= scores.max(axis=0)
        back, pull = np.exp(scores, out=scores), share * np.float32(rate)
        back *= pull / back.sum(axis=0)
        back.reshape(-1)[y.reshape(-1).astype(np.intp) * share.size + np.arange(share.size)] -= pull.reshape(-1)
        flat[:, :size] -= np.matmul(back.swapaxes(0, 1), rows).reshape(-1, size)
        if has_bias:
            flat[:, size:] -= np.einsum("csb->sc", back)

    return step


def vectorised(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], layout: Layout) -> Stack | None:
    """A stack for any model that vmap can run and that draws nothing; None if it does not fit."""
    if MOST * layout.size > ROOM:
        return None
    names = layout.names
    sizes = [int(np.prod(shape)) for shape in layout.shapes]

    def one(parameters: tuple[Tensor, ...], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        losses = loss(functional_call(module, dict(zip(names, parameters, strict=True)), (x,)), y)
        return (losses.view(len(share)) * share).sum()

    gradients = each(grad(one))

    def step(flat: Weights, batch: Batch, rate: float) -> None:
        parts, records = torch.from_numpy(flat).split(sizes, 1), map(torch.from_numpy, batch)
        views = [part.view(MOST, *shape) for part, shape in zip(parts, layout.shapes, strict=True)]
        for view, gradient in zip(views, gradients(tuple(views), *records), strict=True):
            view.sub_(gradient, alpha=rate)

    return Stack(step)


OneByOne = Callable[[Sequence[Slots], Training, Sequence[bytes]], list[Update]]
"""Updates of several participants, trained one by one."""


def is_right(way: Way, parameters: Update, example: Slots, one_by_one: OneByOne) -> bool:
    """Whether a way does what training one by one does, and nobody's update depends on another, on made-up records."""
    training = Training(algorithm="fedavg", rounds=1, learning_rate=0.1, batch_size=4, local_epochs=2)
    everyone = [made_up_slots(example, rows) for rows in (7, 4, 1, 10)]
    seeds = [bytes([at]) * 32 for at in range(len(everyone))]
    try:
        alone = [next(way.updates(parameters, [everyone[at]], training, [seeds[at]])).copy() for at in range(4)]
        backwards = [one.copy() for one in way.updates(parameters, everyone[::-1], training, seeds[::-1])][::-1]
        expected = one_by_one(everyone, training, seeds)
    except Exception:  # noqa: BLE001, the user's code runs one by one, but not stacked
        return False
    is_separate = all(np.array_equal(first, second) for first, second in zip(alone, backwards, strict=True))
    off = [float(np.linalg.norm(first - second)) for first, second in zip(alone, expected, strict=True)]
    scale = min(float(np.linalg.norm(update)) for update in expected)
    return is_separate and max(off) <= AGREEMENT * scale


def made_up_slots(example: Slots, rows: int) -> Slots:
    """Slots of a study's shapes with nobody's values: random reals, and the example's integers repeated."""
    rng, shape = np.random.default_rng(rows), (rows, *example.x.shape[1:])
    x = rng.normal(size=shape).astype(example.x.dtype) if example.x.dtype.kind == "f" else np.resize(example.x, shape)
    return Slots(x, np.resize(example.y, (rows, *example.y.shape[1:])), np.ones(rows, dtype=bool))
