"""DP-SGD's clipped gradients: a private step over a plain one, and over Opacus's, in turns on one core.

    python benchmarks/clipper.py [--repeats 15] [--without-opacus]

A step takes its batch from an array, computes the gradient and moves the parameters. The plain step is one batched
pass; hubbub's is a participant's whole sum: packed in a microbatch of as many rows as a run has in which every batch
is of this size, clipped, summed in float64. Opacus gets the same module and batch and is asked for its clipped sum:
per-example gradients by hooks, by functorch, by einsum, and ghost clipping; the best of those counts. Nobody draws
noise.
Opacus gets an environment of its own, which sees this one's torch.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import peers
import torch
from goals import Result, finish, machine
from torch import Tensor, nn
from torch.nn import functional

from hubbub.cohort import EveryExample, Everyone
from hubbub.local.bookkeeping import Bookkeeper
from hubbub.local.load import microbatch_rows
from hubbub.local.torch_model import TorchModel
from hubbub.mechanism import Mechanism
from hubbub.study import Code, Examples, Slots

MODES = ("hooks", "functorch", "ew", "ghost")
MAX_NORM, RATE = 0.5, 0.1


class Block(nn.Module):
    """Causal attention and a feed-forward layer, of plain layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
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

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.table


class First(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
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
    steps: int
    """Steps in each turn."""
    plain_goal: float | None
    opacus_goal: float | None
    is_headline: bool = False

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.name} B{self.batch}"


