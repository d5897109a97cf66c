"""The log on disk: all or nothing, in order, for many processes, and what tampering shows."""

import signal
import sqlite3
import threading
import time

import pytest

from hubbub.errors import BudgetError, InputError, RefusedError, VerificationError
from hubbub.tlog import Store, merkle, sign_checkpoint
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.store import MOST_ENTRY_BYTES


def change(store, statement, *values):
    """Do what somebody with the file could do."""
    path = store._database.path
    with sqlite3.connect(path) as database:
        assert database.execute(statement, values).rowcount > 0
    database.close()


def test_entries_come_back_as_they_were_appended(store, body):
    log = store()
    assert (log.size, log.entries(), log.root()) == (0, [], merkle.EMPTY_ROOT)
    assert log.append(lambda size: [body(size)]) == range(1)
    assert log.append(lambda _: []) == range(1, 1)
    assert log.append(lambda size: [body(size), body(size + 1)]) == range(1, 3)
    assert log.entries() == [body(0), body(1), body(2)]
    assert log.entries(1, 2) == [body(1)]
    assert log.entries(1, 99) == [body(1), body(2)]
    log.check()


@pytest.mark.parametrize("pieces", [[1] * 20, [7, 13], [20]])
def test_the_tree_is_the_same_however_entries_came(store, body, pieces):
    log, size = store(), 0
    for piece in pieces:
        bodies = [body(number) for number in range(size, size + piece)]
        log.append(lambda _, bodies=bodies: bodies)
        size += piece
    leaves = [merkle.leaf_hash(body(number)) for number in range(20)]
    for end in range(21):
        edge = []
        merkle.grow(edge, 0, leaves[:end])
        assert log.root(end) == merkle.join(edge)
    assert log.root() == log.root(20)
    log.check()


def test_two_who_append_in_turns_make_the_tree_of_one(tmp_path, store, body):
    """Each remembers the tree as it left it, and the other has added to it since."""
    one, two = Store(tmp_path / "log.db"), Store(tmp_path / "log.db")
    for log in (one, one, two, one, two, two, two, one, one, two, one):
        log.append(lambda size: [body(size), body(size + 1)])
    assert one.root() == two.root() == store(22).root()
    one.check()
    one.close()
    two.close()


def test_the_file_beside_a_log_stops_growing(tmp_path, body):
    log = Store(tmp_path / "log.db")
    for number in range(200):
        log.append(lambda _, number=number: [body(number)])
    assert (tmp_path / "log.db-wal").stat().st_size < 300 * 4120
    log.close()


def test_proofs_of_the_store_hold(store, body):
    log = store(20)
    for size in range(1, 21):
        for index in range(size):
            proof = log.inclusion(index, size)
            assert merkle.is_included(merkle.leaf_hash(body(index)), index, size, proof, log.root(size))
            assert merkle.is_consistent(index, size, log.consistency(index, size), log.root(index), log.root(size))


@pytest.mark.parametrize(
    ("ask", "places"),
    [
        *[("root", [6]), ("root", [-1]), ("inclusion", [5, 5]), ("inclusion", [-1, 5]), ("inclusion", [5, 6])],
        *[("consistency", [3, 2]), ("consistency", [-1, 2]), ("consistency", [3, 6])],
    ],
)
def test_a_question_beyond_the_log_is_refused(store, ask, places):
    with pytest.raises(InputError, match="has 5 entries, found a question about others"):
        getattr(store(5), ask)(*places)


def test_what_decides_sees_the_newest_state_and_may_refuse(store, body):
    log = store(3)

    def decide(size):
        assert log.entries(size - 1) == [body(2)]
        assert log.is_writing
        raise BudgetError("no", hint="no")

    with pytest.raises(BudgetError):
        log.append(decide)
    assert not log.is_writing
    assert log.size == 3
    log.check()
    assert log.append(lambda size: [body(size)]) == range(3, 4)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'"' + b"x" * (MOST_ENTRY_BYTES - 1) + b'"', "found 65536 bytes"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'"\xff"', "can't decode byte"),
        ('"é"'.encode("utf-16"), "can't decode byte"),
        ("\ufeff{}".encode(), "Expecting value"),
        (b"NaN", "NaN, which is Python's and not JSON's"),
        (b"[" * 60_000, "recursion"),
        (b"1" * 5000, "limit"),
    ],
    ids=range(9),
)
def test_what_is_no_entry_is_refused_by_name_and_nothing_is_appended(store, body, bad, words):
    log = store(3)
    with pytest.raises(InputError) as caught:
        log.append(lambda size: [body(size), bad])
    assert caught.value.message.startswith("entry 4, must be JSON in UTF-8 of at most 65535 bytes, found ")
    assert words in caught.value.message
    assert caught.value.message.endswith("; nothing appended")
    assert log.size == 3
    log.check()


