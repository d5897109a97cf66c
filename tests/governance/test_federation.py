"""The fold: what is valid, in which order, when it comes into force, and what it then allows."""

import datetime as dt

import msgspec
import pytest

from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.events import BudgetCharged, Decided, ParticipantJoined, Proposed, RoundClosed, RunFinished
from hubbub.governance import Federation, read
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
from hubbub.governance.roles import Tightening
from hubbub.governance.state import Budget

DAY = 86_400


def refused(call, *arguments, **options):
    with pytest.raises(RefusedError) as caught:
        call(*arguments, **options)
    assert caught.value.hint
    return caught.value.message


def question(world, study=None, **changes):
    """Ask whether the study may run as it was proposed, some facts changed."""
    study = study or world.state.cases[world.study_case].act
    facts = {
        "plan_hash": study.plan_hash,
        "study_hash": study.study_hash,
        "code_hash": study.code_hash,
        "datasets": study.data,
        "purpose": study.purpose,
        "terms": study.terms,
        "now": world.now,
    }
    return world.state.may_run(**(facts | changes))


# --- a sandbox, and its end


def test_an_empty_log_is_a_sandbox_where_nobody_is_asked(world):
    assert world.state.is_sandbox
    assert question(world, world.study("0" * 32)) is None
    assert world.state.may_release(run="r", model_hash="m", claim_hash="c", now=0) is None
    assert world.state.review_passed("r", 2)
    assert not world.state.is_stopped("r")
    assert (world.state.roster().federation, world.state.roster().members) == ("", ())
    assert world.state.due(2**40) == []


def test_other_events_pass_by(world):
    world.record(BudgetCharged(run="r", round_number=1, attempt=1))
    world.record(ParticipantJoined(run="r", participant="p", slots=1, data_commitment=""))
    world.record(RoundClosed(run="r", round_number=1, attempt=1, participants=1, step_norm=0.0))
    world.record(RunFinished(run="r", rounds=1, model_hash="m"))
    assert world.state == Federation(entries=4)


def test_a_federation_begins_when_every_founder_has_signed(world):
    case = world.propose("operator", world.founding())
    others = [name for name in world.keys if name != "operator"]
    for name in others:
        assert world.state.is_sandbox
        waiting = [missing.role for missing in world.state.missing(world.state.cases[case], world.now)]
        assert waiting == others[others.index(name) :]
        world.decide(name, case)
    assert (world.state.id, world.state.name, world.state.epoch) == (case, "heart", 1)
    assert {card.name for card in world.state.in_force()} == set(world.keys)
    assert world.replayed() == world.state


def test_one_founder_who_denies_ends_the_founding(world):
    case = world.propose("operator", world.founding())
    world.decide("owner-1", case, "deny")
    assert world.standing(case) == "denied"
    words = refused(world.decide, "owner-2", case)
    assert words == f"proposal {case[:16]}, is decided while it is pending, found it denied; nothing done"


def test_a_federation_is_founded_once(world):
    second = world.propose("officer", world.founding())
    world.found(Tightening())
    assert refused(world.decide, "operator", second).startswith("founding, happens once, found heart founded before")
    assert refused(world.propose, "officer", world.founding(name="other")).startswith("founding, happens once")


def test_a_stranger_founds_nothing(world, made_keys):
    world.keys["eve"] = made_keys("eve", "evil", "operator")
    assert "must be in force, found an unknown one" in refused(world.propose, "eve", world.founding())


def cards(world, *names):
    return tuple(world.keys[name].card for name in names)


def test_a_founding_must_be_able_to_go_on(world, made_keys):
    two = cards(world, "operator", "officer")
    assert "must have a founder with role privacy-officer" in refused(
        world.propose, "operator", world.founding(cards=cards(world, "operator", "owner-1"))
    )
    assert "must name each holder and each key once" in refused(
        world.propose, "operator", world.founding(cards=(*two, two[0]))
    )
    again = made_keys("operator", "it", "operator", "2").card
    assert "must name each holder and each key once" in refused(
        world.propose, "operator", world.founding(cards=(*two, again))
    )
    assert "must name the roles file" in refused(world.propose, "operator", world.founding(cards=two, roles="0" * 64))
    forged = msgspec.structs.replace(two[1], organisation="other")
    assert "must be signed by its identity key" in refused(
        world.propose, "operator", world.founding(cards=(two[0], forged))
    )


def test_after_founding_nothing_is_automatic(founded, digest):
    words = refused(question, founded, founded.study("0" * 32))
    assert words == (
        f"plan {digest('plan')[:16]}, must be approved, found no proposal; "
        "nothing trained, nothing spent, nothing released"
    )
    assert not founded.state.review_passed("run-1", 2)


# --- signatures, order, time


def test_a_signature_by_another_key_under_a_known_key_id_is_refused(founded):
    text = founded.proposal("scientist", OpenIncident(severity="S1", summary=""))
    other = founded.proposal("owner-1", OpenIncident(severity="S1", summary=""))
    keyid = read(other).envelope.key_id
    forged = text.replace(read(text).envelope.key_id, keyid)
    assert refused(founded.state.check, forged, founded.now).startswith("owner-1, must have signed exactly these bytes")


