"""Keys and cards on disk: the owner's alone, four of them, and a card that cannot be changed."""

import hashlib

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hubbub.errors import InputError, RefusedError
from hubbub.governance import load_keys, new_keys
from hubbub.governance.envelope import is_signed
from hubbub.governance.keys import read_card, write_card


@pytest.fixture
def keys():
    """Give fresh keys of an owner."""
    return new_keys("ana", organisation="clinic-1", role="data-owner")


def test_keys_are_read_as_they_were_written(keys, tmp_path):
    keys.save(tmp_path / "ana.key")
    again = load_keys(tmp_path / "ana.key")
    assert again.card == keys.card
    for use in ("identity", "protocol", "witness"):
        assert getattr(again, use).private_bytes_raw() == getattr(keys, use).private_bytes_raw()
    assert again.transport.private_numbers() == keys.transport.private_numbers()


def test_a_key_file_is_its_owners_alone(keys, tmp_path):
    path = tmp_path / "new" / "ana.key"
    keys.save(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_key_file_that_others_may_read_is_refused(keys, tmp_path, mode):
    path = tmp_path / "ana.key"
    keys.save(path)
    path.chmod(mode)
    with pytest.raises(RefusedError) as caught:
        load_keys(path)
    assert (
        caught.value.message == f"{path}, must be readable by its owner only, found it open to others; nothing signed"
    )
    assert caught.value.hint == f"chmod 600 {path}, and hubbub keys rotate if somebody may have read it"


def test_a_card_in_the_place_of_a_key_file_is_named_so(keys, tmp_path):
    write_card(keys.card, tmp_path / "ana.card")
    with pytest.raises(
        InputError, match="must be a key file, found a card, which is for everybody; nothing signed"
    ) as caught:
        load_keys(tmp_path / "ana.card")
    assert caught.value.hint.endswith("ana.key")


def test_a_key_file_is_never_written_over(keys, tmp_path):
    path = tmp_path / "ana.key"
    keys.save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="must be a new key file, File exists; no key made"):
        new_keys("ana", organisation="clinic-1", role="data-owner").save(path)
    assert path.read_bytes() == before


def test_two_calls_make_eight_different_keys(keys):
    other = new_keys("ana", organisation="clinic-1", role="data-owner")
    assert len({*keys.card.public_keys, *other.card.public_keys}) == 8


@pytest.mark.parametrize(
    "fields",
    [("ana maria", "clinic-1", "data-owner"), ("ana", "", "data-owner"), ("a\n", "b", "node"), ("none", "b", "node")],
)
def test_a_holder_without_a_proper_name_gets_no_keys(fields):
    name, organisation, role = fields
    with pytest.raises(
        InputError, match=r"^card of .*(name|organisation) must be 1 to 63 ASCII letters.*; no key made\n"
    ):
        new_keys(name, organisation=organisation, role=role)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 50_000, b"\xff"])
def test_a_damaged_key_file_is_refused(tmp_path, content):
    path = tmp_path / "ana.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match=r"must be a key file, .*; nothing signed"):
        load_keys(path)


def test_a_missing_key_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a key file, No such file or directory; nothing signed") as caught:
        load_keys(tmp_path / "none.key")
    assert caught.value.hint == "hubbub keys new makes one"


def rewritten(path, change):
    document = msgspec.json.decode(path.read_bytes())
    change(document)
    path.write_bytes(msgspec.json.encode(document))


@pytest.mark.parametrize("use", ["identity", "protocol", "witness", "transport"])
def test_a_key_file_whose_keys_are_not_its_cards_is_refused(keys, tmp_path, use):
    path = tmp_path / "ana.key"
    keys.save(path)
    rewritten(path, lambda document: document.update({use: "01" * 32}))
    with pytest.raises(InputError, match="must hold the keys of its card, found others"):
        load_keys(path)


