"""Clipped gradient sums: right by plain autograd, and a record moves nothing but its own part."""

import copy
import subprocess
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hubbub.cohort import EveryExample, Everyone
from hubbub.errors import CodeError
from hubbub.local.bookkeeping import Bookkeeper, cross_entropy, is_torchs
from hubbub.local.gradients import PerExample, choose, clipped_sums
from hubbub.mechanism import Mechanism
from hubbub.mechanism.mechanism import MOST_ROWS
from hubbub.study import Slots


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) / 3)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(torch.tanh(x @ self.weight) @ self.weight))


class Frozen(nn.Module):
    """One part trained, one part not."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(6, 5).requires_grad_(False)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.relu(self.features(x)))


def conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


def group_norm():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def sequence():
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Conv1d(5, 12, 3, padding=1), nn.Flatten(), nn.Linear(240, 3))


def embedding():
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 3))


def layer_norm():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


MODELS = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (6,)),
    "conv": (conv, (1, 6, 6)),
    "group norm": (group_norm, (1, 6, 6)),
    "layer norm": (layer_norm, (6,)),
    "embedding": (embedding, (5,)),
    "sequence": (sequence, (5, 12)),
    "tied": (Tied, (6,)),
    "frozen": (Frozen, (6,)),
}
NAMES = st.sampled_from(sorted(MODELS))
CLIPPERS = ("chosen", "vmap")
MICROBATCHES = (8, 64, MOST_ROWS)


@cache
def build(name, clipper="chosen", microbatch=64):
    """A model, and what `choose` chooses for it, or the clipper for any model."""
    torch.manual_seed(0)
    module = MODELS[name][0]()
    chosen = choose(module, cross_entropy, make_slots(name, microbatch), microbatch)
    assert isinstance(chosen, PerExample) == (name == "tied")
    return module, chosen if clipper == "chosen" else PerExample(module, cross_entropy, microbatch)


def make_slots(name, rows, *, seed=0, nulls=()):
    """Made-up records; the slots in `nulls` hold zeros."""
    rng, shape = np.random.default_rng(seed), MODELS[name][1]
    if name == "embedding":
        x = rng.integers(0, 10, size=(rows, *shape))
    else:
        x = (3 * rng.normal(size=(rows, *shape))).astype(np.float32)
    slots = Slots(x, rng.integers(0, 3, size=rows), np.ones(rows, dtype=bool))
    for slot in nulls:
        null(slots, slot)
    return slots


def null(slots, slot):
    slots.x[slot], slots.y[slot], slots.is_real[slot] = 0, 0, False


def copied(slots):
    return Slots(slots.x.copy(), slots.y.copy(), slots.is_real.copy())


def trained(module):
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def make_mechanism(module, max_norm=1.0, scale=2.0**20):
    return Mechanism(
        unit="example",
        noise="server",
        noise_source="os",
        max_norm=max_norm,
        dimension=sum(value.numel() for value in trained(module).values()),
        scale=scale,
        largest=2**30,
        sigma=2**20,
        steps=1,
        noises_steps=False,
        examples=EveryExample(),
        participants=Everyone(),
    )


def sums(clipper, slots, mechanism, drawn=None):
    """The microbatch sums of these slots, one row each."""
    drawn = np.arange(len(slots)) if drawn is None else drawn
    return np.array(list(clipped_sums(clipper, slots, drawn, mechanism))).reshape(-1, mechanism.dimension)


def reference(module, slots, max_norm):
    """Sum of clipped gradients by one backward pass per record, in float64."""
    double = copy.deepcopy(module).double()
    total = 0
    for slot in np.flatnonzero(slots.is_real):
        x = torch.from_numpy(slots.x[slot : slot + 1])
        loss = cross_entropy(double(x if x.dtype == torch.int64 else x.double()), torch.from_numpy(slots.y[[slot]]))
        parameters = [value for value in double.parameters() if value.requires_grad]
        parts = torch.autograd.grad(loss.sum(), parameters)
        gradient = torch.cat([part.reshape(-1) for part in parts]).numpy()
        total = total + gradient * min(1.0, max_norm / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("max_norm", [0.3, 1e6])
@pytest.mark.parametrize("clipper", CLIPPERS)
@pytest.mark.parametrize("name", MODELS)
def test_sums_equal_one_backward_pass_per_record_in_float64(name, clipper, max_norm):
    module, clip = build(name, clipper)
    slots = make_slots(name, 100, nulls=(0, 70))
    found = sums(clip, slots, make_mechanism(module, max_norm)).sum(axis=0)
    expected = reference(module, slots, max_norm)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def exact_distance(first, second):
    """L2 distance of two integer vectors, squared, exactly."""
    return sum(int(a - b) ** 2 for a, b in zip(first, second, strict=True))


def integers(clipper, slots, mechanism, drawn=None):
    return mechanism.encode_sum(sums(clipper, slots, mechanism, drawn))


@settings(max_examples=50, deadline=None)
@given(NAMES, st.sampled_from(CLIPPERS), st.integers(1, 150), st.integers(0, 2**32), st.floats(1e-3, 100.0), st.data())
def test_removing_one_record_moves_the_integer_sum_by_at_most_the_sensitivity(
    name, clipper, rows, seed, max_norm, data
):
    module, clip = build(name, clipper, data.draw(st.sampled_from(MICROBATCHES)))
    mechanism = make_mechanism(module, max_norm)
    slots = make_slots(name, rows, seed=seed)
    drawn = np.flatnonzero(np.random.default_rng(seed).random(rows) < 0.7)
    victim = data.draw(st.integers(0, rows - 1))
    if slots.x.dtype == np.float32:
        slots.x[victim] *= np.float32(data.draw(st.sampled_from([1.0, 1e10, 1e30, 1e36, 1e-40])))
    without = copied(slots)
    null(without, victim)
    if drawn.size:
        moved = exact_distance(integers(clip, slots, mechanism, drawn), integers(clip, without, mechanism, drawn))
        assert moved <= Fraction(mechanism.sensitivity) ** 2


@settings(max_examples=50, deadline=None)
@given(NAMES, st.sampled_from(CLIPPERS), st.integers(2, 150), st.integers(0, 2**32), st.data())
def test_a_null_row_changes_no_other_microbatch_and_no_other_row(name, clipper, rows, seed, data):
    microbatch = data.draw(st.sampled_from(MICROBATCHES))
    module, clip = build(name, clipper, microbatch)
    mechanism = make_mechanism(module)
    slots = make_slots(name, rows, seed=seed)
    victim = data.draw(st.integers(0, rows - 1))
    without = copied(slots)
    null(without, victim)
    one, other = sums(clip, slots, mechanism), sums(clip, without, mechanism)
    others = np.arange(len(one)) != victim // microbatch
    np.testing.assert_array_equal(one[others], other[others])
    alone = copied(slots)
    for slot in range(rows):
        if slot != victim:
            null(alone, slot)
    own = sums(clip, alone, mechanism)[victim // microbatch]
    np.testing.assert_allclose((one - other)[victim // microbatch], own, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "embedding"])
@pytest.mark.parametrize("clipper", CLIPPERS)
@pytest.mark.parametrize("value", [np.float32(3e38), np.nan, np.inf])
def test_a_gradient_that_is_not_finite_adds_exactly_zero(name, clipper, value):
    module, clip = build(name, clipper)
    mechanism = make_mechanism(module)
    slots = make_slots(name, 40)
    slots.x[7] = value * np.sign(slots.x[7])
    without = copied(slots)
    null(without, 7)
    with_it, without_it = sums(clip, slots, mechanism), sums(clip, without, mechanism)
    if np.isfinite(value):  # may saturate or overflow: whatever it adds is within the bound
        assert np.linalg.norm(with_it - without_it) <= 1 + 1e-12
    else:
        np.testing.assert_array_equal(with_it, without_it)


def masked():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))


class Looks(nn.Module):
    """Looks up what a record's first value says."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x + self.table(x[:, 0].abs().long()))


