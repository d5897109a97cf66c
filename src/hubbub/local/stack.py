"""Local training of many participants side by side: one batched operation where each would need its own.

For small models an operation costs more than its arithmetic. So each step trains `MOST` participants at once: their
weights lie in one array, a row each, and batches are padded to one shape with rows of weight zero. Two ways to get a
step's gradients: a formula for logistic regression (`logistic`), and `torch.func.vmap` for any model that it can run.

A way is only used after `fit` has tried it on made-up records: against training one by one, and for whether anybody's
result depends on who else is in the stack.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hubbub.local.bookkeeping import is_plain
from hubbub.local.layout import Layout
from hubbub.local.seeds import shuffled
from hubbub.study import Slots
from hubbub.study.config import Training

MOST = 64
"""Participants in a stack; with fewer, the rest of its rows train on nothing. One shape: a library may choose
another kernel for another one, and then a result would depend on how many there are."""

AGREEMENT = 1e-4
"""Largest difference from training one by one, relative to the update: float32's rounding, and no mistake."""

ROOM = 2**23
"""Most weights in a stack: 32 MiB."""

Update = Float32[np.ndarray, " params"]


@runtime_checkable
class Step(Protocol):
    """One step of SGD for everybody in a stack, in place."""

    def __call__(self, flat: Tensor, x: Tensor, y: Tensor, share: Tensor, *, rate: float) -> None:
        """Move the weights.

        Args:
            flat: [stack, params].
            x: [stack, batch, ...].
            y: [stack, batch, ...].
            share: [stack, batch], what each record's loss counts for: 1 over the records of its batch, 0 for padding.
            rate: Learning rate.
        """
        ...


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
        classes: Labels must be below this; 0 if any will do.
    """

    step: Step
    classes: int = 0

    def takes(self, slots: Slots) -> bool:
        """Whether a participant may be in a stack: it has records, and no label at which training one by one fails."""
        is_known = not self.classes or bool(slots.y.min() >= 0 and slots.y.max() < self.classes)
        return is_known and bool(slots.is_real.any())

    def updates(
        self, parameters: Update, everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes]
    ) -> Iterator[Update]:
        """New weights minus old weights, in order, at most `MOST` participants; batches as in training one by one."""
        flat = torch.from_numpy(np.broadcast_to(parameters, (MOST, parameters.size)).copy())
        for x, y, share in zip(*_lay(everyone, training, seeds), strict=True):
            self.step(flat, x, y, share, rate=training.learning_rate)
        trained = flat.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            for row in range(len(everyone)):
                yield np.subtract(trained[row], parameters, out=trained[row])


def _lay(everyone: Sequence[Slots], training: Training, seeds: Sequence[bytes]) -> tuple[Tensor, Tensor, Tensor]:
    """Everybody's shuffled batches: x, y and shares, [steps, stack, batch, ...]."""
    size = training.batch_size
    batches = [-(-int(slots.is_real.sum()) // size) for slots in everyone]
    shape, first = (training.local_epochs * max(batches), MOST, size), everyone[0]
    x = np.zeros((*shape, *first.x.shape[1:]), dtype=first.x.dtype)
    y = np.zeros((*shape, *first.y.shape[1:]), dtype=first.y.dtype)
    share = np.zeros(shape, dtype=np.float32)
    for at, (slots, seed, count) in enumerate(zip(everyone, seeds, batches, strict=True)):
        real = np.flatnonzero(slots.is_real)
        whole, rest = divmod(len(real), size)
        for epoch in range(training.local_epochs):
            order, start = shuffled(real, seed, epoch), epoch * count
            for to, values in ((x, slots.x[order]), (y, slots.y[order])):
                to[start : start + whole, at] = values[: whole * size].reshape(whole, size, *values.shape[1:])
                if rest:
                    to[start + whole, at, :rest] = values[whole * size :]
            share[start : start + whole, at] = 1 / size
            if rest:
                share[start + whole, at, :rest] = 1 / rest
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(share)


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
    inputs, classes = layer.in_features, layer.out_features

    def step(flat: Tensor, x: Tensor, y: Tensor, share: Tensor, *, rate: float) -> None:
        weights = flat[:, : classes * inputs].view(MOST, classes, inputs)
        rows = x.reshape(MOST, -1, inputs)
        scores = torch.bmm(rows, weights.mT)
        if has_bias:
            scores += flat[:, None, classes * inputs :]
        back = scores.softmax(dim=2)
        back.scatter_add_(2, y.long().view(MOST, -1, 1), torch.full((), -1.0).expand(*back.shape[:2], 1))
        back *= share[:, :, None]
        weights.baddbmm_(back.mT, rows, alpha=-rate)
        if has_bias:
            flat[:, classes * inputs :].sub_(back.sum(dim=1), alpha=rate)

    return Stack(step, classes)


def vectorised(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], layout: Layout) -> Stack | None:
    """A stack for any model that vmap can run and that draws nothing; None if it does not fit."""
    if MOST * layout.size > ROOM:
        return None
    names = layout.names
    sizes = [int(np.prod(shape)) for shape in layout.shapes]

    def one(parameters: tuple[Tensor, ...], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        losses = loss(functional_call(module, dict(zip(names, parameters, strict=True)), (x,)), y)
        return (losses.view(len(share)) * share).sum()

    gradients = vmap(grad(one), randomness="error")

    def step(flat: Tensor, x: Tensor, y: Tensor, share: Tensor, *, rate: float) -> None:
        views = [part.view(MOST, *shape) for part, shape in zip(flat.split(sizes, 1), layout.shapes, strict=True)]
        for view, gradient in zip(views, gradients(tuple(views), x, y, share), strict=True):
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
