"""Whether one envelope is valid in a state: who signed it, whether they may, in which order, how late."""

from hubbub.governance.acts import AcknowledgeIncident, Act, FoundFederation
from hubbub.governance.checks import check_act
from hubbub.governance.envelope import check_signature
from hubbub.governance.keys import Card
from hubbub.governance.state import Case, State, refuse
from hubbub.governance.statement import Decision, Proposal, Signed

DAY = 86_400
"""Also the most seconds between signing and recording: what is older may have been held back."""


def admit(state: State, signed: Signed, time: int) -> Card:
    """Who signed an envelope, if it is valid in this state at this time; changes nothing.

    Raises:
        RefusedError: The rule that it breaks, and by whom.
    """
    if signed.predicate.at < state.latest - DAY:
        raise refuse("act", "must be recorded within a day of signing", "later ones before it", "sign it again")
    if isinstance(signed.predicate, Proposal):
        return _admit_proposal(state, signed, signed.predicate, time)
    return _admit_decision(state, signed, signed.predicate, time)


def _admit_proposal(state: State, signed: Signed, proposal: Proposal, time: int) -> Card:
    if signed.id in state.cases:
        raise refuse(f"proposal {signed.id[:16]}", "is recorded once", "a second time", "hubbub approvals")
    card = _signer(state, signed, proposal.act)
    if proposal.federation != state.id:
        found = f"another: {proposal.federation[:16]!r}"
        raise refuse("proposal", f"must be asked of federation {state.id[:16]}", found, "sign it again")
    _check_request(state, proposal.act, card, time)
    rule = state.rule(proposal.act, card.key_id)
    _check_expiry(card.name, proposal, time, days=rule.expires_days)
    return card


def _admit_decision(state: State, signed: Signed, decision: Decision, time: int) -> Card:
    case = state.cases.get(signed.about)
    if case is None:
        raise refuse("decision", "must be on a proposal of this log", signed.about[:16], "hubbub approvals")
    card = _signer(state, signed, case.act)
    _check_decider(state, case, card)
    standing = state.standing(case, time)
    if standing != "pending":
        raise refuse(f"proposal {case.id[:16]}", "is decided while it is pending", f"it {standing}", "hubbub approvals")
    _check_expiry(card.name, decision, time, days=case.rule.expires_days)
    if decision.verdict == "approve":
        _check_still_asked(state, case, time)
    return card


_ENDED = {"rotated": "rotated", "left": "left", "stolen": "is stolen"}


def _signer(state: State, signed: Signed, act: Act) -> Card:
    """Who signed: a holder in force; a founder while nothing is founded."""
    key = signed.envelope.key_id
    if isinstance(act, FoundFederation):
        if not state.is_sandbox:
            raise refuse("founding", "happens once", f"{state.name} founded before", "hubbub federation show")
        known = {card.key_id: card for card in act.cards}
    else:
        known = {card.key_id: card for card in state.in_force()}
    if key not in known:
        if state.is_sandbox:
            hint = "hubbub federation found: a card counts when every founder has approved"
        else:
            hint = "hubbub keys list"
        found = f"one that {_ENDED[state.holders[key].reason]}" if key in state.holders else "an unknown one"
        raise refuse(f"key {key}", "must be in force", found, hint)
    check_signature(signed.envelope, bytes.fromhex(known[key].identity), known[key].name)
    return known[key]


def _check_request(state: State, act: Act, card: Card, time: int) -> None:
    """Refuse an act that this holder may not ask for, or that does not fit the state."""
    proposers = state.rule(act, card.key_id).propose
    if not any(state.is_one_of(card, selector, act) for selector in proposers) and not _is_next(state, act, card, time):
        raise refuse(
            _words(card), f"may not ask for {act.kind}, only {_either(proposers)} may", card.role, "ask one of them"
        )
    check_act(act, state, time)


def _is_next(state: State, act: Act, card: Card, time: int) -> bool:
    """Whether an incident has waited so long that this holder may acknowledge it too."""
    incident = state.incidents.get(act.incident) if isinstance(act, AcknowledgeIncident) else None
    return incident is not None and card.role == state.escalation(incident).next and time >= state.deadline(incident)


def _check_decider(state: State, case: Case, card: Card) -> None:
    if card.name == case.proposer.name:
        raise refuse(card.name, "never decides on an own proposal", case.id[:16], "ask somebody else")
    if any(signer.name == card.name for signer, _ in case.decisions.values()):
        raise refuse(card.name, "decides once", f"a second decision on {case.id[:16]}", "hubbub approvals")
    if not any(state.is_one_of(card, selector, case.act) for selector in case.rule.approve):
        deciders = _either(tuple(case.rule.approve))
        raise refuse(
            _words(card), f"may not decide on {case.act.kind}, only {deciders} may", card.role, "ask one of them"
        )


def _check_still_asked(state: State, case: Case, time: int) -> None:
    """Refuse to approve what its requester might not ask for any more, or what no longer fits."""
    holder = state.holders.get(case.proposer.key_id)
    if holder is not None and holder.reason:
        found = f"that of {case.proposer.name} {holder.reason}"
        raise refuse(f"proposal {case.id[:16]}", "must be by a key in force", found, "propose it again")
    _check_request(state, case.act, case.proposer, time)


def _check_expiry(who: str, signed: Proposal | Decision, time: int, *, days: int) -> None:
    if not signed.at < signed.expires <= signed.at + days * DAY:
        found = f"{(signed.expires - signed.at) / DAY:g}"
        raise refuse(who, f"may sign for above 0 and at most {days} days", found, f"--expires {days}")
    if time >= signed.expires:
        raise refuse(who, "must sign for a time to come", "an act that has expired", "sign it again")


def _words(card: Card) -> str:
    return f"{card.name}, {card.role} of {card.organisation}"


def _either(selectors: tuple[str, ...]) -> str:
    return " or ".join(selectors) or "nobody"
