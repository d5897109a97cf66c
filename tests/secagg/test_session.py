"""One session end to end: whoever drops out whenever, the sum is exact or there is none."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbub.errors import RoundError

STAGES = ("advert", "share", "masked", "consent", "unmask")


def exact_sum(vectors, names):
    total = np.zeros_like(next(iter(vectors.values())))
    for name in names:
        total += vectors[name]
    return total


def outcome(world, vectors, drops):
    try:
        return world.run(vectors, drops), None
    except RoundError as error:
        return None, error.message


def test_the_sum_is_exact_when_everybody_stays(make_world, make_vectors):
    world = make_world(5, dimension=70_000)
    vectors = make_vectors(world)
    total = world.run(vectors)
    assert world.server.survivors == tuple(world.names)
    np.testing.assert_array_equal(total, exact_sum(vectors, world.names))
    assert world.refusals == {}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_drop_pattern_gives_the_exact_sum_or_a_named_failure(make_world, make_vectors, data):
    n = data.draw(st.integers(3, 12), "n")
    world = make_world(
        n, colluding=data.draw(st.integers(0, (n - 1) // 3), "colluding"), dimension=data.draw(st.integers(1, 9), "d")
    )
    stages = st.sampled_from([None, None, None, *STAGES])
    drops = {name: stage for name in world.names if (stage := data.draw(stages, name))}
    vectors = make_vectors(world, data.draw(st.integers(0, 2**32 - 1), "seed"))
    total, failure = outcome(world, vectors, drops)
    if failure is not None:
        assert "needs" in failure
        assert ("the attempt is charged" if world.server._graph.dealt.any() else "no budget spent") in failure
        assert world.server.total is None
        return
    stayed = tuple(name for name in world.names if STAGES.index(drops.get(name, "unmask")) > 2)
    assert world.server.survivors == stayed
    np.testing.assert_array_equal(total, exact_sum(vectors, stayed))
    assert world.refusals == {}


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
def test_any_drop_pattern_on_a_sparse_graph_gives_the_exact_sum_or_a_named_failure(make_world, make_vectors, data):
    world = make_world(14, neighbours=8, threshold=5, colluding=1, n_min=10)
    stages = st.sampled_from([None, None, None, None, None, *STAGES])
    drops = {name: stage for name in world.names if (stage := data.draw(stages, name))}
    vectors = make_vectors(world, 7)
    total, failure = outcome(world, vectors, drops)
    if failure is not None:
        assert "needs" in failure
        return
    np.testing.assert_array_equal(total, exact_sum(vectors, world.server.survivors))
    assert world.refusals == {}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("advert", "needs 4 adverts, found 3; nothing revealed, no budget spent"),
        ("share", "needs 4 dealers, found 3; nothing revealed, no budget spent"),
        ("masked", "needs 4 survivors, found 3; nothing revealed, the attempt is charged"),
        ("consent", "needs 4 consents, found 3; nothing revealed, the attempt is charged"),
        ("unmask", "needs 4 shares of 'site-00', found 3; nothing revealed, the attempt is charged"),
    ],
)
def test_too_few_at_a_stage_fail_it_by_name(make_world, make_vectors, stage, words):
    world = make_world(5)
    with pytest.raises(RoundError, match=words):
        world.run(make_vectors(world), {"site-01": stage, "site-03": stage})
