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

    The records go first: a crash in between leaves them due, and the next sweep says so again.

    Args:
        federation: The state as it is.
        keys: Of an owner, or of a node of the owner.
        now: Seconds since 1970.
        delete: Deletes one dataset's records.

    Returns:
        Envelopes that say what was erased, to be recorded; of what is not known to be gone none.
    """
    envelopes: list[str] = []
    for due in federation.due(now):
        is_ours = due.kind == "retention" and due.organisation == keys.card.organisation
        if is_ours and delete(due.id, federation.datasets[due.id].registered.participant):
            act, until = EraseDataset(dataset=due.id), now + DAY
            envelopes.append(propose(act, keys.identity, at=now, expires=until, federation=federation.id))
    return envelopes
