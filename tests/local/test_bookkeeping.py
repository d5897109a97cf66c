"""Book-keeping gives the gradients that vmap gives, or is not chosen: every trap, and random architectures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hubbub.cohort import EveryExample, Everyone
from hubbub.local.bookkeeping import Bookkeeper, bounds, cross_entropy
from hubbub.local.gradients import PerExample, choose
from hubbub.mechanism import Mechanism
from hubbub.mechanism.mechanism import MOST_ROWS
from hubbub.study import Slots

ROWS = 24
"""Of a microbatch, where it does not matter."""

OTHERS = (8, 64, MOST_ROWS)


def make_slots(shape, tokens=0, rows=ROWS):
    """A microbatch of made-up records: reals, or integers below `tokens`."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, tokens, size=(rows, *shape)) if tokens else rng.normal(size=(rows, *shape))
    y = rng.integers(0, 3, size=rows)
    return Slots(x if tokens else x.astype(np.float32), y, np.ones(rows, dtype=bool))


def chosen(module, shape, tokens=0, loss=cross_entropy, rows=ROWS):
    return choose(module, loss, make_slots(shape, tokens, rows), rows)


def is_fast(*arguments, **options):
    return isinstance(chosen(*arguments, **options), Bookkeeper)


def make_mechanism(dimension, max_norm=1.0):
    return Mechanism(
        unit="example",
        noise="server",
        noise_source="os",
        max_norm=max_norm,
        dimension=dimension,
        scale=2.0**20,
        largest=2**30,
        sigma=2**20,
        steps=1,
        noises_steps=False,
        examples=EveryExample(),
        participants=Everyone(),
    )


def head(width=6):
    return nn.Linear(width, 3)


# --- models that book-keeping is wrong for: each would have a wrong gradient, or a clip that bounds nothing


class TiedByUse(nn.Module):
    """A layer whose weight is used a second time, outside of it."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)) @ self.inner.weight)


class TiedByName(nn.Module):
    """Two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), head()
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


class CalledTwice(nn.Module):
    """One layer, two calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x):
        return self.head(self.inner(torch.tanh(self.inner(x))))


class NeverCalled(nn.Module):
    """A layer whose call does not reach the loss: only its parameters do."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x):
        self.inner(x)
        return self.head(x @ self.inner.weight) + self.inner.bias.sum()


class Loose(nn.Module):
    """A parameter that no layer owns."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(6)), head()

    def forward(self, x):
        return self.head(x * self.scale)


class PositionsFirst(nn.Module):
    """A layer that sees [positions, records, features]."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x):
        return self.head(self.inner(x.transpose(0, 1)).mean(dim=0))


class Positions(nn.Module):
    """An embedding of positions, the same for all records, before a head that starts at zero."""

    def __init__(self, count):
        super().__init__()
        self.table, self.head = nn.Embedding(count, 6), head()
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head((x + self.table(torch.arange(x.shape[1]))).mean(dim=1))


class Flat(nn.Module):
    """A layer that sees records and positions as one dimension."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x):
        return self.head(self.inner(x.reshape(-1, 6)).view(*x.shape).mean(dim=1))


class Centred(nn.Module):
    """Subtracts the mean over the batch: nothing for single examples, and a mixture in a batch."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x):
        inner = self.inner(x)
        return self.head(torch.tanh(inner - 0.5 * inner.mean(dim=0)))


class Counts(nn.Module):
    """Divides by the number of rows."""

    def __init__(self):
        super().__init__()
        self.head = head()

    def forward(self, x):
        return self.head(x) / len(x)


class OneAtATime(nn.Module):
    """Fails on a batch."""

    def __init__(self):
        super().__init__()
        self.head = head()

    def forward(self, x):
        assert len(x) == 1
        return self.head(x)


