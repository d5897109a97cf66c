"""Every attack of the threat model, run by a real coordinator that lies, ends in the refusal named for it.

An attack is a function that plays it out and returns its world and whether it succeeded: whether something left
that must not, in most of them the victim's exact vector. test_checks_bite.py removes the one check that stands
against each and sees it succeed. Where thresholds of an approved plan would already stop an attack, the world here
has lower ones, so that the check stands alone.
"""

import itertools

import msgspec
import numpy as np
import pytest
import simulator

from hubbub.errors import InputError, PlanError
from hubbub.secagg import Client, Parameters, Server, SigningKey
from hubbub.secagg import agreement as agreed
from hubbub.secagg.dealing import make_leaf
from hubbub.secagg.keys import TAG_BYTES, enc
from hubbub.secagg.messages import Advert, Adverts, Consent, Consents, Header, Signed, Unmask, read, write
from hubbub.secagg.messages import Envelope as Wrapped

World, signed = simulator.World, simulator.signed
replace = msgspec.structs.replace
VICTIM, CORRUPT = "site-00", "site-07"


def refused(world, words, *names):
    """Whether each of these refused with these words."""
    return all(any(words in message for message in world.refusals.get(name, ())) for name in names)


# --- survivors ---


class OnACircle(Client):
    """Chooses the two next to it as its holders."""

    def _choose(self, population, _size):
        place = self._held.place
        beside = ((place - 1) % (population + 1), (place + 1) % (population + 1))
        return sorted(other - (other > place) for other in beside)


class Isolating(Server):
    """Says that everybody who masked with the victim has dropped out."""

    def _choose_survivors(self, sent):
        return sent & ~self._graph.partners[0]


def isolate_by_dropouts():
    """U_min is 8; with the victim cut off, the masks of the other 7 cancel among themselves."""
    world = World(10, neighbours=2, threshold=2, n_min=8, u_min=8, kind=OnACircle, server=Isolating)
    world.play()
    return world, world.learnt(*world.names[2:9])


class Halving(Server):
    """Leaves the last of those who sent a vector out of the sum."""

    def _choose_survivors(self, sent):
        self._parameters = replace(self._parameters, u_min=4)
        return sent & (np.arange(sent.size) < sent.size - 1)


def sum_of_few():
    world = World(5, u_min=5, server=Halving)
    world.play()
    return world, world.learnt(*world.names[:4])


class LeavingOneOut(Server):
    """Says that the victim alone has dropped out: the sum without it, to subtract from one with it."""

    def _choose_survivors(self, sent):
        return sent & (np.arange(len(sent)) > 0)


def differences():
    """Without noise: a sum over all but the victim, whose block is there."""
    world = World(6, block=3, server=LeavingOneOut)
    world.play()
    return world, world.server.total is not None


def split_survivors(consents, *, corrupt=()):
    """Tell half that all survived and half that the victim did not; show each the consents that `consents` picks.

    Any 3 of 9 shares give a secret here, so either half could open what it is told to.
    """
    world = World(9, neighbours=8, threshold=3, corrupt=corrupt)
    messages = world.play("consent")
    honest = [name for name in world.names if name not in corrupt]
    halves = honest[:4], honest[4:]
    told = {name: data if name in halves[0] else world.lie(data, without_victim) for name, data in messages.items()}
    replies = world.ask(told)
    given = {name: signed(reply) for name, reply in replies.items()}
    for half in halves:
        shown = consents(world, given, half, read(Consent, given[half[-1]].body).survivors)
        message = world.write("consents", Consents(tuple(shown[name] for name in sorted(shown))))
        world.ask(dict.fromkeys(half, message))
    return world, world.learnt(VICTIM)


def without_victim(message):
    bits = np.frombuffer(message.survivors, np.uint8).copy()
    bits[0] &= 0xFE
    return replace(message, survivors=bits.tobytes(), headers=message.headers[1:])


def two_survivor_sets():
    """Each sees the consents of all, half of them to the other set."""

    def show(world, given, half, agreed_on):
        return {name: one for name, one in given.items() if name != VICTIM or VICTIM in half}

    return split_survivors(show)


