"""Keys as others write them, signatures that others made, and key files."""

import base64
import hashlib
import json
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import HubbubError, InputError, VerificationError
from hubbub.tlog import merkle
from hubbub.tlog.checkpoint import Checkpoint, parse_checkpoint
from hubbub.tlog.keys import (
    COSIGNATURE,
    ED25519,
    ML_DSA_44,
    Signer,
    Verifier,
    open_key,
    parse_signer,
    parse_verifier,
)
from hubbub.tlog.note import Note, Signature, parse_note

# The example of golang.org/x/mod/sumdb/note, and the key of tessera's test log: both published to be used in tests.
GO_SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = """\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
"""
TESSERA = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"

HEAD = str(Checkpoint("example.com/log", 5, hashlib.sha256(b"root").digest()))
KINDS = [ED25519, COSIGNATURE, ML_DSA_44]
NOW = 1_700_000_000


def signed(signer, text=HEAD, now=NOW):
    return Note(text, (signer.sign(text, now),))


def test_gos_example_is_signed_and_verified_byte_by_byte():
    signer, note = parse_signer(GO_SECRET), parse_note(GO_NOTE.encode())
    assert str(signer.verifier) == GO_PUBLIC
    assert signer.secret_text() == GO_SECRET
    assert (signer.sign(note.text),) == note.signatures
    assert parse_verifier(GO_PUBLIC).signed_at(note) == 0


def test_sixteen_checkpoints_of_tessera_are_signed_and_grow_from_its_entries(vectors):
    log = json.loads((vectors / "tessera" / "log.json").read_text())
    bundle, bodies = bytes.fromhex(log["entries_bundle_15_hex"]), []
    while bundle:
        size = int.from_bytes(bundle[:2])
        bodies.append(bundle[2 : 2 + size])
        bundle = bundle[2 + size :]
    leaves, edge = [merkle.leaf_hash(body) for body in bodies], []
    assert b"".join(leaves).hex() == log["level0_tile_15_hex"]
    for size, text in enumerate(log["checkpoints"]):
        note = parse_note(text.encode())
        head = parse_checkpoint(note.text)
        assert parse_verifier(TESSERA).signed_at(note) == 0
        merkle.grow(edge, size - 1, leaves[size - 1 : size] if size else [])
        assert (head.size, head.root) == (size, merkle.join(edge))
    assert len(log["checkpoints"]) == 16


def test_an_ml_dsa_key_has_the_id_that_torchwood_gives_it():
    seed = bytes.fromhex("2886adc2b0eabfce67c0472939127998bf886cf256bfee8ba76a253fce1146e0")  # its litewitness test
    assert Signer("example.com/mldsa-log", ML_DSA_44, seed).verifier.key_id.hex() == "b5df45c5"


def test_an_ml_dsa_signature_is_over_the_subtree_message_field_by_field(key):
    mldsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    signer = key("w", ML_DSA_44)
    blob = signer.sign(HEAD, NOW).blob
    message = (
        b"subtree/v1\n\0" + b"\x01w" + NOW.to_bytes(8, "big") + b"\x0fexample.com/log"
        + bytes(8) + (5).to_bytes(8, "big") + hashlib.sha256(b"root").digest()
    )  # fmt: skip
    assert blob[:8] == NOW.to_bytes(8, "big")
    mldsa.MLDSA44PublicKey.from_public_bytes(signer.verifier.public).verify(blob[8:], message)


