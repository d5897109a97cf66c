"""A PyTorch module as a learner: what is refused, that local SGD is plain SGD, and what is measured."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hubbub.errors import CodeError
from hubbub.local import torch_model
from hubbub.local.seeds import shuffled
from hubbub.local.torch_model import TorchModel
from hubbub.study import Code, Examples, Slots
from hubbub.study.config import Training


def learner(model, loss=None, seed=0):
    code = Code(
        participants=lambda: ["a"], data=lambda _: Examples([], []), test_data=lambda: Examples([], []), model=model
    )
    if loss is not None:
        code = Code(participants=code.participants, data=code.data, test_data=code.test_data, model=model, loss=loss)
    return TorchModel(code, seed)


def linear():
    return nn.Linear(4, 3)


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def slots(rows=50, seed=0, classes=3, nulls=()):
    rng = np.random.default_rng(seed)
    is_real = np.ones(rows, dtype=bool)
    is_real[list(nulls)] = False
    x, y = rng.normal(size=(rows, 4)).astype(np.float32), rng.integers(0, classes, size=rows)
    x[~is_real], y[~is_real] = 0, 0
    return Slots(x, y, is_real)


def training(**changes):
    return Training(**({"algorithm": "fedavg", "rounds": 1, "learning_rate": 0.1, "batch_size": 16} | changes))


def update_of(made, records, seed=0, start=None, **changes):
    """One participant's update."""
    start = made.initial() if start is None else start
    return next(made.updates(start, [records], training(**changes), [bytes([seed]) * 32])).copy()


def refusal(model, **options):
    with pytest.raises(CodeError) as caught:
        learner(model, **options)
    return caught.value.message, caught.value.hint


# --- what is refused


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d()])
def test_batch_norm_is_refused_by_name_with_what_to_use_instead(layer):
    name = type(layer).__name__
    assert refusal(lambda: nn.Sequential(nn.Linear(4, 4), layer)) == (
        f"model(): 1, must not mix examples, found {name}",
        "torch.nn.GroupNorm normalises each example by itself",
    )


def test_running_statistics_are_refused():
    message, _ = refusal(lambda: nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)))
    assert message == "model(): 0, must not mix examples, found InstanceNorm1d"


def test_a_batch_norm_that_is_the_whole_model_is_refused():
    assert refusal(lambda: nn.BatchNorm1d(4))[0] == "model(): the module, must not mix examples, found BatchNorm1d"


@pytest.mark.parametrize("model", [nn.ReLU, lambda: nn.Linear(4, 3).requires_grad_(False)])
def test_a_model_without_trained_parameters_is_refused(model):
    assert refusal(model) == (
        "model(), must have trained parameters, all float32, found none",
        "return model.float()",
    )


def test_a_float64_model_is_refused():
    message, hint = refusal(lambda: nn.Linear(4, 3).double())
    assert message == "model(), must have trained parameters, all float32, found ['float64']"
    assert hint == "return model.float()"


def test_what_is_no_module_is_refused():
    message, hint = refusal(lambda: "a model")
    assert message == "model(), must return a torch.nn.Module, found str"
    assert hint == "other frameworks define parameters(), train() and evaluate() instead"


def test_a_model_that_raises_is_one_line():
    message, _ = refusal(lambda: nn.Linear(4, 3)(torch.zeros(1, 5)))
    assert "must not raise, RuntimeError: " in message
    assert "\n" not in message


@pytest.mark.parametrize("microbatch", [24, None])
def test_a_model_for_other_columns_is_refused_before_training(microbatch):
    with pytest.raises(CodeError, match="model\\(\\) or loss\\(\\) on the declared columns, must not raise") as refused:
        learner(lambda: nn.Linear(7, 3)).self_test(slots(), microbatch=microbatch)
    assert "one score per class of y; define loss() for anything else" in refused.value.hint


@pytest.mark.parametrize("microbatch", [24, None])
def test_a_model_that_keeps_to_itself_passes(microbatch):
    made = learner(mlp)
    made.self_test(slots(), microbatch=microbatch)
    np.testing.assert_array_equal(made.initial(), learner(mlp).initial())


