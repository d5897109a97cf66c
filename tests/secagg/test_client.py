"""A participant answers once, in order, after its charge; and refuses by name what an honest server never sends."""

import msgspec
import numpy as np
import pytest

from hubbub.errors import BudgetError, HubbubError, InputError, RoundError
from hubbub.secagg.messages import (
    Advert,
    Close,
    Consent,
    Dealing,
    Envelope,
    Header,
    Signed,
    read,
)

ME = "site-00"
replace = msgspec.structs.replace


def change_body(kind, **changes):
    """A signed body with other fields; the signature stays."""
    return lambda signed: replace(signed, body=replace(read(kind, signed.body), **changes).encode())


def at(index, change, field):
    """A message with one item of a list changed."""

    def changed(message):
        items = list(getattr(message, field))
        items[index] = change(items[index])
        return replace(message, **{field: tuple(items)})

    return changed


def without(index, field):
    return lambda message: replace(
        message, **{field: tuple(item for number, item in enumerate(getattr(message, field)) if number != index)}
    )


def twice(field):
    return lambda message: replace(message, **{field: (getattr(message, field)[0], *getattr(message, field))})


def tamper_leaf(**changes):
    return lambda item: replace(item, leaf=replace(item.leaf, **changes))


def unsign(signed):
    return Signed(signed.body, bytes(64))