def test_an_unknown_key_is_refused(founded, made_keys):
    founded.keys["eve"] = made_keys("eve", "evil", "data-scientist")
    words = refused(founded.propose, "eve", OpenIncident(severity="S1", summary=""))
    assert words == f"key {founded.keys['eve'].card.key_id}, must be in force, found an unknown one; nothing done"


def test_one_proposal_is_recorded_once(founded):
    text = founded.proposal("scientist", OpenIncident(severity="S1", summary=""))
    founded.record(founded.state.event(text, founded.now))
    assert "is recorded once, found a second time" in refused(founded.state.check, text, founded.now)


def test_a_decision_on_nothing_is_refused(founded):
    words = refused(founded.decide, "officer", "0" * 64)
    assert words == "decision, must be on a proposal of this log, found 0000000000000000; nothing done"


def test_nobody_decides_on_an_own_proposal(founded):
    data = founded.register(1)
    study = founded.propose("scientist", founded.study(data))
    assert "never decides on an own proposal" in refused(founded.decide, "scientist", study)


def test_a_requester_who_rotated_keys_still_does_not_count(founded, made_keys):
    data = founded.register(1)
    fresh = made_keys("owner-1", "clinic-1", "data-owner", "2")
    old = founded.keys["owner-1"].card.key_id
    case = founded.propose("owner-1", founded.dataset(1, "b", version_of=data, is_disjoint=True))
    founded.agree("owner-1", RotateKey(key=old, card=fresh.card), "officer")
    founded.keys["owner-1"] = fresh
    assert "owner-1, never decides on an own proposal" in refused(founded.decide, "owner-1", case)


def test_a_second_decision_is_refused_also_under_new_keys(founded, made_keys):
    data = founded.register(1)
    case = founded.propose("scientist", founded.study(data))
    founded.decide("officer", case)
    assert "officer, decides once" in refused(founded.decide, "officer", case, "deny")
    fresh = made_keys("officer", "board", "privacy-officer", "2")
    founded.agree("officer", RotateKey(key=founded.keys["officer"].card.key_id, card=fresh.card), "officer-1")
    founded.keys["officer"] = fresh
    assert "officer, decides once" in refused(founded.decide, "officer", case, "deny")


def test_one_organisation_counts_once(founded, made_keys):
    founded.now += 1
    old = founded.keys["node-1"].card
    act = RotateKey(key=old.key_id, card=made_keys("node-1", "clinic-1", "node", "2").card)
    case = founded.agree("operator", act, "officer", "officer-b")
    assert founded.standing(case) == "pending"
    (missing,) = founded.state.missing(founded.state.cases[case], founded.now)
    assert str(missing) == "1 privacy-officer"
    founded.decide("officer-1", case)
    assert founded.standing(case) == "in force"


@pytest.mark.parametrize(("days", "found"), [(0, "0"), (366, "366"), (-1, "-1")])
def test_nobody_signs_for_longer_than_the_rules_let(founded, days, found):
    data = founded.register(1)
    words = refused(founded.propose, "scientist", founded.study(data), days=days)
    assert f"may sign for above 0 and at most 365 days, found {found}" in words
    case = founded.propose("scientist", founded.study(data))
    assert f"at most 365 days, found {found}" in refused(founded.decide, "officer", case, days=days)


def test_what_is_recorded_too_late_or_too_early_is_refused(founded):
    act = OpenIncident(severity="S3", summary="")
    early, late = founded.now + 601, founded.now - DAY - 1
    assert "must be recorded within a day of signing" in refused(founded.propose, "scientist", act, at=early)
    assert "must be recorded within a day of signing" in refused(founded.propose, "scientist", act, at=late)
    founded.propose("scientist", act, at=early - 1)
    founded.propose("scientist", act, at=late + 1 + 600)


def test_what_was_held_back_for_a_day_is_refused_by_every_reader(founded):
    held = Proposed(envelope=founded.proposal("scientist", OpenIncident(severity="S3", summary="")))
    founded.now += DAY + 1
    founded.propose("scientist", OpenIncident(severity="S3", summary="later"))
    with pytest.raises(VerificationError, match="must be recorded within a day of signing, found later ones before it"):
        founded.state.apply(held)


def test_a_proposal_that_waited_too_long_is_not_decided_any_more(founded):
    data = founded.register(1)
    case = founded.propose("scientist", founded.study(data), days=2)
    founded.now += 2 * DAY - 1
    founded.decide("officer", case)
    founded.now += 1
    assert founded.standing(case) == "lapsed"
    assert founded.state.pending(founded.now) == []
    assert "is decided while it is pending, found it lapsed" in refused(founded.decide, "owner-1", case)


def test_an_approval_that_expired_before_the_last_one_does_not_count(founded):
    data = founded.register(1)
    case = founded.propose("scientist", founded.study(data))
    founded.decide("officer", case, days=1)
    founded.now += DAY
    founded.decide("owner-1", case)
    assert founded.standing(case) == "pending"
    founded.decide("officer-1", case)
    assert founded.standing(case) == "in force"


