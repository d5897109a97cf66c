"""What one parameter gets from each record of a microbatch: norms and weighted sums, layer by layer.

A part comes from what went into a layer and the gradient of what came out. Where a record's gradient is one outer
product, or a sum of few large ones, it is never formed; else it is formed in float32, as vmap would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hubbub.mechanism.clip import UNIT_ROUNDOFF

SHORT = 24
"""Positions up to which a sum of outer products in float64 is faster than forming it for each record in float32."""

LARGE = 2**20
"""Entries of a weight beyond which it is not formed for each record if Gram matrices are smaller."""

COLUMNS = 4096
"""Columns that are widened to float64 at a time: what is held stays in the processor's cache."""

FLOAT32_OVERFLOWS = 2.0**128 - 2.0**103
"""Where rounding to float32 gives an infinity."""


@runtime_checkable
class Part(Protocol):
    """The gradients of one parameter, one per record."""

    @property
    def terms(self) -> int:
        """Terms that one record adds to each coordinate of a weighted sum."""
        ...

    def squares(self) -> Float[np.ndarray, " rows"]:
        """At least each gradient's squared norm, in float64; not finite where the gradient is not."""
        ...

    def reach_squares(self) -> Float[np.ndarray, " rows"]:
        """Square of the sum of the norms of each gradient's terms."""
        ...

    def drop(self, rows: Tensor) -> None:
        """Make the gradients of these records zero."""
        ...

    def write(self, factors: Tensor, out: Tensor) -> None:
        """Write the sum of the gradients, each multiplied by its factor, in float64."""
        ...


@dataclass
class Formed:
    """Gradients that are there, one row each, float32."""

    rows: Tensor
    terms: int = 1

    def squares(self) -> Float[np.ndarray, " rows"]:
        """Squared norms."""
        wide = torch.zeros(len(self.rows), dtype=torch.float64)
        for columns in self.rows.split(COLUMNS, dim=1):
            wide += columns.double().square_().sum(dim=1)
        return wide.numpy()

    reach_squares = squares

    def drop(self, rows: Tensor) -> None:
        """Make the gradients of these records zero."""
        self.rows = self.rows.masked_fill(rows[:, None], 0.0)  # what autograd gave may be one value, expanded

    def write(self, factors: Tensor, out: Tensor) -> None:
        """One product of the factors with the rows, some columns at a time."""
        for columns, piece in zip(self.rows.split(COLUMNS, dim=1), out.split(COLUMNS), strict=True):
            torch.mv(columns.double().t(), factors, out=piece)


