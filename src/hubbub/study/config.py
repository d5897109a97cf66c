"""study.toml as frozen structs.

Ranges of single values stand on the fields; rules that join several settings stand in `rules.py`.
Only `Speed` may change without a new approval: it never alters what is computed, and no hash covers it.
"""

import difflib
import hashlib
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from hubbub.errors import StudyError

Probability = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
Norm = Annotated[float, Meta(ge=1e-9, le=1e9)]
WIDEST = 60
"""Most characters of a wrong value that an error repeats."""

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Purpose = Literal[
    "research", "care", "quality", "public-health", "statistics", "education", "fraud-prevention", "security", "product"
]
"""What data may be used for; a dataset's owner allows some of these, a study has one."""


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of study.toml: immutable, and an unknown key is an error."""


class Header(Frozen, frozen=True):
    """`[study]`: what this is called and for."""

    name: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    purpose: Purpose = "research"
    code: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]+\.py\Z")] = "study.py"


class Column(Frozen, frozen=True):
    """One declared column: exact dtype, shape of one record's value, number of classes if it is a label."""

    dtype: Literal["float32", "float64", "int64", "int32", "uint8"]
    shape: tuple[Count, ...] = ()
    classes: Annotated[int, Meta(ge=2, le=1_000_000)] | None = None


class Data(Frozen, frozen=True):
    """`[data]`: the only columns that are read."""

    x: Column
    y: Column


class Privacy(Frozen, frozen=True):
    """`[privacy]`: who is protected, how much, and who adds the noise."""

    unit: Literal["example", "client"]
    noise: Literal["distributed", "server", "local", "none"]
    epsilon: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    noise_source: Literal["os", "float-simulation"] = "os"
    sums: Literal["masked", "clear"] | None = None
    differencing: Literal["blocks", "accepted"] = "blocks"
    max_norm: Norm = 1.0
    retries: Annotated[int, Meta(ge=0, le=10_000)] | None = None

    @property
    def is_masked(self) -> bool:
        """Whether nobody may see more than a sum: always with distributed noise, where asked for otherwise."""
        return self.noise == "distributed" or self.sums == "masked"


class Cohort(Frozen, frozen=True):
    """`[cohort]`: which participants take part in a round."""

    participants: Literal["everyone", "fixed", "secret-poisson"] = "everyone"
    size: Count | None = None
    probability: Probability | None = None
    minimum: Count | None = None
    colluding: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    dropouts: Annotated[float, Meta(ge=0, lt=1)] = 0.1


class Sampling(Frozen, frozen=True):
    """`[sampling]`: which of its examples a participant uses in a round (unit = "example")."""

    examples: Literal["poisson", "everything"] = "everything"
    probability: Probability | None = None


class Training(Frozen, frozen=True):
    """`[training]`: the algorithm and its rates."""

    algorithm: Literal["dp-sgd", "local-dp-sgd", "fedavg", "fedavgm"]
    rounds: Count
    learning_rate: Positive
    server_learning_rate: Positive = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    local_epochs: Count = 1
    local_steps: Count = 1
    weights: Literal["equal", "examples"] = "equal"
    batch_size: Count = 32


class Success(Frozen, frozen=True):
    """`[success]`: what the released model must reach on the test data."""

    accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    loss: Annotated[float, Meta(gt=0, le=1e9)] | None = None


class Attack(Frozen, frozen=True):
    """`[attack]`: whether a release waits for the red team."""

    release: Literal["none"] = "none"


class Governance(Frozen, frozen=True):
    """`[governance]`: where a run waits for people."""

    reviews: tuple[Count, ...] = ()


class Speed(Frozen, frozen=True):
    """`[speed]`: never part of what is approved, never changes a result."""

    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    secagg: Literal["run", "elide"] = "run"


class Settings(Frozen, frozen=True):
    """A whole study.toml."""

    study: Header
    data: Data
    privacy: Privacy
    training: Training
    cohort: Cohort = Cohort()
    sampling: Sampling = Sampling()
    success: Success = Success()
    attack: Attack = Attack()
    governance: Governance = Governance()
    speed: Speed = Speed()

    def approved_hash(self) -> str:
        """SHA-256 of everything that approvers approve: all tables but `[speed]`."""
        approved = {name: getattr(self, name) for name in self.__struct_fields__ if name != "speed"}
        return hashlib.sha256(msgspec.json.encode(approved, order="deterministic")).hexdigest()


def read_settings(document: Path | dict[str, Any]) -> Settings:
    """Read a study.toml, or the same tables as a dict, into checked `Settings`.

    Args:
        document: Path of a TOML file, or its tables.

    Raises:
        StudyError: With where, rule, found and a hint, for any byte string or dict whatever.
    """
    from hubbub.study.rules import check_rules

    if isinstance(document, Path):
        source, tables = document.name, _parse(document)
    else:
        source, tables = "study", document
    try:
        settings = msgspec.convert(tables, Settings)
        settings.approved_hash()  # what has no UTF-8 has no hash
    except msgspec.ValidationError as error:
        raise _explain(error, tables, source) from None
    except UnicodeEncodeError:
        raise StudyError(f"{source}, must be Unicode text, found half a character", hint="retype the value") from None
    _refuse_non_finite(tables, source)
    check_rules(settings, source)
    return settings


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise StudyError(
            f"{path}, must be a readable study file, {error.strerror or error}",
            hint="hubbub new DIR makes a study that runs",
        ) from None
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path.name}, must be UTF-8 text, byte {error.start} is not",
            hint="save the file as UTF-8",
        ) from None
    except (ValueError, RecursionError) as error:  # of which a number with too many digits is one
        raise StudyError(
            f"{path.name}, must be TOML, {_lower_first(str(error))}",
            hint="strings need quotes, tables stand in [brackets]",
        ) from None


