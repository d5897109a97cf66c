"""Local training of dense networks by formula: no graph, no gradient array, and weights that move where they lie.

Of a step of a small network, autograd takes more time than the arithmetic. For layers that are all dense, with
plain activations between them and cross-entropy at the end, the gradient is a product for each layer, and the product
is added to the weights directly. Like a stack, it is only used after `is_right` has tried it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from hubbub.local.bookkeeping import is_plain
from hubbub.local.layout import Layout
from hubbub.local.seeds import shuffled
from hubbub.local.stack import are_labels
from hubbub.study import Slots
from hubbub.study.config import Training


class Activation(NamedTuple):
    """A function of single numbers whose slope follows from its result.

    Args:
        apply: Replaces numbers by results.
        pull: Gradients of results as those of what went in; takes gradients and results. What autograd itself calls.
    """

    apply: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor], Tensor]


def _pull_relu(back: Tensor, results: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.default(back, results, 0)


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation(torch.relu_, _pull_relu),
    nn.Tanh: Activation(torch.tanh_, torch.ops.aten.tanh_backward.default),
    nn.Sigmoid: Activation(torch.sigmoid_, torch.ops.aten.sigmoid_backward.default),
}


class Chain:
    """Trains participants one after the other.

    Args:
        layers: The dense layers, in order.
        activations: One after each but the last.
    """

    def __init__(self, layers: Sequence[nn.Linear], activations: Sequence[Activation]) -> None:
        sizes = [value.numel() for layer in layers for value in layer.parameters()]
        self._flat = torch.empty(sum(sizes))
        parts = iter(self._flat.split(sizes))
        self._layers = [
            (next(parts).view(layer.weight.shape), None if layer.bias is None else next(parts))  # pyright: ignore[reportUnnecessaryComparison]  # with bias=False it is None
            for layer in layers
        ]
        self._activations = activations
        self._classes = layers[-1].out_features

    def takes(self, slots: Slots) -> bool:
        """Whether a participant may be trained so: it has records, and no label at which autograd fails."""
        return bool(slots.real.size) and are_labels(slots, self._classes)

    def updates(
        self,
        parameters: Float32[np.ndarray, " params"],
        everyone: Sequence[Slots],
        training: Training,
        seeds: Sequence[bytes],
    ) -> Iterator[Float32[np.ndarray, " params"]]:
        """New weights minus old weights, in order; each is good until the next is asked for."""
        trained, size = self._flat.numpy(), training.batch_size
        for slots, seed in zip(everyone, seeds, strict=True):
            trained[:] = parameters
            for epoch in range(training.local_epochs):
                order = shuffled(slots.real, seed, epoch)
                x, y = (
                    torch.from_numpy(slots.x.take(order, 0)).flatten(1),
                    torch.from_numpy(slots.y.take(order, 0)).long(),
                )
                for batch in zip(x.split(size), y.split(size), strict=True):
                    self._step(*batch, rate=training.learning_rate)
            with np.errstate(over="ignore", invalid="ignore"):
                yield np.subtract(trained, parameters, out=trained)

    def _step(self, x: Tensor, y: Tensor, *, rate: float) -> None:
        inputs = [x]
        for at, (weight, bias) in enumerate(self._layers):
            made = torch.mm(inputs[-1], weight.t()) if bias is None else torch.addmm(bias, inputs[-1], weight.t())
            inputs.append(made if at == len(self._activations) else self._activations[at].apply(made))
        back = inputs.pop().softmax(dim=1)
        back.scatter_add_(1, y[:, None], torch.full((), -1.0).expand(len(y), 1))
        rate /= len(y)
        for at in range(len(self._layers) - 1, -1, -1):
            weight, bias = self._layers[at]
            before = self._activations[at - 1].pull(back @ weight, inputs[at]) if at else back  # while it is as it was
            weight.addmm_(back.t(), inputs[at], alpha=-rate)
            if bias is not None:
                bias.sub_(back.sum(dim=0), alpha=rate)
            back = before


def dense(module: nn.Module, layout: Layout) -> Chain | None:
    """A chain for dense layers with activations between them, perhaps of flattened records; None for other models."""
    if type(module) is not nn.Sequential:
        return None
    parts = list(module)
    if parts and type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1):
        del parts[0]
    layers = [layer for layer in parts[::2] if type(layer) is nn.Linear and is_plain(layer)]
    activations = [ACTIVATIONS[kind] for part in parts[1::2] if (kind := type(part)) in ACTIVATIONS]
    is_chain = len(layers) == len(activations) + 1 and len(layers) + len(activations) == len(parts)
    trained = [name for name, value in module.named_parameters() if value.requires_grad]  # one that is shared, once
    if not is_chain or len(trained) != sum(len(list(layer.parameters())) for layer in layers):
        return None
    return Chain(layers, activations) if list(layout.names) == trained else None
