"""The bundle: everything that an outsider needs to check a released model, in one signed folder.

claim.json                   what is claimed
study.json, plan.json        from which the plan is made again
model/                       model.safetensors and model.sig (OpenSSF model-signing)
log/                         the whole log as static files: checkpoint and tiles
policy                       the log's key and its witnesses, as the releaser states them
release.pub                  the key that signed this folder, bound by an entry of the log
bundle.sig                   a signature over every file, in the same format
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from hubbub.errors import InputError
from hubbub.release.model_signing import public_pem, sign_folder
from hubbub.study import Lock
from hubbub.study.config import Settings
from hubbub.tlog import Note, Policy, Store, tiles

MODEL, SIGNATURE, MODEL_SIGNATURE, PUBLIC_KEY = (
    "model/model.safetensors",
    "bundle.sig",
    "model/model.sig",
    "release.pub",
)
COPIED = ("claim.json", "study.json", "plan.json")
"""Files that come from the run directory as they are. No report: nothing would check it."""
FILES = frozenset({*COPIED, MODEL, MODEL_SIGNATURE, PUBLIC_KEY, SIGNATURE, "policy"})
"""All that a bundle holds besides the log: what nothing checks would be believed along with the rest."""


class StudyFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """study.json: the settings that were run, and the public sizes beside them."""

    settings: Settings
    lock: Lock


def as_json(value: object) -> bytes:
    """A value as JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_bundle(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    store: Store,
    checkpoint: Note,
    policy: Policy,
    key: ec.EllipticCurvePrivateKey,
) -> None:
    """Write and sign a bundle, whole or not at all.

    Args:
        folder: Not there yet.
        files: Content of the run's files, by name in the bundle.
        store: The log.
        checkpoint: Its signed and cosigned head.
        policy: Its key, its witnesses, their quorum.
        key: The release key.

    Raises:
        InputError: The folder is there, or cannot be written.
    """
    if folder.exists():
        raise InputError(f"{folder}, must be a new folder, found one; nothing released", hint="name another with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name[:16]}-", dir=folder.parent) as made:
            new = Path(made) / folder.name  # signatures record the name
            for name, content in files.items():
                tiles.replace_file(new / name, content)
            tiles.export(store, checkpoint, new / "log")
            tiles.replace_file(new / "policy", bytes(policy))
            tiles.replace_file(new / PUBLIC_KEY, public_pem(key.public_key()))
            sign_folder(new / "model", key, new / MODEL_SIGNATURE)
            sign_folder(new, key, new / SIGNATURE)
            new.rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder}, must be a folder that can be made, {error.strerror}; nothing released",
            hint="name another with --out",
        ) from None
