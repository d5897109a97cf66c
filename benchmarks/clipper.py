"""DP-SGD's clipped gradients: a private step over a plain one, and over Opacus's, in turns on one core.

    python benchmarks/clipper.py [--repeats 15] [--without-opacus]

A step takes its batch from an array, computes the gradient and moves the parameters. The plain step is one batched
pass; hubbub's is a participant's whole sum: packed in microbatches of 64 rows (a smaller batch is padded to that),
clipped, summed in float64. Opacus gets the same module and batch and is asked for its clipped sum: per-example
gradients by hooks, by functorch, by einsum, and ghost clipping; the best of those counts. Nobody draws noise.
Opacus gets an environment of its own in build/peers/opacus, made here at the first run, which sees this one's torch.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hubbub.cohort import EveryExample, Everyone
from hubbub.local.bookkeeping import Bookkeeper
from hubbub.local.torch_model import TorchModel
from hubbub.mechanism import Mechanism
from hubbub.study import Code, Examples, Slots

OPACUS = "opacus==1.6.0"
PEER = Path(__file__).resolve().parent.parent / "build" / "peers" / "opacus"
MAX_NORM, RATE = 1.0, 0.1


class Block(nn.Module):
    """Causal attention and a feed-forward layer, of plain layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.mixed(self.before(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = (parts[:, :, at].transpose(1, 2) for at in range(3))
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden, -1e9).softmax(dim=3) @ value
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(functional.gelu(self.up(self.after(x))))


def linear() -> nn.Module:
    return nn.Linear(784, 10)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 42), nn.ReLU(), nn.Linear(42, 10),
    )  # fmt: skip


class Positions(nn.Module):
    """Adds a vector that is not trained to each position."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(length, width) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class First(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def transformer() -> nn.Module:
    blocks = [Block(128, 4) for _ in range(4)]
    return nn.Sequential(
        nn.Embedding(1000, 128), Positions(64, 128), *blocks, nn.LayerNorm(128), First(), nn.Linear(128, 10)
    )


@dataclass(frozen=True)
class Case:
    """A model, a batch, and the goals for a private step."""

    name: str
    model: Callable[[], nn.Module]
    batch: int
    plain_goal: float | None
    opacus_goal: float | None

    @property
    def label(self) -> str:
        return f"{self.name} B{self.batch}"


CASES = (
    Case("LR784", linear, 64, 1.6, 3.0),
    Case("MLP", mlp, 64, 2.2, 2.0),
    Case("MLP", mlp, 256, 1.6, 2.0),
    Case("CNN 80k", cnn, 64, 1.6, None),
    Case("transformer 0.93M", transformer, 32, 1.6, None),
    Case("transformer 0.93M", transformer, 64, None, None),
)


def make_slots(case: Case) -> Slots:
    rng, rows = np.random.default_rng(0), 4 * case.batch
    if case.model is transformer:
        x = rng.integers(0, 1000, size=(rows, 64))
    else:
        x = rng.normal(size=(rows, 1, 28, 28) if case.model is cnn else (rows, 784)).astype(np.float32)
    return Slots(x, rng.integers(0, 10, size=rows), np.ones(rows, dtype=bool))


def make_mechanism(dimension: int) -> Mechanism:
    return Mechanism(
        unit="example", noise="server", noise_source="os", max_norm=MAX_NORM, dimension=dimension,
        scale=2.0**20, largest=2**30, sigma=2**20, steps=1, noises_steps=False,
        examples=EveryExample(), participants=Everyone(),
    )  # fmt: skip


def make_learner(case: Case) -> TorchModel:
    code = Code(
        participants=lambda: ["a"], data=lambda _: Examples([], []), test_data=lambda: Examples([], []),
        model=case.model,
    )  # fmt: skip
    learner = TorchModel(code, seed=0)
    slots = make_slots(case)
    learner.self_test(Slots(slots.x[:64], slots.y[:64], slots.is_real[:64]), per_example=True)
    assert isinstance(learner._clipper, Bookkeeper), "not the book-keeping clipper"  # noqa: SLF001
    return learner


Step = Callable[[np.ndarray], Any]
"""Rows of a batch -> what moved."""


def plain_step(learner: TorchModel, slots: Slots) -> Step:
    """One batched pass and plain SGD."""

    def step(rows: np.ndarray) -> None:
        x, y = torch.from_numpy(slots.x[rows]), torch.from_numpy(slots.y[rows])
        loss = functional.cross_entropy(learner.module(x), y)
        gradients = torch.autograd.grad(loss, learner.parameters)
        with torch.no_grad():
            torch._foreach_add_(learner.parameters, gradients, alpha=-RATE)  # noqa: SLF001

    return step


def private_step(learner: TorchModel, slots: Slots) -> Step:
    """A participant's clipped sum, and a step by it."""
    mechanism = make_mechanism(learner.dimension)

    def step(rows: np.ndarray) -> np.ndarray:
        parameters = learner.flat.numpy()
        first, *others = learner.clipped_sums(parameters, slots, rows, mechanism)
        for other in others:
            first += other
        learner.flat.add_(torch.from_numpy(first).float(), alpha=-RATE / len(rows))
        return first

    return step


def in_turns(steps: dict[str, Step], batches: Sequence[np.ndarray], repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds per step: blocks of steps, by turns, the order shuffled."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, rng = list(steps), np.random.default_rng(0)
    for repeat in range(repeats + 1):
        rng.shuffle(order)
        for name in order:
            start = time.process_time()
            for rows in batches:
                steps[name](rows)
            if repeat:  # the first warms up
                times[name].append(1e3 * (time.process_time() - start) / len(batches))
    return times
