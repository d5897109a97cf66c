"""Policies: quorums, the text form, and everything that is refused in it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import InputError
from hubbub.tlog import Policy, Signer
from hubbub.tlog.keys import COSIGNATURE, ED25519, ML_DSA_44
from hubbub.tlog.policy import majority_policy, parse_policy, quorum


def vkey(name, kind=COSIGNATURE):
    return str(Signer(name, kind, name.encode().ljust(32, b"\0")).verifier)


LOG, W1, W2, W3 = vkey("log", ED25519), vkey("w1"), vkey("w2"), vkey("w3")

EXAMPLE = f"""\
# a comment
log {LOG} https://log.example/

 \twitness X1\t{W1}   https://w1.example/ \t
witness X2 {W2}
witness Y1 {W3}
  # another
group X any X1 X2
group X-and-Y all X Y1
quorum X-and-Y
"""


@pytest.mark.parametrize(
    ("witnesses", "lying", "needed"),
    [(3, 0, 2), (3, 1, 3), (4, 1, 3), (5, 1, 4), (7, 2, 5), (10, 3, 7), (20, 6, 14), (50, 16, 34), (1, 0, 1)],
)
def test_a_quorum_is_half_of_witnesses_and_liars_and_one(witnesses, lying, needed):
    assert quorum(witnesses, lying) == needed


@given(st.integers(1, 40), st.data())
def test_two_quorums_share_an_honest_witness_and_one_fewer_would_not(witnesses, data):
    lying = data.draw(st.integers(0, witnesses - 1))
    needed = quorum(witnesses, lying)
    assert 2 * needed - witnesses > lying
    assert 2 * (needed - 1) - witnesses <= lying


def test_the_policy_of_an_example_counts_groups_of_groups():
    policy = parse_policy(EXAMPLE.encode())
    accepted = {
        names
        for count in range(4)
        for names in itertools.combinations(["X1", "X2", "Y1"], count)
        if policy.is_quorum(names)
    }
    assert accepted == {("X1", "Y1"), ("X2", "Y1"), ("X1", "X2", "Y1")}
    assert policy.logs[0].url == "https://log.example/"
    assert policy.witnesses[0].url == "https://w1.example/"


def test_a_policy_that_is_written_is_read_back():
    policy = parse_policy(EXAMPLE.encode())
    assert parse_policy(bytes(policy)) == policy
    assert bytes(parse_policy(bytes(policy))) == bytes(policy)


@given(st.integers(1, 5), st.data())
def test_a_majority_policy_is_written_read_back_and_counts(witnesses, data):
    lying = data.draw(st.integers(0, witnesses - 1))
    names = [f"w{number}" for number in range(witnesses)]
    keys = {name: Signer(name, COSIGNATURE, name.encode().ljust(32, b"\0")).verifier for name in names}
    policy = majority_policy(Signer("log", ED25519, bytes(32)).verifier, keys, lying)
    assert parse_policy(bytes(policy)) == policy
    for count in range(witnesses + 1):
        assert policy.is_quorum(names[:count]) == (count >= quorum(witnesses, lying))


def test_a_quorum_larger_than_the_witnesses_is_refused(key):
    witnesses = {"w1": key("w1", COSIGNATURE).verifier}
    with pytest.raises(
        InputError, match="a quorum of 2, must be found among the witnesses, found 1 of which 1 may lie"
    ):
        majority_policy(key().verifier, witnesses, 1)


def test_without_witnesses_nobody_need_cosign():
    policy = parse_policy(f"log {LOG}\nquorum none\n".encode())
    assert policy.is_quorum([])
    assert parse_policy(b"quorum none\n") == Policy()


def test_a_witness_that_is_called_none_has_not_cosigned_before_it_has(key):
    witnesses = {"none": key("w1", COSIGNATURE).verifier, "a": key("w2", COSIGNATURE).verifier}
    policy = majority_policy(key().verifier, witnesses, 0)
    assert not policy.is_quorum(["a"])
    assert policy.is_quorum(["a", "none"])


def test_a_single_witness_may_be_the_quorum():
    policy = parse_policy(f"witness X1 {W1}\nquorum X1\n".encode())
    assert (policy.is_quorum(["X1"]), policy.is_quorum([])) == (True, False)


def test_names_are_octets_and_only_blanks_and_tabs_separate():
    name = b"caf\xe9\xc2\xa0\xe2\x84\xaa"
    policy = parse_policy(b"witness %b %b\nquorum %b\n" % (name, W1.encode(), name))
    assert bytes(policy).splitlines()[1] == b"quorum " + name


def test_logs_and_witnesses_may_sign_with_ml_dsa():
    text = f"log {vkey('log', ML_DSA_44)}\nwitness A {vkey('a', ML_DSA_44)}\nquorum A\n"
    assert [party.key.kind for party in parse_policy(text.encode()).logs] == [ML_DSA_44]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quorum none", "each end in a newline"),
        ("quorum none\r\n", "control characters"),
        ("quorum none\n\x7f\n", "control characters"),
        ("", "newline"),
        (f"log {LOG}\n", "must have a quorum line"),
        ("quorum none\nquorum none\n", "line 2"),
        ("quorum X\n", "line 1"),
        (f"quorum X1\nwitness X1 {W1}\n", "line 1"),
        ("log\nquorum none\n", "line 1"),
        (f"log {LOG} u u\nquorum none\n", "line 1"),
        (f"log {W1}\nquorum none\n", "line 1, must have a key of a type that its owner signs with"),
        (f"log {LOG}\nlog {LOG}\nquorum none\n", "line 2, must have a key of a type"),
        ("log abc\nquorum none\n", "must be a verifier key"),
        (f"witness A {LOG}\nquorum none\n", "line 1, must have a key of a type"),
        (f"witness A {W1}\nwitness B {W1}\nquorum none\n", "line 2, must have a key of a type"),
        (f"witness A {W1}\nwitness A {W2}\nquorum none\n", "line 2"),
        (f"witness none {W1}\nquorum none\n", "line 1"),
        (f"witness A {W1} u u\nquorum none\n", "line 1"),
        ("group none any A\nquorum none\n", "line 1"),
        ("group G any\nquorum none\n", "line 1"),
        ("group G any A\nquorum none\n", "line 1"),
        (f"witness A {W1}\ngroup G any A A\nquorum none\n", "line 2"),
        (f"witness A {W1}\ngroup A any A\nquorum none\n", "line 2"),
        (f"witness A {W1}\ngroup G any A\ngroup H any A\nquorum none\n", "line 3"),
        (f"witness A {W1}\ngroup G any none\nquorum none\n", "line 2"),
        (f"witness A {W1}\ngroup G 0 A\nquorum none\n", "line 2, must have 'any', 'all' or 1 to 1 of its members"),
        (f"witness A {W1}\ngroup G 2 A\nquorum none\n", "line 2, must have 'any', 'all' or 1 to 1"),
        (f"witness A {W1}\ngroup G 01 A\nquorum none\n", "line 2, must have 'any', 'all' or 1 to 1"),
        (f"witness A {W1}\ngroup G ٣ A\nquorum none\n", "line 2, must have 'any', 'all' or 1 to 1"),
        ("threshold 3\nquorum none\n", "line 1"),
        ("quorum none # really\n", "line 1"),
    ],
)
def test_a_policy_with_a_flaw_is_refused_by_its_line(text, words):
    with pytest.raises(InputError) as caught:
        parse_policy(text.encode())
    assert words in caught.value.message


@given(st.binary(max_size=60) | st.text("loggroupwitnessquorum none\n#AB1").map(str.encode))
def test_noise_is_refused_with_our_own_error(data):
    try:
        policy = parse_policy(data)
    except InputError:
        return
    assert parse_policy(bytes(policy)) == policy
