"""From a study and its public sizes to the one `Mechanism` that keeps its promise."""

import math
from collections.abc import Sequence

import msgspec

from hubbub.accounting.calibration import calibrate
from hubbub.accounting.discrete import MIN_SHARE, MIN_SIGMA, inflation, integer_sigma
from hubbub.cohort import (
    EveryExample,
    Everyone,
    FixedSize,
    ParticipantSampler,
    PoissonExamples,
    SecretPoisson,
)
from hubbub.errors import PlanError
from hubbub.events import repeated
from hubbub.mechanism.discrete_gaussian import LARGEST_SIGMA
from hubbub.mechanism.encode import HALF_RING
from hubbub.mechanism.mechanism import Mechanism
from hubbub.study.config import Cohort, Settings

FINEST = 20
"""s C is at most 2^20: 20 bits for one clipped vector, the rest of the ring for the sum and its noise."""

COARSEST = 1.05
"""Largest sensitivity, in units of s C, to which rounding may push it before the study is refused."""

TAIL = 12
"""Standard deviations of noise that the ring has room for: passed once in 10^32 draws."""


def design(settings: Settings, *, dimension: int, slots: Sequence[int], attempts: int, shares: int = 1) -> Mechanism:
    """Choose noise and integer scale so that all attempts together cost at most epsilon.

    Args:
        settings: The study.
        dimension: Number of parameters d.
        slots: Public number of slots N_i of each participant.
        attempts: Round attempts that the plan pays for, T + R.
        shares: Noise shares that every sum holds at least (distributed noise), else 1.

    Raises:
        PlanError: No integer scale fits the ring with this noise.
    """
    draft = _draft(settings, dimension, shares)
    if settings.training.weights == "examples":
        draft = msgspec.structs.replace(draft, largest_weight=max(slots))
    noise_multiplier = 0.0
    if settings.privacy.epsilon is not None:
        h = discrete_cost(draft, attempts)
        noise_multiplier = calibrate(
            lambda z: repeated(draft.dp_event_at(z), attempts),
            epsilon=settings.privacy.epsilon - 2 * h,
            delta=settings.privacy.delta * math.exp(-h),
        )
    senders = draft.participants.size(len(slots))
    batch = max(draft.examples.largest_batch(count) for count in slots)
    return _fit(
        draft,
        noise_multiplier,
        senders=senders,
        batch=max(draft.largest_weight, 1) if draft.unit == "client" else batch,
    )


def discrete_cost(mechanism: Mechanism, attempts: int) -> float:
    """H of the discrete-noise theorem for these attempts: an upper bound for shares of any sigma."""
    shares = [MIN_SHARE] * mechanism.shares if mechanism.shares > 1 else []
    return inflation(mechanism.dimension, attempts * mechanism.steps, shares=shares)


def _draft(settings: Settings, dimension: int, shares: int = 1) -> Mechanism:
    probability, training = settings.sampling.probability, settings.training
    noises_steps = training.algorithm == "local-dp-sgd"
    return Mechanism(
        unit=settings.privacy.unit,
        noise=settings.privacy.noise,
        noise_source=settings.privacy.noise_source,
        max_norm=settings.privacy.max_norm,
        dimension=dimension,
        scale=1.0,
        largest=0,
        sigma=0,
        shares=shares,
        steps=training.local_steps if noises_steps else 1,
        noises_steps=noises_steps,
        examples=EveryExample() if probability is None else PoissonExamples(probability),
        participants=_participants(settings.cohort),
    )


def _participants(cohort: Cohort) -> ParticipantSampler:
    if cohort.participants == "fixed" and cohort.size is not None:
        return FixedSize(cohort.size)
    if cohort.participants == "secret-poisson" and cohort.probability is not None:
        return SecretPoisson(cohort.probability)
    return Everyone()


def _fit(draft: Mechanism, noise_multiplier: float, *, senders: int, batch: int) -> Mechanism:
    """Take the finest scale whose sums and noise fit the ring of 2^32."""
    finest = FINEST - math.ceil(math.log2(draft.max_norm))
    for exponent in range(finest, finest - FINEST, -1):
        scaled = msgspec.structs.replace(draft, scale=2.0**exponent)
        one = math.ceil(scaled.scale * draft.max_norm)
        if scaled.sensitivity > COARSEST * one or 0 < noise_multiplier * scaled.sensitivity < MIN_SIGMA * math.sqrt(
            draft.shares
        ):
            break
        whole = integer_sigma(noise_multiplier, scaled.sensitivity) if noise_multiplier else 0
        sigma = _share(whole, draft.shares)
        added = math.sqrt(senders) if draft.noise in {"local", "distributed"} else 1.0
        room = HALF_RING - 1 - math.ceil(TAIL * sigma * added)
        largest = batch * one if draft.unit == "client" else batch * (one + 1)
        if draft.noises_steps:
            room, largest = HALF_RING - 1, (HALF_RING - 1) // senders
        if sigma <= LARGEST_SIGMA and senders * largest <= room:
            return msgspec.structs.replace(scaled, sigma=sigma, largest=largest)
    raise PlanError(
        f"mechanism, sums of {senders} participants and their noise must fit 32 bits, found no integer scale "
        f"for {draft.dimension} parameters at noise multiplier {noise_multiplier:g}; nothing planned",
        hint="fewer participants in a round, smaller batches, fewer parameters or a larger epsilon",
    )


def _share(sigma: int, shares: int) -> int:
    """The smallest integer s with shares s^2 >= sigma^2: sigma / sqrt(shares), rounded up."""
    return math.isqrt((sigma**2 - 1) // shares) + 1 if sigma else 0
