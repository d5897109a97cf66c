"""Who may: every cell of the table, and rules that can only be tightened."""

import functools
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import InputError, RefusedError
from hubbub.governance.acts import (
    AcknowledgeIncident,
    CloseIncident,
    EnrolKey,
    EraseDataset,
    OpenIncident,
    PassReview,
    RaiseBudget,
    ReleaseModel,
    RevokeKey,
    RotateKey,
    StopRun,
)
from hubbub.governance.roles import Rules, Tightening, TighterRule, packaged, read_tightening, tighten

# design: "Roles (deny by default)". ask: may propose; sign: may decide; own: on what is their organisation's only
TABLE = """
| act                       | data-owner         | data-scientist | privacy-officer | operator | auditor | node    |
| propose-study             | sign own           | ask            | sign            |          |         |         |
| change-a                  |                    | ask            |                 | sign     |         |         |
| change-b                  |                    | ask            |                 |          |         |         |
| pass-review               |                    | ask            | sign            | ask      |         |         |
| release-model             | sign own           | ask            | sign            |          |         |         |
| stop-run                  | ask own            |                | ask             | ask      |         |         |
| register-dataset          | ask own            |                | sign            |          |         |         |
| register-disjoint-version | ask own + sign own |                | sign            |          |         |         |
| raise-budget              | sign own           |                | ask             |          |         |         |
| erase-dataset             | ask own            |                |                 |          |         | ask own |
| enrol-key                 | ask own            |                | sign            | ask      |         |         |
| replace-stolen-key        | ask own            |                | sign            | ask      |         |         |
| revoke-key                | ask own            |                | sign            | ask      |         |         |
| open-incident             | ask                | ask            |                 |          | ask     |         |
| acknowledge-incident      |                    |                |                 | ask      |         |         |
| close-incident            |                    |                | ask             |          | sign    |         |
"""
LINES = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()]
CELLS = {(line[0], role): line[at] for line in LINES[1:] for at, role in enumerate(LINES[0]) if at}
KINDS = [line[0] for line in LINES[1:]]

# who stands for a role: one whose organisation's data, run or key it is (clinic-1), and one from elsewhere
STANDS_FOR = {
    "data-owner": ("owner-1b", "owner-2"),
    "data-scientist": ("scientist-b", "scientist-b"),
    "privacy-officer": ("officer-b", "officer-b"),
    "operator": ("operator", "operator"),
    "auditor": ("auditor", "auditor"),
    "node": ("node-1", "node-2"),
}
ASKS = {  # somebody who may ask, so that others can decide
    "propose-study": "scientist",
    "change-a": "scientist",
    "change-b": "scientist",
    "pass-review": "scientist",
    "release-model": "scientist",
    "stop-run": "officer",
    "register-dataset": "owner-1",
    "register-disjoint-version": "owner-1",
    "raise-budget": "officer",
    "erase-dataset": "owner-1",
    "enrol-key": "owner-1",
    "replace-stolen-key": "owner-1",
    "revoke-key": "owner-1",
    "open-incident": "scientist",
    "acknowledge-incident": "operator",
    "close-incident": "officer",
}


def act_of(world, kind, digest, made_keys):
    """An act of this kind that touches clinic-1 only, in a world where it would be valid."""
    data = world.register(1)
    study = world.approve_study(data)
    world.run()
    incident = world.propose("scientist", OpenIncident(severity="S2", summary="x"))
    old = world.keys["node-1"].card
    act = {
        "propose-study": lambda: world.study(data, plan_hash=digest("other")),
        "change-a": lambda: world.study(data, plan_hash=digest("other"), change="A", changes=study),
        "change-b": lambda: world.study(data, plan_hash=digest("other"), change="B", changes=study),
        "pass-review": lambda: PassReview(run="run-1", round_number=2),
        "release-model": lambda: ReleaseModel(run="run-1", model_hash=digest("model"), claim_hash=digest("claim")),
        "stop-run": lambda: StopRun(run="run-1"),
        "register-dataset": lambda: world.dataset(1, "-new"),
        "register-disjoint-version": lambda: world.dataset(1, "-new", version_of=data, is_disjoint=True),
        "raise-budget": lambda: RaiseBudget(dataset=data, epsilon=9.0),
        "erase-dataset": lambda: EraseDataset(dataset=data),
        "enrol-key": lambda: EnrolKey(card=made_keys("eve", "clinic-1", "data-owner").card),
        "replace-stolen-key": lambda: RotateKey(key=old.key_id, card=made_keys("node-1", "clinic-1", "node", "2").card),
        "revoke-key": lambda: RevokeKey(key=old.key_id, reason="left"),
        "open-incident": lambda: OpenIncident(severity="S1", summary="y"),
        "acknowledge-incident": lambda: AcknowledgeIncident(incident=incident),
        "close-incident": lambda: CloseIncident(incident=incident, summary="done"),
    }[kind]()
    if kind == "release-model":
        world.agree("scientist", PassReview(run="run-1", round_number=2), "officer")
    if kind == "close-incident":
        world.propose("operator", AcknowledgeIncident(incident=incident))
    return act


