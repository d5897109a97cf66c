"""Who may: everything that needs somebody's permission is a proposal that others have signed.

    envelope.py      signed bytes that can be read one way only (DSSE)
    keys.py          four keys and a card for each person and participant
    roles.py         rules as data, and what may be tightened; roles.toml holds them
    acts.py          what can be asked for
    statement.py     proposals and decisions (in-toto)
    state.py         cases, keys, datasets, runs, incidents: what follows from a log
    checks.py        what each act must find
    effects.py       what each act changes
    admission.py     whether one envelope is valid here and now
    federation.py    the fold, and the questions that others ask of it
    policy.py        a site's own limits
    witnesses.py     whose cosignatures the log needs
    certificates.py  who may open a TLS connection: authority, requests, certificates
    enrolment.py     from a request to a membership
    snp.py           what an AMD processor says of a confidential VM
    attestation.py   what a coordinator must show of the machine below it
    retention.py     deletes what is past its last day

*Trust:* whoever holds the keys of one privacy officer and of one owner can approve in their names; what they did
stands in the log, and no holder of one key alone gets anything approved.
"""

from hubbub.governance.acts import Terms, terms_of
from hubbub.governance.attestation import (
    AttestationPolicy,
    Attested,
    Evidence,
    check_attestation,
    read_attestation_policy,
    read_evidence,
)
from hubbub.governance.federation import Due, Federation, Permit, Roster
from hubbub.governance.keys import Card, Keys, load_keys, new_keys
from hubbub.governance.policy import Facts, SitePolicy, read_policy
from hubbub.governance.retention import sweep
from hubbub.governance.statement import decide, propose, read
from hubbub.governance.witnesses import witness_policy

__all__ = [
    "AttestationPolicy",
    "Attested",
    "Card",
    "Due",
    "Evidence",
    "Facts",
    "Federation",
    "Keys",
    "Permit",
    "Roster",
    "SitePolicy",
    "Terms",
    "check_attestation",
    "decide",
    "load_keys",
    "new_keys",
    "propose",
    "read",
    "read_attestation_policy",
    "read_evidence",
    "read_policy",
    "sweep",
    "terms_of",
    "witness_policy",
]
