"""The command line: one command = one call into the library + one print.

Exit codes everywhere: 0 done, 1 refused by policy or budget, 2 wrong input, 3 verification failed.

    arguments.py   every command, option and help text
    commands.py    new, check, plan, run, resume, stop, release, verify, registry
    checks.py      what a verification found
    plain.py       text by strangers, as no terminal obeys it; where tables go; JSON
    home.py        which home a command on this machine is about
    budget.py      budget show, grant, forecast, history
    log.py         log show, prove, export, witness, verify
    governance.py  keys, federation, dataset, propose, approve, incident; governance_arguments.py, governance_lists.py
    acts.py        which log they are about: a home's, or a coordinator's over the wire
    enrolment.py   enrol, admit
    processes.py   coordinate, join, recover
    deployment.py  submit, status, fetch; resume, stop, release with --at; deployment_arguments.py, show_deployment.py
    show.py        tables and the progress bar
    template/      what `hubbub new` writes

*Trust:* none beyond the library's; it decides nothing.
"""

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from hubbub.errors import AT, HubbubError, InputError, typed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line and a hint on standard error.

    Args:
        arguments: Without the program's name; default `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    from hubbub.cli.arguments import parse

    options = Namespace()
    try:
        command, options = parse(list(sys.argv[1:] if arguments is None else arguments))
        command(options)
        sys.stdout.flush()
    except HubbubError as error:
        return _told(error, options)
    except KeyboardInterrupt:
        print("hubbub: error: stopped by Ctrl-C; what was charged stays charged", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.strerror is None:  # no word of the system's, but of a library's
            raise
        return _told(_of_the_system(error, error.strerror), options)
    return 0


def _told(error: HubbubError, options: Namespace) -> int:
    from hubbub.cli.plain import plain

    hint = error.hint
    if getattr(options, "at", None) and getattr(options, "key", None):
        hint = hint.replace(AT, typed("--at", options.at, "--key", options.key))
    print(f"hubbub: error: {plain(error.message)}\nhubbub: hint: {plain(hint)}", file=sys.stderr)
    return error.exit_code


def _of_the_system(error: OSError, found: str) -> InputError:
    """What no room has foreseen: a file, a disk or a port of whoever typed the command."""
    if error.filename is None:
        return InputError(
            f"this machine, must allow what was asked, found {found!r}; nothing more was done",
            hint="df -h . shows whether a disk is full, ulimit -a what is not allowed",
        )
    name = str(error.filename)
    there = name if os.path.lexists(name) else str(Path(name).parent)
    return InputError(
        f"{name}, must be a file or folder that can be used, found {found!r}; nothing more was done",
        hint="name another" if error.errno == errno.ENAMETOOLONG else f"ls -ld {typed(there)}",
    )
