"""The server names who lied, takes nothing that is not as committed, and still gets the exact sum."""

import msgspec
import numpy as np
import pytest

from hubbub.errors import RoundError
from hubbub.secagg import Client, shamir
from hubbub.secagg.closing import is_member
from hubbub.secagg.dealing import make_leaf
from hubbub.secagg.messages import Envelope, Header, Leaves, Unmask, read
from hubbub.secagg.parameters import blocks_of

replace = msgspec.structs.replace
LIAR = "site-01"


def resign(world, name, data, kind, **changes):
    envelope = read(Envelope, data)
    body = replace(read(kind, envelope.body), **changes).encode()
    signature = world.keys[name].sign(envelope.kind, envelope.session, body)
    return replace(envelope, body=body, signature=signature).encode()


def run_with(make_world, make_vectors, liar, n=5, **options):
    """A session in which one participant is of another type."""
    world = make_world(n, **options)
    world.client_type = liar
    world.clients[LIAR] = world.make_client(LIAR)
    vectors = make_vectors(world)
    return world, vectors


class DealsAWrongShare(Client):
    """Seals to one holder what it did not commit to."""

    def _make_leaves(self, held, places):
        leaves, wrong = list(super()._make_leaves(held, places)), make_leaf(held, 3, (bytes(33), bytes(33)))
        leaves[places.index(3)] = replace(leaves[places.index(3)], sealed=wrong.sealed)
        return tuple(leaves)


class DealsAnotherSecret(Client):
    """Commits to shares of something else than its b."""

    def _make_leaves(self, held, places):
        held.self_seed, kept = bytes(32), held.self_seed
        leaves = super()._make_leaves(held, places)
        held.self_seed = kept
        return leaves


class ReturnsAWrongShare(Client):
    def _unmask(self, held, message):
        held.shares[2] = (bytes(33), bytes(33))
        return super()._unmask(held, message)


class MasksWithAnotherSeed(Client):
    def _enter(self, session):
        held = super()._enter(session)
        held.mask_seed = bytes(32)
        return held


def test_a_bad_dealer_is_reported_and_the_sum_is_exact(make_world, make_vectors):
    world, vectors = run_with(make_world, make_vectors, DealsAWrongShare)
    total = world.run(vectors)
    np.testing.assert_array_equal(total, sum(vectors.values(), start=np.zeros(5, np.uint32)))
    assert world.server.reported == {LIAR: ("site-03",)}
    assert world.server.liars == {}
    assert world.refusals == {}


def test_a_dealer_of_another_secret_is_named_and_nothing_is_revealed(make_world, make_vectors):
    world, vectors = run_with(make_world, make_vectors, DealsAnotherSecret)
    with pytest.raises(
        RoundError, match="needs the secret that 'site-01' committed to, found shares of another; nothing"
    ):
        world.run(vectors)
    assert LIAR in world.server.liars


def test_a_dropout_who_dealt_another_mask_seed_is_named(make_world, make_vectors):
    world, vectors = run_with(make_world, make_vectors, MasksWithAnotherSeed)
    with pytest.raises(RoundError, match="needs the secret that 'site-01' committed to"):
        world.run(vectors, {LIAR: "masked"})


def test_a_secret_that_is_no_secret_names_its_dealer(make_world, make_vectors, monkeypatch):
    world, vectors = run_with(make_world, make_vectors, DealsAnotherSecret)

    def split(secret, holders, coefficients):
        return [(shamir.PRIME - 1).to_bytes(33) for _ in holders]

    messages = world.until("share", vectors)
    monkeypatch.setattr(shamir, "split", split)
    reply = world.deliver(LIAR, messages.pop(LIAR), vectors)
    monkeypatch.undo()
    world.ask(messages, vectors)
    world.server.receive(reply)
    for _ in range(3):
        world.ask(world.server.advance(), vectors)
    with pytest.raises(RoundError, match="needs the secret that 'site-01' committed to"):
        world.server.advance()


