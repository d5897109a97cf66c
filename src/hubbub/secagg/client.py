"""The participant's half: it trusts the server with nothing but delivery.

    open -> advert    adverts -> share    deliver -> (charge, train) -> masked
    survivors -> consent    consents -> unmask    close

Bytes in, bytes out; no clock, no socket, no file. What a reply rests on is checked before it leaves, by the
rules of `checks`. Two things are durable, through the ports `mark` and `charge`; every secret is in memory
only and gone when the session ends, so a second answer to one question cannot exist.

*Trust:* this half protects its owner's vector against the server and up to c others; whoever reads its
memory during a session reads the vector.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
import numpy as np
from jaxtyping import UInt32

from hubbub.errors import HubbubError
from hubbub.randomness import OperatingSystemRandomness
from hubbub.secagg import agreement as agreed
from hubbub.secagg.agreement import Roster
from hubbub.secagg.checks import Checks, Held, Stage
from hubbub.secagg.dealing import make_leaves, open_leaf
from hubbub.secagg.keys import (
    KEY_BYTES,
    ExchangeKey,
    SigningKey,
    fresh,
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
    Deliver,
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
    read,
)
from hubbub.secagg.parameters import Parameters
from hubbub.secagg.ring import add_masks, pack

_BODIES: Final[dict[str, type[Part]]] = {
    "adverts": Adverts,
    "deliver": Deliver,
    "survivors": Survivors,
    "consents": Consents,
    "close": Close,
}

Mark = Callable[[int, int, int], None]
Charge = Callable[[int, int], None]


class Client(Checks):
    """One participant in one run, session after session.

    Args:
        name: Its name in the roster.
        key: Its protocol key.
        roster: Who may take part.
        parameters: The thresholds of the approved plan.
        mark: Called with (run, round, attempt); returns once that is durable, before any key or advert exists.
        charge: Called with (round, attempt); returns once the attempt is durably charged, raises to refuse.
        last_mark: The highest mark on disk.

    Guarantees:
        At most one advert per mark, one masked vector per charge, one set of survivors per session, and per
        dealer one of its two shares. A byte-identical request gets the byte-identical reply; another one at
        an answered stage gets none and is kept in `evidence`.
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
    ) -> None:
        super().__init__(name, roster=roster, parameters=parameters, last_mark=last_mark)
        self.evidence: list[Evidence] = []
        self.closed: Close | None = None
        self._key = key
        self._mark = mark
        self._charge = charge

    @property
    def parameters(self) -> Parameters:
        """The thresholds that it keeps to."""
        return self._parameters

    # --- what a driver calls ---

    def open(self, data: bytes, own: Session) -> bytes | None:
        """Answer message 0 with an advert: enter a session.

        Args:
            data: The message.
            own: The session as this participant knows it: its plan, its roster, its log, and the hash that
                it computed itself over the model bytes that it will train on.

        Raises:
            RoundError: The server's session is another, or not newer than the last; nothing sent.
            InputError: The bytes are no message.
        """
        envelope = read(Envelope, data)
        if self._held is not None and envelope.session == self._held.id:
            self._check_opening(envelope, self._held.session)
            session = self._held.session
            head = {"log_size": session.log_size, "log_root": session.log_root}  # its own log may have grown since
            self._check_session(session, msgspec.structs.replace(own, **head))
            return self._again(self._held, envelope, data)
        session = read(Session, envelope.body)
        self._check_opening(envelope, session)
        self._check_session(session, own)
        self._check_parameters(session)
        self._check_coordinator(envelope, session)
        self._check_mark(session)
        self.erase()
        self._mark(*session.mark)
        self._last_mark = session.mark
        held = self._held = self._enter(session)
        held.answered["open"] = (data, self._advert(held))
        return held.answered["open"][1]

    def receive(self, data: bytes) -> bytes | None:
        """Answer one of the messages 1' to 6; None where nothing is to be sent (yet).

        A message that the coordinator signed for this participant and that breaks a rule ends the session for
        it: the secrets are erased and the message is evidence.

        Raises:
            RoundError: The message must not be answered.
            InputError: The bytes are no message.
        """
        envelope = read(Envelope, data)
        held = self._check_current(envelope.session)
        if envelope.kind in held.answered:
            return self._again(held, envelope, data)
        self._check_order(held, envelope.kind)
        self._check_coordinator(envelope, held.session)
        with self._ending_at_fault(data):
            message = read(_BODIES[envelope.kind], envelope.body)
        self._check_receiver(message)
        with self._ending_at_fault(data):
            reply = self._answer(held, message)
        held.answered[envelope.kind] = (data, reply)
        return reply

    def charge(self) -> None:
        """Charge the attempt durably: from here on the participant may sample, train and draw its noise.

        Raises:
            RoundError: It is not this participant's turn.
            BudgetError: The ledger does not admit this attempt.
        """
        held = self._check_stage("training", "charge")
        self._charge(held.session.round_number, held.session.attempt)
        held.stage = "charged"

    def mask(self, vector: UInt32[np.ndarray, " params"]) -> bytes:
        """Mask this round's one vector, made after `charge`: the reply to `deliver`.

        Args:
            vector: Clipped, encoded, noised, in the ring; given up: it is masked where it lies.

        Raises:
            RoundError: The attempt is not charged, or the vector has another length; nothing sent.
        """
        held = self._check_stage("charged", "mask")
        dimension = self._parameters.dimension
        self._require(vector.shape == (dimension,), f"must mask a vector of {dimension}", f"shape {vector.shape}")
        self._add_masks(held, vector)
        data = pack(vector)
        header = Header(self.name, held.adverts_hash, held.edges_hash, sha256(data), dimension, held.bad_dealers)
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

    # --- randomness: the operating system's; a frozen transcript overrides these two ---

    def _draw(self, size: int) -> bytes:
        return fresh(size)

    def _choose(self, population: int, size: int) -> Sequence[int]:
        return OperatingSystemRandomness().choose(population, size).tolist()

    # --- one step per message ---

    def _answer(self, held: Held, message: Part) -> bytes | None:
        match message:
            case Adverts():
                return self._share(held, message)
            case Deliver():
                return self._accept(held, message)
            case Survivors():
                return self._consent(held, message)
            case Consents():
                return self._unmask(held, message)
            case Close():
                return self._end(held, message)
            case _:  # pragma: no cover, `_check_order` lets no other kind through
                raise AssertionError(message)

    @contextmanager
    def _ending_at_fault(self, data: bytes) -> Generator[None]:
        """A signed message that breaks a rule is evidence, and the end of the session."""
        try:
            yield
        except HubbubError as error:
            self.evidence.append(Evidence(error.message, (data,)))
            self.erase()
            raise

    def _again(self, held: Held, envelope: Envelope, data: bytes) -> bytes | None:
        """The reply given before, to the same bytes only."""
        request, reply = held.answered[envelope.kind]
        if request == data:
            return reply
        self._check_coordinator(envelope, held.session)
        if envelope.kind in _BODIES:
            self._check_receiver(read(_BODIES[envelope.kind], envelope.body))
        self.evidence.append(Evidence(f"two messages {envelope.kind!r} in one session", (request, data)))
        raise self._refusal(f"answers one {envelope.kind!r} in a session", "another, kept as evidence")

    def _enter(self, session: Session) -> Held:
        cipher, mask_seed, self_seed = (self._draw(KEY_BYTES) for _ in range(3))
        return Held(session, session.id, ExchangeKey(cipher), ExchangeKey(mask_seed), mask_seed, self_seed)

    def _advert(self, held: Held) -> bytes:
        commitment = agreed.commit_seed(held.id, self.name, held.self_seed)
        return self._write(held, "advert", Advert(self.name, held.cipher.public, held.mask.public, commitment))

    def _share(self, held: Held, message: Adverts) -> bytes:
        adverts = tuple(read(Advert, signed.body) for signed in message.adverts)
        names = tuple(advert.participant for advert in adverts)
        self._check_names(names)
        self._check_advert_signatures(held, names, message.adverts)
        self._check_exchange_keys(adverts)
        self._check_session_size(names)
        self._check_organisations(names)
        held.adverts, held.names, held.place = adverts, names, names.index(self.name)
        held.threshold = self._parameters.threshold_for(len(adverts))
        held.adverts_hash = agreed.adverts_digest(held.id, [signed.body for signed in message.adverts])
        held.scope = agreed.scope_of(held.id, held.adverts_hash)
        held.stage = "shared"
        return self._deal(held)

    def _deal(self, held: Held) -> bytes:
        row = self._choose_holders(held)
        bitmap = agreed.pack_bits(row) if self._parameters.neighbours else b""
        row[held.place] = True
        places = np.flatnonzero(row).tolist()
        leaves = self._make_leaves(held, places)
        hashes = [agreed.leaf_hash(held.names[place], leaf) for place, leaf in zip(places, leaves, strict=True)]
        dealing = Dealing(self.name, held.adverts_hash, bitmap, agreed.tree(hashes)[-1][0])
        return self._write(held, "share", dealing, attachment=Leaves(leaves).encode())

    def _make_leaves(self, held: Held, places: Sequence[int]) -> tuple[Leaf, ...]:
        return make_leaves(held, places, draw=self._draw)

    def _choose_holders(self, held: Held) -> np.ndarray:
        """The other holders: everybody, or so many as planned, drawn at random by this participant alone."""
        row = np.zeros(len(held.names), dtype=np.bool_)
        others = [place for place in range(len(held.names)) if place != held.place]
        chosen = self._choose(len(others), self._parameters.neighbours or len(others))
        row[[others[at] for at in chosen]] = True
        return row

    def _accept(self, held: Held, message: Deliver) -> None:
        dealings = [read(Dealing, signed.body) for signed in message.dealings]
        places = self._check_dealers(held, dealings)
        self._check_dealing_signatures(held, dealings, message.dealings)
        self._check_dealt_adverts(held, dealings)
        held.graph = agreed.make_graph(held.names, self._check_edges(held, places, dealings))
        self._check_dealers_number(held.graph)
        self._check_threshold_in_dealers(held, held.graph)
        self._hold(held, dict(zip(places, dealings, strict=True)), message.delivered)
        held.edges_hash = agreed.edges_digest(held.id, held.adverts_hash, [signed.body for signed in message.dealings])
        held.stage = "training"

    def _hold(self, held: Held, dealings: Mapping[int, Dealing], delivered: Sequence[Delivered]) -> None:
        """Open what was dealt to this participant; a share that is not as committed is its dealer's fault."""
        dealers = [place for place in held.graph.places(held.graph.holders[:, held.place]) if place != held.place]
        self._check_delivered_number(dealers, delivered)
        for place, item in zip(dealers, delivered, strict=True):
            self._check_path(held, place, dealings[place], item)
            pair = open_leaf(held, place, item.leaf)
            if pair is None:
                held.bad_dealers += (held.names[place],)
            else:
                held.shares[place] = pair

    def _add_masks(self, held: Held, values: UInt32[np.ndarray, " params"]) -> None:
        """Its own mask, and with each partner one that the earlier of the two adds and the later subtracts."""
        plus, minus = [self_key(held.self_seed, held.scope, self.name)], list[bytes]()
        for place in held.graph.places(held.graph.partners[held.place]):
            peer = held.adverts[place]
            secret = held.mask.agree(peer.mask_key, peer.participant)
            key = pair_key(secret, held.scope, self.name, peer.participant)
            (plus if held.place < place else minus).append(key)
        add_masks(values, plus=plus, minus=minus)

    def _consent(self, held: Held, message: Survivors) -> bytes:
        members = self._check_survivors_dealt(held.graph, message.survivors)
        self._check_self_survives(held, members)
        self._check_survivors_number(held, members)
        self._check_threshold_in_survivors(held, members)
        self._check_blocks(held, members)
        self._check_headers(held, members, message.headers)
        held.survivors = members
        held.survivors_hash = agreed.survivors_digest(
            held.id, held.adverts_hash, held.edges_hash, message.survivors, message.salt
        )
        held.stage = "consented"
        return self._write(held, "consent", Consent(self.name, held.survivors_hash))

    def _unmask(self, held: Held, message: Consents) -> bytes:
        consents = [read(Consent, signed.body) for signed in message.consents]
        self._check_consents_are_survivors(held, consents)
        self._check_consents_quorum(held, consents)
        self._check_consents_agree(held, consents)
        self._check_consent_signatures(held, consents, message.consents)
        shares = tuple(
            held.shares.get(place, (b"", b""))[0 if held.survivors[place] else 1]
            for place in held.graph.places(held.graph.holders[:, held.place])
        )
        held.stage = "unmasked"
        return self._write(held, "unmask", Unmask(self.name, held.survivors_hash, shares))

    def _end(self, held: Held, message: Close) -> None:
        self._check_outcome(held, message)
        self.closed = message
        self.erase()

    def _write(self, held: Held, kind: str, body: Part, attachment: bytes | memoryview = b"") -> bytes:
        encoded = body.encode()
        signed = held.own[kind] = Signed(encoded, self._key.sign(kind, held.id, encoded))
        return Envelope(kind, held.id, encoded, signed.signature, attachment).encode()
