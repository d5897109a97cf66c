"""The real command of a coordinator or a site, killed from within where a test wants it: never by luck of timing.

    host_process.py CONTROL hubbub's arguments

CONTROL is a folder that a test writes `orders` into, and this writes `masked-NAME` and `killed-ROUND` into, before
what they tell of leaves the process, and `waiting-NAME` at a gate. A coordinator with
`HUBBUB_KILL="NTH SECONDS CHARGED"` in its environment kills itself so long after it came by the nth place at which it
asks, hears or writes, counted from when its run went on or, if CHARGED is 1, from when it charged an attempt.
"""

import functools
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from hubbub.cli import main
from hubbub.messages import Contribution, RoundContinued, RoundOpened, decode_message
from hubbub.secagg.messages import Envelope, read

CONTROL = Path(sys.argv[1] if __name__ == "__main__" else ".")
LONGEST = 50.0
"""Seconds at a gate that nobody opens."""


def note(name, *words):
    """Append a line that SIGKILL cannot take back."""
    with (CONTROL / name).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_at(gate):
    end = time.monotonic() + LONGEST
    while not gate.exists() and time.monotonic() < end:
        time.sleep(0.02)


def answering(answer, stages, host, data):
    """As `Host.answer`; in rounds that the orders name it waits at a gate, or dies once it has made its answer."""
    message = decode_message(data)
    if not isinstance(message, RoundOpened | RoundContinued):
        return answer(host, data)
    orders = json.loads((CONTROL / "orders").read_text())
    at = (message.run, message.round_number, message.attempt)
    stage, number = stages[at], str(message.round_number)
    stages[at] += 1
    dies = orders["kills"].get(number, ["", 0])
    if stage == orders["gates"].get(number) and host.name != dies[0]:
        note(f"waiting-{host.name}", *at)
        wait_at(CONTROL / f"gate-{number}")
    reply = answer(host, data)
    said = decode_message(reply) if reply else None
    if isinstance(said, Contribution):
        if read(Envelope, said.payload).kind == "masked":
            note(f"masked-{host.name}", *at)
        killed = CONTROL / f"killed-{number}"
        if dies == [host.name, stage] and not killed.exists():
            killed.touch()
            die()
    return reply


def observe_site():
    """Have messages of rounds pass by `answering`."""
    from hubbub.participant.host import Host

    answer, stages = Host.answer, Counter()
    Host.answer = lambda host, data: answering(answer, stages, host, data)


def observe_coordinator(nth, seconds, charged):
    """Have the process killed at a place that its run comes by."""
    from hubbub.accounting.ledger import Ledger
    from hubbub.engine.away import SitesAway
    from hubbub.engine.direct import DirectServer
    from hubbub.engine.folder import RunFolder
    from hubbub.eventlog import EventLog

    running, places = threading.Event(), itertools.count(1)

    def passed():
        if running.is_set() and next(places) == nth:
            threading.Timer(seconds, die).start()

    def around(function):
        @functools.wraps(function)
        def counted(*args, **options):
            passed()
            result = function(*args, **options)
            passed()
            return result

        return counted

    beginning, name = (Ledger, "charge") if charged else (SitesAway, "begin")
    begin, ask = getattr(beginning, name), DirectServer.ask

    def begun(*args):
        running.set()
        return begin(*args)

    def asking(*args, **options):
        passed()
        for reply in ask(*args, **options):
            passed()
            yield reply

    setattr(beginning, name, begun)
    DirectServer.ask = asking
    for kind, function in (
        (SitesAway, "_note_session"),
        (Ledger, "charge"),
        (Ledger, "settle"),
        (EventLog, "note"),
        (EventLog, "append"),
        (EventLog, "flush"),
        (RunFolder, "write"),
        (RunFolder, "write_snapshot"),
    ):
        setattr(kind, function, around(getattr(kind, function)))


if __name__ == "__main__":
    if sys.argv[2] == "join":
        observe_site()
    elif "HUBBUB_KILL" in os.environ:
        nth, seconds, charged = os.environ["HUBBUB_KILL"].split()
        observe_coordinator(int(nth), float(seconds), charged == "1")
    sys.exit(main(sys.argv[2:]))
