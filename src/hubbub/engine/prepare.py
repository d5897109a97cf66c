"""Load and check a study's code and data, before anything trains."""

import re
from dataclasses import dataclass
from typing import Any

from hubbub.errors import CodeError
from hubbub.governance.keys import NAME, NAMED
from hubbub.local.learner import Learner
from hubbub.local.load import make_learner
from hubbub.planning import Plan, make_plan
from hubbub.study import Examples, Lock, Slots, Study, conform
from hubbub.study.code import call
from hubbub.study.lock import write_lock

_NAME = re.compile(NAME)


@dataclass(frozen=True)
class Prepared:
    """A study whose code and data were loaded and found as declared. Holds raw records: stays inside."""

    study: Study
    learner: Learner
    slots: dict[str, Slots]
    test: Slots
    is_test_public: bool


def prepare(study: Study) -> Prepared:
    """Import the study's code, load every participant's records, check them, and renew the lock.

    Raises:
        CodeError: study.py does not import, lacks a function, mixes examples, or returns records of
            another dtype or shape than declared; nothing trained.
    """
    columns, code_hash = study.settings.data, study.code_hash
    names = call(study.code.participants)
    _check_names(names)
    slots = {name: conform(call(study.code.data, name), columns, f"data({name!r})") for name in names}
    test, is_public = _test_records(study)
    sizes = {name: len(part) for name, part in slots.items()}
    learner = make_learner(study, sizes)
    if study.code_hash != code_hash:
        raise CodeError(
            "study code, must stay as it is while it is loaded, found that it changed itself; nothing trained",
            hint="no file of a study writes into the study",
        )
    lock = Lock(
        format=1,
        code_hash=code_hash,
        schema_hash=study.schema_hash,
        parameters=learner.dimension,
        slots=sizes,
    )
    if lock != study.lock and study.lock_path is not None:
        write_lock(study.lock_path, lock)
    return Prepared(study.with_lock(lock), learner, slots, test, is_public)


def prepare_away(study: Study) -> Prepared:
    """Import the code of a study whose records are elsewhere, with the lock that it is given.

    Raises:
        CodeError: As `prepare`; or the model has another size than the lock says.
    """
    (test, is_public), lock = _test_records(study), study.current_lock
    learner = make_learner(study, lock.slots if lock else {})
    if lock is None or lock.parameters != learner.dimension:
        raise CodeError(
            f"study.lock, must be of this code and a model of {learner.dimension} parameters, found another's; "
            "nothing trained, nothing spent",
            hint="hubbub propose study STUDY --at MEMBERSHIP makes it anew",
        )
    return Prepared(study, learner, {}, test, is_public)


def _test_records(study: Study) -> tuple[Slots, bool]:
    """What a model is measured on, and whether anybody may know it; metrics of no record would say nothing."""
    returned = call(study.code.test_data)
    test = conform(returned, study.settings.data, "test_data()")
    if not test.is_real.any():
        raise CodeError(
            f"test_data(), must hold a record that can be measured, found none in {len(test)} slots; nothing trained",
            hint="x must be finite, and y one of the declared classes",
        )
    return test, isinstance(returned, Examples) and returned.public


def check(study: Study) -> Study:
    """Check a study's file, code and data; nothing is trained. Writes study.lock.

    Returns:
        The study with a current lock, ready to be planned.

    Raises:
        StudyError, CodeError: With where, rule, found and a hint.
    """
    return prepare(study).study


def plan(study: Study) -> Plan:
    """Plan a study; where its lock is not current, check it first.

    Raises:
        StudyError, CodeError, PlanError: With where, rule, found and a hint.
    """
    return make_plan(study if study.current_lock is not None else check(study))


def _check_names(names: Any) -> None:
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) and _NAME.match(name) for name in names)
    if not is_list or not names or len(set(names)) != len(names):
        raise CodeError(
            f"participants(), must return distinct names, each {NAMED}, found {str(names)[:60]!r}",
            hint='return ["hospital-1", "hospital-2"]',
        )
