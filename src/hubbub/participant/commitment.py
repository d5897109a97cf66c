"""A commitment to a site's data that says nothing about it."""

import hashlib
import hmac

from hubbub.errors import InputError
from hubbub.study import Slots

SALT_BYTES = 32


def commit(slots: Slots, salt: bytes) -> str:
    """Commit to every slot, null ones included, under a salt that stays at the site.

    A bare hash would be an un-noised function of the data: anybody who guesses the records could confirm
    the guess. Under a secret salt the commitment is a random-looking number until the site opens it.

    Args:
        slots: The participant's slots.
        salt: Exactly 32 random bytes (HMAC pads shorter keys, which would make two salts one).

    Returns:
        HMAC-SHA-256 in hexadecimal.

    Raises:
        InputError: The salt has another length.
    """
    if len(salt) != SALT_BYTES:
        raise InputError(
            f"salt, must be {SALT_BYTES} bytes, found {len(salt)}",
            hint="a salt is os.urandom(32), made once per dataset",
        )
    digest = hmac.new(salt, digestmod=hashlib.sha256)
    for array in (slots.x, slots.y, slots.is_real):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
