"""Thresholds: the design's examples, the inequalities the proofs rest on, and the words of each refusal."""

import itertools
import math
import re
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import PlanError
from hubbub.secagg.parameters import CORRECTNESS, Parameters, choose, failure, majority, search, secrecy

COMPLETE = [
    (3, 0, 2, 1),
    (3, 1, 3, 0),
    (4, 1, 3, 1),
    (5, 1, 4, 1),
    (7, 2, 5, 2),
    (10, 3, 7, 3),
    (20, 6, 14, 6),
    (30, 9, 20, 10),
    (50, 16, 34, 16),
]
IN_A_SESSION = -50
SPARSE = [
    (200, 5, 5, 28, 20),
    (200, 10, 10, 54, 38),
    (200, 20, 10, 77, 59),
    (200, 33, 10, 103, 84),
    (500, 5, 5, 45, 33),
    (500, 10, 10, 85, 61),
    (500, 20, 10, 125, 95),
    (500, 33, 10, 188, 151),
    (1000, 5, 5, 53, 39),
    (1000, 10, 10, 103, 74),
    (1000, 20, 10, 154, 117),
    (1000, 33, 10, 251, 201),
]


def tail(x, population, marked, k):
    """P[Hypergeometric >= x], exactly."""
    ways = sum(math.comb(marked, hits) * math.comb(population - marked, k - hits) for hits in range(max(x, 0), k + 1))
    return Fraction(ways, math.comb(population, k))


