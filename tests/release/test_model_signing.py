"""Our signatures pass the `model-signing` package and its pass ours; nothing that was changed passes ours."""

import base64
import itertools
import json
import os
import shutil

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hubbub.errors import InputError, VerificationError
from hubbub.release.model_signing import (
    BUNDLE,
    LEFT_OUT,
    _authenticated,
    new_key,
    public_pem,
    read_key,
    read_public_key,
    sign_folder,
    verify_folder,
)

KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key()
FILES = {"model.safetensors": b"\x00weights\xff", "d/claim.json": b"{}", "d.txt": b"sorts behind d/", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    """Give a small folder of files."""
    path = tmp_path / "release"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def signature(folder):
    """Give the signature of that folder, inside it."""
    sign_folder(folder, KEY, folder / "model.sig")
    return folder / "model.sig"


@pytest.fixture
def theirs():
    """Give the package that others verify with."""
    reason = "the outside verifier is not installed; it is part of the dev extra"
    pytest.importorskip("model_signing", reason=reason)
    import model_signing.hashing
    import model_signing.signing
    import model_signing.verifying

    return model_signing


@pytest.fixture
def keys(tmp_path):
    """Give PEM files of the key, private and public."""
    pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(KEY.private_bytes(serialization.Encoding.PEM, pkcs8, none))
    public.write_bytes(public_pem(PUBLIC))
    return private, public


def refused(folder, signature, key=PUBLIC):
    with pytest.raises(VerificationError) as caught:
        verify_folder(folder, key, signature)
    return caught.value.message


def bundle(payload, key=KEY):
    """A validly signed bundle of any payload."""
    hint = hashes.Hash(hashes.SHA256())
    hint.update(public_pem(key.public_key()))
    signed = key.sign(_authenticated(payload), ec.ECDSA(hashes.SHA256()))
    return BUNDLE % (hint.finalize().hex().encode(), base64.b64encode(payload), base64.b64encode(signed))


def statement(signature):
    return json.loads(base64.b64decode(json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]))


def their_verifier(theirs, public):
    return theirs.verifying.Config().use_elliptic_key_verifier(public_key=public)


@pytest.mark.parametrize("place", ["release/model.sig", "release/d/model.sig", "model.sig"])
def test_the_outside_verifier_accepts_our_signature(theirs, folder, keys, tmp_path, place):
    sign_folder(folder, KEY, tmp_path / place)
    their_verifier(theirs, keys[1]).verify(folder, tmp_path / place)
    verify_folder(folder, PUBLIC, tmp_path / place)


def test_the_outside_verifier_refuses_a_file_changed_after_our_signature(theirs, folder, signature, keys):
    (folder / "empty").write_bytes(b"\x00")
    with pytest.raises(ValueError, match=r"Hash mismatch for .*empty"):
        their_verifier(theirs, keys[1]).verify(folder, signature)


@pytest.mark.parametrize("place", ["release/model.sig", "release/d/model.sig", "model.sig"])
def test_we_accept_the_signature_of_the_outside_signer(theirs, folder, keys, tmp_path, place):
    config = theirs.hashing.Config().set_ignored_paths(paths=[place.removeprefix("release/")])
    signer = theirs.signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(config)
    signer.sign(folder, tmp_path / place)
    verify_folder(folder, PUBLIC, tmp_path / place)
    assert {".git", ".gitignore"} <= set(statement(tmp_path / place)["predicate"]["serialization"]["ignore_paths"])
    (folder / ".gitignore").write_bytes(b"*")
    assert refused(folder, tmp_path / place) == "'.gitignore', must be listed in model.sig, found no entry"


def test_both_sides_list_the_same_files_in_the_same_order_under_the_same_digest(theirs, folder, signature, keys):
    ours, other = statement(signature), folder.parent / "other.sig"
    config = theirs.hashing.Config().set_ignored_paths(paths=["model.sig"])
    signer = theirs.signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(config)
    signer.sign(folder, other)
    expected = statement(other)
    assert ours["subject"] == expected["subject"]
    assert ours["predicate"]["resources"] == expected["predicate"]["resources"]
    assert [file["name"] for file in ours["predicate"]["resources"]] == [
        "d/claim.json",
        "d.txt",
        "empty",
        "model.safetensors",
    ]


