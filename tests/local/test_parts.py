"""Norms and weighted sums of parts: upper bounds where terms cancel, equal to gradients that are formed."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hubbub.local import parts as parts_module
from hubbub.local.bookkeeping import SPREAD, bounds
from hubbub.local.parts import Formed, Lookups, Outer, make_parts
from hubbub.mechanism.clip import clip_factors


def exact_square(gradients, inputs):
    """The squared norm of a sum of outer products, in fractions."""
    total = Fraction(0)
    for out in range(gradients.shape[1]):
        for place in range(inputs.shape[1]):
            pairs = zip(gradients[:, out].tolist(), inputs[:, place].tolist(), strict=True)
            total += sum((Fraction(one) * Fraction(other) for one, other in pairs), Fraction(0)) ** 2
    return total


def cancelling(seed, positions, by):
    """Inputs and gradients whose terms cancel all but a part of size `by`."""
    rng = np.random.default_rng(seed)
    inputs = np.repeat(rng.normal(size=(1, 1, 4)), positions, axis=1).astype(np.float32)
    gradients = rng.normal(size=(1, positions, 3)).astype(np.float32)
    gradients[:, 1::2] = -gradients[:, : 2 * (positions // 2) : 2]
    inputs += (by * rng.normal(size=inputs.shape)).astype(np.float32)
    return inputs, gradients


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 1.0]), st.floats(1e-6, 1e3))
def test_clipping_at_the_bound_keeps_norm_and_spread_however_terms_cancel(seed, positions, by, max_norm):
    inputs, gradients = cancelling(seed, positions, by)
    part = Outer(inputs, gradients)
    factor = float(clip_factors(bounds([part]), max_norm, 12)[0])
    square = exact_square(gradients[0], inputs[0])
    assert square <= Fraction(float(part.squares()[0]))
    room = 1 - 2 * SPREAD * (positions + 2) * 2.0**-53  # for the rounding of the sum over a microbatch of this one row
    assert Fraction(factor) ** 2 * square <= (Fraction(max_norm) * Fraction(room)) ** 2
    lengths = np.linalg.norm(inputs[0].astype(float), axis=1) * np.linalg.norm(gradients[0].astype(float), axis=1)
    assert factor * lengths.sum() <= SPREAD * max_norm * (1 + 1e-9)
    if factor < 1 and by == 1.0:
        assert float(square) ** 0.5 * factor >= max_norm * (1 - 1e-5)  # no tighter than it must be


def test_one_position_has_the_norm_itself():
    inputs, gradients = cancelling(0, 1, 1.0)
    exact = float(exact_square(gradients[0], inputs[0])) ** 0.5
    assert bounds([Outer(inputs, gradients)])[0] == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("short", [0, 100])
def test_short_and_long_sequences_give_the_same_gradient(monkeypatch, short):
    monkeypatch.setattr(parts_module, "SHORT", short)
    rng = torch.Generator().manual_seed(0)
    inputs, gradients = torch.randn(8, 5, 12, generator=rng), torch.randn(8, 5, 9, generator=rng)
    made = make_parts(nn.Linear(12, 9), {"weight", "bias"}, inputs, gradients)
    assert isinstance(made["weight"], Outer if short else Formed)
    factors, out = np.linspace(0, 1, 8), np.empty(108)
    made["weight"].write(factors, out)
    expected = np.einsum("n,nto,nti->oi", factors, gradients.numpy(), inputs.numpy(), dtype=np.float64)
    np.testing.assert_allclose(out, expected.ravel(), atol=1e-5)
    squares = np.einsum("nto,nti->noi", gradients.numpy(), inputs.numpy(), dtype=np.float64) ** 2
    np.testing.assert_allclose(made["weight"].squares(), squares.sum(axis=(1, 2)), rtol=1e-5)


def test_a_large_layer_is_not_formed_for_each_record(monkeypatch):
    monkeypatch.setattr(parts_module, "SHORT", 0)
    monkeypatch.setattr(parts_module, "LARGE", 100)
    made = make_parts(nn.Linear(12, 9), {"weight"}, torch.randn(8, 5, 12), torch.randn(8, 5, 9))
    assert isinstance(made["weight"], Outer)
    assert "bias" not in made


def test_wide_rows_are_summed_and_measured_in_pieces(monkeypatch):
    monkeypatch.setattr(parts_module, "COLUMNS", 7)
    rows = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    part, factors, out = Formed(rows), np.arange(4.0), np.empty(30)
    part.write(factors, out)
    np.testing.assert_allclose(out, factors @ rows.astype(float), rtol=1e-12)
    np.testing.assert_allclose(part.squares(), (rows.astype(float) ** 2).sum(axis=1), rtol=1e-12)


def test_an_entry_looked_up_twice_by_a_record_has_one_gradient():
    entries = torch.tensor([[2, 2, 0], [2, 1, 1]])
    gradients = torch.arange(12.0).reshape(2, 3, 2)
    part, out = Lookups(entries, gradients, ignored=0, size=3), np.empty(6)
    expected = np.zeros((2, 3, 2))
    for row in range(2):
        for place in range(3):
            expected[row, entries[row, place]] += gradients[row, place].numpy()
    expected[:, 0] = 0.0  # the entry that is not trained
    part.write(np.array([0.5, 2.0]), out)
    np.testing.assert_allclose(out.reshape(3, 2), 0.5 * expected[0] + 2 * expected[1])
    np.testing.assert_allclose(part.squares(), (expected**2).sum(axis=(1, 2)))
    part.drop(np.array([False, True]))
    part.write(np.array([0.5, 2.0]), out)
    np.testing.assert_allclose(out.reshape(3, 2), 0.5 * expected[0])
