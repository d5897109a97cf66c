"""study.toml: what is refused and in which words, and that nothing but a StudyError ever comes out."""

import copy
import datetime as dt
import inspect
import math
import tomllib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import StudyError
from hubbub.study import read_settings
from hubbub.study.config import Settings, Speed

VALID = """
[study]
name = "heart"
seed = 7
purpose = "research"
code = "study.py"
[data]
x = { dtype = "float32", shape = [30] }
y = { dtype = "int64", classes = 2 }
[privacy]
unit = "example"
epsilon = 3.0
delta = 1e-5
noise = "server"
noise_source = "os"
max_norm = 1.0
retries = 2
[cohort]
participants = "everyone"
minimum = 4
colluding = 1
dropouts = 0.1
[sampling]
examples = "poisson"
probability = 0.25
[training]
algorithm = "dp-sgd"
rounds = 60
learning_rate = 2.0
server_learning_rate = 1.0
momentum = 0.5
local_epochs = 1
local_steps = 1
batch_size = 32
[success]
accuracy = 0.93
loss = 1.0
[attack]
release = "none"
[speed]
workers = 2
secagg = "run"
"""


def tables():
    return tomllib.loads(VALID)


def changed(**values):
    """The valid tables with `table__key=value`; None removes the key."""
    result = tables()
    for path, value in values.items():
        *outer, key = path.split("__")
        table = result
        for name in outer:
            table = table.setdefault(name, {})
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    return result


def refusal(document):
    with pytest.raises(StudyError) as caught:
        read_settings(document)
    return caught.value.message, caught.value.hint


def client(**values):
    """A valid client-level study, changed."""
    base = {
        "privacy__unit": "client",
        "training__algorithm": "fedavgm",
        "sampling__examples": None,
        "sampling__probability": None,
    }
    return changed(**(base | values))


def local_steps(**values):
    return changed(**({"privacy__noise": "local", "training__algorithm": "local-dp-sgd"} | values))


