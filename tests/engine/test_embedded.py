"""A run, end to end, in one process."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from recorded import read_events
from safetensors.numpy import load_file

import hubbub
from hubbub.accounting.ledger import Ledger
from hubbub.errors import BudgetError, CodeError, InputError, RoundError
from hubbub.eventlog import EventLog
from hubbub.events import BudgetCharged, Evaluated, RoundClosed
from hubbub.randomness import SeededRandomness

NOISELESS = {"privacy": {"noise": "none", "epsilon": None}, "sampling": {"examples": "everything", "probability": None}}


def model_bytes(result):
    with Path(result.out, "model.safetensors").open("rb") as file:
        return file.read()


def claim_of(result):
    with Path(result.out, "claim.json").open() as file:
        return json.load(file)


def test_a_run_trains_charges_and_writes_its_directory(make_study, run, tmp_path):
    result = run(make_study())
    names = {path.name for path in (tmp_path / "run-0").iterdir()}
    assert names == {
        "run.json", "study.json", "plan.json", "events.jsonl", "metrics.jsonl", "snapshot-0",
        "snapshot-1", "model.safetensors", "claim.json", "report.html", "checkpoint",
    }  # fmt: skip
    assert result.rounds == 4
    assert result.participants == 3
    assert 0 < result.epsilon_spent <= result.epsilon_planned <= result.epsilon_budget
    assert set(result.metrics) == {"accuracy", "loss"}
    assert Ledger(EventLog(tmp_path / "home" / "log.db")).accounts().runs[result.run].is_settled


def test_training_learns_something(make_study, settings, run):
    result = run(make_study(settings(training={"rounds": 30}, privacy={"epsilon": 8.0}, success={"accuracy": 0.8})))
    assert result.metrics["accuracy"] > 0.8
    assert result.is_success is True


def test_the_planned_epsilon_stands_alike_in_plan_claim_and_result(make_study, run):
    study = hubbub.check(make_study())
    plan = hubbub.plan(study)
    result = run(study)
    assert claim_of(result)["epsilon_planned"] == plan.epsilon == result.epsilon_planned
    with Path(result.out, "plan.json").open() as file:
        assert json.load(file)["epsilon"] == plan.epsilon


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        (NOISELESS, {}),
        ({"privacy": {"noise_source": "float-simulation"}}, {}),
        ({}, {"randomness": 7}),
        ({"privacy": {"noise": "local"}}, {"randomness": 7}),
    ],
)
def test_the_same_seed_gives_the_same_model_bytes_without_secret_randomness(
    make_study, settings, run, changes, options
):
    results = [
        run(make_study(settings(**changes)), **{name: SeededRandomness(seed) for name, seed in options.items()})
        for _ in range(2)
    ]
    assert model_bytes(results[0]) == model_bytes(results[1])


@pytest.mark.parametrize("noise", ["server", "local"])
def test_two_runs_with_secret_randomness_differ(make_study, settings, run, noise):
    results = [run(make_study(settings(privacy={"noise": noise}))) for _ in range(2)]
    assert model_bytes(results[0]) != model_bytes(results[1])


@pytest.mark.parametrize(
    ("changes", "options", "source"),
    [
        ({}, {}, "os"),
        (NOISELESS, {}, "none"),
        ({"privacy": {"noise_source": "float-simulation"}}, {}, "float-simulation"),
        ({}, {"randomness": SeededRandomness(7)}, "injected"),
    ],
)
def test_only_the_operating_systems_randomness_is_certifiable(make_study, settings, run, changes, options, source):
    claim = claim_of(run(make_study(settings(**changes)), **options))
    assert claim["noise_source"] == source
    assert claim["certifiable"] is (source == "os")
    assert ("Not certifiable" in claim["sentence"]) is (source in {"float-simulation", "injected"})


def test_a_claim_starts_by_saying_sandbox_and_names_what_is_unprotected(make_study, run):
    claim = claim_of(run(make_study()))
    assert claim["federation"].startswith("sandbox: ")
    assert claim["attacked"] == "not attacked"
    assert claim["unprotected"] == [
        "metrics on the test records; that these are disjoint from training is what study.py says"
    ]
    assert "Against the coordinator: no protection; it must be trusted." in claim["sentence"]


def test_public_test_records_are_not_named_as_unprotected(make_study, run):
    def test_data():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(20, 4)).astype(np.float32)
        return hubbub.Examples(x, (x[:, 0] > 0).astype(np.int64), public=True)

    assert claim_of(run(make_study(test_data=test_data)))["unprotected"] == []


def test_without_noise_the_claim_says_that_nobody_is_protected(make_study, settings, run):
    result = run(make_study(settings(**NOISELESS)))
    assert result.epsilon_spent is None
    assert claim_of(result)["sentence"].startswith("No noise was added")
    later = claim_of(run(make_study()))
    assert "without any bound for everything ever run on it" in later["sentence"]


def test_the_third_run_is_refused_before_anything_is_trained(make_study, run, tmp_path):
    for _ in range(2):
        run(make_study())
    with pytest.raises(BudgetError, match="nothing trained, nothing spent"):
        run(make_study())
    assert not (tmp_path / "run-2").exists()


def test_every_round_is_charged_before_its_model_moves(make_study, run):
    result = run(make_study())
    events = read_events(Path(result.out) / "events.jsonl")
    kinds = [type(event) for event in events if isinstance(event, BudgetCharged | RoundClosed | Evaluated)]
    assert kinds == [BudgetCharged, RoundClosed, Evaluated] * 4


def test_an_existing_run_directory_is_never_written_to(make_study, run, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="must be a new folder that can be made, File exists; nothing trained"):
        run(make_study(), out=tmp_path / "taken")
    ledger = Ledger(EventLog(tmp_path / "home" / "log.db"))
    assert ledger.accounts().runs == {}
    ledger.log.close()


def test_a_record_with_a_nan_contributes_nothing_in_silence(make_study, settings, run):
    def data(name, *, poison):
        rng = np.random.default_rng(5)
        x = rng.normal(size=(30, 4)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64)
        if poison:
            x[3, 1] = np.nan
            return hubbub.Examples(x, y)
        keep = np.arange(30) != 3
        return hubbub.Examples(x[keep], y[keep], slots=30)

    tables = settings(**NOISELESS)
    results = [run(make_study(tables, data=lambda name, p=p: data(name, poison=p))) for p in (True, False)]
    weights = [load_file(f"{result.out}/model.safetensors")["weight"] for result in results]
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_participant_whose_slots_are_all_null_takes_part(make_study, settings, client_settings, run, unit):
    def data(name):
        rows = 0 if name == "b" else 20
        x = np.ones((rows, 4), np.float32)
        return hubbub.Examples(x, np.ones(rows, np.int64), slots=20)

    tables = settings() if unit == "example" else client_settings()
    assert run(make_study(tables, data=data)).participants == 3


def test_a_participant_without_slots_is_an_error(make_study, run):
    def data(name):
        return hubbub.Examples(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    with pytest.raises(CodeError, match=r"data\('a'\), must declare at least one slot"):
        run(make_study(data=data))


def test_a_test_set_without_a_record_that_can_be_measured_is_refused(make_study, run):
    def test_data():
        return hubbub.Examples(np.full((6, 4), np.nan, np.float32), np.zeros(6, np.int64))

    with pytest.raises(CodeError, match="must hold a record that can be measured, found none in 6 slots"):
        run(make_study(test_data=test_data))


@pytest.mark.parametrize("algorithm", ["fedavg", "fedavgm"])
@pytest.mark.parametrize(
    "cohort",
    [
        {},
        {"participants": "fixed", "size": 2},
        {"participants": "secret-poisson", "probability": 0.05},
    ],
)
def test_client_level_training_runs_with_every_sampler(make_study, client_settings, run, algorithm, cohort):
    training = {"algorithm": algorithm, "momentum": 0.5 if algorithm == "fedavgm" else 0.0}
    result = run(make_study(client_settings(cohort=cohort, training=training)))
    closed = [event for event in read_events(Path(result.out) / "events.jsonl") if isinstance(event, RoundClosed)]
    is_secret = cohort.get("participants") == "secret-poisson"
    assert [event.participants for event in closed] == [None if is_secret else cohort.get("size", 3)] * 3


def test_local_dp_sgd_runs(make_study, settings, run):
    tables = settings(
        privacy={"noise": "local"}, training={"algorithm": "local-dp-sgd", "local_steps": 2, "learning_rate": 0.1}
    )
    assert claim_of(run(make_study(tables)))["dp_event"]["count"] == 2


def test_commitments_are_salted_and_salts_stay_in_the_home(make_study, run, tmp_path):
    first, second = claim_of(run(make_study())), claim_of(run(make_study()))
    assert first["data_commitments"] == second["data_commitments"]
    other = claim_of(hubbub_run_elsewhere(make_study(), tmp_path))
    assert set(other["data_commitments"]) == set(first["data_commitments"])
    assert not set(other["data_commitments"].values()) & set(first["data_commitments"].values())
    salts = tmp_path / "home" / "salts.json"
    assert salts.stat().st_mode & 0o077 == 0
    kept = msgspec.json.decode(salts.read_bytes())
    for path in (tmp_path / "run-0").iterdir():
        content = path.read_bytes()
        assert not any(salt.encode() in content or bytes.fromhex(salt) in content for salt in kept.values())


def hubbub_run_elsewhere(study, tmp_path):
    return hubbub.run(study, home=tmp_path / "other-home", out=tmp_path / "other-run")


def test_damaged_salts_are_one_clear_error(make_study, run, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "salts.json").write_text("{not json")
    with pytest.raises(InputError, match=r"must hold the participants' salts, .*; nothing trained"):
        run(make_study())


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a b"], "abc", None, ["../x"], [1]])
def test_names_of_participants_are_checked(make_study, run, names):
    with pytest.raises(CodeError, match=r"participants\(\), must return distinct names"):
        run(make_study(participants=lambda: names))


def test_retries_used_up_end_in_a_refusal(make_study, run):
    from hubbub.coordinator import Coordinator, Progress

    study = hubbub.check(make_study())
    plan = hubbub.plan(study)
    coordinator = Coordinator(
        "r",
        settings=study.settings,
        plan=plan,
        start=Progress(np.zeros(10, np.float32)),
        randomness=SeededRandomness(1),
    )
    for _ in range(plan.retries + 1):
        coordinator.open(["a", "b", "c"])
        coordinator.advance()
        assert coordinator.close().reason == "round, needs 3 contributions, found 0; nothing released"
    with pytest.raises(RoundError, match="may be tried again 2 times in a run, found 3 failed attempts; nothing asked"):
        coordinator.open(["a", "b", "c"])


def test_an_ndarray_hook_trains_any_framework(client_settings, make_study, run):
    from sklearn.linear_model import SGDClassifier

    def train(parameters, examples, rng):
        classifier = SGDClassifier(loss="log_loss", random_state=int(rng.integers(2**31)), max_iter=5, tol=None)
        classifier.fit(examples.x, examples.y, coef_init=parameters["coef"], intercept_init=parameters["intercept"])
        return {"coef": classifier.coef_, "intercept": classifier.intercept_}

    def evaluate(parameters, examples):
        scores = examples.x @ parameters["coef"][0] + parameters["intercept"][0]
        return {"accuracy": float(((scores > 0) == examples.y).mean())}

    study = make_study(
        client_settings(privacy={"epsilon": 1000.0}, training={"rounds": 8}),
        model=None,
        parameters=lambda: {"coef": np.zeros((1, 4)), "intercept": np.zeros(1)},
        train=train,
        evaluate=evaluate,
    )
    result = run(study)
    assert result.metrics["accuracy"] > 0.8
    assert set(load_file(f"{result.out}/model.safetensors")) == {"coef", "intercept"}


def test_the_ndarray_hook_is_refused_for_records(settings, make_study, run):
    study = make_study(
        settings(),
        model=None,
        parameters=lambda: {"w": np.zeros(3)},
        train=lambda p, _e, _r: p,
        evaluate=lambda _p, _e: {},
    )
    with pytest.raises(CodeError, match=r"train\(\), protects whole participants only, found unit = 'example'"):
        run(study)


DISTRIBUTED = {"privacy": {"noise": "distributed"}, "cohort": {"colluding": 1}}


def test_distributed_noise_runs_the_protocol_and_protects_against_the_coordinator(make_study, settings, run):
    claim = claim_of(run(make_study(settings(**DISTRIBUTED))))
    assert claim["secagg"].startswith("run: ")
    assert claim["certifiable"] is True
    against = {line["adversary"]: line["epsilon"] for line in claim["claims"]}
    assert against["coordinator and up to 1 of 3 participants"] <= 4.0
    assert "no protection" not in claim["sentence"]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_eliding_the_masks_gives_the_same_bits(make_study, settings, client_settings, run, seed, unit):
    tables = settings(**DISTRIBUTED) if unit == "example" else client_settings(**DISTRIBUTED)
    results = [
        run(make_study(tables | {"speed": {"secagg": way}}), randomness=SeededRandomness(seed))
        for way in ("run", "elide")
    ]
    assert model_bytes(results[0]) == model_bytes(results[1])


def test_a_claim_of_an_elided_run_says_simulated(make_study, settings, run):
    claim = claim_of(run(make_study(settings(**DISTRIBUTED, speed={"secagg": "elide"}))))
    assert claim["secagg"].startswith("simulated")
    assert claim["certifiable"] is False
    assert "Simulated: secure aggregation was left out" in claim["sentence"]


def test_with_distributed_noise_every_attempt_is_charged_before_its_sum_is_released(make_study, settings, run):
    result = run(make_study(settings(**DISTRIBUTED)))
    kinds = [type(event) for event in read_events(Path(result.out) / "events.jsonl")]
    rounds = [kind for kind in kinds if kind in {BudgetCharged, RoundClosed}]
    assert rounds == [BudgetCharged, RoundClosed] * 4


def test_a_loss_that_is_not_finite_leaves_a_record_that_can_be_read(make_study, run):
    def loss(outputs, y):
        import torch

        return torch.where(y == 0, torch.inf, outputs.sum(dim=1))

    result = run(make_study(loss=loss))
    evaluated = [event for event in read_events(Path(result.out) / "events.jsonl") if isinstance(event, Evaluated)]
    assert all("loss" not in event.metrics and "accuracy" in event.metrics for event in evaluated)


def test_training_that_fails_on_one_participants_records_sends_zeros_and_tells_only_its_site(
    client_settings, make_study, run, caplog
):
    def train(parameters, examples, _rng):
        if len(examples.x) == 40:
            raise ValueError("secret 17")
        return parameters

    study = make_study(
        client_settings(),
        model=None,
        parameters=lambda: {"w": np.zeros(3)},
        train=train,
        evaluate=lambda _parameters, _examples: {"accuracy": 0.5},
    )
    result = run(study)
    assert result.rounds == 3
    assert "trained nothing in round 1" in caplog.text
    assert b"secret" not in b"".join(path.read_bytes() for path in Path(result.out).iterdir())


def test_noise_that_can_be_repeated_protects_nobody_and_leaves_no_bound_behind(make_study, settings, run):
    simulated = claim_of(run(make_study(settings(privacy={"noise_source": "float-simulation"}))))
    assert simulated["epsilon_spent"] is None
    assert all(line["epsilon"] is None for line in simulated["claims"])
    later = claim_of(run(make_study()))
    assert later["certifiable"] is True
    assert "without any bound for everything ever run on it" in later["sentence"]


def test_an_elided_run_claims_nothing_against_the_coordinator(make_study, settings, run):
    claim = claim_of(run(make_study(settings(**DISTRIBUTED, speed={"secagg": "elide"}))))
    assert [line["epsilon"] is None for line in claim["claims"]] == [True, False, False]
    assert "Against the coordinator and up to 1 of 3 participants: no protection" in claim["sentence"]


def test_a_distributed_plan_is_never_summed_in_the_clear_by_default(make_study, settings):
    from hubbub.coordinator import Coordinator, Progress
    from hubbub.engine.prepare import prepare
    from hubbub.participant import Participant

    prepared = prepare(make_study(settings(**DISTRIBUTED)))
    plan = hubbub.plan(prepared.study)
    common = {"settings": prepared.study.settings, "plan": plan, "randomness": SeededRandomness(1)}
    with pytest.raises(RoundError, match="must send masked vectors as its plan says, found a client with other"):
        Participant("a", "r", slots=prepared.slots["a"], charge=lambda *_: None, **common)
    with pytest.raises(RoundError, match="must add up by secure aggregation under this plan"):
        Coordinator("r", start=Progress(prepared.learner.initial()), **common)
