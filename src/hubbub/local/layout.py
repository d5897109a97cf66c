"""Named arrays as one flat vector, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from hubbub.errors import CodeError


@dataclass(frozen=True)
class Layout:
    """Names and shapes of trained parameters, in the order in which they lie in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "Layout":
        """The layout of these arrays, in their own order."""
        return cls(tuple(arrays), tuple(array.shape for array in arrays.values()))

    @property
    def size(self) -> int:
        """Number of parameters d."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes]

    def flatten(self, arrays: Mapping[str, NDArray[np.generic]], where: str) -> Float32[np.ndarray, " params"]:
        """Lay arrays end to end, as float32.

        Raises:
            CodeError: Other names or shapes than this layout has.
        """
        self.check(arrays, where)
        parts = [np.asarray(arrays[name], dtype=np.float32).ravel() for name in self.names]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def check(self, arrays: Mapping[str, NDArray[np.generic]], where: str) -> None:
        """Refuse other names or shapes than this layout has.

        Raises:
            CodeError: They are others.
        """
        found = {name: np.asarray(array, dtype=np.float32).shape for name, array in arrays.items()}
        if found != dict(zip(self.names, self.shapes, strict=True)):
            raise CodeError(
                f"{where}, must keep the names and shapes of parameters(), found {found}",
                hint="return every array that came in, changed in value only",
            )

    def unflatten(self, vector: Float[np.ndarray, " params"]) -> dict[str, NDArray[np.generic]]:
        """Cut a flat vector into named arrays (copies)."""
        return {name: view.copy() for name, view in self.views(vector).items()}

    def views(self, vector: Float[np.ndarray, " params"]) -> dict[str, NDArray[np.generic]]:
        """Cut a flat vector into named arrays in the same memory."""
        pieces = np.split(vector, np.cumsum(self._sizes)[:-1])
        named = zip(self.names, pieces, self.shapes, strict=True)
        return {name: piece.reshape(shape) for name, piece, shape in named}