CASES = (
    Case("LR784", linear, 64, 100, 1.6, 3.0),
    Case("MLP", mlp, 64, 30, 2.2, 2.0),
    Case("MLP", mlp, 256, 10, 1.6, 2.0, is_headline=True),
    Case("CNN 80k", cnn, 64, 4, 1.6, None),
    Case("transformer 0.93M", transformer, 32, 1, 1.6, None),
    Case("transformer 0.93M", transformer, 64, 1, None, None),
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


def start_model(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.model()


def make_learner(case: Case, slots: Slots) -> TorchModel:
    code = Code(
        participants=lambda: ["a"], data=lambda _: Examples([], []), test_data=lambda: Examples([], []),
        model=lambda: start_model(case),
    )  # fmt: skip
    learner = TorchModel(code, seed=0)
    rows = microbatch_rows(None, {"a": case.batch}, learner.dimension)
    learner.self_test(Slots(slots.x[:rows], slots.y[:rows], slots.is_real[:rows]), microbatch=rows)
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
            torch._foreach_add_(learner.parameters, gradients, alpha=-RATE)

    return step


def private_step(learner: TorchModel, slots: Slots) -> Step:
    """A participant's clipped sum, and a step by it."""
    mechanism = make_mechanism(learner.dimension)

    def step(rows: np.ndarray) -> np.ndarray:
        parameters = learner.flat.numpy()
        sums = learner.clipped_sums(parameters, slots, rows, mechanism)
        total = next(sums)
        for part in sums:
            total += part
        learner.flat.add_(torch.from_numpy(total).float(), alpha=-RATE / len(rows))
        return total

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


# --- Opacus ---


def opacus_steps(case: Case, slots: Slots) -> dict[str, tuple[Step, nn.Module]]:
    """A DP-SGD step without noise in each of Opacus's modes, and the model that it moves."""
    warnings.simplefilter("ignore")  # about hooks and about randomness that is not secure, at every start
    from opacus.grad_sample import GradSampleModuleFastGradientClipping, wrap_model
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    common = {"noise_multiplier": 0.0, "max_grad_norm": MAX_NORM, "expected_batch_size": case.batch}

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(slots.x[rows]), torch.from_numpy(slots.y[rows])

    def formed(mode: str, model: nn.Module) -> Step:
        wrapped = wrap_model(model, grad_sample_mode=mode)
        optimiser = DPOptimizer(torch.optim.SGD(wrapped.parameters(), lr=RATE), **common)

        def step(rows: np.ndarray) -> None:
            x, y = batch(rows)
            optimiser.zero_grad()
            functional.cross_entropy(wrapped(x), y).backward()
            optimiser.step()

        return step

    def ghost(model: nn.Module) -> Step:
        wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=MAX_NORM, use_ghost_clipping=True)
        optimiser = DPOptimizerFastGradientClipping(torch.optim.SGD(wrapped.parameters(), lr=RATE), **common)
        loss = DPLossFastGradientClipping(wrapped, optimiser, nn.CrossEntropyLoss())

        def step(rows: np.ndarray) -> None:
            x, y = batch(rows)
            optimiser.zero_grad()
            loss(wrapped(x), y).backward()
            optimiser.step()

        return step

    models = {mode: start_model(case) for mode in MODES}
    steps = {mode: ghost(model) if mode == "ghost" else formed(mode, model) for mode, model in models.items()}
    return {f"Opacus, {mode}": (steps[mode], models[mode]) for mode in steps}


def clipped_sums_agree(case: Case, slots: Slots, rows: np.ndarray) -> float:
    """How far Opacus's clipped sums are from hubbub's, by norm, relative to it: the worst mode."""
    learner = make_learner(case, slots)
    ours = private_step(learner, slots)(rows).copy()
    worst = 0.0
    for name, (step, model) in opacus_steps(case, slots).items():
        step(rows)
        parts = [np.asarray(value.grad.detach()).ravel() for value in model.parameters()]
        difference = float(np.linalg.norm(np.concatenate(parts) * case.batch - ours) / np.linalg.norm(ours))
        assert difference < 1e-4, f"{case.label}: {name} has another clipped sum, off by {difference:.1e}"
        worst = max(worst, difference)
    return worst


# --- the table ---


def compare(case: Case, repeats: int, *, with_opacus: bool) -> list[Result]:
    """Print milliseconds per step; the ratios are those within each turn."""
    slots, rng = make_slots(case), np.random.default_rng(1)
    batches = [rng.choice(len(slots), case.batch, replace=False) for _ in range(case.steps)]
    plain, private = make_learner(case, slots), make_learner(case, slots)
    steps = {"plain": plain_step(plain, slots), "hubbub": private_step(private, slots)}
    print(f"\n{case.label}, d = {plain.dimension:,}; CPU milliseconds per step, median and range")
    if with_opacus and case.opacus_goal:
        print(
            f"  the same clipped sum by Opacus in {len(MODES)} modes, within",
            f"{clipped_sums_agree(case, slots, batches[0]):.0e}",
        )
        steps |= {name: step for name, (step, _) in opacus_steps(case, slots).items()}
    times = in_turns(steps, batches, repeats)
    for name, each in times.items():
        print(f"  {name:20} {statistics.median(each):9.3f}   {min(each):.3f} to {max(each):.3f}", flush=True)
    ratios = [one / other for one, other in zip(times["hubbub"], times["plain"], strict=True)]
    goal = f"<= {case.plain_goal:g} x" if case.plain_goal else "x"
    results = [Result(f"{case.label}: private / plain step", ratios, goal, is_headline=case.is_headline)]
    if len(times) > 2:
        best = min(list(times)[2:], key=lambda name: statistics.median(times[name]))
        ratios = [one / other for one, other in zip(times[best], times["hubbub"], strict=True)]
        goal = f">= {case.opacus_goal:g} x"
        results.append(Result(f"{case.label}: {best} / hubbub", ratios, goal, is_headline=case.is_headline))
    return results


def measure(repeats: int, *, with_opacus: bool) -> None:
    torch.set_num_threads(1)
    results = [result for case in CASES for result in compare(case, repeats, with_opacus=with_opacus)]
    packages = machine("torch", "numpy", *(["opacus"] if with_opacus else []))
    finish(results, packages, f"one core, {repeats} turns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--without-opacus", action="store_true")
    parser.add_argument("--beside-opacus", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.without_opacus or asked.beside_opacus:
        measure(asked.repeats, with_opacus=asked.beside_opacus)
    raise SystemExit(peers.rerun("opacus", "--beside-opacus", "--repeats", str(asked.repeats)))


if __name__ == "__main__":
    main()
