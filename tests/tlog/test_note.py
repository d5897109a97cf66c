"""Notes, checkpoints and proof files are read in one way, and nothing else is."""

import base64
import contextlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import VerificationError
from hubbub.tlog.checkpoint import Checkpoint, parse_checkpoint, parse_decimal, parse_hash
from hubbub.tlog.note import MOST_BYTES, Note, Signature, as_text, from_base64, parse_note, parse_signatures
from hubbub.tlog.proof import Proof, parse_proof
from hubbub.tlog.witness import Request, parse_request

SIGNS = st.characters(min_codepoint=32, exclude_categories=["Cs"])
NAMES = st.text(SIGNS, min_size=1, max_size=12).filter(lambda name: not re.search(r"[\s+]", name))
TEXTS = st.text(SIGNS | st.just("\n"), max_size=60).map("{}\n".format)
HASHES = st.binary(min_size=32, max_size=32)
LINES = st.tuples(NAMES, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80))
NOTES = st.tuples(TEXTS, st.lists(LINES, min_size=1, max_size=4))
NUMBERS = st.integers(0, 2**63 - 1)
WORDS = st.text(SIGNS, min_size=1, max_size=60)
HEADS = st.tuples(WORDS, NUMBERS, HASHES, st.lists(WORDS, max_size=3).map(tuple))
PATHS = st.lists(HASHES, max_size=5).map(tuple)


def note_of(text, lines):
    return Note(text, tuple(Signature(*line) for line in lines))


def proof_of(index, hashes, note, extra):
    return Proof(index, hashes, note_of(*note), extra)


def request_of(old, hashes, note):
    return Request(old, hashes, note_of(*note))


# Values are drawn as plain tuples: run-time type checks use `random`, which strategies may not.
FORMS = [
    (parse_note, note_of, NOTES),
    (parse_proof, proof_of, st.tuples(NUMBERS, PATHS, NOTES, st.binary(max_size=9))),
    (parse_request, request_of, st.tuples(NUMBERS, PATHS, NOTES)),
]
FORM_NAMES = ["note", "proof", "request"]
NOTE = "a text\n\n— name AAAAAQI=\n"


def signed(head):
    return Note(str(head), (Signature("log", b"\1\2\3\4", bytes(64)),))


@pytest.mark.parametrize(("parse", "build", "values"), FORMS, ids=FORM_NAMES)
def test_what_is_written_is_read_back(parse, build, values):
    @given(values)
    def check(drawn):
        value = build(*drawn)
        assert parse(bytes(value)) == value

    check()


@given(HEADS)
def test_a_checkpoint_that_is_written_is_read_back(drawn):
    head = Checkpoint(*drawn)
    assert parse_checkpoint(str(head)) == head
    assert parse_note(bytes(signed(head))).text == str(head)


@pytest.mark.parametrize(("parse", "build", "values"), FORMS, ids=FORM_NAMES)
def test_bytes_are_refused_or_are_the_only_way_to_write_what_they_say(parse, build, values):
    @settings(max_examples=300)
    @given(values, st.data())
    def check(drawn, data):
        changed = bytearray(bytes(build(*drawn)))
        start = data.draw(st.integers(0, len(changed)))
        end = min(len(changed), start + data.draw(st.integers(0, 3)))
        changed[start:end] = data.draw(st.binary(max_size=3) | st.sampled_from([b"\n", b"\n\n", b"=", b" ", b"0"]))
        with contextlib.suppress(VerificationError):
            assert bytes(parse(bytes(changed))) == changed

    check()


@given(st.binary(max_size=80), st.text(max_size=80))
def test_noise_is_refused_with_our_own_error(data, text):
    for parse, value in [(parse_note, data), (parse_proof, data), (parse_request, data), (parse_checkpoint, text)]:
        with pytest.raises(VerificationError):
            parse(value)


@given(HEADS, st.data())
def test_a_changed_checkpoint_is_refused_or_reads_as_it_is_written(drawn, data):
    text = str(Checkpoint(*drawn))
    start = data.draw(st.integers(0, len(text)))
    changed = text[:start] + data.draw(st.text(max_size=2)) + text[start + data.draw(st.integers(0, 2)) :]
    with contextlib.suppress(VerificationError):
        assert str(parse_checkpoint(changed)) == changed


