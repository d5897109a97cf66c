"""The participant's half: it trusts the server with nothing but delivery.

    open -> advert    adverts -> share    deliver -> (charge, train) -> masked
    survivors -> consent    consents -> unmask    close

Bytes in, bytes out; no clock, no socket, no file. Before a reply leaves, what it rests on is checked here, by
one small function per rule. Two things are durable, through the ports `mark` and `charge`; every secret is in
memory only and gone when the session ends, so a second answer to one question cannot exist.

*Trust:* this half protects its owner's vector against the server and up to c others; whoever reads its
memory during a session reads the vector.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Bool, UInt32

from hubbub.errors import HubbubError, RoundError
from hubbub.randomness import OperatingSystemRandomness
from hubbub.secagg import agreement as agreed
from hubbub.secagg import shamir
from hubbub.secagg.agreement import Graph, Roster
from hubbub.secagg.keys import (
    KEY_BYTES,
    ExchangeKey,
    SigningKey,
    fresh,
    is_exchange_key,
    pair_key,
    seal,
    self_key,
    sha256,
    share_key,
    unseal,
)
from hubbub.secagg.messages import (
    SUITE,
    Advert,
    Adverts,
    Close,
    Consent,
    Consents,
    Dealing,
    Deliver,
    Delivered,
    Envelope,
    Evidence,
    Header,
    Leaf,
    Leaves,
    Session,
    Signed,
    Survivors,
    Unmask,
    is_by,
    read,
    write,
)
from hubbub.secagg.parameters import Parameters
from hubbub.secagg.ring import add_masks, pack

Mark = Callable[[int, int, int], None]
Charge = Callable[[int, int], None]
Stage = Literal["adverted", "shared", "training", "charged", "masked", "consented", "unmasked"]

_AWAITED: dict[Stage, str] = {
    "adverted": "adverts",
    "shared": "deliver",
    "masked": "survivors",
    "consented": "consents",
    "unmasked": "close",
}
_CHARGED = ("charged", "masked", "consented", "unmasked")
_REPORT = "keep this session's messages as evidence and report the coordinator"


class SessionRecord(msgspec.Struct, frozen=True):
    """What may be written down about a session: how far it came and the hashes agreed on."""

    session: bytes
    stage: Stage
    adverts: bytes
    edges: bytes
    survivors: bytes


@dataclass(repr=False)
class _Held:
    """One session in memory: its secrets, what was agreed on, and the replies given."""

    session: Session
    id: bytes
    cipher: ExchangeKey
    mask: ExchangeKey
    mask_seed: bytes
    self_seed: bytes
    stage: Stage = "adverted"
    own: dict[str, Signed] = field(default_factory=dict[str, Signed])
    answered: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict[str, tuple[bytes, bytes | None]])
    adverts: tuple[Advert, ...] = ()
    adverts_hash: bytes = b""
    scope: bytes = b""
    threshold: int = 0
    place: int = 0
    graph: Graph | None = None
    edges_hash: bytes = b""
    secrets: dict[int, bytes] = field(default_factory=dict[int, bytes])
    shares: dict[int, tuple[bytes, bytes]] = field(default_factory=dict[int, tuple[bytes, bytes]])
    bad_dealers: tuple[str, ...] = ()
    survivors: Bool[np.ndarray, " adverts"] | None = None
    survivors_hash: bytes = b""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(advert.participant for advert in self.adverts)


class Client:
    """One participant in one run, session after session.

    Args:
        name: Its name in the roster.
        key: Its protocol key.
        roster: Who may take part.
        parameters: The thresholds of the approved plan.
        mark: Called with (run, round, attempt); returns once that is durable, before the advert exists.
        charge: Called with (round, attempt); returns once the attempt is durably charged, raises to refuse.
        last_mark: The highest mark on disk.
        pinned: Participants that this site knows to be real.
        pinned_min: Fewest of them in a session.

    Guarantees:
        At most one advert per mark, one masked vector per charge, one set of survivors per session, and per
        dealer one of its two shares. A byte-identical request gets the byte-identical reply; another one at
        an answered stage gets none and is kept as evidence.
    """

    def __init__(
        self,
        name: str,
        *,
        key: SigningKey,
        roster: Roster,
        parameters: Parameters,
        mark: Mark,
        charge: Charge,
        last_mark: tuple[int, int, int] = (0, 0, 0),
        pinned: Collection[str] = (),
        pinned_min: int = 0,
    ) -> None:
        self.name = name
        self.evidence: list[Evidence] = []
        self.closed: Close | None = None
        self._key = key
        self._roster = roster
        self._parameters = parameters
        self._mark = mark
        self._charge = charge
        self._last_mark = last_mark
        self._pinned = frozenset(pinned)
        self._pinned_min = pinned_min
        self._held: _Held | None = None

    # --- what a driver calls ---

    def open(self, data: bytes, own: Session) -> bytes:
        """Answer message 0 with an advert: enter a session.

        Args:
            data: The message.
            own: The session as this participant knows it: its plan, its roster, its log, and the hash that
                it computed itself over the model bytes that it will train on.

        Raises:
            RoundError: The server's session is another, or not newer than the last; nothing sent.
        """
        envelope = read(Envelope, data)
        if self._held is not None and self._held.id == envelope.session and "open" in self._held.answered:
            return self._again(self._held, envelope, data) or b""
        session = read(Session, envelope.body)
        self._check_session(session, own)
        self._check_open(envelope, session)
        self._check_mark(session)
        self.erase()
        self._mark(*session.mark)
        self._last_mark = session.mark
        held = self._held = self._enter(session)
        advert = self._advert(held)
        held.answered["open"] = (data, advert)
        return advert

    def receive(self, data: bytes) -> bytes | None:
        """Answer one of the messages 1' to 6; None where nothing is to be sent (yet).

        A message that the coordinator signed and that fails a check ends the session for this participant:
        the secrets are erased and the message is evidence.

        Raises:
            RoundError: The message must not be answered.
            InputError: The bytes are no message.
        """
        envelope = read(Envelope, data)
        held = self._current(envelope.session)
        if envelope.kind in held.answered:
            return self._again(held, envelope, data)
        self._check_order(held, envelope.kind)
        self._check_coordinator(envelope, held.session)
        try:
            reply = self._answer(held, envelope)
        except HubbubError as error:
            self.evidence.append(Evidence(error.message, (data,)))
            self.erase()
            raise
        held.answered[envelope.kind] = (data, reply)
        return reply

    def charge(self) -> None:
        """Charge the attempt durably: from here on the participant may sample, train and draw its noise.

        Raises:
            RoundError: It is not this participant's turn.
            BudgetError: The ledger does not admit this attempt.
        """
        held = self._at("training", "charge")
        self._charge(held.session.round_number, held.session.attempt)
        held.stage = "charged"

    def mask(self, vector: UInt32[np.ndarray, " params"]) -> bytes:
        """Mask this round's one vector, made after `charge`; the reply to `deliver`.

        Args:
            vector: Clipped, encoded, noised, in the ring.
        """
        held = self._at("charged", "mask")
        if vector.shape != (self._parameters.dimension,):
            raise self._refusal(
                f"must mask a vector of {self._parameters.dimension}",
                f"shape {vector.shape}",
                hint="both sides must run the same plan",
            )
        values = vector.astype(np.uint32)
        self._add_masks(held, values)
        data = pack(values)
        header = Header(
            self.name, held.adverts_hash, held.edges_hash, sha256(data), self._parameters.dimension, held.bad_dealers
        )
        reply = self._write(held, "masked", header, attachment=data)
        held.stage = "masked"
        held.answered["deliver"] = (held.answered["deliver"][0], reply)
        return reply

    def erase(self) -> None:
        """Forget the session: secrets, replies and all. Called at its end, at a deadline, before the next one."""
        self._held = None

    @property
    def stage(self) -> Stage | None:
        """How far the current session is."""
        return self._held.stage if self._held is not None else None

    @property
    def record(self) -> SessionRecord | None:
        """What may be written down about the current session."""
        held = self._held
        if held is None:
            return None
        return SessionRecord(held.id, held.stage, held.adverts_hash, held.edges_hash, held.survivors_hash)

    # --- randomness: the operating system's; a test may override these two ---

    def _draw(self, size: int) -> bytes:
        return fresh(size)

    def _choose(self, population: int, size: int) -> Sequence[int]:
        return OperatingSystemRandomness().choose(population, size).tolist()

    # --- one step per message ---

    def _answer(self, held: _Held, envelope: Envelope) -> bytes | None:
        match envelope.kind:
            case "adverts":
                return self._share(held, read(Adverts, envelope.body))
            case "deliver":
                return self._accept(held, read(Deliver, envelope.body))
            case "survivors":
                return self._consent(held, read(Survivors, envelope.body))
            case "consents":
                return self._unmask(held, read(Consents, envelope.body))
            case _:
                return self._end(held, read(Close, envelope.body))

    def _enter(self, session: Session) -> _Held:
        cipher, mask_seed, self_seed = (self._draw(KEY_BYTES) for _ in range(3))
        return _Held(session, session.id, ExchangeKey(cipher), ExchangeKey(mask_seed), mask_seed, self_seed)

    def _advert(self, held: _Held) -> bytes:
        commitment = agreed.commit_seed(held.id, self.name, held.self_seed)
        return self._write(held, "advert", Advert(self.name, held.cipher.public, held.mask.public, commitment))

    def _share(self, held: _Held, message: Adverts) -> bytes:
        adverts = tuple(read(Advert, signed.body) for signed in message.adverts)
        names = tuple(advert.participant for advert in adverts)
        self._check_names(names)
        self._check_own_advert(held, message.adverts[names.index(self.name)])
        self._check_advert_signatures(held, names, message.adverts)
        self._check_exchange_keys(adverts)
        self._check_session_size(names)
        self._check_organisations(names)
        self._check_pinned(names)
        held.adverts, held.place = adverts, names.index(self.name)
        held.threshold = self._parameters.threshold_for(len(adverts))
        held.adverts_hash = agreed.adverts_digest(held.id, [signed.body for signed in message.adverts])
        held.scope = agreed.scope_of(held.id, held.adverts_hash)
        held.stage = "shared"
        return self._deal(held)

    def _deal(self, held: _Held) -> bytes:
        bitmap = self._choose_holders(held)
        row = agreed.read_edges(bitmap, held.place, adverts=len(held.adverts), neighbours=self._parameters.neighbours)
        if row is None:
            raise self._refusal("must choose its holders by the plan", "another number", hint=_REPORT)
        places = sorted([*np.flatnonzero(row).tolist(), held.place])
        leaves = self._make_leaves(held, places)
        root = agreed.tree([agreed.leaf_hash(held.names[p], leaf) for p, leaf in zip(places, leaves, strict=True)])[-1]
        dealing = Dealing(self.name, held.adverts_hash, bitmap, root[0])
        return self._write(held, "share", dealing, attachment=Leaves(leaves).encode())

    def _choose_holders(self, held: _Held) -> bytes:
        if not self._parameters.neighbours:
            return b""
        row = np.zeros(len(held.adverts), dtype=np.bool_)
        others = [place for place in range(len(held.adverts)) if place != held.place]
        row[[others[at] for at in self._choose(len(others), self._parameters.neighbours)]] = True
        return agreed.pack_bits(row)

    def _make_leaves(self, held: _Held, places: Sequence[int]) -> tuple[Leaf, ...]:
        numbers = [place + 1 for place in places]
        random = [self._draw(shamir.COEFFICIENT_BYTES * (held.threshold - 1)) for _ in range(2)]
        pairs = zip(
            shamir.split(held.self_seed, numbers, random[0]),
            shamir.split(held.mask_seed, numbers, random[1]),
            strict=True,
        )
        return tuple(self._make_leaf(held, place, pair) for place, pair in zip(places, pairs, strict=True))

    def _make_leaf(self, held: _Held, place: int, pair: tuple[bytes, bytes]) -> Leaf:
        holder, sealed = held.names[place], b""
        if place == held.place:
            held.shares[place] = pair
        else:
            key = share_key(self._secret(held, place), held.scope, sender=self.name, receiver=holder)
            context = agreed.seal_context(held.id, held.adverts_hash, self.name, holder)
            sealed = seal(key, pair[0] + pair[1], context)
        return Leaf(*self._share_hashes(held, self.name, holder, pair), sealed)

    def _share_hashes(self, held: _Held, dealer: str, holder: str, pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        return (
            agreed.share_hash("b share", held.scope, dealer, holder, pair[0]),
            agreed.share_hash("seed share", held.scope, dealer, holder, pair[1]),
        )

    def _secret(self, held: _Held, place: int) -> bytes:
        if place not in held.secrets:
            peer = held.adverts[place]
            held.secrets[place] = held.cipher.agree(peer.cipher_key, peer.participant)
        return held.secrets[place]

    def _accept(self, held: _Held, message: Deliver) -> None:
        dealings = [read(Dealing, signed.body) for signed in message.dealings]
        places = self._check_dealers(held, dealings)
        self._check_own_dealing(held, message.dealings[places.index(held.place)])
        self._check_dealing_signatures(held, dealings, message.dealings)
        self._check_dealt_adverts(held, dealings)
        held.graph = agreed.make_graph(held.names, self._check_edges(held, places, dealings))
        self._check_dealers_number(held.graph)
        self._check_threshold_in_dealers(held, held.graph)
        held.edges_hash = agreed.edges_digest(held.id, held.adverts_hash, [signed.body for signed in message.dealings])
        self._hold(held, held.graph, dict(zip(places, dealings, strict=True)), message.delivered)
        held.stage = "training"

    def _hold(self, held: _Held, graph: Graph, dealings: dict[int, Dealing], delivered: Sequence[Delivered]) -> None:
        """Open what was dealt to this participant; a share that is not as committed is its dealer's fault."""
        dealers = [place for place in graph.places(graph.holders[:, held.place]) if place != held.place]
        self._check_delivered_number(dealers, delivered)
        bad: list[str] = []
        for place, item in zip(dealers, delivered, strict=True):
            self._check_path(graph, held.place, place, dealings[place], item)
            pair = self._open_leaf(held, place, item.leaf)
            if pair is None:
                bad.append(held.names[place])
            else:
                held.shares[place] = pair
        held.bad_dealers = tuple(bad)

    def _open_leaf(self, held: _Held, place: int, leaf: Leaf) -> tuple[bytes, bytes] | None:
        dealer = held.names[place]
        key = share_key(self._secret(held, place), held.scope, sender=dealer, receiver=self.name)
        context = agreed.seal_context(held.id, held.adverts_hash, dealer, self.name)
        opened = unseal(key, leaf.sealed, context)
        if opened is None:
            return None
        pair = (opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :])
        return pair if self._share_hashes(held, dealer, self.name, pair) == (leaf.self_hash, leaf.seed_hash) else None

    def _add_masks(self, held: _Held, values: UInt32[np.ndarray, " params"]) -> None:
        """Its own mask, and with each partner one that this side adds and the other subtracts."""
        plus, minus = [self_key(held.self_seed, held.scope, self.name)], list[bytes]()
        for place in _graph(held).places(_graph(held).partners[held.place]):
            peer = held.adverts[place]
            secret = held.mask.agree(peer.mask_key, peer.participant)
            key = pair_key(secret, held.scope, self.name, peer.participant)
            (plus if held.place < place else minus).append(key)
        add_masks(values, plus=plus, minus=minus)

    def _consent(self, held: _Held, message: Survivors) -> bytes:
        graph = _graph(held)
        members = self._check_survivors_dealt(graph, message.survivors)
        self._check_self_survives(held, members)
        self._check_survivors_number(held, members)
        self._check_threshold_in_survivors(held, graph, members)
        self._check_headers(held, graph, members, message.headers)
        held.survivors = members
        held.survivors_hash = agreed.survivors_digest(
            held.id, held.adverts_hash, held.edges_hash, message.survivors, message.salt
        )
        held.stage = "consented"
        return self._write(held, "consent", Consent(self.name, held.survivors_hash))

    def _unmask(self, held: _Held, message: Consents) -> bytes:
        graph, survivors = _graph(held), held.survivors
        if survivors is None:
            raise self._refusal("must consent before it unmasks", "no consent", hint=_REPORT)
        consents = [read(Consent, signed.body) for signed in message.consents]
        self._check_consents_are_own_holders(held, graph, survivors, consents)
        self._check_consents_number(held, consents)
        self._check_consents_agree(held, consents)
        self._check_consent_signatures(held, consents, message.consents)
        shares = tuple(
            held.shares.get(place, (b"", b""))[0 if survivors[place] else 1]
            for place in graph.places(graph.holders[:, held.place])
        )
        held.stage = "unmasked"
        return self._write(held, "unmask", Unmask(self.name, held.survivors_hash, shares))

    def _end(self, held: _Held, message: Close) -> None:
        self._check_outcome(held, message)
        self.closed = message
        self.erase()

    # --- checks: one rule each ---

    def _check_session(self, session: Session, own: Session) -> None:
        for name in session.__struct_fields__:
            if getattr(session, name) != getattr(own, name):
                raise self._refusal(
                    f"must be asked into the session it knows, with its own {name}",
                    "another",
                    hint="both sides must run the same approved plan, roster and model",
                )

    def _check_open(self, envelope: Envelope, session: Session) -> None:
        bound = (envelope.kind, envelope.session, session.suite, session.parameters)
        if bound != ("open", session.id, SUITE, self._parameters.hash):
            raise self._refusal(
                "must be asked with the plan's thresholds and this version's primitives", "others", hint=_REPORT
            )
        self._check_coordinator(envelope, session)

    def _check_coordinator(self, envelope: Envelope, session: Session) -> None:
        if not is_by(session.coordinator, envelope.kind, envelope.session, envelope):
            raise self._refusal(
                f"takes {envelope.kind!r} from its coordinator only", "another signature", hint="ask again"
            )

    def _check_mark(self, session: Session) -> None:
        if session.mark <= self._last_mark or min(session.round_number, session.attempt) < 1:
            raise self._refusal(
                f"must be asked for each (run, round, attempt) once and in order, its mark is {self._last_mark}",
                f"{session.mark}",
                hint="a retry is a new attempt",
            )

    def _check_order(self, held: _Held, kind: str) -> None:
        if kind not in (_AWAITED.get(held.stage), "close"):
            raise self._refusal(f"is {held.stage} and takes messages in order", f"{kind!r}", hint="ask in order")

    def _check_names(self, names: Sequence[str]) -> None:
        if list(names) != sorted(set(names), key=agreed.name_order):
            raise self._refusal("must get each advert once, sorted by name", "another order", hint=_REPORT)
        strangers = [name for name in names if name not in self._roster.members]
        if strangers:
            raise self._refusal("must get adverts of its roster only", f"{strangers[0]!r}", hint=_REPORT)
        if self.name not in names:
            raise self._refusal("must find its own advert among all", "none", hint="it counts as dropped out")

    def _check_own_advert(self, held: _Held, signed: Signed) -> None:
        if signed != held.own["advert"]:
            raise self._refusal("must find its own advert as it sent it", "another", hint=_REPORT)

    def _check_advert_signatures(self, held: _Held, names: Sequence[str], adverts: Sequence[Signed]) -> None:
        self._check_signatures(held, "advert", names, adverts)

    def _check_exchange_keys(self, adverts: Sequence[Advert]) -> None:
        owners: dict[bytes, str] = {}
        for advert in adverts:
            for key in (advert.cipher_key, advert.mask_key):
                if not is_exchange_key(key):
                    raise self._refusal(
                        "must get keys written in the one way", f"another from {advert.participant!r}", hint=_REPORT
                    )
                if key in owners:
                    raise self._refusal(
                        "must get each key once",
                        f"one of {owners[key]!r} again from {advert.participant!r}",
                        hint=_REPORT,
                    )
                owners[key] = advert.participant

    def _check_session_size(self, names: Sequence[str]) -> None:
        if not self._parameters.n_min <= len(names) <= self._parameters.n:
            raise self._refusal(
                f"must be one of {self._parameters.n_min} to {self._parameters.n} adverts",
                f"{len(names)}",
                hint=_REPORT,
            )

    def _check_organisations(self, names: Sequence[str]) -> None:
        organisations = self._roster.organisations(names)
        if organisations < self._parameters.org_min:
            raise self._refusal(
                f"must be with {self._parameters.org_min} organisations", f"{organisations}", hint=_REPORT
            )

    def _check_pinned(self, names: Sequence[str]) -> None:
        found = len(self._pinned.intersection(names))
        if found < self._pinned_min:
            raise self._refusal(
                f"must be with {self._pinned_min} participants that its site pinned", f"{found}", hint=_REPORT
            )

    def _check_dealers(self, held: _Held, dealings: Sequence[Dealing]) -> list[int]:
        """Places of the dealers, in order, this participant's among them."""
        at = {name: place for place, name in enumerate(held.names)}
        places = [at.get(dealing.participant, -1) for dealing in dealings]
        if -1 in places or places != sorted(set(places)):
            raise self._refusal(
                "must get each dealing once, of those who advertised, sorted", "another list", hint=_REPORT
            )
        if held.place not in places:
            raise self._refusal("must find its own dealing among all", "none", hint="it counts as dropped out")
        return places

    def _check_own_dealing(self, held: _Held, signed: Signed) -> None:
        if signed != held.own["share"]:
            raise self._refusal("must find its own dealing as it sent it", "another", hint=_REPORT)

    def _check_dealing_signatures(self, held: _Held, dealings: Sequence[Dealing], signed: Sequence[Signed]) -> None:
        self._check_signatures(held, "share", [dealing.participant for dealing in dealings], signed)

    def _check_dealt_adverts(self, held: _Held, dealings: Sequence[Dealing]) -> None:
        for dealing in dealings:
            if dealing.adverts != held.adverts_hash:
                raise self._refusal(
                    "must share one list of adverts with all dealers",
                    f"another list at {dealing.participant!r}",
                    hint=_REPORT,
                )

    def _check_edges(
        self, held: _Held, places: Sequence[int], dealings: Sequence[Dealing]
    ) -> dict[int, Bool[np.ndarray, " adverts"]]:
        edges: dict[int, Bool[np.ndarray, " adverts"]] = {}
        for place, dealing in zip(places, dealings, strict=True):
            row = agreed.read_edges(
                dealing.edges, place, adverts=len(held.adverts), neighbours=self._parameters.neighbours
            )
            if row is None:
                raise self._refusal(
                    f"must get {self._parameters.neighbours} other holders of each dealer",
                    f"another choice by {dealing.participant!r}",
                    hint=_REPORT,
                )
            edges[place] = row
        return edges

    def _check_dealers_number(self, graph: Graph) -> None:
        dealers = int(graph.dealt.sum())
        if dealers < self._parameters.n_min:
            raise self._refusal(f"must be one of {self._parameters.n_min} dealers", f"{dealers}", hint=_REPORT)

    def _check_threshold_in_dealers(self, held: _Held, graph: Graph) -> None:
        self._check_threshold(held, graph, graph.dealt, "dealers")

    def _check_threshold(self, held: _Held, graph: Graph, members: Bool[np.ndarray, " adverts"], what: str) -> None:
        within = graph.holders_within(members)
        few = members & (within < held.threshold)
        if few.any():
            place = graph.places(few)[0]
            raise self._refusal(
                f"must find {held.threshold} holders of each of the {what} among them",
                f"{int(within[place])} of {held.names[place]!r}",
                hint=_REPORT,
            )

    def _check_delivered_number(self, dealers: Sequence[int], delivered: Sequence[Delivered]) -> None:
        if len(dealers) != len(delivered):
            raise self._refusal(f"must get the {len(dealers)} shares dealt to it", f"{len(delivered)}", hint=_REPORT)

    def _check_path(self, graph: Graph, own: int, dealer: int, dealing: Dealing, item: Delivered) -> None:
        """The leaf is the one that the dealer signed for this holder: the server altered nothing."""
        holders = graph.places(graph.holders[dealer])
        leaf = agreed.leaf_hash(self.name, item.leaf)
        is_long = len(item.path) == agreed.path_length(len(holders))
        if not is_long or agreed.root_from(leaf, item.path, holders.index(own)) != dealing.shares:
            raise self._refusal(
                f"must get shares as {dealing.participant!r} committed to them", "a path to another root", hint=_REPORT
            )

    def _check_survivors_dealt(self, graph: Graph, bitmap: bytes) -> Bool[np.ndarray, " adverts"]:
        """The survivors, a subset of the dealers, over the adverts' order."""
        dealers = graph.places(graph.dealt)
        bits = agreed.unpack_bits(bitmap, len(dealers))
        if bits is None:
            raise self._refusal("must get survivors among the dealers", "another bitmap", hint=_REPORT)
        members = np.zeros_like(graph.dealt)
        members[dealers] = bits
        return members

    def _check_self_survives(self, held: _Held, members: Bool[np.ndarray, " adverts"]) -> None:
        if not members[held.place]:
            raise self._refusal("must be among the survivors it unmasks", "itself left out", hint=_REPORT)

    def _check_survivors_number(self, held: _Held, members: Bool[np.ndarray, " adverts"]) -> None:
        fewest = max(self._parameters.u_min, held.threshold)
        if int(members.sum()) < fewest:
            raise self._refusal(f"must be one of {fewest} survivors", f"{int(members.sum())}", hint=_REPORT)

    def _check_threshold_in_survivors(self, held: _Held, graph: Graph, members: Bool[np.ndarray, " adverts"]) -> None:
        self._check_threshold(held, graph, members, "survivors")

    def _check_headers(
        self, held: _Held, graph: Graph, members: Bool[np.ndarray, " adverts"], signed: Sequence[Signed]
    ) -> None:
        """Everybody whose shares this participant would reveal masked on this graph, and says so itself."""
        own = np.arange(len(held.names)) == held.place
        names = graph.named(members & graph.holders[:, held.place] & ~own)
        headers = [read(Header, one.body) for one in signed]
        if tuple(header.participant for header in headers) != names:
            raise self._refusal("must get the header of each survivor it holds shares of", "others", hint=_REPORT)
        self._check_headers_agree(held, headers)
        self._check_signatures(held, "masked", names, signed)

    def _check_headers_agree(self, held: _Held, headers: Sequence[Header]) -> None:
        agreed_on = (held.adverts_hash, held.edges_hash, self._parameters.dimension)
        for header in headers:
            if (header.adverts, header.edges, header.dimension) != agreed_on:
                raise self._refusal(
                    "must share adverts, edges and length with every survivor",
                    f"others in the header of {header.participant!r}",
                    hint=_REPORT,
                )

    def _check_consents_are_own_holders(
        self, held: _Held, graph: Graph, survivors: Bool[np.ndarray, " adverts"], consents: Sequence[Consent]
    ) -> None:
        own = set(graph.named(graph.holders[held.place] & survivors)) - {self.name}
        names = [consent.participant for consent in consents]
        if len(set(names)) != len(names) or not own.issuperset(names):
            raise self._refusal(
                "counts consents of its own holders only, each once", "one of somebody else", hint=_REPORT
            )

    def _check_consents_number(self, held: _Held, consents: Sequence[Consent]) -> None:
        if len(consents) + 1 < held.threshold:
            raise self._refusal(
                f"must get {held.threshold} consents of its holders, its own counted",
                f"{len(consents) + 1}",
                hint=_REPORT,
            )

    def _check_consents_agree(self, held: _Held, consents: Sequence[Consent]) -> None:
        for consent in consents:
            if consent.survivors != held.survivors_hash:
                raise self._refusal(
                    "must agree on the survivors with its holders", f"others at {consent.participant!r}", hint=_REPORT
                )

    def _check_consent_signatures(self, held: _Held, consents: Sequence[Consent], signed: Sequence[Signed]) -> None:
        self._check_signatures(held, "consent", [consent.participant for consent in consents], signed)

    def _check_outcome(self, held: _Held, message: Close) -> None:
        if message.outcome not in {"released", "aborted"}:
            raise self._refusal("must be told 'released' or 'aborted'", f"{message.outcome!r}", hint=_REPORT)
        if message.outcome == "released" and held.survivors is not None and message.survivors != held.survivors_hash:
            raise self._refusal("must see the survivors released that it consented to", "others", hint=_REPORT)

    def _check_signatures(self, held: _Held, kind: str, names: Sequence[str], signed: Sequence[Signed]) -> None:
        for name, one in zip(names, signed, strict=True):
            if name != self.name and not is_by(self._roster.members[name].key, kind, held.id, one):
                raise self._refusal(
                    f"must get {kind!r} of {name!r} as {name!r} signed it", "another signature", hint=_REPORT
                )

    # --- small parts ---

    def _current(self, session: bytes) -> _Held:
        if self._held is None or self._held.id != session:
            raise self._refusal(
                f"must be in the session it is asked about, its mark is {self._last_mark}",
                "another or none",
                hint="it counts as dropped out",
            )
        return self._held

    def _at(self, stage: Stage, call: str) -> _Held:
        if self._held is None or self._held.stage != stage:
            raise self._refusal(f"must be {stage} for {call}()", f"{self.stage}", hint="receive, charge, train, mask")
        return self._held

    def _again(self, held: _Held, envelope: Envelope, data: bytes) -> bytes | None:
        """The reply given before, to the same bytes only."""
        request, reply = held.answered[envelope.kind]
        if request == data:
            return reply
        if is_by(held.session.coordinator, envelope.kind, held.id, envelope):
            self.evidence.append(Evidence(f"two messages {envelope.kind!r} in one session", (request, data)))
        raise self._refusal(
            f"answers one {envelope.kind!r} in a session", "another, kept as evidence", hint="send the same bytes"
        )

    def _write(
        self,
        held: _Held,
        kind: str,
        body: Advert | Dealing | Header | Consent | Unmask,
        attachment: bytes | memoryview = b"",
    ) -> bytes:
        encoded = body.encode()
        signed = held.own[kind] = Signed(encoded, self._key.sign(kind, held.id, encoded))
        return Envelope(kind, held.id, encoded, signed.signature, attachment).encode()

    def _refusal(self, rule: str, found: str, *, hint: str) -> RoundError:
        is_charged = self._held is not None and self._held.stage in _CHARGED
        spent = "nothing revealed, the attempt stays charged" if is_charged else "nothing sent, no budget spent"
        return RoundError(f"{self.name}, {rule}, found {found}; {spent}", hint=hint)


def _graph(held: _Held) -> Graph:
    if held.graph is None:
        raise RoundError("session, must have a graph by now, found none; nothing sent", hint=_REPORT)
    return held.graph
