import json
import logging
import math
import pathlib
import subprocess
import sys
import time
import warnings

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import pld, rdp
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.accounting import codec, gaussian
from hubbub.accounting import epsilon as room
from hubbub.accounting.epsilon import SEARCH, epsilon, epsilon_after_each, epsilon_schedule, rdp_epsilon
from hubbub.errors import InputError

DELTA = 1e-5
NULL = dp_accounting.NeighboringRelation.REPLACE_SPECIAL


def gauss(z):
    return {"@": "GaussianDpEvent", "noise_multiplier": z}


def poisson(q, z):
    return {"@": "PoissonSampledDpEvent", "sampling_probability": q, "event": gauss(z)}


def times(count, event):
    return {"@": "SelfComposedDpEvent", "count": count, "event": event}


def together(*events):
    return {"@": "ComposedDpEvent", "events": list(events)}


def fixed_size(size, sample, event):
    return {
        "@": "SampledWithoutReplacementDpEvent",
        "source_dataset_size": size,
        "sample_size": sample,
        "event": event,
    }


def zcdp(rho, xi=0.0):
    return {"@": "ZCDpEvent", "rho": rho, "xi": xi}


NOTHING, BARE = {"@": "NoOpDpEvent"}, {"@": "NonPrivateDpEvent"}

# sampling probability, noise multiplier, rounds; PLD at 1e-4, at 1e-3, RDP, k = q T participations without
# amplification
TABLE = [
    (0.01, 1.0, 1000, 1.8282, 1.8289, 2.1014, 17.86),
    (0.1, 0.8, 200, 15.5114, 15.5115, 17.246, 38.73),
    (0.004, 0.7, 5000, 3.7059, 3.7078, 4.349, 46.9),
    (0.001, 0.6, 10000, 2.4562, 2.4592, 3.322, 35.6),
    (0.5, 2.0, 50, 9.4736, 9.4736, 10.288, 13.21),
    (1.0, 4.0, 100, 13.2067, 13.2067, 14.132, 13.21),
]


@pytest.mark.parametrize(("q", "z", "rounds", "fine", "coarse", "renyi", "unamplified"), TABLE)
def test_the_table_of_the_design(q, z, rounds, fine, coarse, renyi, unamplified):
    event = times(rounds, poisson(q, z))
    assert epsilon([event], DELTA).epsilon == pytest.approx(fine, abs=6e-5)
    assert epsilon([event], DELTA, interval=SEARCH).epsilon == pytest.approx(coarse, abs=6e-5)
    assert rdp_epsilon([event], DELTA)[0] == pytest.approx(renyi, abs=6e-4)
    assert epsilon([times(int(q * rounds), gauss(z))], DELTA).epsilon == pytest.approx(unamplified, rel=1.1e-3)


def test_breast_cancer():
    def cost(q, rounds):
        return epsilon([times(rounds, poisson(q, 2.91545))], DELTA).epsilon

    assert cost(0.25, 60) == pytest.approx(3.0, abs=1e-5)
    assert rdp_epsilon([times(60, poisson(0.25, 2.91545))], DELTA)[0] == pytest.approx(3.2858, abs=6e-5)
    assert cost(1.0, 60) == pytest.approx(14.267, abs=6e-4)
    assert cost(0.25, 66) == pytest.approx(3.1570, abs=6e-5)
    assert epsilon([times(60, poisson(0.25, 2.95676))], DELTA).epsilon == pytest.approx(2.948, abs=6e-4)
    assert cost(0.1, 60) == pytest.approx(1.10399, abs=6e-5)
    assert cost(0.5, 60) == pytest.approx(6.46656, abs=6e-5)
    assert cost(0.09129, 60) <= 1 < cost(0.09131, 60)
    assert cost(0.17259, 60) <= 2 < cost(0.17261, 60)


def test_breast_cancer_under_replace_one_is_the_librarys_number():
    accountant = pld.PLDAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(codec.decode(times(60, poisson(0.25, 2.91545))))
    assert accountant.get_epsilon(DELTA) == pytest.approx(6.0441, abs=6e-5)


def test_clients():
    event = poisson(0.1, 0.935934)
    assert epsilon([times(100, event)], DELTA).epsilon == pytest.approx(8.0, abs=2e-4)
    assert epsilon([times(110, event)], DELTA).epsilon == pytest.approx(8.3729, abs=2e-4)
    assert rdp_epsilon([times(100, event)], DELTA)[0] == pytest.approx(8.985, abs=6e-4)


