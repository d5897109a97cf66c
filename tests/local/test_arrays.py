"""The ndarray hook: scikit-learn trains as one participant, through arrays in and arrays out."""

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier

from hubbub.cohort import EveryExample, Everyone
from hubbub.errors import CodeError
from hubbub.local.arrays import ArrayModel
from hubbub.local.seeds import make_rng
from hubbub.mechanism import Mechanism
from hubbub.study import Code, Examples, Slots
from hubbub.study.config import Training

TRAINING = Training(algorithm="fedavg", rounds=1, learning_rate=0.1)


def classifier(parameters):
    """A linear classifier that goes on from these parameters."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.1, alpha=0.0, shuffle=False)
    model.coef_, model.intercept_ = parameters["coef"].astype(float), parameters["intercept"].astype(float)
    model.classes_ = np.array([0, 1])
    return model


def train(parameters, examples, rng):
    order = rng.permutation(len(examples.x))
    model = classifier(parameters).partial_fit(examples.x[order].astype(float), examples.y[order], classes=[0, 1])
    return {"coef": model.coef_, "intercept": model.intercept_}


def evaluate(parameters, examples):
    return {"accuracy": classifier(parameters).score(examples.x, examples.y)}


def parameters():
    return {"coef": np.zeros((1, 4)), "intercept": np.zeros(1)}


def learner(**functions):
    hook = {"parameters": parameters, "train": train, "evaluate": evaluate} | functions
    return ArrayModel(
        Code(
            participants=lambda: ["a"],
            data=lambda _: Examples([], []),
            test_data=lambda: Examples([], []),
            **hook,
        )
    )


def slots(rows=200, nulls=()):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    is_real = np.ones(rows, dtype=bool)
    is_real[list(nulls)] = False
    return Slots(x, (x[:, 0] > x[:, 1]).astype(np.int64), is_real)


def update_of(made, records, start=None, seed=0):
    """One participant's update, or the error that its training raised."""
    update = next(made.updates(made.initial() if start is None else start, [records], TRAINING, [bytes([seed]) * 32]))
    if isinstance(update, CodeError):
        raise update
    return update


def refusal(function, *arguments, **options):
    with pytest.raises(CodeError) as caught:
        function(*arguments, **options)
    return caught.value.message, caught.value.hint


def test_a_scikit_learn_classifier_learns_round_after_round():
    made, records = learner(), slots()
    weights = made.initial()
    accuracies = []
    for round_number in range(3):
        weights = weights + update_of(made, records, weights, round_number)
        accuracies.append(made.evaluate(weights, records)["accuracy"])
    assert made.dimension == 5
    assert accuracies[-1] > 0.95


def test_an_update_is_new_minus_old_on_the_real_records_only():
    made, records = learner(), slots(nulls=(0, 5))
    start = np.full(5, 0.5, dtype=np.float32)
    update = update_of(made, records, start, seed=3)
    real = Examples(records.x[records.is_real], records.y[records.is_real])
    trained = train({"coef": np.full((1, 4), 0.5), "intercept": np.full(1, 0.5)}, real, make_rng(bytes([3]) * 32))
    expected = np.concatenate([trained["coef"].ravel(), trained["intercept"]]) - 0.5
    np.testing.assert_allclose(update, expected, atol=1e-6)


@pytest.mark.parametrize("value", ["much", [[1.0], [1.0, 2.0]], 10**400])
def test_what_is_no_array_is_told_in_its_participants_place(value):
    def rarely(given, examples, _rng):
        return given if len(examples.x) > 3 else given | {"coef": value}

    made = learner(train=rarely)
    everyone, seeds = [slots(5), slots(2), slots(5)], [bytes(32)] * 3
    first, second, third = made.updates(made.initial(), everyone, TRAINING, seeds)
    assert isinstance(second, CodeError)
    assert second.message.startswith("study code: train(), must not raise, ")
    assert not first.any()
    assert not third.any()


def test_the_same_generator_gives_the_same_update():
    made = learner()
    first = update_of(made, slots(), seed=1)
    np.testing.assert_array_equal(update_of(made, slots(), seed=1), first)


def test_training_in_place_does_not_change_the_parameters_it_was_given():
    def in_place(given, examples, rng):
        given["coef"] += 1.0
        return given

    made = learner(train=in_place)
    start = made.initial()
    assert update_of(made, slots(), start).tolist() == [1, 1, 1, 1, 0]
    assert not start.any()


def test_a_participant_without_records_sends_zeros_and_trains_nothing():
    def forbidden(given, examples, rng):
        raise AssertionError

    made = learner(train=forbidden)
    assert not update_of(made, slots(nulls=range(200))).any()


def test_arrays_are_exported_by_name():
    exported = learner().export(np.arange(5, dtype=np.float32))
    np.testing.assert_array_equal(exported["coef"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(exported["intercept"], [4])


@pytest.mark.parametrize("returned", [{}, [np.zeros(3)], None, {1: np.zeros(3)}])
def test_parameters_that_are_no_arrays_by_name_are_refused(returned):
    message, hint = refusal(learner, parameters=lambda: returned)
    assert message == f"parameters(), must return a dict by name, found {type(returned).__name__}"
    assert hint == 'return {"weights": ..., "bias": ...}'


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(value):
    assert refusal(learner, parameters=lambda: {"coef": np.full(3, value)}) == (
        "parameters(), must be finite, found a NaN or an infinity",
        "np.zeros(...)",
    )


def test_training_that_changes_a_shape_is_refused():
    made = learner(train=lambda *_: {"coef": np.zeros((2, 4)), "intercept": np.zeros(1)})
    message, hint = refusal(update_of, made, slots())
    assert message.startswith("train(), must keep the names and shapes of parameters(), found {")
    assert hint == "return every array that came in, changed in value only"


def test_training_that_raises_is_one_line_with_its_place():
    def broken(given, examples, rng):
        msg = "two\nlines"
        raise ValueError(msg)

    made = learner(train=broken)
    message, _ = refusal(update_of, made, slots())
    assert message.endswith("broken(), must not raise, ValueError: two")
    assert "test_arrays.py:" in message


def test_metrics_that_are_no_numbers_are_refused():
    made = learner(evaluate=lambda *_: {"accuracy": "high"})
    message, _ = refusal(made.evaluate, made.initial(), slots())
    assert "evaluate(), must not raise, ValueError" in message


def test_the_hook_gives_no_record_level_privacy():
    words = (
        "train(), protects whole participants only, found unit = 'example'",
        'unit = "client", or define model() for record-level privacy',
    )
    made = learner()
    made.self_test(slots(), microbatch=None)
    assert refusal(made.self_test, slots(), microbatch=24) == words
    mechanism = Mechanism(
        unit="example",
        noise="server",
        noise_source="os",
        max_norm=1.0,
        dimension=5,
        scale=1.0,
        largest=1,
        sigma=16,
        steps=1,
        noises_steps=False,
        examples=EveryExample(),
        participants=Everyone(),
    )
    assert refusal(made.clipped_sums, made.initial(), slots(), np.arange(3), mechanism) == words
