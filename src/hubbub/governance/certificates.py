"""Certificates of TLS connections: a federation's own authority, requests to it, what it signs.

A certificate opens a pipe and proves nothing else: who is at its end is said by the key's SHA-256, which the
holder's card shows. What is believed of a message stands in signatures of other keys.

*Trust:* whoever holds the authority's key can stop connections and read what a pipe carries, not act as anybody.

Source:
    RFC 5280 (certificates), RFC 2986 (requests).
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hubbub.errors import InputError
from hubbub.governance.keys import Keys, Name, fingerprint

YEAR: Final = 365
MOST_DAYS: Final = 3650
"""Days that an authority lasts; no certificate of it lasts longer."""
MOST_BYTES: Final = 16_384
"""Of a request or a certificate in PEM."""
_BEHIND: Final = dt.timedelta(days=1)
"""Clocks may be behind the authority's by so much."""
_DAMAGED: Final = (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion, RecursionError)


class End(NamedTuple):
    """What one end of a TLS connection needs, as PEM: `direct.Credentials(*end)`.

    Args:
        authority: Certificate of the authority that the other end's certificate must be of.
        certificate: Its own.
        key: Private key of its own certificate; shows in no representation.
    """

    authority: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "End(...)"


class Request(NamedTuple):
    """Who asks for a certificate, and for which key, which has signed the request."""

    name: str
    key: ec.EllipticCurvePublicKey

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, as a card shows it."""
        return fingerprint(self.key)


def make_request(keys: Keys) -> bytes:
    """Ask for a certificate of a holder's transport key: PEM, for the operator."""
    builder = x509.CertificateSigningRequestBuilder(_name(keys.card.name))
    return builder.sign(keys.transport, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_request(data: bytes) -> Request:
    """Read a request.

    Guarantees:
        The key in it has signed it. What else it asks for (extensions, attributes) is not looked at.

    Raises:
        InputError: It is no request, or of another kind of key, or nobody who has the key has signed it.
    """
    try:
        request = x509.load_pem_x509_csr(_limited(data))
        key, name = request.public_key(), _common_name(request.subject)
        is_signed = request.is_signature_valid
    except _DAMAGED as error:
        raise _no_request(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _no_request("a key that is not of P-256")
    if not is_signed:
        raise _no_request(f"that of {name} without a signature of its key")
    return Request(name, key)


class Authority:
    """Signs the certificates of one federation's connections.

    Args:
        key: Its private key.
        certificate: Its own certificate.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @property
    def certificate(self) -> bytes:
        """Its certificate, as PEM: what everybody is given to believe others by."""
        return self._certificate.public_bytes(Encoding.PEM)

    def admit(self, request: Request, *, now: int, days: int = YEAR) -> bytes:
        """A certificate for whoever asked, as PEM; others' certificates stay as they are.

        Args:
            request: As `read_request` found it.
            now: POSIX seconds.
            days: How long it is good for, at most as long as the authority is.

        Raises:
            InputError: `days` is not a number of days that it may have.
        """
        if not 1 <= days <= MOST_DAYS:
            raise InputError(
                f"days, must be 1 to {MOST_DAYS}, found {days}; no certificate made", hint=f"--days {YEAR}"
            )
        return self._sign(request.key, request.name, ExtendedKeyUsageOID.CLIENT_AUTH, now, days)

    def serve(self, hosts: Iterable[str], *, now: int) -> End:
        """A new key and its certificate for a host that others dial under these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = list(map(_host, dict.fromkeys((*hosts, "localhost", "127.0.0.1"))))
        alternative = x509.SubjectAlternativeName(names)
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        certificate = self._sign(key.public_key(), "coordinator", usage, now, MOST_DAYS, (alternative,))
        return End(self.certificate, certificate, pem_key(key))

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        usage: x509.ObjectIdentifier,
        now: int,
        days: int,
        more: Sequence[x509.ExtensionType] = (),
    ) -> bytes:
        ends = min(_time(now) + dt.timedelta(days=days), self._certificate.not_valid_after_utc)
        builder = _builder(key, _name(name), self._certificate.subject, now, ends)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(is_authority=False), True),
            (x509.ExtendedKeyUsage([usage]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
            *((extension, False) for extension in more),
        ]
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def new_authority_key() -> bytes:
    """A private key for an authority, as PEM."""
    return pem_key(ec.generate_private_key(ec.SECP256R1()))


def self_signed(key: bytes, *, now: int) -> bytes:
    """A certificate of an authority with this key, as PEM; its name follows from the key, also if it is made again."""
    private = _load_key(key)
    public = private.public_key()
    name = _name(f"hubbub {fingerprint(public)[:16]}")
    builder = _builder(public, name, name, now, _time(now) + dt.timedelta(days=MOST_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(is_authority=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_authority(key: bytes, certificate: bytes) -> Authority:
    """The authority with this key and certificate, both PEM.

    Raises:
        InputError: They are damaged, or do not belong together.
    """
    try:
        private, own = _load_key(key), x509.load_pem_x509_certificate(certificate)
        is_pair = fingerprint(private.public_key()) == fingerprint(own.public_key())
        found = "the key of another certificate"
    except _DAMAGED as error:
        is_pair, found, private, own = False, str(error), None, None
    if private is None or own is None or not is_pair:
        raise InputError(
            f"authority, must be a private key of P-256 and its certificate, found {found}; no certificate made",
            hint="restore both from a copy: with a new authority everybody needs a new membership",
        )
    return Authority(private, own)


class Issued(NamedTuple):
    """What a certificate says: whose it is, for which key, until when in POSIX seconds."""

    name: str
    fingerprint: str
    ends: int


def read_certificate(certificate: bytes, authority: bytes) -> Issued:
    """Read a certificate that this authority has signed, both PEM.

    Raises:
        InputError: They are damaged, or another authority signed it.
    """
    try:
        own = x509.load_pem_x509_certificate(_limited(certificate))
        own.verify_directly_issued_by(x509.load_pem_x509_certificate(_limited(authority)))
        return Issued(
            _common_name(own.subject), fingerprint(own.public_key()), int(own.not_valid_after_utc.timestamp())
        )
    except _DAMAGED as error:
        found = str(error) or "another authority's"
        raise InputError(
            f"certificate, must be one that its authority has signed, found {found}; nothing sent",
            hint="hubbub admit makes one",
        ) from None


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, without a password."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("a key of another kind")
    return key


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, now: int, ends: dt.datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=_time(now) - _BEHIND,
        not_valid_after=ends,
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _common_name(subject: x509.Name) -> str:
    """The one attribute of a subject, if a holder may be called so."""
    attributes = list(subject)
    if [attribute.oid for attribute in attributes] != [NameOID.COMMON_NAME]:
        raise ValueError("a subject that is more or less than one common name")
    try:
        return msgspec.convert(attributes[0].value, Name)
    except msgspec.ValidationError:
        raise ValueError("a common name that is no holder's") from None


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError:
        raise InputError(
            f"{text!r}, must be the name or the address of a host; nothing served",
            hint="--address hub.example.org:8443",
        ) from None


def _limited(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes")
    return data


def _time(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _no_request(found: str) -> InputError:
    return InputError(
        f"request, must be a certificate request that its transport key has signed, found {found}; no certificate made",
        hint="hubbub enrol KEYFILE makes one",
    )