def consent(world, name, agreed_on, key):
    body = Consent(name, agreed_on).encode()
    return Signed(body, key.sign("consent", world.server.session.id, body))


def pool_stuffing():
    """The corrupt one consents to both sets, so each half has one consent more than it should."""

    def stuff(world, given, half, agreed_on):
        more = {name: consent(world, name, agreed_on, world.keys[name]) for name in world.corrupt}
        return {name: given[name] for name in half} | more

    return split_survivors(stuff, corrupt=("site-08",))


def forged_consents():
    """The other half's consents are written by the coordinator."""

    def forge(world, given, half, agreed_on):
        forged = {name: consent(world, name, agreed_on, world.key) for name in given if name != VICTIM}
        return forged | {name: given[name] for name in half}

    return split_survivors(forge)


def second_u_same_session():
    """After the sum is there, ask everybody again, as if the victim had dropped out."""
    world = World(5)
    world.play()
    world.first = {name: world.clients[name]._held.answered["survivors"][0] for name in world.names}
    world.second = {name: world.lie(data, without_victim) for name, data in world.first.items() if name != VICTIM}
    replies = world.ask(world.second)
    consents = world.write("consents", Consents(tuple(map(signed, replies.values()))))
    world.ask(dict.fromkeys(replies, consents))
    return world, world.learnt(VICTIM)


def misrouted():
    """A relay first gives the victim what was written to another, so that it drops out and blames the coordinator."""
    world = World(5)
    for stage in ("masked", "consent"):
        messages = world.play("masked") if stage == "masked" else world.advance()
        world.ask({VICTIM: messages["site-01"]})
        world.take(world.ask(messages))
        world.ask({VICTIM: messages["site-01"]})
    world.take(world.ask(world.advance()))
    world.advance()
    return world, world.clients[VICTIM].evidence != [] or VICTIM not in world.server.survivors


# --- adverts, dealings, headers ---


class TakesAnyList(Server):
    """Takes the victim's shares over the list of adverts that it alone was told."""

    def _take_dealing(self, place, dealing, leaves):
        if dealing.adverts == self._adverts_hash:
            super()._take_dealing(place, dealing, leaves)
            return
        everybody = agreed.read_edges(b"", place, adverts=len(self._names), neighbours=0)
        names = (*self._names[:-1], CORRUPT)
        levels = agreed.tree([agreed.leaf_hash(name, leaf) for name, leaf in zip(names, leaves, strict=True)])
        self._edges[place], self._leaves[place], self._levels[place] = everybody, tuple(leaves), levels


def two_advert_lists():
    """Seven adverts for everybody, with one of them exchanged for the victim."""
    world = World(8, server=TakesAnyList)
    adverts = world.ask(world.start())
    world.take({name: reply for name, reply in adverts.items() if name != CORRUPT})
    messages = world.advance()
    other = (*map(signed, list(adverts.values())[:6]), signed(adverts[CORRUPT]))
    messages[VICTIM] = world.write("adverts", Adverts(other))
    world.take(world.ask(messages))
    world.ask(world.advance())
    return world, world.spy.has("masked")


class TakesAnyGraph(Server):
    """Takes vectors masked on another graph."""

    def _take_vector(self, place, header, data):
        super()._take_vector(place, replace(header, edges=self._edges_hash), data)


def hidden_sharers():
    """The victim is told of four who dealt shares; then two of them drop out and the third is corrupt."""
    world = World(8, neighbours=7, threshold=3, n_min=4, corrupt=(CORRUPT,), server=TakesAnyGraph)
    told = {VICTIM, "site-01", "site-02", CORRUPT}

    def hide(message):
        dealers = [name for name in world.names if name != VICTIM]
        return replace(
            message,
            dealings=tuple(one for name, one in zip(world.names, message.dealings, strict=True) if name in told),
            delivered=tuple(one for name, one in zip(dealers, message.delivered, strict=True) if name in told),
        )

    messages = world.play("masked")
    messages[VICTIM] = world.lie(messages[VICTIM], hide)
    replies = world.ask(messages)
    world.take({name: reply for name, reply in replies.items() if name not in {"site-01", "site-02"}})
    for _ in ("consent", "unmask"):
        messages = world.advance()
        world.take(world.ask(messages or {}))
    return world, world.learnt(VICTIM)


