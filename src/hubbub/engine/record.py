"""What one run records: into the log, into the run directory, and to whoever watches."""

from collections.abc import Callable, Sequence
from typing import BinaryIO

import msgspec

from hubbub.engine.folder import RunFolder
from hubbub.eventlog import EventLog
from hubbub.events import AnyEvent, BudgetCharged, Evaluated, Event, encode_event
from hubbub.planning import Plan

Watch = Callable[[Event, Plan], None]


def events_of(log: EventLog, run: str) -> list[AnyEvent]:
    """The events of one run, in order."""
    return [event for event in log.events() if getattr(event, "run", None) == run]


class Record:
    """The events of one run, as they happen.

    Args:
        folder: Where events.jsonl and metrics.jsonl are written, anew.
        plan: The run's plan.
        log: Where events are kept.
        watch: Called with each event and the plan.
        before: Events that are in the log already, from before an interruption.
    """

    def __init__(
        self, folder: RunFolder, plan: Plan, log: EventLog, *, watch: Watch | None, before: Sequence[AnyEvent] = ()
    ) -> None:
        self.events: list[AnyEvent] = []
        self._plan = plan
        self._log = log
        self._watch = watch
        self._lines: BinaryIO = (folder.path / "events.jsonl").open("wb", buffering=0)
        self._metrics: BinaryIO = (folder.path / "metrics.jsonl").open("wb", buffering=0)
        self._attempts = 0
        self.charged = (0, 0)
        """The last round and attempt that were charged."""
        self.measured = 0
        """The last round after which the model was measured."""
        self.copy(*before)

    def append(self, *events: AnyEvent) -> None:
        """Record events on which nothing was decided."""
        self._log.note(*events)
        self.copy(*events)

    def copy(self, *events: AnyEvent) -> None:
        """Copy events of this run that are in the log."""
        for event in events:
            self._lines.write(encode_event(event) + b"\n")
            self.events.append(event)
            if isinstance(event, BudgetCharged):
                self._attempts += 1
                self.charged = (event.round_number, event.attempt)
            if isinstance(event, Evaluated):
                epsilon = self._plan.epsilon_after(self._attempts)
                line = {"round": event.round_number, "epsilon": epsilon, **event.metrics}
                self.measured = event.round_number
                self._metrics.write(msgspec.json.encode(line) + b"\n")
            if self._watch is not None:
                self._watch(event, self._plan)

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._metrics.close()
