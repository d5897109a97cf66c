"""Events: frozen, each field public or released, the same bytes for the same event, any other bytes refused."""

import typing

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hubbub.errors import InputError
from hubbub.events import (
    AnyEvent,
    BudgetCharged,
    Event,
    RunStarted,
    decode_event,
    encode_event,
)

KINDS = typing.get_args(AnyEvent)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def values(kind):
    """A strategy for values of an annotation."""
    if typing.get_origin(kind) is typing.Annotated:
        return values(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return st.lists(values(typing.get_args(kind)[0]), max_size=3).map(tuple)
    if typing.get_origin(kind) is dict:
        return st.dictionaries(TEXT, values(typing.get_args(kind)[1]), max_size=3)
    if typing.get_origin(kind) is not None:  # a union
        return st.one_of([values(part) for part in typing.get_args(kind)])
    return {str: TEXT, int: INTEGERS, float: FLOATS, type(None): st.none(), bool: st.booleans(), typing.Any: JSON}[kind]


def hints(kind):
    return {
        name: hint
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if not name.startswith("_")
    }


def some(kind):
    return st.fixed_dictionaries({name: values(hint) for name, hint in hints(kind).items()}).map(
        lambda fields: kind(**fields)
    )


EVENTS = st.sampled_from(KINDS).flatmap(some)


# --- types


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_frozen_and_takes_no_other_field(kind):
    assert issubclass(kind, Event)
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields
    assert kind.__struct_config__.tag_field == "event"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_marked_public_or_released(kind):
    assert set(hints(kind)) == set(kind.__struct_fields__)
    for name, hint in hints(kind).items():
        marks = [meta.extra for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
        assert marks in ([{"exposure": "public"}], [{"exposure": "released"}]), name


def test_what_is_computed_from_data_is_marked_released():
    released = {
        (kind.__name__, name)
        for kind in KINDS
        for name, hint in hints(kind).items()
        if hint.__metadata__[0].extra["exposure"] == "released"
    }
    assert {("RoundClosed", "step_norm"), ("Evaluated", "metrics"), ("RunFinished", "model_hash")} <= released


def test_every_kind_of_event_has_a_tag_of_its_own():
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len(set(tags)) == len(tags)
    assert set(KINDS) == {kind for kind in Event.__subclasses__() if kind.__module__ == Event.__module__}


def test_an_event_cannot_be_changed():
    event = BudgetCharged(run="r", round_number=1, attempt=1)
    with pytest.raises(AttributeError):
        event.attempt = 0


# --- bytes


@settings(max_examples=300)
@given(EVENTS)
def test_an_event_is_read_as_it_was_written_and_written_the_same_again(event):
    line = encode_event(event)
    assert b"\n" not in line
    assert decode_event(line) == event
    assert encode_event(decode_event(line)) == line
    assert decode_event(line.decode()) == event


def test_the_order_of_keys_does_not_show():
    fields = {
        "run": "r",
        "study": "s",
        "plan_hash": "p",
        "code_hash": "c",
        "noise_source": "os",
        "is_test_public": False,
    }
    one = RunStarted(**fields, versions={"a": "1", "b": "2"})
    two = RunStarted(**fields, versions={"b": "2", "a": "1"})
    assert encode_event(one) == encode_event(two)


def is_orderly(line):
    """Whether these bytes are an event, or refused in one line with a hint."""
    try:
        return isinstance(decode_event(line), KINDS)
    except InputError as error:
        is_worded = error.message.startswith("event, must be one JSON object of a known kind, ")
        return is_worded and error.hint == "an event file is written by hubbub only: restore it from a copy"


@settings(max_examples=500)
@given(st.binary(max_size=60) | st.text(max_size=60) | JSON.map(msgspec.json.encode))
@example(b"[" * 100_000)
@example(b'{"event":' * 100_000)
@example("\ud800")
@example(b'{"event":"run-started","run":"\xff"}')
@example(b'{"event":"budget-charged","run":"r","round_number":1e999,"attempt":1}')
@example(b'{"event":"round-closed","run":"","round_number":1,"attempt":1,"participants":1,"step_norm":1e999}')
def test_any_bytes_are_an_event_or_refused(line):
    assert is_orderly(line)


@settings(max_examples=500)
@given(EVENTS, st.data())
def test_a_damaged_event_is_an_event_or_refused(event, data):
    line = bytearray(encode_event(event))
    at = data.draw(st.integers(0, len(line) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if how == "flip":
        line[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del line[at:]
    else:
        line[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    assert is_orderly(bytes(line))
    if how == "cut":
        with pytest.raises(InputError):
            decode_event(bytes(line))


def test_a_deep_dp_event_is_refused():
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    line = b'{"event":"budget-reserved","run":"","plan_hash":"","unit":"","datasets":[],"dp_event":' + deep
    assert is_orderly(line + b',"attempts":1,"inflation":0}')


def test_an_event_is_one_line_whatever_it_says():
    line = encode_event(BudgetCharged(run="r\u2028\r\n", round_number=1, attempt=1))
    assert line.splitlines() == [line]
