"""A folder with study.toml and study.py, or settings and functions from a notebook, as one `Study`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from hubbub.errors import StudyError, typed
from hubbub.study.code import Code, hash_folder, load_code, pick_functions
from hubbub.study.config import Settings, read_settings
from hubbub.study.lock import Lock, read_lock


@dataclass(frozen=True)
class Study:
    """Settings, code and lock of one study.

    Code is imported only when `code` is first asked for: planning never does.

    Args:
        settings: The checked study.toml.
        directory: Folder of the study, None in a notebook.
        functions: The user's functions where there is no folder.
        lock: The lock, None until `hubbub.check` has run.
    """

    settings: Settings
    directory: Path | None = None
    functions: Code | None = field(default=None, repr=False)
    lock: Lock | None = field(default=None, repr=False)

    @classmethod
    def from_functions(cls, settings: dict[str, Any], **functions: Callable[..., Any]) -> "Study":
        """Make a study in a notebook.

        Args:
            settings: The tables of a study.toml.
            functions: What a study.py defines: model, participants, data, test_data, ...

        Raises:
            StudyError: A setting is wrong.
            CodeError: A function is missing, or there is one that no study has.
        """
        return cls(settings=read_settings(settings), functions=pick_functions(functions, "study"))

    @cached_property
    def code(self) -> Code:
        """The user's functions, imported at first use.

        Raises:
            CodeError: study.py does not import, or lacks a function.
        """
        if self.functions is not None:
            return self.functions
        return load_code(self._folder / self.settings.study.code)

    @property
    def code_hash(self) -> str:
        """SHA-256 of the study's code."""
        return self.functions.source_hash() if self.functions is not None else hash_folder(self._folder)

    @property
    def schema_hash(self) -> str:
        """SHA-256 of the declared columns."""
        return hashlib.sha256(msgspec.json.encode(self.settings.data, order="deterministic")).hexdigest()

    @property
    def lock_path(self) -> Path | None:
        """Where study.lock stands, None in a notebook."""
        return None if self.directory is None else self.directory / "study.lock"

    @property
    def current_lock(self) -> Lock | None:
        """The lock, if it was made from the code and columns as they are now."""
        if self.lock is None or (self.lock.code_hash, self.lock.schema_hash) != (
            self.code_hash,
            self.schema_hash,
        ):
            return None
        return self.lock

    def with_lock(self, lock: Lock) -> "Study":
        """The same study with another lock; code that was imported stays imported."""
        study = replace(self, lock=lock)
        if "code" in self.__dict__:
            study.__dict__["code"] = self.__dict__["code"]
        return study

    @property
    def _folder(self) -> Path:
        return self.directory if self.directory is not None else Path()


def load_study(path: str | Path) -> Study:
    """Read a study from its folder, or from the path of its study.toml.

    Imports nothing of the user's and no torch.

    Raises:
        StudyError: A file is missing or wrong; one line says where, what rule, what was found.
    """
    path = Path(path)
    file = path / "study.toml" if path.is_dir() else path
    if file.suffix == ".py":
        raise StudyError(
            f"{path}, must be a study's folder or its study.toml, found Python code; nothing read",
            hint=f"name its folder: {typed(path.parent)}",
        )
    return Study(settings=read_settings(file), directory=file.parent, lock=read_lock(file.parent / "study.lock"))