def test_a_moved_and_renamed_folder_still_verifies(folder, signature):
    verify_folder(
        shutil.move(folder, folder.with_name("elsewhere")), PUBLIC, folder.with_name("elsewhere") / "model.sig"
    )


@pytest.mark.slow
def test_every_flipped_bit_of_every_file_and_of_the_signature_is_refused(folder, signature):
    count = 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        original, name = path.read_bytes(), path.relative_to(folder).as_posix()
        with path.open("r+b", buffering=0) as file:
            for position, bit in itertools.product(range(len(original)), range(8)):
                os.pwrite(file.fileno(), bytes([original[position] ^ 1 << bit]), position)
                assert name in refused(folder, signature)
                os.pwrite(file.fileno(), original[position : position + 1], position)
                count += 1
    assert count > 8 * 1000
    verify_folder(folder, PUBLIC, signature)


@pytest.mark.parametrize("name", FILES)
def test_every_byte_less_or_more_is_refused(folder, signature, name):
    for content in (FILES[name] + b"\n", FILES[name][:-1] or b"x"):
        (folder / name).write_bytes(content)
        assert refused(folder, signature) == f"{name!r}, must be the file that was signed, found other bytes"


@pytest.mark.parametrize("change", [lambda old: old + b"\n", lambda old: b" " + old, lambda old: old[:-1]])
def test_a_signature_file_in_another_spelling_is_refused(folder, signature, change):
    signature.write_bytes(change(signature.read_bytes()))
    assert refused(folder, signature) == "model.sig, must be a bundle of one signature, found none"


def test_spare_bits_of_base64_are_refused(folder, signature):
    payload = json.dumps(statement(signature)).encode()
    payload += b" " * ((1 - len(payload)) % 3)  # one byte in the last group: four spare bits
    content = bundle(payload)
    encoded = base64.b64encode(payload)
    spare = encoded[:-3] + bytes([encoded[-3] + 1]) + b"=="
    assert base64.b64decode(spare) == payload
    signature.write_bytes(content)
    verify_folder(folder, PUBLIC, signature)
    signature.write_bytes(content.replace(encoded, spare))
    assert refused(folder, signature) == "model.sig, must hold a valid signature, found none"


def test_the_first_file_at_fault_is_named(folder, signature):
    (folder / "z").write_bytes(b"extra")
    assert refused(folder, signature) == "'z', must be listed in model.sig, found no entry"
    (folder / "empty").unlink()
    assert refused(folder, signature) == "'empty', must be in the signed folder, found nothing"
    (folder / "d" / "claim.json").write_bytes(b"{ }")
    assert refused(folder, signature) == "'d/claim.json', must be the file that was signed, found other bytes"


def test_files_that_changed_places_are_refused(folder, signature):
    (folder / "empty").replace(folder / "spare")
    (folder / "d.txt").replace(folder / "empty")
    (folder / "spare").replace(folder / "d.txt")
    assert refused(folder, signature) == "'d.txt', must be the file that was signed, found other bytes"


def symlink(folder):
    (folder / "link").symlink_to(folder / "empty")


def linked_folder(folder):
    (folder / "link").symlink_to(folder / "d")


def pipe(folder):
    os.mkfifo(folder / "link")


def half_a_character(folder):
    (folder / os.fsdecode(b"\xff")).touch()


@pytest.mark.parametrize("put", [symlink, linked_folder, pipe, half_a_character])
def test_what_is_no_plain_file_is_neither_signed_nor_accepted(folder, signature, put):
    put(folder)
    assert "must be a plain file with a name in UTF-8, found something else" in refused(folder, signature)
    with pytest.raises(InputError, match="must be a plain file with a name in UTF-8, found something else"):
        sign_folder(folder, KEY, folder / "second.sig")


def test_a_link_in_place_of_the_signature_is_refused(folder, signature):
    signature.replace(folder.parent / "model.sig")
    signature.symlink_to(folder.parent / "model.sig")
    assert refused(folder, signature) == "'model.sig', must be a plain file with a name in UTF-8, found something else"


