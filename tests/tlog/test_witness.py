"""The witness's state machine: every status, and what it never does whatever it is sent."""

import base64
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.tlog import Note, Witness, merkle
from hubbub.tlog.checkpoint import Checkpoint, parse_checkpoint
from hubbub.tlog.keys import COSIGNATURE, ED25519, ML_DSA_44, Signer
from hubbub.tlog.note import parse_note, parse_signatures
from hubbub.tlog.verify import is_fork
from hubbub.tlog.witness import Answer, Request, ask, parse_request

NOW = 1_700_000_000


def request(log, head, old=0, proof=None):
    size = parse_checkpoint(head.text).size
    hashes = log.consistency(old, size) if proof is None else proof
    return bytes(Request(old, tuple(hashes), head))


@pytest.fixture
def grown(store, body, head):
    """Make a log, and the signed head it had at each of its sizes."""

    def make(size, word=None):
        log, heads = store(0, word), []
        for number in range(size + 1):
            heads.append(head(log))
            entry = body(number) if word is None else b'{"word": "%b%d"}' % (word, number)
            log.append(lambda _, entry=entry: [entry])
        return log, heads

    return make


def test_a_head_that_continues_the_last_one_is_cosigned_with_the_time(grown, witness, key):
    (log, heads), one = grown(9), witness()
    for old, new in [(0, 0), (0, 3), (3, 3), (3, 4), (4, 8), (8, 9)]:
        answer = one.add_checkpoint(request(log, heads[new], old), NOW + new)
        assert (answer.status, answer.evidence) == (200, None)
        cosigned = Note(heads[new].text, parse_signatures(answer.body.decode()))
        assert key("w1", COSIGNATURE).verifier.signed_at(cosigned) == NOW + new
    assert one.forks() == []


@pytest.mark.parametrize("body", [b"", b"old 0\n", b"old x\n\n", b"old 0\n\nno note"])
def test_400_for_what_is_no_request(witness, body):
    answer = witness().add_checkpoint(body, NOW)
    assert answer.status == 400
    assert answer.body.decode().endswith("nothing verified\n")


def test_400_for_a_note_that_is_no_checkpoint(witness, key):
    note = Note("a text\n", (key().sign("a text\n"),))
    assert witness().add_checkpoint(bytes(Request(0, (), note)), NOW).status == 400


def test_400_for_an_old_size_beyond_the_new_one(grown, witness):
    (log, heads), one = grown(4), witness()
    assert one.add_checkpoint(request(log, heads[4]), NOW).status == 200
    assert one.add_checkpoint(request(log, heads[3], 4, []), NOW).status == 400


def test_400_for_extension_lines_that_ml_dsa_would_not_sign(witness, key):
    text = str(Checkpoint(key().name, 0, merkle.EMPTY_ROOT, ("extension",)))
    body = bytes(Request(0, (), Note(text, (key().sign(text),))))
    assert witness("w1", ML_DSA_44).add_checkpoint(body, NOW).status == 400
    assert witness("w2", COSIGNATURE).add_checkpoint(body, NOW).status == 200


def test_403_unless_a_trusted_key_signed_and_none_is_forged(grown, witness, key):
    (log, heads), one = grown(3), witness()
    other = Signer(key().name, ED25519, bytes(32)).sign(heads[3].text)
    for lines in [(other,), (key("x").sign(heads[3].text),), (key().sign("else\n"),), (*heads[2].signatures, other)]:
        assert one.add_checkpoint(request(log, Note(heads[3].text, lines)), NOW).status == 403
    assert one.add_checkpoint(request(log, Note(heads[3].text, (other, *heads[3].signatures))), NOW).status == 200


def test_403_for_another_known_logs_word_about_this_one(grown, witness, key):
    (log, heads), other = grown(3), key("other")
    one = witness(logs=[key().verifier, other.verifier])
    forged = Note(heads[3].text, (other.sign(heads[3].text),))
    assert one.add_checkpoint(request(log, forged), NOW).status == 403


def test_404_for_a_log_it_does_not_know(grown, witness, key):
    log, heads = grown(3)
    assert witness(logs=[key("another").verifier]).add_checkpoint(request(log, heads[3]), NOW).status == 404


def test_409_with_the_size_it_knows_for_another_old_size(grown, witness):
    (log, heads), one = grown(6), witness()
    one.add_checkpoint(request(log, heads[4]), NOW)
    for old in (0, 3, 5):
        answer = one.add_checkpoint(request(log, heads[6], old), NOW)
        assert (answer.status, answer.body, answer.content_type) == (409, b"4\n", "text/x.tlog.size")
        assert answer.evidence is None


def test_409_for_a_second_root_at_the_same_size_and_both_heads_are_kept(grown, witness, key):
    (log, heads), (other, forked), one = grown(4), grown(4, b"fork"), witness()
    assert one.add_checkpoint(request(log, heads[4]), NOW).status == 200
    for old in (4, 0):
        answer = one.add_checkpoint(request(other, forked[4], old, []), NOW)
        assert (answer.status, answer.body) == (409, b"4\n")
        assert answer.evidence.is_fork
    (evidence,) = one.forks()
    assert (evidence.cosigned, evidence.submitted) == (heads[4], forked[4])
    assert is_fork(evidence.cosigned, evidence.submitted, key().verifier)
    _, again = grown(4, b"more")
    assert one.add_checkpoint(request(log, again[4], 4, []), NOW).evidence.submitted == again[4]
    assert one.forks() == [evidence]
    assert one.add_checkpoint(request(log, heads[4], 4), NOW).status == 200


