"""Everything hubbub can refuse, in one tree.

    HubbubError                what a person sees: one line and a hint
    ├── InputError             exit code 2: a file, key or value is wrong
    │   ├── StudyError         study.toml or its lock
    │   ├── CodeError          study.py, or what it returned
    │   ├── PlanError          settings that are each right and impossible together
    │   └── HostError          another host is not there, or does not answer
    ├── RefusedError           exit code 1: policy or budget says no
    │   ├── BudgetError        a dataset's ledger
    │   ├── RoundError         a round that must not be completed
    │   └── WaitingError       a run that goes on when somebody has approved
    ├── VerificationError      exit code 3: evidence does not add up
    └── StoppedError           exit code 130: somebody pressed Ctrl-C
        └── WorkerError        a process that trains ended by itself

A message reads ``WHERE, RULE, FOUND``: no capital, no full stop, values as `repr`, never raw data.
A refusal also says what was *not* done. A hint is something that can be typed.

*Trust:* messages are public; nothing computed from raw data may stand in one.
"""

import shlex

AT = "--at MEMBERSHIP --key FILE"
"""In a hint of a coordinator's: the command line writes there what was typed."""


def typed(*words: object) -> str:
    """Words for a hint, as a shell reads them: a folder may be called anything."""
    return shlex.join(map(str, words))


class HubbubError(Exception):
    """A refusal with one line for a person and a hint of what to type next.

    Args:
        message: ``WHERE, RULE, FOUND``.
        hint: What to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.add_note(f"hint: {hint}")


class InputError(HubbubError):
    """A file, key, value or argument is wrong."""


class StudyError(InputError):
    """study.toml or study.lock is wrong."""


class CodeError(InputError):
    """study.py is wrong, or returned something that the study did not declare."""


class PlanError(InputError):
    """Each setting is right, but no plan satisfies them together."""


class HostError(InputError):
    """Another host is not there, or does not answer; what it did meanwhile is not known."""


class RefusedError(HubbubError):
    """Policy or budget says no; the message says what was not done."""

    exit_code = 1


class BudgetError(RefusedError):
    """A dataset's ledger does not admit this."""


class RoundError(RefusedError):
    """A round must not be completed, or a message must not be answered."""


class WaitingError(RefusedError):
    """A run must wait for somebody; it stays open."""


class VerificationError(HubbubError):
    """Evidence does not add up."""

    exit_code = 3


class StoppedError(HubbubError):
    """Somebody stopped this; the message says what stays charged and reserved."""

    exit_code = 130


class WorkerError(StoppedError):
    """A process that trains ended by itself; the run stays open, as after Ctrl-C."""