_PATH = re.compile(r"^(?P<rule>.*?)(?: - at (?P<is_key>`key` in )?`\$(?P<path>[\w.\[\]]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"`([^`]*)`")


def _explain(error: msgspec.ValidationError, tables: Any, source: str) -> StudyError:
    match = _PATH.match(str(error))
    rule = match["rule"] if match else str(error)
    keys = [key for key in re.split(r"[.\[\]]+", (match["path"] or "") if match else "") if key]
    named = _FIELD.findall(rule)
    struct = _struct_at(keys)
    found = _value_at(tables, keys)
    if "unknown field" in rule:
        known = list(struct.__struct_fields__)
        unknown = next(key for key in found if key not in known)  # from the table: a key can look like a message
        close = difflib.get_close_matches(unknown, known, n=1)
        where = ".".join([*keys, unknown[:WIDEST] if unknown.isprintable() else _show(unknown)])
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return StudyError(f"{source}: {where}, unknown key, found {_show(unknown)}", hint=hint)
    if "missing required field" in rule:
        where = ".".join([*keys, named[0]])
        fields = msgspec.structs.fields(_struct_at(named))
        needed = ", ".join(f"{field.name} = ..." for field in fields if field.required)
        return StudyError(
            f"{source}: {where}, is required, found nothing",
            hint=f"add {named[0]} = ... under [{'.'.join(keys)}]" if keys else f"add [{where}] with {needed}",
        )
    choices = _choices(struct_keys=keys)
    if choices:
        close = difflib.get_close_matches(str(found), choices, n=1)
        rule = f"must be one of {', '.join(map(repr, choices))}"
        hint = f"did you mean {close[0]!r}?" if close else f"{keys[-1]} = {choices[0]!r}"
    elif match and match["is_key"]:
        rule, hint = "must have keys of text", _example(keys)
    elif rule == "Number out of range":
        rule, hint = "must be a number of everyday size", _example(keys)
    else:
        rule = "must be " + rule.replace("Expected ", "").replace("`", "").replace(" | null", "")
        rule = rule.replace(r"\\A", "^").replace(r"\\Z", "$")  # as people write it
        rule = rule.partition(", got")[0].replace("object", "a table").replace("array", "a list")
        hint = _example(keys)
    return StudyError(f"{source}: {'.'.join(keys) or 'study'}, {rule}, found {_show(found)}", hint=hint)


def _value_at(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value[int(key)] if isinstance(value, list | tuple) else value[key]
    return value


def _struct_at(keys: list[str]) -> Any:
    struct: Any = Settings
    for key in keys:
        fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
        kind = fields.get(key)
        if not (isinstance(kind, type) and issubclass(kind, Frozen)):
            break
        struct = kind
    return struct


_EXAMPLES = {
    "study": '[study] name = "heart" on two lines',
    "study.name": 'name = "heart-2024": lower case letters, digits and hyphens',
    "data.x": 'x = { dtype = "float32", shape = [30] }',
    "data.y": 'y = { dtype = "int64", classes = 2 }',
    "data.x.shape": "shape = [30]",
    "data.x.classes": "classes = 10",
    "data.y.classes": "classes = 2",
    "privacy.epsilon": "epsilon = 3.0",
    "privacy.retries": "retries = 2",
    "cohort.size": "size = 10",
    "cohort.probability": "probability = 0.25",
    "cohort.minimum": "minimum = 4",
    "sampling.probability": "probability = 0.25",
    "training.rounds": "rounds = 60",
    "training.learning_rate": "learning_rate = 1.0",
    "governance.reviews": "reviews = [20, 40]",
    "success.accuracy": "accuracy = 0.9",
    "success.loss": "loss = 0.5",
}


def _example(keys: list[str]) -> str:
    named = (key for key in keys if not key.isdigit())  # a value in a list is told by the list's example
    if example := _EXAMPLES.get(".".join(named)):
        return example
    struct = _struct_at(keys[:-1])
    defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
    default = defaults.get(keys[-1], msgspec.NODEFAULT) if keys else msgspec.NODEFAULT
    if isinstance(default, str | int | float):
        return f"leave it out for the default, {default!r}"
    known = ", ".join(_struct_at(keys).__struct_fields__)
    return f"[{'.'.join(keys)}] is a table: {known}" if keys else f"a study has the tables {known}"


def _choices(struct_keys: list[str]) -> list[str]:
    struct = _struct_at(struct_keys[:-1])
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    kind = fields.get(struct_keys[-1]) if struct_keys else None
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def _refuse_non_finite(value: Any, source: str, where: str = "") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_non_finite(inner, source, f"{where}.{key}".lstrip("."))
    elif isinstance(value, float) and not math.isfinite(value):
        raise StudyError(
            f"{source}: {where}, must be a finite number, found {value!r}",
            hint='for no noise at all write noise = "none" and no epsilon',
        )


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
