"""One suite for all carriers: what a coordinator may rely on, and what it must not need to."""

import os
import threading
import time

import pytest

CHUNK = 1 << 20
HOSTS = ["direct", "tunnel", pytest.param("flare", marks=pytest.mark.slow)]
every = pytest.mark.parametrize("carrier", ["in process", *HOSTS], indirect=True)
hosts = pytest.mark.parametrize("carrier", HOSTS, indirect=True)


def echo(question):
    return bytes(question)


@pytest.fixture
def gate():
    """Give an event that handlers may wait for; it is set at the end, so that none waits for ever."""
    event = threading.Event()
    yield event
    event.set()


def timed(answers):
    start = time.monotonic()
    return dict(answers), time.monotonic() - start


@every
def test_everybody_answers_its_own_question(carrier):
    names = [f"site-{number}" for number in range(8)]
    for name in names:
        carrier.join(name, lambda question, name=name: name.encode() + question)
    assert carrier.there() == set(names)
    questions = {name: f" is {number}".encode() for number, name in enumerate(names[1:])}
    answers = {name: bytes(reply) for name, reply in carrier.transport.ask(questions, seconds=5)}
    assert answers == {name: name.encode() + question for name, question in questions.items()}


@every
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 20_000_000])
def test_a_message_of_any_size_arrives_whole(carrier, size):
    carrier.join("north", echo)
    message = os.urandom(size)
    assert [(name, bytes(reply)) for name, reply in carrier.transport.ask({"north": message}, seconds=20)] == [
        ("north", message)
    ]


@every
def test_nobody_asked_is_nobody_waited_for(carrier):
    assert list(carrier.transport.ask({}, seconds=60)) == []


@hosts
def test_answers_come_as_they_are_given(carrier, gate):
    carrier.join("slow", lambda question: gate.wait() and question)
    carrier.join("quick", echo)
    answers = carrier.transport.ask({"slow": b"1", "quick": b"2"}, seconds=5)
    assert next(answers) == ("quick", b"2")
    gate.set()
    assert list(answers) == [("slow", b"1")]


@hosts
def test_the_deadline_ends_a_question_and_a_late_reply_is_dropped(carrier, gate):
    def answer(question):
        return question if question == b"second" else gate.wait() and question

    carrier.join("north", answer)
    answers, seconds = timed(carrier.transport.ask({"north": b"first"}, seconds=0.2))
    assert answers == {}
    assert 0.2 <= seconds < 1
    threading.Timer(0.1, gate.set).start()
    assert list(carrier.transport.ask({"north": b"second"}, seconds=5)) == [("north", b"second")]


@hosts
def test_a_participant_that_never_answers_is_a_dropout(carrier, gate):
    carrier.join("frozen", lambda question: gate.wait() and question)
    carrier.join("north", echo)
    assert dict(carrier.transport.ask({"frozen": b"1", "north": b"2"}, seconds=0.3)) == {"north": b"2"}


@hosts
def test_who_restarts_during_a_question_is_asked_again(carrier, gate):
    seen = []
    carrier.join("north", lambda question: seen.append(question) or (gate.wait() and b"the old process"))
    answers = carrier.transport.ask({"north": b"what?"}, seconds=5)
    restart = threading.Timer(0.1, lambda: (carrier.leave("north"), carrier.join("north", lambda q: q + b" again")))
    restart.start()
    assert list(answers) == [("north", b"what? again")]
    assert seen == [b"what?"]
    restart.join()


@hosts
def test_a_lost_connection_is_made_again_and_nothing_is_handled_twice(carrier, gate, wire):
    line, seen = wire(carrier.port), []
    carrier.join("north", lambda question: seen.append(question) or (gate.wait() and question), line.address)
    for delay in (0.1, 0.3):
        threading.Timer(delay, line.cut).start()
    threading.Timer(0.5, gate.set).start()
    assert list(carrier.transport.ask({"north": b"once"}, seconds=5)) == [("north", b"once")]
    assert seen == [b"once"]


