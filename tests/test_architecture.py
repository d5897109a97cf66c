"""The shape of the code: state machines without I/O, a participant without a coordinator."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hubbub

ROOT = Path(hubbub.__file__).parent
DISK = {ROOT / "participant" / name for name in ("memory.py", "folder.py")}
"""What a participant must never forget, and its owner's directory, are files; `LogGuard` and `Host` are given them."""
MACHINES = sorted({*(ROOT / "coordinator").glob("*.py"), *(ROOT / "participant").glob("*.py")} - DISK)
CALENDAR = {"host.py": {"datetime"}}
"""Who is given its clock and turns seconds into a day."""


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rounds_know_no_clock_no_socket_no_file_and_no_randomness_of_their_own(path):
    forbidden = {"socket", "os", "time", "random", "pathlib", "sqlite3", "datetime"} - CALENDAR.get(path.name, set())
    assert not forbidden & set(imported(path))


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


@pytest.mark.parametrize("statement", ["import hubbub", "import hubbub.cli.arguments", "import hubbub.planning"])
def test_importing_loads_neither_torch_nor_the_accountant(statement):
    assert not {"torch", "dp_accounting", "scipy"} & loaded_after(statement)


def test_every_room_says_whether_it_is_trusted():
    for path in [*ROOT.glob("*/__init__.py"), *ROOT.glob("[a-z]*.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert docstring.rstrip().splitlines(), path
        assert "*Trust:*" in docstring, f"{path.parent.name}/{path.name} has no *Trust:* sentence"