def impersonation():
    """Everybody but the victim is the coordinator, under their names with keys of its own."""
    real, world = World(5), World(5, salt="false ", corrupt=tuple(f"site-{at:02d}" for at in range(1, 5)))
    world.keys[VICTIM] = real.keys[VICTIM]
    for name in world.names:
        world.restart(name)
    world.clients[VICTIM] = real.clients[VICTIM]
    world.play()
    return world, world.learnt(VICTIM)


def other_model():
    """The victim is opened a session of its own, on another model, and its advert mixed into everybody's."""
    world = World(5)
    messages = world.start()
    world.own[VICTIM] = false = world.session(model=simulator.named("crafted"))
    messages[VICTIM] = write("open", false.id, false, key=world.key)
    adverts = world.ask(messages)
    world.take(adverts)
    mixed = world.write("adverts", Adverts(tuple(map(signed, adverts.values()))))
    world.advance()
    world.ask(dict.fromkeys(world.names[1:], mixed))
    return world, world.spy.has("share")


def crafted_model():
    """The victim is sent another model in everybody's session; it hashes what it got."""
    world = World(5)
    world.own[VICTIM] = world.session(model=simulator.named("crafted"))
    replies = world.ask(world.start())
    return world, VICTIM in replies


def key_copy():
    """A corrupt participant advertises the victim's mask key, and the coordinator lets it."""
    world = World(5, corrupt=("site-04",))
    replies = world.ask(world.start())
    adverts = {name: signed(reply) for name, reply in replies.items()}
    world.take(replies)
    body = replace(read(Advert, adverts["site-04"].body), mask_key=read(Advert, adverts[VICTIM].body).mask_key).encode()
    adverts["site-04"] = Signed(body, world.keys["site-04"].sign("advert", world.server.session.id, body))
    world.advance()
    world.ask(dict.fromkeys(world.names[:4], world.write("adverts", Adverts(tuple(adverts.values())))))
    return world, world.spy.has("share")


def withhold(world, kept):
    """Pass on the adverts of some only."""
    messages = world.play("share")
    shown = {
        name: world.lie(messages[name], lambda m: Adverts(tuple(m.adverts[world.names.index(one)] for one in kept)))
        for name in kept
    }
    world.ask(shown)
    return world, world.spy.has("share")


def shrink_cohort():
    """One advert fewer than n_min."""
    world = World(7, colluding=2)
    return withhold(world, world.names[:4])


def grind_cohort():
    """Thresholds for a cohort of 5, which the coordinator picks from a roster of 9: the victim and all 3 corrupt."""
    world = World(9, colluding=3, corrupt=("site-06", "site-07", "site-08"))
    world.parameters = replace(world.parameters, n=5, n_min=4, u_min=4, threshold=4, colluding=1)
    try:
        for name in world.names:
            world.restart(name)
    except InputError as error:
        world.failure = error.message
        return world, False
    world.play(gone=dict.fromkeys(world.names[1:6], "advert"))
    return world, world.learnt(VICTIM)


def one_organisation():
    """Everybody in the session belongs to one organisation."""
    return withhold(World(9, n_min=3, org_min=2), ["site-00", "site-03", "site-06"])


def frame_dealer():
    """A share altered on its way, so that its holder reports its dealer."""
    world = World(5)
    messages = world.play("masked")

    def alter(message):
        second = message.delivered[1]
        spoilt = replace(second, leaf=replace(second.leaf, sealed=bytes(len(second.leaf.sealed))))
        return replace(message, delivered=(message.delivered[0], spoilt, *message.delivered[2:]))

    reply = world.tell(VICTIM, world.lie(messages[VICTIM], alter))
    return world, reply is not None and read(Header, signed(reply).body).bad_dealers == ("site-02",)


