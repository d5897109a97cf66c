"""Where acts are recorded, as commands see it: the log of a home on this machine, or a coordinator's over the wire."""

from typing import Protocol, runtime_checkable

from hubbub.eventlog import EventLog
from hubbub.governance import Federation
from hubbub.governance.statement import read


@runtime_checkable
class Acts(Protocol):
    """A log that holds acts."""

    def state(self) -> Federation:
        """What follows from everything that is recorded."""
        ...

    def record(self, envelope: str, now: int) -> None:
        """Record a signed act, if it may be recorded now; durable when this returns.

        Raises:
            HubbubError: It may not, or nobody knows whether it was; the message says which.
        """
        ...

    def close(self) -> None:
        """Let go of the log."""
        ...


class LocalActs:
    """Acts in a log on this machine.

    Args:
        log: The log; closed with this.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def state(self) -> Federation:
        """What follows from everything that is recorded."""
        return self._log.fold(Federation)

    def record(self, envelope: str, now: int) -> None:
        """Record a signed act, decided on the newest state."""
        record_act(self._log, envelope, now)

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def record_act(log: EventLog, envelope: str, now: int) -> None:
    """Record a signed act, decided on the newest state; or that it was refused, by the key that it names.

    Raises:
        InputError, RefusedError: As `Federation.check`.
    """
    log.append(lambda: [log.fold(Federation).event(envelope, now)], asked=read(envelope).words)