def test_an_act_that_expired_before_it_was_recorded_is_refused(founded):
    act = OpenIncident(severity="S3", summary="")
    words = refused(founded.propose, "scientist", act, days=0.5, at=founded.now - DAY // 2)
    assert "must sign for a time to come, found an act that has expired" in words


# --- the auditor


def test_an_invalid_act_in_a_log_names_its_index_and_changes_nothing(approved):
    log = approved.log[:20]
    bad = Decided(envelope=approved.decision("scientist", approved.study_case))
    state = Federation()
    for event in log:
        state.apply(event)
    with pytest.raises(VerificationError) as caught:
        state.apply(bad)
    assert caught.value.message.startswith("entry 20, must be a valid act where it stands, ")
    assert caught.value.exit_code == 3
    before = Federation()
    for event in log:
        before.apply(event)
    assert state == before


def test_a_log_in_another_order_is_not_valid(approved):
    state = Federation()
    with pytest.raises(VerificationError, match="entry 0, must be a valid act where it stands, decision"):
        state.apply(approved.log[1])


def test_an_event_must_hold_what_its_name_says(founded):
    text = founded.proposal("scientist", OpenIncident(severity="S3", summary=""))
    with pytest.raises(VerificationError, match="must hold what its name says, found the other kind"):
        founded.state.apply(Decided(envelope=text))


def test_an_unreadable_envelope_in_a_log_names_its_index(world):
    with pytest.raises(VerificationError, match="entry 0, must be a valid act where it stands, envelope, must be"):
        world.state.apply(Proposed(envelope="{}"))


def test_a_check_changes_nothing(approved):
    before = approved.replayed()
    approved.state.check(approved.proposal("scientist", OpenIncident(severity="S1", summary="")), approved.now)
    with pytest.raises(InputError):
        approved.state.check("", approved.now)
    assert approved.state == before


# --- studies


def test_a_study_that_everybody_approved_may_run_as_it_is(approved):
    permit = question(approved)
    assert permit.case == approved.study_case
    assert permit.approved_by == tuple(
        sorted(approved.keys[name].card.key_id for name in ("owner-1", "owner-2", "officer"))
    )
    assert permit.expires == approved.now + 30 * DAY


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("settings", {"study_hash": "0" * 64}),
        ("code", {"code_hash": "0" * 64}),
        ("data", {"datasets": {}}),
        ("purpose", {"purpose": "quality"}),
    ],
)
def test_a_run_that_differs_from_what_was_approved_is_refused_by_name(approved, name, change):
    words = refused(question, approved, **change)
    assert f"must have the {name} that was proposed, found another" in words
    assert words.endswith("; nothing trained, nothing spent, nothing released")


def test_a_run_on_other_terms_than_were_approved_is_refused(approved):
    terms = msgspec.structs.replace(approved.state.cases[approved.study_case].act.terms, epsilon=2.5)
    assert "must have the terms that was proposed" in refused(question, approved, terms=terms)


def test_another_plan_is_not_approved(approved):
    assert "must be approved, found no proposal" in refused(question, approved, plan_hash="0" * 64)


def test_a_study_waits_for_every_owner_and_says_for_whom(founded):
    data = (founded.register(1), founded.register(2))
    case = founded.agree("scientist", founded.study(*data), "officer", "owner-1")
    study = founded.state.cases[case].act
    assert "must be approved, found it pending without 1 data-owner of clinic-2" in refused(question, founded, study)
    founded.decide("owner-2", case, "deny", conditions=("ask the patients first",))
    assert "must be approved, found it denied" in refused(question, founded, study)


def test_an_approval_ends_on_its_day(approved):
    approved.now += 30 * DAY
    words = refused(question, approved)
    assert "must be approved, found it lapsed without 1 data-owner of clinic-1, " in words
    assert approved.state.may_release is not None


def test_conditions_go_with_the_permit(founded):
    data = founded.register(1)
    case = founded.agree("scientist", founded.study(data), "officer")
    founded.decide("owner-1", case, conditions=("weekly report",))
    assert question(founded, founded.state.cases[case].act).conditions == ("weekly report",)


def test_of_two_approvals_of_one_plan_the_one_in_force_counts(approved):
    newer = approved.propose("scientist", approved.study(*approved.datasets), days=1)
    assert approved.standing(newer) == "pending"
    assert question(approved).case == approved.study_case


def test_a_newer_proposal_of_the_same_plan_takes_no_approval_away(approved):
    base = approved.state.cases[approved.study_case].act
    fewer = dict(list(base.data.items())[:1])
    change = msgspec.structs.replace(base, data=fewer, change="B", changes=approved.study_case)
    newer = approved.propose("scientist", change)
    assert question(approved).case == approved.study_case
    assert question(approved, change).case == newer


def test_a_study_must_name_data_that_is_there_and_for_its_purpose(founded):
    data = founded.register(1)
    assert "must name the data it uses, found none" in refused(founded.propose, "scientist", founded.study())
    assert "must be a dataset of this log" in refused(founded.propose, "scientist", founded.study("0" * 32))
    words = refused(founded.propose, "scientist", founded.study(data, purpose="product"))
    assert f"dataset {data}, may be used for 'research', 'quality', found 'product'" in words


