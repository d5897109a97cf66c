"""Study -> Plan: everything that follows from a study without data.

Approvers sign the plan's hash; the coordinator and every participant refuse to deviate from it; a verifier
recomputes it. A plan is calibrated once: whoever checks it checks epsilon at its noise multiplier and never
searches that number again.

*Trust:* none needed: it is public, and anybody can compute it again.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import msgspec

from hubbub.accounting.epsilon import epsilon, epsilon_after_each
from hubbub.errors import PlanError, RefusedError, StudyError, typed
from hubbub.events import BudgetReserved, EventDocument, repeated
from hubbub.mechanism import Mechanism, design, discrete_cost
from hubbub.secagg.parameters import HONEST, Parameters, choose
from hubbub.study import Lock, Study
from hubbub.study.config import Settings
from hubbub.study.rules import LARGEST_DELTA, check_rules

RELATION = "null-replacement"
PLAN_FORMAT = 1
OVERHEAD_BYTES = 256
"""Allowance for names and framing of one message."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What holds against one adversary. Epsilon None means: no bound at all."""

    adversary: str
    unit: str
    epsilon: float | None
    delta: float
    amplified: bool
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What will be done, by whom, at what cost.

    Args:
        format: Version of this document.
        study: Name of the study.
        study_hash: SHA-256 of all settings but `[speed]`.
        code_hash: SHA-256 of the study's code.
        unit: "example" or "client": who is protected.
        relation: Neighbouring relation of every epsilon here.
        delta: The study's delta.
        epsilon: Cost of all T + R attempts against whoever sees the released models; None is infinite.
        epsilon_after_round: An upper bound of the cost after each of the T rounds.
        noise_multiplier: What the accountant sees, a 6-digit decimal.
        rounds: T.
        retries: R, extra attempts that the plan pays for.
        sampling_probability: Chance that one unit takes part in a round, where that chance amplifies.
        mechanism: Clip, scale, noise and samplers.
        dp_event: Cost of one attempt.
        inflation: H of the discrete-noise theorem, included in every epsilon.
        minimum: Fewest contributions U_min that a round accepts.
        secagg: Thresholds of secure aggregation, None where sums are plain.
        slots: Public number of slots of each participant.
        expected_batch: What a round's sum is divided by: expected records, or expected participants.
        bytes_down_per_round: Per participant.
        bytes_up_per_round: Per participant.
        messages_per_round: Per participant, both ways.
        claims: One line per adversary.
    """

    format: int
    study: str
    study_hash: str
    code_hash: str
    unit: str
    relation: str
    delta: float
    epsilon: float | None
    epsilon_after_round: tuple[float | None, ...]
    noise_multiplier: float
    rounds: int
    retries: int
    sampling_probability: float
    mechanism: Mechanism
    dp_event: EventDocument
    inflation: float
    minimum: int
    secagg: Parameters | None
    slots: dict[str, int]
    expected_batch: float
    bytes_down_per_round: int
    bytes_up_per_round: int
    messages_per_round: int
    claims: tuple[Claim, ...]

    @property
    def attempts(self) -> int:
        """Round attempts that the plan pays for, T + R."""
        return self.rounds + self.retries

    def epsilon_after(self, attempts: int) -> float | None:
        """An upper bound of the cost of the first `attempts` round attempts."""
        if attempts > self.rounds:
            return self.epsilon
        return self.epsilon_after_round[attempts - 1] if attempts else 0.0

    def reservation(self, run: str, datasets: Sequence[str] | None = None) -> BudgetReserved:
        """What a run of this plan sets aside on every dataset; in a sandbox these have the participants' names."""
        return BudgetReserved(
            run=run,
            plan_hash=self.hash,
            unit=self.unit,
            datasets=tuple(self.slots if datasets is None else datasets),
            dp_event=self.dp_event,
            attempts=self.attempts,
            inflation=self.inflation,
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the plan; equal studies give equal hashes."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def check_across_hosts(plan: Plan) -> None:
    """Refuse a plan that cannot be run by hosts of their own, where nobody is asked for sums in the clear.

    Raises:
        RefusedError: Its sums are made in the clear.
    """
    if plan.secagg is None:
        raise RefusedError(
            f"study {plan.study}, must have secure sums to run across hosts, found sums in the clear; "
            "nothing trained, nothing spent",
            hint='noise = "distributed", or noise = "none" with sums = "masked"',
        )


def make_plan(study: Study) -> Plan:
    """Plan a study from its settings and its lock; imports neither the study's code nor torch.

    Raises:
        StudyError: The study has no current lock.
        PlanError: No plan satisfies all settings together.
    """
    lock = study.current_lock
    if lock is None:
        raise StudyError(
            "study.lock, must be made from the code as it is now, found none or another's; nothing planned",
            hint=typed("hubbub", "check", study.directory or "STUDY"),
        )
    return plan_from(study.settings, lock)


def plan_from(settings: Settings, lock: Lock) -> Plan:
    """The plan of these settings and these sizes, whoever asks.

    Raises:
        StudyError: Settings that no study file may have, as a bundle can hold them.
        PlanError: No plan satisfies all settings together.
    """
    check_rules(settings, "study")
    _check_sizes(settings, lock)
    rounds = settings.training.rounds
    retries = _retries(settings)
    parameters = _secagg(settings, lock)
    mechanism = design(
        settings,
        dimension=lock.parameters,
        slots=tuple(lock.slots.values()),
        attempts=rounds + retries,
        shares=parameters.u_min - parameters.colluding if parameters and settings.privacy.epsilon is not None else 1,
    )
    holders = (parameters.neighbours or parameters.n) if parameters else 0
    after_round, total = _epsilons(settings, mechanism, rounds, rounds + retries)
    return Plan(
        format=PLAN_FORMAT,
        study=settings.study.name,
        study_hash=settings.approved_hash(),
        code_hash=lock.code_hash,
        unit=mechanism.unit,
        relation=RELATION,
        delta=settings.privacy.delta,
        epsilon=total,
        epsilon_after_round=after_round,
        noise_multiplier=mechanism.noise_multiplier,
        rounds=rounds,
        retries=retries,
        sampling_probability=_sampling_probability(mechanism),
        mechanism=mechanism,
        dp_event=mechanism.dp_event,
        inflation=_inflation(mechanism, rounds + retries),
        minimum=parameters.u_min if parameters else _minimum(settings, len(lock.slots)),
        secagg=parameters,
        slots=lock.slots,
        expected_batch=_expected_batch(mechanism, lock.slots),
        bytes_down_per_round=4 * lock.parameters + OVERHEAD_BYTES * (2 + 4 * holders),
        bytes_up_per_round=4 * mechanism.length + OVERHEAD_BYTES * (1 + holders),
        messages_per_round=12 if parameters else 2,
        claims=_claims(mechanism, parameters, total, settings.privacy.delta),
    )


def _retries(settings: Settings) -> int:
    planned = settings.privacy.retries
    return max(2, math.ceil(settings.training.rounds / 100)) if planned is None else planned


def check_plan(plan: Plan, settings: Settings) -> None:
    """Refuse a plan that is not one of these settings, or whose sums would hold less noise than it accounts for.

    Cheap, so that each participant does it before it joins; who approves a plan makes it again (`plan_from`).

    Raises:
        StudyError: Settings that no study file may have.
        PlanError: Nothing may be sent under this plan.
    """
    check_rules(settings, "study")
    mechanism, parameters = plan.mechanism, plan.secagg
    shares = 1
    if parameters is not None:
        parameters.check(plan.attempts)
        shares = parameters.u_min - parameters.colluding if mechanism.noise == "distributed" else 1
    rules = {
        "study_hash": plan.study_hash == settings.approved_hash(),
        "secagg": (parameters is not None) == settings.privacy.is_masked,
        "secagg.n": parameters is None or parameters.n == len(plan.slots),
        "secagg.dimension": parameters is None or parameters.dimension == mechanism.length,
        "secagg.block": parameters is None or bool(parameters.block) == _is_in_blocks(settings),
        "secagg.colluding": mechanism.noise != "distributed" or (parameters is not None and parameters.colluding >= 1),
        "minimum": parameters is None or plan.minimum == parameters.u_min,
        "mechanism.noise": mechanism.noise == settings.privacy.noise,
        "mechanism.shares": mechanism.shares == shares and (shares == 1 or shares >= HONEST),
        "mechanism.sigma": bool(mechanism.sigma) == (settings.privacy.epsilon is not None),
        "dp_event": plan.dp_event == mechanism.dp_event,
        "noise_multiplier": plan.noise_multiplier == mechanism.noise_multiplier,
    }
    wrong = [name for name, is_right in rules.items() if not is_right]
    if wrong:
        raise PlanError(
            f"plan: {wrong[0]}, must follow from the approved settings, found another value; nothing sent",
            hint="hubbub plan STUDY makes the plan of a study",
        )


def _is_in_blocks(settings: Settings) -> bool:
    return settings.privacy.noise == "none" and settings.privacy.differencing == "blocks"


def _check_sizes(settings: Settings, lock: Lock) -> None:
    protected = sum(lock.slots.values()) if settings.privacy.unit == "example" else len(lock.slots)
    largest = min(LARGEST_DELTA, 1 / (10 * protected))
    if settings.privacy.delta > largest:
        raise PlanError(
            f"privacy.delta, must be at most 1/(10 N) = {largest:.3g} for N = {protected} units, "
            f"found {settings.privacy.delta!r}; nothing planned",
            hint=f"delta = {10 ** math.floor(math.log10(largest)):.0e}",
        )
    size = settings.cohort.size
    if size is not None and size > len(lock.slots):
        raise PlanError(
            f"cohort.size, must be at most the roster of {len(lock.slots)}, found {size}; nothing planned",
            hint='participants = "everyone"',
        )


def _secagg(settings: Settings, lock: Lock) -> Parameters | None:
    """Thresholds under which nobody sees anything but a sum; None where sums are made in the clear."""
    if not settings.privacy.is_masked:
        return None
    cohort, is_distributed = settings.cohort, settings.privacy.noise == "distributed"
    parameters = choose(
        len(lock.slots),
        colluding=cohort.colluding,
        dropouts=cohort.dropouts,
        dimension=lock.parameters + (settings.training.weights == "examples"),
        minimum=cohort.minimum,
        distributed=is_distributed,
        in_blocks=_is_in_blocks(settings),
        sessions=settings.training.rounds + _retries(settings),
    )
    if is_distributed and parameters.u_min - parameters.colluding < HONEST:
        raise PlanError(
            f"cohort.minimum, must leave {HONEST} honest noise shares, found {parameters.u_min} of which "
            f"{parameters.colluding} may collude; nothing planned",
            hint=f"minimum = {parameters.colluding + HONEST}, more participants, or fewer colluding",
        )
    return parameters


def _minimum(settings: Settings, roster: int) -> int:
    """Fewest contributions; for a secret cohort, fewest participants online before the secret draw."""
    size = settings.cohort.size or roster
    minimum = settings.cohort.minimum
    if minimum is None:
        return math.ceil(0.9 * size)
    if minimum > size:
        raise PlanError(
            f"cohort.minimum, must be at most the {size} participants of a round, found {minimum}; nothing planned",
            hint=f"minimum = {math.ceil(0.9 * size)}",
        )
    return minimum


def _inflation(mechanism: Mechanism, attempts: int) -> float:
    return discrete_cost(mechanism, attempts) if mechanism.sigma else 0.0


def _epsilons(
    settings: Settings, mechanism: Mechanism, rounds: int, attempts: int
) -> tuple[tuple[float | None, ...], float | None]:
    """Cost after rounds 1, ..., T, and of all T + R attempts.

    As (epsilon + 2H) at delta e^-H, so that integer noise is covered.
    """
    if not mechanism.sigma:
        return (None,) * rounds, None
    h = _inflation(mechanism, attempts)
    delta = settings.privacy.delta * math.exp(-h)
    after_round = epsilon_after_each(mechanism.dp_event, rounds, delta)
    total = epsilon([repeated(mechanism.dp_event, attempts)], delta).epsilon
    return tuple(value + 2 * h for value in after_round), total + 2 * h


def _sampling_probability(mechanism: Mechanism) -> float:
    if mechanism.unit == "example":
        return mechanism.examples.sampling_probability
    return getattr(mechanism.participants, "probability", 1.0) if mechanism.noise == "server" else 1.0


def _expected_batch(mechanism: Mechanism, slots: Mapping[str, int]) -> float:
    """What a sum is divided by; public, so that no batch size shows in the model."""
    share = mechanism.participants.inclusion_probability(len(slots))
    if mechanism.unit == "client" or mechanism.noises_steps:
        return share * len(slots)
    return share * mechanism.examples.sampling_probability * sum(slots.values())


def _claims(
    mechanism: Mechanism, parameters: Parameters | None, epsilon: float | None, delta: float
) -> tuple[Claim, ...]:
    """The trust table: one line per adversary, because who adds the noise decides who must be trusted."""
    amplified = _sampling_probability(mechanism) < 1.0
    is_example = mechanism.unit == "example"
    secret = "which records were drawn stays at the site" if is_example else "cohorts are never published"
    protected = "noise is in every model they see" + (f"; {secret}" if amplified else "")
    server_name, others_name = "coordinator", "other participants"
    if not mechanism.sigma and parameters:
        server_name = f"coordinator and up to {parameters.colluding} of {parameters.n} participants"
        whole = f", in whole blocks of {parameters.block} or more" if parameters.block else ""
        server = (None, f"no noise: it sees exact sums of at least {parameters.u_min} participants{whole}")
        others = (None, "no noise: whoever sees the model may learn everything in it")
    elif not mechanism.sigma:
        server = others = (None, "no noise: whoever sees a sum or the model may learn everything in it")
    elif mechanism.noise == "local":
        server = others = (epsilon, "each participant adds its full noise before anything leaves it")
    elif parameters:
        server_name = f"coordinator and up to {parameters.colluding} of {parameters.n} participants"
        server = (epsilon, "it sees only sums, which hold enough shares of noise; if the cryptography holds")
        others = (epsilon, protected)
        others_name = f"up to {parameters.colluding} of the other participants"
    else:
        server = (None, "it receives each contribution before noise is added")
        others = (epsilon, protected)
    return tuple(
        Claim(
            adversary=adversary,
            unit=mechanism.unit,
            epsilon=value,
            delta=delta,
            amplified=amplified and value is not None,
            reason=reason,
        )
        for adversary, (value, reason) in (
            (server_name, server),
            (others_name, others),
            ("whoever sees the released models and the log", others),
        )
    )
