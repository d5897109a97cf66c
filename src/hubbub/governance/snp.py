"""What an AMD processor says of a confidential VM: a SEV-SNP report, and the certificates that it stands on.

    ARK (pinned here) -> ASK (one for each kind of processor) -> VCEK (one for each chip and firmware) -> report

The report says what the VM's memory held at launch, and repeats 64 bytes that the VM gave it. Nothing is fetched:
whether AMD has revoked a certificate since is not asked.

Source:
    AMD 56860, SEV Secure Nested Paging Firmware ABI Specification, ATTESTATION_REPORT, TCB_VERSION and the format of
    ECDSA P-384 signatures; AMD 57230, VCEK Certificate and KDS Interface Specification.
"""

import datetime as dt
import hashlib
import struct
import warnings
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID
from msgspec import Meta

from hubbub.errors import RefusedError
from hubbub.governance.acts import Frozen

Product = Literal["Milan", "Genoa"]
Level = Annotated[int, Meta(ge=0, le=255)]

ROOTS: Final[Mapping[str, Product]] = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "Milan",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "Genoa",
}
"""SHA-256 of AMD's root certificates (ARK), in DER; AMD publishes them at its key distribution service."""

REPORT_BYTES: Final = 0x4A0
_SIGNED_BYTES: Final = 0x2A0
_NUMBER_BYTES: Final = 48
_FIELD_BYTES: Final = 72
_CPU_SINCE, _MITIGATIONS_SINCE, _NEWEST = 3, 4, 5
_FIRST_RESERVED_POLICY_BIT: Final = 26
_ONE, _MIGRATION, _DEBUG = 1 << 17, 1 << 18, 1 << 19
_RSA_BITS: Final = 4096

_AMD: Final = "1.3.6.1.4.1.3704.1"
_NAME, _CHIP = f"{_AMD}.2", f"{_AMD}.4"
_LEVELS: Final = tuple(f"{_AMD}.3.{arc}" for arc in (1, 2, 4, 5, 6, 7, 3, 8))
"""Extensions of a VCEK, in the order of the bytes of a TCB_VERSION: four of them are reserved."""


class Tcb(Frozen, frozen=True):
    """Security levels of the firmware below a VM; AMD raises one when it closes a hole there.

    Args:
        bootloader: Of the security processor.
        tee: Of its operating system.
        snp: Of the SNP firmware.
        microcode: Of the cores.
    """

    bootloader: Level = 0
    tee: Level = 0
    snp: Level = 0
    microcode: Level = 0

    def __str__(self) -> str:
        return f"bootloader {self.bootloader}, tee {self.tee}, snp {self.snp}, microcode {self.microcode}"

    def is_at_least(self, minimum: "Tcb") -> bool:
        """Whether no level is below the minimum's."""
        return all(getattr(self, name) >= getattr(minimum, name) for name in self.__struct_fields__)


class Report(NamedTuple):
    """A report's signed part, as it stands; integers are little-endian."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    signer: int
    reserved_signer: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    migration_report_id: bytes
    reported_tcb: bytes
    cpu: bytes
    reserved_cpu: bytes
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: bytes
    reserved_current: bytes
    committed_firmware: bytes
    reserved_committed: bytes
    launch_tcb: bytes
    mitigations: bytes
    reserved_end: bytes


_LAYOUT: Final = struct.Struct("<IIQ16s16sII8sQI4s64s48s32s48s48s32s32s8s3s21s64s8s3s1s3s1s8s16s152s")


class Chip(NamedTuple):
    """What AMD's certificates say of the chip that signs, and its key."""

    product: Product
    name: str
    tcb: bytes
    chip_id: bytes
    key: EllipticCurvePublicKey


