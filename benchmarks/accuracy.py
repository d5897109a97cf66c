"""Test accuracy at the examples' own budgets: every seed and the mean, beside a goal.

    python benchmarks/accuracy.py [breast_cancer] [digits] [phones] [--seeds 5]

Seed s is the study's seed and the held-out fifth: `train_test_split(test_size=0.2, stratify=y,
random_state=s)`. Each run goes through `hubbub.run`, with noise from the operating system and a budget
ledger of its own, so two calls of this script differ in the last digits.
"""

import argparse
import os
import tempfile
from pathlib import Path

import msgspec
from goals import Result, finish, machine

import hubbub
from hubbub.engine import RunResult

EXAMPLES = Path(__file__).parents[1] / "examples"
GOALS = {"breast_cancer": 0.955, "digits": 0.93, "phones": 0.80}


def run(example: str, seed: int) -> RunResult:
    """Run one example in a temporary folder, so that its own lock, ledger and runs stay as they are."""
    os.environ["SPLIT"] = str(seed)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "study"
        copy.mkdir()
        for name in ("study.toml", "study.py"):
            (copy / name).write_bytes((EXAMPLES / example / name).read_bytes())
        study = hubbub.load_study(copy)
        header = msgspec.structs.replace(study.settings.study, seed=seed)
        settings = msgspec.structs.replace(study.settings, study=header)
        study = hubbub.Study(settings=settings, directory=copy)
        return hubbub.run(study, out=Path(folder) / "run", home=Path(folder) / "home")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("examples", nargs="*", help=f"default: {' '.join(GOALS)}")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    unknown = set(asked.examples) - set(GOALS)
    if unknown:
        parser.error(f"examples are {', '.join(GOALS)}, found {', '.join(sorted(unknown))}")
    finish([measure(name, asked.seeds) for name in asked.examples or GOALS], machine("torch", "scikit-learn"))


def measure(example: str, seeds: int) -> Result:
    """Print every seed of one example; the mean is held to its goal."""
    accuracies = []
    for seed in range(seeds):
        result = run(example, seed)
        accuracies.append(result.metrics["accuracy"])
        spent = f"epsilon {result.epsilon_spent:.4f} of {result.epsilon_budget:g} at delta {result.delta:g}"
        print(
            f"{example:14} seed {seed}: accuracy {accuracies[-1]:.4f}  {spent}  {result.wall_seconds:.1f} s", flush=True
        )
    name = f"{example}: test accuracy, mean of {seeds} seeds, epsilon {result.epsilon_budget:g}"
    return Result(name, accuracies, f">= {GOALS[example]:g}", is_headline=True, by="mean")


if __name__ == "__main__":
    main()
