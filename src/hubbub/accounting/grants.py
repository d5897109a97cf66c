"""What a dataset's owner allows, and whether a run still fits.

A grant is of one kind for ever. A `schedule` lists plans in advance and may be composed by PLD, which holds
for parameters fixed beforehand; nothing else is admitted. A `filter` admits runs chosen after seeing the
results of earlier ones, and so composes at one Renyi order fixed when the grant was made.

Source:
    Feldman and Zrnic 2021, arXiv:2008.11193 (Renyi filters); Whitehouse et al. 2023, arXiv:2309.05901.
"""

import math
from collections.abc import Sequence

from hubbub.accounting.epsilon import epsilon, rdp_epsilon
from hubbub.events import BudgetGranted, BudgetReserved, EventDocument

Use = tuple[BudgetReserved, int]
"""A reservation and how many of its attempts count."""


def composed(grant: BudgetGranted, uses: Sequence[Use]) -> float:
    """Epsilon of everything a grant has paid for, by the grant's own accountant, discrete noise included.

    Guarantees:
        An upper bound at `grant.delta`; for a filter, also over adaptively chosen runs.
    """
    events = [repeated(reserved.dp_event, count) for reserved, count in uses if count]
    if not events:
        return 0.0
    h = math.fsum(reserved.inflation for reserved, _ in uses)
    delta = grant.delta * math.exp(-h)
    if grant.kind == "schedule":
        return epsilon(events, delta).epsilon + 2 * h
    return rdp_epsilon(events, delta, grant.order)[0] + 2 * h


def repeated(dp_event: EventDocument, count: int) -> EventDocument:
    """`count` times the same event."""
    return {"@": "SelfComposedDpEvent", "count": count, "event": dp_event}


def is_private(reserved: BudgetReserved) -> bool:
    """Whether a reservation is for noised releases (a study with noise = "none" is not)."""
    return reserved.dp_event["@"] != "NonPrivateDpEvent"


def sandbox_grant(dataset: str, reserved: BudgetReserved, delta: float) -> BudgetGranted:
    """Allow a dataset, at first use, twice the first run: for one person trying hubbub on a laptop.

    The filter's order is the one at which twice the schedule costs least, its epsilon that cost: so a
    second run always fits, and a third one is refused until somebody decides.
    """
    twice = [repeated(reserved.dp_event, 2 * reserved.attempts)]
    h = 2 * reserved.inflation
    cost, order = rdp_epsilon(twice, delta * math.exp(-h))
    return BudgetGranted(
        dataset=dataset,
        unit=reserved.unit,
        kind="filter",
        epsilon=math.ceil((cost + 2 * h) * 10_000) / 10_000,
        delta=delta,
        order=order,
        plan_hashes=(),
        granted_by="sandbox",
    )
