"""The log: durable appends, and proofs in a log of a million entries.

    python benchmarks/log.py [--entries 1000000] [--folder DIR]

Appends are measured beside the disk's own fdatasync, because a durable commit waits for one. Where that is slow,
the goal for batches of 64 is what the disk allows: five times the rate of single commits, times 64.
"""

import argparse
import hashlib
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path

from goals import Result, finish, machine

from hubbub.tlog import Signer, Store, sign_checkpoint, verify_checkpoint
from hubbub.tlog.keys import ED25519
from hubbub.tlog.merkle import is_consistent, is_included, leaf_hash
from hubbub.tlog.policy import Party, Policy

BATCH, SUBMITTERS, PROOFS, TOGETHER = 64, 64, 2000, 100


def entry(number: int) -> bytes:
    return b'{"event": "round-closed", "round_number": %d, "survivors": "%032x"}' % (number, number)


def rate(count: int, start: float) -> float:
    return count / (time.perf_counter() - start)


def milliseconds(calls: list) -> list[float]:
    """What each call takes; medians of a hundred neighbours, so that a range says something."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times[at : at + TOGETHER]) for at in range(0, len(times), TOGETHER)]


def sync_milliseconds(folder: Path) -> float:
    """Time of an fdatasync after a page was written, as a commit does it."""
    with (folder / "sync").open("wb", buffering=0) as file:

        def write() -> None:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())

        return statistics.median(milliseconds([write] * 200))


def appended(folder: Path, batch: int, seconds: float = 3) -> float:
    """Durable entries per second, in commits of `batch`."""
    store, count, start = Store(folder / f"batches-of-{batch}.db"), 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        store.append(lambda size: [entry(size + more) for more in range(batch)])
        count += batch
    result = rate(count, start)
    store.close()
    return result


def submitted(folder: Path, seconds: float = 3) -> float:
    """Durable entries per second of threads that each wait for a commit of their own."""
    store, counts, start = Store(folder / "submitters.db"), [0] * SUBMITTERS, time.perf_counter()

    def work(name: int) -> None:
        while time.perf_counter() < start + seconds:
            store.append(lambda size: [entry(size)])
            counts[name] += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in range(SUBMITTERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = rate(sum(counts), start)
    store.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", help="on the disk to be measured (default: the system's folder for such files)")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        sync, single, batched = sync_milliseconds(folder), appended(folder, 1), appended(folder, BATCH)
        large, waiting = appended(folder, 4096), submitted(folder)
        allowed = min(20_000, int(5 * single * BATCH))
        rows += [
            Result("durable appends, commits of 64", [batched], f">= {allowed} a second", is_headline=True),
            Result("durable appends, commits of 4096", [large], ">= 20000 a second"),
            Result("durable appends, one by one", [single], "a second"),
            Result(f"durable appends, {SUBMITTERS} waiting threads", [waiting], ">= 3000 a second"),
            Result("fdatasync", [sync], "ms"),
        ]
        store, start = Store(folder / "million.db"), time.perf_counter()
        while store.size < asked.entries:
            store.append(lambda size: [entry(number) for number in range(size, min(size + 50_000, asked.entries))])
        filled = rate(asked.entries, start)
        size, root = store.size, store.root()
        places = [int.from_bytes(hashlib.sha256(b"%d" % at).digest()[:7]) % size for at in range(PROOFS)]
        proving = [lambda at=at: store.inclusion(at, size) for at in places]
        joining = [lambda at=at: store.consistency(at, size) for at in places]
        rows += [
            Result(f"inclusion proof, {size:,} entries", milliseconds(proving), "< 3 ms", is_headline=True),
            Result(f"consistency proof, {size:,} entries", milliseconds(joining), "< 3 ms"),
        ]
        known = [(leaf_hash(entry(at)), at, store.inclusion(at, size)) for at in places]
        grown = [(at, store.consistency(at, size), store.root(at)) for at in places]
        assert all(is_included(leaf, at, size, proof, root) for leaf, at, proof in known)
        assert all(is_consistent(at, size, proof, old, root) for at, proof, old in grown)
        checks = [lambda it=it: is_included(it[0], it[1], size, it[2], root) for it in known]
        rows.append(Result("inclusion verified", milliseconds(checks), "< 0.1 ms", is_headline=True))
        checks = [lambda it=it: is_consistent(it[0], size, it[1], it[2], root) for it in grown]
        rows.append(Result("consistency verified", milliseconds(checks), "< 0.1 ms"))
        key = Signer("example.com/log", ED25519, bytes(32))
        note, policy = bytes(sign_checkpoint(store, key)), Policy((Party(key.verifier),))
        (signing,) = milliseconds([lambda: sign_checkpoint(store, key)] * 100)
        (opening,) = milliseconds([lambda: verify_checkpoint(note, policy)] * 100)
        start = time.perf_counter()
        store.check()
        checked = time.perf_counter() - start
        megabytes = sum(path.stat().st_size for path in folder.glob("million.db*")) / 1e6
        store.close()
    print(f"entries of {len(entry(0))} bytes; {size:,} of them: filled at {filled:,.0f}/s, {megabytes:.0f} MB")
    print(
        f"every hash checked in {checked:.1f} s; a checkpoint: signed in {signing:.2f} ms, verified in {opening:.2f} ms"
    )
    finish(rows, machine("cryptography"), f"SQLite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    main()