def test_a_valid_study_is_read_from_a_file_and_from_tables_alike(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(VALID)
    assert read_settings(path) == read_settings(tables())


@pytest.mark.parametrize("document", [client(), local_steps(), changed(privacy__noise="local")])
def test_each_unit_has_a_study_that_is_accepted(document):
    assert isinstance(read_settings(document), Settings)


RULES = {
    "distributed noise over a part of the roster": (
        changed(privacy__noise="distributed", cohort__participants="fixed", cohort__size=3),
        ("study: cohort.participants, masked sums are over the whole roster, found participants = 'fixed'"),
        'participants = "everyone", or noise = "server"',
    ),
    "distributed noise without anybody curious": (
        changed(privacy__noise="distributed", cohort__colluding=0),
        (
            "study: cohort.colluding, must be at least 1 with distributed noise: "
            "a curious participant subtracts its own share, found 0"
        ),
        "colluding = 1",
    ),
    "epsilon without noise": (
        changed(privacy__noise="none"),
        "study: privacy.epsilon, must be left out without noise, found 3.0",
        "remove epsilon",
    ),
    "noise source without noise": (
        changed(privacy__noise="none", privacy__epsilon=None, privacy__noise_source="float-simulation"),
        "study: privacy.noise_source, must be left out without noise, found 'float-simulation'",
        "remove noise_source",
    ),
    "noise without epsilon": (
        changed(privacy__epsilon=None),
        "study: privacy.epsilon, is required with noise = 'server', found nothing",
        "epsilon = 3.0",
    ),
    "large delta": (
        changed(privacy__delta=1e-4),
        "study: privacy.delta, must be at most 1e-05, found 0.0001",
        "delta = 1e-05",
    ),
    "fixed without size": (
        changed(cohort__participants="fixed"),
        "study: cohort.size, is required with participants = 'fixed', found nothing",
        "add cohort.size",
    ),
    "size without fixed": (
        changed(cohort__size=3),
        "study: cohort.size, belongs to participants = 'fixed', found participants = 'everyone'",
        "remove cohort.size, or participants = 'fixed'",
    ),
    "secret Poisson without probability": (
        client(cohort__participants="secret-poisson"),
        "study: cohort.probability, is required with participants = 'secret-poisson', found nothing",
        "add cohort.probability",
    ),
    "probability without secret Poisson": (
        client(cohort__probability=0.5),
        "study: cohort.probability, belongs to participants = 'secret-poisson', found participants = 'everyone'",
        "remove cohort.probability, or participants = 'secret-poisson'",
    ),
    "secret Poisson with local noise": (
        client(cohort__participants="secret-poisson", cohort__probability=0.5, privacy__noise="local"),
        (
            "study: cohort.participants, 'secret-poisson' amplifies nothing where each participant adds its own "
            "noise, found noise = 'local'"
        ),
        'participants = "everyone" or "fixed"',
    ),
    "secret Poisson of participants for examples": (
        changed(cohort__participants="secret-poisson", cohort__probability=0.5),
        "study: cohort.participants, 'secret-poisson' protects unit = 'client', found unit = 'example'",
        'participants = "everyone" or "fixed", and sample examples under [sampling]',
    ),
    "Poisson examples for clients": (
        client(sampling__examples="poisson", sampling__probability=0.5),
        "study: sampling.examples, 'poisson' belongs to unit = 'example', found unit = 'client'",
        "remove [sampling]: local epochs use every example",
    ),
    "Poisson without probability": (
        changed(sampling__probability=None),
        "study: sampling.probability, is required with examples = 'poisson', found nothing",
        "probability = 0.25",
    ),
    "probability without Poisson": (
        changed(sampling__examples="everything"),
        "study: sampling.probability, belongs to examples = 'poisson', found examples = 'everything'",
        'examples = "poisson"',
    ),
    "algorithm of the other unit": (
        changed(training__algorithm="fedavg"),
        "study: training.algorithm, 'fedavg' protects unit = 'client', found unit = 'example'",
        "algorithm: 'dp-sgd', 'local-dp-sgd'",
    ),
    "example algorithm for clients": (
        client(training__algorithm="dp-sgd"),
        "study: training.algorithm, 'dp-sgd' protects unit = 'example', found unit = 'client'",
        "algorithm: 'fedavg', 'fedavgm'",
    ),
    "local-dp-sgd with server noise": (
        local_steps(privacy__noise="server"),
        "study: privacy.noise, 'local-dp-sgd' adds its noise at every local step, found noise = 'server'",
        'noise = "local"',
    ),
    "momentum in fedavg": (
        client(training__algorithm="fedavg"),
        "study: training.momentum, plain 'fedavg' has no server momentum, found 0.5",
        'algorithm = "fedavgm"',
    ),
    "a review after the last round": (
        changed(governance__reviews=[20, 60]),
        (
            "study: governance.reviews, must be round numbers in ascending order below training.rounds = 60, "
            "found [20, 60]"
        ),
        "reviews = [30]",
    ),
    "one review twice": (
        changed(governance__reviews=[20, 20]),
        (
            "study: governance.reviews, must be round numbers in ascending order below training.rounds = 60, "
            "found [20, 20]"
        ),
        "reviews = [30]",
    ),
    "a review of the only round": (
        changed(governance__reviews=[1], training__rounds=1, privacy__retries=0),
        "study: governance.reviews, must be round numbers in ascending order below training.rounds = 1, found [1]",
        "leave reviews out: there is one round",
    ),
    "more retries than rounds": (
        changed(privacy__retries=61),
        "study: privacy.retries, must not exceed training.rounds, found 61",
        "retries = 2",
    ),
}


@pytest.mark.parametrize(("document", "message", "hint"), RULES.values(), ids=RULES)
def test_settings_that_cannot_be_meant_together_are_refused(document, message, hint):
    assert refusal(document) == (message, hint)


VALUES = {
    "study__name": ("Heart!", "must be str matching regex '^[a-z0-9][a-z0-9-]{0,62}$'", "lower case letters, digits"),
    "study__seed": (-1, "must be int >= 0", "leave it out for the default, 0"),
    "study__purpose": ("reserch", "must be one of 'research', 'care'", "did you mean 'research'?"),
    "governance__reviews": ([0], "study: governance.reviews.0, must be int >= 1", "reviews = [20, 40]"),
    "study__code": ("../x.py", "must be str matching regex", "leave it out for the default, 'study.py'"),
    "data__x": (3, "must be a table", 'x = { dtype = "float32", shape = [30] }'),
    "data__x__shape": ([0], "study: data.x.shape.0, must be int >= 1", "shape = [30]"),
    "data__x__dtype": ("float23", "must be one of 'float32', 'float64'", "did you mean 'float32'?"),
    "data__y__classes": (1, "must be int >= 2", "classes = 2"),
    "privacy__unit": ("record", "must be one of 'example', 'client'", "unit = 'example'"),
    "privacy__noise": ("sever", "must be one of", "did you mean 'server'?"),
    "privacy__epsilon": (0.0, "must be float > 0.0", "epsilon = 3.0"),
    "privacy__delta": (1.0, "must be float < 1.0", "leave it out for the default, 1e-05"),
    "privacy__max_norm": (5e-324, "must be float >= 1e-09", "leave it out for the default, 1.0"),
    "privacy__retries": (-1, "must be int >= 0", "retries = 2"),
    "cohort__minimum": (0, "must be int >= 1", "minimum = 4"),
    "cohort__colluding": (-1, "must be int >= 0", "leave it out for the default, 1"),
    "cohort__dropouts": (1.0, "must be float < 1.0", "leave it out for the default, 0.1"),
    "sampling__probability": (0.0, "must be float > 0.0", "probability = 0.25"),
    "training__rounds": (1.5, "must be int", "rounds = 60"),
    "training__learning_rate": (-1.0, "must be float > 0.0", "learning_rate = 1.0"),
    "training__momentum": (1.0, "must be float < 1.0", "leave it out for the default, 0.0"),
    "success__accuracy": (1.1, "must be float <= 1.0", "accuracy = 0.9"),
    "success__loss": ("low", "must be float", "loss = 0.5"),
    "attack__release": ("required", "must be one of 'none'", "release = 'none'"),
    "speed__workers": (0, "must be int >= 1", "leave it out for the default, 1"),
    "speed__secagg": (True, "must be one of 'run', 'elide'", "secagg = 'run'"),
}


@pytest.mark.parametrize("path", VALUES)
def test_a_value_out_of_range_is_refused_by_its_place_with_something_to_type(path):
    value, words, hint = VALUES[path]
    message, found_hint = refusal(changed(**{path: value}))
    assert message.startswith(f"study: {path.replace('__', '.')}")
    assert words in message
    assert "found " in message
    assert hint in found_hint


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("study", "name = ..."),
        ("data", "x = ..., y = ..."),
        ("privacy", "unit = ..., noise = ..."),
        ("training", "algorithm = ..., rounds = ..., learning_rate = ..."),
    ],
)
def test_a_missing_table_is_named_with_the_keys_that_it_must_have(path, keys):
    message, hint = refusal(changed(**{path: None}))
    assert message == f"study: {path}, is required, found nothing"
    assert hint == f"add [{path}] with {keys}"