RAISING = {
    "label": (MODELS["linear"][0], "linear", lambda slots: slots.y.__setitem__(slice(7, 9), [3, -1])),
    "label beside masks": (masked, "linear", lambda slots: slots.y.__setitem__(7, 10**6)),
    "token": (embedding, "embedding", lambda slots: slots.x.__setitem__((slice(7, 9), 2), [10, -1])),
    "author's code": (Looks, "linear", lambda slots: slots.x.__setitem__((slice(7, 9), 0), 1e3)),
}


@pytest.mark.parametrize("clipper", CLIPPERS)
@pytest.mark.parametrize("kind", RAISING)
def test_a_record_at_which_the_model_or_the_loss_raises_adds_exactly_zero(kind, clipper):
    make, shapes, spoil = RAISING[kind]
    torch.manual_seed(0)
    module = make()
    clip = choose(module, cross_entropy, make_slots(shapes, 64), 64)
    clip = clip if clipper == "chosen" else PerExample(module, cross_entropy, 64)
    slots, mechanism = make_slots(shapes, 100), make_mechanism(module)
    without = copied(slots)
    spoil(slots)
    for row in (7, 8):
        null(without, row)
    if kind == "label beside masks":
        without.x[8], without.y[8], without.is_real[8] = slots.x[8], slots.y[8], True
    with pytest.raises((IndexError, RuntimeError)):
        clip(torch.from_numpy(slots.x[:64]), torch.from_numpy(slots.y[:64]), np.ones(64), mechanism)
    found = []
    for one in (slots, without):
        torch.manual_seed(1)
        found.append(sums(clip, one, mechanism))
    np.testing.assert_array_equal(*found)
    assert found[0].any(axis=1).all()


