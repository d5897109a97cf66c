"""Carriers for the tests of this room."""

import importlib.util
from pathlib import Path

import pytest


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def carriers():
    """Give the module of carriers."""
    return _load("carriers")


@pytest.fixture(scope="session")
def certificates():
    """Give the module of throw-away certificates."""
    return _load("certificates")


@pytest.fixture(scope="session")
def authority(certificates):
    """Give one authority to all tests."""
    return certificates.Authority()


@pytest.fixture
def direct(carriers, authority, tmp_path):
    """Make coordinators with the direct carrier; options are `carriers.Direct`'s."""
    made = []

    def make(**options):
        made.append(carriers.Direct(authority, tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def wire(carriers):
    """Make wires to a port, which can be cut."""
    made = []

    def make(port):
        made.append(carriers.Wire(port))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def carrier(request, direct, carriers):
    """Give the carrier that a test is parametrised by."""
    return carriers.Here() if request.param == "in process" else direct()
