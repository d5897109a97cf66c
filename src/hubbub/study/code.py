"""study.py: the user's functions, loaded from a file or given in a notebook."""

import gc
import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hubbub.errors import CodeError, HubbubError, typed
from hubbub.study.schema import Examples


@dataclass(frozen=True, kw_only=True)
class Code:
    """The functions of a study: a PyTorch `model`, or the ndarray hook `parameters` + `train`.

    Args:
        participants: Names of the participants (embedded engine; a real site is itself).
        data: Records of one participant.
        test_data: Records disjoint from all training records.
        model: A fresh `torch.nn.Module`.
        loss: Per-example loss of (outputs, y); default cross-entropy.
        parameters: Any framework: the initial parameters, `{name: ndarray}`.
        train: Any framework: `(parameters, examples, rng) -> parameters`, client-level privacy only.
        evaluate: Any framework: `(parameters, examples) -> {"accuracy": ..., "loss": ...}`.
    """

    participants: Callable[[], list[str]]
    data: Callable[[str], Examples]
    test_data: Callable[[], Examples]
    model: Callable[[], Any] | None = None
    loss: Callable[[Any, Any], Any] | None = None
    parameters: Callable[[], dict[str, Any]] | None = None
    train: Callable[[dict[str, Any], Examples, Any], dict[str, Any]] | None = None
    evaluate: Callable[[dict[str, Any], Examples], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        """Refuse a mixture of the two ways of saying what is trained."""
        hook = [name for name in ("parameters", "train", "evaluate") if getattr(self, name) is None]
        if self.model is None and hook:
            raise CodeError(
                f"study code, must define model(), or all of parameters(), train(), evaluate(), found no {hook[0]}()",
                hint="def model() -> torch.nn.Module: ...",
            )
        if self.model is not None and len(hook) != 3:  # noqa: PLR2004, the hook's three functions
            raise CodeError(
                "study code, must define model() or the ndarray hook, found both",
                hint="remove parameters(), train() and evaluate(), or remove model()",
            )

    def source_hash(self) -> str:
        """SHA-256 of the functions' sources, for code that has no file (notebooks)."""
        digest = hashlib.sha256()
        for field in fields(self):
            function = getattr(self, field.name)
            digest.update(f"{field.name}\0{_source(function)}\0".encode())
        return digest.hexdigest()


_NAMES = tuple(field.name for field in fields(Code))


def _source(function: object) -> str:
    if function is None:
        return ""
    try:
        return inspect.getsource(function)  # pyright: ignore[reportArgumentType]
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return f"{code.co_code.hex()} {code.co_consts!r}" if code else repr(type(function))


_NOT_CODE = {"runs", ".hubbub", ".venv", "__pycache__", "build"}
_STUDY = "hubbub_study_"
"""How the modules are called that study.py files become."""
RAISED = (Exception, SystemExit)
"""What code of a study may raise: an exit in it is none of hubbub, whose exit codes mean something; Ctrl-C is."""
_EXTRAS = {"torch": "torch", "sklearn": "examples"}
"""Modules that an extra of hubbub brings."""


def hash_folder(directory: Path) -> str:
    """SHA-256 over name and bytes of every Python file of the study, packages included, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        is_code = not _NOT_CODE & set(path.relative_to(directory).parts)
        if is_code and path.is_symlink() and path.is_dir():
            raise CodeError(
                f"{path}, must be a folder of the study, found a link to one elsewhere: its code would be in no hash",
                hint="copy it into the study",
            )
    for path in sorted(directory.rglob("*.py")):
        name = path.relative_to(directory)
        if not _NOT_CODE & set(name.parts):
            content = path.read_bytes()
            digest.update(f"{name.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def load_code(path: Path) -> Code:
    """Import a study.py and pick out the functions that a study has.

    Raises:
        CodeError: The file is missing, does not import, or lacks a function.
    """
    module = _import(path)
    functions = {name: getattr(module, name) for name in _NAMES if callable(getattr(module, name, None))}
    return pick_functions(functions, path.name)


def pick_functions(functions: Mapping[str, Callable[..., Any]], where: str) -> Code:
    """Make a `Code` of functions by name.

    Raises:
        CodeError: One is missing, or one is none that a study has.
    """
    for name in ("participants", "data", "test_data"):
        if name not in functions:
            raise CodeError(
                f"{where}: {name}(), must be defined, found nothing",
                hint="hubbub new DIR makes a study.py that has it",
            )
    for name in functions:
        if name not in _NAMES:
            raise CodeError(f"{where}: {name}(), is no function of a study", hint=f"known here: {', '.join(_NAMES)}")
    return Code(**functions)


def _import(path: Path) -> ModuleType:
    name = f"{_STUDY}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    if not path.is_file() or spec is None or spec.loader is None:
        raise CodeError(
            f"{path}, must be the study's code, found no such file",
            hint="hubbub new DIR makes a study that runs",
        )
    module = module_from_spec(spec)
    sys.modules[name] = module  # so that dataclasses and worker processes find what study.py defines
    try:
        with _uncollected(), _importing_from(path.parent.resolve()):
            spec.loader.exec_module(module)
    except HubbubError:
        raise
    except RAISED as error:
        raise CodeError(
            f"{path.name}{_line(error, path)}, must import, {type(error).__name__}: {error}",
            hint=_advice(error) or f"python {typed(path)} shows the whole traceback",
        ) from error
    return module


@contextmanager
def _uncollected() -> Generator[None]:
    """Look for no garbage among the objects that libraries define, a million: they stay, and it takes half a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # somebody else's would not be frozen any more
            gc.freeze()
            gc.unfreeze()  # among the oldest, without having looked
        if was_enabled:
            gc.enable()


@contextmanager
def _importing_from(folder: Path) -> Generator[None]:
    """Let the study import its helpers afresh, from the sources that were hashed; libraries come as they always do."""
    _SOURCES.folders.add(folder)
    if _SOURCES not in sys.meta_path:
        sys.meta_path.insert(0, _SOURCES)  # for good: a function of the study may import when it is called
    _forget_finders(folder)
    others = _take_out(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # study.py may have changed the path itself
            sys.path.remove(str(folder))
        _forget_finders(folder)
        _take_out(folder)
        sys.modules.update(others)


def _forget_finders(folder: Path) -> None:
    for entry in list(sys.path_importer_cache):
        if Path(entry).resolve().is_relative_to(folder):
            del sys.path_importer_cache[entry]


def _take_out(folder: Path) -> dict[str, Any]:
    """Remove a study's helpers from the modules: another study, or this one anew, has its own under these names."""

    @cache  # many modules share a directory
    def is_in(directory: str) -> bool:
        return _study_of(directory, {folder}) is not None

    taken: dict[str, Any] = {name: one for name, one in list(sys.modules.items()) if _is_helper(name, one, is_in)}
    for name in taken:
        del sys.modules[name]
    return taken


def _is_helper(name: str, module: object, is_in: Callable[[str], bool]) -> bool:
    known = getattr(module, "__dict__", {})  # a module that loads itself at first use is left asleep
    file = known.get("__file__")
    places = list(known.get("__path__") or ()) if file is None else [file.rpartition(os.sep)[0]]
    is_ours = name == "__main__" or name.startswith(_STUDY)
    return not is_ours and any(is_in(place) for place in places)


def _study_of(directory: str, folders: set[Path]) -> Path | None:
    """The study that a directory is part of, unless it is of an environment of libraries that lies in the study."""
    found = Path(os.path.realpath(directory))
    folder = next((parent for parent in (found, *found.parents) if parent in folders), None)
    environment = Path(os.path.realpath(sys.prefix)) if folder is not None else found
    is_library = folder is not None and environment.is_relative_to(folder) and found.is_relative_to(environment)
    return None if is_library else folder


class _Sources:
    """Finds modules where everybody finds them; of a study's folder none runs but from a source that was hashed."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What another finder found; from its source, if it lies in a study."""
        finders = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or not spec.has_location or spec.origin is None:
            return spec
        directory, _, file = spec.origin.rpartition(os.sep)
        folder = _study_of(directory, self.folders)
        if folder is None:
            return spec
        source = Path(os.path.realpath(directory), file.partition(".")[0] + ".py")
        if not source.is_file() or _NOT_CODE & set(source.relative_to(folder).parts):
            raise ModuleNotFoundError(
                f"No module named {fullname!r} among the sources of the study that were hashed", name=fullname
            )
        loader = _FromSource(fullname, str(source))
        places = spec.submodule_search_locations
        return spec_from_file_location(fullname, source, loader=loader, submodule_search_locations=places)


_SOURCES = _Sources()


class _FromSource(SourceFileLoader):
    """Runs the file that was hashed, never cached bytecode, which may be older or another's."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call one of the user's functions; an exception in it becomes one line that names the place.

    Raises:
        CodeError: The function raised. Its message is shown: call this at the site, or on test data.
    """
    shown = ", ".join(repr(argument) for argument in arguments if isinstance(argument, str))
    name = getattr(function, "__name__", type(function).__name__)
    with running(f"{name}({shown})"):
        return function(*arguments)


@contextmanager
def running(what: str, *, hint: str | None = None) -> Generator[None]:
    """Turn an exception of the user's code into one line that names the place.

    Args:
        what: What of the user's is running, such as `data('hospital-1')`.
        hint: What to do about it, where that is known better than by looking at the traceback.

    Raises:
        CodeError: Instead of any exception but ours.
    """
    try:
        yield
    except HubbubError:
        raise
    except RAISED as error:
        first = (str(error).splitlines() or [""])[0]
        raise CodeError(
            f"study code{_place(error)}: {what}, must not raise, {type(error).__name__}: {first}",
            hint=_advice(error) or hint or "the same call in a Python prompt shows the whole traceback",
        ) from error


def _advice(error: BaseException) -> str | None:
    """What to do about an exception whose traceback would tell nobody more."""
    if isinstance(error, SystemExit):
        return "take the exit out: whoever runs a study says when it ends"
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    if module in _EXTRAS:
        return f"pip install '.[{_EXTRAS[module]}]' in a checkout of hubbub"
    return f"install the library that has the module {module}, or put {module}.py beside study.py"


def _place(error: BaseException) -> str:
    """File and line of the last frame that is the user's, where there is one."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = Path(__file__).parents[1]
    theirs = [
        (path.name, line)
        for path, line in frames
        if ours not in path.parents and path.suffix == ".py" and not {"site-packages", "lib"} & set(path.parts)
    ]
    return f" at {theirs[-1][0]}:{theirs[-1][1]}" if theirs else ""


def _line(error: BaseException, path: Path) -> str:
    lines: list[int] = []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    return f":{lines[-1]}" if lines else ""
