"""What travels between coordinator and participants. No type can carry a record.

Every message of a round names its run, plan, round and attempt, so that an answer to one question can never pass for
an answer to another.

*Trust:* a message is bytes somebody else wrote: `decode_message` refuses all but these types, and each
receiver checks what is in them.
"""

from functools import lru_cache

import msgspec
import numpy as np
from jaxtyping import Float32, UInt32

from hubbub.errors import InputError, RoundError


class RoundOpened(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="open"):
    """The coordinator asks one participant to train: the model is d little-endian float32.

    `payload` opens a session of secure aggregation; it is empty where sums are plain. `parameters` shows the bytes
    that were decoded, which may lie in a file.
    """

    run: str
    plan_hash: str
    round_number: int
    attempt: int
    parameters: memoryview
    payload: bytes = b""


class RoundContinued(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="continued"):
    """A later message of the coordinator in a session of secure aggregation."""

    run: str
    plan_hash: str
    round_number: int
    attempt: int
    payload: bytes


class Contribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="contribution"):
    """A participant's answer.

    `payload` is one element of the ring per parameter, d little-endian uint32, where sums are plain; an
    envelope of secure aggregation otherwise. It shows the bytes that were decoded, which may lie in a file.
    """

    run: str
    plan_hash: str
    round_number: int
    attempt: int
    participant: str
    payload: memoryview


class CosignAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cosign"):
    """A request to a participant's witness, as `tlog.witness` reads it."""

    request: bytes


class Cosigned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cosigned"):
    """What the witness answered, and how many entries the participant's copy of the log has."""

    status: int
    body: bytes
    content_type: str
    entries: int


class LogShown(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="log"):
    """A cosigned head and the entries up to it, as `participant.opening` reads them."""

    opening: bytes


class StudyOffered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="study"):
    """Whether a participant holds a study, by the hashes of its settings and its code, and its data for it."""

    study_hash: str
    code_hash: str


class StudyHeld(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="held"):
    """It does: the public number of its slots, a salted commitment to its records, the size of the model."""

    slots: int
    data_commitment: str
    parameters: int


class RunOffered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="run"):
    """A run that stands reserved in the log that was shown last.

    `lock` is what its plan follows from; `evidence` is of the machine that the coordinator runs on, or empty.
    """

    run: str
    plan_hash: str
    study_hash: str
    code_hash: str
    lock: bytes
    evidence: bytes = b""


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="done"):
    """The participant did what it was asked, and has nothing to say about it."""


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """A participant's refusal, by a code: its words stay at the site, where they may say more."""

    code: str


Message = (
    RoundOpened
    | RoundContinued
    | Contribution
    | CosignAsked
    | Cosigned
    | LogShown
    | StudyOffered
    | StudyHeld
    | RunOffered
    | Done
    | Refused
)
_decoder = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: Message) -> bytes:
    """One message as bytes (msgpack)."""
    return _encoder.encode(message)


def decode_message(data: bytes | memoryview) -> Message:
    """Read one message.

    Raises:
        InputError: The bytes are no message.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"message, must be of a known type, {error}", hint="both sides must run the same version"
        ) from None


def pack_parameters(parameters: Float32[np.ndarray, " params"]) -> memoryview:
    """Model parameters as little-endian float32, without a copy where the machine is little-endian; read only."""
    return np.ascontiguousarray(parameters, dtype="<f4").data.cast("B").toreadonly()


@lru_cache(maxsize=1)
def unpack_parameters(data: bytes | memoryview, dimension: int) -> Float32[np.ndarray, " params"]:
    """Model parameters from the wire, not to be written to; the last are kept, for whoever is asked with the same.

    Raises:
        RoundError: Not `dimension` finite values.
    """
    values = _unpack(data, "<f4", dimension, "model").astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise RoundError(
            "model, must be finite, found a NaN or an infinity; nothing trained, nothing sent",
            hint="lower training.learning_rate",
        )
    values.flags.writeable = False
    return values


def pack_values(values: UInt32[np.ndarray, " params"]) -> memoryview:
    """Ring elements as little-endian uint32, without a copy where the machine is little-endian; read only."""
    return np.ascontiguousarray(values, dtype="<u4").data.cast("B").toreadonly()


def unpack_values(data: bytes | memoryview, dimension: int) -> UInt32[np.ndarray, " params"]:
    """Ring elements from the wire.

    Raises:
        RoundError: Not `dimension` values.
    """
    return _unpack(data, "<u4", dimension, "contribution").astype(np.uint32)


def _unpack(data: bytes | memoryview, dtype: str, dimension: int, what: str) -> np.ndarray:
    if len(data) != 4 * dimension:
        raise RoundError(
            f"{what}, must hold {dimension} parameters of 4 bytes, found {len(data)} bytes; nothing added",
            hint="both sides must run the same plan",
        )
    return np.frombuffer(data, dtype=dtype)