def verify_report(
    data: bytes, certificates: tuple[bytes, ...], *, now: dt.datetime, roots: Mapping[str, Product] = ROOTS
) -> tuple[Product, Report]:
    """Believe a report: its VM runs on a chip that AMD certifies, as it was measured, closed to its host.

    Args:
        data: The report, 1184 bytes.
        certificates: VCEK, ASK and ARK, in DER.
        now: When all three must be valid.
        roots: SHA-256 of the root certificates that are trusted, and the product of each.

    Guarantees:
        Evidence of a real machine with any one bit of report or certificates flipped is refused. A VM that its host may
        debug or migrate, that was asked from a less privileged level than 0, or whose chip hides its name, is refused.

    Raises:
        RefusedError: The first rule that is broken.
    """
    report = read_report(data)
    chip = _check_chain(certificates, roots=roots, now=now)
    _check("its certificate", "for the chip that it names", holds=chip.chip_id == report.chip_id)
    _check("its certificate", "for the firmware that it reports", holds=chip.tcb == report.reported_tcb)
    _check_signature(data, chip.key)
    _check("VM", "closed to its host's debugger", holds=not report.policy & _DEBUG)
    _check("VM", "bound to its host, never migrated", holds=not report.policy & _MIGRATION)
    _check("VM", "asked at privilege level 0", holds=report.vmpl == 0, found=report.vmpl)
    return chip.product, report


def read_report(data: bytes) -> Report:
    """Read a report strictly; whether somebody signed it is another question: `verify_report`.

    Guarantees:
        A byte that the report's version does not define is zero.

    Raises:
        RefusedError: The bytes are no report of version 2 to 5 that a chip's own key signs.
    """
    _check("its report", f"of {REPORT_BYTES} bytes", holds=len(data) == REPORT_BYTES, found=len(data))
    report = Report(*_LAYOUT.unpack_from(data))
    _check("its report", "of version 2 to 5", holds=2 <= report.version <= _NEWEST, found=report.version)  # noqa: PLR2004
    _check("its report", "signed with ECDSA P-384", holds=report.signature_algorithm == 1)
    _check("its report", "signed by the chip's own key (VCEK), unmasked", holds=report.signer in {0, 1})
    is_known = report.policy & _ONE and not report.policy >> _FIRST_RESERVED_POLICY_BIT
    _check("its report", "of a policy with known bits", holds=bool(is_known), found=f"{report.policy:#x}")
    reserved = report.reserved_signer + report.reserved_cpu + report.reserved_end
    reserved += report.reserved_current + report.reserved_committed
    reserved += b"" if report.version >= _CPU_SINCE else report.cpu
    reserved += b"" if report.version >= _MITIGATIONS_SINCE else report.mitigations
    _check("its report", "zero where nothing is defined", holds=not any(reserved))
    return report


def read_tcb(data: bytes) -> Tcb:
    """The levels in a TCB_VERSION of Milan and Genoa."""
    return Tcb(bootloader=data[0], tee=data[1], snp=data[6], microcode=data[7])


def _check_signature(data: bytes, key: EllipticCurvePublicKey) -> None:
    """R and S: little-endian, each in a field of 72 bytes, zeros behind."""
    fields = [data[start : start + _FIELD_BYTES] for start in (_SIGNED_BYTES, _SIGNED_BYTES + _FIELD_BYTES)]
    rest = data[_SIGNED_BYTES + 2 * _FIELD_BYTES :] + b"".join(field[_NUMBER_BYTES:] for field in fields)
    r, s = (int.from_bytes(field[:_NUMBER_BYTES], "little") for field in fields)
    try:
        key.verify(encode_dss_signature(r, s), data[:_SIGNED_BYTES], ECDSA(SHA384()))
        is_right = not any(rest)
    except InvalidSignature:
        is_right = False
    _check("its report", "signed by the chip that it names", holds=is_right)


