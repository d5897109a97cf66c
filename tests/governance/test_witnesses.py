"""Whose cosignatures a log needs follows from the cards in force, and from nothing else."""

import pytest

from hubbub.errors import InputError
from hubbub.governance import witness_policy
from hubbub.governance.acts import RevokeKey
from hubbub.governance.witnesses import WITNESSES, quorum_of
from hubbub.tlog import Signer
from hubbub.tlog.keys import ED25519
from hubbub.tlog.policy import NONE, quorum

LOG = Signer("hubbub.local/1", ED25519, bytes(32)).verifier


def test_a_sandbox_asks_nobody(world):
    policy = witness_policy(world.state, LOG)
    assert (policy.quorum, policy.witnesses, [party.key for party in policy.logs]) == (NONE, (), [LOG])


def test_witnesses_are_the_holders_that_watch_each_with_its_witness_key(founded):
    policy = witness_policy(founded.state, LOG)
    watching = {keys.card.name: keys.card.witness for keys in founded.keys.values() if keys.card.role in WITNESSES}
    assert {witness.name: witness.key.public.hex() for witness in policy.witnesses} == watching
    assert policy.groups[0].threshold == quorum(len(watching), 1)


def test_a_revoked_witness_counts_no_more(founded):
    founded.agree("operator", RevokeKey(key=founded.keys["auditor"].card.key_id, reason="left"), "officer")
    assert "auditor" not in {witness.name for witness in witness_policy(founded.state, LOG).witnesses}


def test_three_witnesses_can_spare_one_and_four_can_have_a_liar(founded):
    cards = [keys.card for keys in founded.keys.values() if keys.card.role in WITNESSES]
    assert [quorum_of(cards[:count], LOG).groups[0].threshold for count in (3, 4)] == [2, 3]


def test_the_order_of_cards_does_not_matter(founded):
    cards = founded.state.in_force()
    assert quorum_of(cards[::-1], LOG) == quorum_of(cards, LOG) == witness_policy(founded.state, LOG)


def test_a_federation_that_nobody_watches_has_no_policy(founded):
    with pytest.raises(InputError, match="must be found among the witnesses, found 0"):
        quorum_of([founded.keys["operator"].card], LOG)