# --- opening, again and later ---


def opened_as(world, session, key):
    """The victim's host repeats what it is told as if it knew it."""
    world.start()
    world.own[VICTIM] = session
    return world, world.tell(VICTIM, write("open", session.id, session, key=key)) is not None


def small_threshold():
    """Thresholds with one share less, which the victim's host believes."""
    world = World(5)
    lower = replace(world.parameters, threshold=world.parameters.threshold - 1)
    return opened_as(world, world.session(parameters=lower.hash), world.key)


def forged_open():
    """Somebody on the wire opens a session in the coordinator's name."""
    world = World(5)
    return opened_as(world, world.session(), SigningKey(bytes(32)))


def retry_then_differ():
    """The sum of all is opened; then it is said to have failed, and tried again without the victim."""
    world = World(5, budget=1)
    first = world.play()
    again = world.play(attempt=2, gone={VICTIM: "masked"})
    return world, again is not None and world.is_exact(first - again, [VICTIM])


def resend_lost_reply():
    """Every answer is lost once and asked for again."""
    world = World(5)
    messages = world.start()
    for _ in simulator.STAGES:
        lost, again = ({name: world.tell(name, data) for name, data in messages.items()} for _ in range(2))
        if lost != again:
            return world, True
        world.take(again)
        messages = world.advance()
    return world, not world.is_exact(world.server.total)


def crash_after_masked():
    """The victim is killed and comes back with what its disk says; it is opened the same attempt again."""
    world = World(5)
    opened = world.start()
    messages = world.play("consent")
    world.restart(VICTIM)
    world.take(world.ask(messages))
    world.server.stage, now = "advert", world.server.stage
    again = world.tell(VICTIM, opened[VICTIM])
    world.server.stage = now
    world.take(world.ask(world.advance()))
    world.advance()
    return world, again is not None


def direction_reuse():
    """Are the shares from u to v and from v to u enciphered with one keystream?"""
    world = World(3, colluding=0)
    world.play("consent")
    one, other = (world.clients[name]._held for name in world.names[:2])
    sealed = [world.spy.leaves[one.names[0]][1].sealed, world.spy.leaves[one.names[1]][0].sealed]
    plain = [b"".join(other.shares[0]), b"".join(one.shares[1])]
    return world, xor(*(text[:-TAG_BYTES] for text in sealed)) == xor(*plain)


def xor(one, other):
    return bytes(left ^ right for left, right in zip(one, other, strict=True))


def both_shares():
    """Ask for the shares of b and of the mask key at once, in all the ways that bytes allow."""
    world = World(5)
    messages = world.play("unmask")
    envelope = read(Wrapped, messages[VICTIM])
    replies = world.ask(
        dict.fromkeys(world.names[:2], write("consents", envelope.session, envelope.body + enc(b"both"), key=world.key))
    )
    shares = Unmask(VICTIM, bytes(32), (b"b", b"seed"))
    replies |= world.ask({"site-02": world.write("unmask", shares)})
    return world, bool(replies)


class DealsAWrongShare(Client):
    """Seals to site-03 what it did not commit to."""

    def _make_leaves(self, held, places):
        leaves, wrong = list(super()._make_leaves(held, places)), make_leaf(held, 3, (bytes(33), bytes(33)))
        leaves[places.index(3)] = replace(leaves[places.index(3)], sealed=wrong.sealed)
        return tuple(leaves)


class ReturnsAWrongShare(Client):
    """Gives a share of the victim's that is none."""

    def _unmask(self, held, message):
        held.shares[0] = (bytes(33), bytes(33))
        return super()._unmask(held, message)


def bad_dealer_bad_holder():
    """Not the coordinator but two participants lie: is the sum still there, and who is named?"""
    world = World(7, kinds={"site-01": DealsAWrongShare, "site-02": ReturnsAWrongShare})
    total = world.play()
    is_named = world.server.liars == {"site-02": "a wrong share of 'site-00'"}
    return world, not (world.is_exact(total) and is_named and world.server.reported == {"site-01": ("site-03",)})


