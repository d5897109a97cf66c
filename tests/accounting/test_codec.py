import copy
import json
import math
import subprocess
import sys

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.accounting import codec
from hubbub.errors import InputError

GOLDEN = (
    '{"@": "SelfComposedDpEvent", "count": 1000, "event": '
    '{"@": "PoissonSampledDpEvent", "sampling_probability": 0.01, "event": '
    '{"@": "GaussianDpEvent", "noise_multiplier": 1.1}}}'
)

scales = st.floats(0, 1e9)
counts = st.integers(0, codec.MAX_COUNT)
leaves = st.one_of(
    st.builds(dp_accounting.NoOpDpEvent),
    st.builds(dp_accounting.NonPrivateDpEvent),
    st.builds(lambda z: dp_accounting.GaussianDpEvent(noise_multiplier=z), scales),
    st.builds(lambda rho, xi: dp_accounting.ZCDpEvent(rho=rho, xi=xi), scales, scales),
)


def _around(inner):
    return st.one_of(
        st.builds(
            lambda q, event: dp_accounting.PoissonSampledDpEvent(sampling_probability=q, event=event),
            st.floats(0, 1),
            inner,
        ),
        st.builds(
            lambda size, extra, event: dp_accounting.SampledWithoutReplacementDpEvent(
                source_dataset_size=size + extra, sample_size=size, event=event
            ),
            st.integers(1, 1000),
            st.integers(0, 1000),
            inner,
        ),
        st.builds(lambda n, event: dp_accounting.SelfComposedDpEvent(event=event, count=n), counts, inner),
        st.builds(lambda events: dp_accounting.ComposedDpEvent(events=events), st.lists(inner, max_size=3)),
    )


events = st.recursive(leaves, _around, max_leaves=6)


def nested(depth):
    document = {"@": "NoOpDpEvent"}
    for _ in range(depth - 1):
        document = {"@": "SelfComposedDpEvent", "count": 1, "event": document}
    return document


def test_the_documented_form_is_what_is_written():
    event = dp_accounting.SelfComposedDpEvent(
        event=dp_accounting.PoissonSampledDpEvent(
            sampling_probability=0.01, event=dp_accounting.GaussianDpEvent(noise_multiplier=1.1)
        ),
        count=1000,
    )
    assert json.dumps(codec.encode(event)) == GOLDEN
    assert codec.decode(json.loads(GOLDEN)) == event


@given(events)
def test_every_event_comes_back_equal_through_json(event):
    document = json.loads(json.dumps(codec.encode(event)))
    assert codec.decode(document) == event
    assert codec.encode(codec.decode(document)) == document == codec.check(document)


@given(events)
def test_checking_copies_and_leaves_the_argument_alone(event):
    document = codec.encode(event)
    before = copy.deepcopy(document)
    assert codec.check(document) is not document
    assert document == before


def test_whole_numbers_are_floats_where_floats_are_meant():
    checked = codec.check({"@": "GaussianDpEvent", "noise_multiplier": 1})
    assert type(checked["noise_multiplier"]) is float
    assert math.copysign(1, codec.check({"@": "ZCDpEvent", "rho": -0.0, "xi": 0})["rho"]) == 1


GAUSSIAN = {"@": "GaussianDpEvent", "noise_multiplier": 1.0}


def poisson(q, event=GAUSSIAN):
    return {"@": "PoissonSampledDpEvent", "sampling_probability": q, "event": event}


def repeated(count):
    return {"@": "SelfComposedDpEvent", "count": count, "event": GAUSSIAN}