class Buffered(nn.Module):
    """Keeps a running mean of what it sees in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(dim=0))
        return self.layer(x)


class Remembering(nn.Linear):
    """Keeps what it saw in an attribute, and uses it."""

    last = 0.0

    def forward(self, x):
        outputs = super().forward(x + self.last)
        self.last = 0.01 * x.detach()
        return outputs


@pytest.mark.parametrize(
    ("model", "name"), [(Buffered, "mean"), (lambda: Remembering(4, 3), "the module")], ids=["buffer", "attribute"]
)
def test_a_model_that_remembers_records_is_refused_for_clients_too(model, name):
    with pytest.raises(CodeError) as caught:
        learner(model).self_test(slots(), microbatch=None)
    assert caught.value.message == f"model(): {name}, must not remember what it has seen, found that it does"
    assert caught.value.hint.startswith("torch.nn.GroupNorm normalises without running statistics")


@pytest.mark.parametrize("model", [Buffered, lambda: Remembering(4, 3)], ids=["buffer", "attribute"])
def test_a_model_that_remembers_records_is_refused_for_examples(model):
    with pytest.raises(CodeError):
        learner(model).self_test(slots(), microbatch=24)


def test_what_is_exported_holds_no_buffer_that_training_changed():
    made = learner(Buffered)
    update_of(made, slots())
    assert made.module.mean.any()
    exported = made.export(made.initial())
    assert set(exported) == {"layer.weight", "layer.bias", "mean"}
    assert not exported["mean"].any()


# --- parameters


def test_equal_seeds_make_equal_models_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, second, third = learner(mlp, seed=1), learner(mlp, seed=1), learner(mlp, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(first.initial(), second.initial())
    assert (first.initial() != third.initial()).any()


def test_parameters_are_flat_in_order_and_exported_by_name():
    made = learner(linear)
    assert made.dimension == 15
    vector = np.arange(15, dtype=np.float32)
    exported = made.export(vector)
    np.testing.assert_array_equal(exported["weight"], np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(exported["bias"], [12, 13, 14])


def test_frozen_parameters_are_exported_and_not_trained():
    def model():
        return nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3))

    made = learner(model)
    assert made.dimension == 15
    before = made.export(made.initial())
    update_of(made, slots())
    after = made.export(made.initial())
    assert set(after) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name in after:
        np.testing.assert_array_equal(before[name], after[name])


# --- local SGD


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_local_training_is_plain_sgd_over_the_real_records(epochs, batch_size):
    made, records = learner(mlp), slots(nulls=(3, 10, 49))
    update = update_of(made, records, seed=5, local_epochs=epochs, batch_size=batch_size)

    torch.manual_seed(0)
    reference = mlp()
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.1)
    for epoch in range(epochs):
        order = shuffled(np.flatnonzero(records.is_real), bytes([5]) * 32, epoch)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            optimiser.zero_grad()
            outputs = reference(torch.from_numpy(records.x[rows]))
            nn.functional.cross_entropy(outputs, torch.from_numpy(records.y[rows])).backward()
            optimiser.step()
    trained = np.concatenate([value.detach().numpy().ravel() for value in reference.parameters()])
    np.testing.assert_allclose(update, trained.astype(np.float64) - made.initial(), atol=1e-6)
    assert np.abs(update).max() > 1e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_train_as_plain_sgd_and_are_exported_in_the_usual_order(groups):
    def model():
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=groups), nn.Flatten(),
                             nn.Linear(24, 3))  # fmt: skip

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 2, 5, 5)).astype(np.float32), rng.integers(0, 3, 20)
    records, made = Slots(x, y, np.ones(20, dtype=bool)), learner(model)
    is_apart = [value.is_contiguous(memory_format=torch.channels_last) for value in made.parameters if value.dim() == 4]
    assert all(is_apart) == (groups == 1)
    torch.manual_seed(0)
    reference = model()
    named = {name: value.detach().numpy().copy() for name, value in reference.named_parameters()}
    for name, array in made.export(made.initial()).items():
        np.testing.assert_array_equal(array, named[name])
    update = update_of(made, records, batch_size=8)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.1)
    for rows in np.split(shuffled(np.arange(20), bytes(32), 0), [8, 16]):
        optimiser.zero_grad()
        nn.functional.cross_entropy(reference(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).backward()
        optimiser.step()
    trained = np.concatenate([value.detach().numpy().ravel() for value in reference.parameters()])
    np.testing.assert_allclose(update, trained.astype(np.float64) - made.initial(), atol=1e-6)
    right = reference(torch.from_numpy(x)).argmax(1).numpy() == y
    assert made.evaluate(trained, records)["accuracy"] == right.mean()


def test_an_update_depends_on_its_arguments_only():
    def model():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    made, other = learner(model), learner(model)
    start = made.initial()
    first = update_of(made, slots(), seed=1)
    update_of(made, slots(seed=9), seed=2)
    made.evaluate(start, slots(seed=8))
    np.testing.assert_array_equal(update_of(made, slots(), seed=1), first)
    np.testing.assert_array_equal(update_of(other, slots(), seed=1), first)
    assert (update_of(made, slots(), seed=2) != first).any()


@pytest.mark.parametrize("microbatch", [None, 24])
def test_a_large_model_keeps_no_memory_while_nobody_uses_it_and_trains_as_ever(monkeypatch, microbatch):
    def model():
        return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(4, 3))

    small, large, records = learner(model), learner(model), slots()
    start = small.initial()
    small.self_test(records, microbatch=microbatch)
    found = {"update": update_of(small, records), "metrics": small.evaluate(start, records)}
    monkeypatch.setattr(torch_model, "LARGE", 0)
    large.self_test(records, microbatch=microbatch)
    assert not len(large.flat)
    update = large.updates(start, [records, records], training(), [bytes(32)] * 2)
    np.testing.assert_array_equal(next(update), found["update"])
    assert large.evaluate(start, records) == found["metrics"]
    assert len(large.flat), "the second participant is still to be trained"
    np.testing.assert_array_equal(next(update), found["update"])
    update.close()
    assert not len(large.flat)
    assert not any(value.numel() for value in large.parameters)
    for name, array in small.export(start).items():
        np.testing.assert_array_equal(large.export(start)[name], array)
    assert large.evaluate(start, records) == found["metrics"]
    assert not len(large.flat)


def test_several_participants_get_what_each_would_get_alone_in_order():
    made, everyone = learner(mlp), [slots(seed=seed, rows=10 + 7 * seed, nulls=range(seed)) for seed in range(4)]
    seeds = [bytes([seed]) * 32 for seed in range(4)]
    together = [update.copy() for update in made.updates(made.initial(), everyone, training(), seeds)]
    for seed, update in enumerate(together):
        np.testing.assert_array_equal(update, update_of(made, everyone[seed], seed=seed))


def test_training_that_fails_for_one_participant_is_told_in_its_place():
    def loss(outputs, y):
        if (y == 2).any():
            raise ValueError("a label that it does not know")
        return nn.functional.cross_entropy(outputs, y, reduction="none")

    made = learner(linear, loss=loss)
    everyone = [slots(classes=2), slots(classes=3), slots(classes=2, seed=1)]
    first, second, third = made.updates(made.initial(), everyone, training(), [bytes(32)] * 3)
    assert isinstance(second, CodeError)
    assert second.message.endswith("ValueError: a label that it does not know")
    assert first.any()
    assert third.any()


def test_a_participant_without_records_sends_zeros():
    made = learner(linear)
    update = update_of(made, slots(nulls=range(50)))
    assert update.shape == (15,)
    assert not update.any()


def test_a_parameter_that_the_model_does_not_use_trains_as_zero():
    class Spare(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.spare = nn.Parameter(torch.ones(5))

    made = learner(Spare)
    made.self_test(slots(), microbatch=None)
    update = made.layout.unflatten(update_of(made, slots()))
    assert not update["spare"].any()
    assert update["weight"].any()


# --- evaluation


def test_many_classes_are_measured_by_arg_max_and_cross_entropy():
    made, records = learner(linear), slots(rows=2500, nulls=(0, 1, 2499))
    metrics = made.evaluate(made.initial(), records)
    rows = records.is_real
    arrays = made.export(made.initial())
    scores = records.x[rows].astype(np.float64) @ arrays["weight"].T + arrays["bias"]
    expected = np.mean(scores.argmax(axis=1) == records.y[rows])
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), records.y[rows]]
    assert metrics["accuracy"] == pytest.approx(expected)
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_one_output_is_the_score_of_class_one():
    def loss(outputs, y):
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.float(), reduction="none")

    made, records = learner(lambda: nn.Linear(4, 1), loss=loss), slots(classes=2)
    metrics = made.evaluate(made.initial(), records)
    arrays = made.export(made.initial())
    scores = (records.x @ arrays["weight"].T + arrays["bias"])[:, 0]
    assert metrics["accuracy"] == pytest.approx(np.mean((scores > 0) == (records.y == 1)))
    assert metrics["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-scores * (2 * records.y - 1)))), rel=1e-5)


def test_regression_has_a_loss_and_no_accuracy():
    def loss(outputs, y):
        return (outputs[:, 0] - y) ** 2

    records = slots()
    records = Slots(records.x, records.x.sum(axis=1), records.is_real)
    made = learner(lambda: nn.Linear(4, 1), loss=loss)
    metrics = made.evaluate(made.initial(), records)
    assert set(metrics) == {"loss"}
    assert math.isfinite(metrics["loss"])


def test_no_test_records_are_measured_as_zero():
    made = learner(linear)
    assert made.evaluate(made.initial(), slots(nulls=range(50))) == {"accuracy": 0.0, "loss": 0.0}


def test_evaluation_switches_dropout_off():
    made = learner(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.9), nn.Linear(8, 3)))
    assert made.evaluate(made.initial(), slots()) == made.evaluate(made.initial(), slots())


def test_a_model_that_fails_on_test_data_is_one_line():
    made = learner(linear)
    with pytest.raises(CodeError, match="model\\(\\) or loss\\(\\) on test data, must not raise"):
        made.evaluate(made.initial(), slots(classes=9))
