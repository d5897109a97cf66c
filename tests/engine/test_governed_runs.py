"""A federation of three clinics, a board and a lab: no run and no release without everybody who must say yes."""

import dataclasses
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import hubbub
from hubbub.engine.heads import Heads
from hubbub.engine.home import cosignatures, open_log, open_log_key, salts
from hubbub.engine.prepare import prepare
from hubbub.errors import BudgetError, RefusedError, VerificationError, WaitingError
from hubbub.events import BudgetGranted, RequestRefused, RoundClosed, encode_event
from hubbub.governance import Federation, decide, new_keys, propose, read, terms_of, witness_policy
from hubbub.governance.acts import (
    EnrolKey,
    EraseDataset,
    FoundFederation,
    PassReview,
    ProposeStudy,
    RaiseBudget,
    RegisterDataset,
    ReleaseModel,
    RevokeKey,
    StopRun,
)
from hubbub.governance.roles import packaged
from hubbub.participant import commit
from hubbub.planning import make_plan
from hubbub.release.model_signing import read_key, sign_folder
from hubbub.tlog import Policy, Store, sign_checkpoint, tiles
from hubbub.tlog.keys import COSIGNATURE, Signer
from hubbub.tlog.policy import Party
from hubbub.tlog.witness import Witness, ask

SITES = ("a", "b", "c")
DAY = 86_400


class World:
    """Everybody's keys, and the log they share."""

    def __init__(self, home, make_study, settings):
        self.home, self.make_study, self.settings = home, make_study, settings
        people = {f"owner-{site}": (f"clinic-{site}", "data-owner") for site in SITES}
        people |= {site: (f"clinic-{site}", "node") for site in SITES}
        people |= {"officer": ("board", "privacy-officer"), "scientist": ("lab", "data-scientist")}
        people |= {"operator": ("it", "operator")}
        self.keys = {name: new_keys(name, organisation=org, role=role) for name, (org, role) in people.items()}
        self.owners = [f"owner-{site}" for site in SITES]

    def act(self, who, act):
        """Propose; returns the case."""
        log, now = open_log(self.home), int(time.time())
        try:
            federation = log.fold(Federation).id
            expires = now + 30 * DAY - log.store.size  # or the same act, twice in a second, would be one proposal
            envelope = propose(act, self.keys[who].identity, at=now, expires=expires, federation=federation)
            log.append(lambda: [log.fold(Federation).event(envelope, now)])
            return read(envelope).id
        finally:
            log.close()

    def approve(self, case, *people, verdict="approve"):
        log, now = open_log(self.home), int(time.time())
        try:
            for who in people:
                envelope = decide(case, self.keys[who].identity, at=now, expires=now + 30 * DAY, verdict=verdict)
                log.append(lambda envelope=envelope: [log.fold(Federation).event(envelope, now)])
        finally:
            log.close()

    def found(self):
        cards = tuple(keys.card for keys in self.keys.values())
        case = self.act("operator", FoundFederation(name="heart", cards=cards, roles=packaged()[1]))
        self.approve(case, *(name for name in self.keys if name != "operator"))

    def register(self, epsilon=30.0):
        import datetime as dt

        for number, site in enumerate(SITES):
            act = RegisterDataset(
                dataset=f"{number:032x}", participant=site, organisation=f"clinic-{site}", purposes=("research",),
                retention=dt.date(2040, 12, 31), epsilon=epsilon, delta=1e-5, unit="example", unit_column="patient",
            )  # fmt: skip
            self.approve(self.act(f"owner-{site}", act), "officer")

    def study(self, **changes):
        tables = self.settings(**{"study": {"purpose": "research"}, **changes})
        return self.make_study(tables)

    def proposal(self, study):
        prepared = prepare(study)
        plan, settings = make_plan(prepared.study), prepared.study.settings
        salt = salts(self.home, prepared.slots)
        return ProposeStudy(
            study=plan.study, study_hash=plan.study_hash, code_hash=plan.code_hash, plan_hash=plan.hash,
            data={f"{number:032x}": commit(prepared.slots[site], salt[site]) for number, site in enumerate(SITES)},
            purpose=settings.study.purpose, terms=terms_of(settings, minimum=plan.minimum),
        )  # fmt: skip

    def approved(self, **changes):
        """A study that everybody has approved."""
        study = self.study(**changes)
        self.approve(self.act("scientist", self.proposal(study)), *self.owners, "officer")
        return study

    def release_asked(self, folder):
        claim, model = ((folder / name).read_bytes() for name in ("claim.json", "model.safetensors"))
        hashes = {"model_hash": hashlib.sha256(model).hexdigest(), "claim_hash": hashlib.sha256(claim).hexdigest()}
        return self.act("scientist", ReleaseModel(run=json.loads(claim)["run"], **hashes))

    def witness(self, *people):
        log = open_log(self.home)
        heads = Heads(log.store, open_log_key(self.home), cosignatures(self.home))
        for who in people:
            key = Signer(who, COSIGNATURE, self.keys[who].witness.private_bytes_raw())
            witness = Witness(self.home / f"witness-{who}.db", [key], [heads.key.verifier])
            send = lambda body, witness=witness: witness.add_checkpoint(body, int(time.time()))  # noqa: E731
            heads.keep(ask(send, heads.head(), log.store, [key.verifier]))
            witness.close()
        log.close()

    def refusals(self):
        log = open_log(self.home)
        try:
            return [(event.asked, event.reason) for event in log.events() if isinstance(event, RequestRefused)]
        finally:
            log.close()


