"""What a dataset's owner allows, and whether a run still fits.

A grant is of one kind for ever. A `schedule` lists plans in advance and may be composed by PLD, which holds
for parameters fixed beforehand; nothing else is admitted. A `filter` admits runs chosen after seeing the
results of earlier ones, and so composes at one Renyi order fixed when the grant was made. A `gaussian` grant is
a filter too, of Gaussian differential privacy: tighter, exact, and for noise without sampling only.

Source:
    Feldman and Zrnic 2021, arXiv:2008.11193 (Renyi filters); Whitehouse et al. 2023, arXiv:2309.05901; Koskela,
    Tobaben, Honkela 2022, arXiv:2209.15596 (Gaussian filters).
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import msgspec

from hubbub.accounting.epsilon import ORDERS, SEARCH, epsilon, gdp_epsilon, rdp_epsilon
from hubbub.accounting.shown import at_least
from hubbub.errors import InputError
from hubbub.events import NOT_PRIVATE, BudgetGranted, BudgetReserved, EventDocument, repeated
from hubbub.study.rules import LARGEST_DELTA

SMALLEST_ORDER = 2
"""Of a filter: below it the Renyi divergence of sampled noise is a series that often does not converge."""

Use = tuple[BudgetReserved, int]
"""A reservation and how many of its attempts count."""


def composed(grant: BudgetGranted, uses: Sequence[Use]) -> float:
    """Epsilon of everything a grant has paid for, by the grant's own accountant, discrete noise included.

    Guarantees:
        An upper bound at `grant.delta`; but for a schedule, also over adaptively chosen runs. Infinite for a
        gaussian grant if a run's noise is anything but Gaussian without sampling.
    """
    events = [repeated(reserved.dp_event, count) for reserved, count in uses if count]
    if not events:
        return 0.0
    h = math.fsum(reserved.inflation for reserved, _ in uses)
    delta = grant.delta * math.exp(-h)
    if grant.kind == "schedule":
        return epsilon(events, delta).epsilon + 2 * h
    if grant.kind == "gaussian":
        return gdp_epsilon(events, delta) + 2 * h
    return rdp_epsilon(events, delta, grant.order)[0] + 2 * h


def planned(grant: BudgetGranted, uses: Sequence[Use]) -> float:
    """Epsilon of the same runs by privacy loss distributions: what they would cost, had all been fixed in advance.

    For reading only: of runs that were chosen one after the other it is no bound, and nothing is admitted by it.
    """
    h = math.fsum(reserved.inflation for reserved, _ in uses)
    events = [repeated(reserved.dp_event, count) for reserved, count in uses if count]
    return epsilon(events, grant.delta * math.exp(-h), interval=SEARCH).epsilon + 2 * h if events else 0.0


def is_private(reserved: BudgetReserved) -> bool:
    """Whether a reservation is for noised releases (a study with noise = "none" is not)."""
    return reserved.dp_event["@"] != NOT_PRIVATE["@"]


def filter_grant(
    dataset: str,
    unit: str,
    epsilon: float,
    delta: float,
    *,
    order: float | None = None,
    kind: Literal["filter", "gaussian", "unbounded"] = "filter",
    granted_by: Literal["sandbox", "owner"] = "owner",
) -> BudgetGranted:
    """Allow runs chosen one after another, up to (epsilon, delta).

    Args:
        dataset: Whose budget.
        unit: "example" or "client": who is protected.
        epsilon: The most that may ever be spent. Positive, finite.
        delta: Fixed for the life of the budget.
        order: Renyi order at which everything is composed; default: the one at which plain Gaussian noise
            would reach epsilon first. 0 for a gaussian grant, which has none.
        kind: "filter"; "gaussian" for noise without sampling only; "unbounded" for records that their owner would
            publish: everything is admitted, noise or not, and counted.
        granted_by: "owner", or "sandbox" for an automatic grant.

    Raises:
        InputError: Epsilon or delta is out of range.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(
            f"{dataset}: epsilon, must be a positive number, found {epsilon!r}; nothing granted",
            hint="--epsilon 3",
        )
    if not 0 < delta <= LARGEST_DELTA:
        raise InputError(
            f"{dataset}: delta, must be above 0 and at most {LARGEST_DELTA:g}, found {delta!r}; nothing granted",
            hint=f"--delta {LARGEST_DELTA:g}",
        )
    if kind == "gaussian":
        order = 0.0
    if order is None:
        log = -math.log(delta)
        best = 1 + math.sqrt(log) * (math.sqrt(log + epsilon) + math.sqrt(log)) / epsilon
        best = min(best, ORDERS[-1])  # of a tiny epsilon it is infinite
        usable = [candidate for candidate in ORDERS if candidate >= SMALLEST_ORDER]
        order = float(min(usable, key=lambda candidate: abs(candidate - best)))
    return BudgetGranted(
        dataset=dataset,
        unit=unit,
        kind=kind,
        epsilon=epsilon,
        delta=delta,
        order=order,
        plan_hashes=(),
        granted_by=granted_by,
    )


def schedule_grant(
    dataset: str, plans: Sequence[BudgetReserved], epsilon_granted: float, delta: float
) -> BudgetGranted:
    """Allow exactly these plans, listed in advance.

    Raises:
        InputError: Together they cost more than is granted, protect different units, or add no noise.
    """
    units = {plan.unit for plan in plans}
    if len(units) != 1 or not all(map(is_private, plans)):
        raise InputError(
            f"{dataset}: schedule, must list plans with noise for one unit, found {sorted(units)}; nothing granted",
            hint="list other plans",
        )
    granted = msgspec.structs.replace(
        filter_grant(dataset, plans[0].unit, epsilon_granted, delta, order=0.0),
        kind="schedule",
        plan_hashes=tuple(plan.plan_hash for plan in plans),
    )
    cost = composed(granted, [(plan, plan.attempts) for plan in plans])
    if cost > epsilon_granted:
        raise InputError(
            f"{dataset}: epsilon, must cover the listed plans, which cost {at_least(cost)}, found {epsilon_granted:g}; "
            "nothing granted",
            hint=f"--epsilon {math.ceil(cost * 100) / 100:g}",
        )
    return granted


def _cheapest(dp_event: EventDocument, delta: float) -> tuple[float, float]:
    """Epsilon of an event at the order where it is least, and that order: found downhill, in ever smaller steps.

    A tenth of the work of trying all orders. Where there are several valleys, it may end in another than the deepest:
    the epsilon that it finds there holds as well.
    """

    @cache
    def cost(at: int) -> float:
        return rdp_epsilon([dp_event], delta, ORDERS[at])[0] if 0 <= at < len(ORDERS) else math.inf

    at = ORDERS.index(11.0)
    for step in (40, 10, 3, 1):  # the first two lead from whole orders to whole ones, where every series converges
        while (better := min(at, at - step, at + step, key=cost)) != at:
            at = better
    return cost(at), ORDERS[at]


def sandbox_grant(dataset: str, reserved: BudgetReserved, delta: float) -> BudgetGranted:
    """Allow a dataset, at first use, twice the first run: for one person trying hubbub on a laptop.

    The filter's order is one at which twice the schedule costs least, its epsilon that cost: so a
    second run always fits, and a third one is refused until somebody decides.
    """
    h = 2 * reserved.inflation
    cost, order = _cheapest(repeated(reserved.dp_event, 2 * reserved.attempts), delta * math.exp(-h))
    rounded_up = math.ceil((cost + 2 * h) * 10_000) / 10_000
    return filter_grant(dataset, reserved.unit, rounded_up, delta, order=order, granted_by="sandbox")
