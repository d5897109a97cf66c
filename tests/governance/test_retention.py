"""What is past its last day is deleted, and the log says so."""

import datetime as dt

import pytest

from hubbub.errors import RefusedError
from hubbub.events import Proposed
from hubbub.governance import sweep
from hubbub.governance.acts import OpenIncident

DAY = 86_400


@pytest.fixture
def ageing(founded):
    """Give a federation with two datasets of clinic 1, the second of which lives a day longer, and one of clinic 2."""
    first = dt.datetime.fromtimestamp(founded.now, dt.UTC).date()
    founded.short = founded.register(1, retention=first)
    founded.long = founded.register(1, version="b", retention=first + dt.timedelta(days=1))
    founded.foreign = founded.register(2, retention=first)
    return founded


def swept(world, who, store, *, is_gone=False):
    """Sweep a store of records with somebody's key, and record what was done."""

    def delete(dataset, participant):
        assert participant == f"node-{who[-1]}"
        was_there = dataset in store
        store.discard(dataset)
        return was_there or is_gone

    envelopes = sweep(world.state, world.keys[who], world.now, delete)
    for envelope in envelopes:
        world.record(world.state.event(envelope, world.now))
    return envelopes


def test_nothing_is_deleted_before_its_day_is_over(ageing):
    store = {ageing.short, ageing.long, ageing.foreign}
    assert swept(ageing, "node-1", store) == []
    assert len(store) == 3


@pytest.mark.parametrize("who", ["node-1", "owner-1"])
def test_what_is_past_its_day_is_deleted_and_logged_once_by_its_owner(ageing, who):
    store = {ageing.short, ageing.long, ageing.foreign}
    ageing.now += DAY
    (envelope,) = swept(ageing, who, store)
    assert store == {ageing.long, ageing.foreign}
    assert ageing.log[-1] == Proposed(envelope=envelope)
    assert ageing.state.datasets[ageing.short].is_erased
    assert not ageing.state.datasets[ageing.long].is_erased
    assert swept(ageing, who, store) == []
    ageing.now += DAY
    assert len(swept(ageing, who, store)) == 1
    assert store == {ageing.foreign}
    assert ageing.replayed() == ageing.state


def test_whoever_may_not_record_it_deletes_nothing(ageing, made_keys):
    store = {ageing.short}
    ageing.now += DAY
    for keys in (made_keys("lab-1", "clinic-1", "data-scientist"), ageing.keys["officer-1"]):
        ageing.keys["x-1"] = keys
        with pytest.raises(RefusedError, match=r"must be in force, found an unknown one|may not ask for erase-dataset"):
            swept(ageing, "x-1", store)
    assert store == {ageing.short}


def test_a_crash_between_deleting_and_logging_leaves_it_due(ageing):
    store = {ageing.short}
    ageing.now += DAY
    sweep(ageing.state, ageing.keys["node-1"], ageing.now, lambda dataset, _: store.discard(dataset) is None)
    assert store == set()
    assert len(swept(ageing, "node-1", store, is_gone=True)) == 1


def test_what_is_not_known_to_be_gone_is_not_recorded_and_stays_due(ageing):
    ageing.now += 2 * DAY
    (envelope,) = swept(ageing, "node-1", {ageing.long})
    assert ageing.log[-1] == Proposed(envelope=envelope)
    assert ageing.state.datasets[ageing.long].is_erased
    assert not ageing.state.datasets[ageing.short].is_erased
    assert ageing.short in {due.id for due in ageing.state.due(ageing.now)}


def test_an_incident_that_waits_is_not_swept(ageing):
    ageing.propose("scientist", OpenIncident(severity="S1", summary=""))
    ageing.now += 3600
    assert ageing.state.due(ageing.now)
    assert swept(ageing, "node-1", set()) == []