@pytest.fixture
def world(tmp_path, make_study, settings):
    """A federation with three registered datasets."""
    made = World(tmp_path / "home", make_study, settings)
    made.found()
    made.register()
    return made


def test_a_study_runs_when_everybody_has_approved_and_its_claim_names_them(world, run):
    result = run(world.approved())
    claim = json.loads((Path(result.out) / "claim.json").read_bytes())
    assert claim["federation"].startswith("federation heart of 6 organisations, approved for the purpose research")
    assert {line["role"] for line in claim["approvals"]} == {"data-owner", "privacy-officer"}
    assert len(claim["approvals"]) == 4


@pytest.mark.parametrize("missing", ["owner-b", "officer"])
def test_nobody_may_be_missing(world, run, tmp_path, missing):
    study = world.study()
    case = world.act("scientist", world.proposal(study))
    world.approve(case, *({*world.owners, "officer"} - {missing}))
    with pytest.raises(RefusedError, match=r"must be approved, found it pending without 1 .*; nothing trained"):
        run(study)
    assert not list(tmp_path.glob("run-*"))
    ((asked, reason),) = world.refusals()
    plan = make_plan(prepare(study).study)
    assert re.fullmatch(rf"run {plan.study}-\w{{8}} of plan {plan.hash}", asked)
    assert re.fullmatch(rf"plan {plan.hash[:16]}, must be approved, found it pending without 1 [^;]*", reason)
    world.approve(case, missing)
    assert run(study).rounds == 4


def test_a_study_that_was_not_proposed_or_was_denied_does_not_run(world, run):
    study = world.study()
    with pytest.raises(RefusedError, match="must be approved, found no proposal; nothing trained, nothing spent"):
        run(study)
    world.approve(world.act("scientist", world.proposal(study)), "owner-a", verdict="deny")
    with pytest.raises(RefusedError, match="must be approved, found it denied"):
        run(study)


def test_changed_settings_changed_code_and_changed_data_were_not_approved(world, run, make_study):
    world.approved()
    with pytest.raises(RefusedError, match="must be approved, found no proposal"):
        run(world.study(training={"learning_rate": 0.9}))

    def data(name):
        rng = np.random.default_rng(sum(map(ord, name)) + 1)
        x = rng.normal(size=(40, 4)).astype(np.float32)
        return hubbub.Examples(x, (x.sum(axis=1) > 0).astype(np.int64))

    study = make_study(world.settings(study={"purpose": "research"}), data=data)
    with pytest.raises(RefusedError):
        run(study)


def test_data_that_changed_after_the_approval_is_refused_by_its_commitment(world, run, make_study):
    rows = {"shift": 0.0}

    def data(name):
        x = np.full((40, 4), len(name) + rows["shift"], dtype=np.float32)
        return hubbub.Examples(x, np.zeros(40, dtype=np.int64))

    study = make_study(world.settings(study={"purpose": "research"}), data=data)
    world.approve(world.act("scientist", world.proposal(study)), *world.owners, "officer")
    rows["shift"] = 1.0
    with pytest.raises(RefusedError, match="must have the data that was proposed, found another"):
        run(study)


