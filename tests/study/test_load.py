"""A folder, or functions in a notebook, as one study; code is imported late and torch not at all."""

import subprocess
import sys

import numpy as np
import pytest

import hubbub
from hubbub.errors import CodeError, StudyError
from hubbub.study import Lock, Study, load_study

TOML = """
[study]
name = "tiny"
[data]
x = { dtype = "float32", shape = [4] }
y = { dtype = "int64", classes = 2 }
[privacy]
unit = "example"
epsilon = 4.0
noise = "server"
[training]
algorithm = "dp-sgd"
rounds = 4
learning_rate = 1.0
"""
CODE = """
import numpy as np
import torch
import hubbub
from records import make
def model(): return torch.nn.Linear(4, 2)
def participants(): return ["a", "b"]
def data(name): return make(20)
def test_data(): return make(30)
"""
RECORDS = """
import numpy as np
import hubbub
def make(rows):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    return hubbub.Examples(x, (x[:, 0] > 0).astype(np.int64))
"""


@pytest.fixture
def folder(tmp_path):
    """A study's folder without a lock."""
    (tmp_path / "study.toml").write_text(TOML)
    (tmp_path / "study.py").write_text(CODE)
    (tmp_path / "records.py").write_text(RECORDS)
    yield tmp_path
    sys.modules.pop("records", None)


def test_a_study_is_found_by_its_folder_and_by_its_file(folder):
    assert load_study(folder) == load_study(str(folder / "study.toml"))
    assert load_study(folder).lock is None
    assert load_study(folder).lock_path == folder / "study.lock"


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"must be a readable study file, No such file"):
        load_study(tmp_path)


def test_loading_runs_no_code(folder):
    (folder / "study.py").write_text("raise SystemExit(9)")
    assert load_study(folder).settings.study.name == "tiny"


def test_code_is_imported_once_and_survives_a_new_lock(folder):
    study = load_study(folder)
    code = study.code
    assert study.code is code
    lock = Lock(format=1, code_hash="", schema_hash="", parameters=1, slots={"a": 1})
    assert study.with_lock(lock).code is code
    assert study.with_lock(lock).lock == lock


def test_another_file_can_hold_the_code(folder):
    (folder / "study.py").rename(folder / "other.py")
    (folder / "study.toml").write_text(TOML.replace('name = "tiny"', 'name = "tiny"\ncode = "other.py"'))
    assert load_study(folder).code.participants() == ["a", "b"]


def test_a_check_makes_a_lock_that_is_current_until_code_or_columns_change(folder):
    assert load_study(folder).current_lock is None
    hubbub.check(load_study(folder))
    lock = load_study(folder).current_lock
    assert lock is not None
    assert (lock.parameters, lock.slots) == (10, {"a": 20, "b": 20})

    for name, text in (("records.py", RECORDS + "# changed\n"), ("study.py", CODE + "# changed\n"), ("new.py", "")):
        before = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text(text)
        assert load_study(folder).current_lock is None
        if before is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(before)
        assert load_study(folder).current_lock == lock

    (folder / "study.toml").write_text(TOML.replace("classes = 2", "classes = 3"))
    assert load_study(folder).current_lock is None
    (folder / "study.toml").write_text(TOML.replace("rounds = 4", "rounds = 5"))
    assert load_study(folder).current_lock == lock


def test_a_damaged_lock_is_refused(folder):
    (folder / "study.lock").write_text("{}")
    with pytest.raises(StudyError, match=r"study\.lock, must be what hubbub check wrote"):
        load_study(folder)


# --- notebooks


def functions():
    def data(name="test"):
        return hubbub.Examples(np.zeros((3, 4), dtype=np.float32), np.zeros(3, dtype=np.int64))

    return {"participants": lambda: ["a"], "data": data, "test_data": data, "model": lambda: None}


@pytest.fixture
def tables(settings):
    """Tables of a valid study."""
    return settings()


def test_a_notebook_makes_a_study_of_functions(tables):
    study = Study.from_functions(tables, **functions())
    assert study.code.participants() == ["a"]
    assert study.lock_path is None
    assert study.directory is None
    assert study.current_lock is None
    lock = Lock(format=1, code_hash=study.code_hash, schema_hash=study.schema_hash, parameters=3, slots={"a": 3})
    assert study.with_lock(lock).current_lock == lock


def test_a_notebook_without_a_function_is_refused(tables):
    for name in ("participants", "data", "test_data"):
        given = functions()
        del given[name]
        with pytest.raises(CodeError) as caught:
            Study.from_functions(tables, **given)
        assert caught.value.message == f"study: {name}(), must be defined, found nothing"


def test_a_function_that_no_study_has_is_refused(tables):
    with pytest.raises(CodeError) as caught:
        Study.from_functions(tables, **functions(), modle=lambda: None)
    assert caught.value.message == "study: modle(), is no function of a study"
    assert caught.value.hint.startswith("known here: participants, data, test_data, model")


def test_a_wrong_setting_in_a_notebook_is_refused(settings):
    with pytest.raises(StudyError, match=r"privacy\.epsilon"):
        Study.from_functions(settings(privacy={"epsilon": -1.0}), **functions())


# --- what planning imports


FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "records"} or name.startswith("hubbub_study_"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Forbid())
"""
PLAN = """
import sys, hubbub
plan = hubbub.plan(hubbub.load_study(sys.argv[1]))
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "records"}, loaded
assert not [name for name in loaded if name.startswith("hubbub_study_")]
print(plan.hash)
"""


def python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("before", ["", FORBID], ids=["sys.modules", "import hook"])
def test_planning_with_a_current_lock_imports_neither_the_study_nor_torch(folder, before):
    study = hubbub.check(load_study(folder))
    result = python(before + PLAN, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == hubbub.plan(study).hash


def test_planning_without_a_lock_does_import_the_study(folder):
    result = python(FORBID + PLAN, folder)
    assert result.returncode != 0
    assert "was imported" in result.stderr


def test_importing_hubbub_imports_nothing_heavy():
    script = "import hubbub, sys; print(sorted({'torch', 'numpy', 'dp_accounting'} & set(sys.modules)))"
    assert python(script).stdout.strip() == "[]"
