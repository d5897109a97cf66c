"""Four hospitals' records, on hosts of their own and in one process: one epsilon, and without noise the same bytes."""

import os
import pathlib
import shutil

import pytest
from test_hosts import World

import hubbub

COLUMNS = 13
STUDY = """
[study]
name = "heart"
seed = 1
[data.x]
dtype = "float32"
shape = [13]
[data.y]
dtype = "int64"
classes = 2
[privacy]
unit = "example"
max_norm = 1.0
retries = 2
{privacy}
[cohort]
colluding = 1
{cohort}
[sampling]
{sampling}
[training]
algorithm = "dp-sgd"
rounds = 6
learning_rate = 1.0
"""
NOISELESS = {"privacy": 'noise = "none"\nsums = "masked"', "sampling": 'examples = "everything"', "cohort": ""}
PRIVATE = {
    "privacy": 'noise = "distributed"\nepsilon = 4.0',
    "sampling": 'examples = "poisson"\nprobability = 0.2',
    "cohort": "minimum = 3\ndropouts = 0.25",
}
CODE = """
import csv
import os
from pathlib import Path

import numpy as np
import torch

from hubbub import Examples

SCALE = np.array([100, 1, 4, 200, 600, 1, 2, 220, 1, 6, 3, 3, 7], dtype=np.float32)

def participants():
    return ["cleveland", "hungarian", "switzerland", "va"]

def read(path):
    with path.open() as file:
        rows = [[float(value or 0) for value in row] for row in list(csv.reader(file))[1:]]
    table = np.array(rows, dtype=np.float32)
    return table[:, :13] / SCALE, (table[:, 13] > 0).astype(np.int64)

def data(name):
    return Examples(*read(Path(os.environ["HUBBUB_DATA"]) / f"{name}.csv"))

def test_data():
    return Examples(np.zeros((4, 13), dtype=np.float32), np.array([0, 1, 0, 1]), public=True)

def model():
    return torch.nn.Linear(13, 2)
"""
NAMES = ("cleveland", "hungarian", "switzerland", "va")


@pytest.fixture
def heart(monkeypatch):
    beside = pathlib.Path(__file__).parents[3] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("HUBBUB_DATA", beside)) / "heart"
    if not folder.is_dir():
        pytest.skip(f"no heart records in {folder}; HUBBUB_DATA=DIR names the folder above them")
    monkeypatch.setenv("HUBBUB_DATA", str(folder))  # hosts set it, each for itself: put back afterwards
    return folder


@pytest.fixture
def both(heart, tmp_path, monkeypatch):
    """Run a study on hosts and in one process; the two run directories."""

    def run(settings, grant):
        def fill(folder, name, _number):
            shutil.copy(heart / f"{name}.csv", folder)

        text = STUDY.format(**settings)
        world = World(tmp_path, names=NAMES, study=text, code=CODE, unit="example", grant=grant, fill=fill)
        try:
            run = world.ask(world.command, "scientist", world.approve_study(world.command)).run
            told = world.ended(world.command, run)
        finally:
            world.close()
        assert told.state == "finished", told
        monkeypatch.setenv("HUBBUB_DATA", str(heart))
        here = tmp_path / "here"
        hubbub.run(hubbub.load_study(world.study_folder), out=here, home=tmp_path / "home")
        return world.home / "runs" / run, here

    return run


def test_without_noise_hosts_give_the_bytes_of_one_process(both):
    away, here = both(NOISELESS, "unbounded")
    assert (away / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_with_noise_hosts_cost_what_one_process_costs(both):
    away, here = both(PRIVATE, "filter")
    assert (away / "plan.json").read_bytes() == (here / "plan.json").read_bytes()