def test_a_missing_key_is_named():
    assert refusal(changed(training__rounds=None)) == (
        "study: training.rounds, is required, found nothing",
        "add rounds = ... under [training]",
    )


def test_an_unknown_key_is_answered_with_the_nearest_known_one():
    message, hint = refusal(changed(privacy__epsilom=1.0))
    assert message == "study: privacy.epsilom, unknown key, found 'epsilom'"
    assert hint == "did you mean 'epsilon'?"


def test_an_unknown_key_like_no_other_is_answered_with_all_known_ones():
    message, hint = refusal(changed(sampling__zzz=1.0))
    assert message == "study: sampling.zzz, unknown key, found 'zzz'"
    assert hint == "known here: examples, probability"


@pytest.mark.parametrize("key", ["a.b - at `$x`", "we`ird", "", "a - at `$.privacy`", " - at `key` in `$`"])
@pytest.mark.parametrize("table", ["", "privacy"])
def test_an_unknown_key_that_looks_like_a_message_is_still_named(key, table):
    document = tables()
    (document[table] if table else document)[key] = 1
    message, _ = refusal(document)
    assert message.endswith(f"unknown key, found {key!r}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", ["privacy__epsilon", "privacy__max_norm", "training__learning_rate", "success__loss"])
def test_no_setting_is_nan_or_infinite(path, value):
    message, hint = refusal(changed(**{path: value}))
    assert f"study: {path.replace('__', '.')}, must be" in message
    assert repr(value) in message
    assert hint