@pytest.fixture(scope="module")
def scene(make_world, digest, made_keys):
    """Make the world of one kind of act once: nothing in these tests changes it."""

    @functools.cache
    def make(kind):
        world = make_world().found()
        act = act_of(world, kind, digest, made_keys)
        return world, world.propose(ASKS[kind], act)

    return make


def people(role):
    own, foreign = STANDS_FOR[role]
    return [(own, True), (foreign, False)]


@pytest.mark.parametrize("role", LINES[0][1:])
@pytest.mark.parametrize("kind", KINDS)
def test_a_role_asks_for_what_its_cell_says_and_nothing_else(make_world, digest, made_keys, kind, role):
    world = make_world().found()
    act = act_of(world, kind, digest, made_keys)
    for person, is_own in people(role):
        if kind == "replace-stolen-key" and person == "node-1":
            continue  # it would be a rotation of its own key
        envelope = world.proposal(person, act)
        words = [cell for cell in CELLS[kind, role].split(" + ") if cell.startswith("ask")]
        if words and (is_own or words == ["ask"]):
            world.state.check(envelope, world.now)
        else:
            with pytest.raises(
                RefusedError, match=rf"^{person}, {role} of [a-z0-9-]+, may not ask for {act.kind}, only "
            ):
                world.state.check(envelope, world.now)


@pytest.mark.parametrize("role", LINES[0][1:])
@pytest.mark.parametrize("kind", KINDS)
def test_a_role_decides_on_what_its_cell_says_and_nothing_else(scene, kind, role):
    world, case = scene(kind)
    for person, is_own in people(role):
        envelope = world.decision(person, case)
        words = [cell for cell in CELLS[kind, role].split(" + ") if cell.startswith("sign")]
        if words and (is_own or words == ["sign"]):
            world.state.check(envelope, world.now)
        else:
            with pytest.raises(RefusedError, match=r"(may not decide on|never decides on an own)"):
                world.state.check(envelope, world.now)


@pytest.mark.parametrize("person", [name for pair in STANDS_FOR.values() for name in pair])
def test_everybody_rotates_the_own_key_and_an_officer_countersigns(founded, made_keys, person):
    card = founded.keys[person].card
    act = RotateKey(key=card.key_id, card=made_keys(person, card.organisation, card.role, "2").card)
    case = founded.propose(person, act)
    assert founded.standing(case) == "pending"
    founded.decide("officer", case)
    assert founded.standing(case) == "in force"


def test_the_rules_hold_what_the_table_holds_and_no_more():
    rules, _ = packaged()
    assert set(rules.acts) == {*KINDS, "found-federation", "rotate-key"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_act_with_a_signature_in_its_row_is_in_force_by_asking(kind):
    signed = {role for role in LINES[0][1:] if "sign" in CELLS[kind, role]}
    approvers = {selector.removeprefix("own ") for selector in packaged()[0].acts[kind].approve}
    assert approvers == signed


# --- tightening


def tightened(**act):
    return tighten(packaged()[0], Tightening(acts={"propose-study": TighterRule(**act)})).acts["propose-study"]


def test_a_site_may_ask_for_more_approvals_fewer_proposers_and_less_time():
    rule = tightened(approve={"privacy-officer": 2, "auditor": 1}, propose=(), expires_days=7)
    assert rule.approve == {"own data-owner": 1, "privacy-officer": 2, "auditor": 1}
    assert (rule.propose, rule.expires_days) == ((), 7)
    rules = tighten(packaged()[0], Tightening(acknowledge_hours={"S2": 4}))
    assert rules.escalation["S2"].acknowledge_hours == 4
    assert rules.escalation["S1"] == packaged()[0].escalation["S1"]


def test_nothing_asked_for_changes_nothing():
    assert tighten(packaged()[0], Tightening()) == packaged()[0]


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (
            Tightening(acts={"propose-study": TighterRule(propose=("data-scientist", "operator"))}),
            "acts.propose-study.propose, may only be tighter than the rules: some of data-scientist, found operator",
        ),
        (
            Tightening(acts={"replace-stolen-key": TighterRule(approve={"privacy-officer": 1})}),
            "acts.replace-stolen-key.approve, may only be tighter than the rules: at least 2 privacy-officer, found 1",
        ),
        (
            Tightening(acts={"pass-review": TighterRule(expires_days=31)}),
            "acts.pass-review.expires_days, may only be tighter than the rules: at most 30, found 31",
        ),
        (
            Tightening(acknowledge_hours={"S1": 2}),
            "acknowledge_hours.S1, may only be tighter than the rules: at most 1, found 2",
        ),
        (Tightening(acts={"grant-all": TighterRule()}), "acts.grant-all, may only be tighter than the rules: one of "),
        (Tightening(acknowledge_hours={"S9": 1}), "acknowledge_hours, may only be tighter than the rules: one of S1, "),
    ],
)
def test_anything_looser_is_refused_by_name(site, words):
    with pytest.raises(RefusedError) as caught:
        tighten(packaged()[0], site)
    assert caught.value.message.startswith(words)
    assert caught.value.message.endswith("; nothing recorded")
    assert caught.value.hint == "leave it out: the rules hold"


