"""Simulated federations: hubbub beside pfl 0.6 and Flower 1.42's simulation on the same two cores, by turns.

    python benchmarks/engine.py [W1] [W2] [W3] [--repeats 3] [--minutes 25] [--without-check]

engines/workloads.py says what is trained; each engine is a process of its own with its own script there. hubbub is
`hubbub.run` with all that it does: secret Poisson cohorts, exact noise, ledger and log on disk, accounting, metrics;
the others clip, add floating-point noise, and measure as often on the same records. All may use two processes, pfl
takes the better of one and two. First each engine trains twenty clients without noise and sampling, records in the
same order: all reach the same weights, up to hubbub's rounding to multiples of 2^-20.

Milliseconds are the median over the rounds after the first; the first is shown apart, as seconds since the process
was started. Nothing is taken off, from nobody's. A ratio is that of two neighbours in one turn. CPU milliseconds stand
beside, because other work on the machine moves them less.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
from goals import Result, finish, machine, shown

FOLDER = Path(__file__).resolve().parent / "engines"
sys.path.insert(0, str(FOLDER))
from workloads import WORKLOADS, Workload, source, torch_model  # noqa: E402, shared with the others' environments

GOALS = {"W1": (10, 50), "W2": (1.7, 15), "W3": (1, 2)}
"""How many times as fast as pfl and Flower."""
ROUNDS = {"W1": 30, "W2": 20, "W3": 8}
EXACT_ROUNDS, EXACT_CLIENTS, TOLERANCE = 2, 20, 0.01
MINUTES = 10
EVERYBODY = "hubbub, all 1000"


@dataclass(frozen=True)
class Engine:
    """Who trains, in how many processes."""

    name: str
    script: str
    workers: int
    of_rounds: float = 1
    """Rounds that are enough, as a part of hubbub's."""

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return Path(sys.executable) if self.script == "hubbub" else peers.python(self.script)


HUBBUB = Engine("hubbub", "hubbub", 2)
PFL = [Engine("pfl, 1 process", "pfl", 1), Engine("pfl, 2 processes", "pfl", 2)]
FLOWER = Engine("Flower, 2 actors", "flower", 2, of_rounds=0.5)
ENGINES = [HUBBUB, *PFL, FLOWER]
Played = Mapping[str, Any]