def fixed_size(size, sample):
    return {
        "@": "SampledWithoutReplacementDpEvent",
        "source_dataset_size": size,
        "sample_size": sample,
        "event": GAUSSIAN,
    }


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, r"event, must be an object with the key '@', found None"),
        ([GAUSSIAN], r"event, must be an object"),
        ({}, r"event\['@'\], must be one of NoOpDpEvent, .*, found None"),
        ({"@": 3}, r"event\['@'\], must be one of"),
        ({"@": "DpEvent"}, r"found 'DpEvent'"),
        ({"@": "LaplaceDpEvent", "noise_multiplier": 1.0}, r"found 'LaplaceDpEvent'"),
        ({"@": "os.system", "command": "true"}, r"found 'os.system'"),
        ({"@": "__class__"}, r"found '__class__'"),
        ({"@": "GaussianDpEvent"}, r"\(GaussianDpEvent\), must have exactly the keys: noise_multiplier, found"),
        ({**GAUSSIAN, "sensitivity": 1.0}, r"must have exactly the keys: noise_multiplier"),
        ({"@": "NoOpDpEvent", 3: 4}, r"must have exactly the keys: none, found \[3\]"),
        ({**GAUSSIAN, "noise_multiplier": -0.1}, r"noise_multiplier, must be finite, at least 0 and at most inf"),
        ({**GAUSSIAN, "noise_multiplier": math.nan}, r"must be finite.*found nan"),
        ({**GAUSSIAN, "noise_multiplier": math.inf}, r"must be finite.*found inf"),
        ({**GAUSSIAN, "noise_multiplier": 10**400}, r"must be finite.*found 1000.*\.\.\."),
        ({**GAUSSIAN, "noise_multiplier": 10**5000}, r"must be finite.*found a huge number"),
        ({**GAUSSIAN, "noise_multiplier": True}, r"must be a number, found True"),
        ({**GAUSSIAN, "noise_multiplier": "1"}, r"must be a number, found '1'"),
        (poisson(1.0000001), r"sampling_probability, must be finite, at least 0 and at most 1, found"),
        (poisson(-0.1), r"sampling_probability, must be"),
        (poisson(0.5, None), r"event\.event, must be an object"),
        (repeated(1.0), r"count, must be a whole number from 0 to 1000000000, found 1\.0"),
        (repeated(True), r"count, must be a whole number"),
        (repeated(-1), r"count, must be a whole number"),
        (repeated(10**9 + 1), r"count, must be a whole number"),
        (fixed_size(0, 0), r"source_dataset_size, must be at least 1, found 0"),
        (fixed_size(3, 4), r"sample_size, must not exceed source_dataset_size, found 4"),
        ({"@": "ComposedDpEvent", "events": {"0": GAUSSIAN}}, r"events, must be a list of events"),
        ({"@": "ComposedDpEvent", "events": [GAUSSIAN, 7]}, r"event\.events\[1\], must be an object"),
        (nested(codec.MAX_DEPTH + 1), r"must not be nested deeper than 32, found"),
    ],
)
def test_whatever_is_not_whitelisted_is_refused_in_words(document, words):
    with pytest.raises(InputError, match=words) as refusal:
        codec.decode(document)
    assert refusal.value.hint == "write events with hubbub.accounting.codec.encode"


def test_the_deepest_nesting_is_accepted_and_one_more_is_not():
    event = codec.decode(nested(codec.MAX_DEPTH))
    assert codec.encode(event) == nested(codec.MAX_DEPTH)
    with pytest.raises(InputError, match="nested deeper"):
        codec.decode(nested(codec.MAX_DEPTH + 1))
    with pytest.raises(InputError, match="nested deeper"):
        codec.encode(dp_accounting.SelfComposedDpEvent(event=event, count=1))


def test_bottomless_values_are_refused():
    cycle = {"@": "SelfComposedDpEvent", "count": 1}
    cycle["event"] = cycle
    bottomless = []
    for _ in range(100_000):
        bottomless = [bottomless]
    for document in (cycle, {**GAUSSIAN, "noise_multiplier": bottomless}):
        with pytest.raises(InputError):
            codec.check(document)


@pytest.mark.parametrize(
    "event",
    [
        dp_accounting.LaplaceDpEvent(noise_multiplier=1.0),
        dp_accounting.UnsupportedDpEvent(),
        dp_accounting.GaussianDpEvent(noise_multiplier=math.nan),
        dp_accounting.PoissonSampledDpEvent(sampling_probability=2.0, event=dp_accounting.NoOpDpEvent()),
        dp_accounting.ComposedDpEvent(events=None),
        dp_accounting.ComposedDpEvent(events=[dp_accounting.LaplaceDpEvent(noise_multiplier=1.0)]),
        type("GaussianDpEvent", (dp_accounting.DpEvent,), {})(),
    ],
)
def test_events_that_could_not_be_read_back_are_not_written(event):
    with pytest.raises(InputError):
        codec.encode(event)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(list(codec._FIELDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("@"), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_read_or_refused_and_nothing_else(value):
    try:
        event = codec.decode(value)
    except InputError:
        return
    assert codec.decode(codec.encode(event)) == event


@given(events, st.data())
def test_a_document_with_one_wrong_value_is_read_or_refused_and_nothing_else(event, data):
    document = here = codec.encode(event)
    while True:
        key = data.draw(st.sampled_from(sorted(here)))
        if not isinstance(here[key], dict) or data.draw(st.booleans()):
            break
        here = here[key]
    here[key] = data.draw(json_values)
    try:
        read = codec.decode(document)
    except InputError:
        return
    assert codec.encode(read) == codec.check(document)


def test_importing_the_room_does_not_import_the_accounting_library():
    names = ("codec", "gaussian", "epsilon", "calibration", "discrete")
    lines = [f"import hubbub.accounting.{name}" for name in names]
    lines += ["import sys", "assert not {'dp_accounting', 'scipy', 'torch'} & set(sys.modules)"]
    subprocess.run([sys.executable, "-c", "; ".join(lines)], check=True, timeout=60)
