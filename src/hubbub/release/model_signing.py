"""A folder signed so that other people's tools can check it: the OpenSSF model-signing bundle.

A DSSE envelope in a Sigstore bundle holds an in-toto Statement, which lists the SHA-256 of every file. The
verifier here is stricter than the format: it leaves out nothing but the signature file itself, and accepts
that file in one spelling only.
"""

import hashlib
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hubbub.errors import HubbubError, InputError, VerificationError, typed

PAYLOAD_TYPE = b"application/vnd.in-toto+json"

BUNDLE = (
    b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",'
    b'"verificationMaterial":{"publicKey":{"hint":"%s"},"tlogEntries":[]},'
    b'"dsseEnvelope":{"payload":"%s","payloadType":"application/vnd.in-toto+json",'
    b'"signatures":[{"sig":"%s","keyid":""}]}}'
)
"""The signature file, as the `model-signing` package writes it: SHA-256 of the key, payload, signature."""

LEFT_OUT = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""Entries at the top of a folder that other verifiers leave out unless told otherwise."""

LARGEST = 1 << 28
"""Most bytes of a key or a signature: they are read before anything is known of them."""
FETCH = "fetch the folder again from whoever signed it"
OPENSSL = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a document in which an unknown key is an error."""


class _Subject(_Strict, frozen=True):
    name: str
    digest: dict[Literal["sha256"], Sha256]


class _Resource(_Strict, frozen=True):
    name: str
    algorithm: Literal["sha256"]
    digest: Sha256


