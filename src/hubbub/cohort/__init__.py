"""Who and what takes part in a round: samplers of participants and of examples.

Each sampler both draws and says what its draw is worth: `select` and `dp_event` stand on one object, so a
fixed-size or fixed-order selection cannot be accounted as a Poisson one. Fields of a sampler are public;
rosters, sizes and randomness are arguments.

    participants.py    Everyone, FixedSize, SecretPoisson
    examples.py        EveryExample, PoissonExamples

*Trust:* whoever draws a secret sample knows it, and gets no amplification from it.
"""

from hubbub.cohort.examples import EveryExample, ExampleSampler, PoissonExamples
from hubbub.cohort.participants import Everyone, FixedSize, ParticipantSampler, SecretPoisson

__all__ = [
    "EveryExample",
    "Everyone",
    "ExampleSampler",
    "FixedSize",
    "ParticipantSampler",
    "PoissonExamples",
    "SecretPoisson",
]
