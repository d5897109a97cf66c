"""What the log of a federation may say about budgets, and what a ledger answers besides yes and no."""

import msgspec
import pytest

from hubbub.accounting.accounts import Accounts, check_granted, is_owners, owners_grant
from hubbub.accounting.grants import composed, filter_grant
from hubbub.accounting.ledger import Ledger
from hubbub.errors import BudgetError, VerificationError
from hubbub.eventlog import EventLog
from hubbub.events import NOT_PRIVATE, BudgetCharged, BudgetReserved, BudgetSettled
from hubbub.governance import Federation
from hubbub.governance.state import Budget

replace = msgspec.structs.replace
RUN = BudgetReserved(
    run="r1", plan_hash="p", unit="example", datasets=("heart",), attempts=4, inflation=0.0,
    dp_event={"@": "GaussianDpEvent", "noise_multiplier": 3.0},
)  # fmt: skip


def founded(**budgets):
    return Federation(id="0" * 64, name="heart", budgets=budgets)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(EventLog(tmp_path / "log.db"))
    yield ledger
    ledger.log.close()


# --- grants of a federation ---


@pytest.mark.parametrize("kind", ["filter", "gaussian"])
def test_what_an_owner_registered_is_the_grant(kind):
    federation = founded(heart=Budget("example", 8.0, 1e-5, kind))
    grant = owners_grant(federation, "heart", None)
    assert (grant.kind, grant.epsilon, grant.granted_by) == (kind, 8.0, "owner")
    check_granted(grant, Accounts(), federation)


def test_a_raised_budget_keeps_the_order_that_was_fixed_first():
    first = owners_grant(founded(heart=Budget("example", 2.0, 1e-5)), "heart", None)
    raised = founded(heart=Budget("example", 20.0, 1e-5))
    assert owners_grant(raised, "heart", first).order == first.order != owners_grant(raised, "heart", None).order
    accounts = Accounts({"heart": first})
    check_granted(owners_grant(raised, "heart", first), accounts, raised)
    with pytest.raises(VerificationError, match="must be what its owner registered"):
        check_granted(owners_grant(raised, "heart", None), accounts, raised)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 9.0}, {"delta": 1e-6}, {"unit": "client"}, {"order": 2.0}, {"kind": "gaussian"},
        {"granted_by": "sandbox"}, {"dataset": "lungs"}, {"kind": "schedule", "plan_hashes": ("p",)},
    ],
)  # fmt: skip
def test_any_other_grant_is_an_invention(change):
    federation = founded(heart=Budget("example", 8.0, 1e-5))
    invented = replace(owners_grant(federation, "heart", None), **change)
    with pytest.raises(
        VerificationError, match=r"budget of \w+, must be what its owner registered, found a \w+ of eps"
    ):
        check_granted(invented, Accounts(), federation)


def test_in_a_sandbox_budgets_grant_themselves():
    check_granted(filter_grant("heart", "example", 99.0, 1e-5), Accounts(), Federation())


def test_a_grant_from_before_the_founding_may_allow_less_than_its_owner_and_never_more():
    federation = founded(heart=Budget("example", 8.0, 1e-5))
    grant = owners_grant(federation, "heart", None)
    assert is_owners(replace(grant, epsilon=2.0, order=3.0), federation)
    for change in ({"epsilon": 8.1}, {"kind": "unbounded"}, {"unit": "client"}, {"delta": 1e-6}, {"dataset": "lungs"}):
        assert not is_owners(replace(grant, **change), federation)
    assert is_owners(grant, Federation())


# --- logs that no ledger wrote ---


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([RUN, RUN], "is reserved once"),
        ([replace(RUN, inflation=-9.0)], "reserves one attempt or more at no negative cost"),
        ([replace(RUN, attempts=0)], "reserves one attempt or more at no negative cost"),
        ([replace(RUN, attempts=-1)], "reserves one attempt or more at no negative cost"),
        ([replace(RUN, dp_event={})], "reserves one attempt or more at no negative cost"),
        (
            [RUN, *(BudgetCharged(run="r1", round_number=1, attempt=at) for at in range(1, 6))],
            "is charged within its reservation",
        ),
        ([BudgetCharged(run="r1", round_number=1, attempt=1)], "is open while it is charged and settled"),
        ([BudgetSettled(run="r1", charged=0)], "is open while it is charged and settled"),
        ([RUN, *[BudgetCharged(run="r1", round_number=1, attempt=1)] * 2], "is charged once for an attempt"),
        ([RUN, BudgetSettled(run="r1", charged=1)], "settles what was charged"),
        (
            [RUN, BudgetSettled(run="r1", charged=0), BudgetCharged(run="r1", round_number=1, attempt=1)],
            "is open while it is charged and settled",
        ),
    ],
)
def test_an_order_of_events_that_no_ledger_writes_is_refused(events, words):
    *before, last = events
    accounts = Accounts()
    for event in before:
        accounts.apply(event)
    with pytest.raises(VerificationError, match=f"run r1, {words}, found otherwise in the log; nothing spent"):
        accounts.apply(last)


def test_runs_are_numbered_as_they_were_reserved():
    accounts = Accounts()
    for name in ("b", "a"):
        accounts.apply(replace(RUN, run=name))
    assert [accounts.number(name) for name in ("b", "a")] == [1, 2]


# --- how often a plan still fits ---


def test_a_forecast_counts_the_runs_that_are_then_admitted(ledger):
    ledger.grant([filter_grant("heart", "example", 6.0, 1e-5)])
    ledger.reserve(RUN)
    (line,) = ledger.forecast(replace(RUN, run=""))
    grant = ledger.accounts().grants["heart"]
    assert line.left == pytest.approx(6.0 - composed(grant, [(RUN, 4)]))
    assert line.cost == pytest.approx(composed(grant, [(RUN, 4)] * 2) - composed(grant, [(RUN, 4)]))
    assert line.runs >= 1
    for at in range(line.runs):
        ledger.reserve(replace(RUN, run=f"next-{at}"))
    with pytest.raises(BudgetError):
        ledger.reserve(replace(RUN, run="one too many"))
    assert ledger.forecast(RUN)[0].runs == 0


def test_a_forecast_stops_counting_where_it_is_told(ledger):
    ledger.grant([filter_grant("heart", "example", 100.0, 1e-5, kind="gaussian")])
    assert ledger.forecast(RUN, most=3)[0].runs == 3


@pytest.mark.parametrize("dp_event", [RUN.dp_event, NOT_PRIVATE])
def test_where_no_filter_guards_there_is_no_forecast(ledger, dp_event):
    (line,) = ledger.forecast(replace(RUN, dp_event=dp_event))
    assert (line.dataset, line.cost, line.left, line.runs) == ("heart", None, None, None)


def test_a_run_that_was_never_reserved_cannot_be_settled(ledger):
    with pytest.raises(BudgetError, match="run r1, must hold a reservation, found none that is open; nothing sent"):
        ledger.settle("r1")
