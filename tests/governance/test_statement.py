"""Statements: what is signed names what it is about, in one form."""

import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import InputError
from hubbub.governance import decide, propose, read
from hubbub.governance.acts import _FREE, AnyAct, OpenIncident, StopRun, terms_of
from hubbub.governance.envelope import seal
from hubbub.study.config import Settings, read_settings

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ACT = OpenIncident(severity="S2", summary="a disk is lost")


def payload(text):
    return json.loads(read(text).envelope.body)


def resealed(change):
    """A proposal whose statement was changed before it was signed."""
    document = payload(propose(ACT, KEY, at=1, expires=2))
    change(document)
    return seal(json.dumps(document, separators=(",", ":")).encode(), KEY)


def test_a_proposal_is_an_in_toto_statement():
    document = payload(propose(ACT, KEY, at=1, expires=2))
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "urn:hubbub:proposal:1"
    assert document["subject"] == [{"name": "open-incident", "digest": {"sha256": ACT.subjects["open-incident"]}}]
    assert document["predicate"]["act"]["act"] == "open-incident"
    assert (document["predicate"]["at"], document["predicate"]["expires"]) == (1, 2)


def test_a_decision_names_the_bytes_that_it_is_on():
    proposal = read(propose(ACT, KEY, at=1, expires=2)).id
    text = decide(proposal, KEY, at=3, expires=4, verdict="deny", conditions=("why",))
    document = payload(text)
    assert document["predicateType"] == "urn:hubbub:decision:1"
    assert document["subject"] == [{"name": "proposal", "digest": {"sha256": proposal}}]
    assert document["predicate"] == {"at": 3, "expires": 4, "verdict": "deny", "conditions": ["why"]}
    assert read(text).about == proposal


def test_a_study_names_settings_code_plan_and_every_dataset(approved):
    study = approved.study(*approved.datasets)
    names = {"study", "code", "plan"} | {f"data/{dataset}" for dataset in approved.datasets}
    subjects = {
        entry["name"]: entry["digest"]["sha256"] for entry in payload(approved.proposal("scientist", study))["subject"]
    }
    assert set(subjects) == names
    assert subjects["plan"] == study.plan_hash
    assert subjects[f"data/{approved.datasets[0]}"] == study.data[approved.datasets[0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(subject=[]),
        lambda document: document["subject"][0].update(name="other"),
        lambda document: document["subject"][0]["digest"].update(sha256="0" * 64),
        lambda document: document["subject"].append(document["subject"][0]),
        lambda document: document.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda document: document.update(predicateType="urn:hubbub:other:1"),
        lambda document: document.update(extra=1),
        lambda document: document["predicate"].update(at=True),
        lambda document: document["predicate"].update(at=-1),
        lambda document: document["predicate"]["act"].update(severity="S4"),
        lambda document: document["predicate"]["act"].pop("run"),
        lambda document: document["predicate"]["act"].update(act="grant-all"),
        lambda document: document.update(predicate=document.pop("predicate"), _type=document.pop("_type")),
    ],
)
def test_a_statement_that_was_signed_in_another_form_is_refused(change):
    with pytest.raises(InputError, match=r"^statement, must be .*; nothing recorded\n") as caught:
        read(resealed(change))
    assert caught.value.hint == "ask whoever signed for it again"


def test_a_decision_about_nothing_is_refused():
    document = payload(decide("0" * 64, KEY, at=1, expires=2)) | {"subject": []}
    with pytest.raises(InputError, match="must be written in its one form and name its subjects"):
        read(seal(json.dumps(document, separators=(",", ":")).encode(), KEY))


@given(st.binary(max_size=80) | st.lists(st.none() | st.text(max_size=9)).map(msgspec.json.encode))
def test_any_signed_bytes_are_a_statement_or_refused(body):
    with pytest.raises(InputError, match=r"^statement, must be "):
        read(seal(body, KEY))


def test_every_kind_of_act_has_a_tag_that_rules_and_logs_use():
    kinds = [kind.__struct_config__.tag for kind in AnyAct.__args__]
    assert len(set(kinds)) == len(kinds)
    assert StopRun(run="r").kind == "stop-run"


def test_equal_acts_signed_by_two_people_are_two_proposals():
    other = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
    assert read(propose(ACT, KEY, at=1, expires=2)).id != read(propose(ACT, other, at=1, expires=2)).id


# --- terms


def terms(settings, **changes):
    return terms_of(read_settings(settings(**changes)), minimum=3)


def test_terms_say_what_the_study_says(settings):
    found = terms(settings, governance={"reviews": [1, 3]}, cohort={"colluding": 2})
    assert (found.unit, found.noise, found.epsilon, found.delta) == ("example", "server", 4.0, 1e-5)
    assert (found.minimum, found.colluding, found.reviews) == (3, 2, (1, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"rounds": 3, "learning_rate": 0.5, "momentum": 0.5}},
        {"sampling": {"probability": 0.25}},
        {"success": {"accuracy": 0.9}},
        {"speed": {"workers": 2}},
        {"study": {"seed": 9}},
        {"privacy": {"retries": 1}},
        {"privacy": {"epsilon": 3.0}},
        {"privacy": {"delta": 1e-6}},
    ],
)
def test_a_change_inside_the_envelope_stays_within_the_terms(settings, change):
    assert terms(settings, **change).within(terms(settings))


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"epsilon": 4.1}},
        {"privacy": {"epsilon": None, "noise": "none"}},
        {"privacy": {"noise": "local"}},
        {"privacy": {"max_norm": 2.0}},
        {"privacy": {"noise_source": "float-simulation"}},
        {"study": {"purpose": "product"}},
        {"study": {"name": "other"}},
        {"data": {"x": {"shape": [5]}}},
        {"cohort": {"participants": "fixed", "size": 2}},
        {"cohort": {"colluding": 0}},
        {"governance": {"reviews": [2]}},
        {"training": {"algorithm": "local-dp-sgd"}, "privacy": {"noise": "local"}},
    ],
)
def test_a_change_of_what_decides_over_privacy_leaves_the_terms(settings, change):
    assert not terms(settings, **change).within(terms(settings))


def test_a_setting_that_nobody_thought_of_needs_full_approval(settings):
    free = {(table, key) for table, keys in _FREE.items() for key in keys}
    known = {(table.name, key) for table in msgspec.structs.fields(Settings) for key in table.type.__struct_fields__}
    assert free < known
    assert {
        ("training", "algorithm"),
        ("training", "weights"),
        ("privacy", "sums"),
        ("attack", "release"),
    } <= known - free


def test_a_larger_delta_leaves_the_terms(settings):
    assert not terms(settings).within(terms(settings, privacy={"delta": 1e-6}))


@pytest.mark.parametrize(
    "change", [{"training": {"rounds": 1000}}, {"training": {"learning_rate": 2.0}}, {"privacy": {"retries": 3}}]
)
def test_without_noise_more_exact_sums_than_were_approved_leave_the_terms(settings, change):
    exact = {"epsilon": None, "noise": "none"}
    approved = terms(settings, privacy=exact)
    changed = terms(settings, **(change | {"privacy": exact | change.get("privacy", {})}))
    assert not changed.within(approved)
    assert terms(settings, privacy=exact, study={"seed": 5}) == approved


def test_what_was_approved_without_noise_admits_noise(settings):
    without = terms(settings, privacy={"epsilon": None, "noise": "none"})
    assert msgspec.structs.replace(without, epsilon=1.0).within(without)
