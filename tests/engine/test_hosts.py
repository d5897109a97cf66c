"""A run on hosts of their own, from offer to verified bundle: every byte but the carrier's, in one process."""

import importlib.util
import pathlib

import pytest

import hubbub
from hubbub.engine.away import Deadlines
from hubbub.engine.coordinate import Coordinating
from hubbub.engine.transport import InProcess


def load(name):
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deployment = load("deployment")


class World(deployment.Deployment):
    """A deployment whose carrier is a call."""

    def __init__(self, root, **options):
        super().__init__(root, **options)
        self.hosts = {name: self.host(name) for name in self.names}
        self.start()

    def start(self):
        self.coordinating = Coordinating(self.home, Deadlines(stage=5, training=20, patience=1))
        self.coordinating.attach(InProcess({name: host.answer for name, host in self.hosts.items()}))
        self.command = self.coordinating.command

    def close(self):
        self.coordinating.close()
        for host in self.hosts.values():
            host.close()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBBUB_DATA", str(tmp_path))  # hosts set it, each for itself: put back afterwards
    made = World(tmp_path)
    yield made
    made.close()


def test_a_study_is_offered_approved_run_released_and_verified(world):
    order = world.approve_study(world.command)
    run = world.ask(world.command, "scientist", order).run
    told = world.ended(world.command, run)
    assert (told.state, told.rounds, told.words) == ("finished", 4, "")
    bundle = world.release(world.command, run)
    assert list(hubbub.verify_bundle(bundle))
