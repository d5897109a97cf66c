"""The ledger never under-counts, whoever writes to it and however often."""

import contextlib
import math
import sqlite3
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.accounting import gaussian
from hubbub.accounting.accounts import Accounts
from hubbub.accounting.epsilon import epsilon, rdp_epsilon
from hubbub.accounting.grants import composed, filter_grant, sandbox_grant, schedule_grant
from hubbub.accounting.ledger import Ledger, admit
from hubbub.errors import BudgetError, InputError, VerificationError
from hubbub.eventlog import EventLog
from hubbub.events import NOT_PRIVATE, BudgetReserved, BudgetSettled, Evaluated, encode_event, repeated

DELTA = 1e-5


def event(z=3.0, q=0.25):
    return {
        "@": "PoissonSampledDpEvent",
        "sampling_probability": q,
        "event": {"@": "GaussianDpEvent", "noise_multiplier": z},
    }


def reservation(run="r1", datasets=("heart",), attempts=10, dp_event=None, **others):
    fields = {"plan_hash": "p1", "unit": "example", "inflation": 1e-30} | others
    return BudgetReserved(run=run, datasets=datasets, attempts=attempts, dp_event=dp_event or event(), **fields)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(EventLog(tmp_path / "home" / "log.db"))
    yield ledger
    ledger.log.close()


def spent(ledger, dataset="heart"):
    return ledger.accounts().spent(dataset)


def test_a_sandbox_admits_two_runs_and_refuses_the_third(ledger):
    for run in ("r1", "r2"):
        ledger.reserve(reservation(run), sandbox_delta=DELTA)
        for round_number in range(1, 9):
            ledger.charge(run, round_number, 1)
        ledger.settle(run)
    words = "heart has epsilon .* left at delta 1e-05, this study needs .*; nothing trained, nothing spent"
    with pytest.raises(BudgetError, match=words) as refused:
        ledger.reserve(reservation("r3"), sandbox_delta=DELTA)
    assert refused.value.exit_code == 1
    assert "hubbub budget grant heart --epsilon" in refused.value.hint
    assert "r3" not in ledger.accounts().runs


