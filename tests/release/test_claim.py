"""What a claim says follows from the events, and from nothing else."""

from pathlib import Path

import msgspec
import pytest
from recorded import read_events

import hubbub
from hubbub.accounting.ledger import Ledger
from hubbub.eventlog import EventLog
from hubbub.events import BudgetCharged
from hubbub.governance import Federation
from hubbub.release import make_claim


@pytest.fixture
def told(make_study, settings, run, tmp_path):
    """Give what a claim is folded from."""
    study = hubbub.check(make_study(settings(success={"accuracy": 0.1, "loss": 100.0})))
    plan = hubbub.plan(study)
    result = run(study)
    ledger = Ledger(EventLog(tmp_path / "home" / "log.db"))
    accounts = ledger.accounts()
    ledger.log.close()
    return plan, study.settings, read_events(Path(result.out) / "events.jsonl"), accounts


def claim(told, events=None, settings=None):
    plan, approved, recorded, accounts = told
    return make_claim(plan, settings or approved, events or recorded, accounts=accounts, federation=Federation())


def test_every_charged_attempt_raises_what_was_spent(told):
    _, _, events, _ = told
    extra = BudgetCharged(run=claim(told).run, round_number=4, attempt=2)
    more = claim(told, [*events, extra])
    assert more.attempts_charged == claim(told).attempts_charged + 1
    assert claim(told).epsilon_spent < more.epsilon_spent <= more.epsilon_planned


def test_the_second_accountant_is_looser_and_both_are_stated(told):
    stated = claim(told)
    assert stated.epsilon_spent < stated.epsilon_spent_rdp
    assert stated.accountant.startswith("pld of dp-accounting ")


def test_the_claim_is_bound_to_study_code_plan_and_model(told):
    plan, approved, *_ = told
    hashes = claim(told).hashes
    assert hashes["plan"] == plan.hash
    assert hashes["study"] == approved.approved_hash()
    assert hashes["code"] == plan.code_hash
    assert len(hashes["model"]) == 64


@pytest.mark.parametrize(
    ("success", "met"),
    [
        ({"accuracy": 0.0, "loss": None}, True),
        ({"accuracy": 1.0, "loss": None}, False),
        ({"accuracy": None, "loss": 1e-6}, False),
        ({"accuracy": None, "loss": 1e6}, True),
        ({"accuracy": None, "loss": None}, None),
    ],
)
def test_success_is_judged_by_the_declared_criteria(told, success, met):
    _, approved, *_ = told
    changed = msgspec.structs.replace(approved, success=msgspec.structs.replace(approved.success, **success))
    assert claim(told, settings=changed).is_success is met


def test_a_criterion_that_was_not_measured_is_not_met(told):
    plan, approved, events, accounts = told
    bare = [
        msgspec.structs.replace(event, metrics={"loss": 0.1}) if hasattr(event, "metrics") else event
        for event in events
    ]
    assert make_claim(plan, approved, bare, accounts=accounts, federation=Federation()).is_success is False


def test_the_lifetime_counts_earlier_runs_on_the_data(make_study, run):
    first, second = (msgspec.json.decode(Path(run(make_study()).out, "claim.json").read_bytes()) for _ in range(2))
    assert first["epsilon_spent"] == second["epsilon_spent"]
    assert first["lifetime"]["epsilon_spent"] < second["lifetime"]["epsilon_spent"]
