"""Dense networks trained by formula get what autograd gives them; whatever else a model does is left to autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import learner, slots, training
from torch import nn
from torch.nn import functional

from hubbub.errors import CodeError
from hubbub.local.dense import Activation, Chain, dense
from hubbub.local.stack import is_right
from hubbub.study import Slots


def updates(made, way, everyone, rates):
    made._way = way
    seeds = [bytes([at]) * 32 for at in range(len(everyone))]
    found = made.updates(made.initial(), everyone, rates, seeds)
    return [one if isinstance(one, CodeError) else one.copy() for one in found]


def relu():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def tanh():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 3))


def deep():
    layers = [nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)]
    return nn.Sequential(*layers)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(relu, (4,)), (tanh, (2, 2)), (tanh, (4,)), (deep, (4,))]),
    st.lists(st.tuples(st.integers(0, 13), st.integers(0, 5)), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_training_by_formula_is_training_by_autograd(model, sizes, batch_size, epochs):
    made = learner(model[0])
    everyone = [slots(rows + nulls, seed, model[1], nulls=range(nulls)) for seed, (rows, nulls) in enumerate(sizes)]
    rates = training(batch_size=batch_size, local_epochs=epochs)
    chain = dense(made.module, made.layout)
    pairs = zip(updates(made, chain, everyone, rates), updates(made, None, everyone, rates), strict=True)
    for update, expected in pairs:
        np.testing.assert_allclose(update, expected, atol=1e-5 * np.abs(expected).max(initial=0) + 1e-7)
        assert update.any() == expected.any()


@pytest.fixture
def made():
    return learner(relu)


def test_nobodys_update_depends_on_who_else_is_there_not_in_a_bit(made):
    wild = Slots(np.full((9, 4), np.inf, np.float32), np.arange(9) % 3, np.ones(9, dtype=bool))
    chain, first, last = dense(made.module, made.layout), slots(9, 1), slots(7, 2)
    among = updates(made, chain, [first, wild, last], training())
    assert not np.isfinite(among[1]).all()
    np.testing.assert_array_equal(among[0], updates(made, chain, [first], training())[0])
    swapped = updates(made, chain, [wild, wild, last], training())
    np.testing.assert_array_equal(among[2], swapped[2])


def test_labels_out_of_range_are_autograds_to_refuse_or_leave_out(made):
    wrong, ignored = slots(5, classes=9), slots(5)
    ignored.y[0] = -100  # what torch leaves out
    found = updates(made, dense(made.module, made.layout), [wrong, ignored], training())
    assert isinstance(found[0], CodeError)
    np.testing.assert_array_equal(found[1], updates(made, None, [wrong, ignored], training())[1])


def chosen(model, loss=None, shape=(4,)):
    made = learner(model, loss)
    made.self_test(slots(64, shape=shape), microbatch=None)
    return made._way


@pytest.mark.parametrize("model", [relu, tanh, deep])
def test_dense_networks_under_the_default_loss_are_trained_by_formula(model):
    assert isinstance(chosen(model), Chain)


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 3))


def frozen():
    model = relu()
    model[0].bias.requires_grad_(False)
    return model


def hooked():
    model = relu()
    model[2].register_forward_hook(lambda _module, _inputs, outputs: 2 * outputs)
    return model


def hooked_outside():
    model = relu()
    model.register_forward_hook(lambda _module, _inputs, outputs: 2 * outputs)
    return model


class Doubled(nn.Sequential):
    """Looks like a sequence."""

    def forward(self, x):
        return 2 * super().forward(x)


def patched():
    model = relu()
    model[1].forward = torch.tanh
    return model


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (shared, None),
        (frozen, None),
        (hooked, None),
        (hooked_outside, None),
        (patched, None),
        (lambda: Doubled(*relu()), None),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), None),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 3)), None),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)), None),
        (lambda: nn.Sequential(*relu(), nn.ReLU()), None),
        (nn.Sequential, lambda outputs, y: outputs.sum() * y),
        (relu, lambda outputs, y: functional.cross_entropy(outputs, y, reduction="none")),
    ],
)
def test_nothing_else_is_taken_for_a_dense_network(model, loss):
    try:
        way = chosen(model, loss)
    except CodeError:  # nothing to train
        return
    assert way is None


def test_a_wrong_formula_is_found_out(made):
    def autograd(everyone, rates, of_seeds):
        made._way = None
        return [update.copy() for update in made.updates(made.initial(), everyone, rates, of_seeds)]

    linear = [made.module[0], made.module[2]]
    chain, wrong = dense(made.module, made.layout), Activation(torch.relu_, lambda back, _: back)
    assert is_right(chain, made.initial(), slots(64), autograd)
    assert not is_right(Chain(linear, [wrong]), made.initial(), slots(64), autograd)