@given(z=st.floats(0.5, 20), q=st.floats(0.01, 1.0), rounds=st.integers(3, 500), retries=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_a_sandbox_refuses_the_third_run_of_any_plan_with_fewer_retries_than_rounds(z, q, rounds, retries):
    dp_event = {"@": "GaussianDpEvent", "noise_multiplier": z} if q == 1 else event(z, q)
    plan = reservation(attempts=rounds + retries, dp_event=dp_event)
    grant = sandbox_grant("heart", plan, DELTA)
    assert composed(grant, [(plan, rounds), (plan, rounds + retries)]) <= grant.epsilon
    assert composed(grant, [(plan, rounds), (plan, rounds), (plan, rounds + retries)]) > grant.epsilon


@given(z=st.floats(0.5, 20), q=st.floats(0.001, 1.0), rounds=st.integers(3, 500))
@settings(max_examples=25, deadline=None)
def test_a_sandbox_finds_the_order_at_which_two_runs_cost_least(z, q, rounds):
    dp_event = {"@": "GaussianDpEvent", "noise_multiplier": z} if q == 1 else event(z, q)
    grant = sandbox_grant("heart", reservation(attempts=rounds, dp_event=dp_event), DELTA)
    least, _ = rdp_epsilon([repeated(dp_event, 2 * rounds)], DELTA)
    assert least <= grant.epsilon <= 1.05 * least + 1e-4


def test_a_dataset_without_a_bound_admits_runs_with_and_without_noise(ledger):
    ledger.grant([filter_grant("heart", "example", 1.0, DELTA, kind="unbounded")])
    ledger.reserve(reservation("r1", attempts=100_000))
    ledger.reserve(reservation("r2", dp_event=NOT_PRIVATE))
    with pytest.raises(BudgetError, match="has a budget for unit = 'example', this study protects unit = 'client'"):
        ledger.reserve(reservation("r3", unit="client"))
    (statement,) = ledger.statements()
    assert (statement.kind, statement.epsilon_spent, statement.epsilon_budget) == ("unbounded", None, None)


@pytest.mark.parametrize(("many", "typed"), [(3, "site-0 site-1 site-2"), (30, "'site-*'")])
def test_the_hint_of_a_refusal_grants_to_the_studys_own_datasets(ledger, many, typed):
    names = tuple(f"site-{at}" for at in range(many))
    ledger.grant([filter_grant(name, "example", 0.5, DELTA) for name in (*names, "other")])
    with pytest.raises(BudgetError) as refused:
        ledger.reserve(reservation(datasets=names, attempts=1000))
    assert f"hubbub budget grant {typed} --epsilon " in refused.value.hint


def test_the_hint_of_a_refusal_is_a_proposal_where_the_dataset_is_registered(ledger):
    dataset = "0123456789abcdef" * 2
    ledger.grant([filter_grant(dataset, "example", 0.5, DELTA)])
    with pytest.raises(BudgetError) as refused:
        ledger.reserve(reservation(datasets=(dataset,), attempts=1000))
    assert "hubbub propose budget 0123456789ab --key FILE --epsilon " in refused.value.hint


def test_events_of_others_change_no_budget(ledger):
    ledger.reserve(reservation(), sandbox_delta=DELTA)
    before = ledger.accounts().key("heart")
    ledger.log.append(lambda: [Evaluated(run="r1", round_number=1, metrics={"accuracy": 0.5})])
    assert ledger.accounts().key("heart") == before


def test_a_schedule_is_reserved_whole_and_unopened_attempts_return_when_the_run_settles(ledger):
    ledger.reserve(reservation(attempts=10), sandbox_delta=DELTA)
    order = ledger.accounts().grants["heart"].order
    whole = rdp_epsilon([{"@": "SelfComposedDpEvent", "count": 10, "event": event()}], DELTA, order)[0]
    assert spent(ledger) == pytest.approx(whole, rel=1e-9)
    ledger.charge("r1", 1, 1)
    assert spent(ledger) == pytest.approx(whole, rel=1e-9)
    assert ledger.settle("r1") == BudgetSettled(run="r1", charged=1)
    assert 0 < spent(ledger) < whole


def test_a_run_that_crashed_stays_counted_whole(tmp_path):
    path = tmp_path / "log.db"
    first = Ledger(EventLog(path))
    first.reserve(reservation(attempts=10), sandbox_delta=DELTA)
    before = spent(first)
    first.log.close()
    second = Ledger(EventLog(path))
    assert spent(second) == before
    second.log.close()


def test_an_attempt_is_charged_once_and_a_second_charge_is_refused(ledger):
    ledger.reserve(reservation(), sandbox_delta=DELTA)
    ledger.charge("r1", 1, 1)
    with pytest.raises(BudgetError, match="is charged once for round 1 attempt 1, found a second charge; nothing sent"):
        ledger.charge("r1", 1, 1)
    assert ledger.accounts().runs["r1"].charged == {(1, 1)}


def test_two_ledgers_on_one_file_charge_an_attempt_once(ledger):
    ledger.reserve(reservation(), sandbox_delta=DELTA)
    other = Ledger(EventLog(ledger.log.path))
    other.accounts()
    ledger.charge("r1", 1, 1)
    with pytest.raises(BudgetError, match="is charged once"):
        other.charge("r1", 1, 1)
    other.log.close()
    assert len(ledger.log.events()) == 3


def test_one_attempt_more_than_reserved_is_refused(ledger):
    ledger.reserve(reservation(attempts=2), sandbox_delta=DELTA)
    ledger.charge("r1", 1, 1)
    ledger.charge("r1", 1, 2)
    with pytest.raises(BudgetError, match="may open 2 attempts, found one more; nothing sent, nothing spent"):
        ledger.charge("r1", 2, 1)


@pytest.mark.parametrize("run", ["never-reserved", "settled"])
def test_a_charge_needs_an_open_reservation(ledger, run):
    ledger.reserve(reservation("settled"), sandbox_delta=DELTA)
    ledger.settle("settled")
    with pytest.raises(BudgetError, match="must hold a reservation, found none that is open"):
        ledger.charge(run, 1, 1)


def test_a_run_is_reserved_once(ledger):
    ledger.reserve(reservation(attempts=1), sandbox_delta=DELTA)
    with pytest.raises(BudgetError, match="is reserved once, found a second time"):
        ledger.reserve(reservation(attempts=1), sandbox_delta=DELTA)


def test_all_datasets_admit_a_run_or_none_is_reserved(ledger):
    ledger.grant([filter_grant("poor", "example", 0.01, DELTA)])
    with pytest.raises(BudgetError, match=r"poor has epsilon 0.01 of 0.01 left"):
        ledger.reserve(reservation(datasets=("rich", "poor")), sandbox_delta=DELTA)
    assert ledger.accounts().runs == {}
    assert "rich" not in ledger.accounts().grants


def test_a_dataset_without_a_grant_is_refused_outside_a_sandbox(ledger):
    with pytest.raises(BudgetError, match="heart, has no budget, nothing was granted; nothing trained, nothing spent"):
        ledger.reserve(reservation())


def test_a_budget_protects_one_unit(ledger):
    ledger.reserve(reservation(), sandbox_delta=DELTA)
    with pytest.raises(BudgetError, match="has a budget for unit = 'example', this study protects unit = 'client'"):
        ledger.reserve(reservation("r2", unit="client"), sandbox_delta=DELTA)


def test_a_run_without_noise_is_recorded_and_makes_the_lifetime_unbounded(ledger):
    ledger.reserve(reservation(dp_event={"@": "NonPrivateDpEvent"}), sandbox_delta=DELTA)
    ledger.reserve(reservation("r2"), sandbox_delta=DELTA)
    (line,) = ledger.statements()
    assert (line.runs, line.runs_without_noise, line.epsilon_spent) == (2, 1, None)


@pytest.mark.parametrize("epsilon", [1e-320, 1e-16, 1e-9])
def test_a_budget_that_nothing_fits_into_is_a_budget(ledger, epsilon):
    ledger.grant([filter_grant("heart", "example", epsilon, DELTA)])
    with pytest.raises(BudgetError, match="left at delta 1e-05, this study needs"):
        ledger.reserve(reservation(), sandbox_delta=DELTA)


def test_a_run_without_noise_is_refused_where_an_owner_set_a_budget(ledger):
    ledger.grant([filter_grant("heart", "example", 3.0, DELTA)])
    with pytest.raises(BudgetError, match="has a budget of epsilon 3, this study adds no noise"):
        ledger.reserve(reservation(dp_event={"@": "NonPrivateDpEvent"}), sandbox_delta=DELTA)


def test_a_larger_grant_admits_what_was_refused_and_keeps_its_order(ledger):
    ledger.reserve(reservation("r1"), sandbox_delta=DELTA)
    ledger.reserve(reservation("r2"), sandbox_delta=DELTA)
    before = ledger.accounts().grants["heart"]
    ledger.grant([filter_grant("heart", "example", 20.0, DELTA, order=before.order)])
    ledger.reserve(reservation("r3"), sandbox_delta=DELTA)
    assert ledger.accounts().grants["heart"].order == before.order


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": "client"}, "heart: unit, is fixed when a budget is made, found 'client' after 'example'"),
        ({"delta": 1e-6}, "heart: delta, is fixed when a budget is made"),
        ({"order": 3.0}, "heart: order, is fixed when a budget is made"),
        ({"epsilon": 0.001}, "must be granted at least the epsilon .* it has spent, found 0.001; nothing granted"),
    ],
)
def test_a_grant_keeps_what_its_guarantee_rests_on(ledger, change, words):
    ledger.reserve(reservation(), sandbox_delta=DELTA)
    order = ledger.accounts().grants["heart"].order
    fields = {"unit": "example", "epsilon": 20.0, "delta": DELTA, "order": order} | change
    grant = filter_grant("heart", fields["unit"], fields["epsilon"], fields["delta"], order=fields["order"])
    with pytest.raises(BudgetError, match=words):
        ledger.grant([grant])


