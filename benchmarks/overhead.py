"""What it costs a run to be recorded, charged, permitted and resumable, as a part of its wall time.

    python benchmarks/overhead.py [--repeats 5]

Runs examples/digits, each time in a process of its own, and adds up the time inside the log (append, fold, read), the
federation's questions, the snapshot after each round, and the signed head. Imports, planning, training and the report
are the rest.
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
from hubbub.engine import running
from hubbub.engine.folder import RunFolder
from hubbub.engine.permission import Permission
from hubbub.eventlog import EventLog

STUDY = Path(__file__).parents[1] / "examples" / "digits"
PARTS = {
    "log": [(EventLog, "append"), (EventLog, "fold"), (EventLog, "events"), (EventLog, "flush")],
    "permission": [(Permission, "grant"), (Permission, "check_going_on"), (Permission, "accounts")],
    "snapshot": [(RunFolder, "write_snapshot")],
    "signed head": [(running, "sign_checkpoint")],
}


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


def once() -> dict[str, float]:
    """One run: wall time of all of it, of its rounds, of the parts, and the parts' share of its processor time."""
    meter, worked = Meter(), time.process_time()
    train, rounds = running.Running._train, []  # noqa: SLF001, timed from outside

    def timed(*args):  # noqa: ANN002, ANN202
        start = time.perf_counter()
        result = train(*args)
        rounds.append(time.perf_counter() - start)
        return result

    running.Running._train = timed  # noqa: SLF001
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder, meter.around():
        result = hubbub.run(hubbub.load_study(STUDY), out=Path(folder) / "run", home=Path(folder) / "home")
    processor = 100 * meter.processor / (time.process_time() - worked)
    return {"wall": result.wall_seconds, "rounds": sum(rounds), "processor": processor, **meter.seconds}


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
    for part in ("wall", "rounds", *PARTS):
        print(f"  {part:12} {statistics.median(one[part] for one in repeats):.3f} s")
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
