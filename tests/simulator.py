"""A dishonest world in memory: one coordinator, n participants, a wire between them, and what the liars learn.

The participants and the coordinator are the real ones, or subclasses that lie. Bytes travel through `World.wire`,
which may drop, delay, double or replace them. A participant's `Disk` outlives a crash, its memory does not.
`Spy` is the coordinator together with the corrupt participants: it keeps every vector and share that left an
honest participant and computes all sums that follow from them.
"""

import hashlib
from dataclasses import dataclass, field

import msgspec
import numpy as np

from hubbub.errors import BudgetError, HubbubError
from hubbub.secagg import SUITE, Client, Member, Parameters, Roster, Server, Session, SigningKey, shamir
from hubbub.secagg.keys import ExchangeKey, pair_key, self_key
from hubbub.secagg.messages import (
    Adverts,
    Close,
    Consents,
    Deliver,
    Envelope,
    Leaves,
    Signed,
    Survivors,
    Unmask,
    read,
    write,
)
from hubbub.secagg.parameters import majority
from hubbub.secagg.ring import add_masks, unpack

STAGES = ("advert", "share", "masked", "consent", "unmask")
BODIES = {
    "open": Session,
    "adverts": Adverts,
    "deliver": Deliver,
    "survivors": Survivors,
    "consents": Consents,
    "close": Close,
}
replace = msgspec.structs.replace


def named(what):
    """32 bytes that belong to a name."""
    return hashlib.sha256(what.encode()).digest()


def signed(reply):
    """A participant's body and signature, as the coordinator passes it on."""
    envelope = read(Envelope, reply)
    return Signed(envelope.body, envelope.signature)


@dataclass
class Disk:
    """What a participant keeps through a crash: its mark and its ledger, which holds an attempt once."""

    budget: int = 100
    mark: tuple = (0, 0, 0)
    charges: list = field(default_factory=list)

    def set_mark(self, *mark):
        self.mark = mark

    def charge(self, *attempt):
        if attempt in self.charges:
            return
        if len(self.charges) == self.budget:
            raise BudgetError("ledger, has nothing left; nothing spent", hint="hubbub budget grant")
        self.charges.append(attempt)


class Spy:
    """The coordinator and the corrupt participants: all that they saw in one session, and what follows from it.

    `views` are the sessions in the participants' memory. Of an honest one only its graph, names and hashes are
    used here, which the coordinator told it itself; of a corrupt one everything.
    """

    def __init__(self, corrupt):
        self.corrupt = corrupt
        self.views = {}
        self.sent = []
        self.vectors = {}
        self.shares = {}
        self.leaves = {}

    def see(self, name, held, reply):
        """Read one answer of a participant."""
        envelope = read(Envelope, reply)
        self.views[name] = held
        self.sent.append((envelope.kind, name))
        if envelope.kind == "share":
            self.leaves[name] = read(Leaves, envelope.attachment).leaves
        if envelope.kind == "masked":
            self.vectors[name] = unpack(envelope.attachment)
        if envelope.kind == "unmask":
            dealers = held.graph.places(held.graph.holders[:, held.place])
            for dealer, share in zip(dealers, read(Unmask, envelope.body).shares, strict=True):
                self._keep("b" if held.survivors[dealer] else "seed", held, dealer, share)

    def _keep(self, kind, held, dealer, share):
        if share:
            self.shares.setdefault((kind, held.scope, held.names[dealer]), {})[held.place + 1] = share

    def has(self, kind):
        """Whether any participant sent a message of this kind."""
        return any(kind == one for one, _ in self.sent)

    @property
    def is_one_kind_each(self):
        """Whether no holder gave both shares of one dealer."""
        pairs = [(scope, dealer, x) for (_, scope, dealer), found in self.shares.items() for x in found]
        return len(pairs) == len(set(pairs))

    def secret(self, kind, name):
        """A participant's seed b, or that of its mask key; None if too few shares of it are known."""
        held = self.views.get(name)
        if held is None:
            return None
        if name in self.corrupt:
            return held.self_seed if kind == "b" else held.mask_seed
        found = dict(self.shares.get((kind, held.scope, name), {}))
        for ally in self.corrupt:
            view = self.views.get(ally)
            if view is not None and view.scope == held.scope and held.place in view.shares:
                found[view.place + 1] = view.shares[held.place][0 if kind == "b" else 1]
        if len(found) < held.threshold:
            return None
        return shamir.combine({x: found[x] for x in sorted(found)[: held.threshold]})

    def sum_over(self, names):
        """The sum of these participants' vectors; None if it does not follow from what is known."""
        plus, minus = [], []
        for name in names:
            held, seed = self.views.get(name), self.secret("b", name)
            if name not in self.vectors or seed is None:
                return None
            minus.append(self_key(seed, held.scope, name))
            for place in held.graph.places(held.graph.partners[held.place]):
                if self._cancels(held, name, held.names[place], names):
                    continue
                key = self._pair(held, name, held.names[place])
                if key is None:
                    return None
                (minus if held.place < place else plus).append(key)
        total = sum((self.vectors[name] for name in names), start=np.uint32(0))
        add_masks(total, plus=plus, minus=minus)
        return total

    def _cancels(self, held, name, peer, names):
        view = self.views.get(peer)
        return (
            peer in names and view.scope == held.scope and bool(view.graph.partners[view.place, view.names.index(name)])
        )

    def _pair(self, held, name, peer):
        keys = {advert.participant: advert.mask_key for advert in held.adverts}
        for one, other in ((name, peer), (peer, name)):
            seed = self.secret("seed", one)
            if seed is not None:
                return pair_key(ExchangeKey(seed).agree(keys[other], other), held.scope, name, peer)
        return None


