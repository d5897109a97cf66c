"""Without the one check named for it, an attack on the log succeeds: each check is there for a reason.

`BITES` is the table check -> attacks; a check without an attack is in `BEHIND`, with the reason why taking it away
alone gives nothing away. test_log_guard.py asserts the words of every refusal.
"""

import importlib.util
import pathlib

import pytest

from hubbub.accounting.accounts import Accounts
from hubbub.participant import LogGuard
from hubbub.tlog import Policy

pytestmark = pytest.mark.slow


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


guarded = load(pathlib.Path(__file__).with_name("test_log_guard.py"))


def passes(*_args, **_kwargs):
    return None


def believe_two(_policy, names):
    return len(names) >= 2


def believe_entries(_guard, opening, _head, size):
    return opening.entries[size - opening.start :]


def believe_reservation(guard, session, _planned):
    return guard.view.reservations[session.run]


def believe_roster(guard, _session):
    return guard.view.federation.roster()


BITES = {
    (Policy, "is_quorum", believe_two): {"fork_two_groups"},
    (LogGuard, "_check_fresh", passes): {"frozen_head"},
    (LogGuard, "_check_own_cosignature", passes): {"behind_its_back"},
    (LogGuard, "_check_no_fork", passes): {"two_roots"},
    (LogGuard, "_check_continues", believe_entries): {"other_history"},
    (LogGuard, "_check_log", passes): {"other_head"},
    (LogGuard, "_check_reservation", believe_reservation): {"other_plan", "cheap_reservation"},
    (LogGuard, "_check_budget", passes): {"overspent", "granted_before_the_founding"},
    (Accounts, "_require", passes): {"paid_back"},
    (LogGuard, "_check_permission", passes): {"stopped_run"},
    (LogGuard, "_check_roster", believe_roster): {"sybil_org"},
    (LogGuard, "_check_organisations", passes): {"alone"},
    (LogGuard, "_check_keys_per_organisation", passes): {"sybils_of_one_organisation"},
    (LogGuard, "_check_charged", passes): {"uncharged_attempt"},
    (LogGuard, "_check_current", passes): {"rollback_and_old_head"},
    (LogGuard, "check_memory", passes): {"rollback_backup", "rollback_and_old_head"},
    (LogGuard, "_charge_first", passes): {"rollback_in_a_round"},
    (LogGuard, "_check_closing_record", passes): {"omitted_record"},
    (LogGuard, "_check_receipt", passes): {"left_out"},
    (LogGuard, "_check_mark", passes): {"closed_attempt"},
}

BEHIND = {"_check_quorum": "gives the head; `_check_fresh` counts the same witnesses"}
NAMES = [check for _, check, _ in BITES]


@pytest.fixture(params=BITES, ids=NAMES)
def removed(request, monkeypatch):
    """A check, taken away."""
    monkeypatch.setattr(*request.param)
    return request.param


def test_without_its_check_the_attack_succeeds(removed, tmp_path):
    assert all(guarded.played(name, tmp_path / name)[1] for name in BITES[removed])


@pytest.mark.slow
def test_without_a_check_no_other_attack_succeeds(removed, tmp_path):
    others = set(guarded.ATTACKS) - BITES[removed]
    assert {name for name in others if guarded.played(name, tmp_path / name)[1]} == set()


def test_without_a_check_honest_rounds_are_as_before(removed, tmp_path):
    world = guarded.World(tmp_path)
    world.play(1, 2, names=("node-1", "node-2"))
    world.restart()
    world.play(3, names=("node-1", "node-2"))
    world.close()
    assert world.refusals == {}


def test_each_attack_has_its_check_and_each_check_its_attack_or_a_reason():
    assert set().union(*BITES.values()) == set(guarded.ATTACKS)
    checks = {name for name in dir(LogGuard) if name.startswith("_check_")}
    assert checks == ({name for name in NAMES if name.startswith("_check_")} | set(BEHIND))
    assert not set(NAMES) & set(BEHIND)
