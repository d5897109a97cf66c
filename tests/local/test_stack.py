"""Participants trained side by side get what each would get alone; whatever could mix them up is not stacked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import learner, slots, training
from torch import nn
from torch.nn import functional

from hubbub.errors import CodeError
from hubbub.local.bookkeeping import cross_entropy
from hubbub.local.layout import Layout
from hubbub.local.stack import FEW, MOST, Stack, is_right, logistic, vectorised
from hubbub.study import Slots


def seeds(count):
    return [bytes([at]) * 32 for at in range(count)]


def one_by_one(made, start, everyone, rates):
    made._way = None
    return [update.copy() for update in made.updates(start, everyone, rates, seeds(len(everyone)))]


def linear():
    return nn.Linear(4, 3)


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def flattened():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))


def stack_of(made):
    if (stack := logistic(made.module, made.layout)) is not None:
        return stack
    return vectorised(made.module, made.loss, made.layout)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(linear, (4,)), (mlp, (4,)), (flattened, (2, 6))]),
    st.lists(st.tuples(st.integers(1, 13), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_stacked_training_is_training_one_by_one(model, sizes, batch_size, epochs):
    made = learner(model[0])
    everyone = [slots(rows + nulls, seed, model[1], nulls=range(nulls)) for seed, (rows, nulls) in enumerate(sizes)]
    rates = training(batch_size=batch_size, local_epochs=epochs)
    start = made.initial()
    stacked = [update.copy() for update in stack_of(made).updates(start, everyone, rates, seeds(len(everyone)))]
    for update, expected in zip(stacked, one_by_one(made, start, everyone, rates), strict=True):
        np.testing.assert_allclose(update, expected, atol=1e-5 * np.abs(expected).max() + 1e-7)


@pytest.mark.parametrize("model", [linear, mlp])
def test_nobodys_update_depends_on_who_else_is_there_not_in_a_bit(model):
    made = learner(model)
    made._way = stack_of(made)
    everyone = [slots(3 + at % 11, at) for at in range(MOST + 9)]
    together = [update.copy() for update in made.updates(made.initial(), everyone, training(), seeds(MOST + 9))]
    order = np.random.default_rng(0).permutation(len(everyone))[:20]
    some = [everyone[at] for at in order]
    again = made.updates(made.initial(), some, training(), [seeds(MOST + 9)[at] for at in order])
    for at, update in zip(order, again, strict=True):
        np.testing.assert_array_equal(update, together[at])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_labels_of_any_width_are_read_alike(dtype):
    made = learner(lambda: nn.Linear(4, 100))
    everyone = [slots(9, at, classes=100) for at in range(20)]
    narrow = [Slots(one.x, one.y.astype(dtype), one.is_real) for one in everyone]
    of = [made._update(made.initial(), one, training(), bytes(32)).copy() for one in everyone]
    stacked = stack_of(made).updates(made.initial(), narrow, training(), [bytes(32)] * 20)
    for update, expected in zip(stacked, of, strict=True):
        np.testing.assert_allclose(update, expected, atol=1e-6)


def test_one_that_diverges_leaves_the_others_as_they_are():
    made = learner(linear)
    made._way = stack_of(made)
    wild = Slots(np.full((9, 4), 3e38, np.float32), np.arange(9) % 3, np.ones(9, dtype=bool))
    calm = [slots(9, at) for at in range(3)]
    expected = [update.copy() for update in made.updates(made.initial(), calm, training(), seeds(3))]
    first, second, third, fourth = made.updates(
        made.initial(), [calm[0], wild, *calm[1:]], training(), [seeds(3)[0], bytes(32), *seeds(3)[1:]]
    )
    assert not np.isfinite(second).all()
    for update, alone in zip((first, third, fourth), expected, strict=True):
        np.testing.assert_array_equal(update, alone)


class Looks(nn.Module):
    """Looks up what a record's first value says."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(7, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + self.table[x[:, 0].abs().long()])


def test_one_whose_records_make_the_model_raise_leaves_the_others_as_they_are():
    made = learner(Looks)
    made._way = stack_of(made)
    everyone = [slots(9, at) for at in range(4)]
    expected = [update.copy() for update in made.updates(made.initial(), everyone, training(), seeds(4))]
    everyone[1].x[4, 0] = 7
    found = [
        update if isinstance(update, CodeError) else update.copy()
        for update in made.updates(made.initial(), everyone, training(), seeds(4))
    ]
    assert "IndexError" in found[1].message
    for at in (0, 2, 3):
        np.testing.assert_array_equal(found[at], expected[at])


def tokens():
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3))


def test_a_table_of_which_everybody_has_one_is_not_stacked():
    made = learner(tokens)
    example = Slots(np.arange(192).reshape(64, 3) % 7, np.arange(64) % 3, np.ones(64, dtype=bool))
    made.self_test(example, microbatch=None)
    made.rehearse(example, training(), participants=40, rows=9)
    assert made._way is None
    with pytest.raises(CodeError, match="embedding, must not look beyond one example"):
        next(stack_of(made).updates(made.initial(), [example], training(), seeds(1)))


