"""What may be said about a model: the claim.

    claim.py    `make_claim`: a fold over a run's events

*Trust:* a claim is only as good as the events it was folded from; it repeats none of them on faith, epsilon
is computed again here.
"""

from hubbub.release.claim import ReleaseClaim, make_claim

__all__ = ["ReleaseClaim", "make_claim"]