def test_a_study_in_force_ends_with_its_data(founded):
    data = founded.register(1)
    case = founded.approve_study(data)
    study = founded.state.cases[case].act
    assert question(founded, study)
    founded.propose("node-1", EraseDataset(dataset=data))
    assert f"dataset {data}, must exist, found it erased" in refused(question, founded, study)


def test_a_study_may_not_run_on_data_past_its_last_day(founded):
    last = dt.datetime.fromtimestamp(founded.now + 2 * DAY, dt.UTC).date()
    data = founded.register(1, retention=last)
    case = founded.approve_study(data)
    study = founded.state.cases[case].act
    founded.now += 2 * DAY
    assert question(founded, study)
    founded.now += DAY
    assert f"must exist, found its last day was {last}" in refused(question, founded, study)


# --- classes of change


def change_of(world, kind, **changes):
    base = world.state.cases[world.study_case].act
    fields = {"plan_hash": "a" * 64, "study_hash": "b" * 64, "change": kind, "changes": world.study_case}
    return msgspec.structs.replace(base, **(fields | changes))


def test_a_change_without_effect_on_privacy_needs_the_operator(approved):
    act = change_of(approved, "A")
    case = approved.propose("scientist", act)
    assert "must be approved, found it pending without 1 operator" in refused(question, approved, act)
    approved.decide("operator", case)
    permit = question(approved, act)
    assert permit.case == case
    assert approved.keys["operator"].card.key_id in permit.approved_by
    assert approved.keys["officer"].card.key_id in permit.approved_by


def test_a_change_inside_the_envelope_is_in_force_at_once_and_ends_with_its_study(approved):
    terms = msgspec.structs.replace(approved.state.cases[approved.study_case].act.terms, epsilon=1.0)
    act = change_of(
        approved, "B", terms=terms, data=dict([*approved.state.cases[approved.study_case].act.data.items()][:1])
    )
    approved.propose("scientist-b", act, days=365)
    assert question(approved, act).expires == approved.now + 30 * DAY
    approved.now += 30 * DAY
    assert "must be approved, found it lapsed" in refused(question, approved, act)


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("change", ["code", "purpose", "name", "more data", "epsilon", "clip", "reviews", "rest"])
def test_a_change_that_needs_full_approval_cannot_claim_another_class(approved, kind, change):
    base = approved.state.cases[approved.study_case].act
    changes = {
        "code": {"code_hash": "0" * 64},
        "purpose": {"purpose": "quality"},
        "name": {"study": "other"},
        "more data": {"data": base.data | {approved.register(1, version="x"): "0" * 64}},
        "epsilon": {"terms": msgspec.structs.replace(base.terms, epsilon=2.1)},
        "clip": {"terms": msgspec.structs.replace(base.terms, max_norm=0.5)},
        "reviews": {"terms": msgspec.structs.replace(base.terms, reviews=())},
        "rest": {"terms": msgspec.structs.replace(base.terms, rest="0" * 64)},
    }[change]
    words = refused(approved.propose, "scientist", change_of(approved, kind, **changes))
    assert f"study {'other' if change == 'name' else 'heart'}, is no change of class {kind}" in words


def test_without_noise_fewer_datasets_are_no_change_since_the_difference_of_two_sums_is_one_contribution(approved):
    terms = msgspec.structs.replace(approved.state.cases[approved.study_case].act.terms, epsilon=None, noise="none")
    approved.study_case = approved.approve_study(*approved.datasets, terms=terms)
    data = approved.state.cases[approved.study_case].act.data
    fewer = change_of(approved, "B", data=dict([*data.items()][:1]))
    assert "study heart, is no change of class B" in refused(approved.propose, "scientist", fewer)
    approved.propose("scientist", change_of(approved, "B"))


def test_a_change_must_change_a_fully_approved_study_in_force(approved):
    inside = approved.propose("scientist", change_of(approved, "B"))
    for changes in ("0" * 64, inside, approved.state.id):
        words = refused(approved.propose, "scientist", change_of(approved, "B", changes=changes, plan_hash="c" * 64))
        assert "must change a fully approved study in force" in words
    approved.now += 30 * DAY
    words = refused(approved.propose, "scientist", change_of(approved, "B", plan_hash="c" * 64))
    assert "must change a fully approved study in force" in words


@pytest.mark.parametrize("changes", [{"change": "C"}, {"change": "B", "changes": None}])
def test_only_a_change_of_class_a_or_b_names_a_study(approved, changes):
    words = refused(approved.propose, "scientist", msgspec.structs.replace(change_of(approved, "A"), **changes))
    assert "names the study it changes in class A or B only" in words


def test_what_was_asked_and_approved_in_one_federation_is_replayed_in_no_other(founded, make_world, made_keys):
    other = make_world()
    case = other.propose("operator", other.founding(name="lungs"))
    for name in other.keys.keys() - {"operator"}:
        other.decide(name, case)
    assert other.state.id not in {"", founded.state.id}
    card = made_keys("eve", "clinic-1", "data-owner").card
    founded.agree("operator", EnrolKey(card=card), "officer")
    proposed, decided = founded.log[-2:]
    with pytest.raises(VerificationError, match=f"must be asked of federation {other.state.id[:16]}, found another"):
        other.record(proposed)
    with pytest.raises(VerificationError, match="must be on a proposal of this log"):
        other.record(decided)
    assert card.key_id not in other.state.holders


