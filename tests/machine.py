"""Published SEV-SNP evidence, and a machine of nobody's making whose evidence can be wrong in each part."""

import dataclasses
import datetime as dt
import functools
import hashlib
import json
import warnings
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from hubbub.governance.snp import _LAYOUT, Report

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
VECTORS = Path(__file__).parent / "vectors" / "attestation"
MEASURED = hashlib.sha384(b"image").digest()


@functools.cache
def published(name):
    vector = json.loads((VECTORS / f"{name}.json").read_text())
    with warnings.catch_warnings(action="ignore"):
        chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in vector["chain"]]
    return bytes.fromhex(vector["report"]), tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)


@functools.cache
def rsa_key(name, bits=4096):
    return rsa.generate_private_key(65537, bits)


def named(common_name):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def integer(value):
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


@dataclasses.dataclass(frozen=True)
class Machine:
    """A chip and its chain, in the structure of AMD's."""

    product: str = "Milan"
    name: bytes = b"\x16\x08Milan-B0"
    issuer: str = "SEV-Milan"
    subject: str = "SEV-VCEK"
    levels: tuple = (4, 0, 0, 0, 0, 0, 24, 219)
    level: object = staticmethod(integer)
    chip_id: bytes = bytes(range(64))
    left_out: str = ""
    ask_bits: int = 4096
    root_key: str = "root"
    path: object = x509.BasicConstraints(ca=True, path_length=0)
    signs: bool = True
    curve: type = ec.SECP384R1
    digest: type = SHA384
    pads: bool = True

    @functools.cached_property
    def key(self):
        return ec.derive_private_key(12345, self.curve())

    def certificate(self, subject, issuer, *, public, key, extensions):
        builder = x509.CertificateBuilder(named(issuer), named(subject), public, 1)
        builder = builder.not_valid_before(NOW - dt.timedelta(1)).not_valid_after(NOW + dt.timedelta(1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        pss = padding.PSS(padding.MGF1(self.digest()), self.digest.digest_size) if self.pads else padding.PKCS1v15()
        return builder.sign(key, self.digest(), rsa_padding=pss).public_bytes(Encoding.DER)

    @functools.cached_property
    def chain(self):
        root, ask = rsa_key(self.root_key), rsa_key("ask", self.ask_bits)
        usage = x509.KeyUsage(
            *[False] * 5, key_cert_sign=self.signs, crl_sign=False, encipher_only=False, decipher_only=False
        )
        values = {"2": self.name, "4": self.chip_id}
        values |= {f"3.{arc}": self.level(v) for arc, v in zip((1, 2, 4, 5, 6, 7, 3, 8), self.levels, strict=True)}
        values.pop(self.left_out, None)
        oids = {x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{arc}"): value for arc, value in values.items()}
        vcek = [x509.UnrecognizedExtension(oid, value) for oid, value in oids.items()]
        ark, limits = f"ARK-{self.product}", [self.path, usage] if self.path else [usage]
        return (
            self.certificate(self.subject, self.issuer, public=self.key.public_key(), key=ask, extensions=vcek),
            self.certificate(self.issuer, ark, public=ask.public_key(), key=root, extensions=limits),
            self.certificate(ark, ark, public=root.public_key(), key=root, extensions=[]),
        )

    @property
    def roots(self):
        return {hashlib.sha256(self.chain[2]).hexdigest(): self.product}

    def report(self, **changes):
        zeros = Report(*_LAYOUT.unpack(bytes(_LAYOUT.size)))
        tcb = bytes(self.levels)
        sound = {"version": 3, "policy": 0x3001F, "signature_algorithm": 1, "measurement": MEASURED, "cpu": b"\x19\1\1"}
        sound |= {"chip_id": self.chip_id, "platform_info": 0x25}
        sound |= {"reported_tcb": tcb, "launch_tcb": tcb, "current_tcb": tcb, "committed_tcb": tcb}
        signed = _LAYOUT.pack(*zeros._replace(**sound | changes))
        numbers = decode_dss_signature(self.key.sign(signed, ec.ECDSA(SHA384())))
        return signed + b"".join(number.to_bytes(72, "little") for number in numbers) + bytes(0x170)
