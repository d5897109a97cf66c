"""Any bytes are parsed or refused; what went in comes out."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.engine.direct.frames import CHUNK, Assembly, Body, PipeError, Spool, frames, no_answer

CALLS = st.binary(min_size=16, max_size=16)
LIMIT = 3 * CHUNK


def assembly(folder=None, wanted=lambda _: True, limit=LIMIT):
    return Assembly(limit, None if folder is None else Spool(folder, above=100), wanted)


def fed(into, parts):
    arrived = [into.add(part) for part in parts]
    return [(call, None if body is None else body.read()) for call, body in filter(None, arrived)]


@given(CALLS, st.binary(max_size=300))
def test_a_message_comes_out_as_it_went_in(call, message):
    assert fed(assembly(), frames(call, message)) == [(call, message)]


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_frames_are_full_but_for_the_last(size, tmp_path):
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    parts = list(frames(bytes(16), message))
    assert len(parts) == -(-size // CHUNK)
    assert fed(assembly(tmp_path), parts) == [(bytes(16), message)]


@settings(max_examples=300)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.builds(lambda c, f, d: c + bytes([f]) + d, CALLS, st.integers(0, 7), st.binary(max_size=9))
    )
)
def test_any_bytes_are_a_message_or_refused(parts):
    into = assembly()
    with suppress(PipeError):
        for part in parts:
            arrived = into.add(part)
            assert arrived is None or arrived[1] is None or arrived[1].size <= 40


@given(st.lists(st.tuples(CALLS, st.binary(max_size=50), st.booleans())))
def test_messages_given_up_half_way_do_not_spoil_others(messages):
    into, expected = assembly(), []
    for call, message, is_given_up in messages:
        if is_given_up:
            assert into.add(next(iter(frames(call, bytes(CHUNK + 1))))) is None
        else:
            assert fed(into, frames(call, message)) == [(call, message)]
            expected.append(message)


def test_a_message_may_be_as_large_as_the_limit_and_no_larger():
    assert fed(assembly(limit=5), frames(bytes(16), b"12345")) == [(bytes(16), b"12345")]
    with pytest.raises(PipeError, match="oversize"):
        fed(assembly(limit=5), frames(bytes(16), b"123456"))
    with pytest.raises(PipeError, match="oversize"):
        fed(assembly(limit=5, wanted=lambda _: False), frames(bytes(16), b"123456"))


def test_what_nobody_wants_any_more_is_dropped(tmp_path):
    wanted = [True]
    into = assembly(tmp_path, lambda _: wanted[0])
    parts = list(frames(bytes(16), bytes(2 * CHUNK)))
    assert into.add(parts[0]) is None
    wanted[0] = False
    assert into.add(parts[1]) is None
    assert into._body is None


def test_no_answer_is_told_from_an_empty_one():
    call = b"c" * 16
    assert assembly().add(no_answer(call)) == (call, None)
    assert fed(assembly(), frames(call, b"")) == [(call, b"")]


@pytest.mark.parametrize("take", [Body.view, Body.read])
def test_a_spooled_body_is_given_up_once_and_leaves_nothing(tmp_path, take):
    spool = tmp_path / "made when it is needed"
    body = Body(Spool(spool, above=10))
    for part in (b"12345678", b"90", b"ab"):
        body.add(memoryview(part))
    assert bytes(take(body)) == b"1234567890ab"
    assert body._file is None
    assert spool.stat().st_mode & 0o777 == 0o700
    assert not list(spool.iterdir())
