"""What convicts somebody is kept whole, once, for its owner, and no more of it than a bound."""

import hashlib
from pathlib import Path

from hubbub.participant.evidence import MOST_BYTES, MOST_FILES, keep
from hubbub.secagg.messages import Evidence as Broken
from hubbub.tlog.note import Note
from hubbub.tlog.witness import Evidence as Unjoined

DOCS = Path(__file__).parents[2] / "docs"


def messages(*pieces):
    return Broken("two messages", pieces)


def kept(folder, kind="messages"):
    return sorted(path.read_bytes() for path in (folder / kind).iterdir())


def test_pieces_are_kept_as_they_are_under_their_hash_for_their_owner(tmp_path):
    folder = tmp_path / "evidence"
    files = keep(folder, messages(b"one", memoryview(b"two")))
    assert [file.read_bytes() for file in files] == [b"one", b"two"]
    assert [file.name for file in files] == [hashlib.sha256(piece).hexdigest() for piece in (b"one", b"two")]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "messages")} == {0o700}


def test_the_same_piece_is_kept_once_and_named_again(tmp_path):
    first, second = keep(tmp_path, messages(b"one", b"two")), keep(tmp_path, messages(b"one", b"three"))
    assert first[0] == second[0]
    assert kept(tmp_path) == [b"one", b"three", b"two"]


def test_kinds_lie_apart(tmp_path):
    one, other = Note("one\n", ()), Note("other\n", ())
    for is_fork in (True, False):
        keep(tmp_path, Unjoined(one, other, is_fork))
    keep(tmp_path, messages(b"message"))
    assert kept(tmp_path, "forks") == kept(tmp_path, "heads") == sorted([bytes(one), bytes(other)])
    assert kept(tmp_path) == [b"message"]


def test_no_more_files_are_kept_than_the_bound_and_what_is_there_stays(tmp_path):
    pieces = [b"%d" % number for number in range(MOST_FILES)]
    for piece in pieces[:-1]:
        assert keep(tmp_path, messages(piece))
    assert keep(tmp_path, messages(b"both", b"or none")) == []
    assert keep(tmp_path, messages(pieces[-1]))
    assert keep(tmp_path, messages(b"late")) == []
    assert kept(tmp_path) == sorted(pieces)
    assert keep(tmp_path, messages(pieces[0]))
    assert keep(tmp_path, Unjoined(Note("one\n", ()), Note("other\n", ()), is_fork=True))


def test_no_more_bytes_are_kept_than_the_bound(tmp_path):
    assert keep(tmp_path, messages(bytes(MOST_BYTES + 1))) == []
    assert kept(tmp_path) == []
    assert keep(tmp_path, messages(bytes(MOST_BYTES - 1)))
    assert keep(tmp_path, messages(b"12")) == []
    assert keep(tmp_path, messages(b"1"))
    assert sum(map(len, kept(tmp_path))) == MOST_BYTES


def test_what_no_disk_takes_is_not_said_to_be_kept(tmp_path):
    (tmp_path / "evidence").write_text("a file where the folder should be")
    assert keep(tmp_path / "evidence", messages(b"one")) == []


def test_the_page_for_operators_tells_the_bound():
    assert (MOST_FILES, MOST_BYTES) == (64, 16 * 2**20)
    page = (DOCS / "how-to" / "deploy.md").read_text()
    assert "64 pieces and 16 MiB" in page