def test_a_schedule_admits_its_listed_plans_only_each_as_often_as_listed(ledger):
    plans = [reservation(plan_hash="p1"), reservation(plan_hash="p1"), reservation(plan_hash="p2", attempts=3)]
    ledger.grant([schedule_grant("heart", plans, 8.0, DELTA)])
    ledger.reserve(reservation("r1", plan_hash="p1"))
    ledger.settle("r1")
    ledger.reserve(reservation("r2", plan_hash="p1"))
    with pytest.raises(BudgetError, match="admits its listed plans only, found plan p1 listed 2 times and run 2 times"):
        ledger.reserve(reservation("r3", plan_hash="p1"))
    with pytest.raises(BudgetError, match="found plan p9 listed 0 times"):
        ledger.reserve(reservation("r4", plan_hash="p9"))
    with pytest.raises(BudgetError, match="has a schedule that is fixed for ever, found a new filter"):
        ledger.grant([filter_grant("heart", "example", 9.0, DELTA)])


def test_a_schedule_refunds_nothing_when_a_run_stops_early(ledger):
    ledger.grant([schedule_grant("heart", [reservation()], 8.0, DELTA)])
    ledger.reserve(reservation())
    whole = spent(ledger)
    ledger.settle("r1")
    assert spent(ledger) == whole


