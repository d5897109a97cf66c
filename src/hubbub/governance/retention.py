"""Retention that happens: what is past its last day is deleted, and the log says so."""

from collections.abc import Callable

from hubbub.governance.acts import EraseDataset
from hubbub.governance.admission import DAY
from hubbub.governance.federation import Federation
from hubbub.governance.keys import Keys
from hubbub.governance.statement import propose

Delete = Callable[[str, str], bool]
"""Deletes the records of a dataset, given its id and its participant; says whether they are known to be gone now."""


def sweep(federation: Federation, keys: Keys, now: int, delete: Delete) -> list[str]:
    """Delete every dataset of the key's organisation that is past its last day.

    Who may say so is asked before; then the records go first: a crash in between leaves them due, and the next sweep
    says so again.

    Args:
        federation: The state as it is.
        keys: Of an owner, or of a node of the owner.
        now: Seconds since 1970.
        delete: Deletes one dataset's records.

    Returns:
        Envelopes that say what was erased, to be recorded; of what is not known to be gone none.

    Raises:
        RefusedError: This key may not say so; nothing deleted.
    """
    envelopes: list[str] = []
    for due in federation.due(now):
        if due.kind == "retention" and due.organisation == keys.card.organisation:
            act, until = EraseDataset(dataset=due.id), now + DAY
            envelope = propose(act, keys.identity, at=now, expires=until, federation=federation.id)
            federation.check(envelope, now)
            if delete(due.id, federation.datasets[due.id].registered.participant):
                envelopes.append(envelope)
    return envelopes
