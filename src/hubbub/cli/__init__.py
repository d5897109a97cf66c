"""The command line: one command = one call into the library + one print.

Exit codes everywhere: 0 done, 1 refused by policy or budget, 2 wrong input, 3 verification failed.

    arguments.py   every command, option and help text
    commands.py    check, plan, run, new
    checks.py      what a verification found
    plain.py       text by strangers, as no terminal obeys it; where tables go; JSON
    budget.py      budget show, grant, history
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

import os
import sys
from collections.abc import Sequence

from hubbub.errors import HubbubError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line and a hint on standard error.

    Args:
        arguments: Without the program's name; default `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    from hubbub.cli.arguments import parse

    try:
        command, options = parse(list(sys.argv[1:] if arguments is None else arguments))
        command(options)
    except HubbubError as error:
        from hubbub.cli.plain import plain

        print(f"hubbub: error: {plain(error.message)}\nhubbub: hint: {plain(error.hint)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hubbub: error: stopped by Ctrl-C; what was charged stays charged", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, say
        from hubbub.cli.plain import plain

        print(
            f"hubbub: error: {plain(str(error))}; what was charged stays charged\n"
            "hubbub: hint: look at the disk; hubbub resume RUN goes on with a run that was interrupted",
            file=sys.stderr,
        )
        return 2
    return 0
