"""What one parameter gets from each record of a microbatch: norms and weighted sums, layer by layer.

A part comes from what went into a layer and the gradient of what came out. Where a record's gradient is one outer
product, or a sum of few large ones, it is never formed; else it is formed in float32, as vmap would.
"""

import math
from collections.abc import Callable, Container, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from hubbub.mechanism.clip import UNIT_ROUNDOFF

SHORT = 24
"""Positions up to which a sum of outer products in float64 is faster than forming it for each record in float32."""

LARGE = 2**20
"""Entries of a weight beyond which it is not formed for each record if Gram matrices are smaller."""

AT_ONCE = 8
"""Records whose patches are held at a time: a convolution's are many times its input."""

COLUMNS = 4096
"""Columns that are widened to float64 at a time: what is held stays in the processor's cache."""

FLOAT32_OVERFLOWS = 2.0**128 - 2.0**103
"""Where rounding to float32 gives an infinity."""


Rows = Float[np.ndarray, " rows"]


@runtime_checkable
class Part(Protocol):
    """The gradients of one parameter, one per record."""

    @property
    def terms(self) -> int:
        """Terms that one record adds to each coordinate of a weighted sum."""
        ...

    def squares(self) -> Rows:
        """At least each gradient's squared norm, in float64; not finite where the gradient is not."""
        ...

    def reach_squares(self) -> Rows:
        """Square of the sum of the norms of each gradient's terms."""
        ...

    def drop(self, dropped: Bool[np.ndarray, " rows"]) -> None:
        """Make the gradients of these records zero."""
        ...

    def write(self, factors: Rows, out: Float[np.ndarray, " size"]) -> None:
        """Write the sum of the gradients, each multiplied by its factor, in float64."""
        ...


class Formed:
    """Gradients that are there, in float32 or wider, a row each.

    Args:
        rows: [rows, size].
    """

    terms = 1

    def __init__(self, rows: Float[np.ndarray, "rows size"]) -> None:
        self._rows = rows

    def squares(self) -> Rows:
        """Squared norms."""
        total, *others = [_squares(wide) for _, wide in self._widened()]
        return sum(others, total)

    reach_squares = squares

    def drop(self, dropped: Bool[np.ndarray, " rows"]) -> None:
        """Make the gradients of these records zero."""
        self._rows = np.where(dropped[:, None], np.float32(0), self._rows)

    def write(self, factors: Rows, out: Float[np.ndarray, " size"]) -> None:
        """One product of the factors with the rows."""
        for columns, wide in self._widened():
            np.matmul(factors, wide, out=out[columns])

    def _widened(self) -> Iterator[tuple[slice, Float[np.ndarray, "rows columns"]]]:
        for start in range(0, max(self._rows.shape[1], 1), COLUMNS):
            columns = slice(start, start + COLUMNS)
            yield columns, self._rows[:, columns].astype(np.float64, copy=False)