def _check_chain(certificates: tuple[bytes, ...], *, roots: Mapping[str, Product], now: dt.datetime) -> Chip:
    _check("its certificates", "three: VCEK, ASK, ARK", holds=len(certificates) == 3, found=len(certificates))  # noqa: PLR2004
    fingerprint = hashlib.sha256(certificates[2]).hexdigest()
    _check("its ARK", "a root of AMD that is pinned", holds=fingerprint in roots, found=fingerprint)
    product = roots[fingerprint]
    vcek, ask, ark = (_load(name, data) for name, data in zip(("VCEK", "ASK", "ARK"), certificates, strict=True))
    try:
        _check_issued("ASK", ask, f"SEV-{product}", ark)
        _check_authority(ask)
        _check_issued("VCEK", vcek, "SEV-VCEK", ask)
        for name, certificate in (("VCEK", vcek), ("ASK", ask), ("ARK", ark)):
            _check_dates(name, certificate, now)
        chip = _chip(vcek, product)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise _refuse("its certificates", "as AMD makes them", str(error) or "a signature that does not fit") from None
    is_same = chip.name.partition("-")[0] == product
    _check("its VCEK", f"of {product}, as its root", holds=is_same, found=repr(chip.name))
    return chip


def _load(name: str, data: bytes) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            # AMD gives every VCEK the serial number 0.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_der_x509_certificate(data)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise _refuse(f"its {name}", "a certificate in DER", str(error)) from None


def _check_issued(name: str, certificate: x509.Certificate, common_name: str, issuer: x509.Certificate) -> None:
    """RSA-PSS with SHA-384 under 4096 bits; what it says is read when its signature is known to be right."""
    key, padding = issuer.public_key(), certificate.signature_algorithm_parameters
    is_strong = isinstance(key, RSAPublicKey) and key.key_size == _RSA_BITS
    is_strong &= isinstance(padding, PSS) and isinstance(certificate.signature_hash_algorithm, SHA384)
    unused_bits = certificate.public_bytes(Encoding.DER)[-_RSA_BITS // 8 - 1]
    is_strong &= unused_bits == 0  # of the signature, a bit string: not signed themselves
    _check(f"its {name}", "signed with RSA-PSS, 4096 bits, SHA-384", holds=is_strong)
    certificate.verify_directly_issued_by(issuer)
    names = [str(entry.value) for entry in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    _check(f"its {name}", f"named {common_name}", holds=names == [common_name], found=names)


def _check_authority(ask: x509.Certificate) -> None:
    try:
        limits = ask.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = ask.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise _refuse("its ASK", "an authority for VCEKs", str(error)) from None
    is_authority = limits.ca and limits.path_length == 0 and usage.key_cert_sign
    _check("its ASK", "an authority for VCEKs", holds=is_authority)


def _check_dates(name: str, certificate: x509.Certificate, now: dt.datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _check(f"its {name}", f"used from {first:%F} to {last:%F}", holds=first <= now <= last, found=f"{now:%F}")


def _chip(vcek: x509.Certificate, product: Product) -> Chip:
    key = vcek.public_key()
    if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1)):
        raise _refuse("its VCEK", "a key on P-384", type(key).__name__)
    name, chip_id = _extension(vcek, _NAME), _extension(vcek, _CHIP)
    _check("its VCEK", "named after a product", holds=name[:1] == b"\x16" and name[1:2] == bytes([len(name) - 2]))
    tcb = bytes(_level(_extension(vcek, oid)) for oid in _LEVELS)
    return Chip(product, name[2:].decode("ascii"), tcb, chip_id, key)


def _extension(vcek: x509.Certificate, oid: str) -> bytes:
    try:
        return vcek.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value.public_bytes()
    except x509.ExtensionNotFound:
        raise _refuse("its VCEK", "for one chip and firmware", f"no extension {oid}") from None


def _level(der: bytes) -> int:
    """An INTEGER from 0 to 255, in its one DER form."""
    value = der[-1] if der else 0
    expected = bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])  # noqa: PLR2004
    _check("its VCEK", "of levels from 0 to 255", holds=der == expected, found=der.hex())
    return value


def _check(where: str, rule: str, *, holds: bool, found: object = "something else") -> None:
    if not holds:
        raise _refuse(where, rule, str(found))


def _refuse(where: str, rule: str, found: str) -> RefusedError:
    return RefusedError(
        f"attestation: {where}, must be {rule}, found {found}; nothing trained, nothing sent",
        hint="the coordinator's operator must attest again; see docs/how-to/attest.md",
    )