def test_a_syntax_error_shows_line_and_column(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[study]\nname = heart\n")
    message, hint = refusal(path)
    assert message == "study.toml, must be TOML, invalid value (at line 2, column 8)"
    assert hint == "strings need quotes, tables stand in [brackets]"


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(b"[study]\nname = \xff")
    assert refusal(path) == ("study.toml, must be UTF-8 text, byte 15 is not", "save the file as UTF-8")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    message, hint = refusal(tmp_path / name)
    assert "must be a readable study file, " in message
    assert hint == "hubbub new DIR makes a study that runs"


def test_tables_nested_without_end_are_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    message, _ = refusal(changed(training__rounds=deep))
    assert message == "study: training.rounds, must be int, found a list nested too deeply"


def test_toml_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("x = " + "[" * 100_000)
    message, _ = refusal(path)
    assert "must be TOML" in message


def test_a_number_of_too_many_digits_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("x = " + "9" * 5_000)
    message, _ = refusal(path)
    assert "must be TOML, exceeds the limit" in message


@pytest.mark.parametrize("path", ["study__purpose", "privacy__noise", "privacy__epsilon"])
def test_half_a_character_is_refused(path):
    message, hint = refusal(changed(**{path: "\ud800"}))
    assert message == "study, must be Unicode text, found half a character"
    assert hint == "retype the value"


def test_a_long_value_is_cut_in_the_message():
    message, _ = refusal(changed(study__name="x" * 1000))
    assert len(message) < 200
    assert message.endswith("xxx...")


@pytest.mark.parametrize("document", [[], None, 3, "text"])
def test_what_is_no_table_is_refused(document):
    with pytest.raises(StudyError) as caught:
        inspect.unwrap(read_settings)(document)
    assert "must be a table" in caught.value.message
    assert "a study has the tables study, data, privacy" in caught.value.hint


def test_keys_that_are_no_text_are_refused():
    document = changed(success={1: 2})
    assert refusal(document)[0] == "study: success, must have keys of text, found {1: 2}"


# --- what is approved


def leaves(struct, path=()):
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if isinstance(value, msgspec.Struct):
            yield from leaves(value, (*path, field.name))
        else:
            yield (*path, field.name), value


def with_leaf(struct, path, value):
    name, *rest = path
    inner = with_leaf(getattr(struct, name), rest, value) if rest else value
    return msgspec.structs.replace(struct, **{name: inner})


ALL = read_settings(tables())


@pytest.mark.parametrize("path", [path for path, _ in leaves(ALL)], ids=".".join)
def test_every_setting_but_speed_is_part_of_what_is_approved(path):
    other = with_leaf(ALL, path, "something else")
    assert (other.approved_hash() == ALL.approved_hash()) == (path[0] == "speed")


def test_no_setting_was_forgotten_by_the_test_above():
    assert {path[0] for path, _ in leaves(ALL)} == set(Settings.__struct_fields__)
    assert len([path for path, _ in leaves(ALL) if path[0] == "speed"]) == len(Speed.__struct_fields__)


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        ALL.privacy.epsilon = 100.0


# --- any document whatever


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.binary(max_size=4),
    st.dates(),
    st.just(dt.time(1, 2)),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5) | st.integers(), st.integers(), max_size=3),
)
NEAR = st.one_of(
    st.floats(1e-6, 1e-5),
    st.floats(0.01, 0.9),
    st.integers(1, 40),
    st.sampled_from(["example", "client", "server", "local", "none", "everyone", "fixed", "poisson", "everything"]),
    st.sampled_from(["dp-sgd", "fedavg", "fedavgm", "local-dp-sgd", "float32", "int64", "elide", "heart-2"]),
)
PATHS = [path for path, _ in leaves(ALL)]
RIGHT = {
    ("study", "name"): st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True),
    ("study", "seed"): st.integers(0, 2**32 - 1),
    ("data", "x", "shape"): st.lists(st.integers(1, 64), max_size=3),
    ("data", "y", "classes"): st.integers(2, 1000),
    ("privacy", "epsilon"): st.floats(0.01, 100) | st.integers(1, 100),
    ("privacy", "delta"): st.floats(1e-12, 1e-5),
    ("privacy", "max_norm"): st.floats(1e-9, 1e9),
    ("privacy", "noise"): st.sampled_from(["server", "local"]),
    ("privacy", "retries"): st.integers(0, 60),
    ("cohort", "minimum"): st.integers(1, 1000),
    ("cohort", "dropouts"): st.floats(0, 0.99),
    ("sampling", "probability"): st.floats(1e-6, 1),
    ("training", "rounds"): st.integers(60, 1_000_000),
    ("training", "learning_rate"): st.floats(1e-9, 1e9),
    ("training", "momentum"): st.floats(0, 0.99),
    ("success", "accuracy"): st.floats(0, 1) | st.sampled_from([0, 1]),
    ("speed", "workers"): st.integers(1, 256),
    ("speed", "secagg"): st.sampled_from(["run", "elide"]),
}