def test_a_schedule_must_cover_its_plans():
    with pytest.raises(InputError, match=r"must cover the listed plans, which cost .*, found 0\.1; nothing granted"):
        schedule_grant("heart", [reservation()], 0.1, DELTA)


def test_a_schedule_lists_plans_with_noise_for_one_unit():
    with pytest.raises(InputError, match=r"must list plans with noise for one unit, found \['client', 'example'\]"):
        schedule_grant("heart", [reservation(), reservation(unit="client")], 8.0, DELTA)
    with pytest.raises(InputError, match="must list plans with noise for one unit"):
        schedule_grant("heart", [reservation(dp_event={"@": "NonPrivateDpEvent"})], 8.0, DELTA)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_a_grant_needs_a_positive_finite_epsilon(epsilon):
    with pytest.raises(InputError, match="epsilon, must be a positive number"):
        filter_grant("heart", "example", epsilon, DELTA)


@pytest.mark.parametrize("delta", [0.0, -1.0, 0.5, float("nan")])
def test_a_grant_needs_a_small_delta(delta):
    with pytest.raises(InputError, match="delta, must be above 0 and at most 1e-05"):
        filter_grant("heart", "example", 3.0, delta)


def test_the_refusal_says_how_many_rounds_would_fit(ledger):
    ledger.grant([filter_grant("heart", "example", 1.0, DELTA)])
    with pytest.raises(BudgetError) as refused:
        ledger.reserve(reservation(attempts=500))
    fitting = int(refused.value.hint.split()[0])
    grant = ledger.accounts().grants["heart"]
    assert composed(grant, [(reservation(), fitting)]) <= 1.0 < composed(grant, [(reservation(), fitting + 1)])


def test_the_refusal_names_open_runs_that_would_return_budget(ledger):
    ledger.grant([filter_grant("heart", "example", 3.0, DELTA)])
    for run in ("settled", "open", "used"):
        ledger.reserve(reservation(run, attempts=2))
    ledger.charge("settled", 1, 1)
    ledger.settle("settled")
    ledger.charge("used", 1, 1)
    ledger.charge("used", 2, 1)
    with pytest.raises(BudgetError) as refused:
        ledger.reserve(reservation("more", attempts=500))
    assert refused.value.hint.endswith("; or give up what is open and return the rest of it, open: hubbub stop RUN")
    ledger.settle("open")
    with pytest.raises(BudgetError) as refused:
        ledger.reserve(reservation("more", attempts=500))
    assert "give up" not in refused.value.hint


def test_equal_accounts_are_shown_alike_and_in_order_of_name(ledger):
    names = tuple(f"d{number}" for number in range(50))
    ledger.reserve(reservation(datasets=names), sandbox_delta=DELTA)
    assert len({line.epsilon_spent for line in ledger.statements()}) == 1
    assert [line.dataset for line in ledger.statements()] == sorted(names)


def test_a_damaged_ledger_is_one_clear_error(tmp_path):
    path = tmp_path / "log.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(InputError, match=r"must be a log's database that can be written, .*; nothing recorded"):
        Ledger(EventLog(path))


