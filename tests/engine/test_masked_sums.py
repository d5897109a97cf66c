"""Masked sums end to end: the same bits as sums in the clear, and weights that nobody sees one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import hubbub
from hubbub.coordinator.step import ServerStep
from hubbub.errors import RoundError, StudyError
from hubbub.randomness import SeededRandomness
from hubbub.secagg import client as clients

MASKED = {"privacy": {"noise": "none", "sums": "masked", "epsilon": None, "max_norm": 10.0}}
WEIGHED = {"training": {"weights": "examples"}}
ROWS = {"a": 10, "b": 40, "c": 25}


def uneven(name):
    """Records, some of which are unusable: a null slot weighs nothing."""
    rng = np.random.default_rng(ROWS[name])
    x = rng.normal(size=(ROWS[name], 4)).astype(np.float32)
    x[:3] = np.nan
    return hubbub.Examples(x, (np.nansum(x, axis=1) > 0).astype(np.int64))


def weights(result):
    return load_file(Path(result.out) / "model.safetensors")


def claim_of(result):
    return json.loads((Path(result.out) / "claim.json").read_bytes())


def mean_shift(parameters, examples, _rng):
    """A "training" whose result is known: every weight moves to the mean of the records' first column."""
    return {"w": parameters["w"] + np.float32(examples.x[:, 0].mean())}


@pytest.fixture
def shifting(make_study, client_settings):
    """A study that moves three weights by one number per participant."""

    def make(*changes):
        tables = client_settings(training={"rounds": 1, "learning_rate": 1.0})
        for change in changes:
            tables = {**tables, **{key: {**tables.get(key, {}), **value} for key, value in change.items()}}
        tables["privacy"] = {key: value for key, value in tables["privacy"].items() if value is not None}
        return make_study(
            tables,
            data=uneven,
            test_data=lambda: uneven("a"),
            model=None,
            parameters=lambda: {"w": np.zeros(3, dtype=np.float32)},
            train=mean_shift,
            evaluate=lambda _parameters, _examples: {"loss": 0.0},
        )

    return make


def usable(name):
    return uneven(name).x[3:, 0].astype(np.float64)


def test_weights_by_examples_give_the_mean_over_all_records(shifting, run):
    found = weights(run(shifting(MASKED, WEIGHED)))["w"]
    np.testing.assert_allclose(found, np.concatenate([usable(name) for name in ROWS]).mean(), atol=1e-5)


def test_equal_weights_give_the_mean_of_the_participants(shifting, run):
    found = weights(run(shifting(MASKED)))["w"]
    np.testing.assert_allclose(found, np.mean([usable(name).mean() for name in ROWS]), atol=1e-5)


@pytest.mark.parametrize("weight", [-1, 76])
def test_weights_that_nobody_can_have_move_no_model(shifting, weight):
    study = shifting(MASKED, WEIGHED)
    plan, before = hubbub.plan(study), np.zeros(3, dtype=np.float32)
    scale = int(plan.mechanism.scale)
    moved, _ = ServerStep(plan, study.settings.training).move(before, np.array([75 * scale, 0, 0, 75]))
    assert moved.tolist() == [1.0, 0.0, 0.0]
    moved, _ = ServerStep(plan, study.settings.training).move(before, np.zeros(4, dtype=np.int64))
    assert moved.tolist() == [0.0, 0.0, 0.0]  # nobody had a record
    with pytest.raises(RoundError, match=f"weights, must add up to 0 to 75 examples, found {weight}; the model stays"):
        ServerStep(plan, study.settings.training).move(before, np.array([scale, 0, 0, weight]))


@pytest.mark.parametrize("changes", [(MASKED,), (MASKED, WEIGHED)], ids=["equal", "examples"])
def test_masked_sums_and_sums_in_the_clear_have_the_same_bits(shifting, run, changes):
    clear = {"privacy": {**MASKED["privacy"], "sums": "clear"}}
    results = [run(shifting(*changes)), run(shifting(*changes, clear))]
    assert weights(results[0])["w"].tobytes() == weights(results[1])["w"].tobytes()
    assert [claim_of(result)["secagg"].split(":")[0] for result in results] == ["run", "none"]


def test_a_run_without_noise_claims_nothing_whatever_hides_its_sums(shifting, run):
    claim = claim_of(run(shifting(MASKED)))
    assert [line["epsilon"] for line in claim["claims"]] == [None, None, None]
    assert (
        claim["claims"][0]["reason"]
        == "no noise: it sees exact sums of at least 3 participants, in whole blocks of 3 or more"
    )
    assert claim["sentence"].startswith("No noise was added: no participant is protected")


