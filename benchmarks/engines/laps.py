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
    """Seconds since this process began, after each round, and the greatest memory and the CPU seconds then.

    To look at memory takes longer than a small round, so what that takes is taken off.
    """

    def __init__(self) -> None:
        self.asked = arguments()
        self.workload: Workload = WORKLOADS[self.asked.workload]
        self.at: list[float] = []
        self.measuring: list[float] = []
        """Seconds spent on the test records after each round."""
        self.used: list[float] = []
        """CPU seconds of everything that was started, after each round."""
        self._lost = self._lost_busy = 0.0
        self.imported = self.peak = family()[0]
        self._resident = status("VmRSS")

    def load(self) -> Data:
        """The workload's data."""
        return load(self.workload)

    def lap(self) -> None:
        """A round has ended."""
        self.at.append(seconds_alive() - self._lost)
        started, busy = time.perf_counter(), time.process_time()
        held, used = family()
        self.used.append(used - self._lost_busy)
        self.peak = max(self.peak, held)
        self._lost += time.perf_counter() - started
        self._lost_busy += time.process_time() - busy

    def finish(self, weights: Sequence[np.ndarray]) -> None:
        """Write the final weights where asked, and print what was measured."""
        flat = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in weights])
        if self.asked.weights:
            np.save(self.asked.weights, flat)
        grown = max(self.peak - self.imported, status("VmHWM") - self._resident)  # between rounds; this process ever
        line = {
            "at": self.at, "used": self.used, "measuring": self.measuring, "imported": self.imported, "grown": grown,
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


def family() -> tuple[float, float]:
    """GiB that this process and what it started hold, shared pages counted once; CPU seconds that they used."""
    stats, children = {}, defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            process = int(path.parent.name)
            stats[process] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            children[int(fields[1])].append(process)
    waiting, held, used = [os.getpid()], 0, 0.0
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        used += stats[process]
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            held += int(rollup.partition("\nPss:")[2].split()[0])
    return held / 2**20, used
