"""Carriers for the tests of this room."""

import functools
import importlib

import pytest


@pytest.fixture(scope="session")
def carriers():
    """Give the module of carriers."""
    return importlib.import_module("carriers")


@pytest.fixture(scope="session")
def certificates():
    """Give the module of throw-away certificates."""
    return importlib.import_module("certificates")


@pytest.fixture(scope="session")
def authority(certificates):
    """Give one authority to all tests."""
    return certificates.Authority()


@pytest.fixture
def hosts(carriers, authority, tmp_path):
    """Make coordinators of one of the carriers' classes."""
    made = []

    def make(kind, **options):
        made.append(kind(authority, tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def direct(hosts, carriers):
    """Make coordinators with the direct carrier; options are `carriers.Direct`'s."""
    return functools.partial(hosts, carriers.Direct)


@pytest.fixture(scope="module")
def federations(tmp_path_factory):
    """Make federations in processes, which are there for all tests of a file."""
    made = []

    def make(**options):
        made.append(importlib.import_module("processes").Federation(tmp_path_factory.mktemp("federation"), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def flare_python():
    """Give the interpreter of NVIDIA FLARE's own environment, which is made at the first use."""
    try:
        return importlib.import_module("flare_system").interpreter()
    except SystemExit as error:
        pytest.skip(f"NVIDIA FLARE cannot be installed here: {error.code}")


@pytest.fixture(scope="session")
def flare(tmp_path_factory, flare_python):
    """Give a server and a client of NVIDIA FLARE, both on this machine, with jobs of ours."""
    system = importlib.import_module("flare_system").System(tmp_path_factory.mktemp("flare"), flare_python)
    yield system
    system.close()


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
def carrier(request, hosts, carriers):
    """Give the carrier that a test is parametrised by."""
    if request.param == "in process":
        return carriers.Here()
    if request.param != "flare":
        return hosts({"direct": carriers.Direct, "tunnel": carriers.Tunnelled}[request.param])
    system = request.getfixturevalue("flare")
    made = hosts(carriers.Direct, address=f"127.0.0.1:{system.coordinator}")
    made.listen(system.wait("site-1"))
    return made