class Outer:
    """Gradients that are sums of outer products: of what came out with what went in, over `terms` positions.

    Args:
        inputs: [rows, positions, in].
        gradients: [rows, positions, out]; its own if it is float64.
    """

    def __init__(
        self,
        inputs: Float32[np.ndarray, "rows positions in"],
        gradients: Float[np.ndarray, "rows positions out"],
    ) -> None:
        self.terms = inputs.shape[1]
        self._inputs = inputs.astype(np.float64, order="C")
        self._gradients = gradients.astype(np.float64, order="C", copy=False)
        self._lengths = _squares(self._inputs) * _squares(self._gradients)

    def squares(self) -> Rows:
        """Products of norms for one position; else from Gram matrices, plus what rounding may have taken from them."""
        if self.terms == 1:
            return self._overflowing(self._lengths[:, 0])
        gram = self._inputs @ self._inputs.swapaxes(1, 2)
        gram *= self._gradients @ self._gradients.swapaxes(1, 2)
        depth = self._inputs.shape[2] + self._gradients.shape[2] + 2 * self.terms + 16
        return np.maximum(gram.sum(axis=2).sum(axis=1), 0.0) + 2 * depth * UNIT_ROUNDOFF * self.reach_squares()

    def _overflowing(self, squares: Rows) -> Rows:
        """Infinity where float32 cannot hold the gradient, so that a record is dropped as it would be by vmap."""
        if not (squares >= FLOAT32_OVERFLOWS).any():
            return squares
        largest = np.abs(self._inputs).max(axis=(1, 2)) * np.abs(self._gradients).max(axis=(1, 2))
        return np.where(largest >= FLOAT32_OVERFLOWS, np.inf, squares)

    def reach_squares(self) -> Rows:
        """Square of the sum of the products' norms."""
        return np.square(np.sqrt(self._lengths).sum(axis=1))

    def drop(self, dropped: Bool[np.ndarray, " rows"]) -> None:
        """Make the gradients of these records zero."""
        self._inputs[dropped], self._gradients[dropped] = 0.0, 0.0

    def write(self, factors: Rows, out: Float[np.ndarray, " size"]) -> None:
        """One matrix product over rows and positions."""
        width, height = self._inputs.shape[2], self._gradients.shape[2]
        scaled = (self._gradients * factors[:, None, None]).reshape(-1, height)
        np.matmul(scaled.T, self._inputs.reshape(-1, width), out=out.reshape(height, width))


def _squares(vectors: Float[np.ndarray, "*vectors size"]) -> Float[np.ndarray, "*vectors"]:
    return np.matmul(vectors[..., None, :], vectors[..., :, None])[..., 0, 0]


class Lookups:
    """Gradients of a table: for each record, one row per entry that it looked up.

    Args:
        entries: [rows, positions], which entries of the table were looked up.
        gradients: [rows, positions, width].
        ignored: Entry that is not trained; -1 for none.
        size: Entries of the table.
    """

    terms = 1

    def __init__(self, entries: Tensor, gradients: Tensor, *, ignored: int, size: int) -> None:
        count = len(entries)
        keys = entries + size * torch.arange(count)[:, None]
        found, places = torch.unique(keys, return_inverse=True)
        self._rows, self._entries, self._count = found // size, found % size, count
        wide = gradients.reshape(-1, gradients.shape[2]).double()
        self._sums = torch.zeros(len(found), wide.shape[1], dtype=torch.float64).index_add_(0, places.flatten(), wide)
        self._sums[self._entries == ignored] = 0.0

    def squares(self) -> Rows:
        """Squared norms: entries of one record do not overlap."""
        wide = torch.zeros(self._count, dtype=torch.float64)
        return wide.index_add_(0, self._rows, self._sums.square().sum(dim=1)).numpy()

    reach_squares = squares

    def drop(self, dropped: Bool[np.ndarray, " rows"]) -> None:
        """Make the gradients of these records zero."""
        self._sums[torch.from_numpy(dropped)[self._rows]] = 0.0

    def write(self, factors: Rows, out: Float[np.ndarray, " size"]) -> None:
        """Add every record's entries to the table's."""
        table = torch.from_numpy(out).zero_().view(-1, self._sums.shape[1])
        table.index_add_(0, self._entries, self._sums * torch.from_numpy(factors)[self._rows, None])


Parts = dict[str, Part]


def make_parts(layer: nn.Module, trained: Container[str], inputs: Tensor, gradients: Tensor) -> Parts:
    """The parts of a layer's trained parameters, by name.

    Args:
        layer: One of `LAYERS`.
        trained: Which of "weight" and "bias" to make parts for.
        inputs: What went in, batch first.
        gradients: Of what came out.
    """
    if isinstance(layer, nn.Linear):
        rows, at, out = inputs.numpy(), gradients.numpy(), gradients.shape[-1]
        return _dense(trained, rows.reshape(len(rows), -1, rows.shape[-1]), at.reshape(len(rows), -1, out))
    if isinstance(layer, nn.Embedding):
        entries, at = inputs.reshape(len(inputs), -1), gradients.reshape(len(gradients), -1, layer.embedding_dim)
        ignored = -1 if layer.padding_idx is None else layer.padding_idx
        return {"weight": Lookups(entries, at, ignored=ignored, size=layer.num_embeddings)}
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return _scaling(layer, trained, inputs, gradients)
    return _convolved(layer, trained, inputs, gradients.flatten(2))


