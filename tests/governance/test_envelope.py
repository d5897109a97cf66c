"""Envelopes: DSSE as it is specified, one form for one meaning, nothing changed unseen."""

import json
from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import HubbubError, InputError, RefusedError
from hubbub.governance.envelope import LARGEST_BYTES, check_signature, is_signed, key_id, pae, seal, unseal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
BODY = b'{"_type":"x"}'


def test_the_specifications_vector_verifies_over_our_encoding():
    # secure-systems-lab/dsse, protocol.md: ECDSA P-256, SHA-256, raw r and s
    x = 46950820868899156662930047687818585632848591499744589407958293238635476079160
    y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
    signature = b64decode("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    message = pae("http://example.com/HelloWorld", b"hello world")
    assert message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))


@given(st.text(max_size=20), st.binary(max_size=20), st.text(max_size=20), st.binary(max_size=20))
def test_no_two_pairs_of_type_and_body_share_their_signed_bytes(one, body, other, another):
    assert (pae(one, body) == pae(other, another)) == ((one, body) == (other, another))


def test_an_envelope_is_what_any_reader_of_dsse_expects():
    document = json.loads(seal(BODY, KEY))
    assert list(document) == ["payload", "payloadType", "signatures"]
    assert document["payloadType"] == "application/vnd.in-toto+json"
    assert b64decode(document["payload"]) == BODY
    (signature,) = document["signatures"]
    assert signature["keyid"] == key_id(PUBLIC)
    KEY.public_key().verify(b64decode(signature["sig"]), pae(document["payloadType"], BODY))


def test_a_key_id_is_sixteen_digits_of_the_keys_sha256():
    assert key_id(b"") == "e3b0c44298fc1c14"


def test_what_was_sealed_is_read_again_and_its_signature_holds():
    envelope = unseal(seal(BODY, KEY))
    assert (envelope.body, envelope.key_id) == (BODY, key_id(PUBLIC))
    check_signature(envelope, PUBLIC, "ana")


def test_another_keys_signature_is_refused():
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(RefusedError) as caught:
        check_signature(unseal(seal(BODY, KEY)), other, "ana")
    assert caught.value.message == (
        "ana, must have signed exactly these bytes, found a signature that does not fit; nothing done"
    )
    assert caught.value.hint == "ask ana to sign again"


def test_a_key_that_is_no_point_signs_nothing():
    assert not is_signed(b"\xff" * 31, bytes(64), b"")
    assert not is_signed(PUBLIC, bytes(64), b"")


def spaced(document):
    return json.dumps(document)


def compact(document):
    return json.dumps(document, separators=(",", ":"))


def changed(**changes):
    return compact(json.loads(seal(BODY, KEY)) | changes)


def signed_with(**changes):
    document = json.loads(seal(BODY, KEY))
    document["signatures"][0] |= changes
    return compact(document)


SIGNATURE = json.loads(seal(BODY, KEY))["signatures"][0]
LOOSE = b64encode(b"a").decode().replace("YQ", "YR")  # another spelling of the same byte


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[" * 50_000,
        "\ud800",
        spaced(json.loads(seal(BODY, KEY))),
        compact(dict(reversed(json.loads(seal(BODY, KEY)).items()))),
        changed(extra=1),
        changed(payloadType="application/json"),
        changed(payload="not base64"),
        changed(payload="caf\xe9"),
        changed(payload=LOOSE),
        changed(signatures=[]),
        changed(signatures=[SIGNATURE, SIGNATURE]),
        signed_with(sig="!"),
        signed_with(sig=LOOSE),
        signed_with(extra=""),
        seal(BODY, KEY).replace("payloadType", "payload\\u0054ype"),
        seal(BODY, KEY) + " ",
    ],
)
def test_any_other_form_is_refused(text):
    with pytest.raises(InputError, match=r"^envelope, must be .*; nothing recorded\n") as caught:
        unseal(text)
    assert caught.value.hint == "ask whoever signed for it again"


def test_what_no_entry_of_the_log_could_hold_is_not_signed():
    with pytest.raises(InputError, match=f"must be at most {LARGEST_BYTES} characters, found") as caught:
        seal(b"x" * LARGEST_BYTES, KEY)
    assert caught.value.hint == "name fewer keys or datasets at once"
    with pytest.raises(InputError, match="must be at most"):
        unseal("x" * (LARGEST_BYTES + 1))


@settings(max_examples=300)
@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_text_is_an_envelope_or_refused(text):
    try:
        unseal(text)
    except InputError as error:
        assert error.message.startswith("envelope, must be ")  # noqa: PT017 -- all others must not be raised


def flips(text):
    """Every text that differs in one bit."""
    raw = text.encode()
    for at in range(len(raw)):
        for bit in range(8):
            yield (raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]).decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("kind", ["proposal", "decision"])
@pytest.mark.slow
def test_no_bit_of_an_envelope_can_be_flipped(approved, kind):
    act = approved.study(*approved.datasets, plan_hash="a" * 64)
    if kind == "proposal":
        text = approved.proposal("scientist", act)
    else:
        text = approved.decision("officer", approved.propose("scientist", act), conditions=("weekly report",))
    approved.state.check(text, approved.now)
    for flipped in flips(text):
        with pytest.raises(HubbubError):
            approved.state.check(flipped, approved.now)