def test_409_for_an_empty_log_with_a_root(witness, key):
    text = str(Checkpoint(key().name, 0, bytes(32)))
    answer = witness().add_checkpoint(bytes(Request(0, (), Note(text, (key().sign(text),)))), NOW)
    assert (answer.status, answer.evidence) == (409, None)


def test_422_for_a_proof_that_does_not_join_and_the_heads_are_handed_back_as_a_suspicion(grown, witness):
    (log, heads), (other, forked), one = grown(6), grown(6, b"fork"), witness()
    assert one.add_checkpoint(request(log, heads[3], 0, [bytes(32)]), NOW).status == 422
    one.add_checkpoint(request(log, heads[3]), NOW)
    answer = one.add_checkpoint(request(other, forked[6], 3), NOW)
    assert answer.status == 422
    assert (answer.evidence.cosigned, answer.evidence.submitted) == (heads[3], forked[6])
    assert not answer.evidence.is_fork
    assert one.forks() == []
    assert one.add_checkpoint(request(log, heads[3], 3, [bytes(32)]), NOW).status == 422


def test_what_it_signed_outlives_it(grown, witness):
    log, heads = grown(6)
    witness().add_checkpoint(request(log, heads[5]), NOW)
    assert witness().add_checkpoint(request(log, heads[6]), NOW).body == b"5\n"


def test_several_keys_cosign_together(grown, tmp_path, key):
    (log, heads), keys = grown(2), [key("w", COSIGNATURE), key("w", ML_DSA_44)]
    both = Witness(tmp_path / "both.db", keys, [key().verifier])
    note = ask(lambda body: both.add_checkpoint(body, NOW), heads[2], log, [one.verifier for one in keys])
    assert [one.verifier.signed_at(note) for one in keys] == [NOW, NOW]
    both.close()


@pytest.mark.parametrize("kinds", [[], [ED25519], [COSIGNATURE, ED25519]])
def test_a_witness_without_keys_that_cosign_cannot_be_made(tmp_path, key, kinds):
    with pytest.raises(InputError, match="must have keys that cosign, found a log's key or none"):
        Witness(tmp_path / "w.db", [key("w", kind) for kind in kinds], [])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_it_is_sent_it_signs_no_two_heads_of_one_size_and_never_goes_back(data):
    import tempfile
    from pathlib import Path

    log_key, witness_key = Signer("log", ED25519, bytes(32)), Signer("w", COSIGNATURE, bytes(32))
    leaves = {word: [merkle.leaf_hash(b"%d" % (n if n < 3 else n + 100 * word)) for n in range(8)] for word in (0, 1)}

    def top(word, start, end):
        edge = []
        merkle.grow(edge, 0, leaves[word][start:end])
        return merkle.join(edge)

    with tempfile.TemporaryDirectory() as folder:
        witness = Witness(Path(folder) / "w.db", [witness_key], [log_key.verifier])
        signed, last = {}, 0
        for _ in range(data.draw(st.integers(1, 12))):
            word, old, new, told = data.draw(st.tuples(*(st.integers(0, most) for most in (1, 8, 8, 2))))
            text = str(Checkpoint("log", new, top(word, 0, new)))
            old = old if told == 0 else last
            proof = merkle.consistency_proof(
                min(old, new), new, lambda level, at, word=word: top(word, at << level, (at + 1) << level)
            )
            answer = witness.add_checkpoint(bytes(Request(old, tuple(proof), Note(text, (log_key.sign(text),)))), NOW)
            if answer.status == 200:
                assert signed.setdefault(new, text) == text
                assert new >= last == old
                last = new
            elif answer.status == 409 and answer.evidence is None:
                assert answer.body == b"%d\n" % last
        witness.close()


