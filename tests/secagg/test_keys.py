"""The primitives are the standards', and bytes made for one purpose serve no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import RoundError
from hubbub.secagg import keys

hexed = bytes.fromhex


def test_x25519_is_rfc_7748():
    alice = keys.ExchangeKey(hexed("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = keys.ExchangeKey(hexed("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    shared = hexed("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.public == hexed("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public == hexed("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert alice.agree(bob.public, "bob") == bob.agree(alice.public, "alice") == shared


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_ed25519_is_rfc_8032(seed, public, message, signature):
    key = keys.SigningKey(hexed(seed))
    assert key.public == hexed(public)
    assert key.sign_bytes(hexed(message)) == hexed(signature)
    assert keys.is_signed_bytes(key.public, hexed(signature), hexed(message))
    assert not keys.is_signed_bytes(key.public, hexed(signature), hexed(message) + b"x")


@pytest.mark.parametrize(
    ("salt", "info", "output"),
    [
        (
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        ("", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
)
def test_hkdf_is_rfc_5869(salt, info, output):
    assert keys.derive(b"\x0b" * 22, salt=hexed(salt), info=hexed(info), size=42) == hexed(output)


def test_mask_stream_is_aes_256_ctr_of_sp_800_38a():
    key = hexed("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = hexed(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    sealed = hexed(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    assert keys.mask_stream(key, hexed("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")).update(plain) == sealed


@pytest.mark.parametrize("public", ["00" * 32, "01" + "00" * 31])
def test_a_key_that_agrees_on_zero_is_refused_and_its_owner_named(public):
    with pytest.raises(RoundError, match="mallory, must advertise keys of large order"):
        keys.ExchangeKey(keys.fresh(32)).agree(hexed(public), "mallory")


@pytest.mark.parametrize(
    ("public", "is_key"),
    [("09" + "00" * 31, True), ("09" + "00" * 30 + "80", False), ("ed" + "ff" * 30 + "7f", False), ("09", False)],
)
def test_an_exchange_key_is_written_in_one_way(public, is_key):
    assert keys.is_exchange_key(hexed(public)) == is_key


def test_a_public_key_that_is_no_point_signs_nothing():
    assert not keys.is_signed_bytes(b"\x02" + bytes(31), bytes(64), b"")
    assert not keys.is_signed_bytes(b"short", bytes(64), b"")


def test_share_keys_have_a_direction_and_pair_keys_have_none():
    secret, scope = keys.fresh(32), keys.fresh(32)
    there, back = (keys.share_key(secret, scope, sender=one, receiver=other) for one, other in [("a", "b"), ("b", "a")])
    assert there != back
    context = b"context"
    one, other = keys.seal(there, bytes(66), context), keys.seal(back, bytes(66), context)
    assert one[:66] != other[:66]  # equal keystreams would give equal ciphertexts of equal shares
    assert keys.unseal(there, one, context) == bytes(66)
    assert keys.unseal(there, other, context) is None
    assert keys.unseal(there, one, b"another") is None
    assert keys.pair_key(secret, scope, "a", "b") == keys.pair_key(secret, scope, "b", "a")
    assert keys.pair_key(secret, scope, "a", "b") != keys.pair_key(secret, keys.fresh(32), "a", "b")
    assert keys.self_key(secret, scope, "a") != keys.self_key(secret, scope, "b")


def test_a_signature_is_bound_to_kind_session_and_body():
    key, session = keys.SigningKey(keys.fresh(32)), keys.fresh(32)
    signature = key.sign("consent", session, b"body")
    assert keys.is_signed(key.public, signature, "consent", session, b"body")
    assert not keys.is_signed(key.public, signature, "unmask", session, b"body")
    assert not keys.is_signed(key.public, signature, "consent", keys.fresh(32), b"body")
    assert not keys.is_signed(key.public, signature, "consent", session, b"bode")


fields = st.lists(st.binary(max_size=3) | st.integers(0, 300) | st.text(max_size=2), max_size=4)


@given(one=fields, other=fields)
def test_no_two_lists_of_fields_of_the_same_types_share_their_bytes(one, other):
    if [type(field) for field in one] == [type(field) for field in other]:
        assert (keys.enc(*one) == keys.enc(*other)) == (one == other)


def test_the_halves_use_no_socket_clock_file_or_each_other():
    import ast
    from pathlib import Path

    import hubbub.secagg

    folder = Path(hubbub.secagg.__file__).parent
    forbidden = {"os", "time", "random", "socket", "secrets", "datetime", "pathlib", "threading", "asyncio"}
    for half, other in {"client": "server", "checks": "server", "server": "client"}.items():
        for node in ast.walk(ast.parse((folder / f"{half}.py").read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                parts = {part for name in names for part in name.split(".")}
                assert not parts & (forbidden | {other, *(["client", "checks"] if half == "server" else [])}), half
            assert not (isinstance(node, ast.Name) and node.id in {"open", "__import__", "print"}), half
