"""report.html: what a run did and cost, in one file that anybody can open."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from hubbub.accounting.shown import at_least
from hubbub.events import BudgetCharged, Evaluated, Event
from hubbub.observe.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Plot
from hubbub.planning import Plan
from hubbub.release import ReleaseClaim

TEMPLATE = Path(__file__).parent / "report.html.j2"


def write_report(path: Path, plan: Plan, claim: ReleaseClaim, events: Sequence[Event]) -> None:
    """Write a run's report: the claim, utility and epsilon against rounds, the trust table.

    Args:
        path: File to write.
        plan: The plan that was run.
        claim: Its claim.
        events: All events of the run, in order.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = show_number
    environment.filters["cost"] = show_cost
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    frame = {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
    }
    page = template.render(plan=plan, claim=claim, plots=_plots(plan, claim, events), frame=frame)
    path.write_text(page, encoding="utf-8")


def show_number(value: object) -> str:
    """A number for a reader: four decimals, no trailing zeros, "infinite" for None.

    >>> show_number(2.94789), show_number(60), show_number(None)
    ('2.9479', '60', 'infinite')
    """
    if value is None:
        return "infinite"
    if isinstance(value, float) and abs(value) >= 1e-3:  # noqa: PLR2004, below it scientific notation reads better
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_cost(epsilon: float | None) -> str:
    """An epsilon that was or will be spent: four decimals, rounded up, "infinite" for None.

    >>> show_cost(2.94781), show_cost(3.0), show_cost(None)
    ('2.9479', '3', 'infinite')
    """
    return "infinite" if epsilon is None else at_least(epsilon).rstrip("0").rstrip(".")


def _plots(plan: Plan, claim: ReleaseClaim, events: Sequence[Event]) -> list[Plot]:
    measured = [event for event in events if isinstance(event, Evaluated)]
    names = sorted({name for event in measured for name in event.metrics})
    goals: Mapping[str, float] = claim.success
    plots = [
        Plot(
            f"test {name}",
            [(event.round_number, event.metrics[name]) for event in measured if math.isfinite(event.metrics[name])],
            goals.get(name),
            "goal",
        )
        for name in names
    ]
    attempts = sum(isinstance(event, BudgetCharged) for event in events)
    spent = [(attempt, plan.epsilon_after(attempt)) for attempt in range(attempts + 1)]
    known = [(float(attempt), value) for attempt, value in spent if value is not None]
    plots.append(Plot("epsilon", known, claim.epsilon_budget, "budget"))
    return [plot for plot in plots if len(plot.points) > 1]