class Doubled(nn.Linear):
    """A layer of a user's own kind."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = head()
    layer.register_forward_hook(lambda _, __, outputs: 2 * outputs)
    return layer


def replaced():
    layer = head()
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)
    return layer


def weight_norm():
    return nn.utils.parametrizations.weight_norm(head())


SLOW = {
    "tied by use": (TiedByUse, (6,)),
    "tied by name": (TiedByName, (6,)),
    "called twice": (CalledTwice, (6,)),
    "never called": (NeverCalled, (6,)),
    "no layer's": (Loose, (6,)),
    "positions first": (PositionsFirst, (5, 6)),
    "as many positions as rows": (PositionsFirst, (ROWS, 6)),
    "positions": (lambda: Positions(5), (5, 6)),
    "as many embedded as rows": (lambda: Positions(ROWS), (ROWS, 6)),
    "rows and positions as one": (Flat, (5, 6)),
    "one at a time": (OneAtATime, (6,)),
    "subclass": (lambda: Doubled(6, 3), (6,)),
    "hook": (hooked, (6,)),
    "replaced": (replaced, (6,)),
    "weight norm": (weight_norm, (6,)),
    "unsupported": (lambda: nn.Sequential(nn.PReLU(), head()), (6,)),
    "groups": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), head(24)), (4, 6)),
    "circular": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), head(24)),
        (4, 6),
    ),
    "same": (lambda: nn.Sequential(nn.Conv1d(4, 4, 4, padding="same"), nn.Flatten(), head(24)), (4, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", SLOW)
def test_book_keeping_is_not_chosen_for(name):
    make, shape = SLOW[name]
    torch.manual_seed(0)
    assert not is_fast(make(), shape)


class TokenPositions(Positions):
    """The same over tokens, which cannot be NaN."""

    def __init__(self, count):
        super().__init__(count)
        self.tokens = nn.Embedding(7, 6)

    def forward(self, x):
        return super().forward(self.tokens(x))


@pytest.mark.parametrize("count", [5, ROWS])
def test_book_keeping_is_not_chosen_for_positions_of_tokens(count):
    assert not is_fast(TokenPositions(count), (count,), tokens=7)


def test_book_keeping_is_not_chosen_for_one_loss_over_the_batch():
    assert not is_fast(head(), (6,), loss=nn.functional.cross_entropy)


def over_rows(outputs, y):
    return cross_entropy(outputs, y) / len(y)


def over_means(outputs, y):
    return cross_entropy(outputs - 0.5 * outputs.mean(dim=0), y)


@pytest.mark.parametrize(
    ("make", "loss"),
    [(Centred, cross_entropy), (Counts, cross_entropy), (head, over_rows), (head, over_means)],
    ids=["centred", "number of rows", "loss over rows", "loss over means"],
)
def test_code_that_mixes_a_batch_is_given_records_one_by_one(make, loss):
    torch.manual_seed(0)
    model = make()
    clipper, x, y = chosen(model, (6,), loss=loss), torch.randn(ROWS, 6), torch.randint(3, (ROWS,))
    mechanism, weights = make_mechanism(sum(value.numel() for value in model.parameters())), np.ones(ROWS)
    assert isinstance(clipper, Bookkeeper)
    expected = PerExample(model, loss, ROWS)(x, y, weights, mechanism)
    np.testing.assert_allclose(clipper(x, y, weights, mechanism), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_book_keeping_is_not_chosen_for_tables_that_do_more_than_look_up(options):
    model = nn.Sequential(nn.Embedding(7, 6, **options), nn.Flatten(), head(30))
    try:
        assert not is_fast(model, (5,), tokens=7)
    except RuntimeError:  # vmap refuses some of them
        assert set(options) <= {"max_norm", "sparse"}


# --- models that it is right for


def random_masks():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), head(8))


def in_place():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), head(8))


def partly_frozen():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), head(8))
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[2].requires_grad_(False)
    return model


def starts_at_zero():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), head(8))
    nn.init.zeros_(model[2].weight)
    return model


FAST = {"dropout": random_masks, "in place": in_place, "frozen": partly_frozen, "zero head": starts_at_zero}


@pytest.mark.parametrize("name", FAST)
def test_book_keeping_is_chosen_for(name):
    assert is_fast(FAST[name](), (6,))


def test_choosing_leaves_the_model_and_the_global_generator_as_they_were():
    module = random_masks()
    before, state = {name: value.clone() for name, value in module.state_dict().items()}, torch.random.get_rng_state()
    clipper = chosen(module, (6,))
    clipper(torch.randn(ROWS, 6), torch.zeros(ROWS, dtype=torch.int64), np.ones(ROWS), make_mechanism(83))
    assert module.training
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert all("forward" not in vars(layer) for layer in module.modules())
    assert torch.equal(torch.random.get_rng_state(), state) is False  # dropout drew, once, in the microbatch
    torch.random.set_rng_state(state)
    chosen(module, (6,))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_fails_in_a_microbatch_keeps_its_own_forward():
    clipper = chosen(in_place(), (6,))
    with pytest.raises(RuntimeError):
        clipper.observe(torch.randn(ROWS, 7), torch.zeros(ROWS, dtype=torch.int64))
    assert all("forward" not in vars(layer) for layer in clipper._module.modules())


# --- agreement with vmap


@st.composite
def architectures(draw):
    """A model of supported layers with smooth activations, its input shape, and how many tokens (0: reals)."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["vector", "sequence", "image", "tokens"]))
    width = draw(st.integers(2, 12))
    shape = {
        "vector": (width,),
        "sequence": (draw(st.integers(1, 40)), width),
        "image": (draw(st.integers(1, 3)), draw(st.integers(5, 9)), draw(st.integers(5, 9))),
        "tokens": (draw(st.integers(1, 12)),),
    }[kind]
    layers, now = [], shape
    if kind == "tokens":
        layers.append(nn.Embedding(9, width, padding_idx=draw(st.sampled_from([None, 0]))))
        now = (*shape, width)
    for _ in range(draw(st.integers(0, 3))):
        layers += [draw(st.sampled_from(MAKERS[len(now)]))(draw, now), draw(st.sampled_from([nn.Tanh, nn.GELU]))()]
        with torch.no_grad():
            x = torch.zeros(1, *shape, dtype=torch.int64 if kind == "tokens" else torch.float32)
            now = tuple(nn.Sequential(*layers)(x).shape[1:])
    layers += [nn.Flatten(), nn.Linear(int(np.prod(now)), 3)]
    model = nn.Sequential(*layers)
    for value in list(model.parameters())[:-1]:
        value.requires_grad_(draw(st.integers(0, 4)) > 0)
    return model, shape, 9 if kind == "tokens" else 0