def test_a_ledger_with_a_foreign_entry_is_one_clear_error(ledger):
    database = sqlite3.connect(ledger.log.path)
    with database:
        database.execute("INSERT INTO entry VALUES (0, ?)", (b'{"event":"budget-charged","run":"x"}',))
    database.close()
    with pytest.raises(VerificationError, match="must hold"):
        ledger.accounts()


def test_the_ledger_is_readable_by_its_owner_only(ledger):
    assert ledger.log.path.stat().st_mode & 0o077 == 0


def test_history_holds_every_event_in_order(ledger):
    appended = ledger.reserve(reservation(), sandbox_delta=DELTA)
    ledger.charge("r1", 1, 1)
    settled = ledger.settle("r1")
    history = ledger.log.events()
    assert history[:2] == appended
    assert history[-1] == settled
    assert len(history) == 4


# --- Gaussian filters ---


def plain(z=4.0):
    return {"@": "GaussianDpEvent", "noise_multiplier": z}


def test_a_gaussian_filter_adds_up_squares_and_admits_what_renyi_would_not(ledger):
    total = 2.2
    ledger.grant([filter_grant("heart", "example", total, DELTA, kind="gaussian")])
    runs = [reservation(f"r{at}", attempts=3, dp_event=plain(z), inflation=0.0) for at, z in enumerate((4.0, 7.0, 9.0))]
    mu = gaussian.mu((run.dp_event["noise_multiplier"], 3) for run in runs)
    assert gaussian.epsilon(DELTA, mu) <= total < rdp_epsilon([repeated(run.dp_event, 3) for run in runs], DELTA)[0]
    for run in runs:
        ledger.reserve(run)
    assert spent(ledger) == pytest.approx(gaussian.epsilon(DELTA, mu), rel=1e-12)
    with pytest.raises(BudgetError, match=r"heart has epsilon 0\.\d\d of 2\.20 left at delta 1e-05, this study needs"):
        ledger.reserve(reservation("r4", attempts=30, dp_event=plain(4.0)))


@given(noises=st.lists(st.floats(1.0, 30.0), min_size=1, max_size=12), budget=st.floats(0.3, 6.0))
@settings(max_examples=60, deadline=None)
def test_whatever_is_admitted_one_after_the_other_stays_below_mu(noises, budget):
    grant = filter_grant("heart", "example", budget, DELTA, kind="gaussian")
    accounts = Accounts({"heart": grant})
    for at, z in enumerate(noises):
        run = reservation(f"r{at}", attempts=1, dp_event=plain(z), inflation=0.0)
        with contextlib.suppress(BudgetError):
            admit(accounts, run, home="")
            accounts.apply(run)
    squares = sum(1 / run.reserved.dp_event["noise_multiplier"] ** 2 for run in accounts.runs.values())
    assert gaussian.delta(budget, squares**0.5) <= DELTA * (1 + 1e-9)


@pytest.mark.parametrize("dp_event", [event(), {"@": "ZCDpEvent", "rho": 0.01, "xi": 0.0}])
def test_a_gaussian_filter_admits_nothing_else(ledger, dp_event):
    ledger.grant([filter_grant("heart", "example", 8.0, DELTA, kind="gaussian")])
    words = "heart, has a budget for Gaussian noise without sampling, found a study that samples; nothing trained"
    with pytest.raises(BudgetError, match=words):
        ledger.reserve(reservation(dp_event=dp_event))
    assert math.isinf(composed(ledger.accounts().grants["heart"], [(reservation(dp_event=dp_event), 1)]))


def test_attempts_never_opened_return_to_a_gaussian_filter(ledger):
    ledger.grant([filter_grant("heart", "example", 8.0, DELTA, kind="gaussian")])
    ledger.reserve(reservation(dp_event=plain()))
    whole = spent(ledger)
    ledger.charge("r1", 1, 1)
    ledger.settle("r1")
    assert 0 < spent(ledger) < whole


def test_a_filter_does_not_become_a_gaussian_one(ledger):
    ledger.grant([filter_grant("heart", "example", 8.0, DELTA)])
    with pytest.raises(
        BudgetError, match="heart: kind, is fixed when a budget is made, found 'gaussian' after 'filter'"
    ):
        ledger.grant([filter_grant("heart", "example", 9.0, DELTA, kind="gaussian")])


