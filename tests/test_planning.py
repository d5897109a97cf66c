"""A plan follows from the study alone, and never promises less than it costs."""

import json
import math
import subprocess
import sys

import msgspec
import pytest
import torch

import hubbub
from hubbub.accounting.epsilon import epsilon
from hubbub.errors import PlanError, StudyError
from hubbub.planning import check_plan, make_plan, plan_from


def planned(make_study, tables, **functions):
    return hubbub.plan(make_study(tables, **functions))


def test_equal_studies_give_equal_plan_hashes_whatever_their_speed(make_study, settings):
    hashes = {planned(make_study, settings(speed=speed)).hash for speed in ({}, {"workers": 7}, {"secagg": "elide"})}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"study": {"seed": 4}},
        {"privacy": {"max_norm": 2.0}},
        {"privacy": {"epsilon": 4.1}},
        {"training": {"learning_rate": 1.1}},
        {"sampling": {"probability": 0.51}},
        {"success": {"accuracy": 0.5}},
    ],
)
def test_any_other_setting_changes_the_plan_hash(make_study, settings, change):
    assert planned(make_study, settings()).hash != planned(make_study, settings(**change)).hash


def test_code_changes_the_plan_hash(make_study, settings):
    def model():
        return torch.nn.Linear(4, 2, bias=True)

    assert planned(make_study, settings()).hash != planned(make_study, settings(), model=model).hash


def test_epsilon_covers_every_attempt_and_stays_within_the_budget(make_study, settings):
    plan = planned(make_study, settings(privacy={"retries": 3}))
    event = {"@": "SelfComposedDpEvent", "count": 7, "event": plan.dp_event}
    assert plan.attempts == 7
    assert plan.epsilon == pytest.approx(epsilon([event], plan.delta).epsilon, abs=1e-9)
    assert 3.99 < plan.epsilon <= 4.0


def test_epsilon_after_each_round_bounds_the_true_one_and_ends_exact(make_study, settings):
    plan = planned(make_study, settings(training={"rounds": 50}))
    for rounds in (1, 7, 23, 49, 50):
        event = {"@": "SelfComposedDpEvent", "count": rounds, "event": plan.dp_event}
        assert plan.epsilon_after(rounds) >= epsilon([event], plan.delta).epsilon - 1e-12
    assert plan.epsilon_after(50) == pytest.approx(epsilon([event], plan.delta).epsilon, abs=1e-9)
    assert plan.epsilon_after(0) == 0.0
    assert plan.epsilon_after(51) == plan.epsilon
    assert list(plan.epsilon_after_round) == sorted(plan.epsilon_after_round)


def test_retries_default_to_a_hundredth_of_the_rounds_and_at_least_two(make_study, settings):
    assert planned(make_study, settings()).retries == 2
    assert planned(make_study, settings(training={"rounds": 301})).retries == 4


def adversaries(plan):
    return {claim.adversary: claim for claim in plan.claims}


def test_with_server_noise_the_coordinator_is_trusted_and_nobody_else(make_study, settings):
    claims = adversaries(planned(make_study, settings()))
    assert claims["coordinator"].epsilon is None
    assert not claims["coordinator"].amplified
    assert claims["other participants"].epsilon <= 4.0
    assert claims["other participants"].amplified


def test_with_local_noise_nobody_is_trusted(make_study, settings):
    claims = adversaries(planned(make_study, settings(privacy={"noise": "local"})))
    assert all(claim.epsilon <= 4.0 and claim.amplified for claim in claims.values())


def test_without_noise_nothing_is_claimed(make_study, settings):
    plan = planned(make_study, settings(privacy={"noise": "none", "epsilon": None}))
    assert plan.epsilon is None
    assert plan.epsilon_after(3) is None
    assert plan.noise_multiplier == 0.0
    assert all(claim.epsilon is None and not claim.amplified for claim in plan.claims)


def test_a_fixed_cohort_amplifies_nothing(make_study, client_settings):
    fixed = planned(make_study, client_settings(cohort={"participants": "fixed", "size": 2}))
    everyone = planned(make_study, client_settings())
    assert fixed.noise_multiplier == everyone.noise_multiplier
    assert fixed.sampling_probability == 1.0
    assert not any(claim.amplified for claim in fixed.claims)


def test_a_secret_poisson_cohort_needs_less_noise(make_study, client_settings):
    cohort = {"participants": "secret-poisson", "probability": 0.3}
    secret = planned(make_study, client_settings(cohort=cohort))
    assert secret.noise_multiplier < planned(make_study, client_settings()).noise_multiplier
    assert secret.sampling_probability == 0.3
    assert secret.expected_batch == pytest.approx(0.9)


