"""The claim of one run: what it cost, against whom, and what is not covered."""

import importlib.metadata
import math
from collections.abc import Sequence

import msgspec

from hubbub.accounting.accounts import Accounts, Statement
from hubbub.accounting.epsilon import epsilon, rdp_epsilon
from hubbub.accounting.shown import at_least
from hubbub.errors import VerificationError
from hubbub.events import (
    AnyEvent,
    BudgetCharged,
    BudgetSettled,
    Evaluated,
    Event,
    ParticipantJoined,
    RunFinished,
    RunStarted,
    repeated,
)
from hubbub.governance import Federation
from hubbub.planning import Claim, Plan
from hubbub.study.config import Settings


def claim_from_log(events: Sequence[AnyEvent], run: str, plan: Plan, settings: Settings) -> "ReleaseClaim":
    """The claim of a run from a whole log, as it was when the run had ended: anybody who has the log gets the same.

    Args:
        events: Every event of the log, in order.
        run: The run.
        plan: Its plan.
        settings: Its study.

    Raises:
        VerificationError: The log does not tell of such a run from beginning to end, or holds an act that is not
            valid where it stands.
    """
    accounts, federation = Accounts(), Federation()
    own: list[AnyEvent] = []
    for event in events:
        accounts.apply(event)
        federation.apply(event)
        if getattr(event, "run", None) == run:
            own.append(event)
            if isinstance(event, BudgetSettled):
                break
    if not {RunStarted, Evaluated, RunFinished, BudgetSettled} <= {type(event) for event in own}:
        raise VerificationError(
            f"run {run}, must be in the log from beginning to end, found {len(own)} events of it; no claim made",
            hint="hubbub resume RUN ends a run that was interrupted",
        )
    return make_claim(plan, settings, own, accounts=accounts, federation=federation)


SANDBOX = (
    "sandbox: one person ran every participant on one machine and granted the budget automatically; "
    "nobody else approved this run"
)


SECAGG = {
    "run": "run: each participant's vector was masked; not post-quantum confidential",
    "elide": "simulated: sums were made in the clear, with the same bits as masked ones",
    "none": "none: sums were made in the clear",
}


HOSTS = {
    "one": "one process ran all of it",
    "own": "each participant on a host of its own, says the coordinator",
}


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """One approval of the study that was run; `key` is the first 16 digits of the signer's key id."""

    key: str
    role: str
    organisation: str
    conditions: tuple[str, ...]


class ReleaseClaim(msgspec.Struct, frozen=True, kw_only=True):
    """claim.json. Every epsilon: null-replacement, at the delta beside it, None for infinite.

    Args:
        federation: Who stands behind the run; read this first.
        approvals: Who approved the study, by key.
        sentence: The claim in words.
        certifiable: Whether noise and samples came from the operating system's randomness.
        attempts_charged: Round attempts charged, retries included.
        epsilon_spent: Cost of these attempts by the tightest accountant, had their number been fixed in advance.
        epsilon_spent_rdp: The same by Renyi accounting, an independent and looser bound.
        lifetime: Everything ever run on the dataset that has spent most, by its own grant's accountant. What holds
            whoever chose when to stop is, of a gaussian grant or a schedule, its whole budget.
        claims: One line per adversary, for the whole plan.
        unprotected: Quantities in the run directory that no mechanism protects.
    """

    format: int
    federation: str
    approvals: tuple[Approval, ...]
    sentence: str
    certifiable: bool
    noise_source: str
    secagg: str
    attacked: str
    run: str
    study: str
    unit: str
    relation: str
    delta: float
    rounds: int
    attempts_charged: int
    epsilon_spent: float | None
    epsilon_spent_rdp: float | None
    epsilon_planned: float | None
    epsilon_budget: float | None
    accountant: str
    dp_event: dict[str, object]
    noise_multiplier: float
    lifetime: Statement
    claims: tuple[Claim, ...]
    unprotected: tuple[str, ...]
    not_covered: tuple[str, ...]
    metrics: dict[str, float]
    success: dict[str, float]
    is_success: bool | None
    hashes: dict[str, str]
    data_commitments: dict[str, str]
    versions: dict[str, str]

    @property
    def epsilon(self) -> float | None:
        """What holds for this run against everybody with a bound in `claims`; see `_bound`."""
        return _bound(self.claims, self.epsilon_spent, self.epsilon_planned)


