"""log show, prove, export, witness, verify."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hubbub.cli.plain import console, plain, utc
from hubbub.engine.heads import Heads
from hubbub.errors import InputError, typed
from hubbub.governance import load_keys
from hubbub.tlog import proof, tiles
from hubbub.tlog import verify as check
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import COSIGNATURE, Signer, Verifier, open_key
from hubbub.tlog.policy import Party, Policy, parse_policy
from hubbub.tlog.store import Store
from hubbub.tlog.witness import Witness, ask

WITNESS = "hubbub.local/witness/"


def _log(options: argparse.Namespace) -> Heads:
    from hubbub.cli.home import home_with_log
    from hubbub.engine.home import LOG, cosignatures, open_log_key

    home = home_with_log(options, "nothing read")
    return Heads(Store(home / LOG), open_log_key(home), cosignatures(home))


def show(options: argparse.Namespace) -> None:
    """Show the log's head, key and last entries."""
    log = _log(options)
    head = parse_checkpoint(log.head().text)
    if options.check:
        log.store.check()
    start = max(0, head.size - max(0, options.last))
    entries = [json.loads(body) for body in log.store.entries(start, head.size)]
    cosigned = max((parse_checkpoint(note.text).size for note in log.cosigned()), default=None)
    facts: dict[str, Any] = {
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "vkey": str(log.key.verifier),
        "cosigned_size": cosigned,
    }
    if options.json:
        numbered = [{"index": index, "entry": entry} for index, entry in enumerate(entries, start=start)]
        print(json.dumps(facts | {"entries": numbered}, indent=1))
        return
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in facts.items():
        if name != "vkey":  # too long for a table, and meant to be copied
            table.add_row(name.replace("_", " "), Text("none" if value is None else str(value), overflow="fold"))
    console().print(table)
    lines = Table("#", "entry", box=box.SIMPLE_HEAD)
    for index, entry in enumerate(entries, start=start):
        lines.add_row(str(index), Text(json.dumps(entry), overflow="fold"))  # ASCII: no terminal obeys an entry
    console().print(lines)
    print(f"in a policy: log {log.key.verifier}")
    if options.check:
        print(f"every hash follows from the {head.size} entries")


def prove(options: argparse.Namespace) -> None:
    """Write an entry and its proof, under the newest cosigned head that holds it, or else under the head."""
    log = _log(options)
    head, index = log.head(), options.index
    covering = [note for note in log.cosigned() if parse_checkpoint(note.text).size > index]
    note = covering[-1] if covering else head
    size = parse_checkpoint(note.text).size
    hashes = log.store.inclusion(index, size)
    (body,) = log.store.entries(index, index + 1)
    folder = Path(options.out)
    entry, proved = folder / f"{index}.json", folder / f"{index}.tlog-proof"
    tiles.replace_file(entry, body)
    tiles.replace_file(proved, bytes(proof.Proof(index, tuple(hashes), note)))
    print(f"wrote {entry} and {proved}: entry {index} of {size}, {len(note.signatures) - 1} cosignatures")


def export(options: argparse.Namespace) -> None:
    """Write the log as static files."""
    log = _log(options)
    head = log.head()
    count = tiles.export(log.store, head, Path(options.folder))
    size = parse_checkpoint(head.text).size
    print(f"wrote {size} entries in {count} files and {options.folder}/checkpoint")


def witness(options: argparse.Namespace) -> None:
    """Have the witness of a folder cosign the log's head."""
    log, folder = _log(options), Path(options.folder)
    head = log.head()
    key, has_signed = _witness_key(folder / "witness.key", options.key, log)
    memory = folder / "witness.db"
    if has_signed and not memory.exists():
        raise InputError(
            f"{folder}, must hold what the witness has signed, found its key only; nothing signed",
            hint="name the folder in which it signed before; if that is lost, retire its key: it could sign a fork",
        )
    cosigner = Witness(memory, [key], _met_logs(folder / "logs", log.key.verifier))
    note = ask(lambda body: cosigner.add_checkpoint(body, int(time.time())), head, log.store, [key.verifier])
    path = log.keep(note)
    print(f"cosigned size {parse_checkpoint(note.text).size}: {path}; in a policy: witness NAME {key.verifier}")


def _witness_key(own: Path, holders: str | None, log: Heads) -> tuple[Signer, bool]:
    """A witness's key, its own or a holder's, and whether it is known to have signed before."""
    if holders is None:
        has_signed = own.exists()
        return open_key(own, WITNESS, COSIGNATURE), has_signed
    keys = load_keys(Path(holders))
    key = Signer(keys.card.name, COSIGNATURE, keys.witness.private_bytes_raw())
    return key, any(key.verifier.signed_at(note) is not None for note in log.cosigned())


def verify(options: argparse.Namespace) -> None:
    """Check a proof or a checkpoint offline."""
    data, policy = _read(options.file), read_policy(options.policy)
    now = None if options.fresh is None else int(time.time())
    fresh = 0 if options.fresh is None else int(options.fresh * 3600)
    if not data.startswith(proof.HEADER.encode()):
        verified = check.verify_checkpoint(data, policy, now=now, fresh=fresh)
        what = "the head"
    elif options.entry is None:
        raise InputError(
            f"{options.file}, must be checked together with its entry, found no --entry; nothing verified",
            hint=f"hubbub log verify {typed(options.file)} --policy {typed(options.policy)} --entry FILE",
        )
    else:
        proved = proof.parse_proof(data)
        verified = check.verify_entry(proved, _read(options.entry), policy, now=now, fresh=fresh)
        what = f"entry {proved.index}"
    head = verified.checkpoint
    where = f"{plain(head.origin)} at size {head.size}"
    print(f"verified: {what} of {where}, root {head.root.hex()}, signed by {plain(str(verified.log))}")
    for name, at in verified.cosigned.items():
        print(f"cosigned by {plain(name)} at {utc(at, '%Y-%m-%d %H:%M:%S')} UTC")


def read_policy(path: str | Path) -> Policy:
    """Read a policy file; what is wrong in it is told with its name."""
    data = _read(path)
    try:
        return parse_policy(data)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None


def _met_logs(path: Path, log: Verifier) -> list[Verifier]:
    """The logs that a witness knows; one whose origin it never met is believed to have this key, from now on."""
    known = read_policy(path).logs if path.exists() else ()
    if log.name not in {party.key.name for party in known}:
        known = (*known, Party(log))
        tiles.replace_file(path, bytes(Policy(known)))
    return [party.key for party in known]


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}, must be a file that can be read, {error.strerror}", hint="name another") from None
