"""The record of a session: its members find themselves in it, and a curious reader finds nobody.

The reader knows more than any reader could: the roster, every long-term key, every vector, A, E and hU, so all
consents too. It lacks what was drawn: rho and the leaves' salts. It tries every set of members, with every salt, order
and padding that a careless coordinator might use. `CARELESS` are such coordinators: each is found out.
"""

import contextlib
import functools
import itertools

import msgspec
import numpy as np
import pytest
import simulator
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import InputError
from hubbub.secagg import SigningKey, closing
from hubbub.secagg import agreement as agreed
from hubbub.secagg.closing import Receipt, close_session, is_member
from hubbub.secagg.keys import digest, sha256
from hubbub.secagg.messages import Consent, Signed, read

named = simulator.named
NAMES = tuple(f"site-{number}" for number in range(6))
KEYS = {name: SigningKey(named(name)) for name in NAMES}
VECTORS = dict(zip(NAMES, np.random.default_rng(0).integers(0, 9, (6, 2), dtype=np.uint32), strict=True))
SETS = list(itertools.combinations(NAMES, 4))
SESSION, ADVERTS, EDGES = named("session"), named("A"), named("E")
SALTS = (b"", bytes(32), SESSION, ADVERTS)


def drawing(seed):
    return np.random.default_rng(seed).bytes


def graph_hash(members, salt):
    """hU, as both halves compute it."""
    bitmap = agreed.pack_bits(np.isin(np.array(NAMES), members))
    return agreed.survivors_digest(SESSION, ADVERTS, EDGES, bitmap, salt)


@functools.cache
def consent(name, survivors):
    """What a participant signs, as it stands in its leaf."""
    body = Consent(name, survivors).encode()
    return Signed(body, KEYS[name].sign("consent", SESSION, body)).encode()


def consents(members, survivors):
    return {name: consent(name, survivors) for name in members}


def aggregate(members):
    return sum((VECTORS[name] for name in members), start=np.uint32(0)).astype("<u4").tobytes()


def close(members, draw, most=6):
    """A session's record and receipts, and hU."""
    salt = draw(32)
    survivors = graph_hash(members, salt)
    made, receipts = close_session(
        consents(members, survivors), salt=salt, adverts=ADVERTS, survivors=survivors, aggregate=aggregate(members),
        most=most, draw=draw,
    )  # fmt: skip
    return made, receipts, survivors


# --- adversary test 19 ---


def guesses(members, survivors, salt):
    """Everything that a record of these members would show if it had this salt, or none."""
    values = [graph_hash(members, salt), sha256(aggregate(members)), *(
        digest(kind, *salts, value)
        for kind, value in (("survivors", graph_hash(members, salt)), ("survivors", survivors),
                            ("aggregate", aggregate(members)))
        for salts in ((salt,), ())
    )]  # fmt: skip
    for said in (consents(members, survivors), dict.fromkeys(members, b"")):
        own = [digest("member", salt, name, what) for name, what in said.items()]
        values += [agreed.tree(leaves)[-1][0] for leaves in ([*own, *[salt] * 4], sorted([*own, *[salt] * 4]), own)]
    return set(values)


def curious_reader(made, survivors):
    """Sets of members that a record gives away; none if all look alike."""
    shown = {made.survivors, made.members, made.aggregate}
    tables = {members: set().union(*(guesses(members, survivors, salt) for salt in SALTS)) for members in SETS}
    every = set.intersection(*tables.values())  # what fits all tells nothing
    return [members for members, table in tables.items() if shown & (table - every)]


def hits(records=25):
    """How often the reader names the members, of whom there are 15 sets."""
    rng, found = np.random.default_rng(19), 0
    for number in range(records):
        members = SETS[rng.integers(len(SETS))]
        made, _, survivors = close(members, drawing(number))
        named_sets = curious_reader(made, survivors) or SETS
        found += named_sets[rng.integers(len(named_sets))] == members
    return found


def test_curious_reader_names_members_no_better_than_chance():
    assert hits() <= 7  # 25 guesses at 1 in 15: 8 or more with probability 0.0002


def bare(kind, _salt, value):
    return digest(kind, value)


CARELESS = {
    "a bare hash of the survivors": {
        (agreed, "survivors_digest"): lambda session, adverts, edges, members, _salt: digest(
            "U", session, adverts, edges, members, b""
        ),
        (closing, "_commit"): bare,
    },
    "a bare hash of the sum": {(closing, "_commit"): bare},
}


