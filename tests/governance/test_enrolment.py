"""From a request to a membership: only for a card in force or asked for, and only for its key."""

import contextlib
import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import InputError, RefusedError
from hubbub.governance import witness_policy
from hubbub.governance.acts import EnrolKey, RevokeKey, RotateKey
from hubbub.governance.certificates import make_request, new_authority_key, read_authority, read_request, self_signed
from hubbub.governance.enrolment import (
    Membership,
    admission,
    check_address,
    client_credentials,
    read_membership,
    write_membership,
)
from hubbub.tlog import Signer
from hubbub.tlog.keys import ED25519
from hubbub.tlog.policy import quorum

LOG = Signer("hubbub.local/1", ED25519, bytes(32))
OTHER_LOG = Signer("hubbub.local/2", ED25519, bytes(32))
NOW = 1_790_000_000
DAY = 86_400
KEY = new_authority_key()
AUTHORITY = read_authority(KEY, self_signed(KEY, now=NOW))


def request(keys):
    return read_request(make_request(keys))


def admitted(keys, state):
    return admission(request(keys), state, LOG.verifier)


def refused(keys, state):
    with pytest.raises(RefusedError, match=r"; no certificate made\n") as caught:
        admitted(keys, state)
    return caught.value.message


def membership(keys, state, *, now=NOW, days=365, **changes):
    known = admitted(keys, state)
    fields = {
        "address": "hub.example.org:8443",
        "authority": AUTHORITY.certificate.decode(),
        "certificate": AUTHORITY.admit(request(keys), now=now, days=days).decode(),
        "log": str(LOG.verifier),
        "coordinator": "ab" * 32,
        "federation": known.federation,
        "policy": bytes(known.policy).decode(),
    }
    return Membership(**(fields | changes))


# --- whose request is admitted


def test_a_holder_in_force_is_admitted_to_its_federation_and_its_witnesses(founded):
    card, federation, policy = admitted(founded.keys["node-1"], founded.state)
    assert (card, federation) == (founded.keys["node-1"].card, founded.state.id)
    assert policy == witness_policy(founded.state, LOG.verifier)
    assert policy.groups[0].threshold == quorum(len(policy.witnesses), 1)


def test_a_founder_is_admitted_before_anybody_has_approved_to_the_federation_that_will_be(world):
    case = world.propose("operator", world.founding())
    before = admitted(world.keys["node-1"], world.state)
    for name in world.keys.keys() - {"operator"}:
        world.decide(name, case)
    assert before == admitted(world.keys["node-1"], world.state)
    assert before.federation == world.state.id == case


def test_nobody_is_admitted_before_a_founding_is_asked_for(world):
    found = "must be of a founder in one founding act, found 0 of them"
    assert found in refused(world.keys["node-1"], world.state)


def test_nobody_is_admitted_while_two_founding_acts_name_them(world):
    world.propose("operator", world.founding())
    second = world.propose("officer", world.founding(name="other"))
    assert "node-1, must be of a founder in one founding act, found 2 of them" in refused(
        world.keys["node-1"], world.state
    )
    world.decide("operator", second, "deny")
    assert admitted(world.keys["node-1"], world.state).federation != second


def test_a_request_for_anothers_name_is_refused(founded, made_keys):
    """The thief of a name makes keys of their own and asks as node-1."""
    thief = made_keys("node-1", "clinic-1", "node", version="x")
    assert refused(thief, founded.state) == (
        "request of node-1, must be for the transport key of a card in force or asked for, found another key; "
        "no certificate made"
    )


def test_a_holder_asking_under_anothers_name_is_refused(founded):
    """A holder asks with the key of its own card, and another holder's name."""
    stolen = request(founded.keys["node-2"])._replace(name="node-1")
    with pytest.raises(RefusedError, match=r"request of node-1, must be .* found the key of node-2; no certificate"):
        admission(stolen, founded.state, LOG.verifier)


def test_a_key_on_no_card_is_refused(founded, made_keys):
    assert "request of eve, must be for" in refused(made_keys("eve", "lab", "auditor"), founded.state)
    assert "found no card of that name" in refused(made_keys("eve", "lab", "auditor"), founded.state)


def test_whoever_is_asked_for_is_admitted_before_and_after_it_is_in_force(founded, made_keys):
    keys = made_keys("eve", "lab", "auditor")
    case = founded.propose("operator", EnrolKey(card=keys.card))
    assert admitted(keys, founded.state).card == keys.card
    founded.decide("officer", case)
    assert admitted(keys, founded.state).card == keys.card
    assert "eve" in {witness.name for witness in admitted(keys, founded.state).policy.witnesses}