def make_claim(
    plan: Plan, settings: Settings, events: Sequence[Event], *, accounts: Accounts, federation: Federation
) -> ReleaseClaim:
    """Fold a run's events into its claim.

    Args:
        plan: The plan that was run.
        settings: The study.
        events: All events of the run, in order.
        accounts: The ledger as it is after the run.
        federation: The federation as it is after the run.
    """
    start = next(event for event in events if isinstance(event, RunStarted))
    finish = next(event for event in events if isinstance(event, RunFinished))
    joined = [event for event in events if isinstance(event, ParticipantJoined)]
    metrics = [event.metrics for event in events if isinstance(event, Evaluated)][-1]
    attempts = sum(isinstance(event, BudgetCharged) for event in events)
    is_repeatable = start.noise_source in {"float-simulation", "injected"}
    spent, spent_rdp, accountant = _spent(plan, attempts, is_repeatable=is_repeatable)
    claims = _true_claims(plan, start, is_repeatable=is_repeatable)
    success = {name: value for name, value in msgspec.to_builtins(settings.success).items() if value is not None}
    used = [accounts.statement(dataset) for dataset in accounts.runs[start.run].reserved.datasets]
    is_certifiable = start.noise_source == "os" and start.secagg != "elide"
    return ReleaseClaim(
        format=1,
        federation=_stands_behind(federation, start),
        approvals=_approvals(federation, start.run),
        sentence=_sentence(plan, settings, spent, used, start, claims),
        certifiable=is_certifiable,
        noise_source=start.noise_source,
        secagg=SECAGG[start.secagg],
        attacked="not attacked",
        run=start.run,
        study=plan.study,
        unit=plan.unit,
        relation=plan.relation,
        delta=plan.delta,
        rounds=finish.rounds,
        attempts_charged=attempts,
        epsilon_spent=spent,
        epsilon_spent_rdp=spent_rdp,
        epsilon_planned=plan.epsilon,
        epsilon_budget=settings.privacy.epsilon,
        accountant=accountant,
        dp_event=plan.dp_event,
        noise_multiplier=plan.noise_multiplier,
        lifetime=max(used, key=_most),
        claims=claims,
        unprotected=()
        if start.is_test_public
        else ("metrics on the test records; that these are disjoint from training is what study.py says",),
        not_covered=(
            "a participant against itself",
            "people whose records lie with several participants",
            "the test records",
        ),
        metrics=metrics,
        success=success,
        is_success=_is_success(success, metrics),
        hashes={
            "study": plan.study_hash,
            "code": plan.code_hash,
            "plan": plan.hash,
            "model": finish.model_hash,
        },
        data_commitments={event.participant: event.data_commitment for event in joined},
        versions=start.versions,
    )


def _stands_behind(federation: Federation, start: RunStarted) -> str:
    if federation.is_sandbox:
        return SANDBOX
    study = federation.study_of(start.run)
    organisations = {card.organisation for card in federation.in_force()}
    approved = "nobody approved this run" if study is None else f"approved for the purpose {study.purpose}"
    return f"federation {federation.name} of {len(organisations)} organisations, {approved}; {HOSTS[start.hosts]}"


def _approvals(federation: Federation, run: str) -> tuple[Approval, ...]:
    case = federation.case_of(run)
    if case is None:
        return ()
    return tuple(
        Approval(key=key, role=card.role, organisation=card.organisation, conditions=decision.conditions)
        for key, (card, decision) in sorted(case.decisions.items())
    )


def _true_claims(plan: Plan, start: RunStarted, *, is_repeatable: bool) -> tuple[Claim, ...]:
    """The plan's trust table, less what this run did not keep."""

    def void(claim: Claim, reason: str) -> Claim:
        return msgspec.structs.replace(claim, epsilon=None, amplified=False, reason=reason)

    if is_repeatable:
        return tuple(void(claim, "simulated: whoever repeats the noise can take it off") for claim in plan.claims)
    if start.secagg == "elide":
        first, *others = plan.claims
        return (void(first, "simulated: sums were made in the clear"), *others)
    return plan.claims