def test_what_raises_without_any_record_is_raised():
    def clip(*_):
        raise ValueError("no record did this")

    clip.microbatch = 8
    with pytest.raises(ValueError, match="no record did this"):
        sums(clip, make_slots("linear", 5), make_mechanism(nn.Linear(6, 3)))


@pytest.mark.parametrize("clipper", CLIPPERS)
def test_only_null_rows_make_a_sum_of_zero(clipper):
    module, clip = build("mlp", clipper)
    found = sums(clip, make_slots("mlp", 70, nulls=range(70)), make_mechanism(module))
    assert found.shape == (2, make_mechanism(module).dimension)
    assert not found.any()


def test_an_empty_batch_has_no_microbatch():
    module, clip = build("linear")
    assert len(sums(clip, make_slots("linear", 5), make_mechanism(module), drawn=np.arange(0))) == 0


@pytest.mark.parametrize("microbatch", MICROBATCHES)
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128, 150])
def test_every_pass_has_the_one_shape_whichever_slots_are_null(rows, microbatch):
    module = nn.Linear(6, 3)
    shapes = []

    def watched(clip):
        def watch(x, y, weights, mechanism):
            shapes.append((tuple(x.shape), tuple(y.shape), weights.shape))
            return clip(x, y, weights, mechanism)

        watch.microbatch = microbatch
        return watch

    chosen = choose(module, cross_entropy, make_slots("linear", microbatch), microbatch)
    for clip in (chosen, PerExample(module, cross_entropy, microbatch)):
        shapes.clear()
        for nulls in ((), range(rows), (0,), range(0, rows, 2)):
            found = sums(watched(clip), make_slots("linear", rows, nulls=nulls), make_mechanism(module))
            assert len(found) == -(-rows // microbatch)
        assert set(shapes) == {((microbatch, 6), (microbatch,), (microbatch,))}
        assert len(shapes) == 4 * -(-rows // microbatch)


@pytest.mark.parametrize("clipper", CLIPPERS)
@pytest.mark.parametrize("name", ["mlp", "sequence", "conv"])
def test_the_gradient_of_one_example_is_clipped_to_the_norm_and_no_further(name, clipper):
    module, clip = build(name, clipper)
    for max_norm in (1e-6, 0.01, 0.1):
        for seed in range(20):
            total = sums(clip, make_slots(name, 1, seed=seed), make_mechanism(module, max_norm))[0]
            square = sum(Fraction(float(value)) ** 2 for value in total)
            assert square <= Fraction(max_norm) ** 2
            assert square >= Fraction(max_norm) ** 2 * Fraction(999999, 1000000)


# --- models whose examples interact


class Remembers(nn.Linear):
    """Adds a part of what it saw at its last call."""

    last = None

    def forward(self, x):
        outputs = super().forward(x if self.last is None else x + 0.01 * self.last)
        self.last = x.detach()
        return outputs


class Centres(nn.Linear):
    """Subtracts the batch's mean, read behind the back of vmap."""

    def forward(self, x):
        raw = x
        while torch._C._functorch.is_functorch_wrapped_tensor(raw):
            raw = torch._C._functorch.get_unwrapped(raw)
        return super().forward(x - raw.detach().mean())


@pytest.mark.parametrize("kind", [Remembers, Centres])
def test_a_model_whose_examples_interact_is_refused(kind):
    module = kind(6, 3)
    with pytest.raises(CodeError) as caught:
        choose(module, cross_entropy, make_slots("linear", 3), 64)
    assert caught.value.message == (
        "model(): weight, the gradient of one example must not depend on another, found that it does"
    )
    assert caught.value.hint == "look for layers that share state or statistics between examples"


class Peeks(nn.Linear):
    """Mixes records at values that no self-test makes up."""

    def forward(self, x):
        return super().forward(x * 0 if x.abs().max() > 1e6 else x)


def peeking_loss(outputs, y):
    return cross_entropy(outputs * 0 if outputs.abs().max() > 1e6 else outputs, y)


def peeking_hook():
    module = nn.Sequential(nn.Linear(6, 3), nn.Identity())
    module[1].register_forward_hook(lambda _module, _inputs, x: x * 0 if x.abs().max() > 1e6 else x)
    return module


def peeking_backward():
    module = nn.Sequential(nn.Linear(6, 3), nn.Identity())
    module[1].register_full_backward_pre_hook(lambda _, out: (out[0] * (out[0].abs().max() < 1e6),))
    return module


def replaced_forward():
    module = nn.Sequential(nn.Linear(6, 3), nn.Identity())
    module[1].forward = lambda x: x * 0 if x.abs().max() > 1e6 else x
    return module


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: Peeks(6, 3), cross_entropy),
        (lambda: nn.Sequential(nn.Linear(6, 6), Peeks(6, 3)), cross_entropy),
        (lambda: nn.Linear(6, 3), peeking_loss),
        (peeking_hook, cross_entropy),
        (replaced_forward, cross_entropy),
    ],
    ids=["model", "layer", "loss", "hook", "replaced"],
)
def test_code_that_looks_at_values_is_refused_whatever_it_does_at_made_up_ones(make, loss):
    with pytest.raises(RuntimeError, match="vmap: It looks like you're"):
        choose(make(), loss, make_slots("linear", 3), 64)


