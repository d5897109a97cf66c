"""Named arrays as one vector and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import CodeError
from hubbub.local.layout import Layout

SHAPES = st.dictionaries(
    st.text(min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5
)


@given(SHAPES, st.integers(0, 2**32))
def test_unflatten_undoes_flatten(shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    layout = Layout.of(arrays)
    vector = layout.flatten(arrays, "model()")
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    back = layout.unflatten(vector)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_order_is_the_layouts_whatever_the_order_of_what_is_given():
    layout = Layout.of({"a": np.zeros(1), "b": np.zeros(2)})
    np.testing.assert_array_equal(layout.flatten({"b": np.array([2, 3]), "a": np.array([1])}, "x"), [1, 2, 3])


def test_what_is_cut_out_is_a_copy():
    layout = Layout.of({"a": np.zeros(2)})
    vector = np.zeros(2, dtype=np.float32)
    layout.unflatten(vector)["a"][:] = 1
    assert not vector.any()


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(3)}, {"b": np.zeros(2)}, {"a": np.zeros(2), "b": np.zeros(1)}])
def test_other_names_or_shapes_are_refused(arrays):
    with pytest.raises(CodeError) as caught:
        Layout.of({"a": np.zeros(2)}).flatten(arrays, "train()")
    assert caught.value.message.startswith("train(), must keep the names and shapes of parameters(), found {")
    assert caught.value.hint == "return every array that came in, changed in value only"


def test_nothing_is_a_vector_of_length_zero():
    assert Layout.of({}).flatten({}, "x").shape == (0,)
