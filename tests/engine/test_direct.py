"""The direct carrier alone: who is let in, what is on the wire, what people send, what processes do to it."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from hubbub.engine.direct import Credentials, DirectServer, Tuning, fingerprint, send_command
from hubbub.engine.direct.frames import LARGEST, frames
from hubbub.engine.direct.server import _CODES
from hubbub.errors import HostError, InputError, RefusedError

ATTEND = "/hubbub.Direct/Attend"


def echo(question):
    return bytes(question)


def never(question):
    raise AssertionError("asked")


def attend(one, credentials, outgoing):
    """Speak to a coordinator without our half; returns the code and the word that it ends with."""
    ends = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    with grpc.secure_channel(one.address, ends) as channel:
        call = channel.stream_stream(ATTEND)(iter(outgoing), timeout=5)
        with suppress(grpc.RpcError):
            list(call)
        return call.code(), call.details()


# --- who is let in


@pytest.mark.parametrize("who", ["another authority's", "one that nobody enrolled", "another key under the same name"])
def test_a_strangers_certificate_is_refused(direct, carriers, certificates, who, caplog):
    one = direct()
    one.join("north", echo)
    issuer = certificates.Authority() if who == "another authority's" else one.authority
    stranger = issuer.participant("north" if who == "another key under the same name" else "stranger")
    stranger = Credentials(one.authority.certificate, stranger.certificate, stranger.key)
    stop = one.dial("stranger", never, stranger)
    word = "unavailable" if who == "another authority's" else "unknown"
    carriers.until(lambda: f"not connected to {one.address}: {word}" in caplog.text)
    expected = (grpc.StatusCode.UNAUTHENTICATED, "unknown")
    code, word = attend(one, stranger, [])
    assert (code, word) == expected or (code == grpc.StatusCode.UNAVAILABLE and who == "another authority's")
    assert one.there() == {"north"}
    assert list(one.transport.ask({"north": b"?", "stranger": b"?"}, seconds=5)) == [("north", b"?")]
    stop.set()


def test_without_a_certificate_nobody_gets_a_word_out(direct):
    one = direct()
    ends = grpc.ssl_channel_credentials(one.authority.certificate)
    with grpc.secure_channel(one.address, ends) as channel:
        call = channel.stream_stream(ATTEND)(iter([]), timeout=2)
        assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    with grpc.insecure_channel(one.address) as channel:
        call = channel.stream_stream(ATTEND)(iter([]), timeout=2)
        assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert one.there() == set()


def test_a_roster_that_cannot_be_read_admits_nobody(direct, monkeypatch):
    one = direct()
    one.join("north", echo)

    def fail(key):
        raise OSError("the roster is on a disk that is gone")

    monkeypatch.setattr(one.transport, "_identify", fail)
    assert one.there() == set()
    assert attend(one, one.enrol("north"), []) == (grpc.StatusCode.UNAUTHENTICATED, "unknown")


@pytest.mark.parametrize("who", ["another authority's", "another host's", "a participant's that names this host"])
def test_a_false_coordinator_is_not_answered(direct, certificates, who, tmp_path):
    one = direct()
    false = {
        "another authority's": lambda: certificates.Authority().host("localhost"),
        "another host's": lambda: one.authority.host("elsewhere.example"),
        "a participant's that names this host": lambda: one.authority.participant("north", "localhost"),
    }[who]()
    false = Credentials(one.authority.certificate, false.certificate, false.key)
    server = DirectServer(false, one.roster.get, spool=one.spool)
    stop = one.dial("north", never, one.enrol("north"), f"localhost:{server.port}")
    with pytest.raises(HostError, match="found 'unavailable'"):
        send_command(f"localhost:{server.port}", one.enrol("north"), b"?", seconds=2)
    assert not server.sites()
    stop.set()
    server.close()


def test_a_renewed_certificate_for_the_same_key_is_the_same_pipe(authority):
    a, b = authority.participant("north"), authority.participant("north")
    assert fingerprint(a.certificate) != fingerprint(b.certificate)
    assert fingerprint(authority.renewed(a, "north").certificate) == fingerprint(a.certificate)
    assert authority.renewed(a, "north").certificate != a.certificate


def test_credentials_do_not_print_the_key(authority):
    mine = authority.participant("north")
    assert "PRIVATE" not in repr(mine)
    assert "PRIVATE" not in str(vars(mine).keys())


def test_a_second_coordinator_at_the_same_address_is_refused(direct):
    one = direct()
    with pytest.raises(InputError, match=r"must listen at '127.0.0.1:\d+', cannot; nobody was let in"):
        DirectServer(
            one.authority.host("localhost"), one.roster.get, spool=one.spool, address=f"127.0.0.1:{one.transport.port}"
        )


def test_a_key_that_now_belongs_to_another_name_is_that_name(direct, carriers):
    one = direct()
    one.join("north", echo)
    one.roster[fingerprint(one.keys["north"].certificate)] = "south"
    carriers.until(lambda: one.there() == {"south"})
    assert list(one.transport.ask({"south": b"?", "north": b"?"}, seconds=5)) == [("south", b"?")]


def test_an_older_stream_of_a_name_is_told_that_it_was_replaced(direct, carriers):
    one = direct()
    ended, gate = [], threading.Event()
    outgoing = iter(lambda: gate.wait() and None, None)
    older = threading.Thread(target=lambda: ended.append(attend(one, one.enrol("north"), outgoing)))
    older.start()
    carriers.until(lambda: one.there() == {"north"})
    one.dial("north", echo, one.enrol("north"))
    older.join(5)
    gate.set()
    assert ended == [(grpc.StatusCode.ABORTED, "replaced")]
    assert one.there() == {"north"}


# --- what is on the wire


@pytest.mark.parametrize(
    "outgoing",
    [
        [b""],
        [b"short"],
        [bytes(16) + b"\x00" + b"neither first nor last"],
        [bytes(16) + b"\x01" + b"not full and not last"],
        [bytes(16) + b"\xff"],
        [bytes(16) + b"\x02" + b"an end without a beginning"],
        [os.urandom(500) for _ in range(20)],
    ],
    ids=["empty", "short", "no flags", "not full", "all flags", "only an end", "random"],
)
def test_garbage_ends_only_its_own_stream(direct, outgoing):
    one = direct()
    one.join("north", echo)
    assert attend(one, one.enrol("mad"), outgoing) == (grpc.StatusCode.INVALID_ARGUMENT, "garbage")
    assert one.there() == {"north"}
    assert list(one.transport.ask({"north": b"?"}, seconds=5)) == [("north", b"?")]


def test_a_frame_that_is_too_large_is_not_even_read(direct):
    one = direct()
    code, _ = attend(one, one.enrol("mad"), [bytes(LARGEST + 1)])
    assert code in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
    assert one.there() == set()


def test_an_answer_to_what_was_never_asked_is_dropped(direct):
    one = direct()
    asked = threading.Event()
    one.join("north", lambda question: asked.wait() and question)
    answers = one.transport.ask({"north": b"?", "liar": b"?"}, seconds=2)
    got = []
    asking = threading.Thread(target=lambda: got.extend(answers))
    asking.start()
    attend(one, one.enrol("liar"), frames(os.urandom(16), b"made up"))
    asked.set()
    asking.join()
    assert got == [("north", b"?")]


def test_a_restarted_coordinator_gets_no_answer_to_its_earlier_question(direct, wire):
    first, second = direct(), direct()
    line, gate = wire(first.transport.port), threading.Event()
    first.join("north", lambda question: gate.wait() and question * 1_000_000, line.address)
    second.roster.update(first.roster)
    assert list(first.transport.ask({"north": b"before"}, seconds=0.2)) == []
    line.port = second.transport.port
    first.transport.close()
    threading.Timer(0.3, gate.set).start()
    [(_, reply)] = second.transport.ask({"north": b"after"}, seconds=5)
    assert bytes(reply) == b"after" * 1_000_000
    assert line.forwarded < 5_500_000


def test_a_participants_logs_name_no_data(direct, caplog):
    caplog.set_level(logging.DEBUG, "hubbub")
    one = direct()
    one.join("north", lambda question: question * 2)
    assert list(one.transport.ask({"north": b"secret"}, seconds=5)) == [("north", b"secretsecret")]
    one.leave("north")
    assert "north is connected" in caplog.text
    assert "connected to localhost" in caplog.text
    assert "secret" not in caplog.text


def test_every_code_word_is_in_the_specification_under_its_code():
    page = (Path(__file__).parents[2] / "docs" / "spec" / "direct.md").read_text()
    written = dict(re.findall(r"^\| `(\w+)` \| ([A-Z_]+) \|", page, re.MULTILINE))
    assert written == {word: code.name for word, code in _CODES.items()}


# --- what people send


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_command_is_answered_to_whom_the_key_belongs(direct, size):
    one = direct(command=lambda name, data: name.encode() + data)
    data = os.urandom(size)
    assert send_command(one.address, one.enrol("ada"), data, seconds=5) == b"ada" + data


def test_a_command_of_a_stranger_does_nothing(direct):
    done = []
    one = direct(command=lambda name, _: done.append(name) or b"")
    with pytest.raises(RefusedError, match="knows those in its roster, not this key; nothing done"):
        send_command(one.address, one.authority.participant("eve"), b"stop", seconds=5)
    assert not done


def test_a_command_that_fails_says_no_more_than_that(direct):
    def fail(name, data):
        raise ValueError("record 17")

    one = direct(command=fail)
    with pytest.raises(HostError, match="found 'failed'; what was asked may have been done") as caught:
        send_command(one.address, one.enrol("ada"), b"?", seconds=5)
    assert "17" not in str(caught.value)


def test_a_command_that_nobody_answers_ends_at_the_deadline(direct):
    gate = threading.Event()
    one = direct(command=lambda _, data: gate.wait() and data)
    with pytest.raises(HostError, match=r"must answer within 0.3 s, found 'deadline_exceeded'"):
        send_command(one.address, one.enrol("ada"), b"?", seconds=0.3)
    gate.set()


def test_where_no_commands_are_taken_none_is_answered(direct):
    one = direct()
    with pytest.raises(HostError, match="found 'busy'"):
        send_command(one.address, one.enrol("ada"), b"?", seconds=5)


def test_one_persons_commands_do_not_fill_the_house(direct):
    gate = threading.Event()
    one = direct(command=lambda _, data: gate.wait() and data)
    ada = one.enrol("ada")
    waiting = [
        threading.Thread(target=send_command, args=(one.address, ada, b"?"), kwargs={"seconds": 5}) for _ in "1234"
    ]
    for thread in waiting:
        thread.start()
    end = time.monotonic() + 5
    while one.transport._commands["ada"] < 4 and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(HostError, match="found 'busy'"):
        send_command(one.address, ada, b"?", seconds=5)
    one.join("north", echo)
    gate.set()
    for thread in waiting:
        thread.join()


def test_too_large_an_answer_is_not_taken(direct):
    one = direct(command=lambda *_: bytes(2_000_000))
    with pytest.raises(HostError, match="found 'oversize'"):
        send_command(one.address, one.enrol("ada"), b"?", seconds=5, tuning=Tuning(limit=1_999_999))


def test_too_large_a_command_is_not_taken(direct):
    one = direct(command=lambda _, data: data, tuning=Tuning(limit=1_999_999))
    with pytest.raises(HostError, match="found 'oversize'"):
        send_command(one.address, one.enrol("ada"), bytes(2_000_000), seconds=5)


def test_without_grpc_it_says_what_to_install():
    script = "import sys; sys.modules['grpc'] = None\nimport hubbub.engine.direct"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "InputError: a carrier between hosts, needs grpcio, found no module 'grpc'" in done.stderr