# --- keys


def test_a_new_holder_acts_when_it_is_enrolled(founded, made_keys):
    eve = founded.keys["eve"] = made_keys("eve", "lab", "data-scientist")
    case = founded.propose("operator", EnrolKey(card=eve.card))
    incident = OpenIncident(severity="S3", summary="")
    assert "an unknown one" in refused(founded.propose, "eve", incident)
    founded.decide("officer", case)
    founded.propose("eve", incident)
    assert founded.state.epoch == 2
    assert founded.state.holders[eve.card.key_id].epoch == 2


def test_names_and_keys_are_used_once(founded, made_keys):
    twin = made_keys("node-1", "clinic-9", "node", "9").card
    assert "must have a name of its own" in refused(founded.propose, "operator", EnrolKey(card=twin))
    same = founded.keys["node-1"].card
    assert "must show keys never seen before" in refused(founded.propose, "operator", EnrolKey(card=same))
    alike = made_keys("eve", "clinic-9", "node").card  # 64 bits of two keys may be made alike in 2^32 steps
    founded.state.holders[alike.key_id] = founded.state.holders.pop(same.key_id)
    assert "must show keys never seen before" in refused(founded.propose, "operator", EnrolKey(card=alike))
    forged = msgspec.structs.replace(made_keys("eve", "lab", "node").card, role="operator")
    assert "must be signed by its identity key" in refused(founded.propose, "operator", EnrolKey(card=forged))


def test_two_enrolments_of_one_name_do_not_both_come_into_force(founded, made_keys):
    first = founded.propose("operator", EnrolKey(card=made_keys("eve", "lab", "node").card))
    second = founded.propose("operator", EnrolKey(card=made_keys("eve", "lab", "operator", "2").card))
    founded.decide("officer", first)
    assert "must have a name of its own" in refused(founded.decide, "officer", second)
    founded.decide("officer", second, "deny")
    assert founded.standing(second) == "denied"


def test_a_revoked_key_signs_nothing_more(founded):
    key = founded.keys["officer"].card.key_id
    founded.agree("operator", RevokeKey(key=key, reason="left"), "officer-1")
    data = founded.propose("owner-1", founded.dataset(1))
    assert f"key {key}, must be in force, found one that left" in refused(founded.decide, "officer", data)
    holder = founded.state.holders[key]
    assert (holder.revoked_at, holder.reason, founded.state.epoch) == (founded.now, "left", 2)
    words = refused(founded.propose, "operator", RevokeKey(key=key, reason="stolen"))
    assert f"key {key}, ends once, found it left" in words
    assert "must be a key of this log" in refused(founded.propose, "operator", RevokeKey(key="0" * 16, reason="left"))


@pytest.mark.parametrize(("reason", "standing"), [("left", "in force"), ("stolen", "lapsed")])
def test_what_somebody_who_left_approved_stands_and_what_a_thief_may_have_approved_does_not(approved, reason, standing):
    key = approved.keys["officer"].card.key_id
    approved.agree("operator", RevokeKey(key=key, reason=reason), "officer-1")
    assert approved.standing(approved.study_case) == standing


def test_what_a_thief_may_have_asked_for_does_not_stand(approved):
    key = approved.keys["scientist"].card.key_id
    approved.agree("operator", RevokeKey(key=key, reason="stolen"), "officer-1")
    assert "must be approved, found it lapsed" in refused(question, approved)


@pytest.mark.parametrize(("reason", "is_pending"), [("left", False), ("stolen", True)])
def test_a_revocation_between_two_approvals_counts(founded, reason, is_pending):
    data = founded.register(1)
    case = founded.agree("scientist", founded.study(data), "officer")
    key = founded.keys["officer"].card.key_id
    founded.agree("operator", RevokeKey(key=key, reason=reason), "officer-1")
    founded.decide("owner-1", case)
    assert (founded.standing(case) == "pending") == is_pending


def test_nobody_approves_what_a_revoked_key_asked_for(founded):
    data = founded.register(1)
    case = founded.propose("scientist", founded.study(data))
    founded.agree("operator", RevokeKey(key=founded.keys["scientist"].card.key_id, reason="left"), "officer")
    words = refused(founded.decide, "officer", case)
    assert words.startswith(f"proposal {case[:16]}, must be by a key in force, found that of scientist left")


def test_rotated_keys_go_on_where_the_old_ones_were(approved, made_keys):
    old = approved.keys["officer"].card.key_id
    fresh = made_keys("officer", "board", "privacy-officer", "2")
    approved.agree("officer", RotateKey(key=old, card=fresh.card), "officer-1")
    assert approved.state.holders[old].reason == "rotated"
    assert approved.standing(approved.study_case) == "in force"
    assert "found one that rotated" in refused(approved.decide, "officer", approved.study_case)
    approved.keys["officer"] = fresh
    approved.register(1, version="new")
    again = made_keys("officer", "board", "privacy-officer", "3").card
    assert "ends once, found it rotated" in refused(approved.propose, "operator", RotateKey(key=old, card=again))


