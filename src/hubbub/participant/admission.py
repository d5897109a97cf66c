"""What a participant asks of a run before it takes part, besides what `LogGuard` asks of each session.

    approved on these very bytes and records -> reserved as its plan says

All of it is read from the site's own copy of the log. The site's own policy comes on top and can only forbid.

*Trust:* none of its own: it compares what the log says with what the site knows.
"""

from hubbub.errors import RefusedError
from hubbub.governance import Facts, Federation, terms_of
from hubbub.participant.log_view import LogView
from hubbub.planning import Plan
from hubbub.study.config import Settings


def facts_of(federation: Federation, plan: Plan, settings: Settings) -> Facts:
    """What a site's own policy decides on."""
    return Facts(
        federation=federation.id,
        epsilon=plan.epsilon,
        minimum=plan.minimum,
        purpose=settings.study.purpose,
        code_hash=plan.code_hash,
        peers=frozenset(card.key_id for card in federation.roster().members),
    )


def check_approved(federation: Federation, plan: Plan, settings: Settings, own: tuple[str, str], now: int) -> None:
    """Refuse a plan that is not approved now, on this site's very records.

    Args:
        federation: As the log says.
        plan: As the site computed it.
        settings: As the site read them.
        own: The site's dataset and its commitment to the records in it.
        now: POSIX seconds.

    Raises:
        RefusedError: Not approved, or on other settings, code, terms or records.
    """
    dataset, commitment = own
    asked = [study for _, study in federation.studies(plan.hash) if dataset in study.data]
    data = asked[-1].data if asked else {}
    federation.may_run(
        plan_hash=plan.hash,
        study_hash=plan.study_hash,
        code_hash=plan.code_hash,
        datasets={**data, dataset: commitment},
        purpose=settings.study.purpose,
        terms=terms_of(settings, minimum=plan.minimum),
        now=now,
    )


def check_reserved(view: LogView, run: str, plan: Plan, account: str) -> None:
    """Refuse a run whose reservation says that it costs anything else than its plan does.

    Raises:
        RefusedError: There is none, it is settled, or it differs.
    """
    reservation = view.reservation_of(run)
    reserved = None if reservation is None else reservation.event
    due = None if reserved is None else plan.reservation(run, reserved.datasets)
    if reservation is None or reserved != due or reservation.is_settled or account not in reservation.event.datasets:
        raise RefusedError(
            f"run {run}, must stand reserved on this site's budget exactly as its plan costs, found otherwise; "
            "nothing trained, nothing sent",
            hint="memory.db holds the log: report the coordinator to the other members",
        )
