"""Whoever decides by what was seen when to stop: which running totals bound that, and which do not."""

import numpy as np
import pytest

from hubbub.accounting.epsilon import gdp_epsilon, rdp_epsilon
from hubbub.events import repeated

DELTA, PATHS = 1e-5, 1_000_000
MANY, FEW, LONG = tuple(range(1, 33)), (2, 3, 4), (60, 61, 62)


def closed_form(z, count):
    return gdp_epsilon([repeated({"@": "GaussianDpEvent", "noise_multiplier": z}, count)], DELTA)


def renyi(z, count):
    return rdp_epsilon([repeated({"@": "GaussianDpEvent", "noise_multiplier": z}, count)], DELTA, 8.0)[0]


def true_delta(total, z, counts):
    """Of who stops at the first of these counts at which the loss is above the total stated there; and its deviation.

    With the record each of Gaussian noise's outputs has mean 1/z: the loss after n of them is (their sum - n / 2z) / z.
    """
    randomness, sums = np.random.default_rng(0), np.zeros(PATHS)
    gains, before = np.zeros(PATHS), 0
    for count in counts:
        new, before, stated = count - before, count, total(z, count)
        sums += randomness.normal(new / z, np.sqrt(new), PATHS)
        losses = sums / z - count / (2 * z * z)
        stops = (gains == 0) & (losses > stated)
        gains[stops] = -np.expm1(stated - losses[stops])
    return gains.mean(), gains.std() / np.sqrt(PATHS)


@pytest.mark.parametrize("z", [1.0, 4.0, 60.0])
@pytest.mark.parametrize(("counts", "least", "most"), [(MANY, 5, 10), (FEW, 1.8, 2.5), (LONG, 1.0, 1.25)])
def test_a_total_in_closed_form_is_no_bound_for_whoever_stops(z, counts, least, most):
    delta, deviation = true_delta(closed_form, z, counts)
    assert least * DELTA - 3 * deviation < delta < most * DELTA + 3 * deviation


@pytest.mark.parametrize("z", [1.0, 4.0, 60.0])
@pytest.mark.parametrize("counts", [MANY, FEW, LONG])
def test_a_total_at_a_fixed_renyi_order_is_a_bound_whoever_stops(z, counts):
    delta, deviation = true_delta(renyi, z, counts)
    assert delta + 2 * deviation < DELTA


def test_for_one_count_the_closed_form_is_delta():
    delta, deviation = true_delta(closed_form, 4.0, (32,))
    assert abs(delta - DELTA) < 4 * deviation
