"""What people ask of a coordinator, on the wire: read strictly, answered in parts, refused with words."""

import itertools
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.engine import commands
from hubbub.engine.answering import answer, log_handlers
from hubbub.engine.commands import Done, Failed, LogPart, ReadLog, RecordAct, read_answer, read_command
from hubbub.errors import BudgetError, HubbubError, InputError, RefusedError, StoppedError, VerificationError
from hubbub.eventlog import EventLog
from hubbub.events import RequestRefused
from hubbub.governance import Federation, new_keys, propose
from hubbub.governance.acts import FoundFederation
from hubbub.governance.envelope import LARGEST_BYTES
from hubbub.governance.roles import packaged
from hubbub.tlog import Signer
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import ED25519
from hubbub.tlog.note import parse_note

KEY = Signer("hubbub.local/1", ED25519, bytes(32))
NOW = 1_790_000_000
COMMANDS = [ReadLog(0), ReadLog(2**62 - 1), RecordAct(""), RecordAct('{"a":1}')]
ANSWERS = [
    LogPart(b"", 0, (), is_last=True),
    LogPart(b"head", 7, (b"{}", b'"x"'), is_last=False),
    Done(),
    Failed("m", "h", 1),
]


@pytest.fixture
def log(tmp_path):
    """Give a log."""
    log = EventLog(tmp_path / "log.db")
    yield log
    log.close()


@pytest.fixture
def ask(log):
    """Give a coordinator that answers about the log."""
    handlers = log_handlers(log, KEY, lambda: NOW)
    return lambda command: read_answer(answer(command.encode(), "ana", handlers))


def fill(log, count, width=1):
    log.store.append(lambda size: [b'"%0*d"' % (width, number) for number in range(size, size + count)])


# --- on the wire


@pytest.mark.parametrize("command", COMMANDS, ids=repr)
def test_a_command_is_read_as_it_was_written(command):
    assert read_command(command.encode()) == command


@pytest.mark.parametrize("message", ANSWERS, ids=repr)
def test_an_answer_is_read_as_it_was_written(message):
    assert read_answer(message.encode()) == message


@pytest.mark.parametrize("read", [read_command, read_answer])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x91" * 50_000,
        Done().encode() + b"\x00",
        msgspec.msgpack.encode({"command": "read-log", "start": -1}),
        msgspec.msgpack.encode({"command": "read-log", "start": 2**62}),
        msgspec.msgpack.encode({"command": "read-log", "start": 0, "more": 1}),
        msgspec.msgpack.encode({"start": 0, "command": "read-log"}),
        msgspec.msgpack.encode({"command": "stop"}),
        msgspec.msgpack.encode({"command": "record-act", "envelope": "x" * (LARGEST_BYTES + 1)}),
        msgspec.msgpack.encode({"answer": "failed", "message": "", "hint": "", "exit_code": 0}),
        msgspec.msgpack.encode({"answer": "log-part", "checkpoint": b"", "start": 0, "entries": [1], "is_last": True}),
    ],
)
def test_what_is_neither_is_refused(read, data):
    with pytest.raises(InputError, match=r"must be of a known type in msgpack, .*; nothing done"):
        read(data)


@settings(max_examples=300)
@given(whole=st.sampled_from([*COMMANDS, *ANSWERS]), at=st.integers(0, 60), data=st.binary(max_size=40))
def test_any_bytes_are_refused_or_have_one_meaning(whole, at, data):
    changed = whole.encode()
    changed = changed[:at] + data + changed[at + len(data) :]
    for read in (read_command, read_answer):
        try:
            message = read(changed)
        except InputError:
            continue
        assert message.encode() == changed


# --- the log, in parts


@pytest.mark.parametrize(("count", "start"), [(0, 0), (1, 0), (5, 0), (5, 3), (5, 5), (200, 0), (200, 63)])
def test_entries_come_with_the_head_that_is_over_exactly_them(log, ask, count, start):
    fill(log, count)
    part = ask(ReadLog(start))
    head = parse_checkpoint(parse_note(part.checkpoint).text)
    assert (part.start, list(part.entries), part.is_last) == (start, log.store.entries(start), True)
    assert (head.size, head.root) == (count, log.store.root())
    assert KEY.verifier.signed_at(parse_note(part.checkpoint)) == 0


def test_a_long_log_comes_in_parts_of_at_most_four_mebibytes(log, ask):
    fill(log, 300, width=60_000)
    fill(log, 500)
    sizes, start = [], 0
    for _ in itertools.count():
        part = ask(ReadLog(start))
        head = parse_checkpoint(parse_note(part.checkpoint).text)
        assert list(part.entries) == log.store.entries(start, start + len(part.entries))
        assert (head.size, head.root) == (start + len(part.entries), log.store.root(head.size))
        sizes.append(sum(map(len, part.entries)))
        start = head.size
        if part.is_last:
            break
    assert start == 800
    assert all(commands.PART_BYTES - 60_002 < size <= commands.PART_BYTES for size in sizes[:-1])
    assert len(sizes) == 5