def test_local_dp_sgd_pays_for_every_local_step(make_study, settings):
    changes = {"privacy": {"noise": "local"}, "training": {"algorithm": "local-dp-sgd", "local_steps": 5}}
    plan = planned(make_study, settings(**changes))
    event = {"@": "SelfComposedDpEvent", "count": 5 * plan.attempts, "event": plan.dp_event["event"]}
    assert plan.dp_event["count"] == 5
    assert plan.epsilon == pytest.approx(epsilon([event], plan.delta).epsilon, abs=1e-9)


def test_an_update_of_four_bytes_per_parameter_is_all_that_is_sent(make_study, settings):
    plan = planned(make_study, settings())
    assert 4 * plan.mechanism.dimension <= plan.bytes_up_per_round <= 4 * plan.mechanism.dimension + 300


@pytest.mark.parametrize(
    ("tables", "words", "hint"),
    [
        (
            {"privacy": {"delta": 1e-5}, "data": None},
            r"privacy.delta, must be at most 1/\(10 N\) = 1.67e-06 for N = 60000 units, found 1e-05; nothing planned",
            "delta = 1e-06",
        ),
        (
            {"cohort": {"participants": "fixed", "size": 9}},
            "cohort.size, must be at most the roster of 3, found 9; nothing planned",
            'participants = "everyone"',
        ),
        (
            {"cohort": {"minimum": 4}},
            "cohort.minimum, must be at most the 3 participants of a round, found 4; nothing planned",
            "minimum = 3",
        ),
    ],
)
def test_impossible_sizes_are_refused(make_study, settings, tables, words, hint):
    large = "data" in tables
    study = hubbub.check(make_study(settings(**{key: value for key, value in tables.items() if value is not None})))
    if large:
        study = study.with_lock(msgspec.structs.replace(study.lock, slots={"a": 20_000, "b": 20_000, "c": 20_000}))
    with pytest.raises(PlanError, match=words) as refused:
        make_plan(study)
    assert refused.value.hint == hint


def test_a_study_without_a_current_lock_is_not_planned(make_study):
    with pytest.raises(StudyError, match=r"study.lock, must be made from the code as it is now, .*; nothing planned"):
        make_plan(make_study())


def test_the_minimum_defaults_to_nine_tenths_of_a_round(make_study, settings):
    names = [f"p{number}" for number in range(20)]
    assert planned(make_study, settings(), participants=lambda: names).minimum == math.ceil(0.9 * 20)


FORBID = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
sys.meta_path.insert(0, NoTorch())
from hubbub.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def written(tmp_path):
    from hubbub.cli import main

    assert main(["new", str(tmp_path / "s")]) == 0
    assert main(["check", str(tmp_path / "s")]) == 0
    return tmp_path / "s"