ATTACKS = {
    attack.__name__: attack
    for attack in (
        isolate_by_dropouts, sum_of_few, differences, two_survivor_sets, pool_stuffing, forged_consents,
        second_u_same_session,
        two_advert_lists, hidden_sharers, impersonation, other_model, crafted_model, key_copy, shrink_cohort,
        one_organisation, frame_dealer, small_threshold, forged_open, retry_then_differ,
        misrouted, resend_lost_reply, crash_after_masked, direction_reuse, both_shares, bad_dealer_bad_holder,
        grind_cohort,
    )
}  # fmt: skip


# --- each ends in its refusal ---


def assert_no_share_left(world):
    assert not world.spy.has("unmask")
    assert world.spy.shares == {}
    assert world.learnt(VICTIM) is False


def test_isolate_by_dropouts():
    world, succeeded = isolate_by_dropouts()
    assert not succeeded
    told = [name for name in world.names if name not in {"site-01", "site-09"}]
    assert refused(world, "must find 2 holders of each of the survivors among them, found 1 of 'site-00'", *told)
    assert world.failure.startswith("round 1 attempt 1, needs 6 consents, found 0; nothing revealed")
    assert_no_share_left(world)


def test_sum_of_few():
    world, succeeded = sum_of_few()
    assert not succeeded
    assert refused(world, "must be one of 5 survivors, found 4; nothing revealed", *world.names[:4])
    assert_no_share_left(world)


def test_differences():
    world, succeeded = differences()
    assert not succeeded
    assert refused(world, "must find whole blocks of 3 in a sum, found one without ['site-00']", *world.names[1:])
    assert_no_share_left(world)


def test_two_survivor_sets():
    world, succeeded = two_survivor_sets()
    assert not succeeded
    assert refused(world, "must agree with all on the survivors, found others at 'site-04'", *world.names[:4])
    assert refused(world, "must agree with all on the survivors, found others at 'site-01'", *world.names[4:])
    assert_no_share_left(world)


def test_pool_stuffing():
    world, succeeded = pool_stuffing()
    assert not succeeded
    assert refused(world, "must get 6 consents, its own counted, found 5; nothing revealed", *world.names[:8])
    assert_no_share_left(world)


def test_forged_consents():
    world, succeeded = forged_consents()
    assert not succeeded
    assert refused(world, "must get 'consent' of 'site-04' as 'site-04' signed it", *world.names[:4])
    assert refused(world, "must get 'consent' of 'site-01' as 'site-01' signed it", *world.names[4:])
    assert_no_share_left(world)


def test_second_u_same_session():
    world, succeeded = second_u_same_session()
    assert not succeeded
    assert refused(world, "answers one 'survivors' in a session, found another, kept as evidence", *world.names[1:])
    for name in world.names[1:]:
        assert world.clients[name].evidence[0].messages == (world.first[name], world.second[name])
    assert world.spy.is_one_kind_each
    assert world.is_exact(world.server.total)


def test_misrouted():
    world, succeeded = misrouted()
    assert not succeeded
    assert {name: len(said) for name, said in world.refusals.items()} == {VICTIM: 4}
    assert refused(world, "takes messages that were written to it, found one to 'site-01'", VICTIM)
    assert world.is_exact(world.server.total)


def test_two_advert_lists():
    world, succeeded = two_advert_lists()
    assert not succeeded
    rule = "must share one list of adverts with all dealers, found another list at 'site-00'; nothing sent, no budget"
    assert refused(world, rule, *world.names[1:6])
    assert world.spy.vectors == {}
    assert all(disk.charges == [] for disk in world.disks.values())


def test_hidden_sharers():
    world, succeeded = hidden_sharers()
    assert not succeeded
    rule = "must share dealers and edges with every survivor, found others in the header of 'site-00'; nothing revealed"
    assert refused(world, rule, *world.names[3:8])
    assert_no_share_left(world)