@pytest.mark.parametrize("careless", CARELESS)
def test_curious_reader_finds_the_members_where_a_salt_is_missing(monkeypatch, careless):
    for where, function in CARELESS[careless].items():
        monkeypatch.setattr(*where, function)
    assert hits() == 25


def test_curious_reader_finds_the_members_where_salts_are_no_secret():
    members = SETS[7]
    made, _, survivors = close(members, bytes)
    assert members in curious_reader(made, survivors)
    assert len(curious_reader(made, survivors)) == 1


def places(records):
    """How often the leaves of the first and the last of four members stand in each place."""
    found = [close(NAMES[2:], drawing(number))[1] for number in range(records)]
    return [np.bincount([receipts[name].place for receipts in found], minlength=8) for name in (NAMES[2], NAMES[5])]


def test_a_place_says_nothing_about_its_owner():
    for counts in places(200):
        assert 8 <= counts.min() <= counts.max() <= 45  # 25 expected


def test_in_the_order_of_names_a_place_says_whose_it_is(monkeypatch):
    monkeypatch.setattr(closing, "_arrange", list)
    assert [counts.argmax() for counts in places(5)] == [0, 3]


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_a_path_is_as_long_however_few_there_were(size):
    _, receipts, _ = close(NAMES[:size], drawing(0))
    assert {len(receipt.path) for receipt in receipts.values()} == {3}


def test_a_record_holds_hashes_only_and_another_one_each_time():
    one, other = (close(SETS[0], drawing(seed))[0] for seed in (1, 2))
    assert [len(value) for value in msgspec.structs.astuple(one)] == [32] * 4
    assert one.adverts == other.adverts
    assert len({one.survivors, one.members, one.aggregate, other.survivors, other.members, other.aggregate}) == 6


# --- receipts ---


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 99))
def test_each_member_finds_itself_and_nobody_else(size, more, seed):
    names = [f"site-{number}" for number in range(size)]
    said = {name: name.encode() for name in names}
    made, receipts = close_session(
        said, salt=bytes(32), adverts=b"", survivors=b"", aggregate=b"", most=size + more, draw=drawing(seed)
    )
    members = made.members.hex()
    assert all(is_member(receipts[name], members, name, said[name]) for name in names)
    assert not is_member(receipts[names[0]], members, "stranger", said[names[0]])
    assert not is_member(receipts[names[0]], members, names[0], b"another consent")
    assert all(read(Receipt, receipt.encode()) == receipt for receipt in receipts.values())


def test_a_consent_that_did_not_arrive_leaves_its_member_among_the_others():
    made, receipts = close_session(
        {"a": b"", "b": b"said"}, salt=bytes(32), adverts=b"", survivors=b"", aggregate=b"", most=4
    )
    assert is_member(receipts["a"], made.members.hex(), "a", b"what it said")
    assert not is_member(receipts["b"], made.members.hex(), "b", b"what it did not say")


def test_a_changed_receipt_leads_elsewhere():
    made, receipts, survivors = close(SETS[0], drawing(3))
    name = SETS[0][0]
    own, said = receipts[name], consent(name, survivors)
    assert is_member(own, made.members.hex(), name, said)
    replace = msgspec.structs.replace
    for changed in (
        replace(own, salt=bytes(32)),
        replace(own, place=own.place ^ 1),
        replace(own, place=own.place + 8),
        replace(own, place=2**64 - 1),
        replace(own, path=own.path[:-1]),
        replace(own, path=(*own.path, bytes(32))),
    ):
        assert not is_member(changed, made.members.hex(), name, said)


@given(st.binary(max_size=120))
def test_bytes_that_are_no_receipt_are_refused(data):
    with contextlib.suppress(InputError):
        assert read(Receipt, data).encode() == data


def test_members_of_a_real_session_find_themselves_and_dropouts_do_not():
    world = simulator.World(5)
    total = world.play(gone={"site-04": "masked"})
    server, shown = world.server, {}
    survivors = server.survivors
    for name in survivors:
        shown[name] = server._answers["consent"][name].encode()
    hashes = {name: read(Consent, server._answers["consent"][name].body).survivors for name in survivors}
    (agreed_hash,) = set(hashes.values())
    made, receipts = close_session(
        shown, salt=named("rho"), adverts=server._adverts_hash, survivors=agreed_hash, aggregate=total.tobytes(), most=5
    )
    assert set(receipts) == set(world.names) - {"site-04"}
    assert all(is_member(receipts[name], made.members.hex(), name, shown[name]) for name in survivors)
    assert made.survivors == digest("survivors", named("rho"), agreed_hash)
    assert made.aggregate == digest("aggregate", named("rho"), total.tobytes())
