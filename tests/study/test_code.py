"""study.py: what is missing or broken is one line with its place, and the hash covers what runs."""

import functools
import gc
import importlib
import os
import pickle
import py_compile
import sys
import weakref

import numpy as np
import pytest

from hubbub.errors import CodeError, HubbubError, StudyError
from hubbub.study import Code, Examples
from hubbub.study.code import call, hash_folder, load_code

MINIMAL = """
import hubbub
def participants(): return ["a"]
def data(name): return hubbub.Examples([], [])
def test_data(): return hubbub.Examples([], [])
"""
MODEL = MINIMAL + "def model(): return 3\n"
HOOK = """
def parameters(): return {}
def train(parameters, examples, rng): return parameters
def evaluate(parameters, examples): return {}
"""


@pytest.fixture
def write(tmp_path):
    """Write a study.py and return its path."""

    def write(text, name="study.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(path):
    with pytest.raises(CodeError) as caught:
        load_code(path)
    assert "\n" not in caught.value.message
    return caught.value.message, caught.value.hint


def test_functions_are_picked_out_by_name(write):
    code = load_code(write(MODEL + "def loss(outputs, y): return 0\ndef other(): pass\nSIZE = 3\n"))
    assert code.participants() == ["a"]
    assert code.model() == 3
    assert code.loss(1, 2) == 0
    assert code.train is None


def test_the_hook_is_picked_out_too(write):
    code = load_code(write(MINIMAL + HOOK))
    assert code.model is None
    assert code.parameters() == {}


@pytest.mark.parametrize("name", ["participants", "data", "test_data"])
@pytest.mark.parametrize("instead", ["", "{name} = 3"])
def test_a_missing_function_is_named(write, name, instead):
    text = MODEL.replace(f"def {name}(", "def something_else(") + instead.format(name=name)
    assert refusal(write(text)) == (
        f"study.py: {name}(), must be defined, found nothing",
        "hubbub new DIR makes a study.py that has it",
    )


@pytest.mark.parametrize("missing", ["parameters", "train", "evaluate"])
def test_part_of_a_hook_is_refused(write, missing):
    text = MINIMAL + HOOK.replace(f"def {missing}(", "def something_else(")
    assert refusal(write(text)) == (
        f"study code, must define model(), or all of parameters(), train(), evaluate(), found no {missing}()",
        "def model() -> torch.nn.Module: ...",
    )


def test_neither_model_nor_hook_is_refused(write):
    assert "found no parameters()" in refusal(write(MINIMAL))[0]


def test_both_model_and_hook_are_refused(write):
    assert refusal(write(MODEL + HOOK)) == (
        "study code, must define model() or the ndarray hook, found both",
        "remove parameters(), train() and evaluate(), or remove model()",
    )


def test_a_missing_file_is_refused(tmp_path):
    message, hint = refusal(tmp_path / "study.py")
    assert message == f"{tmp_path / 'study.py'}, must be the study's code, found no such file"
    assert hint == "hubbub new DIR makes a study that runs"


def test_a_syntax_error_is_one_line_with_file_and_line(write):
    path = write("import hubbub\n\ndef model(:\n")
    message, hint = refusal(path)
    assert message.startswith("study.py:3, must import, SyntaxError: invalid syntax")
    assert hint == f"python {path} shows the whole traceback"


def test_an_exception_while_importing_is_one_line_with_file_and_line(write):
    message, _ = refusal(write("x = 1\ny = {}['key']\n"))
    assert message == "study.py:2, must import, KeyError: 'key'"


def test_a_module_that_is_not_there_is_one_line(write):
    message, hint = refusal(write("import no_such_module_anywhere\n"))
    assert message == "study.py:1, must import, ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert hint == (
        "install the library that has the module no_such_module_anywhere, or put no_such_module_anywhere.py "
        "beside study.py"
    )


def test_a_library_that_an_extra_brings_is_told_by_the_extra(write):
    _, hint = refusal(write("raise ModuleNotFoundError('No module named torch.nn', name='torch.nn')\n"))
    assert hint == "pip install '.[torch]' in a checkout of hubbub"


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_while_importing_is_an_error_and_no_exit_of_hubbub(write, code):
    message, hint = refusal(write(f"import sys\nsys.exit({code})\n"))
    assert message == f"study.py:2, must import, SystemExit: {code}"
    assert hint == "take the exit out: whoever runs a study says when it ends"


