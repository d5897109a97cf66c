"""Studies that train in well under a second."""

import copy
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

import hubbub

torch.set_num_threads(1)  # tests share the processor with each other
hypothesis.settings.register_profile("shared", deadline=None)  # and so one example may take as long as it takes
hypothesis.settings.load_profile("shared")

SETTINGS = {
    "study": {"name": "tiny", "seed": 3},
    "data": {"x": {"dtype": "float32", "shape": [4]}, "y": {"dtype": "int64", "classes": 2}},
    "privacy": {"unit": "example", "epsilon": 4.0, "noise": "server"},
    "sampling": {"examples": "poisson", "probability": 0.5},
    "training": {"algorithm": "dp-sgd", "rounds": 4, "learning_rate": 1.0},
}
PRIVATE = {"noise": "server", "epsilon": 4.0}
CLIENT = {
    "privacy": {"unit": "client", "epsilon": 30.0, "noise": "server"},
    "sampling": None,
    "training": {"algorithm": "fedavg", "rounds": 3, "learning_rate": 0.5, "batch_size": 8},
}


def merged(base, changes):
    """Tables with some keys changed; None removes a key or a table."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def records(name, rows=40):
    rng = np.random.default_rng(sum(map(ord, name)))
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    return hubbub.Examples(x, (x.sum(axis=1) > 0).astype(np.int64))


def model():
    return torch.nn.Linear(4, 2)


@pytest.fixture
def settings():
    """Make the tables of a study, some keys changed."""
    return lambda **changes: merged(SETTINGS, changes)


@pytest.fixture
def client_settings():
    """Make the tables of a client-level study, some keys changed."""
    return lambda **changes: merged(merged(SETTINGS, CLIENT), changes)


@pytest.fixture
def make_study():
    """Make a study in memory; functions are replaced by name, settings by table."""

    def make(tables=None, **functions):
        defaults = {
            "participants": lambda: ["a", "b", "c"],
            "data": records,
            "test_data": lambda: records("test", 60),
            "model": model,
        }
        given = {name: function for name, function in (defaults | functions).items() if function is not None}
        return hubbub.Study.from_functions(tables if tables is not None else merged(SETTINGS, {}), **given)

    return make


@pytest.fixture
def run(tmp_path):
    """Run a study under a home and a run directory of this test; returns the result."""
    count = iter(range(1000))

    def call(study, **options):
        options = {"home": tmp_path / "home", "out": tmp_path / f"run-{next(count)}"} | options
        return hubbub.run(study, **options)

    return call


@pytest.fixture
def finished_run(make_study, settings, run):
    """Give the folder of a finished run of 40 rounds, as an outsider gets it."""
    tables = settings(training={"rounds": 40}, privacy={"epsilon": 3.0}, sampling={"probability": 0.25})
    return run(make_study(tables)).out


@pytest.fixture(scope="session")
def vectors():
    """Give the folder of vectors that others wrote: $HUBBUB_VECTORS, or ../shared/vectors beside the project."""
    folder = Path(os.environ.get("HUBBUB_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))
    if not folder.is_dir():
        pytest.skip(f"no vectors in {folder}; HUBBUB_VECTORS=DIR names another folder")
    return folder