@pytest.mark.parametrize(("cap", "expected"), [(125, 4.48), (140, 1.972), (160, 1.8290)])
def test_a_truncated_sample_is_dearer_in_the_library_and_not_whitelisted_here(cap, expected):
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=10_000, sampling_probability=0.01, truncated_batch_size=cap, noise_multiplier=1.0
    )
    accountant = pld.PLDAccountant(neighboring_relation=NULL, value_discretization_interval=SEARCH)
    assert accountant.compose(event, 1000).get_epsilon(DELTA) == pytest.approx(expected, rel=1.5e-3)
    with pytest.raises(InputError, match="must be one of"):
        epsilon([event], DELTA)


def test_the_accountant_is_the_tightest_that_covers_all_events():
    assert epsilon([], DELTA) == room.Spent(0.0, DELTA, "gdp")
    assert epsilon([NOTHING, times(0, BARE), poisson(0.0, 1.0)], DELTA).epsilon == 0
    assert epsilon([BARE], DELTA) == room.Spent(math.inf, DELTA, "gdp")
    assert epsilon([gauss(0.0)], DELTA).epsilon == math.inf
    assert epsilon([gauss(1e-9)], DELTA).epsilon == math.inf
    assert epsilon([gauss(2.0)], DELTA).accountant == "gdp"
    assert epsilon([poisson(0.1, 2.0), gauss(4.0)], DELTA, interval=SEARCH).accountant == "pld"
    assert epsilon([zcdp(0.1), gauss(4.0)], DELTA).accountant == "rdp"
    assert epsilon([dp_accounting.GaussianDpEvent(noise_multiplier=2.0)], DELTA) == epsilon([gauss(2.0)], DELTA)


def test_zcdp_is_composed_by_renyi_at_every_order():
    by_zcdp = epsilon([times(3, zcdp(0.02, 0.01))], DELTA).epsilon
    accountant = rdp.RdpAccountant(orders=list(room.ORDERS), neighboring_relation=NULL)
    accountant.compose(dp_accounting.ZCDpEvent(rho=0.06, xi=0.03))
    assert by_zcdp == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-12)
    assert epsilon([zcdp(0.02)], DELTA).epsilon >= epsilon([gauss(5.0)], DELTA).epsilon  # rho = 1/(2 z^2)


def test_sampling_without_a_theorem_is_counted_as_no_sampling():
    plain = epsilon([gauss(2.0)], DELTA)
    assert epsilon([fixed_size(100, 10, gauss(2.0))], DELTA) == plain
    assert epsilon([poisson(1.0, 2.0)], DELTA) == plain
    assert epsilon([poisson(1 - 1e-12, 2.0)], DELTA) == plain
    nested = {"@": "PoissonSampledDpEvent", "sampling_probability": 0.5, "event": poisson(0.1, 2.0)}
    assert epsilon([nested], DELTA, interval=SEARCH) == epsilon([poisson(0.1, 2.0)], DELTA, interval=SEARCH)
    bare = {"@": "PoissonSampledDpEvent", "sampling_probability": 0.5, "event": BARE}
    assert epsilon([bare], DELTA).epsilon == math.inf


def test_gaussians_that_share_one_sample_are_one_gaussian_of_less_noise():
    inner = together(times(3, gauss(4.0)), NOTHING, gauss(4.0))
    shared = {"@": "PoissonSampledDpEvent", "sampling_probability": 0.1, "event": inner}
    one = epsilon([poisson(0.1, 2.0)], DELTA, interval=SEARCH).epsilon
    assert one <= epsilon([shared], DELTA, interval=SEARCH).epsilon <= one * (1 + 1e-9)
    empty = {"@": "PoissonSampledDpEvent", "sampling_probability": 0.1, "event": NOTHING}
    assert epsilon([empty], DELTA).epsilon == 0


def exact_delta_of_one_sampled_gaussian(q, z, eps):
    """Both directions in closed form, with 40 digits: the larger of the two hockey-stick divergences."""
    with mpmath.workdps(40):
        q, z, grown = mpmath.mpf(q), mpmath.mpf(z), mpmath.e ** mpmath.mpf(eps)
        inner = mpmath.log(1 + (grown - 1) / q)  # amplification of the closed form
        a = inner * z - 1 / (2 * z)
        removed = q * (mpmath.ncdf(-a) - mpmath.e**inner * mpmath.ncdf(-a - 1 / z))
        if 1 / grown <= 1 - q:
            return removed
        edge = z**2 * mpmath.log((1 / grown - 1 + q) / q) + mpmath.mpf(1) / 2
        added = mpmath.ncdf(edge / z) - grown * ((1 - q) * mpmath.ncdf(edge / z) + q * mpmath.ncdf((edge - 1) / z))
        return max(removed, added)


