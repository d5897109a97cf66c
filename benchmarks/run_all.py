"""Run every benchmark, each in a process of its own, and write down what they found.

    python benchmarks/run_all.py [name ...]     (make bench, make bench ONLY="engine noise")

Prints each script's own output and then one line for each goal: goal, value, pass or miss. The lines go to
benchmarks/results.jsonl, where those of scripts that were not asked for stay as they were, and from there into
README.md (what is marked as headline, and every miss) and docs/benchmarks.md (everything, with versions).
A script that fails or outlasts its limit has missed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from goals import VARIABLE, Result, table

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
KEPT = FOLDER / "results.jsonl"
LIMITS = {
    "engine": 40, "clipper": 20, "noise": 5, "commands": 10, "overhead": 10,
    "secagg": 40, "secagg_tails": 20, "log": 10, "accuracy": 20, "deploy": 20,
}  # fmt: skip
"""Minutes that each script may take, in the order in which they run."""
BEGIN, END = "<!-- benchmarks: written by make bench -->", "<!-- end of benchmarks -->"
HEADER = "| what | goal | measured (range) | |\n|---|---|---|---|\n"


def run(name: str, found: Path) -> int:
    """Run one script and everything that it starts, for as long as it may take."""
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    environment = {**os.environ, VARIABLE: str(found)}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(60 * LIMITS[name])
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {LIMITS[name]} minutes", flush=True)
        return -1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def measure(name: str) -> list[str]:
    """One script's lines; a line of its own if it did not come to its end."""
    found = ROOT / "build" / "benchmarks" / f"{name}.jsonl"
    found.parent.mkdir(parents=True, exist_ok=True)
    found.unlink(missing_ok=True)
    code = run(name, found)
    lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    if code not in (0, 1) or not lines:
        lines.append(json.dumps({"benchmark": name, "versions": "", **Result("ran to its end", [0], ">= 1").line()}))
    return lines


def row(line: dict) -> str:
    result = Result.of(line)
    measured = f"{result.value} ({result.spread})" if result.spread else result.value
    return f"| {result.name} | {result.target} | {measured} | {line['verdict']} |\n"


def summary(lines: Sequence[dict]) -> str:
    """README's table: headlines, and every miss."""
    shown = [line for line in lines if line["headline"] or line["verdict"] == "miss"]
    passed, held = (sum(line["verdict"] in which for line in lines) for which in (("pass",), ("pass", "miss")))
    count = f"\n{passed} of {held} goals are met; [docs/benchmarks.md](docs/benchmarks.md) shows all, with versions.\n"
    return HEADER + "".join(map(row, shown)) + count


def page(lines: Sequence[dict]) -> str:
    """docs/benchmarks.md."""
    text = "# Benchmarks\n\nWritten by `make bench`: medians of repeated measurements (means or worst values where a "
    text += "line says so) and their range. The first lines of each script say what is measured and how.\n"
    for name, part in groupby(lines, key=lambda line: line["benchmark"]):
        own = list(part)
        text += f"\n## `benchmarks/{name}.py`\n\n{own[0]['versions']}\n\n{HEADER}{''.join(map(row, own))}"
    return text


def write(lines: Iterable[str]) -> None:
    """Put everything found into results.jsonl, README.md and docs/benchmarks.md."""
    KEPT.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
    (ROOT / "docs" / "benchmarks.md").write_text(page(found), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    (ROOT / "README.md").write_text(f"{before}{BEGIN}\n\n{summary(found)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    known = [name for name in LIMITS if (FOLDER / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(known)}")
    names = parser.parse_args().names or known
    if unknown := set(names) - set(known):
        parser.error(f"benchmarks are {', '.join(known)}, found {', '.join(sorted(unknown))}")
    kept = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    by_name = {name: [line for line in kept if json.loads(line)["benchmark"] == name] for name in LIMITS}
    for name in names:
        print(f"== {name}", flush=True)
        by_name[name] = measure(name)
        write(line for name in LIMITS for line in by_name[name])
    results = [Result.of(json.loads(line)) for name in names for line in by_name[name]]
    print(f"\n== all\n{table(results)}")
    raise SystemExit(any(result.verdict == "miss" for result in results))


if __name__ == "__main__":
    main()
