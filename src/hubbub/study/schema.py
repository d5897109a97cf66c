"""One participant's records, checked against the columns that the study declares."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy.typing import NDArray

from hubbub.errors import CodeError
from hubbub.study.config import Column, Data


@dataclass(frozen=True)
class Examples:
    """Records of one participant, or of a test set: what a user's `data()` returns.

    Args:
        x: Inputs, one record per row.
        y: Labels or targets, one per row.
        slots: Public number of slots N_i that this participant declares, at least `len(x)`; the
            rest are null slots. Default: `len(x)`.
        public: Whether anybody may know these records (test data only).
    """

    x: Any
    y: Any
    slots: int | None = None
    public: bool = False


@dataclass(frozen=True)
class Slots:
    """Exactly N_i slots; a null slot holds zeros and contributes the zero vector.

    How many slots are null is private: it never leaves the participant.
    """

    x: Shaped[np.ndarray, "slots ..."]
    y: Shaped[np.ndarray, "slots ..."]
    is_real: Bool[np.ndarray, " slots"]

    def __len__(self) -> int:
        """The public number of slots N_i."""
        return len(self.is_real)

    @cached_property
    def real(self) -> Int[np.ndarray, " real"]:
        """Which slots are no null slots, in order; looked up once, as a run asks every round."""
        return np.flatnonzero(self.is_real)

    @cached_property
    def y_range(self) -> tuple[Any, Any]:
        """Least and greatest y of at least one slot; also looked up once."""
        return self.y.min(), self.y.max()


def made_up(data: Data, rows: int = 64) -> Slots:
    """Slots of the declared shapes that hold nobody's values, and every class if there are at most `rows`."""

    def values(column: Column) -> NDArray[Any]:
        ramp = np.arange(rows) % (column.classes or 2)
        shaped = np.broadcast_to(ramp.reshape(rows, *(1 for _ in column.shape)), (rows, *column.shape))
        last = shaped.copy()
        last[-1] = (column.classes or 2) - 1
        return last.astype(column.dtype)

    return Slots(values(data.x), values(data.y), np.ones(rows, dtype=bool))


def conform(examples: object, data: Data, where: str) -> Slots:
    """Check records against the declared columns and lay them into slots.

    Wrong dtype or shape concerns the whole array and is an error. A row with a NaN, an infinity or a
    label outside the declared classes is one record's matter: it becomes a null slot *in silence*,
    because an abort would tell others about that record.

    Args:
        examples: What the user's function returned.
        data: Declared columns.
        where: Whose records, for the error.

    Raises:
        CodeError: Not `Examples`, or a column of other dtype, shape or length than declared.
    """
    if not isinstance(examples, Examples):
        raise CodeError(
            f"{where}, must return hubbub.Examples, found {type(examples).__name__}",
            hint="return hubbub.Examples(x, y)",
        )
    x, y = _column(examples.x, data.x, f"{where}: x"), _column(examples.y, data.y, f"{where}: y")
    if len(x) != len(y):
        raise CodeError(
            f"{where}, x and y must have one row per record, found {len(x)} and {len(y)} rows",
            hint="slice both columns alike",
        )
    slots = len(x) if examples.slots is None else examples.slots
    if type(slots) is not int or slots < max(len(x), 1):
        raise CodeError(
            f"{where}, must declare at least one slot and one for each row, found slots = {slots!r}",
            hint="hubbub.Examples(x, y, slots=N) with a public N; leave out who can never have data",
        )
    is_real = np.zeros(slots, dtype=bool)
    is_real[: len(x)] = _usable(x, data.x) & _usable(y, data.y)
    return Slots(_lay(x, is_real), _lay(y, is_real), is_real)


def _column(values: object, column: Column, where: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except (ValueError, RuntimeError, TypeError) as error:  # ragged rows, tensors that record gradients
        raise CodeError(
            f"{where}, must convert to one array, {type(error).__name__}", hint="return a NumPy array"
        ) from None
    if array.dtype.name != column.dtype:
        raise CodeError(
            f"{where}, must have dtype {column.dtype}, found {array.dtype.name}",
            hint=f"convert it in study.py: .astype({column.dtype!r}), or declare what it is",
        )
    if array.ndim < 1 or array.shape[1:] != column.shape:
        found = "no rows" if array.ndim < 1 else list(array.shape[1:])
        raise CodeError(
            f"{where}, each record must have shape {list(column.shape)}, found {found}",
            hint="reshape it in study.py, or declare its shape under [data]",
        )
    return array.astype(column.dtype, copy=False)  # this machine's byte order


def _usable(array: NDArray[Any], column: Column) -> NDArray[np.bool_]:
    rows = array.reshape(len(array), int(np.prod(column.shape)))
    is_fine = np.isfinite(rows)
    if column.classes is not None:
        is_fine &= (rows >= 0) & (rows < column.classes)
    return np.logical_and.reduce(is_fine, axis=1)


def _lay(array: NDArray[Any], is_real: NDArray[np.bool_]) -> NDArray[Any]:
    laid = np.zeros((len(is_real), *array.shape[1:]), dtype=array.dtype)
    laid[: len(array)][is_real[: len(array)]] = array[is_real[: len(array)]]
    return laid