def linear(draw, shape):
    return nn.Linear(shape[-1], draw(st.integers(1, 40)), bias=draw(st.booleans()))


def layer_norm(draw, shape):
    return nn.LayerNorm(shape[-draw(st.integers(1, len(shape))) :], eps=0.1, bias=draw(st.booleans()))


def group_norm(draw, shape):
    if np.prod(shape) == 1:
        return nn.Identity()  # torch refuses to normalise one value
    is_apart = np.prod(shape[1:]) > 1 and draw(st.booleans())
    return nn.GroupNorm(shape[0] if is_apart else 1, shape[0], eps=0.1)


def conv1d(draw, shape):
    options = {"padding": draw(st.integers(0, 2)), "stride": draw(st.integers(1, 2)), "bias": draw(st.booleans())}
    return nn.Conv1d(shape[0], draw(st.integers(1, 6)), draw(st.integers(1, shape[1])), **options)


def conv2d(draw, shape):
    kernel = draw(st.integers(1, min(3, *shape[1:]))), draw(st.integers(1, min(3, *shape[1:])))
    options = {"padding": draw(st.sampled_from([0, 1, "valid"])), "stride": draw(st.integers(1, 2))}
    return nn.Conv2d(shape[0], draw(st.integers(1, 6)), kernel, **options)


MAKERS = {1: [linear, layer_norm], 2: [linear, layer_norm, group_norm, conv1d], 3: [conv2d, group_norm, linear]}


@settings(max_examples=40, deadline=None)
@given(
    architectures(), st.sampled_from((ROWS, *OTHERS)), st.floats(1e-3, 10.0), st.integers(0, 2**32),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)  # fmt: skip
def test_both_clippers_agree_record_by_record_and_on_which_are_dropped(architecture, rows, max_norm, seed, bad):
    model, shape, tokens = architecture
    clipper = chosen(model, shape, tokens, rows=rows)
    assert isinstance(clipper, Bookkeeper)
    generator = torch.Generator().manual_seed(seed)
    size, y = (rows, *shape), torch.randint(3, (rows,), generator=generator)
    x = torch.randint(tokens, size, generator=generator) if tokens else 2 * torch.randn(size, generator=generator)
    if not tokens:
        x.view(rows, -1)[5, 0] = bad
        x[6] = bad
    formed = PerExample(model, cross_entropy, rows).rows(x, y)
    wide = torch.cat([value.reshape(rows, -1).double() for value in formed.values()], dim=1).numpy()
    with np.errstate(all="ignore"):
        parts, norms = clipper.parts(x, y), np.linalg.norm(wide, axis=1)
        found = bounds(parts)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(norms))
    is_kept = np.isfinite(norms)
    mechanism = make_mechanism(wide.shape[1], max_norm)
    for part in parts:
        part.drop(~is_kept)
    factors, expected = mechanism.clip_factors(found), mechanism.clip_factors(norms)
    for row in np.flatnonzero(is_kept)[:: max(1, rows // 24)]:
        one = clipper.weighted_sum(parts, np.where(np.arange(rows) == row, factors, 0.0))
        assert np.linalg.norm(one - expected[row] * wide[row]) <= 1e-5 * max_norm
    whole = clipper(x, y, np.ones(rows), mechanism)
    np.testing.assert_allclose(whole, factors @ np.where(is_kept[:, None], wide, 0.0), atol=1e-4 * max_norm)


@pytest.mark.parametrize("size", [1e18, 3.4e19, 3.41e19, 3e38])
def test_a_gradient_that_float32_cannot_hold_is_dropped_as_vmap_drops_it(size):
    model = nn.Linear(6, 3)
    clipper = chosen(model, (6,), loss=lambda outputs, _: outputs.sum(dim=1) * 1e19)
    x, y = torch.randn(ROWS, 6) * 0.3, torch.zeros(ROWS, dtype=torch.int64)
    x[3] *= size / x[3].abs().max()
    mechanism, weights = make_mechanism(21), np.zeros(ROWS)
    weights[3] = 1.0
    per_example = PerExample(model, clipper._loss, ROWS)
    first, second = clipper(x, y, weights, mechanism), per_example(x, y, weights, mechanism)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert first.any() == (size <= 3.4e19)