def play(engine: Engine, workload: Workload, **options: Any) -> Played:
    """One training in a process of its own; what its last line says."""
    settings = {"rounds": max(3, round(ROUNDS[workload.name] * engine.of_rounds)), "cohort": workload.cohort}
    settings |= {"clients": workload.clients, "workers": engine.workers, **options}
    flags = [f"--{name}={value}" if value is not True else f"--{name}" for name, value in settings.items()]
    command = [engine.python, FOLDER / f"{engine.script}_run.py", workload.name, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60 * MINUTES)
    if done.returncode:
        sys.exit(f"{workload.name}, {engine.name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check_weights(workload: Workload) -> None:
    """Stop if the engines do not reach the same weights; print how far they are apart."""
    first = np.concatenate([part.detach().numpy().ravel() for part in torch_model(workload).parameters()])
    reached = {}
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npy"
            few = {"rounds": EXACT_ROUNDS, "clients": EXACT_CLIENTS, "cohort": EXACT_CLIENTS}
            play(engine, workload, exact=True, weights=path, **few)
            reached[engine.name] = np.load(path)
    moved = np.linalg.norm(reached["hubbub"] - first)
    for name, weights in reached.items():
        apart = float(np.linalg.norm(weights - reached["hubbub"]) / moved)
        print(f"  {workload.name} without noise, {name}: within {apart:.0e} of the way that hubbub's weights moved")
        assert apart < TOLERANCE, f"{workload.name}: {name} and hubbub reach other weights"


def milliseconds(played: Played) -> float:
    """Median time of a round after the first."""
    ends = [played["since"], *played["at"][1:]]
    return 1000 * statistics.median(after - before for before, after in itertools.pairwise(ends))


def busy(played: Played) -> float:
    """CPU milliseconds of all its processes in a round after the first, on average."""
    return 1000 * (played["used"][1] - played["used"][0]) / (len(played["at"]) - 1)


def show(workload: Workload, turns: Mapping[str, Sequence[Played]]) -> None:
    columns: dict[str, Callable[[Played], float]] = {
        "ms per round": milliseconds,
        "CPU ms": busy,
        "ms measuring": lambda played: 1000 * statistics.median(played["measuring"][1:]),
        "first round, s": lambda played: played["at"][0],
        "GiB above import": lambda played: played["grown"],
    }
    print(f"\n{workload.name}, images of {source(workload)}: medians and ranges over {len(turns['hubbub'])} turns")
    print(f"  {'':18}", *(name.ljust(24) for name in columns))
    for name, played in turns.items():
        cells = [[column(one) for one in played] for column in columns.values()]
        texts = [f"{shown(statistics.median(cell))} ({shown(min(cell))} to {shown(max(cell))})" for cell in cells]
        print(f"  {name:18}", *(text.ljust(24) for text in texts), flush=True)


def ratios(
    over: Sequence[Played], under: Sequence[Played], of: Callable[[Played], float] = milliseconds
) -> list[float]:
    return [of(one) / of(other) for one, other in zip(over, under, strict=True)]


def compare(workload: Workload, turns: Mapping[str, Sequence[Played]]) -> list[Result]:
    """Goals beside each peer; what the others took is in the ratios."""
    own = turns["hubbub"]
    best = min((turns[engine.name] for engine in PFL), key=lambda played: statistics.median(map(milliseconds, played)))
    pfl, flower = GOALS[workload.name]
    name = workload.name
    return [
        Result(f"{name}, a round: pfl 0.6 / hubbub", ratios(best, own), f">= {pfl:g} x", is_headline=True),
        Result(
            f"{name}, a round: Flower 1.42 / hubbub",
            ratios(turns[FLOWER.name], own),
            f">= {flower:g} x",
            is_headline=True,
        ),
        Result(f"{name}, CPU time of a round: pfl 0.6 / hubbub", ratios(best, own, busy), "x"),
        Result(f"{name}, CPU time of a round: Flower 1.42 / hubbub", ratios(turns[FLOWER.name], own, busy), "x"),
        Result(f"{name}, a round of hubbub", [milliseconds(one) for one in own], "ms"),
        Result(f"{name}, hubbub's process started to end of round 1", [one["at"][0] for one in own], "s"),
    ]


def take_turn(workload: Workload, turns: dict[str, list[Played]], *, is_odd: bool) -> None:
    """Every engine once, in one order or the other."""
    for engine in ENGINES if is_odd else reversed(ENGINES):
        turns[engine.name].append(play(engine, workload))
    if workload.name == "W1":
        turns[EVERYBODY].append(play(HUBBUB, workload, cohort=workload.clients, rounds=10))


def found(workload: Workload, turns: Mapping[str, Sequence[Played]]) -> list[Result]:
    """What the turns of one workload say."""
    show(workload, turns)
    results = compare(workload, turns)
    if workload.name == "W1":
        grows = ratios(turns[EVERYBODY], turns["hubbub"])
        results.append(Result("W1, a round of 1000 clients / of 100", grows, "<= 6 x", is_headline=True))
    if workload.name == "W2":
        grown = [one["grown"] for one in turns["hubbub"]]
        named = "W2, memory above import: 1000 clients with 60 MNIST images"
        results.append(Result(named, grown, "< 1 GiB", is_headline=True))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="W", help="W1, W2, W3 (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=25, help="for all turns: there are fewer if they take longer")
    parser.add_argument("--without-check", action="store_true", help="do not compare weights first")
    asked = parser.parse_args()
    if unknown := set(asked.workloads) - WORKLOADS.keys():
        parser.error(f"workloads are W1, W2, W3, found {', '.join(sorted(unknown))}")
    chosen = [WORKLOADS[name] for name in asked.workloads or WORKLOADS]
    for workload in [] if asked.without_check else chosen:
        check_weights(workload)
    turns: dict[str, dict[str, list[Played]]] = {workload.name: defaultdict(list) for workload in chosen}
    started = time.monotonic()
    for repeat in range(asked.repeats):
        if repeat and time.monotonic() - started > 60 * asked.minutes * repeat / (repeat + 1):
            break  # another turn would end too late
        for workload in chosen:
            take_turn(workload, turns[workload.name], is_odd=bool(repeat % 2))
    results = [result for workload in chosen for result in found(workload, turns[workload.name])]
    versions = [peers.version("pfl", "pfl"), peers.version("flower", "flwr", "ray")]
    finish(results, machine("torch", "numpy"), *versions)


if __name__ == "__main__":
    main()
