"""Random people do random things: the fold agrees with an oracle that knows nothing of it.

The oracle is written from the table and the sentences of the design, keeps nothing but the list of what was
accepted, and finds every answer again from that list.
"""

import collections

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbub.errors import RefusedError
from hubbub.governance import Federation, read
from hubbub.governance.acts import OpenIncident, ProposeStudy, RegisterDataset, RevokeKey, StopRun
from hubbub.governance.statement import Proposal

DAY = 86_400
PEOPLE = ["owner-1", "owner-1b", "owner-2", "scientist", "officer", "officer-b", "officer-1", "operator", "node-1"]
DAYS = {"propose-study": 365, "register-dataset": 30, "revoke-key": 30, "stop-run": 30, "open-incident": 30}


class Oracle:
    """Who may what, found from the list of accepted (time, person, what) alone."""

    def __init__(self, cards, founded_at):
        self.cards = cards
        self.founded_at = founded_at
        self.accepted = []

    def role(self, person):
        return self.cards[person].role

    def organisation(self, person):
        return self.cards[person].organisation

    def effects(self, kind):
        """Acts of a kind that have come into force, in order."""
        return [entry for entry in self.accepted if entry.get("kind") == kind and entry["in_force"]]

    def ended(self, person):
        return any(entry["act"].key == self.cards[person].key_id for entry in self.effects("revoke-key"))

    def stolen(self, person):
        return any(
            entry["act"].key == self.cards[person].key_id and entry["act"].reason == "stolen"
            for entry in self.effects("revoke-key")
        )

    def owner(self, dataset):
        return next(
            (e["act"].organisation for e in self.effects("register-dataset") if e["act"].dataset == dataset), None
        )

    def touched(self, act):
        match act:
            case RegisterDataset():
                return {act.organisation}
            case ProposeStudy():
                return {self.owner(dataset) for dataset in act.data} - {None}
            case RevokeKey():
                return {card.organisation for card in self.cards.values() if card.key_id == act.key}
        return set()

    def may_ask(self, person, act):
        role, own = self.role(person), self.organisation(person) in self.touched(act)
        match act:
            case ProposeStudy():
                fits = act.data and all(self.owner(dataset) for dataset in act.data)
                return role == "data-scientist" and fits and act.purpose in ("research", "quality")
            case RegisterDataset():
                node = {"clinic-1": "node-1", "clinic-2": "node-2"}.get(act.organisation)
                fits = self.owner(act.dataset) is None and act.participant == node and not self.ended(node)
                return role == "data-owner" and own and fits
            case RevokeKey():
                holder = next(name for name, card in self.cards.items() if card.key_id == act.key)
                return (role == "operator" or (role == "data-owner" and own)) and not self.ended(holder)
            case OpenIncident():
                return role in {"data-owner", "data-scientist", "auditor"}
        return False  # no run is known, so none can be stopped

    def may_sign(self, person, act):
        role, own = self.role(person), self.organisation(person) in self.touched(act)
        match act:
            case ProposeStudy():
                return role == "privacy-officer" or (role == "data-owner" and own)
            case RegisterDataset() | RevokeKey():
                return role == "privacy-officer"
        return False

    def decisions(self, case):
        return [entry for entry in self.accepted if entry.get("about") == case]

    def is_complete(self, entry, now):
        yes = {
            d["person"]
            for d in self.decisions(entry["id"])
            if d["verdict"] == "approve" and now < d["expires"] and not self.stolen(d["person"])
        } - {entry["person"]}
        officers = {person for person in yes if self.role(person) == "privacy-officer"}
        owners = {self.organisation(person) for person in yes if self.role(person) == "data-owner"}
        match entry["act"]:
            case ProposeStudy():
                return bool(officers) and self.touched(entry["act"]) <= owners
            case RegisterDataset() | RevokeKey():
                return bool(officers)
        return True

    def standing(self, entry, now):
        if any(d["verdict"] == "deny" for d in self.decisions(entry["id"])):
            return "denied"
        if not entry["in_force"]:
            return "pending" if now < entry["expires"] else "lapsed"
        if isinstance(entry["act"], ProposeStudy):
            return "in force" if self.is_complete(entry, now) and not self.stolen(entry["person"]) else "lapsed"
        return "in force"

    def accepts_proposal(self, person, act, days, case):
        fits = 0 < days <= DAYS[act.kind] and all(entry.get("id") != case for entry in self.accepted)
        return fits and not self.ended(person) and self.may_ask(person, act)

    def accepts_decision(self, person, entry, verdict, days, now):
        if self.ended(person) or self.standing(entry, now) != "pending" or person == entry["person"]:
            return False
        if any(d["person"] == person for d in self.decisions(entry["id"])) or not self.may_sign(person, entry["act"]):
            return False
        if not 0 < days <= DAYS[entry["kind"]]:
            return False
        return verdict == "deny" or (not self.ended(entry["person"]) and self.may_ask(entry["person"], entry["act"]))

    def take(self, entry, now):
        self.accepted.append(entry)
        case = entry if "act" in entry else next(e for e in self.accepted if e.get("id") == entry["about"])
        if self.standing(case, now) == "pending" and self.is_complete(case, now):
            case["in_force"] = True


