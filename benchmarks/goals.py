"""What a benchmark found, beside its goal: one line for each, `pass` or `miss`.

A script collects `Result`s and ends with `finish`:

    results = [Result("W1: pfl / hubbub", ratios, ">= 10 x")]
    finish(results, machine("torch", "numpy"), "pfl 0.6.0")

The median of the values (or their mean, or the greatest) is held to the goal and their range is shown. A goal is a
comparison, a number and a unit; a unit alone is a value without a goal. The lines also go, as JSON, to the file that
HUBBUB_RESULTS names.
"""

import importlib.metadata
import json
import operator
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "HUBBUB_RESULTS"
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Values of repeated measurements, and their goal as text: `>= 10 x`, `< 0.3 s`, or a unit alone."""

    name: str
    values: Sequence[float]
    goal: str
    is_headline: bool = False
    """Whether README.md shows it even if it passes."""
    by: str = "median"
    """What of the values is held to the goal: their median, their mean, or the greatest ("max")."""

    def __post_init__(self) -> None:
        self._parts()
        if not self.values:
            raise ValueError(f"{self.name}: nothing was measured")

    def _parts(self) -> tuple[str, float, str]:
        found = re.fullmatch(r"(?:(>=|<=|<|>) (-?[\d.]+(?:e-?\d+)?)(?: |$))?([^<>=]*)", self.goal)
        if not found:
            raise ValueError(f"{self.name}: a goal is a comparison, a number and a unit, found {self.goal!r}")
        return found[1] or "", float(found[2] or 0), found[3]

    @property
    def middle(self) -> float:
        """What is held to the goal."""
        return {"median": statistics.median, "mean": statistics.fmean, "max": max}[self.by](self.values)

    @property
    def verdict(self) -> str:
        """`pass`, `miss`, or nothing where there is no goal."""
        comparison, bound, _ = self._parts()
        if not comparison:
            return ""
        return "pass" if COMPARISONS[comparison](self.middle, bound) else "miss"

    @property
    def value(self) -> str:
        """What is held to the goal, with its unit."""
        return f"{shown(self.middle)} {self._parts()[2]}".rstrip()

    @property
    def spread(self) -> str:
        """Least and greatest value, or nothing if there is one value."""
        return f"{shown(min(self.values))} to {shown(max(self.values))}" if len(self.values) > 1 else ""

    @property
    def target(self) -> str:
        """The goal, or nothing if there is none."""
        return self.goal if self._parts()[0] else ""

    def line(self) -> dict[str, Any]:
        """What is written down of it."""
        kept = {"name": self.name, "values": [float(f"{value:.5g}") for value in self.values], "goal": self.goal}
        return kept | {"verdict": self.verdict, "headline": self.is_headline, "by": self.by}

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Result":
        """What was written down."""
        return cls(line["name"], line["values"], line["goal"], line["headline"], line["by"])


def shown(value: float) -> str:
    """Three digits, more where the number is whole or large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine(*packages: str) -> str:
    """Python, the versions of packages of this environment, the processor, and how many processes wanted a core."""
    named = [f"{name} {importlib.metadata.version(name)}" for name in ("hubbub", *packages)]
    cores = f"{os.cpu_count()} cores wanted by {os.getloadavg()[0]:.0f} processes"
    return ", ".join([f"Python {platform.python_version()}", *named, platform.machine(), cores])


def table(results: Iterable[Result]) -> str:
    """Results under one another, columns aligned."""
    rows = [("", "goal", "measured", "range", "")]
    rows += [(result.name, result.target, result.value, result.spread, result.verdict) for result in results]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = []
    for name, goal, value, spread, verdict in rows:
        cells = (name.ljust(widths[0]), goal.rjust(widths[1]), value.rjust(widths[2]), spread.ljust(widths[3]), verdict)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def record(results: Iterable[Result], versions: str) -> None:
    """Append one JSON line for each result to the file that the environment names, if it does."""
    if not (path := os.environ.get(VARIABLE)):
        return
    common = {"benchmark": Path(sys.argv[0]).stem, "versions": versions}
    with Path(path).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(common | result.line()) + "\n" for result in results)


def finish(results: Sequence[Result], *versions: str) -> None:
    """Print and record; end the process, with exit code 1 if a goal was missed."""
    text = ", ".join(versions)
    print(f"\n{text}\n{table(results)}", flush=True)
    record(results, text)
    sys.exit(int(any(result.verdict == "miss" for result in results)))
