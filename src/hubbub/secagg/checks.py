"""What a participant refuses: one small function per rule, and the session that they look at.

Each function either returns or raises a `RoundError` that names the rule and what was found. Taking one of
them away must fail the test that is named for the attack it stops.

*Trust:* the participant's privacy against the server is exactly these rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool

from hubbub.errors import InputError, RoundError
from hubbub.secagg import agreement as agreed
from hubbub.secagg.agreement import Graph, Roster
from hubbub.secagg.keys import ExchangeKey, is_exchange_key
from hubbub.secagg.messages import (
    SUITE,
    Advert,
    Close,
    Consent,
    Dealing,
    Delivered,
    Envelope,
    Header,
    Part,
    Session,
    Signed,
    is_by,
    read,
)
from hubbub.secagg.parameters import Parameters, blocks_of

Stage = Literal["adverted", "shared", "training", "charged", "masked", "consented", "unmasked"]
Members = Bool[np.ndarray, " adverts"]

_AWAITED: Final[dict[Stage, str]] = {
    "adverted": "adverts",
    "shared": "deliver",
    "masked": "survivors",
    "consented": "consents",
}
_CHARGED: Final = ("charged", "masked", "consented", "unmasked")
_REPORT: Final = "keep this session's messages as evidence and report the coordinator"


@dataclass(repr=False)
class Held:
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
    names: tuple[str, ...] = ()
    place: int = 0
    threshold: int = 0
    adverts_hash: bytes = b""
    scope: bytes = b""
    secrets: dict[int, bytes] = field(default_factory=dict[int, bytes])
    shares: dict[int, tuple[bytes, bytes]] = field(default_factory=dict[int, tuple[bytes, bytes]])
    bad_dealers: tuple[str, ...] = ()
    graph: Graph = field(default_factory=agreed.empty_graph)
    edges_hash: bytes = b""
    survivors: Members = field(default_factory=lambda: agreed.empty_graph().dealt)
    survivors_hash: bytes = b""


class Checks:
    """The rules of one participant; `Client` calls them.

    Args:
        name: Its name in the roster.
        roster: Who may take part.
        parameters: The thresholds of the approved plan.
        last_mark: The highest mark on disk.
    """

    def __init__(self, name: str, *, roster: Roster, parameters: Parameters, last_mark: tuple[int, int, int]) -> None:
        self.name = name
        self._roster = roster
        self._parameters = parameters
        self._last_mark = last_mark
        self._held: Held | None = None
        self._check_whole_roster()

    # --- before any session ---

    def _check_whole_roster(self) -> None:
        """Whoever could pick a cohort from a larger roster would pick the corrupt, all c of them."""
        roster, planned = len(self._roster.members), self._parameters.n
        if roster > planned:
            raise InputError(
                f"{self.name}, must have thresholds for its whole roster of {roster}, found them for {planned}; "
                "nothing sent",
                hint="plan again with everybody in the roster",
            )

    # --- message 0, open ---

    def _check_session(self, session: Session, own: Session) -> None:
        for name in session.__struct_fields__:
            if getattr(session, name) != getattr(own, name):
                raise self._refusal(
                    f"must be asked into the session it knows, with its own {name}",
                    "another",
                    hint="both sides must run the same approved plan, roster and model",
                )

    def _check_opening(self, envelope: Envelope, session: Session) -> None:
        is_open = (envelope.kind, envelope.session) == ("open", session.id)
        self._require(is_open, "must be asked into a session by 'open', under that session's name", "another")

    def _check_parameters(self, session: Session) -> None:
        self._require(session.suite == SUITE, f"must be asked with the suite {SUITE!r}", repr(session.suite))
        is_planned = session.parameters == self._parameters.hash
        self._require(is_planned, "must be asked with the thresholds of its plan", "others")

    def _check_coordinator(self, envelope: Envelope, session: Session) -> None:
        if envelope.attachment or not is_by(session.coordinator, envelope.kind, session.id, envelope):
            raise self._refusal(
                f"takes {envelope.kind!r} from its coordinator only", "another signature", hint="send it again"
            )

    def _check_mark(self, session: Session) -> None:
        if session.mark <= self._last_mark or min(session.round_number, session.attempt) < 1:
            raise self._refusal(
                f"must be asked for each (run, round, attempt) once and in order, its mark is {self._last_mark}",
                f"{session.mark}",
                hint="a retry is a new attempt",
            )

    # --- every later message ---

    def _check_current(self, session: bytes) -> Held:
        if self._held is None or self._held.id != session:
            raise self._refusal(
                f"must be in the session it is asked about, its mark is {self._last_mark}",
                "another or none",
                hint="it counts as dropped out",
            )
        return self._held

    def _check_order(self, held: Held, kind: str) -> None:
        if kind not in (_AWAITED.get(held.stage), "close"):
            raise self._refusal(f"is {held.stage} and takes messages in order", repr(kind), hint="ask in order")

    def _check_receiver(self, message: Part) -> None:
        """Somebody else's message may have come here by anybody's mistake: it proves nothing and changes nothing."""
        receiver = getattr(message, "receiver", self.name)
        if receiver != self.name:
            raise self._refusal("takes messages that were written to it", f"one to {receiver!r}", hint="send it again")

    def _check_stage(self, stage: Stage, call: str) -> Held:
        if self._held is None or self._held.stage != stage:
            found = None if self._held is None else self._held.stage
            raise self._refusal(f"must be {stage} for {call}()", repr(found), hint="receive, charge, train, mask")
        return self._held

    def _check_peers(self, held: Held, kind: str, names: Sequence[str], signed: Sequence[Signed]) -> None:
        """What peers said is signed by them, and what this participant said is what it sent."""
        for name, one in zip(names, signed, strict=True):
            if name == self.name:
                self._check_own(held, kind, one)
            else:
                self._check_signature(held, kind, name, one)

    def _check_own(self, held: Held, kind: str, signed: Signed) -> None:
        self._require(signed == held.own[kind], f"must find its own {kind!r} as it sent it", "another")

    def _check_signature(self, held: Held, kind: str, name: str, signed: Signed) -> None:
        is_signed = is_by(self._roster.members[name].key, kind, held.id, signed)
        self._require(is_signed, f"must get {kind!r} of {name!r} as {name!r} signed it", "another signature")

    # --- message 1', adverts ---

    def _check_names(self, names: Sequence[str]) -> None:
        in_order = list(names) == sorted(set(names), key=agreed.name_order)
        self._require(in_order, "must get each advert once, sorted by name", "another order")
        strangers = [name for name in names if name not in self._roster.members]
        self._require(not strangers, "must get adverts of its roster only", repr(strangers[:1]))
        self._require(self.name in names, "must find its own advert among all", "none")

    def _check_advert_signatures(self, held: Held, names: Sequence[str], adverts: Sequence[Signed]) -> None:
        self._check_peers(held, "advert", names, adverts)

    def _check_exchange_keys(self, adverts: Sequence[Advert]) -> None:
        owners: dict[bytes, str] = {}
        for advert in adverts:
            for key in (advert.cipher_key, advert.mask_key):
                found = f"another from {advert.participant!r}"
                self._require(is_exchange_key(key), "must get keys written in the one way", found)
                self._require(key not in owners, "must get each key once", f"one twice, {found}")
                owners[key] = advert.participant

    def _check_session_size(self, names: Sequence[str]) -> None:
        fewest, most = self._parameters.n_min, self._parameters.n
        self._require(fewest <= len(names) <= most, f"must be one of {fewest} to {most} adverts", str(len(names)))

    def _check_organisations(self, names: Sequence[str]) -> None:
        fewest, found = self._parameters.org_min, self._roster.organisations(names)
        self._require(found >= fewest, f"must be with {fewest} organisations", str(found))

    # --- message 2', deliver ---

    def _check_dealers(self, held: Held, dealings: Sequence[Dealing]) -> list[int]:
        """Places of the dealers, in order, this participant's among them."""
        at = {name: place for place, name in enumerate(held.names)}
        places = [at.get(dealing.participant, -1) for dealing in dealings]
        in_order = -1 not in places and places == sorted(set(places))
        self._require(in_order, "must get each dealing once, of those who advertised, sorted", "another list")
        self._require(held.place in places, "must find its own dealing among all", "none")
        return places

    def _check_dealing_signatures(self, held: Held, dealings: Sequence[Dealing], signed: Sequence[Signed]) -> None:
        self._check_peers(held, "share", [dealing.participant for dealing in dealings], signed)

    def _check_dealt_adverts(self, held: Held, dealings: Sequence[Dealing]) -> None:
        for dealing in dealings:
            found = f"another list at {dealing.participant!r}"
            is_same = dealing.adverts == held.adverts_hash
            self._require(is_same, "must share one list of adverts with all dealers", found)

    def _check_edges(self, held: Held, places: Sequence[int], dealings: Sequence[Dealing]) -> dict[int, Members]:
        """Each dealer's choice of holders, by place."""
        edges: dict[int, Members] = {}
        for place, dealing in zip(places, dealings, strict=True):
            row = agreed.read_edges(
                dealing.edges, place, adverts=len(held.names), neighbours=self._parameters.neighbours
            )
            if row is None:
                rule = f"must get {self._parameters.neighbours} other holders of each dealer"
                raise self._refusal(rule, f"another choice by {dealing.participant!r}")
            edges[place] = row
        return edges

    def _check_dealers_number(self, graph: Graph) -> None:
        fewest, found = self._parameters.n_min, int(graph.dealt.sum())
        self._require(found >= fewest, f"must be one of {fewest} dealers", str(found))

    def _check_threshold_in_dealers(self, held: Held, graph: Graph) -> None:
        self._check_threshold(held, graph, graph.dealt, "dealers")

    def _check_threshold(self, held: Held, graph: Graph, members: Members, what: str) -> None:
        within = graph.holders_within(members)
        for place in graph.places(members & (within < held.threshold))[:1]:
            rule = f"must find {held.threshold} holders of each of the {what} among them"
            raise self._refusal(rule, f"{int(within[place])} of {held.names[place]!r}")

    def _check_delivered_number(self, dealers: Sequence[int], delivered: Sequence[Delivered]) -> None:
        is_all = len(dealers) == len(delivered)
        self._require(is_all, f"must get the {len(dealers)} shares dealt to it", str(len(delivered)))

    def _check_path(self, held: Held, dealer: int, dealing: Dealing, item: Delivered) -> None:
        """The leaf is the one that the dealer signed for this holder: the server altered nothing."""
        holders = held.graph.places(held.graph.holders[dealer])
        root = agreed.root_from(agreed.leaf_hash(self.name, item.leaf), item.path, holders.index(held.place))
        is_path = len(item.path) == agreed.path_length(len(holders)) and root == dealing.shares
        rule = f"must get shares as {dealing.participant!r} committed to them"
        self._require(is_path, rule, "a path to another root")

    # --- message 4, survivors ---

    def _check_survivors_dealt(self, graph: Graph, bitmap: bytes) -> Members:
        """The survivors, a subset of the dealers, over the adverts' order."""
        dealers = graph.places(graph.dealt)
        bits = agreed.unpack_bits(bitmap, len(dealers))
        if bits is None:
            raise self._refusal("must get survivors among the dealers", "another bitmap")
        members = np.zeros_like(graph.dealt)
        members[dealers] = bits
        return members

    def _check_self_survives(self, held: Held, members: Members) -> None:
        self._require(bool(members[held.place]), "must be among the survivors it unmasks", "itself left out")

    def _check_survivors_number(self, held: Held, members: Members) -> None:
        fewest, found = max(self._parameters.u_min, held.threshold), int(members.sum())
        self._require(found >= fewest, f"must be one of {fewest} survivors", str(found))

    def _check_threshold_in_survivors(self, held: Held, members: Members) -> None:
        self._check_threshold(held, held.graph, members, "survivors")

    def _check_blocks(self, held: Held, members: Members) -> None:
        """Without noise, nobody is in one sum and not in another without its whole block."""
        inside = set(held.graph.named(members))
        blocks = blocks_of(self._roster.members, self._parameters.block) if self._parameters.block else []
        for block in blocks:
            missing = sorted(set(block) - inside)
            is_whole = len(missing) in (0, len(block))
            self._require(is_whole, f"must find whole blocks of {len(block)} in a sum", f"one without {missing[:1]}")

    def _check_headers(self, held: Held, members: Members, signed: Sequence[Signed]) -> None:
        """Everybody whose shares this participant would reveal masked on this graph, and says so itself."""
        names = held.graph.named(members & held.graph.holders[:, held.place])
        headers = [read(Header, one.body) for one in signed]
        is_all = tuple(header.participant for header in headers) == names
        self._require(is_all, "must get the header of each survivor it holds shares of", "others")
        self._check_headers_agree(held, headers)
        self._check_peers(held, "masked", names, signed)

    def _check_headers_agree(self, held: Held, headers: Sequence[Header]) -> None:
        for header in headers:
            found = f"others in the header of {header.participant!r}"
            self._require(header.adverts == held.adverts_hash, "must share adverts with every survivor", found)
            self._require(header.edges == held.edges_hash, "must share dealers and edges with every survivor", found)
            is_long = header.dimension == self._parameters.dimension
            self._require(is_long, "must sum vectors of one length with every survivor", found)

    # --- message 4b, consents ---

    def _check_consents_are_survivors(self, held: Held, consents: Sequence[Consent]) -> None:
        survivors, names = set(held.graph.named(held.survivors)), [consent.participant for consent in consents]
        is_each_once = len(set(names)) == len(names) and survivors.issuperset(names)
        self._require(is_each_once, "counts consents of survivors, each once", "one twice or of somebody else")

    def _check_consents_quorum(self, held: Held, consents: Sequence[Consent]) -> None:
        """More than half, even if all c colluding sign twice: no two sets of survivors get as many."""
        fewest = self._parameters.quorum_for(len(held.names))
        found = len({self.name, *(consent.participant for consent in consents)})
        self._require(found >= fewest, f"must get {fewest} consents, its own counted", str(found))

    def _check_consents_agree(self, held: Held, consents: Sequence[Consent]) -> None:
        for consent in consents:
            is_same = consent.survivors == held.survivors_hash
            found = f"others at {consent.participant!r}"
            self._require(is_same, "must agree with all on the survivors", found)

    def _check_consent_signatures(self, held: Held, consents: Sequence[Consent], signed: Sequence[Signed]) -> None:
        self._check_peers(held, "consent", [consent.participant for consent in consents], signed)

    # --- message 6, close ---

    def _check_outcome(self, held: Held, message: Close) -> None:
        is_known = message.outcome in {"released", "aborted"}
        self._require(is_known, "must be told 'released' or 'aborted'", repr(message.outcome))
        is_consented = message.survivors == held.survivors_hash or not held.survivors_hash
        is_right = message.outcome == "aborted" or is_consented
        self._require(is_right, "must see the survivors released that it consented to", "others")

    # --- how a rule is broken ---

    def _require(self, is_met: bool, rule: str, found: str) -> None:  # noqa: FBT001, the rule's own answer
        if not is_met:
            raise self._refusal(rule, found)

    def _refusal(self, rule: str, found: str, *, hint: str = _REPORT) -> RoundError:
        is_charged = self._held is not None and self._held.stage in _CHARGED
        spent = "nothing revealed, the attempt stays charged" if is_charged else "nothing sent, no budget spent"
        return RoundError(f"{self.name}, {rule}, found {found}; {spent}", hint=hint)