def test_impersonation():
    world, succeeded = impersonation()
    assert not succeeded
    assert refused(world, "must get 'advert' of 'site-01' as 'site-01' signed it, found another", VICTIM)
    assert ("share", VICTIM) not in world.spy.sent


def test_other_model():
    world, succeeded = other_model()
    assert not succeeded
    assert refused(world, "must get 'advert' of 'site-00' as 'site-00' signed it, found another", *world.names[1:])
    assert world.refusals["coordinator"][0].startswith("round 1 attempt 1, awaits 'advert' of its own session")


def test_crafted_model():
    world, succeeded = crafted_model()
    assert not succeeded
    assert refused(world, "the session it knows, with its own model, found another; nothing sent, no budget", VICTIM)
    assert world.disks[VICTIM].mark == (0, 0, 0)


def test_key_copy():
    world, succeeded = key_copy()
    assert not succeeded
    assert refused(world, "must get each key once, found one twice, another from 'site-04'", *world.names[:4])
    assert world.spy.leaves == {}


def test_a_copied_key_gives_away_no_share_and_the_others_get_their_sum():
    world = World(5, corrupt=("site-04",))
    replies = world.ask(world.start())
    body = read(Advert, signed(replies["site-04"]).body)
    copied = replace(body, mask_key=read(Advert, signed(replies[VICTIM]).body).mask_key)
    world.take({name: reply for name, reply in replies.items() if name != "site-04"})
    world.take({"site-04": write("advert", world.server.session.id, copied, key=world.keys["site-04"])})
    assert "takes two fresh keys of each participant" in world.refusals["coordinator"][0]
    for _ in simulator.STAGES[1:]:
        world.take(world.ask(world.advance()))
    world.advance()
    assert world.is_exact(world.server.total, world.names[:4])
    assert not any(dealer == "site-04" for _, _, dealer in world.spy.shares)


@pytest.mark.parametrize("field", ["cipher_key", "mask_key"])
def test_a_key_of_small_order_puts_its_owner_out_and_nobody_else(field):
    world = World(5)
    replies = world.ask(world.start())
    false = replace(read(Advert, signed(replies["site-04"]).body), **{field: bytes(32)})
    replies["site-04"] = write("advert", world.server.session.id, false, key=world.keys["site-04"])
    world.take(replies)
    assert world.refusals == {"coordinator": [world.refusals["coordinator"][0]]}
    assert refused(world, "site-04, must advertise keys of large order", "coordinator")
    for _ in simulator.STAGES[1:]:
        world.take(world.ask(world.advance()))
    world.advance()
    assert world.is_exact(world.server.total, world.names[:4])


def test_shrink_cohort():
    world, succeeded = shrink_cohort()
    assert not succeeded
    assert refused(world, "must be one of 5 to 7 adverts, found 4; nothing sent, no budget spent", *world.names[:4])
    assert world.spy.leaves == {}


def test_a_cohort_shrunk_to_n_min_is_still_within_the_bound_and_a_smaller_one_is_not():
    at_n_min = Parameters(
        n=500, n_min=450, u_min=450, threshold=95, neighbours=125, colluding=100, org_min=1, dimension=1
    )
    at_n_min.check()
    with pytest.raises(PlanError, match="must keep the chance of a second sum at most 2\\^-50 in a session"):
        replace(at_n_min, n_min=400).check()


def test_grind_cohort():
    world, succeeded = grind_cohort()
    assert not succeeded
    words = "site-00, must have thresholds for its whole roster of 9, found them for 5; nothing sent"
    assert world.failure == words


def test_one_organisation():
    world, succeeded = one_organisation()
    assert not succeeded
    assert refused(world, "must be with 2 organisations, found 1", "site-00", "site-03", "site-06")


def test_frame_dealer():
    world, succeeded = frame_dealer()
    assert not succeeded
    assert refused(world, "must get shares as 'site-02' committed to them, found a path to another root", VICTIM)


