"""An outsider recomputes epsilon from the exported events, with nothing of ours."""

import json

import dp_accounting
from dp_accounting.pld import PLDAccountant


def lines(folder, name):
    with open(f"{folder}/{name}") as file:  # noqa: PTH123, an outsider needs json and dp_accounting only
        return [json.loads(line) for line in file]


def claim(folder):
    with open(f"{folder}/claim.json") as file:  # noqa: PTH123
        return json.load(file)


def event(document):
    if document["@"] == "GaussianDpEvent":
        return dp_accounting.GaussianDpEvent(noise_multiplier=document["noise_multiplier"])
    assert document["@"] == "PoissonSampledDpEvent"
    return dp_accounting.PoissonSampledDpEvent(
        sampling_probability=document["sampling_probability"], event=event(document["event"])
    )


def epsilon(document, count, delta):
    accountant = PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4
    )
    accountant.compose(dp_accounting.SelfComposedDpEvent(event=event(document), count=count))
    return accountant.get_epsilon(delta)


def test_epsilon_spent_is_what_an_outsider_computes_from_the_events(finished_run):
    events = lines(finished_run, "events.jsonl")
    (reserved,) = [entry for entry in events if entry["event"] == "budget-reserved"]
    charged = [entry for entry in events if entry["event"] == "budget-charged"]
    claimed = claim(finished_run)
    recomputed = epsilon(reserved["dp_event"], len(charged), claimed["delta"])
    assert abs(recomputed - claimed["epsilon_spent"]) < 5e-5
    assert claimed["epsilon_spent"] <= claimed["epsilon_planned"] <= claimed["epsilon_budget"]
    planned = epsilon(reserved["dp_event"], reserved["attempts"], claimed["delta"])
    assert abs(planned - claimed["epsilon_planned"]) < 5e-5
    assert planned <= claimed["epsilon_budget"]