def test_a_cosignature_is_over_a_header_the_time_and_the_checkpoint(key):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signer = key("w", COSIGNATURE)
    blob = signer.sign(HEAD, NOW).blob
    message = f"cosignature/v1\ntime {NOW}\n{HEAD}".encode()
    Ed25519PublicKey.from_public_bytes(signer.verifier.public).verify(blob[8:], message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_says_when_it_was_made_and_holds_for_its_text_only(key, kind):
    signer = key("w", kind)
    assert signer.verifier.signed_at(signed(signer)) == (0 if kind == ED25519 else NOW)
    other = HEAD.replace("\n5\n", "\n6\n")
    with pytest.raises(VerificationError, match="must be signed by w, found a line of that key that it did not make"):
        signer.verifier.signed_at(Note(other, signed(signer).signatures))


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_with_one_bit_turned_is_refused(key, kind):
    signer = key("w", kind)
    blob = signer.sign(HEAD, NOW).blob
    for bit in range(0, 8 * len(blob), 1 if kind != ML_DSA_44 else 97):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        line = Signature("w", signer.verifier.key_id, bytes(changed))
        with pytest.raises(VerificationError):
            signer.verifier.signed_at(Note(HEAD, (line,)))


@pytest.mark.parametrize("kind", KINDS)
@given(blob=st.binary(min_size=1, max_size=100))
def test_a_signature_of_any_length_is_judged(kind, blob):
    verifier = Signer("w", kind, bytes(32)).verifier
    with pytest.raises(VerificationError):
        verifier.signed_at(Note(HEAD, (Signature("w", verifier.key_id, blob),)))


def test_lines_of_other_names_or_ids_are_ignored(key):
    signer = key("w", COSIGNATURE)
    line = signer.sign(HEAD, NOW)
    others = (Signature("v", line.key_id, line.blob), Signature("w", bytes(4), line.blob))
    assert signer.verifier.signed_at(Note(HEAD, others)) is None
    assert signer.verifier.signed_at(Note(HEAD, (*others, line))) == NOW
    assert key("w", ED25519).verifier.signed_at(Note(HEAD, (line,))) is None


def test_the_newest_of_two_cosignatures_of_one_key_counts_and_a_forged_one_spoils_the_note(key):
    signer = key("w", COSIGNATURE)
    lines = (signer.sign(HEAD, NOW + 5), signer.sign(HEAD, NOW))
    assert signer.verifier.signed_at(Note(HEAD, lines)) == NOW + 5
    forged = Signature("w", lines[0].key_id, lines[0].blob[:-1] + b"\0")
    with pytest.raises(VerificationError):
        signer.verifier.signed_at(Note(HEAD, (lines[1], forged)))


def test_a_time_after_the_last_posix_second_is_refused(key):
    signer = key("w", COSIGNATURE)
    assert signer.verifier.signed_at(signed(signer, now=2**63 - 1)) == 2**63 - 1
    with pytest.raises(VerificationError):
        signer.verifier.signed_at(signed(signer, now=2**63))


@pytest.mark.parametrize("kind", [COSIGNATURE, ML_DSA_44])
def test_a_cosigner_signs_checkpoints_only(key, kind):
    with pytest.raises(VerificationError, match="a checkpoint"):
        key("w", kind).sign("a text\n", NOW)


def test_extension_lines_are_signed_by_ed25519_and_refused_by_ml_dsa(key):
    text = HEAD + "extension\n"
    signer = key("w", COSIGNATURE)
    assert signer.verifier.signed_at(signed(signer, text)) == NOW
    with pytest.raises(VerificationError):
        signer.verifier.signed_at(Note(HEAD, signed(signer, text).signatures))
    with pytest.raises(VerificationError, match="must have no extension lines"):
        key("w", ML_DSA_44).sign(text, NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_are_written_are_read_back(key, kind):
    signer = key("example.com/é", kind)
    assert parse_signer(signer.secret_text()) == signer
    assert parse_verifier(str(signer.verifier)) == signer.verifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        GO_PUBLIC.replace("c74f20a3", "c74f20a4"),
        GO_PUBLIC.replace("c74f20a3", "C74F20A3"),
        GO_PUBLIC.replace("Peter", "Paul"),
        GO_PUBLIC[:-1] + "X",
        GO_PUBLIC + "+",
        "na me" + GO_PUBLIC[12:],
        GO_SECRET,
        256 * "x" + "+00000000+AQ==",
        "PeterNeumann+c74f20a3+Aw==",
    ],
)
def test_a_verifier_key_with_a_flaw_is_refused(text):
    with pytest.raises(InputError, match=r"must be a verifier key NAME|must have a name without spaces"):
        parse_verifier(text)


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_noise_is_no_key(text):
    for parse in (parse_verifier, parse_signer):
        with pytest.raises(HubbubError):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        GO_PUBLIC,
        GO_SECRET.replace("c74f20a3", "c74f20a4"),
        GO_SECRET.replace("PRIVATE", "PUBLIC"),
        GO_SECRET.replace("+AYEK", "+A4EK"),
        GO_SECRET[:-4],
    ],
)
def test_a_secret_key_with_a_flaw_is_refused_and_never_quoted(text):
    with pytest.raises(InputError, match="must hold one secret key") as caught:
        parse_signer(text)
    assert "AYEK" not in str(caught.value) + caught.value.hint
    assert caught.value.__cause__ is None


def test_a_key_of_no_known_type_or_length_cannot_be_made():
    for name, kind, public in [("w", 2, bytes(32)), ("w", ED25519, bytes(31)), ("", ED25519, bytes(32))]:
        with pytest.raises(InputError, match="must have a name without spaces"):
            Verifier(name, kind, public)


def test_a_secret_shows_in_no_representation(key):
    signer = key()
    seed = base64.b64encode(signer.seed).decode()
    assert repr(signer.seed) not in repr(signer)
    assert seed not in str(signer)


def test_a_key_file_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "folder" / "log.key"
    made = open_key(path, "hubbub.local/")
    assert open_key(path, "hubbub.local/") == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.name.startswith("hubbub.local/")
    assert len(bytes.fromhex(made.name.removeprefix("hubbub.local/"))) == 8
    assert list(path.parent.iterdir()) == [path]


OPENER = """
import sys
from pathlib import Path
from hubbub.tlog.keys import open_key
print({open_key(Path(sys.argv[1]) / f"{number}.key", "x/").name for number in range(50)})
"""


def test_processes_that_start_together_share_one_key(tmp_path, race):
    first, *others = [eval(names) for names in race(OPENER, tmp_path, range(4))]
    assert len(first) == 50
    assert others == [first] * 3


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "log.key"
    open_key(path, "x/")
    path.chmod(0o640)
    with pytest.raises(InputError, match="must be readable by its owner only, found mode 640") as caught:
        open_key(path, "x/")
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_key_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "log.key"
    path.touch(0o600)
    for content in (b"\xff", b"hello\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"must be a key file|must hold one secret key"):
            open_key(path, "x/")


def test_a_key_file_made_by_another_process_meanwhile_is_taken(tmp_path, monkeypatch, key):
    path = tmp_path / "log.key"
    other = key("x/other")
    real = os.fsync

    def fsync(descriptor):
        path.write_text(other.secret_text() + "\n")
        path.chmod(0o600)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert open_key(path, "x/") == other


def test_without_ml_dsa_the_error_says_what_is_missing(key, monkeypatch):
    signer = key("w", ML_DSA_44)
    monkeypatch.delattr("cryptography.hazmat.primitives.asymmetric.mldsa", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    with pytest.raises(InputError, match="that has ML-DSA, found one without; nothing signed"):
        signer.sign(HEAD, NOW)
