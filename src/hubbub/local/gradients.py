"""Per-example clipped gradient sums, in microbatches of one fixed shape.

A record must touch one microbatch only and change nothing else in it, or the sensitivity is not what the
mechanism says. So slots are packed as they were drawn into microbatches whose number of rows a run never changes:
null slots and padding keep their row, with zeroed inputs and weight zero. (At another number of rows a matrix library
may pick another kernel, and every other row's gradient changes in its last bits.)

Two clippers do it: `bookkeeping.py`'s for models of plain layers, and `PerExample` for the rest. `choose` tries them,
at the number of rows that they are for. Where an author's own code runs in a model or loss, both run it under vmap
only: it refuses code that looks at values, and gives the rest one record at a time, so that none can mix records at
other values than the made-up ones. vmap's gradients load a compiler that nobody uses, for a second; a model of
PyTorch's own modules is spared that.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad

from hubbub.errors import CodeError
from hubbub.local.apart import each
from hubbub.local.bookkeeping import Loss, fit, has_authors_code, is_same_beside, seeded
from hubbub.mechanism import Mechanism
from hubbub.mechanism.mechanism import MOST_ROWS
from hubbub.study import Slots


@runtime_checkable
class Clipper(Protocol):
    """Clips and sums the gradients of a microbatch."""

    @property
    def microbatch(self) -> int:
        """Rows of each, at most `MOST_ROWS`."""
        ...

    def __call__(
        self, x: Tensor, y: Tensor, weights: Float[np.ndarray, " rows"], mechanism: Mechanism
    ) -> Float[np.ndarray, " params"]:
        """The weighted sum of the clipped gradients, float64."""
        ...


def clipped_sums(
    clipper: Clipper, slots: Slots, drawn: Int[np.ndarray, " drawn"], mechanism: Mechanism
) -> Iterator[Float[np.ndarray, " params"]]:
    """Yield, per microbatch, the sum of clipped per-example gradients in float64.

    Args:
        clipper: What `choose` chose for the model.
        slots: The participant's slots.
        drawn: Indices of the slots in this round's batch.
        mechanism: Says how far a gradient may reach.

    Guarantees:
        Each row adds a vector of norm at most `max_norm`; a null slot, padding, a gradient that is not finite, or
        a record at which model or loss raises adds zero. The number of microbatches depends on `len(drawn)` only.

    Raises:
        Exception: Of the model or loss, if it raises without any record.

    Source:
        Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
    """
    for start in range(0, len(drawn), clipper.microbatch):
        packed = _pack(slots, drawn[start : start + clipper.microbatch], clipper.microbatch)
        yield _those_that_run(clipper, *packed, mechanism)


def _those_that_run(
    clipper: Clipper, x: Tensor, y: Tensor, weights: Float[np.ndarray, " rows"], mechanism: Mechanism
) -> Float[np.ndarray, " params"]:
    """A microbatch's sum. Were it given up for one record that raises, its absence would tell of that record.

    So each record is tried by itself, who raises is nulled, and what layers draw is drawn again alike for the others.
    """
    state = torch.random.get_rng_state()
    try:
        return clipper(x, y, weights, mechanism)
    except Exception:  # noqa: BLE001, whatever is raised at somebody's values
        clipper(torch.zeros_like(x), torch.zeros_like(y), weights, mechanism)
    for row in range(len(x)):
        one_x, one_y = torch.zeros_like(x), torch.zeros_like(y)
        one_x[row], one_y[row] = x[row], y[row]
        try:
            clipper(one_x, one_y, weights, mechanism)
        except Exception:  # noqa: BLE001
            x[row], y[row], weights[row] = 0, 0, 0.0
    torch.random.set_rng_state(state)
    return clipper(x, y, weights, mechanism)


class PerExample:
    """The clipper for any model: forms every record's whole gradient, by vmap over single examples.

    Args:
        module: The model, its parameters those of the current round.
        loss: Per-example loss of (outputs, y).
        microbatch: Rows of a microbatch.
    """

    def __init__(self, module: nn.Module, loss: Loss, microbatch: int) -> None:
        self._module = module
        self.microbatch = microbatch

        def one(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(module, dict(parameters), (x.unsqueeze(0),))
            return loss(outputs, y.unsqueeze(0)).sum()

        self._gradients = each(grad(one), in_dims=(None, 0, 0), randomness="different")

    def rows(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Gradients by parameter, one row per record."""
        named = {name: value.detach() for name, value in self._module.named_parameters() if value.requires_grad}
        return self._gradients(named, x, y)

    def __call__(
        self, x: Tensor, y: Tensor, weights: Float[np.ndarray, " rows"], mechanism: Mechanism
    ) -> Float[np.ndarray, " params"]:
        """The weighted sum of the clipped gradients of one microbatch."""
        return _clipped_sum(self.rows(x, y), weights, mechanism)