def test_small_threshold():
    world, succeeded = small_threshold()
    assert not succeeded
    assert refused(world, "must be asked with the thresholds of its plan, found others; nothing sent", VICTIM)
    assert world.disks[VICTIM].mark == (0, 0, 0)


@pytest.mark.parametrize("lower", [{"threshold": 3}, {"neighbours": 3}, {"n_min": 2}, {"u_min": 2}, {"colluding": 0}])
def test_thresholds_of_another_plan_are_another_session(lower):
    world = World(5)
    session = world.session(parameters=replace(world.parameters, **lower).hash)
    world.start()
    assert world.tell(VICTIM, write("open", session.id, session, key=world.key)) is None
    assert refused(world, "must be asked into the session it knows, with its own parameters", VICTIM)


def test_forged_open():
    world, succeeded = forged_open()
    assert not succeeded
    assert refused(world, "takes 'open' from its coordinator only, found another signature; nothing sent", VICTIM)
    assert world.clients[VICTIM].evidence == []


def test_retry_then_differ():
    world, succeeded = retry_then_differ()
    assert not succeeded
    for name in world.names[1:]:
        assert refused(world, "ledger, has nothing left", name)
        assert refused(world, "must be charged for mask(), found 'training'; nothing sent", name)
        assert world.disks[name].charges == [(1, 1)]
    assert world.spy.vectors == {}


def test_a_retry_is_charged_and_its_vector_made_anew():
    world = World(5, budget=2)
    drawn = []

    def train(name):
        drawn.append((name, tuple(world.disks[name].charges)))
        return np.random.default_rng(len(drawn)).integers(0, 2**32, 5, dtype=np.uint32)

    world.train = train
    first = world.play()
    again = world.play(attempt=2, gone={VICTIM: "masked"})
    assert all(world.disks[name].charges == [(1, 1), (1, 2)] for name in world.names[1:])
    assert drawn[5:] == [(name, ((1, 1), (1, 2))) for name in world.names[1:]]
    masked_alone = np.random.default_rng(1).integers(0, 2**32, 5, dtype=np.uint32)
    assert not np.array_equal(first - again, masked_alone)
    assert world.refusals == {}


def test_resend_lost_reply():
    world, succeeded = resend_lost_reply()
    assert not succeeded
    assert world.refusals == {}
    assert world.is_exact(world.server.total)
    assert all(disk.charges == [(1, 1)] for disk in world.disks.values())
    assert all(world.clients[name].evidence == [] for name in world.names)


def test_crash_after_masked():
    world, succeeded = crash_after_masked()
    assert not succeeded
    asked, opened = world.refusals[VICTIM]
    assert "must be in the session it is asked about, its mark is (1, 1, 1), found another or none" in asked
    assert "once and in order, its mark is (1, 1, 1), found (1, 1, 1); nothing sent" in opened
    assert world.disks[VICTIM].charges == [(1, 1)]
    assert world.is_exact(world.server.total)
    assert world.learnt(VICTIM) is False


def test_direction_reuse():
    world, succeeded = direction_reuse()
    assert not succeeded
    sealed = [leaf.sealed for leaves in world.spy.leaves.values() for leaf in leaves if leaf.sealed]
    assert all(any(xor(one, other)) for one, other in itertools.combinations(sealed, 2))


def test_both_shares():
    world, succeeded = both_shares()
    assert not succeeded
    assert refused(world, "secagg message, must have 1 fields in consents, found another number", *world.names[:2])
    assert refused(world, "is consented and takes messages in order, found 'unmask'", "site-02")
    assert_no_share_left(world)


def test_bad_dealer_bad_holder():
    world, succeeded = bad_dealer_bad_holder()
    assert not succeeded
    assert world.server.reported == {"site-01": ("site-03",)}
    assert world.server.liars == {"site-02": "a wrong share of 'site-00'"}
    assert world.server.evidence[0].reason == "site-02: a wrong share of 'site-00'"
    assert world.refusals == {}


def test_every_attack_has_a_test():
    assert set(ATTACKS) <= {name.removeprefix("test_") for name in globals()}
