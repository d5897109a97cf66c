"""Proposals and decisions as signed statements.

A proposal asks for one act; a decision approves or denies exactly one proposal's bytes. Both are predicates of
in-toto statements whose subjects follow from what they say: no statement can name one thing and mean another.

Source:
    in-toto attestation framework, Statement v1; DSSE 1.0.0.
"""

import hashlib
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from hubbub.errors import InputError
from hubbub.governance.acts import AnyAct, Frozen, Hash, Seconds, Text
from hubbub.governance.envelope import Envelope, seal, unseal


class Proposal(Frozen, frozen=True):
    """Predicate: who signs this asks for `act`, from `at`, and takes no decision later than `expires`.

    `federation` is the id of the one that is asked, so that no other one can be shown it; empty while none is founded.
    """

    at: Seconds
    expires: Seconds
    federation: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    act: AnyAct


class Decision(Frozen, frozen=True):
    """Predicate: who signs this approves or denies; an approval counts before `expires`, on `conditions`."""

    at: Seconds
    expires: Seconds
    verdict: Literal["approve", "deny"]
    conditions: tuple[Text, ...] = ()


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto DigestSet of one algorithm."""

    sha256: Hash


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto ResourceDescriptor: a name and a digest."""

    name: str
    digest: Digest


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="predicateType"):
    """An in-toto Statement v1."""

    statement_type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: tuple[Subject, ...]


class ProposalStatement(_Statement, frozen=True, tag="urn:hubbub:proposal:1"):
    """The statement that carries a proposal."""

    predicate: Proposal


class DecisionStatement(_Statement, frozen=True, tag="urn:hubbub:decision:1"):
    """The statement that carries a decision; its subject is the proposal's envelope."""

    predicate: Decision


class Signed(Frozen, frozen=True):
    """One envelope, read: a proposal, or a decision on the proposal `about`. The signature is not checked yet.

    Args:
        id: SHA-256 of the envelope: what decisions name.
        envelope: As it was read.
        predicate: What it says.
        about: Id of the proposal that a decision is on; empty for a proposal.
    """

    id: str
    envelope: Envelope
    predicate: Proposal | Decision
    about: str

    @property
    def words(self) -> str:
        """What it says, and which key it names."""
        said = self.predicate
        what = said.act.kind if isinstance(said, Proposal) else f"{said.verdict} {self.about[:12]}"
        return f"key {self.envelope.key_id}: {what}"


_TYPE = "https://in-toto.io/Statement/v1"
_decoder = msgspec.json.Decoder(ProposalStatement | DecisionStatement)


def propose(act: AnyAct, key: Ed25519PrivateKey, *, at: int, expires: int, federation: str = "") -> str:
    """A signed proposal to a federation, by its id, as the text of an envelope; "" only founds one."""
    predicate = Proposal(at=at, expires=expires, federation=federation, act=act)
    return seal(_encode(ProposalStatement(_TYPE, _subjects(act.subjects), predicate)), key)


def decide(
    proposal: str,
    key: Ed25519PrivateKey,
    *,
    at: int,
    expires: int,
    verdict: Literal["approve", "deny"] = "approve",
    conditions: tuple[str, ...] = (),
) -> str:
    """A signed decision on the proposal with this id, as the text of an envelope."""
    predicate = Decision(at=at, expires=expires, verdict=verdict, conditions=conditions)
    return seal(_encode(DecisionStatement(_TYPE, _subjects({"proposal": proposal}), predicate)), key)


def read(text: str) -> Signed:
    """Read an envelope into what it says.

    Guarantees:
        Nothing else in the text could be meant: written again it has the same bytes, and its subjects are
        the ones that its act names.

    Raises:
        InputError: It is not one of ours.
    """
    envelope = unseal(text)
    try:
        statement = _decoder.decode(envelope.body)
        is_canonical = _encode(statement) == envelope.body
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"statement, must be a proposal or a decision, {error}; nothing recorded",
            hint="ask whoever signed for it again",
        ) from None
    if isinstance(statement, ProposalStatement):
        about, subject = "", _subjects(statement.predicate.act.subjects)
    else:
        about = statement.subject[0].digest.sha256 if statement.subject else ""
        subject = _subjects({"proposal": about})
    if not is_canonical or statement.subject != subject:
        raise InputError(
            "statement, must be written in its one form and name its subjects, found another; nothing recorded",
            hint="ask whoever signed for it again",
        )
    identity = hashlib.sha256(text.encode()).hexdigest()
    return Signed(id=identity, envelope=envelope, predicate=statement.predicate, about=about)


def _subjects(hashes: dict[str, str]) -> tuple[Subject, ...]:
    return tuple(Subject(name, Digest(value)) for name, value in hashes.items())


def _encode(statement: ProposalStatement | DecisionStatement) -> bytes:
    return msgspec.json.encode(statement, order="deterministic")
