"""What both ends of a pipe are configured with: certificates, limits, how soon silence counts."""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hubbub.engine.direct.frames import LARGEST

ATTEND = "/hubbub.Direct/Attend"
COMMAND = "/hubbub.Direct/Command"
VERSION = (("hubbub-direct", "1"),)
"""What a coordinator says first to whomever it admits."""


@dataclass(frozen=True)
class Credentials:
    """One end's certificate and key, and whom it believes; all PEM.

    Args:
        authority: Certificate of the authority that signs everybody's certificates.
        certificate: Own certificate, and those between it and the authority's.
        key: Own private key.
    """

    authority: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Credentials(authority={fingerprint(self.authority)[:16]!r}, ...)"


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate's public key (its SubjectPublicKeyInfo), in hex.

    What the roster binds a name to: a certificate that is renewed for the same key is the same pipe.
    """
    key = x509.load_pem_x509_certificate(certificate).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@dataclass(frozen=True)
class Tuning:
    """How much and how long; none of it touches privacy.

    Args:
        limit: Bytes of one message that is received, at most.
        spool_above: Bytes; larger messages lie in a file.
        grace: Seconds that a coordinator waits for somebody to come back when nobody is left to answer; seconds that
            a participant which is told to stop waits for the question at hand.
        keepalive: Seconds of silence after which the other end is asked for a sign of life; it has twice as many.
        capacity: Pipes and commands at the same time, at most.
    """

    limit: int = 1 << 30
    spool_above: int = 4 << 20
    grace: float = 2.0
    keepalive: float = 4.0
    capacity: int = 256

    def options(self) -> list[tuple[str, int]]:
        """Channel arguments of gRPC, for either end."""
        silence, patience = int(1000 * self.keepalive), int(2000 * self.keepalive)
        return [
            ("grpc.max_receive_message_length", LARGEST),
            ("grpc.max_send_message_length", LARGEST),
            ("grpc.keepalive_time_ms", silence),
            ("grpc.keepalive_timeout_ms", patience),
            ("grpc.http2.ping_timeout_ms", patience),  # else it is a minute, whatever the line above says
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 100),
            ("grpc.http2.max_ping_strikes", 0),
            # A ping waits behind what is under way: if that is little, a slow wire is not taken for a dead one.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 2 << 20),
            ("grpc.so_reuseport", 0),  # else a second coordinator gets half of the participants
            ("grpc.use_local_subchannel_pool", 1),  # else an earlier failure delays the next attempt
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.max_concurrent_streams", 8),
        ]
