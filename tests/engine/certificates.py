"""A throw-away authority: P-256, short-lived, for tests."""

import datetime as dt
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hubbub.engine.direct import Credentials


def _name(common):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject, issuer, key):
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
    )


def _names(hosts):
    return x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
    )


def _pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority:
    """Signs a host's certificate or a participant's."""

    def __init__(self, name="test authority"):
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = _builder(name, name, self._key).add_extension(constraints, critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def host(self, *hosts):
        """Make what a coordinator listens with; hosts are names or addresses."""
        return self._signed(hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, _names(hosts))

    def participant(self, name, *hosts):
        """Make what a participant or a person dials with; each call makes another key."""
        return self._signed(name, ExtendedKeyUsageOID.CLIENT_AUTH, *([_names(hosts)] if hosts else []))

    def renewed(self, credentials, name):
        """Make another certificate for the same key."""
        key = load_pem_private_key(credentials.key, None)
        return self._signed(name, ExtendedKeyUsageOID.CLIENT_AUTH, key=key)

    def _signed(self, name, usage, *extensions, key=None):
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, self.name, key)
        for extension in (x509.ExtendedKeyUsage([usage]), *extensions):
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return Credentials(self.certificate, certificate, _pem(key))
