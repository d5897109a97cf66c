"""The authority of a federation's connections: what it signs, what it does not read, what TLS makes of it."""

import contextlib
import ipaddress
import secrets
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import InputError
from hubbub.governance import new_keys
from hubbub.governance.certificates import (
    End,
    make_request,
    new_authority_key,
    pem_key,
    read_authority,
    read_certificate,
    read_request,
    self_signed,
)
from hubbub.governance.keys import fingerprint

NOW = 1_790_000_000
DAY = 86_400


def new_authority(now=NOW):
    key = new_authority_key()
    return read_authority(key, self_signed(key, now=now))


@pytest.fixture(scope="module")
def authority():
    """Give an authority."""
    return new_authority()


@pytest.fixture(scope="module")
def keys():
    """Give a node's keys."""
    return new_keys("site-a", organisation="clinic-a", role="node")


def asked(key, *attributes, digest=None, extensions=()):
    """A request of any kind."""
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    builder = x509.CertificateSigningRequestBuilder(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


def own(name="site-a"):
    return (NameOID.COMMON_NAME, name)


# --- requests


def test_a_request_says_who_asks_and_for_the_key_of_the_card(keys):
    request = read_request(make_request(keys))
    assert (request.name, request.fingerprint) == ("site-a", keys.card.transport)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: b"", "Unable to load PEM file"),
        (lambda: b"x" * 20_000, "20000 bytes"),
        (lambda: asked(ed25519.Ed25519PrivateKey.generate(), own()), "a key that is not of P-256"),
        (lambda: asked(rsa.generate_private_key(65537, 2048), own(), digest=hashes.SHA256()), "a key that is not of"),
        (lambda: asked(ec.generate_private_key(ec.SECP384R1()), own(), digest=hashes.SHA256()), "a key that is not of"),
        (lambda: asked(ec.generate_private_key(ec.SECP256R1()), digest=hashes.SHA256()), "more or less than one"),
        (
            lambda: asked(ec.generate_private_key(ec.SECP256R1()), own(), own("b"), digest=hashes.SHA256()),
            "more or less than one common name",
        ),
        (
            lambda: asked(
                ec.generate_private_key(ec.SECP256R1()), (NameOID.ORGANIZATION_NAME, "x"), digest=hashes.SHA256()
            ),
            "more or less than one common name",
        ),
        (
            lambda: asked(ec.generate_private_key(ec.SECP256R1()), own("a b\n"), digest=hashes.SHA256()),
            "a common name that is no holder's",
        ),
    ],
)
def test_what_is_no_request_of_a_holder_is_refused(make, found):
    with pytest.raises(InputError, match=r"request, must be .*; no certificate made") as caught:
        read_request(make())
    assert found in caught.value.message


def test_a_request_that_its_key_did_not_sign_is_refused(keys):
    """Somebody puts a key that is not theirs into a request: a proof that they hold it is what a request is."""
    other = new_keys("site-a", organisation="clinic-a", role="node")
    mine = x509.load_pem_x509_csr(make_request(keys)).public_bytes(Encoding.DER)
    spki = keys.transport.public_key().public_numbers()
    theirs = other.transport.public_key().public_numbers()
    swapped = mine.replace(spki.x.to_bytes(32) + spki.y.to_bytes(32), theirs.x.to_bytes(32) + theirs.y.to_bytes(32))
    assert swapped != mine
    pem = x509.load_der_x509_csr(swapped).public_bytes(Encoding.PEM)
    with pytest.raises(InputError, match="found that of site-a without a signature of its key"):
        read_request(pem)


@pytest.fixture(scope="module")
def der(keys):
    """Give the bytes of one request."""
    return x509.load_pem_x509_csr(make_request(keys)).public_bytes(Encoding.DER)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 250), flip=st.integers(0, 255), end=st.none() | st.integers(0, 250))
def test_bytes_changed_anywhere_in_a_request_are_refused_or_name_whom_its_key_signed_for(keys, der, at, flip, end):
    changed = bytearray(der)
    changed[at % len(der)] ^= flip
    lines = ssl.DER_cert_to_PEM_cert(bytes(changed[:end])).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    try:
        request = read_request(lines.encode())
    except InputError:
        return
    assert (request.name, request.fingerprint) == ("site-a", keys.card.transport)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_request(data):
    with pytest.raises(InputError):
        read_request(data)


# --- certificates


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_a_certificate_is_for_the_key_the_name_and_the_days_that_it_says(authority, keys):
    pem = authority.admit(read_request(make_request(keys)), now=NOW, days=30)
    assert read_certificate(pem, authority.certificate) == ("site-a", keys.card.transport, NOW + 30 * DAY)


def test_the_authority_may_sign_certificates_and_nothing_under_them_may(authority, keys):
    top = x509.load_pem_x509_certificate(authority.certificate)
    leaf = x509.load_pem_x509_certificate(authority.admit(read_request(make_request(keys)), now=NOW))
    assert extension(top, x509.BasicConstraints).critical
    assert extension(top, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(top, x509.KeyUsage).critical
    assert extension(top, x509.KeyUsage).value.key_cert_sign
    assert not extension(top, x509.KeyUsage).value.digital_signature
    assert extension(leaf, x509.BasicConstraints).critical
    assert not extension(leaf, x509.BasicConstraints).value.ca
    usage = extension(leaf, x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert not usage.crl_sign
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    above = extension(leaf, x509.AuthorityKeyIdentifier).value.key_identifier
    assert above == extension(top, x509.SubjectKeyIdentifier).value.digest
    assert leaf.signature_hash_algorithm.name == top.signature_hash_algorithm.name == "sha256"
    assert leaf.issuer == top.subject


def test_what_a_request_asks_for_besides_is_not_given(authority, keys):
    wants = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("hub.example.org")]),
    )
    pem = asked(keys.transport, own(), digest=hashes.SHA256(), extensions=wants)
    leaf = x509.load_pem_x509_certificate(authority.admit(read_request(pem), now=NOW))
    assert not extension(leaf, x509.BasicConstraints).value.ca
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        extension(leaf, x509.SubjectAlternativeName)