def test_stolen_keys_are_replaced_by_two_officers_of_two_organisations(approved, made_keys):
    old = approved.keys["owner-1"].card.key_id
    fresh = made_keys("owner-1", "clinic-1", "data-owner", "2")
    approved.agree("owner-1b", RotateKey(key=old, card=fresh.card), "officer", "officer-1")
    assert approved.state.holders[old].reason == "stolen"
    assert fresh.card in approved.state.in_force()
    assert approved.standing(approved.study_case) == "lapsed"


@pytest.mark.parametrize(
    "fields", [("node-9", "clinic-1", "node"), ("node-1", "clinic-2", "node"), ("node-1", "clinic-1", "operator")]
)
def test_new_keys_are_the_same_holders(founded, made_keys, fields):
    card = made_keys(*fields, "2").card
    act = RotateKey(key=founded.keys["node-1"].card.key_id, card=card)
    assert "must be of node-1, node of clinic-1" in refused(founded.propose, "node-1", act)


def test_new_keys_are_new_and_their_card_is_signed(founded, made_keys):
    old = founded.keys["node-1"].card
    words = refused(founded.propose, "node-1", RotateKey(key=old.key_id, card=old))
    assert "card of node-1, must show keys never seen before, found an old one" in words
    fresh = made_keys("node-1", "clinic-1", "node", "2").card
    forged = msgspec.structs.replace(fresh, witness="0" * 64)
    words = refused(founded.propose, "node-1", RotateKey(key=old.key_id, card=forged))
    assert "must be signed by its identity key" in words


def test_the_roster_is_the_nodes_in_force(founded):
    before = founded.state.roster()
    assert [card.name for card in sorted(before.members, key=lambda card: card.name)] == ["node-1", "node-2"]
    founded.agree("operator", RevokeKey(key=founded.keys["node-1"].card.key_id, reason="left"), "officer")
    after = founded.state.roster()
    assert ([card.name for card in after.members], after.epoch) == (["node-2"], before.epoch + 1)
    assert after.hash != before.hash
    assert after.federation == founded.state.id


# --- datasets and budgets


def test_a_registered_dataset_has_a_budget(founded):
    data = founded.register(1)
    dataset = founded.state.datasets[data]
    assert dataset.account == data
    assert str(founded.state.budgets[data]) == "budget of epsilon 8 at delta 1e-05 per example"
    assert str(Budget("client", 8.0, 1e-5, "gaussian")).endswith(" per client, for Gaussian noise without sampling")
    assert str(Budget("client", 8.0, 1e-5, "unbounded")).endswith(" per client, which bounds nothing")
    founded.now += 1
    assert "is registered once" in refused(founded.propose, "owner-1", founded.dataset(1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"participant": "node-2"}, "must be held by a node of clinic-1, found 'node-2'"),
        ({"participant": "owner-1"}, "must be held by a node of clinic-1, found 'owner-1'"),
        ({"retention": "2020-01-01"}, "must have a day ahead and a purpose, found the last day 2020-01-01"),
        ({"purposes": ()}, "must have a day ahead and a purpose, found no purpose"),
        ({"is_disjoint": True}, "is disjoint from an older version, found none named"),
        ({"version_of": "0" * 32}, "must be a dataset of this log"),
    ],
)
def test_a_dataset_that_cannot_be_meant_is_refused(founded, changes, words):
    assert words in refused(founded.propose, "owner-1", founded.dataset(1, **changes))


def test_a_dataset_at_a_delta_that_no_grant_may_have_is_no_act(founded):
    with pytest.raises(InputError, match=r"must be a proposal or a decision, Expected `float` <= 1e-05"):
        founded.propose("owner-1", founded.dataset(1, delta=1e-4))


def test_a_new_version_shares_the_budget_of_the_old_one(founded):
    old = founded.register(1)
    founded.agree("officer", RaiseBudget(dataset=old, epsilon=9.0), "owner-1")
    words = refused(founded.propose, "owner-1", founded.dataset(1, "b", version_of=old))
    assert "shares the budget of epsilon 9 at delta 1e-05 per example, found budget of epsilon 8" in words
    new = founded.register(1, version="b", version_of=old, epsilon=9.0)
    founded.agree("officer", RaiseBudget(dataset=new, epsilon=10.0), "owner-1")
    newest = founded.register(1, version="c", version_of=new, epsilon=10.0)
    assert founded.state.datasets[newest].account == old
    assert (list(founded.state.budgets), founded.state.budgets[old].epsilon) == ([old], 10.0)


def test_a_hint_to_the_shared_budget_can_be_typed_as_it_stands(founded):
    old = founded.register(1, epsilon=1.23456789, delta=1.23456789e-6)
    with pytest.raises(RefusedError, match=r"shares the budget of epsilon 1\.23456789 at delta 1\.2345") as caught:
        founded.propose("owner-1", founded.dataset(1, "b", version_of=old))
    words = caught.value.hint.split()
    typed = {"epsilon": float(words[1]), "delta": float(words[3])}
    founded.propose("owner-1", founded.dataset(1, "b", version_of=old, **typed))


