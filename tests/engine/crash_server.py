"""Runs the command line in forked children, and kills them where it is told; `test_crashes.py` starts it.

One request a line on standard input, one answer a line on standard output, as JSON. A child is killed after some
seconds, or at a *place*: before or after the n-th time that code which decides, writes or sends calls something.
What a child saw happen stands in files that are only appended to, one write a line, so a kill loses no line:

    sent    "participant round attempt", before a vector that was made is handed on
    acked   the log's size, after each append that returned
    heads   each signed head
    noise   a hash of each noise that was added
"""

import contextlib
import hashlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter
from functools import cache
from pathlib import Path

ROOMS = ("engine", "eventlog", "ledger", "tlog", "participant", "coordinator", "lock")
"""Modules and packages whose calls are places."""


class Notes:
    """What one child saw; kept by the operating system, whatever becomes of the child."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def write(self, name, line):
        file = os.open(self.folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{line}\n".encode())
        os.close(file)


def observe(notes):
    """Note what leaves participants, what is acknowledged, what is signed and which noise is drawn."""
    from hubbub.engine import running
    from hubbub.mechanism import Mechanism
    from hubbub.participant.records import Records
    from hubbub.tlog import Store

    append, sign, noised = Store.append, running.sign_checkpoint, Mechanism.noised
    of_update, of_gradients = Records.vector_of, Records.vector_of_gradients

    def noting_vector_of(self, update, work):
        vector = of_update(self, update, work)
        notes.write("sent", f"{self.name} {work.round_number} {work.attempt}")
        return vector

    def noting_vector_of_gradients(self, work, learner):
        vector = of_gradients(self, work, learner)
        notes.write("sent", f"{self.name} {work.round_number} {work.attempt}")
        return vector

    def noting_append(self, decide):
        indexes = append(self, decide)
        notes.write("acked", indexes.stop)
        return indexes

    def noting_sign(store, key):
        note = sign(store, key)
        notes.write("heads", json.dumps(bytes(note).decode()))
        return note

    def noting_noised(self, values, randomness):
        result = noised(self, values, randomness)
        if self.sigma:
            notes.write("noise", hashlib.sha256((result - values).tobytes()).hexdigest())
        return result

    Records.vector_of, Records.vector_of_gradients = noting_vector_of, noting_vector_of_gradients
    Store.append, Mechanism.noised = noting_append, noting_noised
    running.sign_checkpoint = noting_sign


def charge_late():
    """Break the engine: the charge is written after the replies were handed over."""
    from hubbub.engine.embedded import SitesHere
    from hubbub.engine.running import Running

    charge, carry, late = Running.charge, SitesHere._carry, []

    def carry_first(self, *arguments):
        carry(self, *arguments)
        while late:
            charge(*late.pop())

    Running.charge = lambda *arguments: late.append(arguments)
    SitesHere._carry = carry_first


def charge_in_memory():
    """Break the ledger: the charge is noted, and written with whatever is written next."""
    from hubbub.accounting.ledger import Ledger
    from hubbub.events import BudgetCharged

    def charge(self, run, round_number, attempt):
        self.log.note(BudgetCharged(run=run, round_number=round_number, attempt=attempt))

    def settle_after(self, run):
        self.log.flush()  # or the ledger itself would find a run settled for less than it was charged
        return settle(self, run)

    settle = Ledger.settle
    Ledger.charge, Ledger.settle = charge, settle_after


MUTANTS = {"late": charge_late, "in memory": charge_in_memory}


@cache
def is_ours(code):
    parts = code.co_filename.removesuffix(".py").split("/")
    return "hubbub" in parts and any(room in parts for room in ROOMS)


def place_of(frame, event, argument):
    """Name a call by its caller, its callee and whether it begins or ends; None in code that is not ours."""
    caller = frame if event.startswith("c_") else frame.f_back
    if caller is None or not (is_ours(caller.f_code) or (caller.f_back and is_ours(caller.f_back.f_code))):
        return None
    callee = argument.__qualname__ if event.startswith("c_") else frame.f_code.co_qualname
    return f"{caller.f_code.co_qualname} > {callee} {'after' if event.endswith('return') else 'before'}"


def kill_at(place, nth):
    seen = 0

    def look(frame, event, argument):
        nonlocal seen
        if place_of(frame, event, argument) == place:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)


def run_command(arguments):
    from hubbub.cli import main

    try:
        return main(arguments)
    except BaseException:  # noqa: BLE001, a child must not go on into its parent's loop
        traceback.print_exc()
        return 70


def be_child(request):
    """Run one command as a process of its own would; never returns."""
    output = os.open(request["notes"] + "/output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    observe(Notes(request["notes"]))
    if request.get("mutant"):
        MUTANTS[request["mutant"]]()
    places = Counter()
    if request.get("place"):
        kill_at(request["place"], request["nth"])
    elif request.get("trace"):
        sys.setprofile(lambda *call: places.update([place_of(*call)]))
    code = run_command(request["arguments"])
    sys.setprofile(None)
    if request.get("trace"):
        del places[None]
        Path(request["trace"]).write_text(json.dumps(places))
    sys.stdout.flush()
    os._exit(code)


def serve_one(request):
    """Fork, wait, kill when it is time; returns the exit code (-9 for a kill) and the seconds it took."""
    started = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        be_child(request)
    os.close(writer)
    if not select.select([reader], [], [], request.get("seconds"))[0]:  # the pipe closes when the child ends
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started}


def warm(arguments, modules):
    """Import what every child then has, and fill its caches."""
    for module in modules:
        importlib.import_module(module)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return {"code": run_command(arguments)}


def serve():
    for line in sys.stdin:
        request = json.loads(line)
        answer = warm(request["arguments"], request["modules"]) if request.get("is_warming") else serve_one(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
