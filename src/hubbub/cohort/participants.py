"""Samplers of participants."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from hubbub.events import EventDocument
from hubbub.randomness import Randomness


class Everyone(msgspec.Struct, frozen=True, tag="everyone"):
    """The whole roster, every round."""

    is_secret: ClassVar[bool] = False

    def size(self, roster: int) -> int:
        """Largest cohort, for a roster of this size."""
        return roster

    def inclusion_probability(self, roster: int) -> float:  # noqa: ARG002, one signature for all samplers
        """Probability that one participant is in the cohort."""
        return 1.0

    def select(self, roster: Sequence[str], randomness: Randomness) -> tuple[str, ...]:  # noqa: ARG002
        """Everybody, in roster order."""
        return tuple(roster)

    def dp_event(self, release: EventDocument) -> EventDocument:
        """What a release costs one participant: all of it."""
        return release


class FixedSize(msgspec.Struct, frozen=True, tag="fixed"):
    """A uniformly random subset of a fixed size, without replacement.

    Guarantees:
        Claims no amplification. Under null-replacement its privacy is that of the un-sampled release;
        amplification of fixed-size sampling is known under replace-one only.
    """

    members: int

    is_secret: ClassVar[bool] = False

    def size(self, roster: int) -> int:
        """Largest cohort, for a roster of this size."""
        return min(self.members, roster)

    def inclusion_probability(self, roster: int) -> float:
        """Probability that one participant is in the cohort."""
        return self.size(roster) / roster

    def select(self, roster: Sequence[str], randomness: Randomness) -> tuple[str, ...]:
        """Draw the cohort, in roster order."""
        chosen = randomness.choose(len(roster), self.size(len(roster)))
        return tuple(roster[int(index)] for index in chosen)

    def dp_event(self, release: EventDocument) -> EventDocument:
        """What a release costs one participant: all of it."""
        return release


class SecretPoisson(msgspec.Struct, frozen=True, tag="secret-poisson"):
    """Each participant independently with one probability, by a draw that only the coordinator knows.

    Guarantees:
        Amplifies against those who see neither the cohort nor its size. An empty cohort is a valid
        round: pure noise.
    """

    probability: float

    is_secret: ClassVar[bool] = True

    def size(self, roster: int) -> int:
        """Largest cohort, for a roster of this size: all may be drawn."""
        return roster

    def inclusion_probability(self, roster: int) -> float:  # noqa: ARG002, one signature for all samplers
        """Probability that one participant is in the cohort."""
        return self.probability

    def select(self, roster: Sequence[str], randomness: Randomness) -> tuple[str, ...]:
        """Draw the cohort, in roster order; it may be empty."""
        drawn = randomness.bernoulli(self.probability, len(roster))
        return tuple(name for name, is_in in zip(roster, drawn, strict=True) if is_in)

    def dp_event(self, release: EventDocument) -> EventDocument:
        """What a release costs one participant, seen by somebody who cannot see the cohort."""
        return {"@": "PoissonSampledDpEvent", "sampling_probability": self.probability, "event": release}


ParticipantSampler = Everyone | FixedSize | SecretPoisson