def test_disjoint_units_have_a_budget_of_their_own_if_two_owners_say_so(founded):
    old = founded.register(1)
    act = founded.dataset(1, "b", version_of=old, is_disjoint=True, epsilon=1.0)
    case = founded.agree("owner-1", act, "officer")
    (missing,) = founded.state.missing(founded.state.cases[case], founded.now)
    assert str(missing) == "1 data-owner of clinic-1"
    founded.decide("owner-1b", case)
    assert founded.state.datasets[act.dataset].account == act.dataset
    assert founded.state.budgets[act.dataset].epsilon == 1.0


def test_a_version_has_the_owner_of_the_old_one(founded):
    old = founded.register(1)
    words = refused(founded.propose, "owner-2", founded.dataset(2, version_of=old))
    assert f"must have the owner of {old}, clinic-1, found clinic-2" in words


def test_a_budget_is_raised_only(founded):
    data = founded.register(1)
    words = refused(founded.propose, "officer", RaiseBudget(dataset=data, epsilon=8.0))
    assert "has a budget of epsilon 8 at delta 1e-05 per example, which may be raised only, found epsilon 8" in words


def test_a_dataset_is_erased_once_by_its_owner(founded):
    data = founded.register(1)
    founded.propose("owner-1", EraseDataset(dataset=data))
    assert founded.state.datasets[data].is_erased
    assert "is erased once" in refused(founded.propose, "node-1", EraseDataset(dataset=data))
    assert "may not ask for" in refused(founded.propose, "owner-1", EraseDataset(dataset="0" * 32))
    assert "must exist, found it erased" in refused(founded.propose, "officer", RaiseBudget(dataset=data, epsilon=9.0))


# --- runs, reviews, releases


def release(digest, **changes):
    return ReleaseModel(**({"run": "run-1", "model_hash": digest("model"), "claim_hash": digest("claim")} | changes))


def may_release(world, digest, **changes):
    asked = {"run": "run-1", "model_hash": digest("model"), "claim_hash": digest("claim"), "now": world.now}
    return world.state.may_release(**(asked | changes))


def test_a_reviewed_and_approved_release_may_leave_and_no_other_bytes(approved, digest):
    approved.run()
    approved.agree("scientist", PassReview(run="run-1", round_number=2), "officer")
    assert "must be approved, found no proposal" in refused(may_release, approved, digest)
    case = approved.agree("scientist", release(digest), "officer", "owner-1")
    assert "found it pending without 1 data-owner of clinic-2" in refused(may_release, approved, digest)
    approved.decide("owner-2", case)
    assert may_release(approved, digest).case == case
    for changed in ({"model_hash": digest("x")}, {"claim_hash": digest("x")}):
        words = refused(may_release, approved, digest, **changed)
        assert "must be of the model and the claim that were proposed, found others" in words
    approved.propose("officer", StopRun(run="run-1"))
    assert "needs a run that nobody stopped" in refused(may_release, approved, digest)


@pytest.mark.parametrize("kind", ["B", "C"])
def test_a_study_of_the_same_plan_on_fewer_datasets_takes_no_owner_out_of_a_release(approved, digest, kind):
    base = approved.state.cases[approved.study_case].act
    fewer = {approved.datasets[0]: base.data[approved.datasets[0]]}
    change = {"change": "B", "changes": approved.study_case} if kind == "B" else {}
    case = approved.propose("scientist", msgspec.structs.replace(base, data=fewer, **change))
    if kind == "C":
        approved.decide("owner-1", case)
        approved.decide("officer", case)
    assert approved.standing(case) == "in force"
    approved.run()
    assert approved.state.case_of("run-1").id == approved.study_case
    approved.agree("scientist", PassReview(run="run-1", round_number=2), "officer")
    approved.agree("scientist", release(digest), "officer", "owner-1")
    assert "found it pending without 1 data-owner of clinic-2" in refused(may_release, approved, digest)


def test_a_run_on_other_records_than_were_approved_is_of_no_study(approved):
    approved.run(commitments={"node-1": "0" * 64})
    assert approved.state.case_of("run-1") is None
    assert approved.state.study_of("run-1") is None


def test_records_that_a_run_began_with_are_not_exchanged_later(approved):
    name = approved.run()
    approved.record(ParticipantJoined(run=name, participant="node-1", slots=1, data_commitment="0" * 64))
    assert approved.state.case_of(name).id == approved.study_case


def test_a_release_needs_a_finished_run_of_an_approved_study(approved, digest):
    assert "may not ask for" in refused(approved.propose, "officer", release(digest))
    assert "must be a run of this log" in refused(approved.propose, "scientist", release(digest))
    approved.run(finish=False)
    assert "needs a finished run, found an unfinished one" in refused(approved.propose, "scientist", release(digest))
    approved.run("run-2", plan=digest("never approved"))
    words = refused(approved.propose, "scientist", release(digest, run="run-2"))
    assert "run run-2, must have been approved when it started, found no study in force then" in words
    approved.run("run-3", code=digest("other code"))
    assert "no study in force then" in refused(approved.propose, "scientist", release(digest, run="run-3"))


