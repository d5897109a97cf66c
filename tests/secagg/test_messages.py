"""Bytes have one reading, and what is no message is refused with one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import HubbubError, InputError
from hubbub.secagg import messages
from hubbub.secagg.messages import read

KINDS = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, messages.Part) and kind is not messages.Part
]
leaf = messages.Leaf(bytes(32), bytes(32), b"sealed")
signed = messages.Signed(b"body", bytes(64))
SAMPLES = [
    messages.Envelope("advert", bytes(32), b"body", bytes(64), b"more"),
    messages.Advert("site", bytes(32), bytes(32), bytes(32)),
    messages.Adverts((signed, signed)),
    messages.Leaves((leaf,)),
    messages.Deliver("u", (signed,), (messages.Delivered(leaf, (bytes(32), bytes(32))), messages.Delivered(leaf, ()))),
    messages.Header("site", bytes(32), bytes(32), bytes(32), 2**64 - 1, ("one", "zwölf")),
    messages.Unmask("site", bytes(32), (b"", b"share")),
    messages.Survivors("u", b"\x07", bytes(32), ()),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_what_is_written_is_read_again(sample):
    assert read(type(sample), sample.encode()) == sample


@given(data=st.binary(max_size=200), kind=st.sampled_from(KINDS))
def test_random_bytes_are_no_message(data, kind):
    try:
        found = read(kind, data)
    except InputError as error:
        assert error.message.startswith("secagg message, must have ")  # noqa: PT017, some random bytes are a message
        return
    assert found.encode() == data


@given(data=st.data())
def test_a_changed_message_is_refused_or_says_something_else(data):
    sample = data.draw(st.sampled_from(SAMPLES))
    encoded = bytearray(sample.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        match data.draw(st.sampled_from(["change", "insert", "delete"])):
            case "change":
                encoded[at] = data.draw(st.integers(0, 255))
            case "insert":
                encoded.insert(at, data.draw(st.integers(0, 255)))
            case _ if len(encoded) > 1:
                del encoded[at]
            case _:
                pass
    try:
        found = read(type(sample), bytes(encoded))
    except InputError:
        return
    assert found.encode() == bytes(encoded)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x00", "a length of 4 bytes before each field, found 2 bytes"),
        (b"\x00\x00\x00\x05abc", "a field of 5 bytes, found 3 bytes"),
        (messages.enc(b"body"), "2 fields in signed, found another number"),
        (messages.enc(b"body", bytes(64), b""), "2 fields in signed, found another number"),
        (messages.enc(b"body", bytes(63)), "64 bytes in a field, found 63"),
    ],
)
def test_a_malformed_message_is_refused_by_what_is_wrong(data, words):
    with pytest.raises(InputError, match=f"secagg message, must have {words}; nothing done"):
        read(messages.Signed, data)


def test_a_name_is_utf_8():
    with pytest.raises(InputError, match="UTF-8 in a name, found other bytes"):
        read(messages.Consent, messages.enc(b"\xff", bytes(32)))


@given(data=st.binary(max_size=300))
def test_both_halves_refuse_noise_with_our_own_errors(data):
    wrapped = messages.Envelope("advert", bytes(32), data, bytes(64), data).encode()
    for bytes_in in (data, wrapped):
        with pytest.raises(HubbubError):
            SERVER.receive(bytes_in)
        with pytest.raises(HubbubError):
            CLIENT.receive(bytes_in)
        with pytest.raises(HubbubError):
            CLIENT.open(bytes_in, SERVER.session)


def _pair():
    from hubbub.secagg import SUITE, Client, Member, Parameters, Roster, Server, Session, SigningKey

    key = SigningKey(bytes(32))
    roster = Roster([Member("site", "org", key.public)])
    parameters = Parameters(n=3, n_min=2, u_min=2, threshold=2, neighbours=0, colluding=0, org_min=1, dimension=3)
    h = bytes(32)
    session = Session(SUITE, key.public, "toy", h, 1, parameters.hash, 1, h, "update", 1, 1, h, "toy", 0, h)
    client = Client("site", key=key, roster=roster, parameters=parameters, mark=lambda *_: None, charge=lambda *_: None)
    return client, Server(session, key=key, roster=roster, parameters=parameters)


CLIENT, SERVER = _pair()