def test_what_owners_registered_is_the_budget_and_no_other_grant_counts(world, run):
    run(world.approved())
    log = open_log(world.home)
    from hubbub.accounting.grants import filter_grant
    from hubbub.accounting.ledger import Ledger

    granted = [event for event in log.events() if isinstance(event, BudgetGranted)]
    assert {(event.epsilon, event.granted_by) for event in granted} == {(30.0, "owner")}
    with pytest.raises(BudgetError, match="gets its budget by a proposal in this federation, found a grant by hand"):
        Ledger(log).grant([filter_grant(f"{0:032x}", "example", 99.0, 1e-5)])
    log.close()
    ((asked, reason),) = world.refusals()
    assert (asked, reason[:32]) == (f"a filter of epsilon 99 for {0:032x}", f"{0:032x}")


def test_a_raised_budget_admits_what_did_not_fit(tmp_path, make_study, settings, run):
    world = World(tmp_path / "home", make_study, settings)
    world.found()
    world.register(epsilon=4.5)
    study = world.approved()
    with pytest.raises(BudgetError, match=r"has epsilon 4.50 of 4.50 left at delta 1e-05, this study needs"):
        run(study)
    (refused,) = world.refusals()
    assert re.search(r"has epsilon 4.50 of 4.50 left at delta 1e-05, this study needs [\d.]+$", refused[1])
    for number, site in enumerate(SITES):
        world.approve(world.act("officer", RaiseBudget(dataset=f"{number:032x}", epsilon=20.0)), f"owner-{site}")
    assert run(study).rounds == 4


def test_a_run_waits_for_its_review_and_goes_on_when_it_is_passed(world, run, tmp_path):
    study = world.approved(governance={"reviews": [2]})
    with pytest.raises(WaitingError, match="waits for a review after round 2; nothing more asked, it stays reserved"):
        run(study, out=tmp_path / "waiting")
    with pytest.raises(WaitingError):
        hubbub.resume(tmp_path / "waiting", study=study)
    name = json.loads((tmp_path / "waiting" / "run.json").read_bytes())["run"]
    world.approve(world.act("operator", PassReview(run=name, round_number=2)), "officer")
    assert hubbub.resume(tmp_path / "waiting", study=study).rounds == 4


def test_whoever_may_stops_a_run_for_good(world, run, tmp_path):
    study = world.approved()

    def watch(event, _plan):
        if isinstance(event, RoundClosed) and event.round_number == 2:
            world.act("officer", StopRun(run=event.run))

    with pytest.raises(RefusedError, match="must not be stopped by anybody who may, found that it was, after round 2"):
        run(study, watch=watch)


def after_round_one(act):
    def watch(event, _plan):
        if isinstance(event, RoundClosed) and event.round_number == 1:
            act()

    return watch


def test_a_run_whose_approval_lapses_waits_until_the_study_is_approved_again(world, run, tmp_path):
    def steal():
        act = RevokeKey(key=world.keys["owner-b"].card.key_id, reason="stolen")
        world.approve(world.act("operator", act), "officer")

    study = world.approved()
    with pytest.raises(WaitingError, match=r"found after round 1: .* found it lapsed.*; nothing more asked, it stays"):
        run(study, out=tmp_path / "lapsed", watch=after_round_one(steal))
    with pytest.raises(RefusedError, match="must be approved, found it lapsed"):
        hubbub.resume(tmp_path / "lapsed", study=study)
    world.keys["owner-2"] = new_keys("owner-2", organisation="clinic-b", role="data-owner")
    world.approve(world.act("operator", EnrolKey(card=world.keys["owner-2"].card)), "officer")
    world.approve(world.act("scientist", world.proposal(study)), "owner-a", "owner-2", "owner-c", "officer")
    assert hubbub.resume(tmp_path / "lapsed", study=study).rounds == 4


def test_a_run_on_data_that_is_erased_asks_for_nothing_more(world, run, tmp_path):
    erase = after_round_one(lambda: world.act("owner-a", EraseDataset(dataset=f"{0:032x}")))
    with pytest.raises(WaitingError, match="found after round 1: a, must hold a registered dataset, found none"):
        run(world.approved(), out=tmp_path / "erased", watch=erase)
    settled = hubbub.stop(tmp_path / "erased")
    assert settled.charged == 1


