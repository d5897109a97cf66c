"""Only the sum: two state machines that add vectors up so that nobody sees one of them.

    keys.py          primitives, hashes and signatures with domains
    ring.py          vectors modulo 2^32 and their masks
    shamir.py        a secret in shares
    parameters.py    thresholds
    messages.py      what the halves say to each other
    agreement.py     what both compute alike: positions, graphs, hashes
    checks.py        what a participant refuses
    dealing.py       its two secrets in sealed shares
    client.py        the participant's half
    server.py        the coordinator's half
    closing.py       how a session's end is written down

Hardened SecAgg+: docs/spec/secagg.md says it byte by byte.

*Trust:* the server sees the sum of at least U_min vectors and, with up to c of n keys, nothing else of a
session; whether the sum it reports is right is not promised here.

Source:
    Bonawitz et al. 2017, doi:10.1145/3133956.3133982; Bell et al. 2020, eprint 2020/704;
    Pasquini et al. 2022, arXiv:2111.07380 (model inconsistency).
"""

from hubbub.secagg.agreement import Member, Roster
from hubbub.secagg.client import Client
from hubbub.secagg.keys import SigningKey
from hubbub.secagg.messages import SUITE, Session
from hubbub.secagg.parameters import Parameters
from hubbub.secagg.server import Server

__all__ = ["SUITE", "Client", "Member", "Parameters", "Roster", "Server", "Session", "SigningKey"]