def without_torch(*arguments):
    command = [sys.executable, "-c", FORBID, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_planning_with_a_current_lock_needs_no_torch_and_no_study_code(written):
    done = without_torch("plan", written, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    wanted = {"epsilon", "delta", "noise_multiplier", "claims", "rounds", "retries", "sampling_probability", "unit"}
    assert wanted | {"relation", "bytes_up_per_round", "plan_hash"} <= set(plan)


def test_help_and_version_need_no_torch():
    assert "usage: hubbub" in without_torch("--help").stdout
    assert without_torch("--version").stdout.startswith("hubbub ")


def test_planning_after_a_change_of_code_says_that_it_checks_first(written):
    with (written / "study.py").open("a") as file:
        file.write("# changed\n")
    done = subprocess.run(
        [sys.executable, "-m", "hubbub", "plan", str(written)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "study.lock is not current: checking code and data first" in done.stderr


def test_distributed_noise_is_shared_so_that_honest_survivors_carry_all_of_it(make_study, settings):
    names = [f"p{number}" for number in range(10)]
    changes = {"privacy": {"noise": "distributed"}, "cohort": {"colluding": 2, "minimum": 8, "dropouts": 0.2}}
    shared = planned(make_study, settings(**changes), participants=lambda: names)
    central = planned(make_study, settings(), participants=lambda: names)
    assert shared.mechanism.shares == 6
    assert 6 * shared.mechanism.sigma**2 >= central.mechanism.sigma**2 > 6 * (shared.mechanism.sigma - 1) ** 2
    assert shared.noise_multiplier == pytest.approx(central.noise_multiplier, abs=2e-6)
    assert shared.epsilon <= 4.0
    assert (shared.secagg.u_min, shared.secagg.colluding, shared.secagg.threshold) == (8, 2, 7)


def test_a_client_is_not_amplified_against_a_coordinator_that_knows_the_cohort(make_study, client_settings):
    changes = {"privacy": {"noise": "distributed"}}
    assert not any(claim.amplified for claim in planned(make_study, client_settings(**changes)).claims)


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        ({"minimum": 2}, "cohort.minimum, must be 3 of 3 participants, 1 of them colluding"),
        ({"colluding": 2}, "cohort.colluding, must be 1 of 3 participants, so that two are honest"),
        ({"dropouts": 0.5}, "cohort.dropouts, must leave 3 of 3 participants"),
    ],
)
def test_thresholds_that_cannot_be_kept_are_refused_with_what_would_do(make_study, settings, cohort, words):
    with pytest.raises(PlanError, match=words) as refused:
        planned(make_study, settings(privacy={"noise": "distributed"}, cohort=cohort))
    assert refused.value.hint


CHANGES = {
    "study_hash": {"study_hash": "0" * 64},
    "secagg": {"secagg": None},
    "secagg.n": {"secagg": {"n": 9, "u_min": 9, "n_min": 9, "threshold": 6}},
    "secagg.dimension": {"secagg": {"dimension": 11}},
    "secagg.block": {"secagg": {"block": 3}},
    "secagg.colluding": {"secagg": {"colluding": 0, "threshold": 2}, "mechanism": {"shares": 3}},
    "minimum": {"minimum": 2},
    "mechanism.noise": {"mechanism": {"noise": "server", "shares": 1}},
    "mechanism.shares": {"mechanism": {"shares": 1000}},
    "mechanism.sigma": {"mechanism": {"sigma": 0}},
    "dp_event": {"dp_event": {"@": "GaussianDpEvent", "noise_multiplier": 9.0}},
    "noise_multiplier": {"noise_multiplier": 9.0},
}


@pytest.mark.parametrize("rule", CHANGES)
def test_a_participant_joins_under_no_plan_that_is_weaker_than_its_settings(make_study, settings, rule):
    study = make_study(settings(privacy={"noise": "distributed"}, cohort={"colluding": 1, "minimum": 3}))
    plan = hubbub.plan(study)
    check_plan(plan, study.settings)
    changes = {
        name: msgspec.structs.replace(getattr(plan, name), **value)
        if name in {"secagg", "mechanism"} and value
        else value
        for name, value in CHANGES[rule].items()
    }
    with pytest.raises(PlanError, match=rf"plan: {rule}, must follow from the approved settings, found another value"):
        check_plan(msgspec.structs.replace(plan, **changes), study.settings)


def test_with_distributed_noise_other_participants_are_bounded_as_far_as_they_may_collude(make_study, settings):
    tables = settings(privacy={"noise": "distributed"}, cohort={"colluding": 1, "minimum": 3})
    claims = {line.adversary: line for line in planned(make_study, tables).claims}
    assert claims["up to 1 of the other participants"].epsilon <= 4.0


def test_thresholds_of_a_sparse_graph_are_good_for_all_sessions_of_a_run_together(make_study, client_settings):
    names = [f"site-{number}" for number in range(200)]
    privacy = {"noise": "none", "epsilon": None, "sums": "masked", "differencing": "accepted", "retries": 2}

    def make(rounds):
        tables = client_settings(privacy=privacy, cohort={"colluding": 40}, training={"rounds": rounds})
        study = make_study(tables, participants=lambda: names)
        plan = hubbub.plan(study)
        check_plan(plan, study.settings)
        return plan, study.settings

    (plan, _), (long, long_settings) = make(1000), make(100_000)
    few, many = plan.secagg, long.secagg
    assert (few.neighbours, few.threshold, many.neighbours, many.threshold) == (77, 59, 78, 60)
    with pytest.raises(PlanError, match=r"at most 2\^-57 in a session, found 2\^-52.80 with 59 of 78 holders; nothing"):
        check_plan(msgspec.structs.replace(long, secagg=few), long_settings)
    few.check(1002)
    with pytest.raises(PlanError, match=r"at most 2\^-57 in a session, found 2\^-52.80 with 59 of 78 holders; nothing"):
        few.check(100_002)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"unit": "client", "algorithm": "fedavg", "weights": "examples"}, "'examples' is for unit = 'client' without"),
        ({"unit": "example", "algorithm": "fedavg"}, "'fedavg' protects unit = 'client'"),
    ],
)
def test_settings_that_no_study_file_may_have_have_no_plan_whoever_made_them(make_study, settings, tables, words):
    made = make_study(settings())
    study, plan = hubbub.check(made), hubbub.plan(made)
    replace = msgspec.structs.replace
    changed = replace(
        study.settings,
        privacy=replace(study.settings.privacy, unit=tables.pop("unit")),
        sampling=type(study.settings.sampling)(),
        training=replace(study.settings.training, **tables),
    )
    with pytest.raises(StudyError, match=words):
        plan_from(changed, study.lock)
    with pytest.raises(StudyError, match=words):
        check_plan(replace(plan, study_hash=changed.approved_hash()), changed)