def test_a_holder_of_a_wrong_share_is_named_and_the_sum_is_exact(make_world, make_vectors):
    world, vectors = run_with(make_world, make_vectors, ReturnsAWrongShare)
    total = world.run(vectors)
    np.testing.assert_array_equal(total, sum(vectors.values(), start=np.zeros(5, np.uint32)))
    assert world.server.liars == {LIAR: "a wrong share of 'site-02'"}


def test_an_answer_is_taken_from_its_author_once_and_in_time(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    messages = world.server.open()
    replies = {name: world.deliver(name, data, vectors) for name, data in messages.items()}
    envelope = read(Envelope, replies[LIAR])
    for false, words in [
        (replace(envelope, signature=bytes(64)), "takes what 'site-01' signed, found another signature; nothing taken"),
        (replace(envelope, kind="share"), "awaits 'advert' of its own session, found 'share'"),
        (replace(envelope, session=bytes(32)), "awaits 'advert' of its own session"),
        (replace(envelope, attachment=b"more"), "takes no attachment"),
    ]:
        with pytest.raises(RoundError, match=words):
            world.server.receive(false.encode())
    for reply in replies.values():
        world.server.receive(reply)
    assert world.server.awaited == frozenset()
    second = world.make_client(LIAR)
    with pytest.raises(RoundError, match="takes one 'advert' of each participant, found another of 'site-01'"):
        world.server.receive(second.open(messages[LIAR], world.session()))
    assert world.server.liars == {LIAR: "two answers 'advert' in one session"}
    assert len(world.server.evidence[0].messages) == 2


def test_a_stranger_is_not_taken(make_world):
    from hubbub.secagg.messages import Advert, write

    world = make_world(3)
    stranger = write("advert", world.server._id, Advert("zoe", b"1" * 32, b"2" * 32, bytes(32)), key=world.key)
    with pytest.raises(RoundError, match="takes answers of those it asked, found one of 'zoe'"):
        world.server.receive(stranger)


def test_a_copied_key_is_not_taken_and_the_others_get_their_sum(make_world, make_vectors):
    from hubbub.secagg.messages import Advert

    world = make_world(4)
    vectors = make_vectors(world)
    messages = world.server.open()
    replies = {name: world.deliver(name, data, vectors) for name, data in messages.items()}
    copied = read(Advert, read(Envelope, replies["site-00"]).body).mask_key
    for name in ("site-00", "site-02", "site-03"):
        world.server.receive(replies[name])
    with pytest.raises(RoundError, match="takes two fresh keys of each participant"):
        world.server.receive(resign(world, LIAR, replies[LIAR], Advert, mask_key=copied))
    for _ in range(4):
        world.ask(world.server.advance(), vectors)
    world.server.advance()
    assert world.server.survivors == ("site-00", "site-02", "site-03")
    assert world.server.dropouts == ()
    np.testing.assert_array_equal(world.server.total, vectors["site-00"] + vectors["site-02"] + vectors["site-03"])


def test_dealings_are_over_these_adverts_with_the_leaves_they_commit_to(make_world, make_vectors):
    from hubbub.secagg.messages import Dealing

    world = make_world(3)
    vectors = make_vectors(world)
    messages = world.until("share", vectors)
    reply = world.clients[LIAR].receive(messages[LIAR])
    envelope = read(Envelope, reply)
    leaves = read(Leaves, envelope.attachment).leaves
    few = replace(envelope, attachment=Leaves(leaves[:2]).encode()).encode()
    other = replace(leaves[0], self_hash=bytes(32))
    for false, words in [
        (resign(world, LIAR, reply, Dealing, adverts=bytes(32)), "takes dealings over its adverts"),
        (resign(world, LIAR, reply, Dealing, edges=b"\x01"), "takes dealings over its adverts"),
        (few, "takes one sealed pair of shares for each other holder"),
        (
            replace(envelope, attachment=Leaves((other, *leaves[1:])).encode()).encode(),
            "that their dealer committed to",
        ),
    ]:
        with pytest.raises(RoundError, match=words):
            world.server.receive(false)
    world.server.receive(reply)


def test_vectors_are_on_this_graph_and_as_the_header_says(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    messages = world.until("masked", vectors)
    reply = world.deliver(LIAR, messages[LIAR], vectors)
    envelope = read(Envelope, reply)
    for false, words in [
        (resign(world, LIAR, reply, Header, edges=bytes(32)), "takes vectors masked on its own graph"),
        (replace(envelope, attachment=bytes(20)).encode(), "takes the vector that the header names"),
        (replace(envelope, attachment=bytes(16)).encode(), "takes the vector that the header names"),
    ]:
        with pytest.raises(RoundError, match=words):
            world.server.receive(false)
    world.server.receive(reply)


def test_answers_are_about_these_survivors(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    messages = world.until("unmask", vectors)
    reply = world.clients[LIAR].receive(messages[LIAR])
    shares = read(Unmask, read(Envelope, reply).body).shares
    for false, words in [
        (resign(world, LIAR, reply, Unmask, survivors=bytes(32)), "takes answers about its own survivors"),
        (resign(world, LIAR, reply, Unmask, shares=shares[:2]), "takes 3 shares of 'site-01', found 2"),
    ]:
        with pytest.raises(RoundError, match=words):
            world.server.receive(false)
    world.server.receive(reply)


def test_an_ended_session_neither_advances_nor_takes(make_world, make_vectors):
    world = make_world(3)
    world.run(make_vectors(world))
    with pytest.raises(RoundError, match="has ended, found stage 'done'"):
        world.server.advance()
    late = replace(read(Envelope, world.transcript[-1][1]), kind="done").encode()
    with pytest.raises(RoundError, match="awaits 'done' of its own session"):
        world.server.receive(late)
    world = make_world(3)
    world.until("masked", make_vectors(world))
    closed = world.server.close()
    assert world.clients[LIAR].receive(closed[LIAR]) is None
    assert world.clients[LIAR].closed.outcome == "aborted"
    with pytest.raises(RoundError, match="has ended, found stage 'failed'"):
        world.server.advance()


def test_one_member_without_enough_holders_is_left_out_of_a_sparse_graph(make_world, make_vectors):
    world = make_world(14, neighbours=8, threshold=7, n_min=10)
    vectors = make_vectors(world)
    graph_drops = {"site-03": "masked", "site-04": "masked", "site-05": "share"}
    try:
        total = world.run(vectors, graph_drops)
    except RoundError as error:
        assert "needs" in error.message  # noqa: PT017, which of the two depends on the edges drawn
        return
    expected = sum((vectors[name] for name in world.server.survivors), start=np.zeros(5, np.uint32))
    np.testing.assert_array_equal(total, expected)
    assert world.refusals == {}


def test_a_dropout_takes_its_block_along_and_the_others_get_their_sum(make_world, make_vectors):
    world = make_world(9, u_min=6)
    world.parameters = replace(world.parameters, block=3)
    world.clients = {name: world.make_client(name) for name in world.names}
    world.server = world.make_server(world.session())
    vectors = make_vectors(world)
    (gone,) = (block for block in blocks_of(world.names, 3) if LIAR in block)
    total = world.run(vectors, {LIAR: "masked"})
    assert world.server.survivors == tuple(name for name in world.names if name not in gone)
    np.testing.assert_array_equal(
        total, sum((vectors[name] for name in world.server.survivors), start=np.zeros(5, np.uint32))
    )
    assert all(client.parameters is world.parameters for client in world.clients.values())


def test_the_record_of_a_session_has_a_receipt_for_each_survivor_and_nobody_else(make_world, make_vectors):
    world = make_world(7)
    total = world.run(make_vectors(world), {LIAR: "masked", "site-02": "consent"})
    closing, receipts = world.server.record(total.tobytes())
    assert receipts.keys() == set(world.names) - {LIAR}
    for name, receipt in receipts.items():
        said = world.server._answers["consent"].get(name)
        assert is_member(receipt, closing.members.hex(), name, said.encode() if said else b"")
        assert not is_member(receipt, closing.members.hex(), LIAR, b"")