# --- code that mixes a batch where no made-up record shows it: it is given records one by one


class Turns(nn.Module):
    """Turns features about once any record of the batch is large."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        inner = torch.relu(self.inner(x))
        return self.head(torch.where(x.abs().max() > 1e3, -inner, inner))


class TurnsTokens(nn.Module):
    """The same, once a rare token is in the batch."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        inner = self.table(x).mean(dim=1)
        return self.head(torch.where((x == 9).all(dim=1).any(), -inner, inner))


def turning_loss(outputs, y):
    return cross_entropy(torch.where(outputs.abs().max() > 1e3, -outputs, outputs), y)


def turning_hook():
    module = nn.Sequential(nn.Linear(6, 3), nn.Identity())
    module[1].register_forward_hook(lambda _module, _inputs, x: torch.where(x.abs().max() > 1e3, -x, x))
    return module


TURNING = {
    "model": (Turns, cross_entropy, "linear", 1e5),
    "tokens": (TurnsTokens, cross_entropy, "embedding", 9),
    "loss": (lambda: nn.Linear(6, 3), turning_loss, "linear", 1e5),
    "hook": (turning_hook, cross_entropy, "linear", 1e5),
}


def test_a_record_that_is_drawn_or_not_moves_the_sum_by_at_most_the_sensitivity():
    """In slot order all that follow it shift; a microbatch rounded by itself then rounds in another way, each of them.

    On amplification by sampling this distance bears as much as the one between a record and null.
    """
    module = nn.Linear(1, 1, bias=False)
    clipper = PerExample(module, lambda outputs, y: (outputs * y).flatten(), 8)
    mechanism = make_mechanism(module, 1.0, scale=1.0)
    y = np.zeros((16 * 50 + 1, 1), dtype=np.float32)
    y[0], y[8::16], y[9::16] = 1.0, 0.49, 0.49  # together in a microbatch, or apart, if the first is not drawn
    slots = Slots(np.ones_like(y), y, np.ones(len(y), dtype=bool))
    drawn = np.arange(len(y))
    one_by_one = [sum(map(np.rint, sums(clipper, slots, mechanism, some))) for some in (drawn, drawn[1:])]
    assert abs(one_by_one[0] - one_by_one[1]).item() > 10 * mechanism.sensitivity
    moved = [integers(clipper, slots, mechanism, some) for some in (drawn, drawn[1:])]
    assert abs(moved[0] - moved[1]).item() <= mechanism.sensitivity


