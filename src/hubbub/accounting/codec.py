"""DpEvents as JSON: what a ledger stores, a plan signs and a verifier reads back.

`dp_accounting` can rebuild an event from a named tuple by importing whatever module the tuple names;
a ledger is read by people who do not trust its writer, so this codec knows eight classes and refuses
everything else:

    {"@": "SelfComposedDpEvent", "count": 1000, "event":
        {"@": "PoissonSampledDpEvent", "sampling_probability": 0.01, "event":
            {"@": "GaussianDpEvent", "noise_multiplier": 1.1}}}

*Trust:* reads documents written by strangers; whoever gets a smaller event past it buys budget that
nobody granted.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from hubbub.errors import InputError

if TYPE_CHECKING:
    import dp_accounting

MAX_DEPTH = 32
MAX_COUNT = 10**9
_SHOWN = 60


def _refuse(where: str, rule: str, found: object) -> InputError:
    try:
        shown = repr(found)
    except ValueError:  # an integer of more than 4300 digits
        shown = "a huge number"
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
    return InputError(f"{where}, {rule}, found {shown}", hint="write events with hubbub.accounting.codec.encode")


def _number(value: object, where: str, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(where, "must be a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (0 <= number <= most and math.isfinite(number)):
        raise _refuse(where, f"must be finite, at least 0 and at most {most:g}", value)
    return abs(number)


def _probability(value: object, where: str, _depth: int) -> float:
    return _number(value, where, most=1.0)


def _scale(value: object, where: str, _depth: int) -> float:
    return _number(value, where)


def _count(value: object, where: str, _depth: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise _refuse(where, f"must be a whole number from 0 to {MAX_COUNT}", value)
    return int(value)


def _size(value: object, where: str, depth: int) -> int:
    if value == 0:
        raise _refuse(where, "must be at least 1", value)
    return _count(value, where, depth)


def _event(value: object, where: str, depth: int) -> dict[str, Any]:
    return _normal(value, where, depth + 1)


def _events(value: object, where: str, depth: int) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise _refuse(where, "must be a list of events", value)
    items = cast("list[object] | tuple[object, ...]", value)
    return [_normal(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(items)]


_FIELDS: dict[str, dict[str, Callable[[object, str, int], Any]]] = {
    "NoOpDpEvent": {},
    "NonPrivateDpEvent": {},
    "GaussianDpEvent": {"noise_multiplier": _scale},
    "ZCDpEvent": {"rho": _scale, "xi": _scale},
    "PoissonSampledDpEvent": {"sampling_probability": _probability, "event": _event},
    "SampledWithoutReplacementDpEvent": {
        "source_dataset_size": _size,
        "sample_size": _count,
        "event": _event,
    },
    "SelfComposedDpEvent": {"count": _count, "event": _event},
    "ComposedDpEvent": {"events": _events},
}


def _normal(document: object, where: str, depth: int) -> dict[str, Any]:
    """Check one level of a document and everything below it; numbers become the types they stand for."""
    if depth > MAX_DEPTH:
        raise _refuse(where, f"must not be nested deeper than {MAX_DEPTH}", "a deeper one")
    if not isinstance(document, Mapping):
        raise _refuse(where, "must be an object with the key '@'", document)
    given = dict(cast("Mapping[object, object]", document))
    name = given.pop("@", None)
    if not isinstance(name, str) or name not in _FIELDS:
        raise _refuse(f"{where}['@']", f"must be one of {', '.join(_FIELDS)}", name)
    fields = _FIELDS[name]
    if given.keys() != fields.keys():
        keys = ", ".join(fields) or "none"
        raise _refuse(f"{where} ({name})", f"must have exactly the keys: {keys}", list(given))
    checked = {key: check(given[key], f"{where}.{key}", depth) for key, check in fields.items()}
    if name == "SampledWithoutReplacementDpEvent" and checked["sample_size"] > checked["source_dataset_size"]:
        raise _refuse(f"{where}.sample_size", "must not exceed source_dataset_size", given["sample_size"])
    return {"@": name, **checked}


def check(document: object) -> dict[str, Any]:
    """Return a copy of a document in its normal form, or refuse it; cheap, no `dp_accounting` needed.

    Guarantees:
        The result holds only whitelisted names, with exactly their keys, plain floats and ints in
        range. Equal events have equal normal forms. Nothing but InputError is ever raised.
    """
    try:
        return _normal(document, "event", 1)
    except RecursionError:  # a value whose repr is bottomless
        raise _refuse("event", "must not contain itself", "a cycle") from None


def _document(event: object, depth: int) -> object:
    kind = type(event)
    if depth > MAX_DEPTH or kind.__name__ not in _FIELDS or not kind.__module__.startswith("dp_accounting."):
        return {"@": f"{kind.__module__}.{kind.__name__}"}  # refused by `check`, which has the words
    document: dict[str, object] = {"@": kind.__name__}
    for key in _FIELDS[kind.__name__]:
        value = getattr(event, key)
        if key == "event":
            value = _document(value, depth + 1)
        elif key == "events" and isinstance(value, list | tuple):
            value = [_document(item, depth + 1) for item in cast("Iterable[object]", value)]
        document[key] = value
    return document


def encode(event: "dp_accounting.DpEvent") -> dict[str, Any]:
    """Write an event as a JSON-able document.

    Raises:
        InputError: The event, or one inside it, is not whitelisted or holds a number out of range.
    """
    return check(_document(event, 1))


def _build(document: dict[str, Any]) -> "dp_accounting.DpEvent":
    import dp_accounting

    fields = {key: value for key, value in document.items() if key != "@"}
    if "event" in fields:
        fields["event"] = _build(fields["event"])
    if "events" in fields:
        fields["events"] = [_build(item) for item in fields["events"]]
    return getattr(dp_accounting, document["@"])(**fields)


def decode(document: object) -> "dp_accounting.DpEvent":
    """Rebuild the event that a document describes.

    Guarantees:
        ``encode(decode(d)) == check(d)`` and ``decode(encode(e)) == e``. No name from the document is
        ever imported, called or looked up outside the whitelist.

    Raises:
        InputError: Anything unknown, missing, extra, out of range or nested deeper than `MAX_DEPTH`.
    """
    return _build(check(document))