SELECTORS = st.sampled_from(
    ["data-owner", "own data-owner", "data-scientist", "privacy-officer", "operator", "auditor"]
)
CHANGES = st.builds(
    TighterRule,
    propose=st.none() | st.lists(SELECTORS, max_size=2).map(tuple),
    approve=st.dictionaries(SELECTORS, st.integers(1, 3), max_size=2),
    expires_days=st.none() | st.integers(1, 400),
)


@given(st.dictionaries(st.sampled_from(sorted(packaged()[0].acts)), CHANGES, max_size=3))
def test_whatever_a_site_writes_is_tighter_or_refused(acts):
    base = packaged()[0]
    try:
        rules = tighten(base, Tightening(acts=acts))
    except RefusedError:
        return
    for kind, rule in rules.acts.items():
        assert set(rule.propose) <= set(base.acts[kind].propose)
        assert rule.expires_days <= base.acts[kind].expires_days
        assert all(rule.approve[selector] >= count for selector, count in base.acts[kind].approve.items())


def test_a_federation_is_held_to_what_its_founding_asks_beyond_the_rules(world):
    world.found(Tightening(acts={"propose-study": TighterRule(approve={"privacy-officer": 2})}))
    data = world.register(1)
    case = world.agree("scientist", world.study(data), "owner-1", "officer")
    world.decide("officer-b", case)  # of the same organisation
    assert world.standing(case) == "pending"
    world.decide("officer-1", case)
    assert world.standing(case) == "in force"
    assert world.replayed() == world.state


def test_what_touches_nobodys_data_is_approved_by_no_owner(world):
    world.found(Tightening(acts={"open-incident": TighterRule(approve={"own data-owner": 1})}))
    case = world.propose("auditor", OpenIncident(severity="S1", summary=""))
    assert world.standing(case) == "pending"
    with pytest.raises(RefusedError, match="may not decide on open-incident, only own data-owner may"):
        world.decide("owner-1", case)


def test_a_founding_that_asks_for_less_is_refused(world):
    looser = Tightening(acts={"pass-review": TighterRule(expires_days=31)})
    with pytest.raises(RefusedError, match=r"acts.pass-review.expires_days, may only be tighter"):
        world.propose("operator", world.founding(looser))


def test_a_file_of_tighter_rules_is_read(tmp_path):
    path = tmp_path / "tighter.toml"
    path.write_text('[acts.propose-study]\napprove = { "privacy-officer" = 2 }\n[acknowledge_hours]\nS3 = 24\n')
    found = read_tightening(path)
    assert found.acts["propose-study"].approve == {"privacy-officer": 2}
    assert found.acknowledge_hours == {"S3": 24}


@pytest.mark.parametrize(
    "text",
    ["[", "a = " + "[" * 50_000, "acts = 3", "[acts.x]\napprove = { founder = 1 }", "[acts.x]\nother = 1"],
)
def test_a_damaged_file_of_tighter_rules_is_refused(tmp_path, text):
    path = tmp_path / "tighter.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="must be a file of tighter rules") as caught:
        read_tightening(path)
    assert msgspec.convert(tomllib.loads(caught.value.hint.replace("] ", "]\n", 1)), Tightening).acts


def test_a_missing_file_of_tighter_rules_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be a file of tighter rules, .*No such file"):
        read_tightening(tmp_path / "none.toml")


def test_the_packaged_rules_take_no_other_key():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"format": 1, "acts": {}, "escalation": {}, "extra": 1}, Rules)
