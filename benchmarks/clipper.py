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
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hubbub
from hubbub.cohort import EveryExample, Everyone
from hubbub.local.bookkeeping import Bookkeeper
from hubbub.local.torch_model import TorchModel
from hubbub.mechanism import Mechanism
from hubbub.study import Code, Examples, Slots

OPACUS = "opacus==1.6.0"
PEER = Path(__file__).resolve().parent.parent / "build" / "peers" / "opacus"
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

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.name} B{self.batch}"


CASES = (
    Case("LR784", linear, 64, 100, 1.6, 3.0),
    Case("MLP", mlp, 64, 30, 2.2, 2.0),
    Case("MLP", mlp, 256, 10, 1.6, 2.0),
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


def install_peer() -> None:
    """Opacus in an environment of its own, on the torch and numpy that hubbub runs on."""
    wanted = [OPACUS, *(f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy"))]
    done, own = PEER / "installed", sysconfig.get_path("purelib")
    if done.exists() and done.read_text() == "\n".join([*wanted, own]):
        return
    print(f"installing {', '.join(wanted)} in {PEER}", file=sys.stderr)
    venv.create(PEER, with_pip=True, clear=True)
    library = sysconfig.get_path("purelib", vars={"base": str(PEER)})
    (Path(library) / "beside.pth").write_text(own + "\n")
    subprocess.run([PEER / "bin" / "pip", "install", "-qq", *wanted], check=True, stdout=sys.stderr)
    done.write_text("\n".join([*wanted, own]))


# --- the table ---


@dataclass(frozen=True)
class Row:
    """Ratios, one per turn, and their goal."""

    what: str
    values: Sequence[float]
    goal: float | None
    is_least: bool = False
    """Whether the goal is the least allowed value; else it is the most."""

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the goal."""
        value = statistics.median(self.values)
        return self.goal is None or (value >= self.goal if self.is_least else value <= self.goal)

    def __str__(self) -> str:
        goal = f"{'>=' if self.is_least else '<='} {self.goal:g} x" if self.goal else ""
        verdict = ("pass" if self.is_met else "MISS") if self.goal else ""
        spread = f"{min(self.values):.2f} to {max(self.values):.2f}"
        return f"{self.what:48} {goal:>9} {statistics.median(self.values):7.2f}   {spread:16} {verdict}"


def compare(case: Case, repeats: int, *, with_opacus: bool) -> list[Row]:
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
    rows = [Row(f"{case.label}: private / plain", ratios, case.plain_goal)]
    if len(times) > 2:
        best = min(list(times)[2:], key=lambda name: statistics.median(times[name]))
        ratios = [one / other for one, other in zip(times[best], times["hubbub"], strict=True)]
        rows.append(Row(f"{case.label}: {best} / hubbub", ratios, case.opacus_goal, is_least=True))
    return rows


def measure(repeats: int, *, with_opacus: bool) -> None:
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in compare(case, repeats, with_opacus=with_opacus)]
    names = ("hubbub", "torch", "numpy", *(["opacus"] if with_opacus else []))
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"\nPython {platform.python_version()}, {packages}, {platform.machine()}, one core, {repeats} turns")
    print(f"{'':48} {'goal':>9} {'median':>7}   {'range':16}")
    for row in rows:
        print(row)
    raise SystemExit(not all(row.is_met for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--without-opacus", action="store_true")
    parser.add_argument("--beside-opacus", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.without_opacus or asked.beside_opacus:
        measure(asked.repeats, with_opacus=asked.beside_opacus)
    install_peer()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    source = str(Path(hubbub.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [PEER / "bin" / "python", __file__, "--beside-opacus", "--repeats", str(asked.repeats)]
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
