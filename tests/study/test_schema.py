"""Records against declared columns: arrays are refused aloud, single records become null in silence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubbub.errors import CodeError
from hubbub.study import Examples, Slots, conform
from hubbub.study.config import Column, Data

DATA = Data(x=Column(dtype="float32", shape=(3,)), y=Column(dtype="int64", classes=4))


def records(rows=5):
    return np.arange(3 * rows, dtype=np.float32).reshape(rows, 3), np.arange(rows, dtype=np.int64) % 4


def refusal(examples, data=DATA):
    with pytest.raises(CodeError) as caught:
        conform(examples, data, "data('a')")
    return caught.value.message, caught.value.hint


def test_records_as_declared_fill_their_slots():
    x, y = records()
    slots = conform(Examples(x, y), DATA, "data('a')")
    np.testing.assert_array_equal(slots.x, x)
    np.testing.assert_array_equal(slots.y, y)
    assert slots.is_real.all()
    assert len(slots) == 5


def test_slots_beyond_the_rows_are_null_and_zero():
    x, y = records()
    slots = conform(Examples(x, y, slots=8), DATA, "data('a')")
    assert len(slots) == 8
    assert slots.is_real.tolist() == [True] * 5 + [False] * 3
    assert not slots.x[5:].any()
    assert not slots.y[5:].any()


def test_no_rows_and_some_slots_are_all_null():
    x, y = records(0)
    slots = conform(Examples(x, y, slots=3), DATA, "data('a')")
    assert not slots.is_real.any()
    assert slots.x.shape == (3, 3)


@pytest.mark.parametrize(("rows", "slots"), [(0, None), (0, 0), (5, 4), (5, 0), (0, -1)])
def test_fewer_slots_than_rows_and_no_slots_are_refused(rows, slots):
    message, hint = refusal(Examples(*records(rows), slots=slots))
    found = rows if slots is None else slots
    assert message == (f"data('a'), must declare at least one slot and one for each row, found slots = {found!r}")
    assert hint == "hubbub.Examples(x, y, slots=N) with a public N; leave out who can never have data"


def test_what_is_no_examples_is_refused():
    assert refusal(records()) == (
        "data('a'), must return hubbub.Examples, found tuple",
        "return hubbub.Examples(x, y)",
    )


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float16, bool, object])
def test_another_dtype_is_refused(dtype):
    x, y = records()
    message, hint = refusal(Examples(x.astype(dtype), y))
    assert message == f"data('a'): x, must have dtype float32, found {np.dtype(dtype).name}"
    assert hint == "convert it in study.py: .astype('float32'), or declare what it is"


def test_another_dtype_of_labels_is_refused():
    x, y = records()
    assert refusal(Examples(x, y.astype(np.int32)))[0] == "data('a'): y, must have dtype int64, found int32"


@pytest.mark.parametrize("shape", [(15,), (5, 3, 1), (3, 5)])
def test_another_shape_is_refused(shape):
    x, y = records()
    message, hint = refusal(Examples(x.reshape(shape), y))
    assert message == f"data('a'): x, each record must have shape [3], found {list(shape[1:])}"
    assert hint == "reshape it in study.py, or declare its shape under [data]"


def test_a_single_number_is_refused():
    _, y = records()
    assert refusal(Examples(np.float32(3), y))[0] == "data('a'): x, each record must have shape [3], found no rows"


def test_columns_of_other_lengths_are_refused():
    x, y = records()
    assert refusal(Examples(x, y[:4])) == (
        "data('a'), x and y must have one row per record, found 5 and 4 rows",
        "slice both columns alike",
    )


def test_ragged_rows_are_refused():
    _, y = records()
    assert refusal(Examples([[1.0], [2.0, 3.0]], y)) == (
        "data('a'): x, must convert to one array, ValueError",
        "return a NumPy array",
    )


def test_another_byte_order_is_converted():
    x, y = records()
    slots = conform(Examples(x.astype(">f4"), y.astype(">i8")), DATA, "data('a')")
    assert slots.x.dtype == np.dtype("float32")
    assert slots.x.dtype.isnative
    np.testing.assert_array_equal(slots.x, x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_becomes_null_in_silence(value, capfd, recwarn):
    x, y = records()
    x[2, 1] = value
    slots = conform(Examples(x, y), DATA, "data('a')")
    assert slots.is_real.tolist() == [True, True, False, True, True]
    assert not slots.x[2].any()
    assert slots.y[2] == 0
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("label", [-1, 4, 2**62, -(2**63)])
def test_a_label_outside_its_classes_becomes_null_in_silence(label, capfd):
    x, y = records()
    y[3] = label
    slots = conform(Examples(x, y), DATA, "data('a')")
    assert slots.is_real.tolist() == [True, True, True, False, True]
    assert slots.y[3] == 0
    assert not slots.x[3].any()
    assert capfd.readouterr() == ("", "")


def test_classes_of_the_inputs_are_checked_too():
    data = Data(x=Column(dtype="int64", shape=(2,), classes=10), y=Column(dtype="float32"))
    x = np.array([[0, 9], [3, 10], [-1, 2]])
    slots = conform(Examples(x, np.zeros(3, dtype=np.float32)), data, "data('a')")
    assert slots.is_real.tolist() == [True, False, False]


def test_the_users_arrays_are_left_alone():
    x, y = records()
    x[0, 0] = np.nan
    before = x.copy()
    slots = conform(Examples(x, y), DATA, "data('a')")
    slots.x[:] = 7
    np.testing.assert_array_equal(x, before)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(width=32)),
    st.integers(0, 3),
    st.data(),
)
def test_one_bad_record_changes_no_other_slot(x, extra, data):
    rows = len(x)
    y = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(-1, 4)))
    victim = data.draw(st.integers(0, rows - 1))
    before = conform(Examples(x, y, slots=rows + extra), DATA, "data('a')")
    bad_x, bad_y = x.copy(), y.copy()
    if data.draw(st.booleans()):
        bad_x[victim, data.draw(st.integers(0, 2))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    else:
        bad_y[victim] = data.draw(st.sampled_from([-1, 4, 10**9]))
    after = conform(Examples(bad_x, bad_y, slots=rows + extra), DATA, "data('a')")
    others = np.arange(rows + extra) != victim
    for name in ("x", "y", "is_real"):
        np.testing.assert_array_equal(getattr(before, name)[others], getattr(after, name)[others])
        assert not getattr(after, name)[victim].any()
    assert np.isfinite(after.x).all()
    assert ((after.y >= 0) & (after.y < 4)).all()
    assert len(after) == len(before)


def test_slots_know_which_of_them_are_real_and_how_far_y_reaches():
    slots = Slots(np.zeros((4, 2)), np.array([3, 0, -1, 5]), np.array([True, False, True, True]))
    assert slots.real.tolist() == [0, 2, 3]
    assert slots.y_range == (-1, 5)