def write_policy(world, site, text):
    (world.home / "sites").mkdir(exist_ok=True)
    (world.home / "sites" / f"{site}.toml").write_text(f"[policy]\n{text}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epsilon = 0.5", "epsilon, must be at most 0.5"),
        ('purposes = ["quality"]', "purposes, must be one of quality, found research"),
        ("retention = 2020-01-01", "retention, must be until 2020-01-01"),
        (f'federation = "{"0" * 64}"', "federation, must be 0000000000000000"),
        (f'peers = ["{"0" * 16}"]', "peers, must be 0000000000000000 in the roster, found it absent"),
    ],
)
def test_a_site_refuses_what_everybody_else_agreed_to(world, run, text, words):
    study = world.approved()
    write_policy(world, "b", text)
    with pytest.raises(
        RefusedError, match=rf"sites/b.toml: this site's policy: {words}.*; nothing trained, nothing sent"
    ):
        run(study)


def test_a_limit_of_nobody_is_refused(world, run):
    study = world.approved()
    write_policy(world, "bb", "epsilon = 0.5")
    with pytest.raises(RefusedError, match=r"bb\.toml, must have the name of a participant .*, found 'bb\.toml'"):
        run(study)
    for name in ("b.TOML", "b"):
        (world.home / "sites" / "bb.toml").rename(world.home / "sites" / name)
        with pytest.raises(RefusedError, match=rf"{name}, must have .* and end in \.toml, found '{name}'"):
            run(study)
        (world.home / "sites" / name).rename(world.home / "sites" / "bb.toml")


def test_a_site_asks_its_policy_in_a_sandbox_and_when_a_run_goes_on(tmp_path, make_study, settings, run):
    world = World(tmp_path / "home", make_study, settings)
    tables = settings(study={"purpose": "research"}, governance={"reviews": []})

    def watch(event, _plan):
        if isinstance(event, RoundClosed) and event.round_number == 2:
            raise KeyboardInterrupt

    with pytest.raises(hubbub.HubbubError, match="was stopped after round 2"):
        run(make_study(tables), out=tmp_path / "half", watch=watch)
    write_policy(world, "c", "minimum = 99")
    with pytest.raises(RefusedError, match="this site's policy: minimum, must be at least 99"):
        hubbub.resume(tmp_path / "half", study=make_study(tables))
    write_policy(world, "c", "minimum = 1")
    assert hubbub.resume(tmp_path / "half", study=make_study(tables)).rounds == 4
    write_policy(world, "c", f'federation = "{"0" * 64}"')
    with pytest.raises(RefusedError, match="federation, must be 0000000000000000, found a sandbox"):
        run(make_study(tables))
    write_policy(world, "c", "limit = 1")
    with pytest.raises(hubbub.HubbubError, match="must be a site file"):
        run(make_study(tables))


def test_a_site_that_asks_for_attestation_takes_part_in_no_run_in_one_process(world, run):
    limits = f'measurements = ["{"0" * 96}"]\nminimum_tcb = {{ Milan = {{ snp = 1 }} }}'
    write_policy(world, "b", f"[attestation]\nrequired = true\n{limits}")
    with pytest.raises(RefusedError, match=r"sites/b.toml: this site's policy: attestation, must be shown, found one"):
        run(world.approved())


def test_a_link_to_a_policy_that_is_gone_is_no_permission(tmp_path, make_study, run):
    (tmp_path / "home" / "sites").mkdir(parents=True)
    (tmp_path / "home" / "sites" / "a.toml").symlink_to(tmp_path / "gone.toml")
    with pytest.raises(hubbub.HubbubError, match="must be a site file"):
        run(make_study())
    shutil.rmtree(tmp_path / "home" / "sites")
    (tmp_path / "home" / "sites").symlink_to(tmp_path / "gone")
    with pytest.raises(hubbub.HubbubError, match=r"No such file or directory: .*sites"):
        run(make_study())
    assert not list(tmp_path.glob("run-*"))


@pytest.fixture
def finished(world, run):
    """A run that has ended, and its folder."""
    return Path(run(world.approved()).out)