class _Serialization(_Strict, frozen=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: tuple[str, ...] = ()


class _Predicate(_Strict, frozen=True):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(_Strict, frozen=True, kw_only=True, rename="camel"):
    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: tuple[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


def sign_folder(folder: Path, key: ec.EllipticCurvePrivateKey, signature: Path) -> None:
    """Sign every file in a folder; the signature may lie in the folder too.

    Args:
        folder: What is signed. Its name is recorded; renaming it later breaks nothing.
        key: A P-256 key.
        signature: A new file.

    Raises:
        InputError: The folder holds no file, or something that cannot be signed, or the signature exists.

    Source:
        OpenSSF Model Signing v1.0; in-toto Statement v1; DSSE v1.0.2, protocol.md.
    """
    hint = fingerprint(key.public_key()).encode()
    files = _digests(folder, signature, InputError)
    if not files:
        raise InputError(f"{folder}, must hold files, found none; nothing signed", hint=typed("ls", folder))
    unseen = [name for name in files if name.split("/")[0] in LEFT_OUT]
    if unseen:
        raise InputError(
            f"{folder}, must hold no git files because other verifiers leave them out, found {unseen[0]!r}; "
            "nothing signed",
            hint="copy what is to be signed into a folder of its own",
        )
    root, own = _real(folder), _real(signature)
    ignored = (own.relative_to(root).as_posix(),) if own.is_relative_to(root) else ()
    payload = msgspec.json.encode(_statement(root.name, files, ignored))
    signed = key.sign(_authenticated(payload), ec.ECDSA(hashes.SHA256()))
    _create(signature, BUNDLE % (hint, b64encode(payload), b64encode(signed)))


def verify_folder(folder: Path, public_key: ec.EllipticCurvePublicKey, signature: Path) -> None:
    """Check that a folder holds exactly the files that were signed.

    Guarantees:
        Refused are: any changed byte of a file or of the signature file, a file that is missing or not
        listed, a symlink, and whatever else is no plain file. What a signature tells to ignore is not
        ignored. Folders without files are not covered: the format cannot name them.

    Raises:
        VerificationError: Naming the first file at fault.
        InputError: Something cannot be read, or the key is no P-256 key.
    """
    listed = _listed(_payload(signature, public_key), signature)
    found = _digests(folder, signature, VerificationError)
    for name in _ordered(listed | found):
        if name not in found:
            raise VerificationError(f"{name!r}, must be in the signed folder, found nothing", hint=FETCH)
        if name not in listed:
            raise VerificationError(f"{name!r}, must be listed in {signature.name}, found no entry", hint=FETCH)
        if found[name] != listed[name]:
            raise VerificationError(f"{name!r}, must be the file that was signed, found other bytes", hint=FETCH)


def new_key() -> bytes:
    """Make a P-256 key, as PEM."""
    pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(serialization.Encoding.PEM, pkcs8, none)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a file that holds what `new_key` made."""
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}, must hold an elliptic curve key in PEM, without password, found none", hint=OPENSSL)
    return key


def public_pem(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """PEM of a public key: the file that verifiers ask for."""
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a file that holds what `public_pem` gave."""
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"{path}, must hold an elliptic curve public key in PEM, found none", hint=FETCH)
    return key


def fingerprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """Name of a P-256 key: SHA-256 of its PEM, in hexadecimal."""
    if not isinstance(public_key.curve, ec.SECP256R1):
        raise InputError(f"the key, must be of curve secp256r1, found {public_key.curve.name}", hint=OPENSSL)
    return hashlib.sha256(public_pem(public_key)).hexdigest()


def _payload(signature: Path, public_key: ec.EllipticCurvePublicKey) -> bytes:
    """What the key has signed."""
    hint, content = fingerprint(public_key).encode(), _read(signature)
    match = re.fullmatch(re.escape(BUNDLE).replace(b"%s", b'([^"]*)'), content)
    if not match:
        raise VerificationError(f"{signature.name}, must be a bundle of one signature, found none", hint=FETCH)
    if match[1] != hint:
        raise VerificationError(
            f"{signature.name}, must be by key {hint[:16].decode()}, found another", hint="ask for the public key"
        )
    try:
        payload, signed = _base64(match[2]), _base64(match[3])
        public_key.verify(signed, _authenticated(payload), ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        raise VerificationError(f"{signature.name}, must hold a valid signature, found none", hint=FETCH) from None
    return payload


def _base64(text: bytes) -> bytes:
    """Decode the one spelling of some bytes; base64 has spare bits that most decoders skip."""
    content = b64decode(text, validate=True)
    if b64encode(content) != text:
        raise ValueError(text)
    return content


def _authenticated(payload: bytes) -> bytes:
    """What DSSE signs instead of a bare payload: lengths leave no two readings."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE, len(payload), payload)


def _statement(name: str, files: dict[str, str], ignored: tuple[str, ...]) -> _Statement:
    ordered = _ordered(files)
    root = hashlib.sha256(b"".join(bytes.fromhex(files[file]) for file in ordered))
    return _Statement(
        type="https://in-toto.io/Statement/v1",
        subject=(_Subject(name, {"sha256": root.hexdigest()}),),
        predicate_type="https://model_signing/signature/v1.0",
        predicate=_Predicate(
            serialization=_Serialization("files", "sha256", allow_symlinks=False, ignore_paths=ignored),
            resources=tuple(_Resource(file, "sha256", files[file]) for file in ordered),
        ),
    )


def _listed(payload: bytes, signature: Path) -> dict[str, str]:
    """Digests by file name, from a payload that says nothing but what a list of files says."""
    try:
        statement = msgspec.json.decode(payload, type=_Statement)
    except (msgspec.DecodeError, UnicodeDecodeError):
        statement = None
    if statement:
        predicate = statement.predicate
        files = {resource.name: resource.digest for resource in predicate.resources}
        if statement == _statement(statement.subject[0].name, files, predicate.serialization.ignore_paths):
            return files
    raise VerificationError(
        f"{signature.name}, must list files by SHA-256 and nothing else, found other claims", hint=FETCH
    )


def _ordered(names: Iterable[str]) -> list[str]:
    """As paths sort: a folder's files stay together."""
    return sorted(names, key=lambda name: name.split("/"))


def _digests(folder: Path, signature: Path, refusal: type[HubbubError]) -> dict[str, str]:
    """SHA-256 of every file of a folder but the signature, by name."""
    root, own = _real(folder), _real(signature)
    digests: dict[str, str] = {}
    waiting = [root]
    try:
        while waiting:
            for path in sorted(waiting.pop().iterdir()):
                name = path.relative_to(root).as_posix()
                if path == own:
                    continue
                is_text = name.encode(errors="ignore").decode() == name
                if path.is_symlink() or not (path.is_dir() or path.is_file()) or not is_text:
                    raise refusal(
                        f"{name!r}, must be a plain file with a name in UTF-8, found something else", hint=FETCH
                    )
                if path.is_dir():
                    waiting.append(path)
                else:
                    with path.open("rb") as file:
                        digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{folder}, must be a readable folder, {error.strerror}", hint=typed("ls", "-l", folder)
        ) from None
    return digests


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _read(path: Path) -> bytes:
    try:
        is_endless = path.is_fifo() or path.is_char_device() or path.stat().st_size > LARGEST
        content = b"" if is_endless else path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}, must be a readable file, {error.strerror}", hint=typed("ls", "-l", path)) from None
    if is_endless:
        rule = f"must be a file of at most {LARGEST} bytes"
        raise InputError(f"{path}, {rule}, found a larger one, a pipe or a device", hint=typed("ls", "-l", path))
    return content


def _create(path: Path, content: bytes) -> None:
    """Write a new file; an older signature is never written over."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise InputError(
            f"{path}, must be a new file, {error.strerror}; nothing written", hint=typed("ls", "-l", path)
        ) from None
