"""One line against rounds, as inline SVG: ticks, labels, a goal. No script, no fonts, no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Plot:
    """A curve over rounds.

    Args:
        title: What the vertical axis shows.
        points: (round, value), in order of rounds, at least one.
        goal: A level to compare with, drawn dashed.
        goal_name: What that level is.
    """

    title: str
    points: Sequence[tuple[float, float]]
    goal: float | None = None
    goal_name: str = ""

    @property
    def y_ticks(self) -> list[float]:
        """Round numbers that span all values and the goal."""
        values = [value for _, value in self.points] + ([self.goal] if self.goal is not None else [])
        return ticks(min(values), max(values))

    @property
    def x_ticks(self) -> list[float]:
        """Round numbers that span all rounds, from 0."""
        return ticks(0, max(x for x, _ in self.points))

    def x(self, value: float) -> float:
        """Horizontal position in pixels."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Vertical position in pixels."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    @property
    def path(self) -> str:
        """The curve as an SVG polyline."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in self.points)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`.

    >>> ticks(0, 60)
    [0.0, 20.0, 40.0, 60.0]
    """
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * max(size, 1e-3) else max(size, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = power * next(size for size in _STEPS if size * power * count >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]