class World:
    """Everybody's keys, disks and memory.

    Args:
        n: Participants, `site-00` to `site-..`, in `orgs` organisations by turns.
        colluding: What the plan allows for.
        corrupt: Who really shares keys with the coordinator.
        kinds: Participants of another class, by name; `kind` is everybody else's.
        server: The coordinator's class.
        budget: Attempts that each ledger admits.
        salt: Other keys under the same names.
    """

    def __init__(
        self, n, *, colluding=1, corrupt=(), kinds=None, kind=Client, server=Server, budget=100, orgs=3, salt="", **plan
    ):
        needed = majority(n, colluding)
        thresholds = {
            "n": n, "n_min": needed, "u_min": needed, "threshold": needed, "neighbours": 0, "org_min": 1,
            "dimension": 5,
        }  # fmt: skip
        self.parameters = Parameters(colluding=colluding, **{**thresholds, **plan})
        self.names = [f"site-{number:02d}" for number in range(n)]
        self.corrupt = corrupt
        self.kinds = dict.fromkeys(self.names, kind) | (kinds or {})
        self.server_type = server
        self.key = SigningKey(named("coordinator"))
        self.keys = {name: SigningKey(named(salt + name)) for name in self.names}
        self.orgs = orgs
        rng = np.random.default_rng(n)
        self.vectors = {name: rng.integers(0, 2**32, self.parameters.dimension, dtype=np.uint32) for name in self.names}
        self.disks = {name: Disk(budget) for name in self.names}
        self.clients = {}
        self.own = {}
        """Sessions as those participants know them who know another one than `session()`."""
        self.refusals = {}
        self.failure = None
        for name in self.names:
            self.restart(name)

    @property
    def roster(self):
        return Roster(
            [Member(name, f"org-{at % self.orgs}", self.keys[name].public) for at, name in enumerate(self.names)]
        )

    def restart(self, name, **options):
        """A participant that was killed, or starts for the first time: what its disk says is all it knows."""
        disk = self.disks[name]
        self.clients[name] = self.kinds[name](
            name, key=self.keys[name], roster=self.roster, parameters=self.parameters, mark=disk.set_mark,
            charge=disk.charge, last_mark=disk.mark, **options,
        )  # fmt: skip

    def session(self, **changes):
        """What an honest coordinator and honest participants agree to be in."""
        made = Session(
            suite=SUITE, coordinator=self.key.public, study="toy", plan=named("plan"), run=1,
            parameters=self.parameters.hash, roster_epoch=1, roster=named("roster"), payload="update",
            round_number=1, attempt=1, model=named("model"), log_origin="toy", log_size=0, log_root=named("log"),
        )  # fmt: skip
        return replace(made, **changes)

    # --- the wire ---

    def wire(self, _kind, _name, data):
        """What arrives when `data` of a kind is sent to or by a participant: nothing, it, another, or several."""
        return [data]

    def write(self, kind, body):
        """A message that the coordinator signs in the current session."""
        return write(kind, self.server.session.id, body, key=self.key)

    def lie(self, data, change):
        """A message of the coordinator, its body changed and signed again."""
        envelope = read(Envelope, data)
        body = change(read(BODIES[envelope.kind], envelope.body))
        return write(envelope.kind, envelope.session, body, key=self.key)

    def train(self, name):
        """The vector of a participant: the same each time, as in a study without noise."""
        return self.vectors[name].copy()

    def tell(self, name, data):
        """Give a participant one message. Returns its answer; None if it refuses or owes none."""
        client, reply = self.clients[name], None
        try:
            if self.server.stage == "advert":
                reply = client.open(data, self.own.get(name, self.session(attempt=self.server.session.attempt)))
            else:
                reply = client.receive(data)
            if client.stage == "training":
                self._charge(name)
                reply = client.mask(self.train(name))
        except HubbubError as error:
            self.refusals.setdefault(name, []).append(error.message)
            return None
        if reply is not None:
            self.spy.see(name, client._held, reply)
        return reply

    def _charge(self, name):
        """Charge, as a host does that goes on when its ledger says no."""
        try:
            self.clients[name].charge()
        except BudgetError as error:
            self.refusals.setdefault(name, []).append(error.message)

    def ask(self, messages):
        """Carry messages out and the answers back. Returns them by participant."""
        replies = {}
        for name, data in messages.items():
            for arrived in self.wire(read(Envelope, data).kind, name, data):
                reply = self.tell(name, arrived)
                if reply is not None:
                    replies[name] = reply
        return replies

    def take(self, replies):
        """Give the coordinator answers; what it does not take, it did not get."""
        for name, reply in replies.items():
            for arrived in self.wire(self.server.stage, name, reply):
                try:
                    self.server.receive(arrived)
                except HubbubError as error:
                    self.refusals.setdefault("coordinator", []).append(error.message)

    def start(self, **changes):
        """A session at its first message."""
        self.spy = Spy(self.corrupt)
        self.server = self.server_type(
            self.session(**changes), key=self.key, roster=self.roster, parameters=self.parameters
        )
        return self.server.open()

    def play(self, until=None, *, gone=None, **changes):
        """A session until the messages that open the stage `until`, which it returns; or to its end: the sum.

        `gone` says by name from which stage on somebody does not answer. None if the session fails; `failure`
        says how.
        """
        messages = self.start(**changes)
        for at, stage in enumerate(STAGES):
            if stage == until:
                return messages
            left = {name for name, since in (gone or {}).items() if STAGES.index(since) <= at}
            self.take(self.ask({name: data for name, data in messages.items() if name not in left}))
            messages = self.advance()
            if messages is None:
                return None
        return self.server.total

    def advance(self):
        """End a stage; None if that is the end of the session."""
        try:
            return self.server.advance()
        except HubbubError as error:
            self.failure = error.message
            return None

    # --- what came of it ---

    def exact(self, names=None):
        """The sum that an honest session gives."""
        return sum((self.vectors[name] for name in names or self.names), start=np.uint32(0))

    def is_exact(self, found, names=None):
        """Whether these are that sum's bits; nothing found is not."""
        return found is not None and np.array_equal(found, self.exact(names))

    def learnt(self, *names):
        """Whether the spy has the sum of exactly these vectors."""
        return self.is_exact(self.spy.sum_over(names), names)
