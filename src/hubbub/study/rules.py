"""Rules that join several settings of a study; each is a sentence and a hint."""

import math
from collections.abc import Iterator

from hubbub.errors import StudyError
from hubbub.study.config import Settings

LARGEST_DELTA = 1e-5


def check_rules(settings: Settings, source: str) -> None:
    """Refuse the first combination of settings that cannot be meant.

    Raises:
        StudyError: With where, rule, found and a hint.
    """
    for rules in (_privacy, _sums, _cohort, _sampling, _training, _governance):
        for where, rule, found, hint in rules(settings):
            raise StudyError(f"{source}: {where}, {rule}, found {found}", hint=hint)


type_of_rule = Iterator[tuple[str, str, str, str]]


def _sums(settings: Settings) -> type_of_rule:
    privacy = settings.privacy
    if privacy.sums == "clear" and privacy.noise == "distributed":
        yield (
            "privacy.sums",
            "must be masked with distributed noise: each vector holds too little",
            "'clear'",
            "remove sums",
        )
    if privacy.sums == "masked" and privacy.noise not in {"distributed", "none"}:
        yield (
            "privacy.sums",
            "masked sums are for distributed noise, or for none",
            f"noise = {privacy.noise!r}",
            'noise = "distributed"',
        )
    if privacy.differencing == "accepted" and not (privacy.is_masked and privacy.noise == "none"):
        yield (
            "privacy.differencing",
            "is a question of masked sums without noise only: noise covers every difference",
            f"noise = {privacy.noise!r}, sums = {privacy.sums!r}",
            "remove differencing",
        )
    if privacy.is_masked and settings.cohort.participants != "everyone":
        yield (
            "cohort.participants",
            "masked sums are over the whole roster",
            f"participants = {settings.cohort.participants!r}",
            'participants = "everyone"' + (', or noise = "server"' if privacy.noise == "distributed" else ""),
        )


def _privacy(settings: Settings) -> type_of_rule:
    privacy = settings.privacy
    if privacy.noise == "distributed" and settings.cohort.colluding < 1:
        yield (
            "cohort.colluding",
            "must be at least 1 with distributed noise: a curious participant subtracts its own share",
            repr(settings.cohort.colluding),
            "colluding = 1",
        )
    if privacy.noise == "none":
        if privacy.epsilon is not None:
            yield "privacy.epsilon", "must be left out without noise", repr(privacy.epsilon), "remove epsilon"
        if privacy.noise_source != "os":
            yield (
                "privacy.noise_source",
                "must be left out without noise",
                repr(privacy.noise_source),
                "remove noise_source",
            )
    elif privacy.epsilon is None:
        yield "privacy.epsilon", f"is required with noise = {privacy.noise!r}", "nothing", "epsilon = 3.0"
    if privacy.delta > LARGEST_DELTA:
        yield (
            "privacy.delta",
            f"must be at most {LARGEST_DELTA:g}",
            repr(privacy.delta),
            f"delta = {LARGEST_DELTA:g}",
        )


def _cohort(settings: Settings) -> type_of_rule:
    cohort = settings.cohort
    for key, owner in (("size", "fixed"), ("probability", "secret-poisson")):
        value = getattr(cohort, key)
        if cohort.participants == owner and value is None:
            yield (
                f"cohort.{key}",
                f"is required with participants = {owner!r}",
                "nothing",
                f"add cohort.{key}",
            )
        if cohort.participants != owner and value is not None:
            yield (
                f"cohort.{key}",
                f"belongs to participants = {owner!r}",
                f"participants = {cohort.participants!r}",
                f"remove cohort.{key}, or participants = {owner!r}",
            )
    if cohort.participants == "secret-poisson" and settings.privacy.noise == "local":
        yield (
            "cohort.participants",
            "'secret-poisson' amplifies nothing where each participant adds its own noise",
            "noise = 'local'",
            'participants = "everyone" or "fixed"',
        )
    if cohort.participants == "secret-poisson" and settings.privacy.unit == "example":
        yield (
            "cohort.participants",
            "'secret-poisson' protects unit = 'client'",
            "unit = 'example'",
            'participants = "everyone" or "fixed", and sample examples under [sampling]',
        )


def _sampling(settings: Settings) -> type_of_rule:
    sampling, unit = settings.sampling, settings.privacy.unit
    if unit == "client" and sampling.examples == "poisson":
        yield (
            "sampling.examples",
            "'poisson' belongs to unit = 'example'",
            "unit = 'client'",
            "remove [sampling]: local epochs use every example",
        )
    if sampling.examples == "poisson" and sampling.probability is None:
        yield "sampling.probability", "is required with examples = 'poisson'", "nothing", "probability = 0.25"
    if sampling.examples == "everything" and sampling.probability is not None:
        yield (
            "sampling.probability",
            "belongs to examples = 'poisson'",
            f"examples = {sampling.examples!r}",
            'examples = "poisson"',
        )


_UNIT = {"dp-sgd": "example", "local-dp-sgd": "example", "fedavg": "client", "fedavgm": "client"}


def _training(settings: Settings) -> type_of_rule:
    training, privacy = settings.training, settings.privacy
    unit = _UNIT[training.algorithm]
    if unit != privacy.unit:
        fitting = ", ".join(repr(name) for name, kind in _UNIT.items() if kind == privacy.unit)
        yield (
            "training.algorithm",
            f"{training.algorithm!r} protects unit = {unit!r}",
            f"unit = {privacy.unit!r}",
            f"algorithm: {fitting}",
        )
    if training.weights == "examples" and (unit, privacy.noise) != ("client", "none"):
        yield (
            "training.weights",
            "'examples' is for unit = 'client' without noise: a weight would be one more thing that data says",
            f"unit = {unit!r}, noise = {privacy.noise!r}",
            'weights = "equal"',
        )
    if training.algorithm == "local-dp-sgd" and privacy.noise not in {"local", "none"}:
        yield (
            "privacy.noise",
            "'local-dp-sgd' adds its noise at every local step",
            f"noise = {privacy.noise!r}",
            'noise = "local"',
        )
    if training.algorithm == "fedavg" and training.momentum:
        yield (
            "training.momentum",
            "plain 'fedavg' has no server momentum",
            repr(training.momentum),
            'algorithm = "fedavgm"',
        )
    if privacy.retries is not None and privacy.retries > training.rounds:
        yield (
            "privacy.retries",
            "must not exceed training.rounds",
            repr(privacy.retries),
            f"retries = {max(2, math.ceil(training.rounds / 100))}",
        )


def _governance(settings: Settings) -> type_of_rule:
    reviews, rounds = settings.governance.reviews, settings.training.rounds
    if list(reviews) != sorted(set(reviews)) or (reviews and reviews[-1] >= rounds):
        yield (
            "governance.reviews",
            f"must be round numbers in ascending order below training.rounds = {rounds}",
            repr(list(reviews)),
            f"reviews = [{max(1, rounds // 2)}]" if rounds > 1 else "leave reviews out: there is one round",
        )