def test_a_claim_says_first_where_differences_were_accepted(shifting, run):
    accepted = {"privacy": {**MASKED["privacy"], "differencing": "accepted"}}
    assert claim_of(run(shifting(accepted)))["sentence"].startswith(
        "No noise was added, and sums are over any survivors: one participant's exact contribution can come out as"
    )


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"noise": "server", "epsilon": 3.0, "sums": "masked"}, "privacy.sums, masked sums are for distributed noise"),
        ({"noise": "distributed", "epsilon": 3.0, "sums": "clear"}, "privacy.sums, must be masked with distributed"),
        ({"noise": "none", "differencing": "accepted"}, "privacy.differencing, is a question of masked sums without"),
    ],
)
def test_settings_of_sums_that_contradict_each_other_are_refused(make_study, client_settings, privacy, words):
    tables = client_settings()
    tables["privacy"] = {"unit": "client", **privacy}
    with pytest.raises(StudyError, match=words):
        make_study(tables)


def test_weights_are_refused_beside_noise(make_study, client_settings):
    with pytest.raises(StudyError, match=r"training.weights, 'examples' is for unit = 'client' without noise"):
        make_study(client_settings(training={"weights": "examples"}))


@pytest.mark.parametrize("unit", ["example", "client"])
def test_one_mask_with_another_sign_is_seen(make_study, settings, client_settings, run, monkeypatch, unit):
    changes = {"privacy": {"noise": "distributed"}, "cohort": {"colluding": 1, "minimum": 3}}
    tables = settings(**changes) if unit == "example" else client_settings(**changes)
    honest = [
        run(make_study(tables | {"speed": {"secagg": way}}), randomness=SeededRandomness(1)) for way in ("run", "elide")
    ]
    assert np.array_equal(*(np.concatenate([v.ravel() for v in weights(one).values()]) for one in honest))
    add, flips = clients.add_masks, []

    def flip_one(values, *, plus, minus):
        if len(plus) > 1 and not flips:
            flips.append(plus[-1])
            plus, minus = plus[:-1], [*minus, plus[-1]]
        add(values, plus=plus, minus=minus)

    monkeypatch.setattr(clients, "add_masks", flip_one)
    flipped = run(make_study(tables), randomness=SeededRandomness(1))
    assert len(flips) == 1
    pairs = zip(weights(flipped).values(), weights(honest[1]).values(), strict=True)
    assert not all(np.array_equal(one, other) for one, other in pairs)


def random_study(seed):
    """Tables and functions of a study that masks its sums; every size and choice is drawn."""
    rng = np.random.default_rng(seed)
    size, width, classes = (int(rng.integers(*limits)) for limits in ((3, 8), (1, 7), (2, 4)))
    unit, is_noised = str(rng.choice(["example", "client"])), bool(rng.integers(2))
    noise = {"noise": "distributed", "epsilon": float(rng.uniform(2, 20))} if is_noised else MASKED["privacy"]
    privacy = {key: value for key, value in noise.items() if value is not None}
    weights = str(rng.choice(["equal", "examples"])) if (unit, is_noised) == ("client", False) else "equal"
    algorithm = "dp-sgd" if unit == "example" else str(rng.choice(["fedavg", "fedavgm"]))
    slots = {f"site-{at}": int(rng.integers(3, 30)) for at in range(size)}

    def data(name):
        own = np.random.default_rng([seed, *name.encode()])
        x = own.normal(size=(slots.get(name, 20), width)).astype(np.float32)
        return hubbub.Examples(x, own.integers(0, classes, len(x)))

    tables = {
        "study": {"name": "random", "seed": seed},
        "data": {"x": {"dtype": "float32", "shape": [width]}, "y": {"dtype": "int64", "classes": classes}},
        "privacy": {"unit": unit, "max_norm": float(rng.uniform(0.1, 5)), **privacy},
        "cohort": {"colluding": int(rng.integers(1, size - 1))},
        "training": {
            "algorithm": algorithm, "rounds": int(rng.integers(1, 4)), "learning_rate": float(rng.uniform(0.1, 2)),
            "weights": weights, "momentum": 0.5 if algorithm != "fedavg" else 0.0,
        },
    }  # fmt: skip
    functions = {
        "participants": lambda: list(slots),
        "data": data,
        "test_data": lambda: data("test"),
        "model": lambda: torch.nn.Linear(width, classes),
    }
    return tables, functions


def runs_alike(make_study, run, seed):
    tables, functions = random_study(seed)
    results = [
        run(make_study(tables | {"speed": {"secagg": way}}, **functions), randomness=SeededRandomness(seed))
        for way in ("run", "elide")
    ]
    assert [claim_of(result)["secagg"].split(":")[0] for result in results] == ["run", "simulated"]
    one, other = ((Path(result.out) / "model.safetensors").read_bytes() for result in results)
    assert one == other, tables


@pytest.mark.parametrize("seed", [0, 1])
def test_random_studies_have_the_same_bits_with_and_without_masks(make_study, run, seed):
    runs_alike(make_study, run, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_more_random_studies_have_the_same_bits_with_and_without_masks(make_study, run, seed):
    runs_alike(make_study, run, seed)
