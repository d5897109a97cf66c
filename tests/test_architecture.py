"""The shape of the code: state machines without I/O, a participant without a coordinator."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hubbub

ROOT = Path(hubbub.__file__).parent
DISK = {ROOT / "participant" / f"{name}.py" for name in ("memory", "folder", "evidence")}
"""What a participant must never forget, its own directory, and evidence in it; `LogGuard` and `Host` are given them."""
MACHINES = sorted({*(ROOT / "coordinator").glob("*.py"), *(ROOT / "participant").glob("*.py")} - DISK)
DAYS = {ROOT / "participant" / "host.py": {"datetime"}}
"""It makes days of the seconds that it is given."""


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rounds_know_no_clock_no_socket_no_file_and_no_randomness_of_their_own(path):
    assert not {"socket", "os", "time", "random", "pathlib", "sqlite3", "datetime"} & set(imported(path)) - DAYS.get(
        path, set()
    )


def loaded_after(statement):
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_participants_half_imports_no_coordinator():
    modules = loaded_after("import hubbub.participant")
    assert not any(name.startswith(("hubbub.coordinator", "hubbub.engine", "hubbub.release")) for name in modules)


def test_a_participants_half_of_a_carrier_imports_no_coordinator():
    modules = loaded_after("import hubbub.engine.direct")
    assert not any(name.startswith(("hubbub.coordinator", "hubbub.release", "torch")) for name in modules)


HOST = {"cli", "cohort", "accounting", "eventlog", "tlog", "engine", "errors", "events", "governance", "local"}
HOST |= {"mechanism", "messages", "participant", "planning", "randomness", "secagg", "study"}
"""Rooms that a participant's process may hold; of `engine` the carrier only."""


def test_a_participants_process_imports_no_path_of_a_coordinator():
    """What `hubbub join` imports, function by function, before it dials."""
    modules = loaded_after(
        "import hubbub.cli.processes\n"
        "from hubbub.engine.direct import Credentials, Spool, serve\n"
        "from hubbub.governance.enrolment import client_credentials\n"
        "from hubbub.participant.folder import SiteFolder\n"
        "from hubbub.participant.host import Host\n"
        "from hubbub.local.load import make_learner"
    )
    own = {name for name in modules if name.startswith("hubbub.")}
    assert {name.split(".")[1] for name in own} <= HOST, sorted(own)
    engine = {name for name in own if name.startswith("hubbub.engine.")}
    assert engine == {
        *(f"hubbub.engine.{name}" for name in ("transport", "direct")),
        *(f"hubbub.engine.direct.{name}" for name in ("credentials", "frames", "server", "site")),
    }, sorted(engine)


@pytest.mark.parametrize("statement", ["import hubbub", "import hubbub.cli.arguments", "import hubbub.planning"])
def test_importing_loads_neither_torch_nor_the_accountant(statement):
    assert not {"torch", "dp_accounting", "scipy"} & loaded_after(statement)


@pytest.mark.parametrize("room", sorted(ROOT.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_every_room_lists_its_files(room):
    docstring = ast.get_docstring(ast.parse(room.read_text())) or ""
    files = {path.name for path in room.parent.glob("[a-z]*.py")} if room.parent != ROOT else set()
    assert set(re.findall(r"\w+\.py\b", docstring)) - {"study.py"} == files


def test_every_room_says_whether_it_is_trusted():
    for path in [*ROOT.glob("*/__init__.py"), *ROOT.glob("[a-z]*.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert docstring.rstrip().splitlines(), path
        assert "*Trust:*" in docstring, f"{path.parent.name}/{path.name} has no *Trust:* sentence"