@pytest.mark.parametrize("secret", ["00" * 32, "ff" * 32])
def test_a_key_file_whose_transport_secret_is_no_number_of_the_curve_is_refused(keys, tmp_path, secret):
    path = tmp_path / "ana.key"
    keys.save(path)
    rewritten(path, lambda document: document.update(transport=secret))
    with pytest.raises(InputError, match=r"must be a key file, .*; nothing signed"):
        load_keys(path)


def test_a_card_shows_the_sha256_that_a_certificate_of_its_transport_key_has(keys, tmp_path):
    keys.save(tmp_path / "ana.key")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ana")])
    builder = x509.CertificateSigningRequestBuilder(subject)
    request = builder.sign(load_keys(tmp_path / "ana.key").transport, hashes.SHA256())
    public = request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(public).hexdigest() == keys.card.transport


def test_a_key_file_whose_card_was_changed_is_refused(keys, tmp_path):
    path = tmp_path / "ana.key"
    keys.save(path)
    rewritten(path, lambda document: document["card"].update(role="privacy-officer"))
    with pytest.raises(RefusedError, match="card of ana, must be signed by its identity key"):
        load_keys(path)


# --- cards


def test_a_card_is_read_as_it_was_written(keys, tmp_path):
    write_card(keys.card, tmp_path / "ana.card")
    assert read_card(tmp_path / "ana.card") == keys.card
    assert b"private" not in (tmp_path / "ana.card").read_bytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "eve"),
        ("organisation", "clinic-2"),
        ("role", "operator"),
        ("identity", "00" * 32),
        ("protocol", "00" * 32),
        ("witness", "00" * 32),
        ("transport", "00" * 32),
        ("signature", "00" * 64),
    ],
)
def test_a_card_that_was_changed_anywhere_is_refused(keys, tmp_path, field, value):
    write_card(msgspec.structs.replace(keys.card, **{field: value}), tmp_path / "ana.card")
    with pytest.raises(RefusedError, match="must be signed by its identity key"):
        read_card(tmp_path / "ana.card")


ONE = "01" + "00" * 31
"""The point of order 1, for which R = 1, S = 0 is a signature of everything."""


POINTS = (
    ONE,
    "00" * 32,
    "00" * 31 + "80",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 31,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)
SMALL = "found one of small order, for which anybody can sign; nothing recorded"


@pytest.mark.parametrize("use", ["protocol", "witness"])
@pytest.mark.parametrize("point", POINTS)
def test_a_key_for_which_anybody_can_sign_is_on_no_card(keys, use, point):
    card = msgspec.structs.replace(keys.card, **{use: point})
    card = msgspec.structs.replace(card, signature=keys.identity.sign(card.message).hex())
    with pytest.raises(RefusedError, match=SMALL):
        card.check()


def test_a_holder_who_could_deny_every_signature_has_no_card(keys):
    card = msgspec.structs.replace(keys.card, identity=ONE, signature=ONE + "00" * 32)
    assert is_signed(bytes.fromhex(ONE), bytes.fromhex(card.signature), b"anything")
    with pytest.raises(RefusedError, match=SMALL):
        card.check()


def test_one_key_has_one_purpose(keys):
    card = msgspec.structs.replace(keys.card, protocol=keys.card.witness)
    card = msgspec.structs.replace(card, signature=keys.identity.sign(card.message).hex())
    with pytest.raises(RefusedError, match="must show a key of its own for each purpose, found one twice"):
        card.check()


@pytest.mark.parametrize("content", [b"", b'{"name":"ana"}', b"[" * 50_000])
def test_a_damaged_card_is_refused(tmp_path, content):
    (tmp_path / "ana.card").write_bytes(content)
    with pytest.raises(InputError, match=r"must be a card, .*; nothing recorded"):
        read_card(tmp_path / "ana.card")


def test_a_missing_card_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a card, No such file or directory"):
        read_card(tmp_path / "none.card")
