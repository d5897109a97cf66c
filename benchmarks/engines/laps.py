"""What each engine's script shares: its arguments, a stopwatch, and the line of JSON that it ends with."""

import argparse
import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from workloads import WORKLOADS, Data, Workload, load


class Laps:
    """Seconds since this process began, after each round; memory, and CPU seconds of all processes, twice.

    To look at memory takes longer than a small round, and what an engine does meanwhile in its other processes would
    be a gift. So that is done after the first round and after the last; between them nobody looks at anything but the
    clock, and nothing is taken off what it says.
    """

    def __init__(self) -> None:
        self.asked = arguments()
        self.workload: Workload = WORKLOADS[self.asked.workload]
        self.at: list[float] = []
        self.measuring: list[float] = []
        """Seconds spent on the test records after each round."""
        self.since = 0.0
        """When the second round could begin: the first has ended and was looked at."""
        self.used: list[float] = []
        """CPU seconds of everything that was started: then, and after the last round."""
        self.imported = self.peak = held(family())
        self._resident = status("VmRSS")

    def load(self) -> Data:
        """The workload's data."""
        return load(self.workload)

    def lap(self) -> None:
        """A round has ended."""
        self.at.append(seconds_alive())
        if len(self.at) == 1:
            self.peak = max(self.peak, held(family()))
            self.used.append(busy(family()))
            self.since = seconds_alive()
        if len(self.at) == self.asked.rounds:
            processes = family()
            self.used.append(busy(processes))
            self.peak = max(self.peak, held(processes))

    def finish(self, weights: Sequence[np.ndarray]) -> None:
        """Write the final weights where asked, and print what was measured."""
        flat = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in weights])
        if self.asked.weights:
            np.save(self.asked.weights, flat)
        grown = max(self.peak - self.imported, status("VmHWM") - self._resident)  # between rounds; this process ever
        line = {
            "at": self.at, "since": self.since, "used": self.used, "measuring": self.measuring,
            "imported": self.imported, "grown": grown,
        }  # fmt: skip
        print(json.dumps(line), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--cohort", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="everybody, no noise, hubbub's order of records")
    parser.add_argument("--weights", help="where the final weights go")
    return parser.parse_args()


def seconds_alive() -> float:
    """Wall seconds since the process was made, imports included."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def status(key: str) -> float:
    """GiB by /proc/self/status."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) / 2**20


def family() -> dict[int, float]:
    """This process and what it started: CPU seconds that each has used."""
    stats, children = {}, defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            process = int(path.parent.name)
            stats[process] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            children[int(fields[1])].append(process)
    found, waiting = {}, [os.getpid()]
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        found[process] = stats[process]
    return found


def busy(processes: dict[int, float]) -> float:
    """CPU seconds of them all."""
    return sum(processes.values())


def held(processes: dict[int, float]) -> float:
    """GiB that they hold, shared pages counted once."""
    kib = 0
    for process in processes:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            kib += int(rollup.partition("\nPss:")[2].split()[0])
    return kib / 2**20
