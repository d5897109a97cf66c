"""How long a person waits for a command that trains nothing.

    python benchmarks/commands.py [--repeats 3]

Each command is a process of its own, from its start to its end, with everything that it imports. Admission is timed
inside a process, in a ledger of thirty runs of different plans, read anew from its file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from goals import Result, finish, machine

from hubbub.accounting.grants import filter_grant
from hubbub.accounting.ledger import Ledger
from hubbub.eventlog import EventLog
from hubbub.events import BudgetReserved

RUNS = 30


def seconds(arguments: Sequence[str | Path], home: Path) -> float:
    """Wall time of `hubbub ARGUMENTS`."""
    environment = {**os.environ, "HUBBUB_HOME": str(home)}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hubbub", *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def reserved(number: int) -> BudgetReserved:
    """A run like no other."""
    noise = {"@": "GaussianDpEvent", "noise_multiplier": 1 + 0.05 * number}
    sampled = {"@": "PoissonSampledDpEvent", "sampling_probability": 0.01 + 0.001 * number, "event": noise}
    return BudgetReserved(
        run=f"run-{number}", plan_hash=f"{number:064x}", unit="example", datasets=("heart",), dp_event=sampled,
        attempts=100 + 10 * number, inflation=1e-20,
    )  # fmt: skip


def fill(home: Path) -> None:
    """Make a ledger of thirty runs that have ended."""
    log = EventLog(home / "log.db")
    ledger = Ledger(log)
    ledger.grant([filter_grant("heart", "example", 100.0, 1e-6)])
    for number in range(RUNS):
        ledger.reserve(reserved(number))
        ledger.charge(f"run-{number}", 1, 1)
    log.close()


def admission(home: Path, number: int) -> float:
    """Time to read the ledger and to admit one more run into it."""
    start = time.perf_counter()
    log = EventLog(home / "log.db")
    Ledger(log).reserve(reserved(number))
    elapsed = time.perf_counter() - start
    log.close()
    return elapsed


def long_study(folder: Path) -> Path:
    """The study that `hubbub new` writes, with a thousand rounds; checked, so that it can be planned."""
    study = folder / "study"
    seconds(["new", study], folder)
    settings = (study / "study.toml").read_text()
    seconds(["check", study], folder)
    return write(study, settings.replace("rounds = 30", "rounds = 1000"))


def write(study: Path, settings: str) -> Path:
    """Give a study other settings."""
    (study / "study.toml").write_text(settings)
    return study


def main() -> None:
    """Measure, compare with the goals, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = range(parser.parse_args().repeats)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        study, home = long_study(folder), folder / "ledger"
        planning = [seconds(["plan", study], folder) for _ in repeats]
        write(study, (study / "study.toml").read_text().replace("rounds = 1000", "rounds = 30"))
        seconds(["run", study, "--quiet", "--out", folder / "run"], folder / "home")
        seconds(["release", folder / "run"], folder / "home")
        bundle = folder / "run" / "bundle"
        fill(home)
        admission(home, RUNS)  # the first one imports the accountant
        results = [
            Result("hubbub --help", [seconds(["--help"], home) for _ in repeats], "< 0.3 s"),
            Result("hubbub plan, 1000 rounds", planning, "< 4 s"),
            Result(
                f"admission into a ledger of {RUNS} runs",
                [admission(home, RUNS + 1 + at) for at in repeats],
                "< 0.1 s",
            ),
            Result(
                f"budget show --planned (PLD), {RUNS} runs",
                [seconds(["budget", "show", "--planned"], home) for _ in repeats],
                "< 2 s",
            ),
            Result(
                "verify, small bundle", [seconds(["verify", bundle], home) for _ in repeats], "< 3 s", is_headline=True
            ),
            Result(
                "verify --no-recompute, small bundle",
                [seconds(["verify", "--no-recompute", bundle], home) for _ in repeats],
                "< 0.5 s",
            ),
        ]
    finish(results, machine("dp-accounting", "numpy"))


if __name__ == "__main__":
    main()