class Outer:
    """Gradients that are sums of outer products: of what came out with what went in, over `terms` positions.

    Args:
        inputs: [rows, positions, in].
        gradients: [rows, positions, out].
    """

    def __init__(self, inputs: Tensor, gradients: Tensor) -> None:
        self._inputs, self._gradients = inputs.double(), gradients.double()
        self.terms = inputs.shape[1]
        self._lengths = self._inputs.square().sum(dim=2) * self._gradients.square().sum(dim=2)

    def squares(self) -> Float[np.ndarray, " rows"]:
        """Products of norms for one position; else from Gram matrices, plus what rounding may have taken from them."""
        if self.terms == 1:
            return self._overflowing(self._lengths[:, 0].numpy())
        gram = self._inputs @ self._inputs.mT
        gram *= self._gradients @ self._gradients.mT
        depth = self._inputs.shape[2] + self._gradients.shape[2] + 2 * self.terms + 16
        return gram.sum(dim=2).sum(dim=1).clamp_(min=0.0).numpy() + 2 * depth * UNIT_ROUNDOFF * self.reach_squares()

    def _overflowing(self, squares: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Infinity where float32 cannot hold the gradient, so that a record is dropped as it would be by vmap."""
        if not (squares >= FLOAT32_OVERFLOWS).any():
            return squares
        largest = self._inputs.abs().amax(dim=(1, 2)) * self._gradients.abs().amax(dim=(1, 2))
        return np.where((largest >= FLOAT32_OVERFLOWS).numpy(), np.inf, squares)

    def reach_squares(self) -> Float[np.ndarray, " rows"]:
        """Square of the sum of the products' norms."""
        return self._lengths.sqrt().sum(dim=1).square().numpy()

    def drop(self, rows: Tensor) -> None:
        """Make the gradients of these records zero."""
        self._inputs[rows], self._gradients[rows] = 0.0, 0.0

    def write(self, factors: Tensor, out: Tensor) -> None:
        """One matrix product over rows and positions."""
        width, height = self._inputs.shape[2], self._gradients.shape[2]
        scaled = (self._gradients * factors[:, None, None]).reshape(-1, height)
        torch.mm(scaled.t(), self._inputs.reshape(-1, width), out=out.view(height, width))


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

    def squares(self) -> Float[np.ndarray, " rows"]:
        """Squared norms: entries of one record do not overlap."""
        wide = torch.zeros(self._count, dtype=torch.float64)
        return wide.index_add_(0, self._rows, self._sums.square().sum(dim=1)).numpy()

    reach_squares = squares

    def drop(self, rows: Tensor) -> None:
        """Make the gradients of these records zero."""
        self._sums[rows[self._rows]] = 0.0

    def write(self, factors: Tensor, out: Tensor) -> None:
        """Add every record's entries to the table's."""
        table = out.zero_().view(-1, self._sums.shape[1])
        table.index_add_(0, self._entries, self._sums * factors[self._rows, None])


Parts = dict[str, Part]


def make_parts(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> Parts:
    """The parts of a layer's trained parameters, by name.

    Args:
        layer: One of `LAYERS`.
        inputs: What went in, batch first.
        gradients: Of what came out.
    """
    if isinstance(layer, nn.Embedding):
        entries, rows = inputs.reshape(len(inputs), -1), gradients.reshape(len(gradients), -1, layer.embedding_dim)
        ignored = -1 if layer.padding_idx is None else layer.padding_idx
        return {"weight": Lookups(entries, rows, ignored=ignored, size=layer.num_embeddings)}
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return _scaling(layer, inputs, gradients)
    if isinstance(layer, nn.Linear):
        inputs = inputs.reshape(len(inputs), -1, layer.in_features)
        return _dense(layer, inputs, gradients.reshape(len(gradients), -1, layer.out_features))
    return _dense(layer, _patches(layer, inputs).mT, gradients.flatten(2).mT)


def _dense(layer: Any, inputs: Tensor, gradients: Tensor) -> Parts:
    parts: Parts = {}
    positions, width, height = inputs.shape[1], inputs.shape[2], gradients.shape[2]
    if layer.bias is not None and layer.bias.requires_grad:
        parts["bias"] = Formed(gradients[:, 0] if positions == 1 else gradients.sum(dim=1))
    if layer.weight.requires_grad:
        is_compact = 2 * positions**2 < width * height
        if positions == 1 or (is_compact and (positions <= SHORT or width * height > LARGE)):
            parts["weight"] = Outer(inputs, gradients)
        else:
            parts["weight"] = Formed(torch.bmm(gradients.mT, inputs).flatten(1))
    return parts


def _scaling(layer: Any, inputs: Tensor, gradients: Tensor) -> Parts:
    """Layers that normalise, then multiply each feature by a weight and add a bias."""
    if isinstance(layer, nn.LayerNorm):
        normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        shape, position = (len(inputs), -1, layer.weight.numel()), 1
    else:
        normal = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
        shape, position = (len(inputs), layer.num_channels, -1), 2
    parts: Parts = {}
    if layer.weight.requires_grad:
        parts["weight"] = Formed((gradients * normal).reshape(shape).sum(dim=position))
    if layer.bias is not None and layer.bias.requires_grad:
        parts["bias"] = Formed(gradients.reshape(shape).sum(dim=position))
    return parts


def _patches(layer: Any, inputs: Tensor) -> Tensor:
    """What each output position of a convolution sees: [rows, in x kernel, positions]."""
    pad = 0 if layer.padding == "valid" else layer.padding
    if isinstance(layer, nn.Conv2d):
        return functional.unfold(inputs, layer.kernel_size, layer.dilation, pad, layer.stride)
    kernel, dilation, stride = ((1, *size) for size in (layer.kernel_size, layer.dilation, layer.stride))
    return functional.unfold(inputs[:, :, None], kernel, dilation, pad and (0, *pad), stride)


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
