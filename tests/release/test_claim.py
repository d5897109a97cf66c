"""What a claim says follows from the events, and from nothing else."""

from pathlib import Path

import msgspec
import pytest
from recorded import read_events

import hubbub
from hubbub.accounting.accounts import Accounts
from hubbub.accounting.grants import filter_grant
from hubbub.accounting.ledger import Ledger
from hubbub.accounting.shown import at_least
from hubbub.eventlog import EventLog
from hubbub.events import BudgetCharged
from hubbub.governance import Federation
from hubbub.release import ReleaseClaim, make_claim


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


def granted(accounts, **changes):
    """The accounts, some grants of which were made in another way."""
    grants = {name: msgspec.structs.replace(grant, **changes.get(name, {})) for name, grant in accounts.grants.items()}
    return Accounts(grants, accounts.runs)


def test_the_sentence_holds_for_the_dataset_of_the_largest_delta_too(told):
    plan, approved, events, accounts = told
    other = granted(accounts, a={"delta": 1e-9}, b={"delta": 1e-7})
    lines = [other.statement(name) for name in "abc"]
    assert lines[0].epsilon_spent > lines[1].epsilon_spent > lines[2].epsilon_spent
    stated = make_claim(plan, approved, events, accounts=other, federation=Federation())
    assert (stated.lifetime.dataset, stated.lifetime.delta) == ("a", 1e-9)
    assert f"({at_least(lines[0].epsilon_spent)}, 1e-05) for everything ever run on it" in stated.sentence


def test_a_running_total_is_stated_only_where_whoever_stops_may_have_seen_it(make_study, settings, run, tmp_path):
    """What stopping at the best of many moments costs beyond it: `test_stopping.py` of the accounting room."""
    everything = settings(sampling={"examples": "everything", "probability": None}, privacy={"epsilon": 2.0})
    study = hubbub.check(make_study(everything))
    ledger = Ledger(EventLog(tmp_path / "home" / "log.db"))
    ledger.grant([filter_grant(name, "example", 5.0, 1e-5, kind="gaussian") for name in "abc"])
    ledger.log.close()
    stated = msgspec.json.decode(Path(run(study).out, "claim.json").read_bytes())
    assert stated["lifetime"]["epsilon_spent"] < 2.0
    assert "(5.0000, 1e-05) for everything ever run on it" in stated["sentence"]


def test_a_coordinator_that_chooses_which_attempts_fail_has_the_whole_plans_bound(make_study, settings, run):
    tables = settings(privacy={"noise": "distributed"}, cohort={"colluding": 1, "dropouts": 0.0})
    study = hubbub.check(make_study(tables, participants=lambda: [*"abcdefgh"]))
    stated = msgspec.json.decode(Path(run(study).out, "claim.json").read_bytes(), type=ReleaseClaim)
    assert stated.epsilon_spent < stated.epsilon_planned == stated.epsilon
    assert f"is ({at_least(stated.epsilon_planned)}, 1e-05)-differentially private" in stated.sentence


def test_others_see_each_rounds_sum_once_however_many_attempts_there_were(told):
    stated = claim(told)
    assert stated.epsilon == stated.epsilon_spent < stated.epsilon_planned
    assert f"is ({at_least(stated.epsilon_spent)}, 1e-05)-differentially private" in stated.sentence


def test_the_lifetime_counts_earlier_runs_on_the_data(make_study, run):
    first, second = (msgspec.json.decode(Path(run(make_study()).out, "claim.json").read_bytes()) for _ in range(2))
    assert first["epsilon_spent"] == second["epsilon_spent"]
    assert first["lifetime"]["epsilon_spent"] < second["lifetime"]["epsilon_spent"]
