"""Any message, changed in any way by anybody, gives the exact sum or a refusal of ours, and never a crash."""

import msgspec
import pytest
import simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.secagg.messages import Envelope, read

World = simulator.World
KINDS = (*list(simulator.BODIES)[:5], *simulator.STAGES)
WAYS = {
    "random bytes": lambda _, draw, __: draw(st.binary(max_size=300)),
    "a bit": lambda data, draw, _: flip(data, draw(st.integers(0, max(8 * len(data) - 1, 0)))),
    "a byte early on": lambda data, draw, _: flip(data, 8 * draw(st.integers(0, max(min(len(data), 200) - 1, 0)))),
    "cut": lambda data, draw, _: data[: draw(st.integers(0, len(data)))],
    "longer": lambda data, draw, _: data + draw(st.binary(min_size=1, max_size=9)),
    "another message": lambda _, draw, seen: draw(st.sampled_from(seen)),
}


def flip(data, bit):
    changed = bytearray(data)
    if changed:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def draw_world(draw):
    return draw(st.sampled_from([lambda: World(5), lambda: World(8, neighbours=5, threshold=4)]))()


def tamper(world, draw, rewrite):
    """Change what is sent of one kind to or by one participant, or all; what is sent otherwise arrives."""
    kind, who = draw(st.sampled_from(KINDS)), draw(st.sampled_from([*world.names, "all"]))
    way, seen, changed = WAYS[draw(st.sampled_from(sorted(WAYS)))], [], []

    def wire(sent, name, data):
        seen.append(data)
        if sent != kind or who not in (name, "all"):
            return [data]
        false = rewrite(name, data, lambda old: way(old, draw, seen))
        changed.append((name, data, false))
        return draw(st.sampled_from([[false], [false, data], [data, false]]))

    world.wire = wire
    return changed


def assert_exact_or_refused(world, total):
    if total is None:
        assert " needs " in world.failure
    else:
        assert world.is_exact(total, world.server.survivors)
        assert len(world.server.survivors) >= world.parameters.u_min
    assert_nobody_shows(world)


def assert_nobody_shows(world):
    assert world.spy.is_one_kind_each
    assert not any(world.learnt(name) for name in world.names)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_what_the_wire_changes_gives_the_exact_sum_or_a_refusal(data):
    world = draw_world(data.draw)
    tamper(world, data.draw, lambda _, old, change: change(old))
    assert_exact_or_refused(world, world.play())


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_what_the_coordinator_changes_and_signs_gives_the_exact_sum_or_a_refusal(data):
    world = draw_world(data.draw)

    def rewrite(_, old, change):
        envelope = read(Envelope, old)
        if envelope.kind not in simulator.BODIES:
            return old
        body = change(envelope.body)
        return simulator.write(envelope.kind, envelope.session, body, key=world.key)

    tamper(world, data.draw, rewrite)
    assert_exact_or_refused(world, world.play())


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_what_one_participant_changes_and_signs_is_its_own_harm_or_a_refusal(data):
    """Its own vector may be anything, so the sum may; nobody crashes and nobody's vector shows."""
    world = draw_world(data.draw)
    liar = data.draw(st.sampled_from(world.names), "liar")

    def rewrite(name, old, change):
        envelope = read(Envelope, old)
        if envelope.kind in simulator.BODIES or name != liar:
            return old
        body = change(envelope.body)
        signature = world.keys[name].sign(envelope.kind, envelope.session, body)
        return msgspec.structs.replace(envelope, body=body, signature=signature).encode()

    tamper(world, data.draw, rewrite)
    if world.play() is None:
        assert " needs " in world.failure
    assert_nobody_shows(world)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_comes_twice_or_late_changes_nothing(kind):
    world, late = World(5), {}

    def wire(sent, name, data):
        arrived = [late.pop(name), data] if name in late else [data]
        if sent == kind:
            late[name] = data
            return [*arrived, data]
        return arrived

    world.wire = wire
    assert world.is_exact(world.play())