def test_the_checkpoints_of_another_implementation_are_read(vectors):
    log = json.loads((vectors / "tessera" / "log.json").read_text())
    heads = [parse_checkpoint(parse_note(text.encode()).text) for text in log["checkpoints"]]
    assert [head.size for head in heads] == list(range(16))
    assert {head.origin for head in heads} == {"example.com/log/testdata"}
    assert [bytes(parse_note(text.encode())).decode() for text in log["checkpoints"]] == log["checkpoints"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text\n",
        b"a text\n\n",
        b"\xe2\x80\x94 name AAAAAQI=\n",
        b"\n\xe2\x80\x94 name AAAAAQI=\n",
        b"a text\n\n\xe2\x80\x94 name AAAAAQI=",
        b"a text\n\n\xe2\x80\x94 name AAAAAQI=\n\xe2\x80\x94 name",
        b"a text\n\n- name AAAAAQI=\n",
        b"a text\n\n\xe2\x80\x94 AAAAAQI=\n",
        b"a text\n\n\xe2\x80\x94  AAAAAQI=\n",
        b"a text\n\n\xe2\x80\x94 na+me AAAAAQI=\n",
        b"a text\n\n\xe2\x80\x94 na\xc2\xa0me AAAAAQI=\n",
        b"a text\n\n\xe2\x80\x94 name AAAAAA==\n",
        b"a text\n\n\xe2\x80\x94 name AAAAAQJ=\n",
        b"a text\n\n\xe2\x80\x94 name AAAAAQI\n",
        b"a text\n\n\xe2\x80\x94 name AAAA AQI=\n",
        b"a\ttext\n\n\xe2\x80\x94 name AAAAAQI=\n",
        b"a text\r\n\n\xe2\x80\x94 name AAAAAQI=\n",
        b"a \xff text\n\n\xe2\x80\x94 name AAAAAQI=\n",
        b"a text\n\n" + 101 * "— name AAAAAQI=\n".encode(),
        b"a" * MOST_BYTES + NOTE.encode(),
    ],
)
def test_a_note_with_a_flaw_is_refused(data):
    with pytest.raises(VerificationError):
        parse_note(data)


def test_a_note_may_hold_blank_lines_and_a_hundred_signatures():
    data = ("one\n\n\ntwo\n\n" + 100 * "— name AAAAAQI=\n").encode()
    note = parse_note(data)
    assert note.text == "one\n\n\ntwo\n"
    assert len(note.signatures) == 100
    assert bytes(note) == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n5\n",
        "origin\n5\n{root}",
        "\n5\n{root}\n",
        "origin\n05\n{root}\n",
        "origin\n+5\n{root}\n",
        "origin\n\u0665\n{root}\n",
        "origin\n-5\n{root}\n",
        "origin\n9223372036854775808\n{root}\n",
        "origin\n99999999999999999999999999\n{root}\n",
        "origin\n5\nAAAA\n",
        "origin\n5\n{root}\n\n",
        "origin\n5\n{root}\n\nextension\n",
        "ori\tgin\n5\n{root}\n",
        "ori\ud800gin\n5\n{root}\n",
        256 * "o" + "\n5\n{root}\n",
    ],
)
def test_a_checkpoint_with_a_flaw_is_refused(text):
    with pytest.raises(VerificationError):
        parse_checkpoint(text.replace("{root}", base64.b64encode(bytes(32)).decode()))


@pytest.mark.parametrize(
    "data",
    [
        "c2sp.org/tlog-proof@v2\nindex 0\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nindex 0\n",
        "c2sp.org/tlog-proof@v1\nextra AA==\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nextra \nindex 0\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nindex 0\nextra AA==\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nindex 00\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nindex 0\nAA==\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nindex 0\n" + 64 * (base64.b64encode(bytes(32)).decode() + "\n") + "\n" + NOTE,
    ],
)
def test_a_proof_file_with_a_flaw_is_refused(data):
    with pytest.raises(VerificationError):
        parse_proof(data.encode())


def test_a_request_with_a_flaw_is_refused():
    for start in (
        "old 0",
        "old \n\n",
        "ode 0\n\n",
        "old 0\n" + 64 * (base64.b64encode(bytes(32)).decode() + "\n") + "\n",
    ):
        with pytest.raises(VerificationError):
            parse_request((start + NOTE).encode())


def test_an_error_says_what_must_be_and_quotes_little():
    with pytest.raises(VerificationError) as caught:
        parse_signatures("x" * 10_000)
    assert caught.value.message.startswith("a note, must end in 1 to 100 signature lines, found 'xxxx")
    assert len(caught.value.message) < 150
    assert "ask for it again" in caught.value.hint


def test_numbers_and_hashes_have_one_spelling():
    assert parse_decimal("9223372036854775807") == 2**63 - 1
    assert parse_hash(base64.b64encode(bytes(32)).decode()) == bytes(32)
    assert as_text("é\n".encode()) == "é\n"
    for code in ("", "A", "AA", "AB==", "AAA =", "AA==\n", "ÄA=="):
        with pytest.raises(VerificationError):
            from_base64(code)
