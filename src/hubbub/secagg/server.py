"""The coordinator's half: it carries messages, and of what they hide it learns the sum.

    open, then per stage: `receive` answers, `advance` at the deadline; `total` after the last; `close`

Bytes in, bytes out; no clock: whoever drives it decides when a stage is over. Who has not answered by then has
dropped out; below a floor the session fails by name. What participants send is checked here first, so that one
who lies is named and the others do not meet the lie.

*Trust:* none for privacy: `client` refuses what an honest server would not send. For the sum to be right,
all: it can report any number.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt32

from hubbub.errors import RoundError
from hubbub.secagg import agreement as agreed
from hubbub.secagg import shamir
from hubbub.secagg.agreement import Graph, Roster
from hubbub.secagg.closing import Closing, Receipt, close_session
from hubbub.secagg.keys import (
    KEY_BYTES,
    TAG_BYTES,
    ExchangeKey,
    SigningKey,
    enc,
    fresh,
    is_exchange_key,
    pair_key,
    self_key,
    sha256,
)
from hubbub.secagg.messages import (
    Advert,
    Adverts,
    Close,
    Consent,
    Consents,
    Dealing,
    Delivered,
    Envelope,
    Evidence,
    Header,
    Leaf,
    Leaves,
    Part,
    Session,
    Signed,
    Survivors,
    Unmask,
    is_by,
    read,
    write,
)
from hubbub.secagg.parameters import Parameters, blocks_of
from hubbub.secagg.ring import add_masks, unpack

Stage = Literal["advert", "share", "masked", "consent", "unmask", "done", "failed"]
Members = Bool[np.ndarray, " adverts"]

_SEALED_BYTES = 2 * shamir.SHARE_BYTES + TAG_BYTES
_BODIES: dict[str, type[Advert | Dealing | Header | Consent | Unmask]] = {
    "advert": Advert,
    "share": Dealing,
    "masked": Header,
    "consent": Consent,
    "unmask": Unmask,
}


class Server:
    """One session.

    Args:
        session: What it is bound to.
        key: The coordinator's signing key.
        roster: Who may take part.
        parameters: The thresholds of the plan.

    Guarantees:
        `total` is the sum, modulo 2^32, of the vectors of exactly `survivors`, or `advance` raises.
    """

    def __init__(self, session: Session, *, key: SigningKey, roster: Roster, parameters: Parameters) -> None:
        self.session = session
        self.stage: Stage = "advert"
        self.evidence: list[Evidence] = []
        self.liars: dict[str, str] = {}
        """Who sent something that proves a lie, and what it was."""
        self.reported: dict[str, tuple[str, ...]] = {}
        """Dealers whose shares did not open, and who says so: a claim, not a proof."""
        self.total: UInt32[np.ndarray, " params"] | None = None
        self._id = session.id
        self._key = key
        self._roster = roster
        self._parameters = parameters
        self._awaited: set[str] = set(roster.members)
        self._answers: dict[str, dict[str, Signed]] = {kind: {} for kind in _BODIES}
        self._adverts: dict[str, Advert] = {}
        self._names: tuple[str, ...] = ()
        self._adverts_hash = self._scope = self._edges_hash = self._survivors_hash = self._salt = b""
        self._threshold = 0
        self._edges: dict[int, Members] = {}
        self._leaves: dict[int, tuple[Leaf, ...]] = {}
        self._levels: dict[int, list[list[bytes]]] = {}
        self._graph = agreed.empty_graph()
        self._indices = np.zeros((0, 0), dtype=np.int64)  # of a holder among its dealer's leaves
        self._vectors: dict[int, UInt32[np.ndarray, " params"]] = {}
        self._members: Members = self._graph.dealt
        self._shares: dict[int, dict[int, bytes]] = {}

    # --- what a driver calls ---

    def open(self) -> dict[str, bytes]:
        """Message 0, to everybody on the roster."""
        return dict.fromkeys(self._roster.members, self._write("open", self.session))

    @property
    def awaited(self) -> frozenset[str]:
        """Who has been asked in this stage and has not answered."""
        return frozenset(self._awaited - self._answers.get(self.stage, {}).keys())

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum."""
        return self._graph.named(self._members)

    @property
    def dropouts(self) -> tuple[str, ...]:
        """Who advertised and is not in the sum."""
        return tuple(name for name in self._names if name not in self.survivors)

    def receive(self, data: bytes | memoryview) -> None:
        """Take one answer; the same one again changes nothing.

        Raises:
            RoundError: Late, out of order, or not as the protocol says; nothing was taken.
            InputError: The bytes are no message.
        """
        envelope = read(Envelope, data)
        if envelope.session != self._id or envelope.kind != self.stage or envelope.kind not in _BODIES:
            raise self._refusal(f"awaits {self.stage!r} of its own session", f"{envelope.kind!r}")
        body = read(_BODIES[envelope.kind], envelope.body)
        name, signed = body.participant, Signed(envelope.body, envelope.signature)
        if name not in self._awaited:
            raise self._refusal("takes answers of those it asked", f"one of {name!r}")
        if not is_by(self._roster.members[name].key, envelope.kind, self._id, signed):
            raise self._refusal(f"takes what {name!r} signed", "another signature")
        if envelope.attachment and envelope.kind not in ("share", "masked"):
            raise self._refusal(f"takes no attachment to {envelope.kind!r}", f"{len(envelope.attachment)} bytes")
        earlier = self._answers[envelope.kind].get(name)
        if earlier is None:
            self._take(name, body, envelope.attachment)
            self._answers[envelope.kind][name] = signed
        elif earlier.body != signed.body:
            self._blame(name, f"two answers {envelope.kind!r} in one session", earlier.encode(), bytes(data))
            raise self._refusal(f"takes one {envelope.kind!r} of each participant", f"another of {name!r}")

    def advance(self) -> dict[str, bytes]:
        """End the stage: what to send next, by receiver; nothing after the last, when `total` is there.

        Raises:
            RoundError: Too few are left, or a dealer lied; the session has failed.
        """
        match self.stage:
            case "advert":
                return self._send_adverts()
            case "share":
                return self._send_dealings()
            case "masked":
                return self._send_survivors()
            case "consent":
                return self._send_consents()
            case "unmask":
                self.total = self._recover()
                self.stage = "done"
                return {}
            case _:
                raise self._refusal("has ended", f"stage {self.stage!r}")

    def close(self, aggregate: bytes = b"") -> dict[str, bytes]:
        """Message 6, to all who advertised: how it ended, and what is released, if anything."""
        outcome = "released" if self.stage == "done" else "aborted"
        self.stage = self.stage if self.stage == "done" else "failed"
        return dict.fromkeys(self._names, self._write("close", Close(outcome, self._survivors_hash, aggregate)))

    def record(self, aggregate: bytes | memoryview) -> tuple[Closing, dict[str, Receipt]]:
        """What may be written down of a session whose sum is complete, and each survivor's receipt.

        Args:
            aggregate: The bytes of the sum.
        """
        said = self._answers["consent"]
        return close_session(
            {name: said[name].encode() if name in said else b"" for name in self.survivors},
            salt=self._salt,
            adverts=self._adverts_hash,
            survivors=self._survivors_hash,
            aggregate=aggregate,
            most=self._parameters.n,
            draw=self._draw,
        )

    # --- taking answers ---

    def _take(
        self, name: str, body: Advert | Dealing | Header | Consent | Unmask, attachment: bytes | memoryview
    ) -> None:
        match body:
            case Advert():
                self._take_advert(body)
            case Dealing():
                self._take_dealing(self._names.index(name), body, read(Leaves, attachment).leaves)
            case Header():
                self._take_vector(self._names.index(name), body, attachment)
            case Consent():
                self._check_survivors_hash(name, body.survivors)
            case _:
                self._check_survivors_hash(name, body.survivors)
                self._take_shares(self._names.index(name), body.shares)

    def _take_advert(self, advert: Advert) -> None:
        keys = {advert.cipher_key, advert.mask_key}
        taken = {key for other in self._adverts.values() for key in (other.cipher_key, other.mask_key)}
        if len(keys) < 2 or keys & taken or not all(map(is_exchange_key, keys)):  # noqa: PLR2004, two keys
            raise self._refusal(
                "takes two fresh keys of each participant", f"one used already or malformed from {advert.participant!r}"
            )
        probe = ExchangeKey(fresh(KEY_BYTES))
        for key in keys:  # one of small order would make every honest participant refuse the whole list
            probe.agree(key, advert.participant)
        self._adverts[advert.participant] = advert

    def _take_dealing(self, place: int, dealing: Dealing, leaves: Sequence[Leaf]) -> None:
        row = agreed.read_edges(dealing.edges, place, adverts=len(self._names), neighbours=self._parameters.neighbours)
        if dealing.adverts != self._adverts_hash or row is None:
            raise self._refusal("takes dealings over its adverts, to as many holders as planned", "another")
        holders = sorted([*np.flatnonzero(row).tolist(), place])
        sizes = [0 if holder == place else _SEALED_BYTES for holder in holders]
        if [len(leaf.sealed) for leaf in leaves] != sizes:
            raise self._refusal("takes one sealed pair of shares for each other holder", "another number or size")
        hashes = [agreed.leaf_hash(self._names[at], leaf) for at, leaf in zip(holders, leaves, strict=True)]
        levels = agreed.tree(hashes)
        if levels[-1][0] != dealing.shares:
            raise self._refusal("takes shares that their dealer committed to", f"others from {dealing.participant!r}")
        self._edges[place], self._leaves[place], self._levels[place] = row, tuple(leaves), levels

    def _take_vector(self, place: int, header: Header, data: bytes | memoryview) -> None:
        dimension = self._parameters.dimension
        if (header.adverts, header.edges, header.dimension) != (self._adverts_hash, self._edges_hash, dimension):
            raise self._refusal("takes vectors masked on its own graph", f"another from {header.participant!r}")
        if len(data) != 4 * dimension or sha256(data) != header.vector:
            raise self._refusal("takes the vector that the header names", f"another from {header.participant!r}")
        self._vectors[place] = unpack(data)
        for dealer in set(header.bad_dealers).intersection(self._names):
            self.reported[dealer] = (*self.reported.get(dealer, ()), header.participant)

    def _check_survivors_hash(self, name: str, survivors: bytes) -> None:
        if survivors != self._survivors_hash:
            raise self._refusal("takes answers about its own survivors", f"another from {name!r}")

    def _take_shares(self, holder: int, shares: Sequence[bytes]) -> None:
        """Keep the shares that are as their dealer committed; another one proves that its holder lied."""
        dealers = self._graph.places(self._graph.holders[:, holder])
        if len(dealers) != len(shares):
            raise self._refusal(f"takes {len(dealers)} shares of {self._names[holder]!r}", f"{len(shares)}")
        for dealer, share in zip(dealers, shares, strict=True):
            if self._is_committed(dealer, holder, share):
                self._shares.setdefault(dealer, {})[holder + 1] = share
            elif share:
                self._blame(self._names[holder], f"a wrong share of {self._names[dealer]!r}", share)

    def _is_committed(self, dealer: int, holder: int, share: bytes) -> bool:
        leaf = self._leaves[dealer][self._indices[dealer, holder]]
        kind, expected = ("b share", leaf.self_hash) if self._members[dealer] else ("seed share", leaf.seed_hash)
        found = agreed.share_hash(kind, self._scope, self._names[dealer], self._names[holder], share)
        return found == expected

    # --- ending stages ---

    def _send_adverts(self) -> dict[str, bytes]:
        answers = self._answers["advert"]
        self._names = tuple(sorted(answers, key=agreed.name_order))
        self._check_floor("adverts", len(self._names), self._parameters.n_min)
        self._check_floor("organisations", self._roster.organisations(self._names), self._parameters.org_min)
        signed = tuple(answers[name] for name in self._names)
        self._threshold = self._parameters.threshold_for(len(self._names))
        self._adverts_hash = agreed.adverts_digest(self._id, [one.body for one in signed])
        self._scope = agreed.scope_of(self._id, self._adverts_hash)
        return self._ask("share", self._names, self._write("adverts", Adverts(signed)))

    def _send_dealings(self) -> dict[str, bytes]:
        dealt = self._dealers()
        edges = {place: self._edges[place] for place in np.flatnonzero(dealt).tolist()}
        self._graph = agreed.make_graph(self._names, edges)
        signed = [self._answers["share"][name] for name in self._graph.named(dealt)]
        self._edges_hash = agreed.edges_digest(self._id, self._adverts_hash, [one.body for one in signed])
        dealings = enc(*(one.encode() for one in signed))
        places = self._graph.places(dealt)
        self._indices = np.cumsum(self._graph.holders, axis=1) - 1
        messages = {
            self._names[place]: self._write("deliver", enc(self._names[place], dealings, self._delivered(place)))
            for place in places
        }
        return self._ask_each("masked", messages)

    def _dealers(self) -> Members:
        """Who dealt and has enough holders among those who dealt."""
        every = agreed.make_graph(self._names, self._edges)
        dealt = self._shrink(every, every.dealt)
        self._check_floor("dealers", int(dealt.sum()), max(self._parameters.n_min, self._threshold))
        return dealt

    def _shrink(self, graph: Graph, members: Members) -> Members:
        """The largest subset in which each has `threshold` holders; on the complete graph its size decides alone."""
        while (
            self._parameters.neighbours and (few := members & (graph.holders_within(members) < self._threshold)).any()
        ):
            members = members & ~few
        return members

    def _delivered(self, holder: int) -> bytes:
        return enc(
            *(
                self._deliver_one(dealer, int(self._indices[dealer, holder])).encode()
                for dealer in self._graph.places(self._graph.holders[:, holder])
                if dealer != holder
            )
        )

    def _deliver_one(self, dealer: int, index: int) -> Delivered:
        return Delivered(self._leaves[dealer][index], agreed.path_of(self._levels[dealer], index))

    def _send_survivors(self) -> dict[str, bytes]:
        sent = np.zeros_like(self._graph.dealt)
        sent[list(self._vectors)] = True
        self._members = self._choose_survivors(sent)
        self._check_floor("survivors", int(self._members.sum()), max(self._parameters.u_min, self._threshold))
        bitmap, self._salt = agreed.pack_bits(self._members[self._graph.dealt]), self._draw(32)
        scope = (self._id, self._adverts_hash, self._edges_hash)
        self._survivors_hash = agreed.survivors_digest(*scope, bitmap, self._salt)
        messages: dict[str, bytes] = {}
        for place in self._graph.places(self._members):
            name, headers = self._names[place], self._headers(self._members & self._graph.holders[:, place])
            messages[name] = self._write("survivors", Survivors(name, bitmap, self._salt, headers))
        return self._ask_each("consent", messages)

    def _choose_survivors(self, sent: Members) -> Members:
        """The largest set in which each has its holders, and each block is whole or absent."""
        members = self._shrink(self._graph, sent)
        while (broken := self._broken_blocks(members)).any():
            members = self._shrink(self._graph, members & ~broken)
        return members

    def _broken_blocks(self, members: Members) -> Members:
        """Members whose block is not all there."""
        inside, broken = set(self._graph.named(members)), np.zeros_like(members)
        if self._parameters.block:
            for block in blocks_of(self._roster.members, self._parameters.block):
                if not inside.issuperset(block):
                    broken |= np.isin(np.array(self._names), block)
        return members & broken

    def _headers(self, dealers: Members) -> tuple[Signed, ...]:
        return tuple(self._answers["masked"][name] for name in self._graph.named(dealers))

    def _send_consents(self) -> dict[str, bytes]:
        consents = self._answers["consent"]
        quorum = self._parameters.quorum_for(len(self._names))
        self._check_floor("consents", len(consents), quorum)
        chosen = tuple(consents[name] for name in sorted(consents, key=agreed.name_order)[:quorum])
        return self._ask("unmask", consents, self._write("consents", Consents(chosen)))

    # --- the sum ---

    def _recover(self) -> UInt32[np.ndarray, " params"]:
        """Sum of the masked vectors, less every mask that did not cancel."""
        plus, minus = list[bytes](), list[bytes]()
        for place in self._graph.places(self._graph.dealt):
            secret = self._combine(place)
            if self._members[place]:
                minus.append(self._self_mask(place, secret))
            else:
                self._pair_masks(place, secret, plus, minus)
        total = np.zeros(self._parameters.dimension, dtype=np.uint32)
        for place in self._graph.places(self._members):
            total += self._vectors[place]
        add_masks(total, plus=plus, minus=minus)
        return total

    def _combine(self, dealer: int) -> bytes:
        shares = self._shares.get(dealer, {})
        self._check_floor(f"shares of {self._names[dealer]!r}", len(shares), self._threshold)
        try:
            return shamir.combine({x: shares[x] for x in sorted(shares)[: self._threshold]})
        except RoundError:
            raise self._bad_dealer(dealer) from None

    def _self_mask(self, place: int, secret: bytes) -> bytes:
        name = self._names[place]
        if agreed.commit_seed(self._id, name, secret) != self._adverts[name].commitment:
            raise self._bad_dealer(place)
        return self_key(secret, self._scope, name)

    def _pair_masks(self, place: int, secret: bytes, plus: list[bytes], minus: list[bytes]) -> None:
        """Undo what survivors added or subtracted for this dropout."""
        name, key = self._names[place], ExchangeKey(secret)
        if key.public != self._adverts[name].mask_key:
            raise self._bad_dealer(place)
        for peer in self._graph.places(self._graph.partners[place] & self._members):
            shared = key.agree(self._adverts[self._names[peer]].mask_key, self._names[peer])
            mask = pair_key(shared, self._scope, name, self._names[peer])
            (minus if peer < place else plus).append(mask)

    # --- small parts ---

    def _draw(self, size: int) -> bytes:
        return fresh(size)

    def _write(self, kind: str, body: Part | bytes) -> bytes:
        return write(kind, self._id, body, key=self._key)

    def _ask(self, stage: Stage, names: Collection[str], message: bytes) -> dict[str, bytes]:
        return self._ask_each(stage, dict.fromkeys(names, message))

    def _ask_each(self, stage: Stage, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        self.stage, self._awaited = stage, set(messages)
        return dict(messages)

    def _blame(self, name: str, reason: str, *messages: bytes) -> None:
        self.liars[name] = reason
        self.evidence.append(Evidence(f"{name}: {reason}", messages))

    def _check_floor(self, what: str, found: int, fewest: int) -> None:
        if found < fewest:
            raise self._fail(f"needs {fewest} {what}", f"{found}", hint="wait for more participants, then try again")

    def _bad_dealer(self, place: int) -> RoundError:
        name = self._names[place]
        self.liars[name] = "shares that do not give what it committed to"
        return self._fail(
            f"needs the secret that {name!r} committed to", "shares of another", hint=f"try again without {name}"
        )

    def _fail(self, rule: str, found: str, *, hint: str) -> RoundError:
        """End the session; from the moment that dealings were sent participants may have charged it."""
        is_free = self.stage in ("advert", "share")
        self.stage = "failed"
        spent = "no budget spent" if is_free else "the attempt is charged"
        return RoundError(f"{self._where}, {rule}, found {found}; nothing revealed, {spent}", hint=hint)

    def _refusal(self, rule: str, found: str) -> RoundError:
        return RoundError(f"{self._where}, {rule}, found {found}; nothing taken", hint="it counts as dropped out")

    @property
    def _where(self) -> str:
        return f"round {self.session.round_number} attempt {self.session.attempt}"