def test_ctrl_c_while_importing_is_no_error_of_the_study(write):
    with pytest.raises(KeyboardInterrupt):
        load_code(write("raise KeyboardInterrupt\n"))


def test_the_command_that_shows_a_traceback_can_be_typed_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / "Studie für Ärzte"
    folder.mkdir()
    (folder / "study.py").write_text("1 / 0\n")
    _, hint = refusal(folder / "study.py")
    assert hint == f"python '{folder}/study.py' shows the whole traceback"


def test_a_refusal_of_ours_goes_through_unchanged(write):
    path = write("from hubbub.errors import StudyError\nraise StudyError('where, rule, found', hint='do')\n")
    with pytest.raises(StudyError, match=r"where, rule, found"):
        load_code(path)


def test_a_helper_beside_the_study_can_be_imported_and_the_path_is_left_alone(write):
    write("NAMES = ['x']\n", "helper_of_a_test_in_study_code.py")
    text = MODEL.replace('return ["a"]', "return NAMES") + "from helper_of_a_test_in_study_code import NAMES\n"
    before = list(sys.path)
    assert load_code(write(text)).participants() == ["x"]
    assert sys.path == before
    assert "helper_of_a_test_in_study_code" not in sys.modules


def test_a_study_that_changes_the_path_itself_is_no_problem(write):
    assert load_code(write("import sys\nsys.path.pop(0)\n" + MODEL)).participants() == ["a"]


def test_the_file_that_was_hashed_runs_and_not_its_cached_bytecode(write):
    path = write(MODEL)
    stamp = path.stat()
    assert load_code(path).participants() == ["a"]
    path.write_text(MODEL.replace('["a"]', '["b"]'))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as old and as long as before
    assert load_code(path).participants() == ["b"]


