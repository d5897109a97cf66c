"""What it costs a run to be recorded, charged, permitted and resumable, as a part of its wall time.

    python benchmarks/overhead.py [--repeats 5]

Runs examples/digits, each time in a process of its own and in a home of its own, and adds up the time inside the log
(open, append, fold, read, close), the federation's questions, keys, salts and commitments, the files of the run (its
copies of events, metrics, the snapshot after each round), and the signed head. Imports, planning, training, claim and
report are the rest; the last two are told as well.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from goals import Result, finish, machine

import hubbub
from hubbub.engine import embedded, running
from hubbub.engine.folder import RunFolder
from hubbub.engine.permission import Permission
from hubbub.engine.record import Record
from hubbub.eventlog import EventLog

STUDY = Path(__file__).parents[1] / "examples" / "digits"
PARTS = {
    "log": [(embedded, "open_log"), *[(EventLog, name) for name in ("append", "fold", "events", "flush", "close")]],
    "permission": [(Permission, "grant"), (Permission, "check_going_on"), (Permission, "accounts")],
    "keys": [(embedded, "open_log_key"), (embedded, "_commitments")],
    "snapshot": [(RunFolder, "write_snapshot")],
    "other files": [(RunFolder, "make"), (RunFolder, "write_start"), (Record, "copy")],
    "signed head": [(running, "sign_checkpoint")],
}
SPANS = {"rounds": "_train", "claim, report": "_result"}


class Meter:
    """Wall seconds inside these functions; one inside another counts once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.processor = 0.0
        self._depth = 0

    @contextlib.contextmanager
    def around(self):  # noqa: ANN201
        """Measure the parts while this lasts."""
        kept = [(owner, name, getattr(owner, name)) for parts in PARTS.values() for owner, name in parts]
        for part, functions in PARTS.items():
            for owner, name in functions:
                setattr(owner, name, self._metered(part, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in kept:
                setattr(owner, name, function)

    def _metered(self, part, function):  # noqa: ANN001, ANN202
        def call(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
            self._depth += 1
            start, worked = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds[part] += time.perf_counter() - start
                    self.processor += time.process_time() - worked

        return call


def timed(seconds, name, function):  # noqa: ANN001, ANN201
    """The function, whose wall seconds are kept under a name."""

    def call(*args):  # noqa: ANN002, ANN202
        start = time.perf_counter()
        result = function(*args)
        seconds[name] = time.perf_counter() - start
        return result

    return call


def once() -> dict[str, float]:
    """One run: wall time of all of it, of its spans and of the parts, and the parts' share of its processor time."""
    meter, seconds = Meter(), dict[str, float]()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder, meter.around():
        for name, method in SPANS.items():
            setattr(running.Running, method, timed(seconds, name, getattr(running.Running, method)))
        start, worked = time.perf_counter(), time.process_time()
        hubbub.run(hubbub.load_study(STUDY), out=Path(folder) / "run", home=Path(folder) / "home")
        seconds["wall"] = time.perf_counter() - start
        processor = 100 * meter.processor / (time.process_time() - worked)
    return {**seconds, "processor": processor, **meter.seconds}


def main() -> None:
    """Measure, compare with the goal, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="one run, as JSON")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once()))
        return
    command = [sys.executable, __file__, "--once"]
    repeats = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(arguments.repeats)]
    costs = [sum(one[part] for part in PARTS) for one in repeats]
    for part in ("wall", *SPANS, *PARTS):
        print(f"  {part:13} {statistics.median(one[part] for one in repeats):.3f} s")
    shares = {
        whole: [100 * cost / one[whole] for cost, one in zip(costs, repeats, strict=True)]
        for whole in ("wall", "rounds")
    }
    finish(
        [
            Result(
                "recorded, charged, permitted, resumable: part of a run", shares["wall"], "<= 2 %", is_headline=True
            ),
            Result("the same as a part of its rounds alone, of 4 ms each", shares["rounds"], "%"),
            Result("the same in processor time", [one["processor"] for one in repeats], "%"),
        ],
        machine("torch"),
    )


if __name__ == "__main__":
    main()