@st.composite
def mutated(draw):
    """One to three keys replaced, deleted or inserted; mostly one, by a value of the right kind."""
    document = copy.deepcopy(tables())
    if draw(st.sampled_from([True, True, True, True, False])):
        path = draw(st.sampled_from(sorted(RIGHT)))
        table_at(document, path)[path[-1]] = draw(RIGHT[path])
        return document
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PATHS))
        table = table_at(document, path)
        action = draw(st.sampled_from(["replace", "delete", "insert"]))
        if action == "delete":
            table.pop(path[-1], None)
        elif action == "insert":
            table[draw(st.text(max_size=12) | st.sampled_from([path[-1] for path in PATHS]))] = draw(ODD)
        else:
            table[path[-1]] = draw(ODD | NEAR)
    return document


def table_at(document, path):
    """The table that holds the key of this path; a table of its own where there is none."""
    for name in path[:-1]:
        document = document.get(name, {}) if isinstance(document, dict) else {}
    return document if isinstance(document, dict) else {}


def test_no_mutation_of_a_study_ends_in_anything_but_a_study_error():
    outcomes, refused = [], []

    @settings(max_examples=800, deadline=None, derandomize=True, database=None)
    @given(mutated())
    def fuzz(document):
        try:
            read_settings(document)
        except StudyError as error:
            refused.append(error)
        outcomes.append(document)

    fuzz()
    assert len(outcomes) / 20 < len(refused) <= len(outcomes) / 2
    for error in refused:
        assert error.message.startswith("study")
        assert error.message.isprintable()
        assert error.hint


@settings(max_examples=300, deadline=None)
@given(st.recursive(ODD, lambda inner: st.dictionaries(st.sampled_from(["study", "data", "x"]), inner), max_leaves=5))
def test_no_tables_whatever_end_in_anything_but_a_study_error(value):
    with pytest.raises(StudyError):
        read_settings({"study": value, "privacy": value})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_file_whatever_ends_in_anything_but_a_study_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError):
        read_settings(path)
