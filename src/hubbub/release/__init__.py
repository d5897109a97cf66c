"""What may be said about a model, and in whose words: the claim, and what leaves a run in other people's formats.

    claim.py            `make_claim`: a fold over a run's events
    bundle.py           everything that an outsider needs to check a model, in one signed folder
    verify.py           `verify_bundle`: checks it, offline
    model_signing.py    `sign_folder`, `verify_folder`: the OpenSSF model-signing bundle, P-256 keys
    registry.py         `registry_entry`: the claim as an entry of the OpenDP deployments registry

*Trust:* a claim is only as good as the events it was folded from; it repeats none of them on faith, epsilon
is computed again here. A signature says that the key's owner vouches for these bytes, not that they are true.
"""

from hubbub.release.claim import ReleaseClaim, claim_from_log, make_claim
from hubbub.release.model_signing import sign_folder, verify_folder
from hubbub.release.registry import Publication, registry_entry, registry_text

__all__ = [
    "Publication",
    "ReleaseClaim",
    "claim_from_log",
    "make_claim",
    "registry_entry",
    "registry_text",
    "sign_folder",
    "verify_folder",
]
