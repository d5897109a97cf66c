"""The event log: what is decided on is the newest state, whoever wrote last; what is written can be read."""

import pytest

from hubbub.errors import BudgetError, InputError, RefusedError
from hubbub.eventlog import EventLog
from hubbub.events import BudgetSettled, Evaluated, RequestRefused


class Names:
    """A fold: the runs in order."""

    def __init__(self):
        self.seen = []

    def apply(self, event):
        self.seen.append(event.run)


class Others(Names):
    """Another fold of the same events."""


@pytest.fixture
def logs(tmp_path):
    """Give two logs on one file, as two processes have them."""
    logs = [EventLog(tmp_path / "log.db") for _ in range(2)]
    yield logs
    for log in logs:
        log.close()


def settled(run):
    return BudgetSettled(run=run, charged=0)


def test_states_that_are_asked_in_any_order_see_each_event_once(logs):
    """Kept events are of the last append or of the last reading; each state may be anywhere before or behind them."""
    names, written = "abcdefghijkl", []
    for at, name in enumerate(names):
        logs[at % 3 % 2].append(lambda name=name: [settled(name)])
        written.append(name)
        for log, kinds in zip(logs, [(Names, Others), (Others,) * (at % 2)], strict=True):
            for kind in kinds[at % 2 :]:
                assert log.fold(kind).seen == written
    for log in logs:
        assert log.fold(Names).seen == log.fold(Others).seen == [event.run for event in log.events()] == written


def test_what_is_decided_sees_what_another_wrote_a_moment_ago(logs):
    one, two = logs
    one.append(lambda: [settled("a")])
    one.fold(Names)
    two.append(lambda: [settled("b")])

    def decide():
        assert one.fold(Names).seen == ["a", "b"]
        return [settled("c")]

    one.append(decide)
    assert one.fold(Names).seen == two.fold(Names).seen == ["a", "b", "c"]


def test_what_was_refused_is_in_no_state(logs):
    one, _ = logs

    def refuse():
        raise BudgetError("no", hint="no")

    one.note(settled("noted"))
    with pytest.raises(BudgetError):
        one.append(refuse)
    assert one.fold(Names).seen == []
    one.append(lambda: [settled("a")])
    assert one.fold(Names).seen == ["noted", "a"]


def test_what_a_state_is_made_of_is_what_is_written_not_what_was_handed_in(logs):
    one, two = logs
    one.append(lambda: [Evaluated(run="a", round_number=1, metrics={"accuracy": 1})])

    class Metrics:
        def __init__(self):
            self.seen = []

        def apply(self, event):
            self.seen.append(event.metrics["accuracy"])

    assert [type(value) for log in (one, two) for value in log.fold(Metrics).seen] == [float, float]


def test_an_event_that_nobody_could_read_again_is_not_written(logs):
    one, two = logs
    with pytest.raises(InputError, match="Expected `int`, got `str`"):
        one.append(lambda: [settled("a"), BudgetSettled(run="b", charged="many")])
    assert two.events() == []


def refuse(message):
    raise RefusedError(message, hint="ask")


def test_what_was_refused_is_recorded_where_it_is_told_what_was_asked(logs):
    log = logs[0]
    log.note(settled("a"))
    for asked in ("", "run x"):
        with pytest.raises(RefusedError, match="a, must be so, found else; nothing done"):
            log.append(lambda: refuse("a, must be so, found else; nothing done, nothing spent"), asked=asked)
        refused = [RequestRefused(asked=asked, reason="a, must be so, found else")] if asked else []
        assert logs[1].events() == ([settled("a"), *refused] if asked else [])
    log.append(lambda: [settled("b")])
    assert logs[1].events() == [settled("a"), *refused, settled("b")]


def test_wrong_input_is_refused_without_a_record(logs):
    with pytest.raises(InputError):
        logs[0].append(lambda: [Evaluated(run=1, round_number=1, metrics={})], asked="run x")
    assert logs[1].events() == []


@pytest.mark.parametrize("message", ["x" * 70_000, "\udc80\n" * 10, "\U0001f600" * 2000], ids=["long", "bytes", "wide"])
def test_any_words_of_a_refusal_can_be_recorded(logs, message):
    with pytest.raises(RefusedError):
        logs[0].append(lambda: refuse(message), asked="run x")
    (refused,) = logs[1].events()
    assert message.encode(errors="backslashreplace").startswith(refused.reason.encode()[:100])
    assert len(refused.reason) >= 60
