"""What training asks of a model, whatever its framework."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray

from hubbub.errors import CodeError
from hubbub.mechanism import Mechanism
from hubbub.study import Slots
from hubbub.study.config import Training


class Measured(NamedTuple):
    """What a model does on some test records, so that it adds up to what it does on all.

    Args:
        rows: How many they are.
        sums: By metric, its sum over them.
    """

    rows: int
    sums: dict[str, float]


def means(measured: Sequence[Measured]) -> dict[str, float]:
    """Metrics from pieces of the test records, added up in the order of the pieces; 0 without a record."""
    rows = max(sum(piece.rows for piece in measured), 1)
    return {name: sum(piece.sums[name] for piece in measured) / rows for name in measured[0].sums}


@runtime_checkable
class Learner(Protocol):
    """A model with a flat float32 parameter vector of length `dimension`."""

    @property
    def dimension(self) -> int:
        """Number of trained parameters d."""
        ...

    @property
    def together(self) -> int:
        """How many participants train at once: so many take little longer than one."""
        ...

    def initial(self) -> Float32[np.ndarray, " params"]:
        """The parameters before round 1: the same for everybody who runs the same study."""
        ...

    def self_test(self, example: Slots, *, microbatch: int | None) -> None:
        """Check on made-up records of these shapes that the model can be trained as its unit asks.

        Args:
            example: Any participant's slots, for their shapes.
            microbatch: Rows in which gradients of single examples are computed; None if they are not needed.
        """
        ...

    def rehearse(self, example: Slots, training: Training, *, participants: int, rows: int) -> None:
        """Choose the fastest way to make updates, by timing on made-up records. Ways differ in last bits.

        For runs that nobody can repeat, and after `self_test`.

        Args:
            example: Any participant's slots, for their shapes.
            training: The algorithm and its rates.
            participants: How many train in one process in a round.
            rows: Records that each of them has, about.
        """
        ...

    def clipped_sums(
        self,
        parameters: Float32[np.ndarray, " params"],
        slots: Slots,
        drawn: Int[np.ndarray, " drawn"],
        mechanism: Mechanism,
    ) -> Iterator[Float[np.ndarray, " params"]]:
        """Sums of clipped per-example gradients over the drawn slots, one float64 vector per microbatch."""
        ...

    def updates(
        self,
        parameters: Float32[np.ndarray, " params"],
        everyone: Sequence[Slots],
        training: Training,
        seeds: Sequence[bytes],
    ) -> Iterator[Float32[np.ndarray, " params"] | CodeError]:
        """New weights minus old weights after each participant's training on every real record; zeros without one.

        Args:
            parameters: Where each of them starts.
            everyone: Slots of several participants.
            training: The algorithm and its rates.
            seeds: One for each participant, public.

        Yields:
            In order, a vector that is good until the next is asked for; or what the study's code raised.

        Guarantees:
            Nobody's update depends on who else is there.
        """
        ...

    def pieces(self, slots: Slots) -> list[Slots]:
        """Test records in pieces, at least one, that different processes may measure: a matter of shapes alone."""
        ...

    def measure(self, parameters: Float32[np.ndarray, " params"], piece: Slots) -> Measured:
        """Sums over one of the pieces: of right answers where y has classes, and of losses."""
        ...

    def evaluate(self, parameters: Float32[np.ndarray, " params"], slots: Slots) -> dict[str, float]:
        """Metrics on test records: the means over all pieces."""
        ...

    def export(self, parameters: Float32[np.ndarray, " params"]) -> dict[str, NDArray[np.generic]]:
        """All arrays that make up the model, by name, what model.safetensors holds: good until the learner is used."""
        ...