def choose(module: nn.Module, loss: Loss, example: Slots, microbatch: int) -> Clipper:
    """The fastest clipper that is right for a model; the model is in training mode afterwards.

    Args:
        module: The model.
        loss: Per-example loss of (outputs, y).
        example: Slots of the study's shapes that hold nobody's values: the choice is no secret.
        microbatch: Rows of a microbatch; never more than `MOST_ROWS`, which the mechanism counts on.

    Raises:
        CodeError: A row's gradient depends on another row, so no clip bounds what one record adds.
    """
    module.train()
    x, y = made_up_rows(example, min(microbatch, MOST_ROWS))
    return _fit_torchs(module, loss, x, y) or _fit_any(module, loss, x, y)


def _fit_any(module: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Clipper:
    clipper = PerExample(module, loss, len(x))
    self_test(clipper, x, y)
    return fit(module, loss, x, y, clipper.rows) or clipper


def _fit_torchs(module: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Clipper | None:
    """The book-keeping clipper of a model that holds no code of its author's; None for any other."""

    def rows(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        named = {name: value for name, value in module.named_parameters() if value.requires_grad}
        losses = (loss(module(x[row : row + 1]), y[row : row + 1]).sum() for row in range(len(x)))
        gradients = [torch.autograd.grad(one, list(named.values())) for one in losses]
        return dict(zip(named, map(torch.stack, zip(*gradients, strict=True)), strict=True))

    return None if has_authors_code(module, loss) else fit(module, loss, x, y, rows)


def _pack(slots: Slots, rows: NDArray[Any], count: int) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    if len(rows) == count:
        return torch.from_numpy(slots.x[rows]), torch.from_numpy(slots.y[rows]), slots.is_real[rows].astype(np.float64)
    x = np.zeros((count, *slots.x.shape[1:]), dtype=slots.x.dtype)
    y = np.zeros((count, *slots.y.shape[1:]), dtype=slots.y.dtype)
    weights = np.zeros(count)
    x[: len(rows)], y[: len(rows)] = slots.x[rows], slots.y[rows]
    weights[: len(rows)] = slots.is_real[rows]
    return torch.from_numpy(x), torch.from_numpy(y), weights


def _clipped_sum(
    gradients: Mapping[str, Tensor], weights: Float[np.ndarray, " rows"], mechanism: Mechanism
) -> Float[np.ndarray, " params"]:
    wide = [value.detach().reshape(len(weights), -1).double().numpy() for value in gradients.values()]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = sum(np.einsum("ij,ij->i", rows, rows) for rows in wide)
    factors = weights * mechanism.clip_factors(np.sqrt(squares))
    dropped = ~np.isfinite(squares)
    for rows in wide:
        rows[dropped] = 0.0
    return np.concatenate([factors @ rows for rows in wide])


def self_test(clipper: PerExample, x: Tensor, y: Tensor) -> None:
    """Check that nulling one row of a microbatch leaves every other row's gradient as it was, bit for bit.

    Raises:
        CodeError: It does not.
    """
    before = seeded(clipper.rows, x, y)
    for row in (0, len(x) // 2, len(x) - 1):
        nulled_x, nulled_y = x.clone(), y.clone()
        nulled_x[row], nulled_y[row] = 0, 0
        after = seeded(clipper.rows, nulled_x, nulled_y)
        for name, value in before.items():
            if not is_same_beside(row, value, after[name]):
                raise CodeError(
                    f"model(): {name}, the gradient of one example must not depend on another, found that it does",
                    hint="look for layers that share state or statistics between examples",
                )


def made_up_rows(example: Slots, rows: int) -> tuple[Tensor, Tensor]:
    """Rows of the example's shapes and dtypes: random reals, and the example's integers repeated."""
    values = np.random.default_rng(0).normal(size=(rows, *example.x.shape[1:])).astype(example.x.dtype)
    x = values if example.x.dtype.kind == "f" else np.resize(example.x, (rows, *example.x.shape[1:]))
    y = np.resize(example.y, (rows, *example.y.shape[1:]))
    return torch.from_numpy(x), torch.from_numpy(y)
