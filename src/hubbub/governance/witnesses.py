"""Whose cosignatures a federation's log needs.

*Trust:* a quorum of these holders; what they cosigned everybody can be held to.
"""

from collections.abc import Iterable

from hubbub.governance.federation import Federation
from hubbub.governance.keys import Card
from hubbub.tlog import Policy, Verifier
from hubbub.tlog.keys import COSIGNATURE
from hubbub.tlog.policy import Party, majority_policy

WITNESSES = ("node", "auditor", "privacy-officer")
"""Roles whose holders watch the log of their federation."""

FEW = 4
"""Witnesses from which on one of them may lie: fewer cannot spare an absent one then."""


def witness_policy(federation: Federation, log: Verifier) -> Policy:
    """Whose cosignatures a head of this log needs: a quorum of the holders that watch it; nobody's in a sandbox.

    Raises:
        InputError: The federation has no witness.
    """
    return Policy((Party(log),)) if federation.is_sandbox else quorum_of(federation.in_force(), log)


def quorum_of(cards: Iterable[Card], log: Verifier) -> Policy:
    """Whose cosignatures a head of this log needs, if these cards are in force; in the order of their keys.

    Raises:
        InputError: None of them is a witness's.
    """
    watching = {
        card.name: Verifier(card.name, COSIGNATURE, bytes.fromhex(card.witness))
        for card in sorted(cards, key=lambda card: card.key_id)
        if card.role in WITNESSES
    }
    return majority_policy(log, watching, int(len(watching) >= FEW))