def test_whoever_was_denied_is_refused(founded, made_keys):
    keys = made_keys("eve", "lab", "auditor")
    founded.decide("officer", founded.propose("operator", EnrolKey(card=keys.card)), "deny")
    assert "found no card of that name" in refused(keys, founded.state)


def test_a_rotated_key_is_admitted_before_it_is_in_force_and_the_old_one_no_longer_after(founded, made_keys):
    old, new = founded.keys["node-1"], made_keys("node-1", "clinic-1", "node", version="b")
    case = founded.propose("node-1", RotateKey(key=old.card.key_id, card=new.card))
    assert admitted(new, founded.state).card == new.card
    assert admitted(old, founded.state).card == old.card
    founded.decide("officer", case)
    assert admitted(new, founded.state).card == new.card
    assert "found a key that rotated" in refused(old, founded.state)


@pytest.mark.parametrize("reason", ["left", "stolen"])
def test_a_revoked_key_is_refused(founded, reason):
    keys = founded.keys["node-1"]
    founded.agree("operator", RevokeKey(key=keys.card.key_id, reason=reason), "officer")
    assert f"found a key that {reason}" in refused(keys, founded.state)


# --- who is at the other end


def test_a_pipe_is_its_holders_while_the_card_is_in_force(founded, made_keys):
    keys = founded.keys["node-1"]
    assert founded.state.holder_of_transport(keys.card.transport) == keys.card
    assert founded.state.holder_of_transport(made_keys("eve", "lab", "node").card.transport) is None


@pytest.mark.parametrize("reason", ["left", "stolen"])
def test_the_pipe_of_a_revoked_card_is_nobodys(founded, reason):
    """Its certificate is still good for a year: the roster ends it."""
    card = founded.keys["node-1"].card
    founded.agree("operator", RevokeKey(key=card.key_id, reason=reason), "officer")
    assert founded.state.holder_of_transport(card.transport) is None


def test_the_pipe_of_a_rotated_card_is_nobodys_and_that_of_the_new_one_its_holders(founded, made_keys):
    old, new = founded.keys["node-1"].card, made_keys("node-1", "clinic-1", "node", version="b").card
    case = founded.propose("node-1", RotateKey(key=old.key_id, card=new))
    assert founded.state.holder_of_transport(new.transport) is None
    founded.decide("officer", case)
    assert founded.state.holder_of_transport(old.transport) is None
    assert founded.state.holder_of_transport(new.transport) == new


def test_founders_may_connect_to_found_and_nobody_else_may(world, made_keys):
    card = world.keys["node-1"].card
    assert world.state.holder_of_transport(card.transport) is None
    case = world.propose("operator", world.founding())
    assert world.state.holder_of_transport(card.transport) == card
    assert world.state.holder_of_transport(made_keys("eve", "lab", "node").card.transport) is None
    world.decide("officer", case, "deny")
    assert world.state.holder_of_transport(card.transport) is None


def test_a_pipe_that_two_founders_claim_is_nobodys(world, made_keys):
    """A founder proposes a second founding in which another card shows the first one's transport key."""
    world.propose("operator", world.founding())
    victim, thief = world.keys["node-1"].card, made_keys("officer", "board", "privacy-officer")
    card = msgspec.structs.replace(thief.card, transport=victim.transport)
    card = msgspec.structs.replace(card, signature=thief.identity.sign(card.message).hex())
    cards = tuple(keys.card for name, keys in world.keys.items() if name not in {"officer", "node-1"})
    world.propose("operator", world.founding(name="other", cards=(*cards, card)))
    assert world.state.holder_of_transport(victim.transport) is None


@pytest.mark.parametrize("use", ["protocol", "witness", "transport"])
def test_two_founders_never_share_a_key(world, use):
    first, second = world.keys["officer"], world.keys["operator"].card
    card = msgspec.structs.replace(first.card, **{use: getattr(second, use)})
    card = msgspec.structs.replace(card, signature=first.identity.sign(card.message).hex())
    with pytest.raises(RefusedError, match="must name each holder and each key once, found one twice"):
        world.propose("operator", world.founding(cards=(card, second)))


def test_a_transport_key_is_on_one_card(founded, made_keys):
    """Whoever enrols with another's transport key would be taken for them."""
    thief = made_keys("eve", "lab", "auditor")
    card = msgspec.structs.replace(thief.card, transport=founded.keys["node-1"].card.transport)
    card = msgspec.structs.replace(card, signature=thief.identity.sign(card.message).hex())
    with pytest.raises(RefusedError, match="card of eve, must show keys never seen before"):
        founded.propose("operator", EnrolKey(card=card))


# --- memberships