@st.composite
def steps(draw):
    """A few hundred bytes of intentions, most of them refused."""
    count = draw(st.integers(5, 40))
    step = st.fixed_dictionaries(
        {
            "what": st.sampled_from(
                ["study", "study", "dataset", "revoke", "incident", "stop"] + ["decide"] * 9 + ["wait"]
            ),
            "who": st.sampled_from(PEOPLE),
            "number": st.integers(0, 7),
            "other": st.integers(0, 3),
            "verdict": st.sampled_from(["approve"] * 9 + ["deny"]),
            "days": st.sampled_from([30, 30, 30, 2, 1, 0, 400]),
            "reason": st.sampled_from(["left", "stolen"]),
        }
    )
    return draw(st.lists(step, min_size=count, max_size=count))


def act_of(world, digest, step):
    datasets = [digest(f"data-{number}")[:32] for number in (1, 2)]
    match step["what"]:
        case "study":
            chosen = [datasets[:1], datasets[1:], datasets, []][step["other"]]
            purpose = "product" if step["number"] == 7 else "research"
            return world.study(*chosen, plan_hash=digest(f"plan-{step['number'] % 2}"), purpose=purpose)
        case "dataset":
            return world.dataset(1 + step["number"] % 2, participant=f"node-{1 + step['other'] % 2}")
        case "revoke":
            return RevokeKey(key=world.keys[PEOPLE[step["number"]]].card.key_id, reason=step["reason"])
        case "incident":
            return OpenIncident(severity="S3", summary=str(step["number"]))
    return StopRun(run="run-1")


def is_recorded(world, envelope):
    try:
        world.record(world.state.event(envelope, world.now))
    except RefusedError:
        return False
    return True


def play(world, oracle, digest, step):
    """One step in both; the same answer from both."""
    if step["what"] == "wait":
        world.now += (1 + step["number"]) * DAY // 2
        return
    days, who = step["days"], step["who"]
    if step["what"] == "decide":
        cases = [entry for entry in oracle.accepted if "act" in entry]
        if not cases:
            return
        entry = cases[-1 - step["number"] % len(cases)]
        envelope = world.decision(who, entry["id"], step["verdict"], days=days)
        expected = oracle.accepts_decision(who, entry, step["verdict"], days, world.now)
        taken = {"person": who, "about": entry["id"], "verdict": step["verdict"], "expires": world.now + days * DAY}
    else:
        act = act_of(world, digest, step)
        envelope = world.proposal(who, act, days=days)
        identity = read(envelope).id
        expected = oracle.accepts_proposal(who, act, days, identity)
        taken = {"person": who, "id": identity, "act": act, "kind": act.kind, "in_force": False}
        taken["expires"] = world.now + days * DAY
    assert is_recorded(world, envelope) == bool(expected), (step, oracle.accepted)
    if expected:
        oracle.take(taken, world.now)


