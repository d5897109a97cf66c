"""Evidence that the coordinator runs inside a confidential VM that a site's policy knows.

`[attestation]` of site.toml says whether a site asks for it. Verified on published reports of real machines and on
chains made for tests; **never tried on hardware of our own**.

*Trust:* AMD, its processors and the keys it certifies; whoever put measurements into the site's policy. A VM that is
measured and closed to its host still does what its software does.
"""

import datetime as dt
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from hubbub.errors import InputError, RefusedError
from hubbub.governance.acts import Frozen, Hash
from hubbub.governance.policy import read_site_table
from hubbub.governance.snp import ROOTS, Product, Report, Tcb, read_tcb, verify_report
from hubbub.tlog import Checkpoint

Measurement = Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")]

_DOMAIN: Final = b"hubbub attestation v1\n"
_KEY_BYTES: Final = 32


class AttestationPolicy(Frozen, frozen=True):
    """`[attestation]`: what a coordinator must show before this site works for it.

    Args:
        required: Whether it must show anything.
        measurements: Of the VMs that it may run in, in hexadecimal.
        minimum_tcb: Lowest levels of the firmware below it, for each product that it may run on.
    """

    required: bool = False
    measurements: tuple[Measurement, ...] = ()
    minimum_tcb: dict[Product, Tcb] = msgspec.field(default_factory=dict[Product, Tcb])

    def __post_init__(self) -> None:
        limits = (bool(self.measurements), bool(self.minimum_tcb))
        if limits != (self.required, self.required):
            raise ValueError("measurements and minimum_tcb stand there if, and only if, required = true")


class Evidence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a coordinator shows, on the wire.

    Args:
        size: Of the log whose head the report is bound to.
        report: Of the processor, 1184 bytes.
        certificates: VCEK, ASK and ARK, in DER.
    """

    size: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    report: bytes
    certificates: tuple[bytes, bytes, bytes]

    def encode(self) -> bytes:
        """The evidence as msgpack: an array of its fields."""
        return msgspec.msgpack.encode(self)


class Attested(Frozen, frozen=True):
    """What was verified, for the site's own records; all of it is public.

    Args:
        product: Kind of processor.
        measurement: Of the VM, in hexadecimal.
        tcb: Levels of the firmware that the chip's certificate is for.
        size: Of the log whose head the report is bound to.
        report_hash: SHA-256 of the report.
    """

    product: Product
    measurement: Measurement
    tcb: Tcb
    size: int
    report_hash: Hash


def report_data(coordinator_key: bytes, head: Checkpoint) -> bytes:
    r"""The 64 bytes that a coordinator has its processor sign: who it is, and where its log stands.

    SHA-512 of `"hubbub attestation v1\n"`, the key's 32 bytes, and the head's text (origin, size and root, one line
    each), which is of one form for each head.

    Args:
        coordinator_key: Its public protocol key.
        head: Of its log; extension lines are left out.

    Raises:
        InputError: The key is of another length.

    >>> report_data(bytes(32), Checkpoint("example.org/log", 1, bytes(32))).hex()[:32]
    '7698b2f02671d986575dc7187a8d070e'
    """
    if len(coordinator_key) != _KEY_BYTES:
        raise InputError(
            f"coordinator's key, must be {_KEY_BYTES} bytes, found {len(coordinator_key)}; nothing trained",
            hint="the protocol key on its card, in bytes",
        )
    text = str(Checkpoint(head.origin, head.size, head.root))
    return hashlib.sha512(_DOMAIN + coordinator_key + text.encode()).digest()


def check_attestation(
    evidence: Evidence | None,
    policy: AttestationPolicy,
    *,
    coordinator_key: bytes,
    head: Checkpoint,
    now: dt.datetime,
    roots: Mapping[str, Product] = ROOTS,
) -> Attested | None:
    """Refuse to work for a coordinator that does not show what this site's policy requires.

    Args:
        evidence: What it shows; None is nothing.
        policy: This site's.
        coordinator_key: The protocol key that the site's messages are bound to.
        head: The head that this site itself computes for a log of `evidence.size` entries, or any head if there is
            no evidence.
        now: The time, with its zone.
        roots: Roots to trust; AMD's, but in tests.

    Returns:
        What was verified; None where the policy requires nothing, and then nothing was looked at.

    Guarantees:
        Where attestation is required, only evidence passes that `verify_report` believes, whose measurement the
        policy names, whose firmware is nowhere below its minimum, now and at the VM's launch, and whose report is
        bound to exactly this key and head.

    Raises:
        RefusedError: The first rule that is broken.
    """
    if not policy.required:
        return None
    if evidence is None:
        raise _refuse("required", "shown", "none")
    product, report = verify_report(evidence.report, evidence.certificates, now=now, roots=roots)
    if report.measurement.hex() not in policy.measurements:
        raise _refuse("measurements", "of a VM that this site knows", report.measurement.hex())
    _check_tcb(report, product, policy)
    is_bound = report.report_data == report_data(coordinator_key, head)
    if evidence.size != head.size or not is_bound:
        raise _refuse(
            "required", f"bound to the coordinator's key and its log of {head.size} entries", "another binding"
        )
    return Attested(
        product=product,
        measurement=report.measurement.hex(),
        tcb=read_tcb(report.reported_tcb),
        size=evidence.size,
        report_hash=hashlib.sha256(evidence.report).hexdigest(),
    )


def read_evidence(data: bytes) -> Evidence:
    """Read evidence, strictly.

    Guarantees:
        `read_evidence(data).encode() == data`.

    Raises:
        InputError: The bytes are no evidence, or written in another way.
    """
    try:
        evidence = _decoder.decode(data)
        found = "another way to write it"
    except (msgspec.DecodeError, RecursionError) as error:
        evidence, found = None, str(error)
    if evidence is None or evidence.encode() != data:
        raise InputError(
            f"evidence, must be a size, a report and three certificates in msgpack, {found}; nothing trained",
            hint="both sides must run the same version",
        )
    return evidence


_decoder = msgspec.msgpack.Decoder(Evidence)


def read_attestation_policy(path: Path) -> AttestationPolicy:
    """Read `[attestation]` of a site file; a file without it requires nothing.

    Raises:
        InputError: As `read_site_table`; or it holds limits that are never asked, or none that are.
    """
    return read_site_table(path, "attestation", AttestationPolicy, default=AttestationPolicy())


def _check_tcb(report: Report, product: Product, policy: AttestationPolicy) -> None:
    minimum = policy.minimum_tcb.get(product)
    if minimum is None:
        raise _refuse("minimum_tcb", f"for {', '.join(sorted(policy.minimum_tcb))}", product)
    for data in (report.reported_tcb, report.launch_tcb):
        if not read_tcb(data).is_at_least(minimum):
            raise _refuse("minimum_tcb", f"at least {minimum}", str(read_tcb(data)))


def _refuse(key: str, rule: str, found: str) -> RefusedError:
    return RefusedError(
        f"this site's policy: attestation, must be {rule}, found {found}; nothing trained, nothing sent",
        hint=f"[attestation] {key} in site.toml is this site's to change",
    )
