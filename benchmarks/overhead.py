"""What it costs a run to be recorded, charged, permitted and resumable, as a part of its wall time.

    python benchmarks/overhead.py [--repeats 3]

Runs examples/digits and adds up the time inside the log (append, fold, read), the federation's questions, the
snapshot after each round, and the signed head. Training, accounting and the report are the rest.
"""

import argparse
import contextlib
import os
import statistics
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


def measure() -> tuple[float, dict[str, float], float]:
    """Wall time of a run, of its parts, and the parts' share of its processor time."""
    meter, worked = Meter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder, meter.around():
        result = hubbub.run(hubbub.load_study(STUDY), out=Path(folder) / "run", home=Path(folder) / "home")
    return result.wall_seconds, meter.seconds, 100 * meter.processor / (time.process_time() - worked)


def main() -> None:
    """Measure, compare with the goal, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = [measure() for _ in range(parser.parse_args().repeats)]
    shares = [100 * sum(parts.values()) / wall for wall, parts, _ in repeats]
    print(f"digits, {len(repeats)} runs of {min(wall for wall, *_ in repeats):.1f} s and more")
    for part in PARTS:
        print(f"  {part:12} {statistics.median(parts[part] for _, parts, _ in repeats):.3f} s")
    finish(
        [
            Result("recorded, charged, permitted, resumable: part of a run", shares, "<= 2 %", is_headline=True),
            Result("the same in processor time", [worked for *_, worked in repeats], "%"),
        ],
        machine("torch"),
    )


if __name__ == "__main__":
    main()
