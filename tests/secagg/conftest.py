"""A world of one server and n participants in memory, which any of them may leave at any stage."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from hubbub.errors import HubbubError
from hubbub.secagg import SUITE, Client, Member, Parameters, Roster, Server, Session, SigningKey
from hubbub.secagg.messages import Adverts, Close, Consents, Deliver, Envelope, Survivors, read, write

STAGES = ("advert", "share", "masked", "consent", "unmask")


def named(what):
    return hashlib.sha256(what.encode()).digest()


@dataclass
class World:
    """Everybody's keys and state; `client_type` and `server_type` may be dishonest."""

    parameters: Parameters
    client_type: Callable[..., Client] = Client
    server_type: Callable[..., Server] = Server
    orgs: int = 3
    marks: list = field(default_factory=list)
    charges: list = field(default_factory=list)
    refusals: dict = field(default_factory=dict)
    transcript: list = field(default_factory=list)

    def __post_init__(self):
        self.names = [f"site-{number:02d}" for number in range(self.parameters.n)]
        self.keys = {name: SigningKey(named(name)) for name in self.names}
        self.key = SigningKey(named("coordinator"))
        self.roster = Roster(
            [Member(name, f"org-{at % self.orgs}", self.keys[name].public) for at, name in enumerate(self.names)]
        )
        self.clients = {name: self.make_client(name) for name in self.names}
        self.server = self.make_server(self.session())

    def session(self, **changes):
        made = Session(
            suite=SUITE,
            coordinator=self.key.public,
            study="toy",
            plan=named("plan"),
            run=1,
            parameters=self.parameters.hash,
            roster_epoch=1,
            roster=named("roster"),
            payload="update",
            round_number=1,
            attempt=1,
            model=named("model"),
            log_origin="toy",
            log_size=0,
            log_root=named("log"),
        )
        return msgspec.structs.replace(made, **changes)

    def make_client(self, name, **changes):
        ports = {
            "mark": lambda *mark: self.marks.append((name, mark)),
            "charge": lambda *attempt: self.charges.append((name, attempt)),
        }
        return self.client_type(
            name, key=self.keys[name], roster=self.roster, parameters=self.parameters, **{**ports, **changes}
        )

    def make_server(self, session):
        return self.server_type(session, key=self.key, roster=self.roster, parameters=self.parameters)

    def deliver(self, name, data, vectors):
        """What a participant answers to one message; None if it refuses or owes nothing."""
        client = self.clients[name]
        self.transcript.append((f"to {name}", data))
        try:
            if self.server.stage == "advert":
                return client.open(
                    data,
                    self.session(round_number=self.server.session.round_number, attempt=self.server.session.attempt),
                )
            reply = client.receive(data)
            if client.stage == "training":
                client.charge()
                reply = client.mask(vectors[name].copy())
        except HubbubError as error:
            self.refusals[name] = error.message
            return None
        return reply

    def ask(self, messages, vectors, absent=()):
        """Carry one stage's messages and the answers of all but the absent."""
        for name, data in messages.items():
            if name in absent:
                continue
            reply = self.deliver(name, data, vectors)
            if reply is not None:
                self.transcript.append((f"from {name}", reply))
                self.server.receive(reply)

    def until(self, stage, vectors, drops=None):
        """The messages that open `stage`, everything before it done; `drops[name]`: from when on it is gone."""
        messages = self.server.open()
        for at, name in enumerate(STAGES):
            if name == stage:
                break
            self.ask(messages, vectors, self._gone(drops, at))
            messages = self.server.advance()
        return messages

    def run(self, vectors, drops=None):
        """One session to its end. Returns the sum."""
        self.ask(self.until("unmask", vectors, drops), vectors, self._gone(drops, len(STAGES) - 1))
        self.server.advance()
        return self.server.total

    def _gone(self, drops, at):
        return {name for name, stage in (drops or {}).items() if STAGES.index(stage) <= at}

    def lie(self, data, change):
        """A message of the coordinator, its body changed and signed again."""
        envelope = read(Envelope, data)
        body = change(read(BODIES[envelope.kind], envelope.body))
        return write(envelope.kind, envelope.session, body, key=self.key)


BODIES = {
    "open": Session,
    "adverts": Adverts,
    "deliver": Deliver,
    "survivors": Survivors,
    "consents": Consents,
    "close": Close,
}


@pytest.fixture
def make_world():
    def make(n, *, colluding=1, dimension=5, neighbours=0, threshold=None, n_min=None, u_min=None, org_min=1, **kinds):
        needed = (n + colluding) // 2 + 1
        parameters = Parameters(
            n=n,
            n_min=needed if n_min is None else n_min,
            u_min=needed if u_min is None else u_min,
            threshold=needed if threshold is None else threshold,
            neighbours=neighbours,
            colluding=colluding,
            org_min=org_min,
            dimension=dimension,
        )
        return World(parameters, **kinds)

    return make


@pytest.fixture
def make_vectors():
    def make(world, seed=0):
        rng = np.random.default_rng(seed)
        return {name: rng.integers(0, 2**32, world.parameters.dimension, dtype=np.uint32) for name in world.names}

    return make