def test_the_largest_entry_is_kept(store):
    log, body = store(), b'"' + b"x" * (MOST_ENTRY_BYTES - 2) + b'"'
    log.append(lambda _: [body])
    assert log.entries() == [body]


def test_a_full_disk_appends_nothing(store, body):
    log = store(3)
    log._database.run("PRAGMA max_page_count = 4")
    with pytest.raises(InputError, match="database or disk is full; nothing recorded"):
        log.append(lambda size: [body(size + more) for more in range(1000)])
    assert log.size == 3
    log._database.run("PRAGMA max_page_count = 1000")
    log.append(lambda size: [body(size)])
    log.check()


def test_a_transaction_that_sqlite_has_ended_itself_tells_why_it_failed(store):
    log = store(3)

    def decide(size):
        log._database.run("ROLLBACK")  # as SQLite does after an input or output error
        raise BudgetError("the reason", hint="none")

    with pytest.raises(BudgetError, match="the reason"):
        log.append(decide)
    assert not log.is_writing


def test_a_checkpoint_is_of_what_is_committed(store, body, key):
    log = store(3)
    head = parse_checkpoint(sign_checkpoint(log, key()).text)
    assert (head.origin, head.size, head.root) == (key().name, 3, log.root())

    def decide(size):
        sign_checkpoint(log, key())
        return [body(size)]

    with pytest.raises(RefusedError, match="is signed after its entries are committed"):
        log.append(decide)
    assert log.size == 3


def test_another_thread_never_sees_what_may_not_come_to_be(store, body, key):
    log, seen = store(3), []
    lookers = [
        threading.Thread(target=lambda: seen.append(parse_checkpoint(sign_checkpoint(log, key()).text).size)),
        threading.Thread(target=lambda: seen.append(log.size)),
        threading.Thread(target=lambda: seen.append(len(log.entries()))),
    ]

    def decide(size):
        log._database.run("INSERT INTO entry VALUES (?, ?)", (size, body(size)))
        for looker in lookers:
            looker.start()
            looker.join(0.1)
        assert seen == []
        raise BudgetError("no", hint="no")

    with pytest.raises(BudgetError):
        log.append(decide)
    for looker in lookers:
        looker.join()
    assert seen == [3, 3, 3]


def test_the_file_is_for_its_owner_only(tmp_path):
    path = tmp_path / "home" / "log.db"
    log = Store(path)
    log.append(lambda _: [b"1"])
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    log.close()


def test_a_file_that_is_no_log_is_refused(tmp_path):
    path = tmp_path / "log.db"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(InputError, match="must be a log's database that can be written, file is not") as found:
        Store(path)
    assert found.value.hint == "restore it from a copy"
    with pytest.raises(InputError, match=r"Not a directory|File exists") as found:
        Store(path / "log.db")
    assert found.value.hint.startswith(f"ls -ld {path} shows who may write there, df -h"), "an old copy has forgotten"


@pytest.mark.parametrize(
    ("statement", "values", "words"),
    [
        ("UPDATE entry SET body = ? WHERE idx = 3", (b'{"number": 9}',), "entry 3"),
        ("UPDATE entry SET body = '{}' WHERE idx = 3", (), "entry 3"),
        ("DELETE FROM entry WHERE idx = 3", (), "entry 3"),
        ("DELETE FROM entry WHERE idx = 0", (), "entry 0"),
        ("UPDATE node SET hash = ? WHERE level = 0 AND idx = 3", (bytes(32),), "entry 3"),
        ("DELETE FROM node WHERE level = 0 AND idx = 19", (), "entry 19"),
        ("UPDATE node SET hash = ? WHERE level = 2 AND idx = 1", (bytes(32),), "a hash at level 2, places 0 to 4"),
        ("DELETE FROM node WHERE level = 4", (), "a hash at level 4, places 0 to 0"),
        ("INSERT INTO node VALUES (1, 10, ?)", (bytes(32),), "the number of hashes"),
        ("INSERT INTO node VALUES (-1, 0, ?)", (bytes(32),), "the number of hashes"),
        ("DELETE FROM entry WHERE idx = 19", (), "the number of hashes"),
    ],
)
def test_a_tampered_database_is_found_out(store, statement, values, words):
    log = store(20)
    change(log, statement, *values)
    with pytest.raises(VerificationError, match=f"found {words} missing or changed"):
        log.check()