def test_what_another_process_signs_meanwhile_is_seen(grown, witness, tmp_path):
    (log, heads), one, answers = grown(4), witness(), []
    other = sqlite3.connect(tmp_path / "w1.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asked = threading.Thread(target=lambda: answers.append(one.add_checkpoint(request(log, heads[3]), NOW)))
    asked.start()
    asked.join(0.3)
    assert answers == []
    row = (parse_checkpoint(heads[4].text).origin, 4, log.root(4), bytes(heads[4]))
    other.execute("INSERT INTO head VALUES (?, ?, ?, ?)", row)
    other.execute("COMMIT")
    other.close()
    asked.join()
    assert (answers[0].status, answers[0].body) == (409, b"4\n")


RACER = """
import sys
from pathlib import Path
from hubbub.tlog import Checkpoint, Note, Signer, Witness, merkle
from hubbub.tlog.witness import Request
for number in range(20):
    log, key = Signer(f"log{number}", 1, bytes(32)), Signer("w", 4, bytes(32))
    witness = Witness(Path(sys.argv[1]), [key], [log.verifier])
    text = str(Checkpoint(log.name, 1, merkle.leaf_hash(sys.argv[2].encode())))
    print(witness.add_checkpoint(bytes(Request(0, (), Note(text, (log.sign(text),)))), 1).status)
"""


def test_of_forks_that_race_in_several_processes_one_is_signed(tmp_path, race):
    statuses = zip(*(output.split() for output in race(RACER, tmp_path / "w.db", range(5))), strict=True)
    assert [sorted(each) for each in statuses] == [["200", "409", "409", "409", "409"]] * 20


def test_a_log_asks_again_with_the_size_it_is_given(grown, witness, key):
    (log, heads), one, asked = grown(9), witness(), []

    def send(body):
        asked.append(parse_request(body).old)
        return one.add_checkpoint(body, NOW + len(asked))

    verifier = key("w1", COSIGNATURE).verifier
    assert verifier.signed_at(ask(send, heads[4], log, [verifier])) == NOW + 1
    note = ask(send, heads[9], log, [verifier])
    assert asked == [0, 0, 4]
    assert verifier.signed_at(note) == NOW + 3
    again = ask(send, note, log, [verifier], known=99)
    assert asked == [0, 0, 4, 9]
    assert [line.name for line in again.signatures] == [key().name, "w1"]
    assert verifier.signed_at(again) == NOW + 4


def test_lines_of_other_keys_in_an_answer_are_left_out(grown, key):
    log, heads = grown(2)
    mine, other = key("w1", COSIGNATURE), key("w2", COSIGNATURE)
    lines = "".join(str(one.sign(heads[2].text, NOW)) for one in (other, mine))
    note = ask(lambda _: Answer(200, lines.encode()), heads[2], log, [mine.verifier])
    assert [line.name for line in note.signatures] == [key().name, "w1"]
    with pytest.raises(VerificationError, match="must sign with a key that is known to be its own"):
        ask(lambda _: Answer(200, str(other.sign(heads[2].text, NOW)).encode()), heads[2], log, [mine.verifier])
    with pytest.raises(VerificationError, match="a line of that key that it did not make"):
        ask(lambda _: Answer(200, str(mine.sign(heads[1].text, NOW)).encode()), heads[2], log, [mine.verifier])


def test_a_log_behind_its_witness_is_refused_without_suspicion(grown, witness, key):
    (log, heads), one = grown(9), witness()
    one.add_checkpoint(request(log, heads[9]), NOW)
    with pytest.raises(RefusedError, match="at size 4, is behind what the witness signed, found 9; not cosigned"):
        ask(lambda body: one.add_checkpoint(body, NOW), heads[4], log, [key("w1", COSIGNATURE).verifier])


def test_a_forked_log_gets_no_cosignature_and_is_told_so(grown, witness, key):
    (log, heads), (other, forked), one = grown(4), grown(6, b"fork"), witness()
    one.add_checkpoint(request(log, heads[4]), NOW)
    for size, status in ((4, "409 4"), (6, "422 the proof")):
        with pytest.raises(
            VerificationError, match=f"must continue what the witness signed at size 4, found answer '{status}"
        ):
            ask(lambda body: one.add_checkpoint(body, NOW), forked[size], other, [key("w1", COSIGNATURE).verifier])


def test_a_witness_that_does_not_know_the_log_refuses(grown, witness, key):
    (log, heads), one = grown(4), witness(logs=[])
    with pytest.raises(RefusedError, match="which answered '404 this log is not known here'; not cosigned"):
        ask(lambda body: one.add_checkpoint(body, NOW), heads[4], log, [key("w1", COSIGNATURE).verifier])


@pytest.mark.parametrize("told", [b"x\n", b"", b"03\n", b"\xff"])
def test_a_conflict_without_a_size_is_refused(grown, key, told):
    log, heads = grown(4)
    with pytest.raises(VerificationError, match="nothing verified"):
        ask(lambda _: Answer(409, told), heads[4], log, [key("w1", COSIGNATURE).verifier])


def test_a_witness_that_changes_its_mind_for_ever_is_given_up(grown, key):
    (log, heads), asked = grown(4), []

    def send(body):
        asked.append(parse_request(body).old)
        return Answer(409, b"%d\n" % (asked[-1] % 4 + 1))

    with pytest.raises(VerificationError, match="must continue"):
        ask(send, heads[4], log, [key("w1", COSIGNATURE).verifier])
    assert len(asked) == 4


def test_the_specifications_own_request_is_read(key):
    example = (
        b"old 20852014\n"
        + b"".join(base64.b64encode(bytes([number]) * 32) + b"\n" for number in range(4))
        + b"\nexample.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        + "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/"
        "Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n".encode()
    )
    read = parse_request(example)
    assert bytes(read) == example
    assert (read.old, len(read.proof), parse_checkpoint(read.checkpoint.text).size) == (20852014, 4, 20852163)
    assert parse_note(bytes(read.checkpoint)) == read.checkpoint
