"""hubbub: train one model on data that many holders keep to themselves, and prove what it cost them.

>>> import hubbub
>>> study = hubbub.load_study("examples/breast_cancer")   # doctest: +SKIP
>>> plan = hubbub.plan(study)                              # doctest: +SKIP
>>> result = hubbub.run(study)                             # doctest: +SKIP

What is exported here is imported when it is first used: ``import hubbub`` needs no torch and no second.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubbub.engine import RunResult, check, plan, release_run, resume, run, stop
    from hubbub.errors import HubbubError
    from hubbub.planning import Plan
    from hubbub.release.verify import verify_bundle
    from hubbub.study import Examples, Study, load_study

__all__ = [
    "Examples",
    "HubbubError",
    "Plan",
    "RunResult",
    "Study",
    "check",
    "load_study",
    "plan",
    "release_run",
    "resume",
    "run",
    "stop",
    "verify_bundle",
]

_ROOMS = {
    "Examples": "hubbub.study",
    "HubbubError": "hubbub.errors",
    "Plan": "hubbub.planning",
    "RunResult": "hubbub.engine",
    "Study": "hubbub.study",
    "check": "hubbub.engine",
    "load_study": "hubbub.study",
    "plan": "hubbub.engine",
    "release_run": "hubbub.engine",
    "resume": "hubbub.engine",
    "run": "hubbub.engine",
    "stop": "hubbub.engine",
    "verify_bundle": "hubbub.release.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'hubbub' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