def compare(world, oracle):
    state = world.state
    assert {card.name for card in state.in_force()} == {name for name in oracle.cards if not oracle.ended(name)}
    assert set(state.datasets) == {entry["act"].dataset for entry in oracle.effects("register-dataset")}
    assert set(state.incidents) == {entry["id"] for entry in oracle.effects("open-incident")}
    for entry in oracle.accepted:
        if "act" in entry:
            assert state.standing(state.cases[entry["id"]], world.now) == oracle.standing(entry, world.now)


def signers_in_log(log):
    """Who approved which proposal, read from the envelopes alone."""
    proposers, approvals = {}, collections.defaultdict(set)
    for event in log:
        signed = read(event.envelope)
        if isinstance(signed.predicate, Proposal):
            proposers[signed.id] = signed.envelope.key_id
        elif signed.predicate.verdict == "approve":
            approvals[signed.about].add(signed.envelope.key_id)
    return proposers, approvals


def check_no_study_without_others(world):
    """The promise, from the log alone: an officer and an owner of each dataset's organisation, none the requester."""
    proposers, approvals = signers_in_log(world.log)
    cards = {keys.card.key_id: keys.card for keys in world.keys.values()}
    for case, study in world.state.cases_of(ProposeStudy):
        if world.state.standing(case, world.now) == "in force":
            others = [cards[key] for key in approvals[case.id] - {proposers[case.id]}]
            owners = {world.state.datasets[dataset].registered.organisation for dataset in study.data}
            assert any(card.role == "privacy-officer" for card in others)
            assert owners
            assert owners <= {card.organisation for card in others if card.role == "data-owner"}


def compare_after(make_world, digest, script, kind=Federation):
    world = make_world().found()
    world.state.__class__ = kind
    oracle = Oracle({name: keys.card for name, keys in world.keys.items()}, world.now)
    for step in script:
        play(world, oracle, digest, step)
        compare(world, oracle)
        check_no_study_without_others(world)
    assert world.replayed() == world.state
    return oracle


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps())
def test_the_state_is_that_of_an_independent_oracle(make_world, digest, script):
    compare_after(make_world, digest, script)


GOOD = {"number": 0, "other": 0, "verdict": "approve", "days": 30, "reason": "left"}
STORY = [
    {"what": "dataset", "who": "owner-1"},
    {"what": "decide", "who": "officer"},
    {"what": "study", "who": "scientist"},
    {"what": "decide", "who": "officer-b"},
    {"what": "decide", "who": "owner-1"},
]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(STORY)), max_size=6), st.data())
@pytest.mark.slow
def test_whatever_happens_in_between_an_approval_the_oracle_agrees(make_world, digest, places, data):
    script = [GOOD | step for step in STORY]
    for place in sorted(places, reverse=True):
        script[place:place] = data.draw(steps())[:1]
    compare_after(make_world, digest, script)


def test_the_story_ends_with_a_study_in_force(make_world, digest):
    oracle = compare_after(make_world, digest, [GOOD | step for step in STORY])
    (study,) = oracle.effects("propose-study")
    assert study["in_force"]


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(STORY)), max_size=12), st.data())
def test_the_state_is_the_oracles_in_many_more_stories(make_world, digest, places, data):
    script = [GOOD | step for step in STORY]
    for place in sorted(places, reverse=True):
        script[place:place] = data.draw(steps())[:2]
    compare_after(make_world, digest, script)


def test_a_fold_that_lets_anybody_decide_is_found_out(make_world, digest):
    class Careless(Federation):
        def is_one_of(self, *_):
            return True

    script = [GOOD | step for step in STORY]
    script[1] = script[1] | {"who": "node-1"}
    compare_after(make_world, digest, script)
    with pytest.raises(AssertionError):
        compare_after(make_world, digest, script, kind=Careless)
