"""Messages: what goes in comes out, any other bytes are refused, and no type can carry a record."""

import typing

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubbub.errors import InputError, RoundError
from hubbub.messages import (
    Contribution,
    Cosigned,
    Done,
    Message,
    Refused,
    RoundContinued,
    RoundOpened,
    StudyHeld,
    decode_message,
    encode_message,
    pack_parameters,
    pack_values,
    unpack_parameters,
    unpack_values,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
KINDS = typing.get_args(Message)
VALUES = {str: TEXT, int: INTEGERS, bytes: st.binary(max_size=9), memoryview: st.binary(max_size=9).map(memoryview)}
MESSAGES = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(kind, **{field.name: VALUES[field.type] for field in msgspec.structs.fields(kind)})
)
SENT = (Contribution, Cosigned, StudyHeld, Done, Refused)
"""What a participant sends; `participant.host` answers nothing else."""
OPENED = RoundOpened(run="r", plan_hash="p", round_number=1, attempt=1, parameters=b"\0\0\x80?")


@given(MESSAGES)
def test_a_message_is_read_as_it_was_written(message):
    assert decode_message(encode_message(message)) == message


def outcome(data):
    """The message in these bytes, None where they are refused."""
    try:
        return decode_message(data)
    except InputError as error:
        return error


def is_orderly(result):
    """Whether this is a message, or a refusal in one line with a hint."""
    if isinstance(result, InputError):
        is_worded = result.message.startswith("message, must be of a known type, ")
        return is_worded and result.hint == "both sides must run the same version"
    return isinstance(result, KINDS)


@settings(max_examples=500)
@given(st.binary(max_size=60))
@example(b"\x91" * 100_000)
@example(b"\x81\xa4type" * 50_000)
@example(b"\xa1\xff")
def test_any_bytes_are_a_message_or_refused(data):
    assert is_orderly(outcome(data))


@settings(max_examples=500)
@given(MESSAGES, st.data())
def test_a_damaged_message_is_a_message_or_refused(message, data):
    content = bytearray(encode_message(message))
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "append"]))
    if how == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[at:]
    else:
        at = at if how == "insert" else len(content)
        content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    result = outcome(bytes(content))
    assert is_orderly(result)
    if how in {"cut", "append"}:
        assert isinstance(result, InputError)


@pytest.mark.parametrize("change", [{"records": [1]}, {"attempt": None}, {"attempt": 1.5}, {"type": "secret"}])
def test_other_fields_and_kinds_are_refused(change):
    document = msgspec.to_builtins(OPENED, builtin_types=(bytes,)) | change
    assert isinstance(outcome(msgspec.msgpack.encode(document)), InputError)


def test_no_type_of_message_has_a_field_that_could_hold_a_record():
    for kind in KINDS:
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        assert set(fields.values()) <= set(VALUES)
        assert kind.__struct_config__.frozen
        assert kind.__struct_config__.forbid_unknown_fields
    held = {bytes, memoryview}
    answers = {kind: {field.name for field in msgspec.structs.fields(kind) if field.type in held} for kind in SENT}
    assert answers == {Contribution: {"payload"}, Cosigned: {"body"}, StudyHeld: set(), Done: set(), Refused: set()}


@pytest.mark.parametrize("kind", [RoundOpened, RoundContinued, Contribution])
def test_every_message_of_a_round_names_the_attempt_that_it_belongs_to(kind):
    assert {"run", "plan_hash", "round_number", "attempt"} <= set(kind.__struct_fields__)


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_model_comes_back_from_the_wire(parameters):
    packed = bytes(pack_parameters(parameters))
    assert len(packed) == 4 * parameters.size
    np.testing.assert_array_equal(unpack_parameters(packed, parameters.size), parameters)


@given(hnp.arrays(np.uint32, st.integers(0, 20)))
def test_ring_elements_come_back_from_the_wire(values):
    packed = pack_values(values)
    assert packed == b"".join(int(value).to_bytes(4, "little") for value in values)
    np.testing.assert_array_equal(unpack_values(packed, values.size), values)


def test_a_vector_can_be_written_to_and_a_model_that_others_are_asked_with_cannot():
    unpack_values(bytes(8), 2)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        unpack_parameters(bytes(8), 2)[0] = 1


@pytest.mark.parametrize(("unpack", "what"), [(unpack_parameters, "model"), (unpack_values, "contribution")])
@pytest.mark.parametrize("size", [0, 7, 9, 12])
def test_another_length_is_refused(unpack, what, size):
    with pytest.raises(RoundError) as caught:
        unpack(bytes(size), 2)
    assert caught.value.message == f"{what}, must hold 2 parameters of 4 bytes, found {size} bytes; nothing added"
    assert caught.value.hint == "both sides must run the same plan"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_refused(value):
    with pytest.raises(RoundError) as caught:
        unpack_parameters(np.array([0.0, value], dtype="<f4").tobytes(), 2)
    assert caught.value.message == "model, must be finite, found a NaN or an infinity; nothing trained, nothing sent"
    assert caught.value.hint == "lower training.learning_rate"