@hosts
def test_an_answer_lost_on_the_wire_is_given_again_without_asking_the_participant(carrier, wire):
    line, seen = wire(carrier.port), []

    def answer(question):
        seen.append(question)
        line.silence()
        threading.Timer(0.05, lambda: (line.cut(), line.resume())).start()
        return question * 3_000_000

    carrier.join("north", answer, line.address)
    assert [len(reply) for _, reply in carrier.transport.ask({"north": b"x"}, seconds=5)] == [3_000_000]
    assert seen == [b"x"]


@hosts
def test_whoever_comes_back_has_another_number(carrier, carriers, wire):
    line = wire(carrier.transport.port)
    carrier.join("north", echo, line.address)
    carrier.join("south", echo)
    before = dict(carrier.transport.sites())
    line.cut()
    carriers.until(lambda: carrier.transport.sites().get("north", before["north"]) != before["north"])
    assert carrier.transport.sites()["south"] == before["south"]


@hosts
def test_a_silent_wire_is_noticed_within_the_keepalive(carrier, wire):
    line = wire(carrier.port)
    carrier.join("north", echo, line.address)
    line.silence()
    start = time.monotonic()
    assert list(carrier.transport.ask({"north": b"?"}, seconds=30)) == []
    assert time.monotonic() - start < 2 * carrier.tuning.keepalive + carrier.tuning.grace + 2
    line.resume()
    assert list(carrier.transport.ask({"north": b"back?"}, seconds=10)) == [("north", b"back?")]


@hosts
def test_a_message_given_up_half_way_does_not_spoil_the_next(carrier, wire):
    line, seen = wire(carrier.port), []
    carrier.join("north", lambda question: seen.append(question) or question, line.address)
    line.silence()
    threading.Timer(0.3, line.resume).start()
    assert list(carrier.transport.ask({"north": bytes(30_000_000)}, seconds=0.1)) == []
    assert list(carrier.transport.ask({"north": b"next"}, seconds=10)) == [("north", b"next")]
    assert seen == [b"next"]


@hosts
def test_with_nobody_there_the_grace_ends_a_question(carrier):
    answers, seconds = timed(carrier.transport.ask({"nobody": b"?"}, seconds=60))
    assert answers == {}
    assert carrier.tuning.grace <= seconds < carrier.tuning.grace + 1


@hosts
def test_who_comes_within_the_grace_is_asked(carrier):
    joining = threading.Timer(0.1, lambda: carrier.join("north", echo))
    joining.start()
    assert list(carrier.transport.ask({"north": b"?"}, seconds=60)) == [("north", b"?")]
    joining.join()


@hosts
def test_who_fails_says_so_and_is_not_waited_for(carrier, caplog):
    def fail(question):
        raise ValueError("record 17 is HIV positive")

    carrier.join("north", fail)
    answers, seconds = timed(carrier.transport.ask({"north": b"?"}, seconds=60))
    assert answers == {}
    assert seconds < 2
    assert "ValueError" in caplog.text
    assert "17" not in caplog.text


@hosts
def test_questions_to_others_may_overlap_and_to_the_same_may_not(carrier, gate):
    asked, first = threading.Event(), []
    carrier.join("north", lambda question: asked.set() or (gate.wait() and question))
    carrier.join("south", echo)
    asking = threading.Thread(target=lambda: first.extend(carrier.transport.ask({"north": b"1"}, seconds=5)))
    asking.start()
    asked.wait()
    assert list(carrier.transport.ask({"south": b"2"}, seconds=5)) == [("south", b"2")]
    with pytest.raises(ValueError, match="asked already: \\['north'\\]"):
        next(carrier.transport.ask({"north": b"3"}, seconds=5))
    gate.set()
    asking.join()
    assert first == [("north", b"1")]