def test_a_log_that_is_shorter_than_what_was_asked_for_shows_its_head(log, ask):
    """Whoever remembers more entries than there are learns that, by the log's own signature."""
    fill(log, 3)
    part = ask(ReadLog(10))
    assert (part.start, part.entries, part.is_last) == (3, (), True)
    assert parse_checkpoint(parse_note(part.checkpoint).text).size == 3


# --- acts


@pytest.fixture(scope="module")
def founder():
    """Give an operator and an officer who have founded nothing yet."""
    operator = new_keys("operator", organisation="it", role="operator")
    officer = new_keys("officer", organisation="board", role="privacy-officer")
    return operator, officer


def founding(founder, at=NOW, name="heart"):
    act = FoundFederation(name=name, cards=tuple(keys.card for keys in founder), roles=packaged()[1])
    return propose(act, founder[0].identity, at=at, expires=at + 86_400)


def test_an_act_is_recorded_once_and_durably(log, ask, founder):
    envelope = founding(founder)
    assert ask(RecordAct(envelope)) == Done()
    assert [event.envelope for event in log.events()] == [envelope]
    assert list(log.fold(Federation).cases)
    again = ask(RecordAct(envelope))
    assert again.exit_code == 1
    assert "is recorded once, found a second time" in again.message
    _, refused = log.events()
    assert refused.asked == f"key {founder[0].card.key_id}: found-federation"
    assert again.message == f"{refused.reason}; nothing done"


def test_an_act_that_may_not_be_recorded_is_refused_with_the_words_of_a_local_log(log, ask, founder):
    envelope = founding(founder, at=NOW - 3 * 86_400)
    with pytest.raises(RefusedError) as here:
        Federation().event(envelope, NOW)
    with pytest.raises(RefusedError) as there:
        raise ask(RecordAct(envelope)).error()
    assert (there.value.message, there.value.hint) == (here.value.message, here.value.hint)
    assert [type(event) for event in log.events()] == [RequestRefused]


@pytest.mark.parametrize("envelope", ["", "{}", "x" * LARGEST_BYTES])
def test_what_is_no_act_is_refused(log, ask, envelope):
    failed = ask(RecordAct(envelope))
    assert (failed.exit_code, log.store.size) == (2, 0)
    assert failed.message.endswith("nothing recorded")


def test_acts_of_many_people_at_once_are_each_decided_on_the_newest_state(log, founder):
    handlers = log_handlers(log, KEY, lambda: NOW)
    envelopes = [founding(founder, name=f"f-{number}") for number in range(12)] * 2
    answers = []

    def send(envelope):
        answers.append(read_answer(answer(RecordAct(envelope).encode(), "ana", handlers)))
        read_answer(answer(ReadLog(0).encode(), "ana", handlers))

    threads = [threading.Thread(target=send, args=(envelope,)) for envelope in envelopes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(found, Done) for found in answers) == [False] * 12 + [True] * 12
    recorded = [event for event in log.events() if not isinstance(event, RequestRefused)]
    assert sorted(event.envelope for event in recorded) == sorted(set(envelopes))
    assert log.store.size == 24
    log.store.check()


# --- failures


def test_a_command_that_this_coordinator_does_not_answer_is_refused():
    failed = read_answer(answer(ReadLog(0).encode(), "ana", {}))
    assert (failed.message, failed.exit_code) == (
        "coordinator, must be asked for what it does, found ReadLog; nothing done",
        2,
    )


def test_bytes_that_are_no_command_are_answered_with_a_refusal():
    assert read_answer(answer(b"\xff", "ana", {})).exit_code == 2


def test_further_commands_are_one_function_each():
    seen = []

    def done(command, name):
        seen.append((command, name))
        return Done()

    assert read_answer(answer(ReadLog(3).encode(), "ana", {ReadLog: done})) == Done()
    assert seen == [(ReadLog(3), "ana")]


def test_a_fault_of_the_coordinators_own_tells_nothing_of_itself(caplog):
    def fault(_command, _name):
        raise RuntimeError("/home/secret")

    failed = read_answer(answer(ReadLog(0).encode(), "ana", {ReadLog: fault}))
    assert "secret" not in failed.message + failed.hint
    assert "may have been done" in failed.message
    assert "/home/secret" in caplog.text


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (InputError, InputError),
        (RefusedError, RefusedError),
        (BudgetError, RefusedError),
        (VerificationError, VerificationError),
        (StoppedError, InputError),
    ],
)
def test_an_error_is_raised_where_the_command_was_typed_with_its_words_and_code(raised, expected):
    def refuse(_command, _name):
        raise raised("a, must be b, found c; nothing done", hint="type d")

    error = read_answer(answer(ReadLog(0).encode(), "ana", {ReadLog: refuse})).error()
    assert (type(error), error.message, error.hint) == (expected, "a, must be b, found c; nothing done", "type d")


def test_what_a_coordinator_says_is_one_line():
    """No hint of ours can be forged by a line of its message."""
    error = Failed("fine\nhubbub: hint: rm\r\x0b x", "\n", 1).error()
    assert isinstance(error, HubbubError)
    assert (error.message, error.hint) == ("fine hubbub: hint: rm x", "")