def test_a_release_is_of_the_model_that_the_run_made_first(approved, digest):
    approved.run()
    approved.record(RunFinished(run="run-1", rounds=3, model_hash="0" * 64))
    approved.agree("scientist", PassReview(run="run-1", round_number=2), "officer")
    words = refused(approved.propose, "scientist", release(digest, model_hash="0" * 64))
    assert f"must be of model {digest('model')[:16]}, found 0000000000000000" in words
    approved.propose("scientist", release(digest))


def test_a_release_needs_every_review(approved, digest):
    approved.run()
    words = refused(approved.propose, "scientist", release(digest))
    assert "needs every review passed, found none of round 2" in words


def test_a_stopped_run_is_not_released(approved, digest):
    approved.run()
    approved.propose("owner-2", StopRun(run="run-1"))
    assert approved.state.is_stopped("run-1")
    assert "needs a finished run, found a stopped one" in refused(approved.propose, "scientist", release(digest))
    assert "is stopped once" in refused(approved.propose, "operator", StopRun(run="run-1"))


def test_a_run_goes_on_after_an_officer_has_passed_its_review(approved):
    approved.run(rounds=1, finish=False)
    review = PassReview(run="run-1", round_number=2)
    words = refused(approved.propose, "scientist", review)
    assert "review of round 2, is passed once, after it is closed, found 1 rounds closed" in words
    approved.run(rounds=2, finish=False)
    assert not approved.state.review_passed("run-1", 2)
    approved.agree("operator", review, "officer")
    assert approved.state.review_passed("run-1", 2)
    assert not approved.state.review_passed("run-1", 1)
    assert "found one that was passed" in refused(approved.propose, "scientist", review)
    words = refused(approved.propose, "scientist", PassReview(run="run-1", round_number=1))
    assert "run run-1, waits after rounds [2], found 1" in words


def test_a_study_that_lapsed_does_not_make_a_later_run_approved(approved):
    approved.now += 31 * DAY
    approved.propose("scientist", OpenIncident(severity="S3", summary=""))
    approved.run()
    assert approved.state.runs["run-1"].studies == ()


def test_an_unknown_run_is_stopped_by_nobody(approved):
    assert "must be a run of this log" in refused(approved.propose, "officer", StopRun(run="run-9"))


# --- incidents


def test_an_incident_is_opened_acknowledged_and_closed_in_this_order(founded):
    incident = founded.propose("auditor", OpenIncident(severity="S2", summary="fork", run="run-1"))
    close = CloseIncident(incident=incident, summary="restored")
    assert "found one that nobody acknowledged" in refused(founded.propose, "officer", close)
    founded.now += 60
    founded.propose("operator", AcknowledgeIncident(incident=incident))
    founded.now += 1
    assert "is acknowledged once" in refused(founded.propose, "operator", AcknowledgeIncident(incident=incident))
    founded.now += 59
    founded.agree("officer", close, "auditor")
    found = founded.state.incidents[incident]
    assert (found.acknowledged_at - found.opened_at, found.closed_at - found.opened_at) == (60, 120)
    assert "found a closed one" in refused(founded.propose, "officer", close, days=29)


def test_an_incident_that_does_not_exist_is_neither_acknowledged_nor_closed(founded):
    for who, act in (
        ("operator", AcknowledgeIncident(incident="0" * 64)),
        ("officer", CloseIncident(incident="0" * 64, summary="")),
    ):
        assert "must be an incident of this log" in refused(founded.propose, who, act)
    assert "may not ask for" in refused(founded.propose, "officer", AcknowledgeIncident(incident="0" * 64))


@pytest.mark.parametrize(("severity", "hours"), [("S1", 1), ("S2", 8), ("S3", 72)])
def test_an_incident_nobody_acknowledged_becomes_the_next_roles(founded, severity, hours):
    incident = founded.propose("scientist", OpenIncident(severity=severity, summary=""))
    act = AcknowledgeIncident(incident=incident)
    founded.now += hours * 3600 - 1
    assert founded.state.due(founded.now) == []
    assert "may not ask for" in refused(founded.propose, "officer", act)
    founded.now += 1
    (due,) = founded.state.due(founded.now)
    assert (due.kind, due.id, due.role, due.deadline) == ("incident", incident, "privacy-officer", founded.now)
    assert "may not ask for" in refused(founded.propose, "auditor", act)
    founded.propose("officer", act)
    assert founded.state.due(founded.now) == []


def test_what_is_due_is_listed_by_its_deadline(founded):
    last = dt.datetime.fromtimestamp(founded.now, dt.UTC).date()
    data = founded.register(1, retention=last)
    founded.propose("scientist", OpenIncident(severity="S3", summary=""))
    founded.propose("scientist", OpenIncident(severity="S1", summary=""))
    late = founded.state.due(founded.now + 4 * DAY)
    assert [due.kind for due in late] == ["incident", "retention", "incident"]
    assert late == sorted(late, key=lambda due: due.deadline)
    assert (late[1].id, late[1].role, late[1].organisation) == (data, "data-owner", "clinic-1")
