"""docs/spec/secagg.md, implemented a second time from the text alone, writes the frozen transcripts' bytes."""

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

VECTORS = Path(__file__).parents[1] / "vectors"
PRIME = 2**256 + 297


def sha256(data):
    return hashlib.sha256(data).digest()


def enc(*fields):
    out = b""
    for field in fields:
        if isinstance(field, list | tuple):
            data = enc(*field)
        else:
            data = (
                field.to_bytes(8, "big")
                if isinstance(field, int)
                else field.encode()
                if isinstance(field, str)
                else field
            )
        out += len(data).to_bytes(4, "big") + data
    return out


def cut(data):
    out = []
    while data:
        size = int.from_bytes(data[:4], "big")
        out.append(data[4 : 4 + size])
        data = data[4 + size :]
    return out


def h(kind, *fields):
    return sha256(b"hubbub/secagg/1/" + kind.encode() + b"\0" + enc(*fields))


def hkdf(secret, salt, *info):
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, enc(*info) + b"\x01", "sha256")


def dh(seed, public):
    return X25519PrivateKey.from_private_bytes(seed).exchange(X25519PublicKey.from_public_bytes(public))


def public(seed):
    return X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def shares(secret, coefficients, places):
    high_first = [int.from_bytes(coefficients[at : at + 48], "big") for at in range(0, len(coefficients), 48)]
    powers = [int.from_bytes(secret, "big"), *high_first[::-1]]
    value = {place: sum(c * (place + 1) ** e for e, c in enumerate(powers)) % PRIME for place in places}
    return {place: number.to_bytes(33, "big") for place, number in value.items()}


def root(level):
    while len(level) & (len(level) - 1):
        level.append(bytes(32))
    while len(level) > 1:
        level = [h("node", *level[at : at + 2]) for at in range(0, len(level), 2)]
    return level[0]


class Second:
    """All participants of one transcript at once."""

    def __init__(self, script):
        self.script = script
        self.key = {
            m["name"]: Ed25519PrivateKey.from_private_bytes(bytes.fromhex(m["seed"])) for m in script["members"]
        }
        numbers = ("run", "roster_epoch", "round_number", "attempt", "log_size")
        strings = ("suite", "study", "payload", "log_origin")
        self.session = h(
            "session",
            *(
                value if field in (*numbers, *strings) else bytes.fromhex(value)
                for field, value in script["session"].items()
            ),
        )
        self.names = sorted(self.key, key=str.encode)
        drawn = script["drawn"]
        self.cipher, self.seed, self.b = (
            {name: bytes.fromhex(drawn[name][at]) for name in self.names} for at in range(3)
        )
        others = {name: [at for at, other in enumerate(self.names) if other != name] for name in self.names}
        self.edges = {name: sorted(others[name][at] for at in drawn[name][3]) for name in self.names}

    def advert(self, u):
        return enc(u, public(self.cipher[u]), public(self.seed[u]), h("b", self.session, u, self.b[u]))

    def adverts(self):
        return h("adverts", self.session, [self.advert(u) for u in self.names])

    def scope(self):
        return sha256(enc(self.session, self.adverts()))

    def leaves(self, u):
        places = sorted([*self.edges[u], self.names.index(u)])
        self_shares, seed_shares = (
            shares(secret, bytes.fromhex(self.script["drawn"][u][at]), places)
            for secret, at in ((self.b[u], 4), (self.seed[u], 5))
        )
        return [self.leaf(u, self.names[place], self_shares[place], seed_shares[place]) for place in places], places

    def leaf(self, u, v, self_share, seed_share):
        sealed = b""
        if u != v:
            key = hkdf(dh(self.cipher[u], public(self.cipher[v])), self.scope(), "share", u, v)
            context = enc(self.session, self.adverts(), u, v)
            sealed = ChaCha20Poly1305(key).encrypt(bytes(12), self_share + seed_share, context)
        hashes = (h(kind, self.scope(), u, v, s) for kind, s in (("b share", self_share), ("seed share", seed_share)))
        return (*hashes, sealed)

    def dealing(self, u):
        leaves, places = self.leaves(u)
        hashes = [h("leaf", self.names[at], a, b, sha256(c)) for at, (a, b, c) in zip(places, leaves, strict=True)]
        bits = b""
        if self.script["parameters"]["neighbours"]:
            number = sum(1 << place for place in self.edges[u])
            bits = number.to_bytes((len(self.names) + 7) // 8, "little")
        return enc(u, self.adverts(), bits, root(hashes)), enc(leaves)

    def edges_hash(self):
        return h("edges", self.session, self.adverts(), [self.dealing(u)[0] for u in self.names])

    def vector(self, u):
        words = np.array(self.script["vectors"][u], dtype=np.uint32)
        words = words + self.stream(hkdf(self.b[u], self.scope(), "self", u))
        for at, v in enumerate(self.names):
            place = self.names.index(u)
            if at in self.edges[u] or place in self.edges[v]:
                key = hkdf(
                    dh(self.seed[u], public(self.seed[v])), self.scope(), "pair", *sorted([u, v], key=str.encode)
                )
                words = words + self.stream(key) if place < at else words - self.stream(key)
        return words.astype("<u4").tobytes()

    def stream(self, key):
        size = 4 * self.script["parameters"]["dimension"]
        data = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))
        return np.frombuffer(data, dtype="<u4").astype(np.uint32)

    def survivors_hash(self):
        number = sum(1 << self.names.index(u) for u in self.script["survivors"])
        bits = number.to_bytes((len(self.names) + 7) // 8, "little")
        return h("U", self.session, self.adverts(), self.edges_hash(), bits, bytes.fromhex(self.script["salt"]))

    def wrap(self, u, kind, body, attachment=b""):
        signature = self.key[u].sign(b"hubbub/secagg/1/" + kind.encode() + b"\0" + self.session + sha256(body))
        return enc(kind, self.session, body, signature, attachment)

    def write(self, u, kind):
        dimension = self.script["parameters"]["dimension"]
        if kind == "advert":
            return self.wrap(u, kind, self.advert(u))
        if kind == "share":
            return self.wrap(u, kind, *self.dealing(u))
        if kind == "masked":
            y = self.vector(u)
            return self.wrap(u, kind, enc(u, self.adverts(), self.edges_hash(), sha256(y), dimension, []), y)
        return self.wrap(u, kind, enc(u, self.survivors_hash()))


@pytest.mark.parametrize("name", ["secagg-complete", "secagg-sparse"])
def test_a_second_implementation_writes_the_same_bytes(name):
    script = json.loads((VECTORS / f"{name}.json").read_text())
    second = Second(script)
    assert second.session.hex() == script["session_id"]
    assert second.adverts().hex() == script["adverts"]
    assert second.edges_hash().hex() == script["edges"]
    seen = set()
    for way, text in script["messages"]:
        direction, peer = way.split()
        data = bytes.fromhex(text)
        kind = cut(data)[0].decode()
        if direction == "from" and kind != "unmask":
            assert second.write(peer, kind) == data, (way, kind)
            seen.add(kind)
    assert seen == {"advert", "share", "masked", "consent"}
    total = sum(np.array(script["vectors"][u], dtype=np.uint32) for u in script["survivors"])
    assert total.tolist() == script["sum"]
