"""What an outsider accepts, and what not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hubbub
from hubbub.errors import VerificationError
from hubbub.tlog import Note, Proof, verify_checkpoint, verify_consistency, verify_entry
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import COSIGNATURE, ED25519, ML_DSA_44, Signer
from hubbub.tlog.policy import Party, Policy
from hubbub.tlog.proof import parse_proof
from hubbub.tlog.verify import AHEAD, FRESH, is_fork

NOW = 1_700_000_000


@pytest.fixture
def cosigned(key, head):
    """Sign the head of a log and have some witnesses cosign it."""

    def make(log, witnesses=0, now=NOW):
        note = head(log)
        names = [f"w{number}" for number in range(1, witnesses + 1)]
        return Note(note.text, (*note.signatures, *(key(name, COSIGNATURE).sign(note.text, now) for name in names)))

    return make


def test_a_head_of_the_policys_log_with_a_quorum_is_accepted(store, cosigned, policy, key):
    log = store(5)
    verified = verify_checkpoint(bytes(cosigned(log, 3)), policy(4, 1))
    assert (verified.checkpoint.size, verified.checkpoint.root) == (5, log.root())
    assert verified.log == key().verifier
    assert verified.cosigned == {"w1": NOW, "w2": NOW, "w3": NOW}


def test_too_few_cosignatures_are_not_accepted(store, cosigned, policy):
    with pytest.raises(VerificationError) as caught:
        verify_checkpoint(cosigned(store(5), 2), policy(4, 1))
    rule = "must be cosigned by the policy's quorum, found w1, w2, where 3 of w1, w2, w3, w4 must"
    assert caught.value.message == f"example.com/log at size 5, {rule}"
    with pytest.raises(VerificationError, match="found none, where 3 of w1"):
        verify_checkpoint(cosigned(store(5)), policy(4, 1))


def test_strangers_cosignatures_do_not_count(store, cosigned, policy):
    with pytest.raises(VerificationError, match="found w1, w2, where w3 must"):
        verify_checkpoint(cosigned(store(5), 9), policy(2, 0).__class__(policy(2).logs, policy(2).witnesses, (), "w3"))


def test_an_old_or_future_cosignature_does_not_count_where_freshness_is_asked_for(store, cosigned, policy):
    note = cosigned(store(5), 3)
    for now in (NOW - AHEAD, NOW, NOW + FRESH):
        assert len(verify_checkpoint(note, policy(4, 1), now=now).cosigned) == 3
    for now in (NOW - AHEAD - 1, NOW + FRESH + 1):
        with pytest.raises(VerificationError, match="by the policy's quorum within 24 h, found none, where 3 of"):
            verify_checkpoint(note, policy(4, 1), now=now)
    assert verify_checkpoint(note, policy(4, 1), now=NOW + 5, fresh=5).cosigned
    assert verify_checkpoint(note, policy()).cosigned == {}


def test_a_head_that_no_log_of_the_policy_signed_is_not_accepted(store, head, policy, key):
    log = store(5)
    note = head(log)
    stranger = Signer(key().name, ED25519, bytes(32))
    for lines in [(stranger.sign(note.text),), (key("other").sign(note.text),)]:
        with pytest.raises(VerificationError, match="must be signed by a log of the policy under its own origin"):
            verify_checkpoint(Note(note.text, lines), policy())


def test_a_log_cannot_speak_for_another_origin_of_the_policy(store, head, policy, key):
    other = key("other")
    both = Policy((*policy().logs, Party(other.verifier)))
    note = head(store(5))
    assert verify_checkpoint(note, both).log == key().verifier
    with pytest.raises(VerificationError, match=r"under its own origin, found 'example.com/log'"):
        verify_checkpoint(Note(note.text, (other.sign(note.text),)), both)


def test_a_forged_line_of_a_known_key_spoils_the_note(store, cosigned, policy, key):
    note = cosigned(store(5), 3)
    forged = key("w4", COSIGNATURE).sign(cosigned(store(4)).text, NOW)
    with pytest.raises(VerificationError, match="must be signed by w4, found a line of that key that it did not make"):
        verify_checkpoint(Note(note.text, (*note.signatures, forged)), policy(4, 1))


def test_a_log_may_sign_with_either_of_two_keys(store, head, key):
    note = head(store(5))
    new = key(key().name, ML_DSA_44)
    both = Policy((Party(new.verifier), Party(key().verifier)))
    assert verify_checkpoint(note, both).log == key().verifier
    assert verify_checkpoint(Note(note.text, (new.sign(note.text),)), both).log == new.verifier


def test_an_entry_is_proved_by_its_bytes_place_and_head(store, cosigned, policy, body):
    log = store(20)
    note = cosigned(log, 3)
    for index in range(20):
        proof = parse_proof(bytes(Proof(index, tuple(log.inclusion(index, 20)), note)))
        assert verify_entry(proof, body(index), policy(4, 1)).checkpoint.size == 20
        with pytest.raises(VerificationError, match=f"must hold this entry at index {index} of 20"):
            verify_entry(proof, body(index + 1), policy(4, 1))


def test_an_entry_under_a_head_that_is_not_accepted_is_not_proved(store, cosigned, policy, body):
    log = store(20)
    proof = Proof(3, tuple(log.inclusion(3, 20)), cosigned(log, 3))
    with pytest.raises(VerificationError, match="within 24 h"):
        verify_entry(proof, body(3), policy(4, 1), now=NOW + FRESH + 1)


@pytest.mark.slow
def test_every_flipped_bit_of_a_proof_file_is_found_out(store, head, policy, body):
    log = store(3)
    data = bytes(Proof(1, tuple(log.inclusion(1, 3)), head(log)))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            verify_entry(parse_proof(bytes(changed)), body(1), policy())


def test_growth_is_proved_between_accepted_heads_of_one_log(store, head, policy, key, body):
    log = store(5)
    old = verify_checkpoint(head(log), policy())
    log.append(lambda size: [body(size), body(size + 1)])
    new = verify_checkpoint(head(log), policy())
    verify_consistency(old, new, log.consistency(5, 7))
    verify_consistency(old, old, [])
    for one, other, proof in [(old, new, []), (new, old, log.consistency(5, 7)), (old, new, [bytes(32)] * 3)]:
        with pytest.raises(VerificationError, match=r"must continue example.com/log at size"):
            verify_consistency(one, other, proof)
    other = Signer("other", ED25519, bytes(32))
    from hubbub.tlog import sign_checkpoint

    stranger = verify_checkpoint(sign_checkpoint(log, other), Policy((Party(other.verifier),)))
    with pytest.raises(VerificationError, match=r"other at size 7, must continue example.com/log"):
        verify_consistency(old, stranger, log.consistency(5, 7))


def test_a_fork_is_two_signed_roots_at_one_size(store, head, key):
    one, other, grown = head(store(4)), head(store(4, b"x")), head(store(5))
    assert is_fork(one, other, key().verifier)
    assert not is_fork(one, one, key().verifier)
    assert not is_fork(one, grown, key().verifier)
    assert not is_fork(one, Note(other.text, (key("x").sign(other.text),)), key().verifier)
    assert not is_fork(one, other, key("x").verifier)
    elsewhere = other.text.replace(key().name, "elsewhere")
    assert not is_fork(one, Note(elsewhere, (key().sign(elsewhere),)), key().verifier)
    assert parse_checkpoint(one.text).size == 4


def test_an_outsider_needs_nothing_of_ours_but_this_room_and_errors():
    script = "import sys\nbefore = set(sys.modules)\nimport hubbub.tlog.verify\nprint(*(set(sys.modules) - before))"
    environment = os.environ | {"PYTHONPATH": str(Path(hubbub.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    modules = set(done.stdout.split())
    ours = {name for name in modules if name.split(".")[0] == "hubbub"}
    assert {name for name in ours if not name.startswith("hubbub.tlog")} == {"hubbub", "hubbub.errors"}
    foreign = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"hubbub"}
    assert foreign <= {"cryptography", "_cffi_backend", "_openssl"}