def test_reading_a_changed_entry_is_refused_without_a_check(store):
    log = store(20)
    change(log, "UPDATE entry SET body = '{}' WHERE idx = 3")
    assert len(log.entries(4)) == 16
    with pytest.raises(VerificationError, match="entry 3"):
        log.entries(0, 4)


@pytest.mark.parametrize("gone", ["entry WHERE idx = 3", "node WHERE level = 0 AND idx = 3"])
@pytest.mark.parametrize(("start", "end"), [(0, 4), (3, 4), (3, None), (2, 5), (3, 99)])
def test_an_entry_that_is_gone_is_missed_wherever_reading_ends(store, gone, start, end):
    log = store(6)
    change(log, f"DELETE FROM {gone}")
    with pytest.raises(VerificationError, match="entry 3 missing or changed"):
        log.entries(start, end)
    assert log.entries(4) == log.entries(4, 6) == log.entries(4, 9)


APPENDER = """
import sys
from pathlib import Path
from hubbub.tlog import Store
log = Store(Path(sys.argv[1]))
for number in range(25):
    log.append(lambda size: [b'{"writer": %d, "number": %d, "at": %d}' % (int(sys.argv[2]), number, size)])
"""


def test_any_number_of_processes_may_append(tmp_path, race):
    path = tmp_path / "log.db"
    race(APPENDER, path, range(6))
    log = Store(path)
    log.check()
    entries = [eval(body) for body in log.entries()]
    assert [entry["at"] for entry in entries] == list(range(150))
    for name in range(6):
        assert [entry["number"] for entry in entries if entry["writer"] == name] == list(range(25))
    log.close()


VISITOR = """
import sys
from pathlib import Path
from hubbub.tlog import Store
Store(Path(sys.argv[1])).close()
"""


def test_a_log_opened_twice_here_keeps_its_locks_against_other_processes(tmp_path, race, body):
    path = tmp_path / "log.db"
    one = Store(path)
    one.append(lambda size: [body(size)])
    two = Store(path)
    race(VISITOR, path, [""])
    assert path.with_name("log.db-wal").exists()  # the other process thought itself the last, and took it away
    for log in (one, two):
        log.append(lambda size: [body(size)])
    assert one.entries() == two.entries() == [body(0), body(1), body(2)]
    one.close()
    two.close()


KILLED = """
import sys
from pathlib import Path
from hubbub.tlog import Store
log = Store(Path(sys.argv[1]))
for turn in range(10_000):
    made = log.append(lambda size: [b'{"at": %d}' % (size + more) for more in range(1 + turn % 7)])
    print(made.stop, flush=True)
"""


def killed_appends(start, path, seconds):
    """Kill a process in the middle of appending; the number of entries that it had been promised."""
    with start(KILLED, path) as writer:
        promised = writer.stdout.readline()
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        lines = [promised, *writer.stdout.read().split("\n")]
    return max(int(line) for line in lines[:-1] if line.strip())


def check_after_kills(start, path, kills):
    for kill in range(kills):
        if kill % 10 == 0:
            path = path.with_name(f"log-{kill}.db")
        promised = killed_appends(start, path, 0.003 * (kill % 20))
        log = Store(path)
        log.check()
        assert promised <= log.size <= promised + 7
        assert log.entries() == [b'{"at": %d}' % number for number in range(log.size)]
        log.close()


def test_a_kill_in_the_middle_of_appends_loses_nothing_that_was_promised(start, tmp_path):
    check_after_kills(start, tmp_path / "log.db", 4)


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_that_was_promised(start, tmp_path):
    check_after_kills(start, tmp_path / "log.db", 200)