@hosts
def test_whoever_stops_listening_to_answers_may_ask_again(carrier):
    carrier.join("north", echo)
    carrier.join("south", echo)
    answers = carrier.transport.ask({"north": b"1", "south": b"2"}, seconds=5)
    next(answers)
    answers.close()
    again = carrier.transport.ask({"north": b"3", "south": b"4"}, seconds=5)
    assert dict(again) == {"north": b"3", "south": b"4"}


@hosts
def test_the_newest_question_waits_while_one_is_handled(carrier, gate):
    seen = []
    carrier.join("north", lambda question: seen.append(question) or (gate.wait() and question))
    for question in (b"1", b"2", b"3"):
        assert list(carrier.transport.ask({"north": question}, seconds=0.15)) == []
    threading.Timer(0.1, gate.set).start()
    assert list(carrier.transport.ask({"north": b"4"}, seconds=5)) == [("north", b"4")]
    assert seen == [b"1", b"4"]


@hosts
def test_two_streams_of_one_name_are_the_newer_one(carrier):
    older = carrier.join("north", lambda _: b"older")
    newer = threading.Event()
    carrier.dial("north", lambda _: newer.set() or b"newer", carrier.enrol("north"))
    while not newer.is_set():
        list(carrier.transport.ask({"north": b"?"}, seconds=1))
    older.set()
    assert list(carrier.transport.ask({"north": b"?"}, seconds=5)) == [("north", b"newer")]


@hosts
def test_closing_leaves_no_thread_and_ends_every_question(carrier, gate):
    carrier.join("north", lambda question: gate.wait() and question)
    threading.Timer(0.1, carrier.transport.close).start()
    answers, seconds = timed(carrier.transport.ask({"north": b"?"}, seconds=60))
    assert answers == {}
    assert seconds < 2
    gate.set()
    carrier.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "hubbub" in name or "Timer" in name]


@hosts
def test_who_answers_with_too_much_is_cut_and_the_others_are_not(carrier):
    seen = []
    carrier.join("greedy", lambda question: seen.append(question) or bytes(carrier.tuning.limit + 1))
    carrier.join("north", echo)
    answers, seconds = timed(carrier.transport.ask({"greedy": b"1", "north": b"2"}, seconds=60))
    assert answers == {"north": b"2"}
    assert seen == [b"1"]
    assert seconds < 5


@hosts
def test_a_large_answer_lies_in_a_file_without_a_name(carrier):
    carrier.join("north", lambda _: os.urandom(5_000_000))
    [(_, large)] = carrier.transport.ask({"north": b"?"}, seconds=5)
    assert isinstance(large, memoryview)
    assert large.readonly
    assert len(large) == 5_000_000
    assert not list(carrier.spool.folder.iterdir())


@hosts
def test_who_is_struck_from_the_roster_is_gone_at_once_when_asked_for(carrier):
    carrier.join("north", echo)
    carrier.join("south", echo)
    carrier.strike("north")
    assert carrier.there() == {"south"}


@hosts
def test_who_is_struck_from_the_roster_is_not_asked_any_more(carrier):
    seen = []
    carrier.join("north", lambda question: seen.append(question) or question)
    carrier.join("south", echo)
    carrier.strike("north")
    answers, seconds = timed(carrier.transport.ask({"north": b"1", "south": b"2"}, seconds=60))
    assert answers == {"south": b"2"}
    assert seconds < 5
    assert seen == []


@hosts
def test_an_answer_of_who_was_struck_meanwhile_is_not_given(carrier, gate):
    asked = threading.Event()
    carrier.join("north", lambda question: asked.set() or (gate.wait() and question))
    answers = []
    asking = threading.Thread(target=lambda: answers.extend(carrier.transport.ask({"north": b"?"}, seconds=60)))
    asking.start()
    asked.wait()
    carrier.strike("north")
    gate.set()
    asking.join()
    assert answers == []