LIES = {
    "advert in twice": ("share", twice("adverts"), "must get each advert once, sorted by name"),
    "adverts unsorted": ("share", lambda m: replace(m, adverts=m.adverts[::-1]), "each advert once, sorted by name"),
    "stranger": ("share", at(4, change_body(Advert, participant="zoe"), "adverts"), "adverts of its roster only"),
    "left out": ("share", without(0, "adverts"), "must find its own advert among all"),
    "own advert changed": ("share", at(0, unsign, "adverts"), "must find its own 'advert' as it sent it"),
    "advert forged": ("share", at(2, unsign, "adverts"), "'advert' of 'site-02' as 'site-02' signed it"),
    "too few adverts": ("share", lambda m: replace(m, adverts=m.adverts[:3]), "must be one of 4 to 5 adverts, found 3"),
    "dealing in twice": ("masked", twice("dealings"), "must get each dealing once"),
    "not among dealers": ("masked", without(0, "dealings"), "must find its own dealing among all"),
    "own dealing changed": ("masked", at(0, unsign, "dealings"), "must find its own 'share' as it sent it"),
    "dealing forged": ("masked", at(3, unsign, "dealings"), "'share' of 'site-03' as 'site-03' signed it"),
    "hidden dealers": ("masked", lambda m: replace(m, dealings=m.dealings[:3]), "must be one of 4 dealers, found 3"),
    "share kept back": ("masked", without(0, "delivered"), "must get the 4 shares dealt to it, found 3"),
    "share altered": (
        "masked",
        at(1, tamper_leaf(sealed=bytes(82)), "delivered"),
        "must get shares as 'site-02' committed to them",
    ),
    "path cut": ("masked", at(1, lambda item: replace(item, path=()), "delivered"), "as 'site-02' committed to them"),
    "survivor who did not deal": ("consent", lambda m: replace(m, survivors=b"\x3f"), "survivors among the dealers"),
    "dropped while here": ("consent", lambda m: replace(m, survivors=b"\x1e"), "among the survivors it unmasks"),
    "few survivors": ("consent", lambda m: replace(m, survivors=b"\x07"), "must be one of 4 survivors, found 3"),
    "header missing": ("consent", without(2, "headers"), "the header of each survivor it holds shares of"),
    "header forged": ("consent", at(2, unsign, "headers"), "'masked' of 'site-02' as 'site-02' signed it"),
    "header on other adverts": (
        "consent",
        at(2, change_body(Header, adverts=bytes(32)), "headers"),
        "must share adverts with every survivor, found others in the header of 'site-02'",
    ),
    "header on other dealers": (
        "consent",
        at(2, change_body(Header, edges=bytes(32)), "headers"),
        "must share dealers and edges with every survivor",
    ),
    "header of another length": (
        "consent",
        at(2, change_body(Header, dimension=4), "headers"),
        "must sum vectors of one length",
    ),
    "own header changed": ("consent", at(0, unsign, "headers"), "must find its own 'masked' as it sent it"),
    "consent in twice": ("unmask", twice("consents"), "counts consents of survivors, each once"),
    "consent of a stranger": (
        "unmask",
        at(1, change_body(Consent, participant="zoe"), "consents"),
        "counts consents of survivors",
    ),
    "too few consents": ("unmask", without(1, "consents"), "must get 4 consents, its own counted, found 3"),
    "consent to others": (
        "unmask",
        at(1, change_body(Consent, survivors=bytes(32)), "consents"),
        "must agree with all on the survivors, found others at 'site-01'",
    ),
    "consent forged": ("unmask", at(1, unsign, "consents"), "'consent' of 'site-01' as 'site-01' signed it"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_an_honest_server_never_sends_is_refused_and_kept(make_world, make_vectors, lie):
    stage, change, words = LIES[lie]
    world = make_world(5)
    messages = world.until(stage, make_vectors(world))
    client = world.clients[ME]
    false = world.lie(messages[ME], change)
    with pytest.raises(RoundError) as refused:
        client.receive(false)
    assert words in refused.value.message
    spent = "the attempt stays charged" if stage in ("consent", "unmask") else "no budget spent"
    assert spent in refused.value.message
    assert [evidence.messages for evidence in client.evidence] == [(false,)]
    assert client.stage is None
    with pytest.raises(RoundError, match="must be in the session it is asked about"):
        client.receive(messages[ME])


def test_a_body_that_is_no_message_ends_the_session_too(make_world, make_vectors):
    world = make_world(3)
    messages = world.until("share", make_vectors(world))
    false = world.lie(messages[ME], lambda _: Close("", b"", b""))
    with pytest.raises(InputError, match="secagg message, must have"):
        world.clients[ME].receive(false)
    assert world.clients[ME].stage is None


@pytest.mark.parametrize("field", ["cipher_key", "mask_key"])
def test_keys_are_fresh_canonical_and_of_large_order(make_world, make_vectors, field):
    for key, words in [
        (None, "must get each key once"),
        (b"\x09" + bytes(30) + b"\x80", "keys written in the one way, found another from 'site-01'"),
    ]:
        world = make_world(3)
        messages = world.until("share", make_vectors(world))
        client = world.clients[ME]
        mine = client._held.cipher.public

        def forge(signed, key=key or mine, world=world):
            body = replace(read(Advert, signed.body), **{field: key}).encode()
            return Signed(body, world.keys["site-01"].sign("advert", world.server._id, body))

        with pytest.raises(RoundError) as refused:
            client.receive(world.lie(messages[ME], at(1, forge, "adverts")))
        assert words in refused.value.message


def test_dealers_over_other_adverts_are_refused(make_world, make_vectors):
    world = make_world(3)
    messages = world.until("masked", make_vectors(world))

    def forge(signed):
        body = replace(read(Dealing, signed.body), adverts=bytes(32)).encode()
        return Signed(body, world.keys["site-01"].sign("share", world.server._id, body))

    with pytest.raises(RoundError, match="one list of adverts with all dealers, found another list at 'site-01'"):
        world.clients[ME].receive(world.lie(messages[ME], at(1, forge, "dealings")))


def test_a_dealer_with_another_number_of_holders_is_refused(make_world, make_vectors):
    world = make_world(14, neighbours=8, threshold=5, n_min=10)
    messages = world.until("masked", make_vectors(world))

    def forge(signed):
        body = replace(read(Dealing, signed.body), edges=b"\x01\x00").encode()
        return Signed(body, world.keys["site-01"].sign("share", world.server._id, body))

    with pytest.raises(RoundError, match="must get 8 other holders of each dealer, found another choice by 'site-01'"):
        world.clients[ME].receive(world.lie(messages[ME], at(1, forge, "dealings")))


def test_survivors_without_the_holders_of_one_of_them_are_refused(make_world, make_vectors):
    world = make_world(14, neighbours=8, threshold=8, n_min=10)
    messages = world.until("consent", make_vectors(world))
    graph = world.clients[ME]._held.graph
    others = [place for place in range(1, 14) if graph.holders[0, place]]
    members = np.ones(14, dtype=np.bool_)
    members[others[:2]] = False
    with pytest.raises(RoundError, match="must find 8 holders of each of the survivors among them, found 7 of"):
        world.clients[ME].receive(
            world.lie(messages[ME], lambda m: replace(m, survivors=np.packbits(members, bitorder="little").tobytes()))
        )


def test_too_few_organisations_are_refused(make_world, make_vectors):
    world = make_world(3, org_min=2, orgs=1)
    world.server._parameters = replace(world.parameters, org_min=1)
    with pytest.raises(RoundError, match="must be with 2 organisations, found 1"):
        world.clients[ME].receive(world.until("share", make_vectors(world))[ME])


# --- one answer, many deliveries ---


def test_the_same_request_gets_the_same_bytes_and_another_none(make_world, make_vectors):
    world = make_world(4, dimension=100)
    vectors = make_vectors(world)
    client, asked = world.clients[ME], []
    messages = world.server.open()
    for stage in ("advert", "share", "masked", "consent", "unmask"):
        replies = {name: world.deliver(name, data, vectors) for name, data in messages.items()}
        asked.append((messages[ME], replies[ME]))
        for request, reply in asked:
            again = client.open(request, world.session()) if request is asked[0][0] else client.receive(request)
            assert again == reply
        assert client.stage is not None, stage
        for reply in replies.values():
            world.server.receive(reply)
            world.server.receive(reply)
        messages = world.server.advance()
    assert len(world.charges) == len(world.marks) == 4
    first, second = asked[3][0], world.lie(asked[3][0], lambda m: replace(m, salt=bytes(32)))
    with pytest.raises(RoundError, match="answers one 'survivors' in a session, found another, kept as evidence"):
        client.receive(second)
    assert client.evidence[0].messages == (first, second)
    assert client.receive(first) == asked[3][1]


def test_another_request_that_the_coordinator_did_not_sign_is_no_evidence(make_world, make_vectors):
    world = make_world(3)
    data = world.until("masked", make_vectors(world))[ME]
    envelope = read(Envelope, data)
    client = world.clients[ME]
    client.receive(data)
    for false in (replace(envelope, signature=bytes(64)), replace(envelope, attachment=b"more")):
        with pytest.raises(RoundError, match="takes 'deliver' from its coordinator only"):
            client.receive(false.encode())
    assert client.evidence == []
    assert client.stage == "training"


def test_a_message_out_of_order_changes_nothing(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    client = world.clients[ME]
    late = world.lie(
        world.server.close().get(ME) or world.server._write("close", Close("aborted", b"", b"")), lambda m: m
    )
    world = make_world(3)
    client = world.clients[ME]
    messages = world.until("share", vectors)
    survivors = read(Envelope, messages[ME])
    out_of_order = replace(survivors, kind="survivors").encode()
    with pytest.raises(RoundError, match="is adverted and takes messages in order, found 'survivors'"):
        client.receive(out_of_order)
    assert client.stage == "adverted"
    assert client.receive(messages[ME]) is not None
    assert client.receive(late) is None
    assert client.stage is None


# --- marks and charges ---


def test_the_mark_is_durable_before_any_key_exists(make_world):
    class HaltedError(Exception):
        pass

    def mark(*_):
        raise HaltedError

    world = make_world(3)
    client = world.make_client(ME, mark=mark)
    client._draw = None  # not callable: drawing a key would fail otherwise
    with pytest.raises(HaltedError):
        client.open(world.server.open()[ME], world.session())
    assert client.stage is None


def test_the_old_session_is_gone_before_the_new_mark_is_written(make_world, make_vectors):
    class HaltedError(Exception):
        pass

    world, marks = make_world(3), []

    def mark(*given):
        marks.append(given)
        if len(marks) > 1:
            raise HaltedError

    client = world.clients[ME] = world.make_client(ME, mark=mark)
    old = world.until("share", make_vectors(world))
    newer = world.session(attempt=2)
    with pytest.raises(HaltedError):
        client.open(world.make_server(newer).open()[ME], newer)
    assert client.stage is None
    with pytest.raises(RoundError, match="must be in the session it is asked about"):
        client.receive(old[ME])


@pytest.mark.parametrize("last", [(1, 1, 1), (1, 2, 1), (2, 1, 1)])
def test_a_session_that_is_not_newer_is_refused_and_the_mark_returned(make_world, last):
    world = make_world(3)
    client = world.make_client(ME, last_mark=last)
    with pytest.raises(RoundError) as refused:
        client.open(world.server.open()[ME], world.session())
    assert f"its mark is {last}, found (1, 1, 1); nothing sent" in refused.value.message
    assert world.marks == []


def test_rounds_and_attempts_count_from_one(make_world):
    for changes in ({"round_number": 0, "run": 2}, {"attempt": 0, "round_number": 2}):
        world = make_world(3)
        session = world.session(**changes)
        with pytest.raises(RoundError, match="must be asked for each"):
            world.clients[ME].open(world.make_server(session).open()[ME], session)


def test_a_new_session_has_new_keys_and_forgets_the_old(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    old = world.until("masked", vectors)
    before = world.clients[ME]._held
    world.server = world.make_server(world.session(attempt=2))
    total = world.run(vectors)
    np.testing.assert_array_equal(total, sum(vectors.values(), start=np.zeros(5, np.uint32)))
    assert world.marks[-1][1] == (1, 1, 2)
    assert world.clients[ME]._held.mask.public != before.mask.public
    with pytest.raises(RoundError, match="must be in the session it is asked about"):
        world.clients[ME].receive(old[ME])


FIELDS = ["study", "plan", "parameters", "roster", "model", "log_root", "payload", "round_number", "coordinator"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_session_that_differs_in_one_field_is_refused(make_world, field):
    world = make_world(3)
    value = getattr(world.session(), field)
    other = {int: 7, str: "other", bytes: bytes(32)}[type(value)]
    with pytest.raises(RoundError, match=f"with its own {field}, found another; nothing sent, no budget spent"):
        world.clients[ME].open(world.server.open()[ME], world.session(**{field: other}))


def test_another_suite_or_other_thresholds_are_refused_even_if_the_caller_agrees(make_world):
    for changes, words in (
        ({"suite": "rot13"}, "with the suite"),
        ({"parameters": bytes(32)}, "thresholds of its plan"),
    ):
        world = make_world(3)
        session = world.session(**changes)
        with pytest.raises(RoundError, match=words):
            world.clients[ME].open(world.make_server(session).open()[ME], session)


def test_nothing_is_masked_before_the_charge_and_nothing_twice(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    messages = world.until("masked", vectors)
    client = world.clients[ME]
    with pytest.raises(RoundError, match=r"must be training for charge\(\), found 'shared'"):
        client.charge()
    client.receive(messages[ME])
    with pytest.raises(RoundError, match=r"must be charged for mask\(\), found 'training'; nothing sent"):
        client.mask(vectors[ME])
    client.charge()
    with pytest.raises(RoundError, match=r"must mask a vector of 5, found shape \(4,\)"):
        client.mask(vectors[ME][:4])
    before = vectors[ME].copy()
    reply = client.mask(vectors[ME])
    assert (vectors[ME] != before).all()  # nothing of it is left in the clear
    assert client.receive(messages[ME]) == reply
    for call in (client.charge, lambda: client.mask(vectors[ME])):
        with pytest.raises(RoundError, match="found 'masked'"):
            call()
    assert world.charges.count((ME, (1, 1))) == 1


def test_a_refused_charge_sends_nothing(make_world, make_vectors):
    def charge(*_):
        raise BudgetError("no", hint="no")

    world = make_world(3)
    world.clients[ME] = world.make_client(ME, charge=charge)
    vectors = make_vectors(world)
    messages = world.until("masked", vectors)
    client = world.clients[ME]
    client.receive(messages[ME])
    with pytest.raises(BudgetError):
        client.charge()
    with pytest.raises(RoundError, match="must be charged"):
        client.mask(vectors[ME])


def test_a_masked_vector_looks_like_noise_and_never_twice_alike(make_world, make_vectors):
    world = make_world(3, dimension=20_000)
    zeros = {name: np.zeros(20_000, np.uint32) for name in world.names}
    world.run(zeros)
    masked = [world.server._vectors[place] for place in range(3)]
    for vector in masked:
        bits = np.unpackbits(vector.view(np.uint8)).mean()
        assert abs(bits - 0.5) < 0.005
        assert np.unique(vector).size > 19_900
    assert not world.server.total.any()


# --- the end ---


def test_a_closed_session_is_forgotten(make_world, make_vectors):
    world = make_world(3)
    vectors = make_vectors(world)
    world.run(vectors)
    assert world.clients[ME].stage == "unmasked"
    for name, data in world.server.close(b"model").items():
        assert world.clients[name].receive(data) is None
        assert world.clients[name].closed.outcome == "released"
        assert world.clients[name].closed.aggregate == b"model"
        assert world.clients[name].stage is None


@pytest.mark.parametrize(
    ("close", "words"),
    [
        (Close("forgotten", b"", b""), "must be told 'released' or 'aborted', found 'forgotten'"),
        (Close("released", bytes(32), b""), "must see the survivors released that it consented to"),
    ],
)
def test_another_end_than_was_consented_to_is_refused(make_world, make_vectors, close, words):
    world = make_world(3)
    world.run(make_vectors(world))
    with pytest.raises(RoundError, match=words):
        world.clients[ME].receive(world.server._write("close", close))


def test_secrets_do_not_show_in_a_repr(make_world, make_vectors):
    world = make_world(3)
    world.until("masked", make_vectors(world))
    held = world.clients[ME]._held
    assert held.self_seed.hex() not in repr(held)
    assert repr(held.self_seed) not in repr(world.clients[ME].__dict__)


def test_the_deployed_client_takes_no_generator():
    import inspect

    from hubbub.secagg import Client

    names = set(inspect.signature(Client).parameters)
    assert names == {"name", "key", "roster", "parameters", "mark", "charge", "last_mark"}


def test_every_refusal_is_ours(make_world, make_vectors):
    world = make_world(3)
    messages = world.until("masked", make_vectors(world))
    client = world.clients[ME]
    data = messages[ME]
    for at_byte in range(0, len(data), 7):
        false = data[:at_byte] + bytes([data[at_byte] ^ 1]) + data[at_byte + 1 :]
        with pytest.raises(HubbubError):
            client.receive(false)
    assert client.receive(data) is None


def test_dealers_without_the_holders_of_one_of_them_are_refused(make_world, make_vectors):
    world = make_world(14, neighbours=8, threshold=8, n_min=10)
    messages = world.until("masked", make_vectors(world))
    graph = world.server._graph
    gone = [place for place in range(1, 14) if graph.holders[0, place]][:2]

    def hide(message):
        return replace(message, dealings=tuple(one for at, one in enumerate(message.dealings) if at not in gone))

    with pytest.raises(RoundError, match="must find 8 holders of each of the dealers among them, found 7 of"):
        world.clients[ME].receive(world.lie(messages[ME], hide))