def test_a_release_needs_its_own_approvals_and_a_quorum_of_witnesses(world, finished):
    with pytest.raises(RefusedError, match=r"release of .*, must be approved, found no proposal"):
        hubbub.release_run(finished)
    case = world.release_asked(finished)
    with pytest.raises(RefusedError, match=r"release of .*, must be approved, found it pending without"):
        hubbub.release_run(finished)
    world.approve(case, *world.owners, "officer")
    with pytest.raises(RefusedError, match=r"must be released under a quorum of witnesses, .* found none, where 3 of"):
        hubbub.release_run(finished)
    world.witness("a", "officer")
    with pytest.raises(RefusedError, match="found a, officer, where 3 of a, b, c, officer must"):
        hubbub.release_run(finished)
    world.witness("b")
    bundle = hubbub.release_run(finished)
    found = {check.what: check.found for check in hubbub.verify_bundle(bundle).checks}
    approved = found["acts"].removeprefix("federation heart: study and release approved, the release by ")
    assert approved == "officer of board, owner-a of clinic-a, owner-b of clinic-b, owner-c of clinic-c"
    assert "cosigned by" in found["log"]
    refused = [reason.partition("found")[2] for asked, reason in world.refusals() if asked.startswith("release of ")]
    assert [words.split()[:2] for words in refused] == [["no", "proposal"], ["it", "pending"]]


@pytest.mark.parametrize("name", ["claim.json", "model.safetensors"])
def test_changed_bytes_are_not_released(world, finished, name):
    world.approve(world.release_asked(finished), *world.owners, "officer")
    content = bytearray((finished / name).read_bytes())
    content[-3] ^= 1
    (finished / name).write_bytes(content)
    with pytest.raises(hubbub.HubbubError, match="nothing released"):
        hubbub.release_run(finished)


def test_a_verifier_with_another_policy_believes_nothing(world, finished):
    world.approve(world.release_asked(finished), *world.owners, "officer")
    with pytest.raises(RefusedError):
        hubbub.release_run(finished)
    world.witness("a", "b", "c")
    bundle = hubbub.release_run(finished)
    log = open_log(world.home)
    own = witness_policy(log.fold(Federation), open_log_key(world.home).verifier)
    log.close()
    assert hubbub.verify_bundle(bundle, policy=own, now=int(time.time()))
    with pytest.raises(VerificationError, match="must be cosigned by the policy's quorum"):
        hubbub.verify_bundle(bundle, policy=own, now=int(time.time()) + 2 * DAY)
    other = dataclasses.replace(own, logs=())
    with pytest.raises(VerificationError, match="must be signed by a log of the policy"):
        hubbub.verify_bundle(bundle, policy=other)


def test_a_grant_that_was_put_before_the_founding_pays_for_no_release(world, finished, tmp_path):
    """The operator has the keys of log and release: it makes both again, with a grant from when nobody was asked."""
    world.approve(world.release_asked(finished), *world.owners, "officer")
    with pytest.raises(RefusedError, match="quorum of witnesses"):
        hubbub.release_run(finished)
    world.witness("a", "b", "c")
    bundle = hubbub.release_run(finished)
    log = open_log(world.home)
    events = log.events()
    log.close()
    grants = [msgspec.structs.replace(event, epsilon=80.0) for event in events if isinstance(event, BudgetGranted)]
    events = [*grants, *(event for event in events if not isinstance(event, BudgetGranted))]
    store, key, signer = Store(tmp_path / "other.db"), read_key(world.home / "release.key"), open_log_key(world.home)
    store.append(lambda _: [encode_event(event) for event in events])
    shutil.rmtree(bundle / "log")
    tiles.export(store, sign_checkpoint(store, signer), bundle / "log")
    store.close()
    (bundle / "policy").write_bytes(bytes(Policy((Party(signer.verifier),))))
    (bundle / "bundle.sig").unlink()
    sign_folder(bundle, key, bundle / "bundle.sig")
    with pytest.raises(VerificationError, match="bundle: budget, must be what its owner registered, found otherwise"):
        hubbub.verify_bundle(bundle, policy=Policy((Party(signer.verifier),)), recompute=False)
    with pytest.raises(VerificationError, match=r"bundle: acts, .* must be cosigned by .*, found none, where 3 of"):
        hubbub.verify_bundle(bundle, recompute=False)
