"""Enrolment: from a request to a membership, which is all that a holder needs to reach its coordinator.

*Trust:* a membership comes from the operator by another way than the network: it says which authority, which log,
which coordinator, which federation and which witnesses its holder believes from then on.
"""

import re
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from hubbub.errors import InputError, RefusedError
from hubbub.governance.acts import EnrolKey, FoundFederation, Hash, RotateKey
from hubbub.governance.certificates import End, Issued, Request, pem_key, read_certificate
from hubbub.governance.federation import Federation
from hubbub.governance.keys import Card, Hex32, Keys
from hubbub.governance.state import Case
from hubbub.governance.witnesses import quorum_of
from hubbub.tlog import Policy, Verifier
from hubbub.tlog.keys import parse_verifier
from hubbub.tlog.policy import parse_policy
from hubbub.tlog.tiles import replace_file

_HOST: Final = r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)"
_ADDRESS: Final = re.compile(rf"{_HOST}:[1-9][0-9]{{0,4}}")
_LAST_PORT: Final = 65_535
Pem = Annotated[str, Meta(max_length=16_384)]


class Membership(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one holder believes of its coordinator. Nothing in it is secret.

    Args:
        address: HOST:PORT where the coordinator is dialled.
        authority: Certificate of the federation's authority, PEM.
        certificate: The holder's own, PEM.
        log: Key of the coordinator's log, NAME+ID+KEY.
        coordinator: Public key with which the coordinator signs messages of rounds.
        federation: Id of the founding act.
        policy: Whose cosignatures count, in the form of a policy file, when this was written.
    """

    address: Annotated[str, Meta(max_length=300)]
    authority: Pem
    certificate: Pem
    log: Annotated[str, Meta(max_length=1000)]
    coordinator: Hex32
    federation: Hash
    policy: Annotated[str, Meta(max_length=1_000_000)]

    @property
    def verifier(self) -> Verifier:
        """Key of the coordinator's log."""
        return parse_verifier(self.log)

    @property
    def witnesses(self) -> Policy:
        """Whose cosignatures count."""
        return parse_policy(self.policy.encode())

    @property
    def issued(self) -> Issued:
        """What the holder's certificate says."""
        return read_certificate(self.certificate.encode(), self.authority.encode())

    def check(self) -> None:
        """Refuse what does not belong together.

        Raises:
            InputError: An address, a key, a policy or a certificate is damaged; the policy is another log's, or the
                certificate another authority's.
        """
        check_address(self.address)
        if [party.key for party in self.witnesses.logs] != [self.verifier]:
            raise InputError(
                "must have a policy of its own log, found another's",
                hint="hubbub admit makes one",
            )
        _ = self.issued

    def encode(self) -> bytes:
        """As it stands in a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class Admission(NamedTuple):
    """A card whose holder may have a certificate, the federation that it belongs to, and that one's witnesses."""

    card: Card
    federation: str
    policy: Policy


def admission(request: Request, federation: Federation, log: Verifier) -> Admission:
    """The card that a request is for: in force or asked for, with exactly this name and this key.

    While nothing is founded, the founders' cards are those of the one founding act that is asked for.

    Raises:
        RefusedError: There is no such card, or it shows another key; the holder is named.
    """
    if federation.is_sandbox:
        case, founding = _founding(request.name, federation)
        return Admission(_card(request, founding.cards, federation), case.id, quorum_of(founding.cards, log))
    asked = [
        case.act.card for case in federation.pending(federation.latest) if isinstance(case.act, EnrolKey | RotateKey)
    ]
    card = _card(request, (*federation.in_force(), *asked), federation)
    return Admission(card, federation.id, quorum_of(federation.in_force(), log))


def _founding(name: str, federation: Federation) -> tuple[Case, FoundFederation]:
    """The founding act that is asked for and names this holder; if there are two, nobody can say which is meant."""
    named = [pair for pair in federation.foundings() if name in {card.name for card in pair[1].cards}]
    if len(named) != 1:
        raise RefusedError(
            f"request of {name}, must be of a founder in one founding act, found {len(named)} of them; "
            "no certificate made",
            hint="hubbub approve ID --deny ends one" if named else "hubbub federation found NAME CARD...",
        )
    return named[0]


def _card(request: Request, cards: tuple[Card, ...], federation: Federation) -> Card:
    named = [card for card in cards if card.name == request.name]
    fitting = [card for card in named if card.transport == request.fingerprint]
    if fitting:
        return fitting[0]
    known = [*cards, *(holder.card for holder in federation.holders.values())]
    owner = next((card for card in known if card.transport == request.fingerprint), None)
    if owner is not None and owner.name != request.name:
        found = f"the key of {owner.name}"
    elif owner is not None:
        found = f"a key that {federation.holders[owner.key_id].reason}"
    else:
        found = "another key" if named else "no card of that name"
    raise RefusedError(
        f"request of {request.name}, must be for the transport key of a card in force or asked for, found {found}; "
        "no certificate made",
        hint=f"hubbub enrol with the key file of the card, or hubbub propose key {request.name}.card",
    )


def check_address(address: str) -> str:
    """The host of HOST:PORT, without the brackets around an IPv6 address.

    Raises:
        InputError: It is no such thing.
    """
    host, _, port = address.rpartition(":")
    if not _ADDRESS.fullmatch(address) or int(port) > _LAST_PORT:
        raise InputError(
            f"{address[:80]!r}, must be HOST:PORT where the coordinator is dialled",
            hint="--address hub.example.org:8443",
        )
    return host.strip("[]")


def read_membership(path: Path) -> Membership:
    """Read a membership, strictly.

    Raises:
        InputError: There is none, or it is damaged.
    """
    try:
        membership = msgspec.json.decode(path.read_bytes(), type=Membership)
        membership.check()
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{path}, must be a membership, {found}; nothing sent", hint="hubbub admit makes one"
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None
    return membership


def write_membership(membership: Membership, path: Path) -> None:
    """Write a membership, whole or not at all, over an older one if there is one."""
    replace_file(path, membership.encode())


def client_credentials(keys: Keys, membership: Membership, *, now: int) -> End:
    """What a holder's end of a connection needs; the private key is in memory only.

    Raises:
        InputError: The certificate is another holder's, or of another key, or is over.
    """
    issued = membership.issued
    if (issued.name, issued.fingerprint) != (keys.card.name, keys.card.transport):
        raise InputError(
            f"membership of {issued.name}, must be of {keys.card.name} and its transport key, found another; "
            "nothing sent",
            hint="--key names the key file that the membership was made for",
        )
    if now > issued.ends:
        raise InputError(
            f"membership of {issued.name}, must hold a certificate that is good today, found one that ended "
            f"{(now - issued.ends) // 86_400} days ago; nothing sent",
            hint="hubbub enrol makes a new request, hubbub admit a new membership",
        )
    certificate, authority = membership.certificate.encode(), membership.authority.encode()
    return End(authority, certificate, pem_key(keys.transport))