def test_a_membership_is_read_as_it_was_written(founded, tmp_path):
    made = membership(founded.keys["node-1"], founded.state)
    write_membership(made, tmp_path / "node-1.membership")
    again = read_membership(tmp_path / "node-1.membership")
    assert again == made
    assert again.verifier == LOG.verifier
    assert again.witnesses == witness_policy(founded.state, LOG.verifier)
    assert b"PRIVATE" not in (tmp_path / "node-1.membership").read_bytes()


def test_a_holders_end_has_its_key_in_memory_and_shows_it_to_nobody(founded):
    keys = founded.keys["node-1"]
    ends = client_credentials(keys, membership(keys, founded.state), now=NOW)
    assert b"PRIVATE KEY" in ends.key
    assert "PRIVATE" not in repr(ends)


@pytest.mark.parametrize("other", ["node-2", "operator"])
def test_anothers_membership_is_refused(founded, other):
    """A membership file that somebody took is of no use without the key, and says so before anything is sent."""
    stolen = membership(founded.keys["node-1"], founded.state)
    with pytest.raises(InputError, match=f"membership of node-1, must be of {other} and its transport key"):
        client_credentials(founded.keys[other], stolen, now=NOW)


def test_a_membership_of_the_same_holders_older_key_is_refused(founded, made_keys):
    old = membership(founded.keys["node-1"], founded.state)
    with pytest.raises(
        InputError, match="membership of node-1, must be of node-1 and its transport key, found another"
    ):
        client_credentials(made_keys("node-1", "clinic-1", "node", version="b"), old, now=NOW)


def test_a_membership_that_is_over_is_refused(founded):
    keys = founded.keys["node-1"]
    made = membership(keys, founded.state, days=10)
    client_credentials(keys, made, now=NOW + 10 * DAY)
    with pytest.raises(InputError, match="found one that ended 2 days ago; nothing sent") as caught:
        client_credentials(keys, made, now=NOW + 12 * DAY + 1)
    assert caught.value.hint.startswith("hubbub enrol")


def other_certificate():
    key = new_authority_key()
    return self_signed(key, now=NOW).decode()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"address": "hub"}, "must be HOST:PORT"),
        ({"log": "x"}, "must be a verifier key"),
        ({"log": str(OTHER_LOG.verifier)}, "must have a policy of its own log, found another's"),
        ({"policy": "quorum none\n"}, "must have a policy of its own log"),
        ({"policy": "x"}, "a policy, must be lines of text"),
        ({"certificate": "x"}, "certificate, must be one that its authority has signed"),
        ({"authority": other_certificate()}, "certificate, must be one that its authority has signed"),
        ({"authority": ""}, "certificate, must be one that its authority has signed"),
        ({"federation": ""}, "must be a membership, Expected `str` matching regex"),
        ({"coordinator": "00"}, "must be a membership, Expected `str` matching regex"),
        ({"more": 1}, "must be a membership, Object contains unknown field `more`"),
    ],
)
def test_a_membership_that_does_not_add_up_is_refused(founded, tmp_path, changes, found):
    fields = msgspec.to_builtins(membership(founded.keys["node-1"], founded.state))
    path = tmp_path / "node-1.membership"
    path.write_bytes(msgspec.json.encode(fields | changes))
    with pytest.raises(InputError) as caught:
        read_membership(path)
    assert str(path) in caught.value.message
    assert found in caught.value.message


def test_a_missing_membership_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a membership, No such file or directory; nothing sent"):
        read_membership(tmp_path / "none")


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=100) | st.just(b"[" * 50_000), at=st.integers(0, 3000))
def test_any_bytes_in_a_membership_are_refused_or_make_one_that_adds_up(whole, folder, data, at):
    path = folder / "x"
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])
    with contextlib.suppress(InputError):
        read_membership(path).check()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder."""
    return tmp_path_factory.mktemp("memberships")


@pytest.fixture(scope="module")
def whole(make_world):
    """Give the bytes of a membership."""
    world = copy.copy(make_world()).found()
    return membership(world.keys["node-1"], world.state).encode()


# --- addresses


@pytest.mark.parametrize(
    ("address", "host"),
    [("localhost:1", "localhost"), ("192.0.2.7:8443", "192.0.2.7"), ("[2001:db8::7]:65535", "2001:db8::7")],
)
def test_an_address_names_its_host(address, host):
    assert check_address(address) == host


@pytest.mark.parametrize(
    "address", ["", "hub", "hub:", ":1", "hub:0", "hub:65536", "hub:1\n", "a b:1", "unix:/x:1", "2001:db8::7:1", "-a:1"]
)
def test_what_cannot_be_dialled_is_refused(address):
    with pytest.raises(InputError, match="must be HOST:PORT where the coordinator is dialled"):
        check_address(address)
