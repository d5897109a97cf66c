"""A site's own policy: it forbids, and never allows."""

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import InputError, RefusedError
from hubbub.governance import Facts, SitePolicy, read_attestation_policy, read_policy

TODAY = dt.date(2026, 1, 1)
FACTS = Facts(
    federation="f" * 64, epsilon=2.0, minimum=3, purpose="research", code_hash="c" * 64, peers=frozenset({"a" * 16})
)


def test_a_policy_without_limits_forbids_nothing():
    SitePolicy().check(FACTS, today=TODAY)


FITTING = {
    "federation": "f" * 64,
    "epsilon": 2.0,
    "minimum": 3,
    "purposes": ("care", "research"),
    "code_hashes": ("c" * 64,),
    "peers": ("a" * 16,),
    "retention": TODAY,
}


@pytest.mark.parametrize("key", FITTING)
def test_a_limit_that_is_kept_forbids_nothing(key):
    SitePolicy(**{key: FITTING[key]}).check(FACTS, today=TODAY)


BROKEN = {
    "federation": ("e" * 64, "federation, must be eeeeeeeeeeeeeeee, found ffffffffffffffff"),
    "epsilon": (1.9, "epsilon, must be at most 1.9, found 2"),
    "minimum": (4, "minimum, must be at least 4, found 3"),
    "purposes": (("care", "quality"), "purposes, must be one of care, quality, found research"),
    "code_hashes": ((), f"code_hashes, must be one of nothing, found {'c' * 64}"),
    "peers": (("a" * 16, "b" * 16), "peers, must be bbbbbbbbbbbbbbbb in the roster, found it absent"),
    "retention": (dt.date(2025, 12, 31), "retention, must be until 2025-12-31, found 2026-01-01"),
}


@pytest.mark.parametrize("key", BROKEN)
def test_a_limit_that_is_broken_is_named(key):
    value, words = BROKEN[key]
    with pytest.raises(RefusedError) as caught:
        SitePolicy(**{key: value}).check(FACTS, today=TODAY)
    assert caught.value.message == f"this site's policy: {words}; nothing trained, nothing sent"
    assert caught.value.hint == f"[policy] {key} in site.toml is this site's to change"


def test_a_site_of_a_federation_takes_part_in_no_sandbox():
    with pytest.raises(RefusedError, match="federation, must be ffffffffffffffff, found a sandbox"):
        SitePolicy(federation="f" * 64).check(msgspec.structs.replace(FACTS, federation=""), today=TODAY)


def test_no_finite_limit_admits_a_study_without_noise():
    with pytest.raises(RefusedError, match="epsilon, must be at most 1e\\+06, found infinite"):
        SitePolicy(epsilon=1e6).check(msgspec.structs.replace(FACTS, epsilon=None), today=TODAY)


def is_admitted(policy, facts):
    try:
        policy.check(facts, today=TODAY)
    except RefusedError:
        return False
    return True


PURPOSES = st.sampled_from(["research", "care", "quality"])
HASHES = st.sampled_from(["c" * 64, "d" * 64])
KEYS = st.sampled_from(["a" * 16, "b" * 16])
POLICIES = st.builds(
    SitePolicy,
    federation=st.none() | st.sampled_from(["f" * 64, "e" * 64]),
    epsilon=st.none() | st.floats(0.5, 4.0),
    minimum=st.none() | st.integers(1, 5),
    purposes=st.none() | st.lists(PURPOSES, max_size=2).map(tuple),
    code_hashes=st.none() | st.lists(HASHES, max_size=2).map(tuple),
    peers=st.lists(KEYS, max_size=2).map(tuple),
    retention=st.none() | st.dates(dt.date(2025, 12, 30), dt.date(2026, 1, 3)),
)
ALL_FACTS = st.builds(
    Facts,
    federation=st.sampled_from(["", "f" * 64, "e" * 64]),
    epsilon=st.none() | st.floats(0.5, 4.0),
    minimum=st.integers(1, 5),
    purpose=PURPOSES,
    code_hash=HASHES,
    peers=st.frozensets(KEYS),
)


@given(POLICIES, ALL_FACTS, st.sampled_from(sorted(FITTING)))
def test_a_limit_more_never_admits_more(policy, facts, key):
    without = msgspec.structs.replace(policy, **{key: () if key == "peers" else None})
    assert is_admitted(without, facts) or not is_admitted(policy, facts)
    assert is_admitted(SitePolicy(), facts)


def test_the_policy_is_read_from_a_site_file(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[site]\nkey = 1\n[policy]\nepsilon = 2.5\npurposes = ["care"]\nretention = 2030-12-31\n')
    assert read_policy(path) == SitePolicy(epsilon=2.5, purposes=("care",), retention=dt.date(2030, 12, 31))


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "a = " + "[" * 50_000,
        "policy = 3",
        "[policy]\nepsilon = -1",
        "[policy]\nother = 1",
        '[policy]\npurposes = ["fun"]',
    ],
)
def test_a_damaged_site_file_is_refused(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="must be a site file") as caught:
        read_policy(path)
    assert "[policy] knows federation, epsilon" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "unknown"),
    [("[policy]\n[atestation]\nrequired = true\n", "atestation"), ("epsilon = 1.0\n[policy]\n", "epsilon")],
)
def test_a_site_file_with_a_table_that_nobody_reads_is_refused(tmp_path, text, unknown):
    path = tmp_path / "site.toml"
    path.write_text(text)
    for read in (read_policy, read_attestation_policy):
        with pytest.raises(InputError, match=f"must be a site file, found Object contains unknown field `{unknown}`"):
            read(path)


def test_a_site_file_without_a_policy_is_refused(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("")
    with pytest.raises(InputError, match=r"must be a site file, found no table \[policy\]"):
        read_policy(path)
    with pytest.raises(InputError, match="No such file"):
        read_policy(tmp_path / "none.toml")