def test_serial_numbers_are_random_and_positive(authority, keys):
    request = read_request(make_request(keys))
    numbers = {x509.load_pem_x509_certificate(authority.admit(request, now=NOW)).serial_number for _ in range(20)}
    assert len(numbers) == 20
    assert all(2**64 < number < 2**159 for number in numbers)


def test_no_certificate_outlives_its_authority(keys):
    old = new_authority(NOW - 3640 * DAY)
    issued = read_certificate(old.admit(read_request(make_request(keys)), now=NOW), old.certificate)
    assert issued.ends == NOW + 10 * DAY


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_days_that_no_certificate_may_have_are_refused(authority, keys, days):
    with pytest.raises(InputError, match=f"days, must be 1 to 3650, found {days}; no certificate made"):
        authority.admit(read_request(make_request(keys)), now=NOW, days=days)


def test_a_certificate_of_another_authority_is_refused(authority, keys):
    pem = new_authority().admit(read_request(make_request(keys)), now=NOW)
    with pytest.raises(InputError, match="certificate, must be one that its authority has signed, found"):
        read_certificate(pem, authority.certificate)


def test_an_authority_made_again_from_its_key_is_believed_by_whoever_has_the_old_certificate(keys):
    key = new_authority_key()
    first, again = self_signed(key, now=NOW), self_signed(key, now=NOW + DAY)
    pem = read_authority(key, again).admit(read_request(make_request(keys)), now=NOW)
    assert read_certificate(pem, first).name == "site-a"


def test_a_key_and_a_certificate_that_do_not_belong_together_are_no_authority():
    key, other = new_authority_key(), new_authority_key()
    for pair in ((key, self_signed(other, now=NOW)), (b"", self_signed(key, now=NOW)), (key, b"x")):
        with pytest.raises(InputError, match="authority, must be a private key of P-256 and its certificate"):
            read_authority(*pair)
    wrong = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(InputError, match="found a key of another kind"):
        read_authority(wrong, self_signed(key, now=NOW))


# --- the coordinator's end


def test_a_server_is_named_by_its_hosts_and_by_this_machine(authority):
    ends = authority.serve(["hub.example.org", "192.0.2.7", "2001:db8::7"], now=NOW)
    names = extension(x509.load_pem_x509_certificate(ends.certificate), x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example.org", "localhost"]
    addresses = {ipaddress.ip_address(text) for text in ("192.0.2.7", "2001:db8::7", "127.0.0.1")}
    assert set(names.get_values_for_type(x509.IPAddress)) == addresses
    assert "PRIVATE" not in repr(ends)


@pytest.mark.parametrize("host", ["hüb.example", "a b\xff"])
def test_a_host_that_no_certificate_can_name_is_refused(authority, host):
    with pytest.raises(InputError, match="must be the name or the address of a host; nothing served"):
        authority.serve([host], now=NOW)


def context(kind, ends, folder):
    path = folder / f"{secrets.token_hex(4)}.pem"
    path.write_bytes(ends.certificate + ends.key)
    made = ssl.SSLContext(kind)
    made.load_verify_locations(cadata=ends.authority.decode())
    made.load_cert_chain(path)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    return made


def greet(server, client, folder, *, host="localhost"):
    """A whole handshake between two ends; whose certificate the server saw."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = context(ssl.PROTOCOL_TLS_SERVER, server, folder).wrap_bio(up, down, server_side=True)
    far = context(ssl.PROTOCOL_TLS_CLIENT, client, folder).wrap_bio(down, up, server_hostname=host)
    for _ in range(4):
        for end in (far, near):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return near.getpeercert(binary_form=True)


def ends_of(authority, keys, now, days=365):
    certificate = authority.admit(read_request(make_request(keys)), now=now, days=days)
    return End(authority.certificate, certificate, pem_key(keys.transport))


@pytest.fixture(scope="module")
def now():
    """Give the time that TLS libraries take from the system's clock."""
    return int(time.time())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "hub.example.org"])
def test_tls_joins_a_holder_and_a_coordinator_of_one_authority(keys, tmp_path, now, host):
    authority = new_authority(now)
    server = authority.serve(["hub.example.org"], now=now)
    seen = greet(server, ends_of(authority, keys, now), tmp_path, host=host)
    assert fingerprint(x509.load_der_x509_certificate(seen).public_key()) == keys.card.transport


def test_tls_refuses_a_stranger_an_expired_holder_another_host_and_a_holder_as_a_server(keys, tmp_path, now):
    authority, strange = new_authority(now - 9 * DAY), new_authority(now)
    server, client = authority.serve([], now=now), ends_of(authority, keys, now)
    forged = ends_of(strange, keys, now)._replace(authority=authority.certificate)
    late = ends_of(authority, keys, now - 8 * DAY, days=7)
    for pair, host in (
        ((server, forged), "localhost"),
        ((server, late), "localhost"),
        ((server, client), "hub.example.org"),
        ((client, client), "site-a"),
        ((server, server), "localhost"),
        ((strange.serve([], now=now)._replace(authority=authority.certificate), client), "localhost"),
    ):
        with pytest.raises(ssl.SSLError):
            greet(*pair, tmp_path, host=host)