@pytest.mark.parametrize("kind", TURNING)
def test_code_that_mixes_a_batch_at_no_made_up_values_moves_one_record_only(kind):
    make, loss, shapes, value = TURNING[kind]
    torch.manual_seed(0)
    module = make()
    clipper, mechanism = choose(module, loss, make_slots(shapes, 64), 64), make_mechanism(module)
    slots = make_slots(shapes, 64, seed=1)
    slots.x[5] = value
    assert isinstance(clipper, Bookkeeper)
    without = copied(slots)
    null(without, 5)
    moved = [mechanism.encode_sum(sums(clipper, one, mechanism)) for one in (slots, without)]
    assert np.linalg.norm((moved[0] - moved[1]).astype(float)) <= mechanism.sensitivity
    expected = sums(PerExample(module, loss, 64), slots, mechanism)
    np.testing.assert_allclose(sums(clipper, slots, mechanism), expected, atol=1e-4)


def test_only_a_model_without_its_authors_code_is_spared_vmap():
    assert is_torchs(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3)))
    for make in (lambda: Peeks(6, 3), peeking_hook, peeking_backward, replaced_forward):
        assert not is_torchs(make())
    assert not is_torchs(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)))
    assert is_torchs(nn.TransformerEncoderLayer(6, 1, batch_first=True))
    assert not is_torchs(nn.TransformerEncoderLayer(6, 1, activation=lambda x: x / x.max(), batch_first=True))


@pytest.mark.parametrize("mixing", [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False, track_running_stats=False)])
def test_torchs_own_layers_that_mix_examples_are_refused(mixing):
    with pytest.raises((ValueError, RuntimeError, CodeError)):
        choose(nn.Sequential(nn.Linear(6, 6), mixing, nn.Linear(6, 3)), cross_entropy, make_slots("linear", 3), 64)


def test_torchs_own_layer_that_mixes_examples_in_a_batch_is_given_them_one_by_one():
    module = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=0), nn.Linear(3, 3))
    assert isinstance(choose(module, cross_entropy, make_slots("linear", 3), 64), PerExample)


WITHOUT_COMPILER = """
import sys
import numpy as np
from torch import nn
from hubbub.local.gradients import choose
from hubbub.local.bookkeeping import cross_entropy
from hubbub.study import Slots
slots = Slots(np.ones((8, 6), np.float32), np.zeros(8, np.int64), np.ones(8, dtype=bool))
choose(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), cross_entropy, slots, 8)
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_a_model_of_torchs_own_layers_loads_no_compiler():
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", MODELS)
def test_models_whose_examples_do_not_interact_pass(name):
    module, _ = build(name)
    choose(module, cross_entropy, make_slots(name, 3), 64)


def test_dropout_passes_because_each_example_draws_its_own_mask():
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    state = torch.random.get_rng_state()
    choose(module, cross_entropy, make_slots("linear", 3), 64)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_self_test_reads_no_real_values_of_inputs():
    module, _ = build("linear")
    slots = make_slots("linear", 3)
    slots.x[:] = np.nan
    choose(module, cross_entropy, slots, 64)
