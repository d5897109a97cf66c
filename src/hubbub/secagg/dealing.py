"""Shares of a participant's two secrets: dealt to their holders, each sealed for one, and opened by it.

*Trust:* as `client`. The server carries what is sealed here and can open none of it.
"""

from collections.abc import Callable, Sequence

from hubbub.secagg import agreement as agreed
from hubbub.secagg import shamir
from hubbub.secagg.checks import Held
from hubbub.secagg.keys import seal, share_key, unseal
from hubbub.secagg.messages import Leaf


def make_leaves(held: Held, places: Sequence[int], *, draw: Callable[[int], bytes]) -> tuple[Leaf, ...]:
    """Split both secrets among holders; the pair that the dealer holds itself stays with it.

    Args:
        held: The dealer's session, its adverts agreed on.
        places: Of the holders, the dealer's own among them.
        draw: So many fresh random bytes.

    Returns:
        One leaf for each holder, in order.
    """
    numbers = [place + 1 for place in places]
    self_shares, seed_shares = (
        shamir.split(secret, numbers, draw(shamir.COEFFICIENT_BYTES * (held.threshold - 1)))
        for secret in (held.self_seed, held.mask_seed)
    )
    pairs = zip(self_shares, seed_shares, strict=True)
    return tuple(make_leaf(held, place, pair) for place, pair in zip(places, pairs, strict=True))


def open_leaf(held: Held, dealer: int, leaf: Leaf) -> tuple[bytes, bytes] | None:
    """The pair of shares that a dealer sealed for this participant; None if it is not as that dealer committed."""
    name, own = held.names[dealer], held.names[held.place]
    key = share_key(_secret(held, dealer), held.scope, sender=name, receiver=own)
    opened = unseal(key, leaf.sealed, agreed.seal_context(held.id, held.adverts_hash, name, own)) or b""
    pair = (opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :])
    is_committed = agreed.share_hashes(held.scope, name, own, pair) == (leaf.self_hash, leaf.seed_hash)
    return pair if is_committed and all(map(shamir.is_share, pair)) else None


def make_leaf(held: Held, place: int, pair: tuple[bytes, bytes]) -> Leaf:
    """What the dealer commits to of one holder's pair, and the pair sealed for that holder."""
    own, holder, sealed = held.names[held.place], held.names[place], b""
    if place == held.place:
        held.shares[place] = pair
    else:
        key = share_key(_secret(held, place), held.scope, sender=own, receiver=holder)
        sealed = seal(key, pair[0] + pair[1], agreed.seal_context(held.id, held.adverts_hash, own, holder))
    return Leaf(*agreed.share_hashes(held.scope, own, holder, pair), sealed)


def _secret(held: Held, place: int) -> bytes:
    """What this participant and the one at `place` agree on, once a session."""
    if place not in held.secrets:
        peer = held.adverts[place]
        held.secrets[place] = held.cipher.agree(peer.cipher_key, peer.participant)
    return held.secrets[place]