def exact_failure(adverts, corrupt, k, t):
    honest = adverts - corrupt
    closed = (
        math.comb(honest, size) * tail(t - 1, adverts - 1, corrupt + size - 1, k) ** size
        for size in range(1, honest // 2 + 1)
    )
    return honest * tail(2 * t - k - 1, adverts - 1, corrupt, k) + sum(closed)


def members(mask, n):
    return [u for u in range(n) if mask >> u & 1]


@st.composite
def cohorts(draw, largest=128):
    n = draw(st.integers(2, largest))
    return n, draw(st.integers(0, n - 2))


@pytest.mark.parametrize(("n", "colluding", "threshold", "survives"), COMPLETE)
def test_complete_graph_has_the_thresholds_of_the_design(n, colluding, threshold, survives):
    chosen = choose(n, colluding=colluding, dropouts=0.0, minimum=threshold, dimension=1)
    assert (chosen.neighbours, chosen.threshold, chosen.survives) == (0, threshold, survives)
    assert chosen.threshold_for(n) == chosen.quorum_for(n) == threshold


@pytest.mark.parametrize(("n", "corrupt", "drop", "neighbours", "threshold"), SPARSE)
def test_k_neighbour_graph_has_the_table_of_the_design(n, corrupt, drop, neighbours, threshold):
    chosen = choose(n, colluding=n * corrupt // 100, dropouts=drop / 100, dimension=1)
    assert (chosen.neighbours, chosen.threshold) == (neighbours, threshold)
    assert (chosen.n_min, chosen.u_min, chosen.survives) == (n - n * drop // 100, n * 9 // 10, n * drop // 100)
    assert {chosen.threshold_for(adverts) for adverts in (chosen.n_min, n)} == {threshold}
    chosen.check()


@given(cohorts(), st.floats(0.0, 0.5))
def test_no_two_disjoint_groups_of_honest_participants_reach_a_threshold(cohort, dropouts):
    n, c = cohort
    try:
        chosen = choose(n, colluding=c, dropouts=dropouts, dimension=1)
    except PlanError:
        return
    for adverts in range(chosen.n_min, n + 1):
        assert 2 * chosen.threshold_for(adverts) > adverts + c
        assert 2 * (chosen.threshold_for(adverts) - 1) <= adverts + c
        assert c < chosen.threshold_for(adverts) <= chosen.u_min
    assert 2 * chosen.n_min > n + c
    assert chosen.u_min - c >= 2
    assert chosen.survives >= math.floor(Fraction(str(dropouts)) * n)


@settings(max_examples=25, deadline=None)
@given(st.integers(129, 260), st.floats(0, 0.4), st.sampled_from([0.0, 0.05, 0.1, 0.2]))
def test_k_neighbour_graph_is_secret_in_every_session_by_exact_fractions(n, corrupt, dropouts):
    c = int(corrupt * n)
    chosen = choose(n, colluding=c, dropouts=dropouts, minimum=max(n - int(dropouts * n), majority(n, c)), dimension=1)
    k, t = chosen.neighbours, chosen.threshold
    if not k:
        return
    for adverts in {chosen.n_min, n}:
        assert exact_failure(adverts, c, k, t) <= Fraction(2) ** IN_A_SESSION
    assert 2 * t > k + 1
    goal, dropped = Fraction(2) ** int(CORRECTNESS), math.floor(Fraction(str(dropouts)) * n)
    assert (n - dropped) * tail(k - t + 2, n - 1, dropped, k) <= goal
    assert dropped * tail(k - t + 1, n - 1, max(dropped - 1, 0), k) <= goal


@pytest.mark.parametrize(
    ("adverts", "corrupt", "k", "t", "slack"),
    [(150, 40, 60, 45, 1e-9), (180, 40, 77, 59, 1e-9), (60, 6, 20, 16, 1), (60, 6, 20, 15, 2)],
)
def test_failure_is_the_exact_fraction_or_a_little_more(adverts, corrupt, k, t, slack):
    """Exact where dealers decide; where closed sets do, the geometric series costs a bit or two."""
    exact = exact_failure(adverts, corrupt, k, t)
    found = failure(np.array([adverts]), corrupt, k=k, t=t)
    assert -1e-9 <= found - (math.log2(exact.numerator) - math.log2(exact.denominator)) <= slack


def test_failure_is_certain_where_too_few_holders_are_asked_for():
    assert failure(np.array([150]), 10, k=20, t=5) >= 0


def test_fewer_corrupt_or_more_adverts_never_help_the_server():
    chosen = choose(200, colluding=40, dropouts=0.1, dimension=1)
    k, t = chosen.neighbours, chosen.threshold
    by_corrupt = [failure(np.array([180]), c, k=k, t=t) for c in range(41)]
    by_adverts = [failure(np.array([adverts]), 40, k=k, t=t) for adverts in range(180, 201)]
    assert max(by_corrupt) == by_corrupt[-1]
    assert by_adverts == sorted(by_adverts, reverse=True)


def test_smallest_k_is_chosen():
    n, c, dropped = 200, 40, 20
    found = choose(n, colluding=c, dropouts=0.1, dimension=1)
    for k in range(2, found.neighbours):
        rights = [t for t in range(2, k + 2) if (n - dropped) * tail(k - t + 2, n - 1, dropped, k) <= 2**CORRECTNESS]
        assert all(
            (found.n_min - c) * tail(2 * t - k - 1, found.n_min - 1, c, k) > 2**IN_A_SESSION
            for t in rights
            if 2 * t > k
        )


@pytest.mark.parametrize(
    ("sessions", "each", "k", "t"),
    [(1, -50, 77, 59), (1024, -50, 77, 59), (1025, -51, 77, 59), (4097, -53, 78, 60), (1_000_002, -60, 78, 60)],
)
def test_all_sessions_of_a_run_together_have_one_chance(sessions, each, k, t):
    assert secrecy(sessions) == each
    assert max(sessions, 1024) * Fraction(2) ** each <= Fraction(1, 2**40)
    chosen = choose(200, colluding=40, dropouts=0.1, dimension=1, sessions=sessions)
    chosen.check(sessions)
    assert (chosen.neighbours, chosen.threshold) == (k, t)
    assert exact_failure(chosen.n_min, 40, k, t) <= Fraction(2) ** each


def test_everybody_holds_shares_where_no_choice_of_holders_will_do():
    chosen = choose(200, colluding=140, dropouts=0.1, dimension=1)
    assert (chosen.neighbours, chosen.threshold) == (0, 171)
    chosen.check()
    assert search(131, 66, 0, dropped=65, most=-50)[1] > 1
    assert search(4, 3, 0, dropped=1, most=-50) == (0, 3)


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(2, 8) for c in range(n - 1)])
def test_one_set_of_survivors_on_the_complete_graph_by_enumeration(n, c):
    """Each honest participant consents to one of three views, the corrupt to all: no two views reach t."""
    threshold = majority(n, c)
    for views in itertools.product(range(3), repeat=n - c):
        assert sum(views.count(view) + c >= threshold for view in range(3)) <= 1


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(2, 8) for c in range(n - 1)])
def test_one_list_of_adverts_by_enumeration(n, c):
    """Each honest participant signs one list of adverts: no two lists find n_min dealers."""
    fewest = choose(n, colluding=c, dropouts=0.0, minimum=majority(n, c), dimension=1).n_min
    for views in itertools.product(range(3), repeat=n - c):
        assert sum(views.count(view) + c >= fewest for view in range(3)) <= 1