def test_without_records_or_with_a_label_out_of_range_one_is_trained_alone_and_the_others_stacked():
    made = learner(linear)
    made._way = stack_of(made)
    empty, wrong, ignored = slots(5, nulls=range(5)), slots(5, classes=9), slots(5)
    ignored.y[0] = -100  # what torch leaves out
    everyone = [slots(5, 1), empty, wrong, slots(5, 2), ignored]
    first, second, third, fourth, fifth = (
        update if isinstance(update, CodeError) else update.copy()
        for update in made.updates(made.initial(), everyone, training(), [bytes(32)] * 5)
    )
    assert first.any()
    assert not second.any()
    assert isinstance(third, CodeError)
    assert fourth.any()
    np.testing.assert_array_equal(fifth, made._update(made.initial(), ignored, training(), bytes(32)))


# --- what is stacked


def chosen(model, loss=None, shape=(4,)):
    made = learner(model, loss)
    made.self_test(slots(64, shape=shape), microbatch=None)
    return made._way


@pytest.mark.parametrize(("model", "shape"), [(linear, (4,)), (flattened, (3, 4)), (flattened, (12,))])
def test_logistic_regression_under_the_default_loss_is_stacked(model, shape):
    assert isinstance(chosen(model, shape=shape), Stack)


def hooked():
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda _module, _inputs, outputs: 2 * outputs)
    return layer


class Doubled(nn.Linear):
    """Looks like a dense layer."""

    def forward(self, x):
        return 2 * super().forward(x)


def frozen():
    layer = nn.Linear(4, 3)
    layer.bias.requires_grad_(False)
    return layer


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (hooked, None),
        (lambda: Doubled(4, 3), None),
        (frozen, None),
        (mlp, None),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)), None),
        (linear, cross_entropy),
        (linear, lambda outputs, y: 2 * functional.cross_entropy(outputs, y, reduction="none")),
    ],
)
def test_nothing_else_is_taken_for_logistic_regression(model, loss):
    assert not isinstance(chosen(model, loss), Stack)


def fits(model, loss=None):
    made = learner(model, loss)
    stack = vectorised(made.module, made.loss, made.layout)
    return made._fit(stack, slots(64)) is not None


class Centred(nn.Module):
    """Looks at the whole batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(dim=0))


class Unit(nn.Module):
    """Has no gradient where a record is zero, as padding is."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x / x.norm(dim=1, keepdim=True))


class Branching(nn.Module):
    """Decides in Python on what it sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_vmap_takes_models_that_look_at_single_records():
    assert fits(mlp)
    assert fits(linear, lambda outputs, y: functional.cross_entropy(outputs, y, reduction="none", label_smoothing=0.1))


@pytest.mark.parametrize("model", [Centred, Unit, Branching, lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))])
def test_vmap_takes_no_model_that_it_would_change(model):
    assert not fits(model)


def test_a_loss_of_the_whole_batch_is_not_stacked():
    assert not fits(mlp, lambda outputs, y: functional.cross_entropy(outputs, y).expand(len(y)))


def test_a_stack_too_large_to_hold_is_not_tried():
    layout = Layout(("weight",), ((2**18,),))
    assert vectorised(linear(), cross_entropy, layout) is None


def test_a_wrong_formula_is_found_out():
    made = learner(linear)
    stack = logistic(made.module, made.layout)

    def half(flat, x, y, share, *, rate):
        stack.step(flat, x, y, share, rate=rate / 2)

    def mixing(flat, x, y, share, *, rate):
        stack.step(flat, x, y, share, rate=rate)
        flat += 1e-7 * flat.mean(axis=0)

    def of(everyone, rates, of_seeds):
        made._way = None
        return [update.copy() for update in made.updates(made.initial(), everyone, rates, of_seeds)]

    assert is_right(stack, made.initial(), slots(64), of)
    for step in (half, mixing):
        assert not is_right(type(stack)(step), made.initial(), slots(64), of)


def test_a_learner_says_how_many_train_at_once():
    made = learner(linear)
    made.self_test(slots(64), microbatch=None)
    assert made.together == FEW
    made._way = vectorised(made.module, made.loss, made.layout)
    assert made.together == MOST
    made._way = None
    assert made.together == 1


@pytest.mark.parametrize("participants", [1, 40])
def test_the_rehearsal_takes_the_faster_way(participants, monkeypatch):
    made = learner(mlp)
    made.self_test(slots(64), microbatch=None)
    clock, chain = {"now": 0.0, "stacked": 1.0}, made._way
    monkeypatch.setattr("hubbub.local.torch_model.time.perf_counter", lambda: clock["now"])

    def updates(*_):
        clock["now"] += clock["stacked"] if isinstance(made._way, Stack) else 0.4
        return iter(())

    monkeypatch.setattr(made, "updates", updates)
    made.rehearse(slots(64), training(), participants=participants, rows=9)
    assert isinstance(made._way, Stack) == (participants == 40)  # 40 one by one would take 4 s, and one 0.4 s
    made._way, clock["stacked"] = chain, 4.1
    made.rehearse(slots(64), training(), participants=participants, rows=9)
    assert made._way is chain


def test_a_rehearsal_leaves_parameters_and_the_global_generator_alone():
    made, other = learner(mlp), learner(mlp)
    state = torch.random.get_rng_state()
    made.rehearse(slots(64), training(), participants=9, rows=9)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(made.initial(), other.initial())