def test_a_folder_behind_a_link_is_the_folder(folder, signature):
    (folder.parent / "latest").symlink_to(folder)
    verify_folder(folder.parent / "latest", PUBLIC, signature)
    verify_folder(folder, PUBLIC, folder.parent / "latest" / "model.sig")


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_git_files_that_others_leave_out_are_not_signed(folder, name):
    (folder / name).mkdir()
    (folder / name / "file").touch()
    with pytest.raises(InputError) as caught:
        sign_folder(folder, KEY, folder / "model.sig")
    assert caught.value.message == (
        f"{folder}, must hold no git files because other verifiers leave them out, found '{name}/file'; nothing signed"
    )
    assert not (folder / "model.sig").exists()


def test_a_signature_by_another_key_is_refused(folder, signature):
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert refused(folder, signature, other).startswith("model.sig, must be by key ")
    forged = bundle(json.dumps(statement(signature)).encode(), ec.generate_private_key(ec.SECP256R1()))
    hint = json.loads(signature.read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    claimed = json.loads(forged)["verificationMaterial"]["publicKey"]["hint"]
    signature.write_bytes(forged.replace(claimed.encode(), hint.encode()))
    assert refused(folder, signature) == "model.sig, must hold a valid signature, found none"


def edited(path, value):
    """Set one place of a statement to another value; None removes it."""

    def edit(document):
        *parents, last = path
        for key in parents:
            document = document[key]
        if value is None:
            del document[last]
        else:
            document[last] = value

    return edit


def twice(document):
    document["predicate"]["resources"].append(document["predicate"]["resources"][-1])


def backwards(document):
    document["predicate"]["resources"].reverse()


SERIALIZATION = ("predicate", "serialization")


@pytest.mark.parametrize(
    "edit",
    [
        twice,
        backwards,
        edited(["_type"], "https://in-toto.io/Statement/v2"),
        edited(["_type"], None),
        edited(["predicateType"], "https://slsa.dev/provenance/v1"),
        edited(["predicateType"], None),
        edited(["subject"], []),
        edited(["subject", 0, "digest", "sha256"], 64 * "0"),
        edited(["subject", 0, "digest", "sha512"], 64 * "0"),
        edited([*SERIALIZATION, "method"], "shards"),
        edited([*SERIALIZATION, "hash_type"], "blake2"),
        edited([*SERIALIZATION, "hash_type"], None),
        edited([*SERIALIZATION, "allow_symlinks"], True),
        edited([*SERIALIZATION, "allow_symlinks"], 0),
        edited([*SERIALIZATION, "shard_size"], 1),
        edited(["predicate", "resources", 0, "algorithm"], "blake2"),
        edited(["predicate", "resources", 0, "digest"], 32 * "g"),
        edited(["predicate", "resources", 0, "digest"], 64 * "A"),
        edited(["predicate", "resources", 0, "digest"], ""),
        edited(["predicate", "resources", 0, "name"], "zz"),
        edited(["predicate", "materials"], []),
    ],
)
def test_a_signed_statement_of_another_kind_is_refused(folder, signature, edit):
    document = statement(signature)
    edit(document)
    signature.write_bytes(bundle(json.dumps(document).encode()))
    expected = "model.sig, must list files by SHA-256 and nothing else, found other claims"
    assert refused(folder, signature) == expected


def test_what_a_signature_tells_to_ignore_is_not_ignored(folder, signature):
    document = statement(signature)
    document["predicate"]["serialization"]["ignore_paths"] = ["model.sig", "hidden", "d"]
    signature.write_bytes(bundle(json.dumps(document).encode()))
    verify_folder(folder, PUBLIC, signature)
    (folder / "hidden").touch()
    assert refused(folder, signature) == "'hidden', must be listed in model.sig, found no entry"


def test_names_of_any_text_are_signed_as_they_are(folder, theirs, keys):
    for name in ('quote"', "line\nbreak", "back\\slash", "\u00e9", "e\u0301", "\U0001f41d", ".hidden", "%s"):
        (folder / name).write_text(name, encoding="utf-8")
    sign_folder(folder, KEY, folder / "model.sig")
    verify_folder(folder, PUBLIC, folder / "model.sig")
    their_verifier(theirs, keys[1]).verify(folder, folder / "model.sig")


def parses(folder, content):
    path = folder.parent / "fuzzed.sig"
    path.write_bytes(content)
    assert refused(folder, path).startswith("fuzzed.sig, must ")


fuzz = hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@fuzz
@given(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@example(content=b"")
@example(content=b"[" * 100_000)
@example(content=BUNDLE % (b"", b"", b""))
def test_any_bytes_as_a_signature_file_are_refused_and_no_more(folder, content):
    parses(folder, content)


parts = st.binary(max_size=30) | st.binary(max_size=60).map(base64.b64encode)


@fuzz
@given(payload=parts, signed=parts)
@example(payload=b"", signed=b"")
def test_any_payload_and_signature_in_a_bundle_are_refused_and_no_more(folder, payload, signed):
    hint = json.loads(bundle(b""))["verificationMaterial"]["publicKey"]["hint"]
    parses(folder, BUNDLE % (hint.encode(), payload, signed))


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@fuzz
@given(payload=st.binary(max_size=60) | trees.map(lambda tree: json.dumps(tree).encode()))
@example(payload=b'"\xff"')
@example(payload=b'{"_type":' + b"[" * 100_000)
def test_any_signed_payload_is_refused_and_no_more(folder, payload):
    parses(folder, bundle(payload))


def test_a_folder_without_files_is_not_signed(tmp_path):
    with pytest.raises(InputError, match="must hold files, found none; nothing signed"):
        sign_folder(tmp_path, KEY, tmp_path / "model.sig")


def test_a_folder_that_is_not_there_is_not_signed(tmp_path):
    with pytest.raises(InputError, match="must be a readable folder, No such file or directory"):
        sign_folder(tmp_path / "absent", KEY, tmp_path / "model.sig")
    with pytest.raises(InputError, match="must be a readable file, No such file or directory"):
        verify_folder(tmp_path, PUBLIC, tmp_path / "model.sig")


def test_nothing_is_written_over(folder, signature):
    before = signature.read_bytes()
    with pytest.raises(InputError, match="must be a new file, File exists; nothing written"):
        sign_folder(folder, KEY, signature)
    assert signature.read_bytes() == before


def test_a_new_key_is_read_again_and_signs(folder, tmp_path):
    (tmp_path / "key.pem").write_bytes(new_key())
    key = read_key(tmp_path / "key.pem")
    (tmp_path / "key.pub").write_bytes(public_pem(key.public_key()))
    sign_folder(folder, key, tmp_path / "model.sig")
    verify_folder(folder, read_public_key(tmp_path / "key.pub"), tmp_path / "model.sig")


def test_keys_of_another_kind_are_refused(folder, tmp_path):
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(InputError, match="the key, must be of curve secp256r1, found secp384r1"):
        sign_folder(folder, other, tmp_path / "model.sig")
    with pytest.raises(InputError, match="the key, must be of curve secp256r1, found secp384r1"):
        verify_folder(folder, other.public_key(), tmp_path / "model.sig")


def pem(key, encryption):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem(ed25519.Ed25519PrivateKey.generate(), serialization.NoEncryption()),
        pem(KEY, serialization.BestAvailableEncryption(b"secret")),
    ],
)
def test_a_file_without_a_usable_key_is_refused(tmp_path, content):
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(InputError, match="must hold an elliptic curve key in PEM, without password, found none"):
        read_key(tmp_path / "key.pem")
    with pytest.raises(InputError, match="must hold an elliptic curve public key in PEM, found none"):
        read_public_key(tmp_path / "key.pem")


def make_endless(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), make_endless])
def test_what_may_never_end_is_not_read(tmp_path, put):
    put(tmp_path / "key.pem")
    with pytest.raises(InputError, match=r"key\.pem, must be a file of at most .* a larger one, a pipe or a device"):
        read_public_key(tmp_path / "key.pem")


def test_a_public_key_of_another_kind_is_refused(tmp_path):
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(encoding, form)
    (tmp_path / "key.pub").write_bytes(public)
    with pytest.raises(InputError, match="must hold an elliptic curve public key in PEM, found none"):
        read_public_key(tmp_path / "key.pub")