def _spent(plan: Plan, attempts: int, *, is_repeatable: bool) -> tuple[float | None, float | None, str]:
    """Recompute the cost of the attempts that were charged."""
    version = f"dp-accounting {importlib.metadata.version('dp-accounting')}"
    if not plan.mechanism.sigma or is_repeatable:
        return None, None, version
    delta = plan.delta * math.exp(-plan.inflation)
    events = [repeated(plan.dp_event, attempts)]
    spent = epsilon(events, delta)
    tight, loose = spent.epsilon + 2 * plan.inflation, rdp_epsilon(events, delta)[0] + 2 * plan.inflation
    return tight, loose, f"{spent.accountant} of {version}"


def _bound(claims: Sequence[Claim], spent: float | None, planned: float | None) -> float | None:
    """Epsilon of a run against all adversaries that have a bound.

    A coordinator that sees noised sums may say of any attempt that it failed, after it saw its sum: how many attempts
    there are is then its choice, and only what all of them cost is a bound. Others see the sum of each round once.
    """
    is_coordinator_bound = claims[0].epsilon is not None
    return planned if is_coordinator_bound else spent


def _most(line: Statement) -> tuple[float, float]:
    """For the dataset that has spent most; of equal ones, that of the largest delta."""
    return (math.inf if line.epsilon_spent is None else line.epsilon_spent, line.delta or 0.0)


def _ever(used: Sequence[Statement]) -> str:
    """What holds of every dataset of a run, for everything ever run on it: each has a grant and a delta of its own.

    At a fixed Renyi order the running total holds whenever somebody who has seen the results stops; in the closed form
    and by loss distributions only what was granted does.
    """
    bounds = [line.epsilon_spent if line.kind in {"filter", "unbounded"} else line.epsilon_budget for line in used]
    pairs = zip(used, bounds, strict=True)
    known = [bound for line, bound in pairs if line.epsilon_spent is not None and bound is not None]
    if len(known) < len(used):
        return "without any bound for everything ever run on it: there were runs without noise"
    delta = max(line.delta or 0.0 for line in used)
    return f"({at_least(max(known))}, {delta!r}) for everything ever run on it"


def _sentence(
    plan: Plan,
    settings: Settings,
    spent: float | None,
    used: Sequence[Statement],
    start: RunStarted,
    claims: Sequence[Claim],
) -> str:
    unit = "record" if plan.unit == "example" else "participant"
    if spent is None and plan.mechanism.sigma:
        return (
            f"Not certifiable: noise and samples did not come from the operating system's randomness, so they can be "
            f"repeated and taken off. No {unit} is protected against anybody, and this model must not be released."
        )
    if spent is None and settings.privacy.differencing == "accepted":
        return (
            f"No noise was added, and sums are over any survivors: one participant's exact contribution can come out "
            f"as the difference of two sums. No {unit} is protected, and this model must not be released."
        )
    if spent is None:
        return f"No noise was added: no {unit} is protected against anybody, and this model must not be released."
    against = [claim.adversary for claim in claims if claim.epsilon is not None]
    trusted = [claim.adversary for claim in claims if claim.epsilon is None]
    slots = sum(plan.slots.values()) if plan.unit == "example" else len(plan.slots)
    bound = _bound(claims, spent, plan.epsilon) or 0.0
    words = (
        f"Against {', and '.join(against)}, each {unit} of {slots} is ({at_least(bound)}, {plan.delta!r})-"
        f"differentially private under {plan.relation} for this run, and {_ever(used)}."
    )
    if trusted:
        words += f" Against the {' and '.join(trusted)}: no protection; it must be trusted."
    if start.secagg == "elide":
        words += " Simulated: secure aggregation was left out, so whoever ran this saw every vector."
    return words


def _is_success(success: dict[str, float], metrics: dict[str, float]) -> bool | None:
    if not success:
        return None
    met = {name: metrics.get(name, -math.inf if name == "accuracy" else math.inf) for name in success}
    return all(met[name] >= goal if name == "accuracy" else met[name] <= goal for name, goal in success.items())
