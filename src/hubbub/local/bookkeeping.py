"""The book-keeping clipper: clipped gradient sums from one batched pass, without per-example gradients of dense layers.

A record is kept of what goes into each layer, one call of autograd gives the gradient of what comes out, and both
together are every record's gradient: `parts.py` turns them into norms and weighted sums. It needs a model in which
every trained parameter belongs to a supported layer that is called once, batch first; `fit` finds out on made-up
records, by the graph and by comparison with gradients formed record by record, and says None where that is not so.

No made-up records show what somebody's code does at other values: a maximum over the batch may decide nothing until
one record is large. So where code of an author's runs, it is given each record by itself, under vmap.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad

from hubbub.local.apart import each
from hubbub.local.parts import LAYERS, Part, make_parts
from hubbub.mechanism import Mechanism
from hubbub.mechanism.clip import UNIT_ROUNDOFF

SPREAD = 1024.0
"""Most by which the terms of a record's gradient may exceed the gradient before it is clipped further."""

AGREEMENT = 1e-3
"""Largest difference from vmap on made-up records, relative to the gradient: float32's rounding, and no mistake."""

Loss = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[Tensor], Tensor]


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Per-example cross-entropy of [n, classes] scores."""
    return nn.functional.cross_entropy(outputs, y.long(), reduction="none")


@dataclass
class _Seen:
    """What one call of one layer left behind."""

    inputs: Tensor
    edge: GradientEdge
    shape: torch.Size


class Bookkeeper:
    """Clipped gradient sums of one module; only `fit` makes one, after it has tried it.

    Args:
        module: The model, its parameters those of the current round.
        loss: Per-example loss of (outputs, y).
        layers: The layers that hold its trained parameters, by name.
        microbatch: Rows of a microbatch.

    Source:
        Bu et al. 2022, arXiv:2210.00038 (book-keeping); Goodfellow 2015, arXiv:1510.01799 (norms without gradients).
    """

    def __init__(self, module: nn.Module, loss: Loss, layers: Mapping[str, nn.Module], microbatch: int) -> None:
        self._module, self._loss, self._layers, self.microbatch = module, loss, layers, microbatch
        self._has_authors_code = has_authors_code(module, loss)
        self._made: dict[str, torch.Size] = {}
        names = [name.rpartition(".") for name, value in module.named_parameters() if value.requires_grad]
        self._owners = [(owner, kind) for owner, _, kind in names]
        self._trained = {name: {kind for owner, kind in self._owners if owner == name} for name in layers}
        self._ends = [0, *accumulate(value.numel() for value in module.parameters() if value.requires_grad)]

    def __call__(
        self, x: Tensor, y: Tensor, weights: Float[np.ndarray, " rows"], mechanism: Mechanism
    ) -> Float[np.ndarray, " params"]:
        """The weighted sum of the clipped gradients of one microbatch.

        Guarantees:
            A row adds a vector of norm at most `max_norm`, whose terms exceed `max_norm` at most `SPREAD`-fold in
            sum; a gradient that is not finite adds zero. With the rounding of the matrix products two
            such sums that differ in one row are no farther apart than `Mechanism.sensitivity` says.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            parts = self.parts(x, y)
            norms = bounds(parts)
        factors = weights * mechanism.clip_factors(norms)
        is_finite = np.isfinite(norms)
        if not is_finite.all():
            for part in parts:
                part.drop(~is_finite)
        return self.weighted_sum(parts, factors)

    def parts(self, x: Tensor, y: Tensor) -> list[Part]:
        """Every record's gradient, one part per trained parameter in their order."""
        seen = self.observe(x, y)
        made = {name: make_parts(self._layers[name], self._trained[name], *pair) for name, pair in seen.items()}
        return [made[owner][kind] for owner, kind in self._owners]

    def observe(self, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What went into each layer, and the gradient of the losses with respect to what came out.

        Guarantees:
            No row depends on another row's values where code of an author's runs; in torch's own layers none was
            seen to.
        """
        if self._has_authors_code:
            return self._observe_apart(x, y)
        seen, losses = self._forward(x, y)
        edges = [one[0].edge for one in seen.values()]
        gradients = torch.autograd.grad(losses.sum(), edges)  # given ones, torch loads sympy to compare shapes
        return {
            name: (calls[0].inputs.detach(), gradient)
            for (name, calls), gradient in zip(seen.items(), gradients, strict=True)
        }

    def _observe_apart(self, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The same of each record by itself: a zero is added to what comes out, and its gradient is taken."""

        def one(zeros: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            inputs: dict[str, Tensor] = {}
            with self._replaced(lambda name, forward: _shifted(forward, zeros[name], name, inputs)):
                return self._loss(self._module(x.unsqueeze(0)), y.unsqueeze(0)).sum(), inputs

        shapes = self._shapes(x, y)
        zeros = {name: torch.zeros(shape).expand(len(x), *shape) for name, shape in shapes.items()}
        with torch.no_grad():
            gradients, inputs = each(grad(one, has_aux=True), randomness="different")(zeros, x, y)
        return {name: (inputs[name].squeeze(1), gradients[name].squeeze(1)) for name in shapes}

    def _shapes(self, x: Tensor, y: Tensor) -> dict[str, torch.Size]:
        """Of what comes out of each layer for one record; found once, as every record has one shape."""
        if not self._made:
            seen, _ = self._forward(torch.zeros_like(x[:1]), torch.zeros_like(y[:1]))
            self._made = {name: calls[0].shape for name, calls in seen.items()}
        return self._made

    def weighted_sum(self, parts: list[Part], factors: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " params"]:
        """Sum of the records' gradients, each multiplied by its factor."""
        total = np.empty(self._ends[-1])
        for part, start, end in zip(parts, self._ends, self._ends[1:], strict=False):
            part.write(factors, total[start:end])
        return total

    def _forward(self, x: Tensor, y: Tensor) -> tuple[dict[str, list[_Seen]], Tensor]:
        """Losses, and what each layer saw.

        A forward hook does the same, at twice the price of a small layer. `is_plain` has seen that nobody replaced
        `forward`.
        """
        seen: dict[str, list[_Seen]] = {name: [] for name in self._layers}
        with self._replaced(lambda name, forward: _recorded(forward, seen[name])):
            return seen, self._loss(self._module(x), y)

    @contextmanager
    def _replaced(self, change: Callable[[str, Forward], Forward]) -> Generator[None]:
        """Let each layer do something else for a while."""
        for name, layer in self._layers.items():
            vars(layer)["forward"] = change(name, layer.forward)
        try:
            yield
        finally:
            for layer in self._layers.values():
                del vars(layer)["forward"]

    def is_complete(self, x: Tensor, y: Tensor) -> bool:
        """Whether one pass shows that nothing of a gradient escapes the records kept of each layer.

        Each layer is called once, batch first; the losses are one or more per record; and the graph uses each
        trained parameter once, which is the layer's own use of it.
        """
        seen, losses = self._forward(x, y)
        if losses.ndim == 0 or len(losses) != len(x) or any(len(calls) != 1 for calls in seen.values()):
            return False
        if any((calls[0].inputs.shape[0], calls[0].shape[0]) != (len(x), len(x)) for calls in seen.values()):
            return False
        torch.autograd.grad(losses.sum(), [calls[0].edge for calls in seen.values()])  # raises for one without effect
        uses = _uses(losses)
        return all(uses.get(id(value)) == 1 for value in self._module.parameters() if value.requires_grad)

    def is_separate(self, x: Tensor, y: Tensor) -> bool:
        """Whether what is kept of each row stays as it was, bit for bit, when another row is nulled or not finite."""
        before = seeded(self.observe, x, y)
        for row in (0, len(x) // 2, len(x) - 1):
            for value in (0.0, torch.nan) if x.is_floating_point() else (0,):
                changed_x, changed_y = x.clone(), y.clone()
                changed_x[row], changed_y[row] = value, 0
                after = seeded(self.observe, changed_x, changed_y)
                pairs = [pair for name in before for pair in zip(before[name], after[name], strict=True)]
                if not all(is_same_beside(row, first, second) for first, second in pairs):
                    return False
        return True

    def agrees(self, x: Tensor, y: Tensor, rows: Callable[..., dict[str, Tensor]]) -> bool:
        """Whether norms and a weighted sum are those of the gradients that `rows` forms, one row per record."""
        parts, factors = self.parts(x, y), np.random.default_rng(0).random(len(x))
        squares, sums = np.zeros(len(x)), list[Float[np.ndarray, " size"]]()
        for value in rows(x, y).values():
            wide = value.reshape(len(x), -1).double().numpy()
            squares += np.square(wide).sum(axis=1)
            sums.append(factors @ wide)
        norms, expected = np.sqrt(squares), np.concatenate(sums)
        scale = float(norms.max(initial=0.0))
        off = max(np.abs(bounds(parts) - norms).max(), np.linalg.norm(self.weighted_sum(parts, factors) - expected))
        return bool(off <= AGREEMENT * scale)


def fit(
    module: nn.Module, loss: Loss, x: Tensor, y: Tensor, rows: Callable[..., dict[str, Tensor]]
) -> Bookkeeper | None:
    """A clipper for this model if it is one that book-keeping is right for, else None.

    Args:
        module: The model.
        loss: Per-example loss of (outputs, y).
        x: One microbatch of made-up inputs; no one's, because the choice is seen in the time that a round takes.
        y: Its targets.
        rows: (x, y) -> every record's gradient, by parameter; what the clipper is compared with.
    """
    if (layers := _layers(module)) is None:
        return None
    clipper = Bookkeeper(module, loss, layers, len(x))
    try:
        with _stirred(module):
            # A layer that sees positions first is given away by fewer records, however many positions there are; and
            # code of an author's is given one.
            is_complete = all(seeded(clipper.is_complete, x[:count], y[:count]) for count in (len(x), 3, 1))
            if not (is_complete and clipper.is_separate(x, y)):
                return None
            module.eval()  # dropout draws other masks in one batch than in single examples
            return clipper if seeded(clipper.agrees, x, y, rows) else None
    except Exception:  # noqa: BLE001, the user's code runs example by example, but not in a batch
        return None
    finally:
        module.train()


@contextmanager
def _stirred(module: nn.Module) -> Generator[None]:
    """Trained parameters away from where they start: a layer that starts at zero would hide those before it."""
    trained = [value for value in module.parameters() if value.requires_grad]
    before, generator = [value.detach().clone() for value in trained], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in trained:
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(trained, before, strict=True):
                value.copy_(old)


def bounds(parts: list[Part]) -> Float[np.ndarray, " rows"]:
    """What clipping each record at its norm would have to divide by, rounding of the sums included.

    Guarantees:
        At least the norm of the record's gradient; for layers that see sequences, by so much more that the
        rounding of a sum over all their positions is within what `Mechanism.sensitivity` allows for sums over records,
        and at least the sum of the terms' norms over `SPREAD`. NaN or infinite where the gradient is.

    Source:
        Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1 (gamma).
    """
    norms = np.sqrt(sum(part.squares() for part in parts))
    longest = max(part.terms for part in parts)
    if longest == 1:
        return norms
    gamma = (len(norms) * longest + 2) * UNIT_ROUNDOFF
    reaches = np.sqrt(sum(part.reach_squares() for part in parts))
    return np.maximum(norms * (1.0 + 4.0 * len(norms) * SPREAD * gamma), reaches / SPREAD)


def _layers(module: nn.Module) -> dict[str, nn.Module] | None:
    """The layers that hold trained parameters; None if one of these is not plain, or shares a parameter."""
    trained = [name for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad]
    if len(trained) != sum(value.requires_grad for value in module.parameters()):
        return None
    layers = {name: module.get_submodule(name) for name in dict.fromkeys(name.rpartition(".")[0] for name in trained)}
    return layers if all(map(is_plain, layers.values())) else None


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is of a supported kind and does what its class does: no subclass, hook or replaced method."""
    is_supported = LAYERS.get(type(layer))
    names = {name for name, _ in layer.named_parameters()}
    return is_supported is not None and is_supported(layer) and not _is_changed(layer) and names <= {"weight", "bias"}


def _is_changed(layer: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(layer) or any(getattr(layer, hook) for hook in hooks)


def is_torchs(module: nn.Module) -> bool:
    """Whether a model is made of PyTorch's own modules, unchanged: no code of its author's runs in it."""
    return not any(map(_is_changed, module.modules())) and all(
        str(one.__module__).startswith(("torch.nn.modules.", "torch.nn.functional"))
        for layer in module.modules()
        for one in (type(layer), *filter(callable, vars(layer).values()))  # an activation may be somebody's function
    )


def has_authors_code(module: nn.Module, loss: Loss) -> bool:
    """Whether anything but PyTorch's own code runs from a record to its loss."""
    return loss is not cross_entropy or not is_torchs(module)


def _shifted(forward: Forward, zeros: Tensor, name: str, inputs: dict[str, Tensor]) -> Forward:
    def call(given: Tensor) -> Tensor:
        inputs[name] = given
        return forward(given) + zeros

    return call


def _recorded(forward: Forward, calls: list[_Seen]) -> Forward:
    def call(inputs: Tensor) -> Tensor:
        outputs = forward(inputs)
        calls.append(_Seen(inputs, get_gradient_edge(outputs), outputs.shape))
        return outputs

    return call


def _uses(losses: Tensor) -> dict[int, int]:
    """How often the graph of the losses reads each leaf tensor, by its id."""
    counts: dict[int, int] = {}
    nodes: list[Any] = [losses.grad_fn]
    visited = set(nodes)
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if hasattr(node, "variable"):
                counts[id(node.variable)] = counts.get(id(node.variable), 0) + 1
            elif node is not None and node not in visited:
                visited.add(node)
                nodes.append(node)
    return counts


def is_same_beside(row: int, first: Tensor, second: Tensor) -> bool:
    """Whether all rows but one are equal, bit for bit."""
    return torch.equal(first[:row], second[:row]) and torch.equal(first[row + 1 :], second[row + 1 :])


def seeded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with torch's global generator seeded, and put that back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return function(*arguments)