def _dense(
    trained: Container[str],
    inputs: Float32[np.ndarray, "rows positions in"],
    gradients: Float[np.ndarray, "rows positions out"],
) -> Parts:
    parts: Parts = {}
    positions = gradients.shape[1]
    if positions == 1:
        gradients = gradients.astype(np.float64)  # once for both
    if "bias" in trained:
        parts["bias"] = Formed(gradients[:, 0] if positions == 1 else gradients.sum(axis=1))
    if "weight" in trained and _is_compact(positions, inputs.shape[2] * gradients.shape[2]):
        parts["weight"] = Outer(inputs, gradients)
    elif "weight" in trained:
        formed = torch.bmm(torch.from_numpy(gradients).mT, torch.from_numpy(inputs))
        parts["weight"] = Formed(formed.flatten(1).numpy())
    return parts


def _is_compact(positions: int, size: int) -> bool:
    """Whether outer products over these positions are better kept than formed, for a weight of this size."""
    return positions == 1 or (2 * positions**2 < size and (positions <= SHORT or size > LARGE))


def _convolved(layer: Any, trained: Container[str], inputs: Tensor, gradients: Tensor) -> Parts:
    """Parts of a convolution, from what each position of its output sees; gradients are [rows, out, positions]."""
    rows, out, positions = gradients.shape
    size = layer.weight.numel()
    if "weight" in trained and _is_compact(positions, size):
        return _dense(trained, _patches(layer, inputs).mT.numpy(), gradients.mT.numpy())
    parts: Parts = {}
    if "bias" in trained:
        parts["bias"] = Formed(gradients.sum(dim=2).numpy())
    if "weight" in trained:
        formed = torch.empty(rows, out, size // out)
        for start in range(0, rows, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            torch.bmm(gradients[part], _patches(layer, inputs[part]).mT, out=formed[part])
        parts["weight"] = Formed(formed.flatten(1).numpy())
    return parts


def _scaling(layer: Any, trained: Container[str], inputs: Tensor, gradients: Tensor) -> Parts:
    """Layers that normalise, then multiply each feature by a weight and add a bias."""
    if isinstance(layer, nn.LayerNorm):
        normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        shape, position = (len(inputs), -1, layer.weight.numel()), 1
    else:
        normal = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
        shape, position = (len(inputs), layer.num_channels, -1), 2
    parts: Parts = {}
    if "weight" in trained:
        parts["weight"] = Formed((gradients * normal).reshape(shape).sum(dim=position).numpy())
    if "bias" in trained:
        parts["bias"] = Formed(gradients.reshape(shape).sum(dim=position).numpy())
    return parts


def _patches(layer: Any, inputs: Tensor) -> Tensor:
    """What each output position of a convolution sees: [rows, in x kernel, positions].

    `functional.unfold` gives the same and takes four times as long.
    """
    pads = [0 for _ in layer.kernel_size] if layer.padding == "valid" else layer.padding
    whole = inputs.contiguous()  # channels last, patches would be gathered number by number
    seen = functional.pad(whole, [pad for one in reversed(pads) for pad in (one, one)])
    spans = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    for axis, (kernel, dilation, stride) in enumerate(spans, start=2):
        seen = seen.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    axes = range(2, 2 + len(pads))  # of positions; the kernel's are behind them
    moved = seen.permute(0, 1, *(axis + len(pads) for axis in axes), *axes)
    return moved.reshape(len(inputs), -1, math.prod(seen.shape[axis] for axis in axes))


def _convolves_plainly(layer: Any) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros" and layer.padding != "same"


def _looks_up_plainly(layer: Any) -> bool:
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


LAYERS: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.Linear: lambda _: True,
    nn.Conv1d: _convolves_plainly,
    nn.Conv2d: _convolves_plainly,
    nn.Embedding: _looks_up_plainly,
    nn.LayerNorm: lambda _: True,
    nn.GroupNorm: lambda _: True,
}
"""Supported kinds of layers, and which settings of them."""