def test_helpers_too_run_as_they_were_hashed_and_never_from_bytecode(write, tmp_path):
    (tmp_path / "helpers_of_a_test").mkdir()
    deep, sourceless = tmp_path / "helpers_of_a_test" / "deep.py", tmp_path / "only_bytecode_of_a_test.pyc"
    path = write(MODEL.replace('return ["a"]', "return NAMES") + "from helpers_of_a_test.deep import NAMES\n")
    deep.write_text("NAMES = ['a']\n")
    stamp = deep.stat()
    py_compile.compile(str(deep))
    py_compile.compile(str(deep), cfile=str(sourceless))
    deep.write_text("NAMES = ['b']\n")
    os.utime(deep, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load_code(path).participants() == ["b"]
    path.write_text("import only_bytecode_of_a_test\n" + MODEL)
    assert "No module named 'only_bytecode_of_a_test'" in refusal(path)[0]


@pytest.mark.parametrize("folder", ["build", "runs", "__pycache__", "package_of_a_test/build"])
def test_code_in_a_folder_that_no_hash_covers_does_not_run(write, tmp_path, folder):
    path, place = write(MODEL), tmp_path / folder
    place.mkdir(parents=True)
    before = hash_folder(tmp_path)
    (place / "__init__.py").write_text("")
    (place / "evil.py").write_text("raise SystemExit\n")
    assert hash_folder(tmp_path) == before
    name = folder.replace("/", ".")
    for text in (f"import {name}\n", f"import {name}.evil\n", f"from {name} import evil\n"):
        path.write_text(text + MODEL)
        assert "among the sources of the study that were hashed" in refusal(path)[0]


def test_a_study_that_imports_itself_from_the_folder_above_runs_from_its_sources(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    study = tmp_path / "study_of_a_test"
    study.mkdir()
    for file in ("__init__", "helper"):
        path = study / f"{file}.py"
        path.write_text("NAMES = ['bytecode']\n")
        py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        path.write_text("NAMES = ['a']\n")
    names = "from study_of_a_test import NAMES\nfrom study_of_a_test.helper import NAMES as MORE\n"
    path = write(names + MODEL.replace('return ["a"]', "return NAMES + MORE"), "study_of_a_test/study.py")
    assert load_code(path).participants() == ["a", "a"]
    assert not {"study_of_a_test", "study_of_a_test.helper"} & set(sys.modules)


def test_a_linked_helper_runs_from_its_source_too(write, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "linked_in_a_test.py"
    elsewhere.write_text("NAMES = ['bytecode']\n")
    helper = tmp_path / "linked_in_a_test.py"
    helper.symlink_to(elsewhere)
    py_compile.compile(str(helper), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    elsewhere.write_text("NAMES = ['a']\n")
    path = write("from linked_in_a_test import NAMES\n" + MODEL.replace('return ["a"]', "return NAMES"))
    assert load_code(path).participants() == ["a"]


def test_a_helper_that_is_imported_at_a_call_runs_from_its_source(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m hubbub` does in the study's folder
    helper = tmp_path / "late_in_a_test.py"
    helper.write_text("NAMES = ['bytecode']\n")
    py_compile.compile(str(helper), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    helper.write_text("NAMES = ['a']\n")
    text = MODEL.replace('return ["a"]', "\n    from late_in_a_test import NAMES\n    return NAMES")
    assert load_code(write(text)).participants() == ["a"]
    del sys.modules["late_in_a_test"]


def test_a_helper_that_was_imported_before_is_imported_anew_and_given_back(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "early_in_a_test.py"
    helper.write_text("NAMES = ['before it was changed']\n")
    early = importlib.import_module("early_in_a_test")
    helper.write_text("NAMES = ['a']\n")
    path = write("from early_in_a_test import NAMES\n" + MODEL.replace('return ["a"]', "return NAMES"))
    assert load_code(path).participants() == ["a"]
    assert sys.modules.pop("early_in_a_test") is early


def test_a_folder_of_helpers_without_init_is_not_left_to_the_next_study(write, tmp_path):
    for study, init in (("one", False), ("two", True)):
        folder = tmp_path / study / "shared_by_two_in_a_test"
        folder.mkdir(parents=True)
        (folder / "names.py").write_text(f"NAMES = ['{study}']\n")
        if init:
            (folder / "__init__.py").write_text("")
    text = "from shared_by_two_in_a_test.names import NAMES\n" + MODEL.replace('return ["a"]', "return NAMES")
    found = [load_code(write(text, f"{study}/study.py")).participants() for study in ("one", "two")]
    assert found == [["one"], ["two"]]
    assert "shared_by_two_in_a_test" not in sys.modules


def test_an_environment_in_the_study_is_no_code_of_it_and_its_libraries_are_found(write, tmp_path, monkeypatch):
    path, library = write(MODEL), tmp_path / ".venv" / "lib"
    before = hash_folder(tmp_path)
    library.mkdir(parents=True)
    (tmp_path / ".venv" / "lib64").symlink_to("lib")
    (library / "library_in_a_test.py").write_text("NAMES = ['a']\n")
    assert hash_folder(tmp_path) == before
    monkeypatch.syspath_prepend(library)
    path.write_text("from library_in_a_test import NAMES\n" + MODEL.replace('return ["a"]', "return NAMES"))
    assert "among the sources of the study" in refusal(path)[0]
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert load_code(path).participants() == ["a"]
    del sys.modules["library_in_a_test"]


def test_libraries_that_a_study_imports_come_from_their_bytecode(write, tmp_path_factory, monkeypatch):
    library = tmp_path_factory.mktemp("library")
    module = library / "library_for_this.py"
    module.write_text("NAMES = ['a']\n")
    py_compile.compile(str(module), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    module.write_text("NAMES = ['source']\n")
    monkeypatch.syspath_prepend(library)
    path = write(MODEL.replace('return ["a"]', "return NAMES") + "from library_for_this import NAMES\n")
    assert load_code(path).participants() == ["a"]
    del sys.modules["library_for_this"]


def test_nothing_is_collected_while_a_study_is_imported_and_everything_after(write):
    text = "import gc\nassert not gc.isenabled()\nclass Loop: pass\nloop = Loop()\nloop.self = loop\n"
    module = sys.modules[load_code(write(MODEL + text)).participants.__module__]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    loop = weakref.ref(module.loop)
    del module.loop
    gc.collect()
    assert loop() is None


@pytest.mark.parametrize("was_enabled", [True, False])
def test_a_study_that_does_not_import_leaves_collection_as_it_was(write, was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    try:
        refusal(write("1 / 0\n"))
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


def test_what_somebody_froze_stays_frozen(write):
    gc.freeze()
    try:
        load_code(write(MODEL))
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_what_a_study_defines_can_be_pickled(write):
    code = load_code(write(MODEL))
    assert pickle.loads(pickle.dumps(code.participants))() == ["a"]


# --- calling


def raising(message):
    def data(name):
        raise ValueError(message)

    return data


def test_an_exception_inside_data_is_one_line_with_file_line_and_call(write):
    code = load_code(write(MODEL.replace("return hubbub.Examples([], [])", "return {}['age']", 1)))
    with pytest.raises(CodeError) as caught:
        call(code.data, "north")
    assert caught.value.message == "study code at study.py:4: data('north'), must not raise, KeyError: 'age'"
    assert caught.value.hint == "the same call in a Python prompt shows the whole traceback"


def test_an_exception_of_many_lines_is_one_line():
    with pytest.raises(CodeError) as caught:
        call(raising("first\nsecond"), "north")
    assert caught.value.message.endswith("data('north'), must not raise, ValueError: first")


def test_an_exception_without_words_is_one_line():
    with pytest.raises(CodeError, match=r"ValueError: \n"):
        call(raising(""), "north")


def test_an_exit_inside_a_function_is_an_error_and_ctrl_c_is_none(write):
    code = load_code(write(MODEL.replace("return hubbub.Examples([], [])", "raise {'x': SystemExit(3)}[name]", 1)))
    with pytest.raises(CodeError) as caught:
        call(code.data, "x")
    assert caught.value.message == "study code at study.py:4: data('x'), must not raise, SystemExit: 3"
    assert caught.value.hint == "take the exit out: whoever runs a study says when it ends"

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(stopped)


def test_what_has_no_name_can_fail_too():
    class Caller:
        def __call__(self):
            raise ValueError("no")

    for function in (functools.partial(raising("no"), "north"), Caller()):
        with pytest.raises(CodeError, match="must not raise, ValueError: no"):
            call(function)


def test_a_refusal_of_ours_inside_a_function_goes_through_unchanged():
    def data():
        raise HubbubError("where, rule, found", hint="do")

    with pytest.raises(HubbubError, match=r"where, rule, found"):
        call(data)


# --- hashes


def test_the_folders_hash_changes_with_every_python_file_in_it(tmp_path, write):
    write(MODEL)
    hashes = [hash_folder(tmp_path)]
    for name, text in (("helper.py", "x = 1"), ("helper.py", "x = 2"), ("other.py", "x = 2"), ("study.py", MINIMAL)):
        write(text, name)
        hashes.append(hash_folder(tmp_path))
    (tmp_path / "helper.py").rename(tmp_path / "renamed.py")
    hashes.append(hash_folder(tmp_path))
    assert len(set(hashes)) == len(hashes)


def test_the_folders_hash_ignores_what_is_no_code(tmp_path, write):
    write(MODEL)
    before = hash_folder(tmp_path)
    write("data", "data.csv")
    assert hash_folder(tmp_path) == before


def test_two_files_are_not_one_file_of_both_contents(tmp_path):
    for folder, files in (("one", {"a.py": "x", "b.py": "y"}), ("two", {"a.py": "xb.py\x001\x00y"})):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    assert hash_folder(tmp_path / "one") != hash_folder(tmp_path / "two")


def functions(**changes):
    defaults = {
        "participants": lambda: ["a"],
        "data": lambda _: Examples(np.zeros(1), np.zeros(1)),
        "test_data": lambda: Examples(np.zeros(1), np.zeros(1)),
        "model": lambda: None,
    }
    return Code(**(defaults | changes))


def test_the_hash_of_functions_changes_with_their_source():
    assert functions().source_hash() == functions().source_hash()
    assert functions(model=lambda: 3).source_hash() != functions().source_hash()
    assert functions(loss=lambda *_: 3).source_hash() != functions().source_hash()


def test_functions_without_a_file_are_hashed_by_what_they_do():
    one, two = (eval(f"lambda: {number}") for number in (1, 2))
    assert functions(model=one).source_hash() != functions(model=two).source_hash()
    assert len(functions(model=functools.partial(print)).source_hash()) == 64


def test_each_study_gets_its_own_helper(tmp_path):
    answers = []
    for number in (1, 2):
        folder = tmp_path / f"study-{number}"
        folder.mkdir()
        (folder / "helper.py").write_text(f"NUMBER = {number}\n")
        functions = "".join(
            f"def {name}(*_): return NUMBER\n" for name in ("participants", "data", "test_data", "model")
        )
        (folder / "study.py").write_text(f"from helper import NUMBER\n{functions}")
        answers.append(load_code(folder / "study.py").participants())
    assert answers == [1, 2]


def test_code_in_a_package_of_the_study_is_hashed_and_runs_are_not(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "study.py").write_text("")
    (tmp_path / "package" / "part.py").write_text("X = 1\n")
    first = hash_folder(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "old.py").write_text("X = 3\n")
    assert hash_folder(tmp_path) == first
    (tmp_path / "package" / "part.py").write_text("X = 2\n")
    assert hash_folder(tmp_path) != first