# --- had it been planned ---


def test_what_runs_would_have_cost_in_advance_is_told_and_admits_nothing(ledger):
    ledger.grant([filter_grant("heart", "example", 8.0, DELTA), filter_grant("lungs", "example", 8.0, DELTA)])
    assert ledger.accounts().planned("heart") == 0.0
    runs = [reservation(f"r{at}", dp_event=event(z=2.0 + at)) for at in range(3)]
    for run in runs:
        ledger.reserve(run)
    told = ledger.accounts().planned("heart")
    exact = epsilon([repeated(run.dp_event, run.attempts) for run in runs], DELTA).epsilon
    assert exact <= told <= 1.01 * exact
    assert told < spent(ledger)
    assert ledger.accounts().planned("heart") == told
    assert ledger.accounts().planned("nobody's") is None


def test_without_noise_no_plan_would_have_helped(ledger):
    ledger.reserve(reservation(dp_event=NOT_PRIVATE), sandbox_delta=DELTA)
    ledger.reserve(reservation("r2"), sandbox_delta=DELTA)
    assert ledger.accounts().planned("heart") is None


# --- logs that no ledger wrote ---


@pytest.mark.parametrize("change", [{"order": 2.0}, {"delta": 1e-6}, {"unit": "client"}, {"kind": "gaussian"}])
def test_a_log_that_changes_what_a_grant_rests_on_is_refused(change):
    grant, accounts = filter_grant("heart", "example", 3.0, DELTA), Accounts()
    accounts.apply(grant)
    accounts.apply(msgspec.structs.replace(grant, epsilon=4.0))
    with pytest.raises(
        VerificationError, match="budget of heart, keeps kind, unit, delta, order for ever, found another"
    ):
        accounts.apply(msgspec.structs.replace(grant, **change))


def test_a_log_that_changes_a_schedule_is_refused():
    grant, accounts = schedule_grant("heart", [reservation()], 9.0, DELTA), Accounts()
    accounts.apply(grant)
    accounts.apply(grant)
    with pytest.raises(VerificationError, match="budget of heart, keeps"):
        accounts.apply(msgspec.structs.replace(grant, epsilon=10.0))


def test_a_listed_plan_that_reserves_more_than_was_listed_is_refused(ledger):
    ledger.grant([schedule_grant("heart", [reservation()], granted := 3.0, DELTA)])
    with pytest.raises(BudgetError, match=f"heart has epsilon .* of {granted:.2f} left .* this study needs"):
        ledger.reserve(reservation(attempts=500))


def test_no_account_admits_noise_without_a_grant():
    with pytest.raises(BudgetError, match="heart, has no budget, nothing was granted; nothing trained, nothing spent"):
        admit(Accounts(), reservation(), home="")


RACE = """
import os, sys
from pathlib import Path
import msgspec
from hubbub.accounting.ledger import Ledger
from hubbub.errors import BudgetError
from hubbub.eventlog import EventLog
from hubbub.events import decode_event

path, template = Path(sys.argv[1]), decode_event(sys.argv[2])

def compete(number):
    try:
        Ledger(EventLog(path)).reserve(msgspec.structs.replace(template, run=f"run-{number}"))
    except BudgetError:
        return 1
    return 0

children = []
for number in range(16):
    child = os.fork()
    if child == 0:
        os._exit(compete(number))
    children.append(child)
print(sum(os.waitpid(child, 0)[1] == 0 for child in children))
"""


@pytest.mark.slow
def test_sixteen_processes_on_one_budget_never_overspend(ledger):
    plan = reservation()
    grant = filter_grant("heart", "example", 2.0, DELTA, order=8.0)
    room = next(n for n in range(100) if composed(grant, [(plan, plan.attempts)] * (n + 1)) > grant.epsilon)
    assert 1 <= room < 16
    ledger.grant([grant])
    arguments = [sys.executable, "-c", RACE, str(ledger.log.path), encode_event(plan).decode()]
    admitted = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert int(admitted) == room
    assert spent(ledger) <= grant.epsilon