def test_one_consent_less_and_two_halves_each_reach_it():
    for n, c in ((10, 2), (11, 2), (50, 16), (51, 16)):
        first, second = (n - c) // 2, (n - c + 1) // 2
        assert min(first, second) + c >= majority(n, c) - 1


def test_own_holders_alone_would_let_two_sets_of_survivors_pass():
    """Why a quorum of all is asked for: every other check holds, and a sum of 12 opens where 13 was the floor."""
    holders = [539, 4119, 286, 59, 2864, 2465, 6241, 2760, 1864, 2760, 1825, 7328, 5890, 8207]
    t, u_min = 4, 13
    n, everybody = len(holders), (1 << len(holders)) - 1
    assert all(row.bit_count() == 5 and row >> u & 1 for u, row in enumerate(holders))
    assert 2 * t > 5
    for size in range(1, n // 2 + 1):
        for group in itertools.combinations(range(n), size):
            mask = sum(1 << u for u in group)
            assert any((holders[u] & mask).bit_count() < t for u in group), "a closed set"
    views = [(everybody & ~(1 << 13), 0b11111), (everybody & ~(1 << 4), everybody & ~0b11111)]
    released = []
    for survivors, consenters in views:
        assert survivors.bit_count() >= u_min
        assert survivors & consenters == consenters, "nobody consents to a set without itself"
        assert all((holders[v] & survivors).bit_count() >= t for v in members(survivors, n))
        released.append(sum(1 << u for u in members(consenters, n) if (holders[u] & consenters).bit_count() >= t))
    masks, seeds = set(), set()
    for v in range(n):
        opens = [holders[v] & mask for mask in released]
        kept = sum(share.bit_count() for share, (survivors, _) in zip(opens, views, strict=True) if survivors >> v & 1)
        gone = sum(share.bit_count() for share in opens) - kept
        masks |= {v} if kept >= t else set()
        seeds |= {v} if gone >= t else set()
    assert seeds == {4, 13}
    assert masks == set(range(n)) - seeds
    assert len(masks) == u_min - 1
    assert [consenters.bit_count() >= majority(n, 0) for _, consenters in views] == [False, True]


def test_hash_covers_every_field():
    chosen = choose(10, colluding=1, dropouts=0.1, dimension=7)
    others = [msgspec.structs.replace(chosen, **{name: getattr(chosen, name) + 1}) for name in chosen.__struct_fields__]
    assert len({chosen.hash, *(other.hash for other in others)}) == 10
    assert len(chosen.hash) == 32
    assert msgspec.json.decode(msgspec.json.encode(chosen), type=Parameters).hash == chosen.hash


def test_dropouts_are_survived_at_every_stage_so_also_before_anybody_advertised():
    for n, c, dropouts, u_min in ((5, 1, 0.1, 4), (30, 9, 0.1, 27), (10, 1, 0.4, 6)):
        chosen = choose(n, colluding=c, dropouts=dropouts, minimum=u_min, dimension=1)
        assert (chosen.n_min, chosen.survives) == (u_min, n - u_min)
    sparse = choose(200, colluding=20, dropouts=0.1, minimum=150, dimension=1)
    assert (sparse.n_min, sparse.survives) == (180, 20)


@pytest.mark.parametrize(("n", "dropouts", "u_min"), [(12, 0.0, 12), (12, 0.1, 9), (14, 0.1, 9), (20, 0.1, 12)])
def test_each_dropout_takes_a_block_along_and_the_first_the_larger_last_one(n, dropouts, u_min):
    chosen = choose(n, colluding=1, dropouts=dropouts, dimension=1, in_blocks=True)
    assert (chosen.block, chosen.u_min, chosen.n_min) == (3, u_min, u_min)


ONE_SUM = "must be from 7 to 10 of 10 participants, 3 of them colluding, or one round could give two sums"
NAMES, TO_MANY = "participants(), must name from", "to 10000 participants for masked sums, found"
RETURNS = "participants() in study.py returns"
REFUSED = [
    (
        {"n": 10, "colluding": 9},
        "cohort.colluding, must be from 0 to 8 of 10 participants, so that two are honest, found 9; nothing planned",
        "colluding = 8",
    ),
    (
        {"n": 10, "colluding": 0, "distributed": True},
        "cohort.colluding, must be from 1 to 8 of 10 participants, so that two are honest, found 0; nothing planned",
        "colluding = 1",
    ),
    ({"n": 1}, f"{NAMES} 2 {TO_MANY} 1; nothing planned", f"{RETURNS} 2 names"),
    (
        {"n": 2, "colluding": 1, "distributed": True},
        f"{NAMES} 3 {TO_MANY} 2; nothing planned",
        f"{RETURNS} 3 names",
    ),
    (
        {"n": 10_001},
        f"{NAMES} 2 {TO_MANY} 10001; nothing planned",
        f"{RETURNS} 10000 names",
    ),
    (
        {"n": 10, "colluding": 3, "minimum": 6},
        f"cohort.minimum, {ONE_SUM}, found 6; nothing planned",
        "minimum = 7",
    ),
    (
        {"n": 10, "colluding": 3, "minimum": 11},
        f"cohort.minimum, {ONE_SUM}, found 11; nothing planned",
        "minimum = 10",
    ),
    (
        {"n": 10, "dropouts": 0.3},
        "cohort.dropouts, must leave 9 of 10 participants, found 0.3, which leaves 7; nothing planned",
        "minimum = 7",
    ),
    (
        {"n": 20, "colluding": 17, "dropouts": 0.1},
        "cohort.dropouts, must leave 19 of 20 participants, found 0.1, which leaves 18; nothing planned",
        "dropouts = 0.05",
    ),
    (
        {"n": 10, "org_min": 11},
        "cohort.org_min, must be from 1 to 10 with 10 participants, found 11; nothing planned",
        "org_min = 10",
    ),
    (
        {"n": 10, "dimension": 0},
        "secagg.dimension, must be from 1 to 4294967296 coordinates, found 0; nothing planned",
        "dimension = 1",
    ),
]


@pytest.mark.parametrize(("asked", "words", "hint"), REFUSED)
def test_refusal_says_which_number_to_change_to_which_value(asked, words, hint):
    asked = {"colluding": 0, "dropouts": 0.0, "dimension": 1} | asked
    with pytest.raises(PlanError, match=f"^{re.escape(words)}\n") as caught:
        choose(**asked)
    assert caught.value.hint == hint
    name, value = hint.removesuffix(" names").replace(f"{RETURNS} ", "n = ").split(" = ")
    choose(**asked | {name: float(value) if name == "dropouts" else int(value)})


FORGED = [
    ({"threshold": 6}, "secagg.threshold, must be 7 shares, found 6; nothing planned", "threshold = 7"),
    (
        {"n_min": 6},
        f"secagg.n_min, {ONE_SUM}, found 6; nothing planned",
        "n_min = 7",
    ),
    (
        {"neighbours": 9},
        "secagg.neighbours, must be from 0 to 7 of the 9 in a session, found 9; nothing planned",
        "neighbours = 7",
    ),
]


@pytest.mark.parametrize(("change", "words", "hint"), FORGED)
def test_forged_thresholds_are_refused(change, words, hint):
    forged = msgspec.structs.replace(choose(10, colluding=3, dropouts=0.0, dimension=1), **change)
    with pytest.raises(PlanError, match=f"^{re.escape(words)}\n") as caught:
        forged.check()
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("change", "found", "hint"),
    [
        ({"threshold": 58}, "2^-40.37 with 58 of 78", "neighbours = 77, threshold = 59"),
        ({"neighbours": 78}, "2^-45.06 with 59 of 79", "neighbours = 77, threshold = 59"),
        ({"colluding": 41}, "2^-47.89 with 59 of 78", "neighbours = 78, threshold = 60"),
        ({"n_min": 160}, "2^-45.25 with 59 of 78", "neighbours = 114, threshold = 78"),
        ({"n_min": 121}, "2^-26.70 with 59 of 78", "neighbours = 0, threshold = 121"),
    ],
)
def test_small_threshold_is_refused(change, found, hint):
    forged = msgspec.structs.replace(choose(200, colluding=40, dropouts=0.1, dimension=1), **change)
    words = f"secagg.threshold, must keep the chance of a second sum at most 2^-50 in a session, found {found} holders"
    with pytest.raises(PlanError, match=f"^{re.escape(words)}; nothing planned\n") as caught:
        forged.check()
    assert caught.value.hint == hint