@pytest.mark.parametrize(("q", "z"), [(0.25, 1.984313), (0.01, 0.8), (0.5, 4.0), (0.9, 1.0), (0.001, 1.0)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_one_sampled_gaussian_is_covered_in_both_directions(q, z, delta):
    eps = epsilon([poisson(q, z)], delta).epsilon
    assert exact_delta_of_one_sampled_gaussian(q, z, eps) <= delta
    if eps > 1e-3:
        assert exact_delta_of_one_sampled_gaussian(q, z, eps - 2e-4) > delta


def nearly_plain(z):
    """A sampled Gaussian that is a plain one in all but name, so that the closed form is a reference."""
    return poisson(1 - 2e-9, z)


@pytest.mark.parametrize(("z", "count"), [(3.0, 3), (10.0, 100), (100.0, 10_000), (300.0, 100_000)])
@pytest.mark.parametrize("delta", [1e-5, 1e-7, 1e-9, 1e-11, 1e-13])
def test_epsilon_is_never_below_the_closed_form_however_small_delta_is(z, count, delta):
    truth = gaussian.epsilon(delta, gaussian.mu([(z, count)]))
    spent = epsilon([times(count, nearly_plain(z))], delta)
    assert truth - 1e-6 <= spent.epsilon <= truth * 1.2 + 1e-2
    assert spent.accountant == ("pld" if (count + 10) * 1e-15 <= delta / 10 else "rdp")


def test_without_the_margin_the_library_would_say_too_little():
    loss = privacy_loss_distribution.from_gaussian_mechanism(standard_deviation=100.0, neighboring_relation=NULL)
    too_little = loss.self_compose(10_000).get_epsilon_for_delta(1e-11)
    assert too_little < gaussian.epsilon(1e-11, 1.0) - 1e-4


@pytest.mark.parametrize(("q", "z", "doublings", "interval"), [(0.1, 1.0, 7, 1e-2), (0.999, 60.0, 11, 2e-3)])
def test_the_margin_exceeds_what_fourier_transforms_lose(q, z, doublings, interval):
    loss = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=z, sampling_prob=q, value_discretization_interval=interval, neighboring_relation=NULL
    )
    one = loss._pmf_remove.to_dense_pmf()
    probabilities, start = np.array(one._probs), one._lower_loss
    for _ in range(doublings):  # sums of positive terms only: every digit is right
        probabilities, start = np.convolve(probabilities, probabilities), 2 * start
        keep = np.flatnonzero(probabilities > 1e-30)
        probabilities, start = probabilities[keep[0] : keep[-1] + 1], start + keep[0]
    losses = (start + np.arange(probabilities.size)) * interval
    composed = loss.self_compose(2**doublings)._pmf_remove
    for eps in np.linspace(0, losses[-1], 40):
        exact = probabilities @ np.maximum(0, -np.expm1(np.minimum(0, eps - losses)))
        margin = room._roundoff(room._terms([times(2**doublings, poisson(q, z))]))
        assert composed.get_delta_for_epsilon(float(eps)) >= exact - margin / 4


def test_the_margin_of_renyi_exceeds_its_roundoff():
    for q, z in ((1e-8, 1e6), (1e-5, 30.0), (1e-8, 1.0)):
        with mpmath.workdps(60):
            p, s = mpmath.mpf(q), mpmath.mpf(z)
            terms = (
                mpmath.binomial(8, i) * p**i * (1 - p) ** (8 - i) * mpmath.e ** ((i * i - i) / (2 * s * s))
                for i in range(9)
            )
            exact = mpmath.log(mpmath.fsum(terms)) / 7
            converted = exact + mpmath.log(1 - mpmath.mpf(1) / 8) - mpmath.log(DELTA * 8) / 7
        seen = rdp_epsilon([poisson(q, z)], DELTA, 8)[0]
        assert seen == 0 or seen >= converted - 1e-15
    accountant = rdp.RdpAccountant(orders=[2.0], neighboring_relation=NULL)
    accountant.compose(codec.decode(poisson(1e-8, 1e6)))
    assert accountant.rdp[0] <= 0  # what the margin is for: the library loses all of 10^-28
    assert rdp_epsilon([times(10**9, poisson(1e-8, 1e6))], 1e-9, 2.0)[0] > 0


schedules = st.lists(
    st.tuples(st.sampled_from([0.01, 0.1, 0.3, 1.0]), st.sampled_from([1.0, 2.0, 5.0]), st.integers(1, 30)),
    min_size=1,
    max_size=4,
)


@given(schedules, st.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None)
def test_order_nesting_and_repetition_do_not_change_the_result(schedule, random):
    flat = [times(n, poisson(q, z)) for q, z, n in schedule]
    parts = [poisson(q, z) for q, z, n in schedule for _ in range(n)]
    random.shuffle(parts)
    cut = random.randrange(len(parts) + 1)
    nested = [together(*parts[:cut]), NOTHING, times(1, together(together(*parts[cut:])))]
    assert epsilon(nested, DELTA, interval=room.SKETCH).epsilon == pytest.approx(
        epsilon(flat, DELTA, interval=room.SKETCH).epsilon, rel=1e-12
    )
    assert rdp_epsilon(nested, DELTA, 8.0)[0] == pytest.approx(rdp_epsilon(flat, DELTA, 8.0)[0], rel=1e-12)


@given(st.floats(0.005, 0.5), st.floats(1.0, 6.0), st.integers(1, 100), st.floats(1.01, 2.0))
@settings(max_examples=8, deadline=None)
def test_more_rounds_or_sampling_cost_more_and_more_noise_less(q, z, rounds, factor):
    def cost(q, z, rounds):
        return epsilon([times(rounds, poisson(q, z))], DELTA, interval=room.SKETCH).epsilon

    middle = cost(q, z, rounds)
    assert cost(q, z * factor, rounds) <= middle + 1e-9
    assert cost(q, z, math.ceil(rounds * factor)) >= middle - 1e-9
    assert cost(min(1.0, q * factor), z, rounds) >= middle - 1e-9
    assert middle <= epsilon([times(rounds, gauss(z))], DELTA).epsilon + 0.1


@given(schedules)
@settings(max_examples=4, deadline=None)
def test_renyi_is_never_below_the_loss_distribution(schedule):
    events = [times(n, poisson(q, z)) for q, z, n in schedule]
    assert rdp_epsilon(events, DELTA)[0] >= epsilon(events, DELTA, interval=SEARCH).epsilon - 2e-3


@given(st.floats(1.0, 20.0), st.integers(1, 50))
@settings(max_examples=8, deadline=None)
def test_the_closed_form_is_the_limit_of_the_loss_distribution(z, count):
    closed = epsilon([times(count, gauss(z))], DELTA).epsilon
    by_grid = epsilon([times(count, nearly_plain(z))], DELTA, interval=SEARCH)
    assert by_grid.accountant == "pld"
    assert closed - 1e-6 <= by_grid.epsilon <= closed + 2e-3


extremes = st.tuples(
    st.one_of(st.sampled_from([0.0, 1.0, 1e-300, 1e-13, 1 - 1e-16, 0.999999]), st.floats(0, 1)),
    st.one_of(st.sampled_from([0.0, 1e-300, 1e-7, 0.05, 1e4, 1e8, 1e300]), st.floats(0.3, 100)),
    st.sampled_from([0, 1, 2, 1000, 10**5, 10**9]),
)


@given(st.lists(extremes, max_size=2), st.floats(-12, -0.1))
@settings(max_examples=20, deadline=None)
def test_any_whitelisted_event_has_an_epsilon(parameters, exponent):
    events = [times(n, times(n, poisson(q, z))) for q, z, n in parameters] or [NOTHING]
    spent = epsilon(events, 10**exponent, interval=room.SKETCH)
    assert spent.epsilon >= 0
    assert rdp_epsilon(events, 10**exponent)[0] >= 0


def test_an_epsilon_beyond_the_grid_uses_a_coarser_one_and_then_renyi():
    coarse = epsilon([times(100, poisson(0.1, 0.380786))], DELTA)
    assert (coarse.accountant, coarse.interval) == ("pld", 1e-3)
    assert coarse.epsilon == pytest.approx(60, abs=1e-2)
    assert epsilon([times(100, poisson(0.1, 0.01))], DELTA).accountant == "rdp"
    assert epsilon([times(10**9, poisson(1e-6, 1.0))], DELTA).accountant == "rdp"


def test_the_schedule_is_epsilon_at_each_count():
    event = poisson(0.1, 2.0)
    expected = [epsilon([times(n, event)], DELTA, interval=SEARCH).epsilon for n in (0, 1, 7, 50)]
    assert epsilon_schedule(event, [0, 1, 7, 50], DELTA, interval=SEARCH) == expected
    plain = epsilon_schedule(together(gauss(2.0), zcdp(0.0)), [0, 4], DELTA)
    assert plain == pytest.approx([0.0, epsilon([gauss(1.0)], DELTA).epsilon], rel=1e-12)
    assert epsilon_schedule(BARE, [0, 1], DELTA) == [0.0, math.inf]


@given(st.integers(1, 100), st.integers(1, 25))
@settings(max_examples=20, deadline=None)
def test_epsilon_after_each_round_is_a_rising_upper_bound_exact_at_the_end(rounds, points):
    bounds = epsilon_after_each(gauss(3.0), rounds, DELTA, points)
    truth = epsilon_schedule(gauss(3.0), range(1, rounds + 1), DELTA)
    assert len(bounds) == rounds
    assert bounds == sorted(bounds)
    assert all(bound >= exact for bound, exact in zip(bounds, truth, strict=True))
    assert bounds[-1] == truth[-1] == epsilon([times(rounds, gauss(3.0))], DELTA).epsilon
    assert len(set(bounds)) <= points


def test_epsilon_after_each_sampled_round_is_a_rising_upper_bound_too():
    event = poisson(0.25, 3.0)
    bounds = epsilon_after_each(event, 40, DELTA, 6)
    truth = epsilon_schedule(event, [1, 2, 5, 20, 39, 40], DELTA)
    assert bounds == sorted(bounds)
    assert all(bounds[n - 1] >= exact for n, exact in zip((1, 2, 5, 20, 39), truth, strict=False))
    assert bounds[-1] == truth[-1] == epsilon([times(40, event)], DELTA).epsilon
    assert bounds[1] == pytest.approx(truth[1], rel=1e-3)  # one of the six that are computed


def test_no_rounds_cost_nothing():
    assert epsilon_after_each(gauss(1.0), 0, DELTA) == []


def test_an_order_may_be_fixed_for_a_filter():
    events = [times(60, poisson(0.25, 2.91545))]
    best, order = rdp_epsilon(events, DELTA)
    assert rdp_epsilon(events, DELTA, order) == (best, order)
    assert rdp_epsilon(events, DELTA, 3.0)[0] > best
    assert rdp_epsilon([BARE, *events], DELTA, 3.0)[0] == math.inf
    assert rdp_epsilon([], DELTA, 3.0) == (0.0, 3.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_out_of_range_is_refused(delta):
    for call in (epsilon, rdp_epsilon):
        with pytest.raises(InputError, match="delta, must be above 0 and below 1, found") as refusal:
            call([gauss(1.0)], delta)
        assert refusal.value.hint == "use 1e-5 or less"
    with pytest.raises(InputError, match="delta, must be"):
        epsilon_schedule(gauss(1.0), [1], delta)


@pytest.mark.parametrize("order", [1.0, 0.5, math.nan])
def test_an_order_out_of_range_is_refused(order):
    with pytest.raises(InputError, match="Renyi order, must be above 1, found"):
        rdp_epsilon([gauss(1.0)], DELTA, order)


def test_events_of_strangers_are_checked_before_they_are_counted():
    with pytest.raises(InputError, match="must be one of"):
        epsilon([{"@": "LaplaceDpEvent", "noise_multiplier": 1.0}], DELTA)


def test_the_librarys_log_stays_silent_inside_and_is_left_alone_outside(caplog):
    filters = list(logging.getLogger("absl").filters)
    shown = list(warnings.filters)
    rdp_epsilon([times(59, poisson(0.25, 2.9))], DELTA)
    assert not caplog.records
    assert logging.getLogger("absl").filters == filters
    assert warnings.filters == shown
    with room._quiet():
        logging.getLogger("absl").warning("somebody else's")
        warnings.warn("the library's", stacklevel=1)
    assert [record.message for record in caplog.records] == ["somebody else's"]
    rdp.RdpAccountant(orders=[1.1], neighboring_relation=NULL).compose(codec.decode(poisson(0.25, 2.9)))
    assert "failed to converge" in caplog.text


def test_nothing_reaches_the_terminal():
    lines = [
        "from hubbub.accounting.epsilon import rdp_epsilon",
        f"rdp_epsilon([{json.dumps(poisson(0.25, 2.9))}], 1e-5)",
    ]
    done = subprocess.run([sys.executable, "-c", "; ".join(lines)], check=True, timeout=60, capture_output=True)
    assert done.stdout == done.stderr == b""


def test_asking_again_is_free():
    events = [times(777, poisson(0.02, 1.3))]
    first = epsilon(events, DELTA)
    start = time.perf_counter()
    assert all(epsilon(events, DELTA) == first for _ in range(100))
    assert time.perf_counter() - start < 0.5


def test_the_orders_are_the_librarys_written_out():
    assert list(room.ORDERS) == pytest.approx(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    assert pathlib.Path(dp_accounting.__file__).parent.name == "dp_accounting"  # the folder that `_quiet` looks for
