"""A log as static files, and what another implementation makes of them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hubbub.errors import InputError, VerificationError
from hubbub.tlog import merkle
from hubbub.tlog.tiles import export, read_export, tile_path


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_paths_are_the_specifications():
    assert tile_path("0", 1234067) == "tile/0/x001/x234/067"
    assert tile_path("entries", 0, 1) == "tile/entries/000.p/1"
    assert tile_path("1", 1000, 255) == "tile/1/x001/000.p/255"
    assert tile_path("0", 999, 256) == "tile/0/999"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, set()),
        (1, {"tile/0/000.p/1", "tile/entries/000.p/1"}),
        (256, {"tile/0/000", "tile/entries/000", "tile/1/000.p/1"}),
        (513, {"tile/0/000", "tile/0/001", "tile/0/002.p/1", "tile/1/000.p/2",
               "tile/entries/000", "tile/entries/001", "tile/entries/002.p/1"}),
    ],
)  # fmt: skip
def test_the_files_of_a_log_are_those_that_its_size_asks_for(tmp_path, store, head, size, expected):
    log = store(size)
    assert export(log, head(log), tmp_path / "x") == len(expected)
    assert files(tmp_path / "x") == expected | {"checkpoint"}
    assert (tmp_path / "x" / "checkpoint").read_bytes() == bytes(head(log))


def test_tiles_hold_hashes_and_bundles_hold_entries_with_their_lengths(tmp_path, store, head, body):
    log = store(513)
    export(log, head(log), tmp_path)
    leaves = [merkle.leaf_hash(body(number)) for number in range(513)]
    assert (tmp_path / "tile/0/001").read_bytes() == b"".join(leaves[256:512])
    assert (tmp_path / "tile/1/000.p/2").read_bytes() == log.root(256) + b"".join(log.hashes(8, 1, 2))
    bundle = (tmp_path / "tile/entries/002.p/1").read_bytes()
    assert bundle == len(body(512)).to_bytes(2, "big") + body(512)


def test_a_growing_log_keeps_the_files_that_older_heads_need(tmp_path, store, head, body):
    log = store(255)
    export(log, head(log), tmp_path)
    log.append(lambda size: [body(size)])
    export(log, head(log), tmp_path)
    assert {"tile/0/000.p/255", "tile/0/000"} <= files(tmp_path)


def test_an_old_head_exports_the_log_as_it_was(tmp_path, store, head, body):
    log = store(3)
    old = head(log)
    log.append(lambda size: [body(size)])
    export(log, old, tmp_path / "x")
    assert files(tmp_path / "x") == {"tile/0/000.p/3", "tile/entries/000.p/3", "checkpoint"}


def test_another_logs_head_is_refused(tmp_path, store, head):
    with pytest.raises(InputError, match="found another root at size 3; nothing written"):
        export(store(3), head(store(3, b"x")), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, store, head):
    (tmp_path / "x").write_text("a file")
    log = store(3)
    with pytest.raises(InputError, match="must be a file that can be written"):
        export(log, head(log), tmp_path / "x")


@pytest.mark.parametrize("size", [0, 1, 256, 300])
def test_an_exported_log_is_read_back_whole(tmp_path, store, head, body, size):
    log = store(size)
    export(log, head(log), tmp_path / "x")
    note, bodies = read_export(tmp_path / "x")
    assert (bytes(note), bodies) == (bytes(head(log)), [body(number) for number in range(size)])


def test_every_changed_byte_of_an_exported_log_is_seen(tmp_path, store, head):
    log = store(3)
    folder = tmp_path / "x"
    export(log, head(log), folder)
    for path in (path for path in folder.rglob("*") if path.is_file() and path.name != "checkpoint"):
        content = path.read_bytes()
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(VerificationError):
                read_export(folder)
        for other in (b"", content[:-1], content + b"\0"):
            path.write_bytes(other)
            with pytest.raises(VerificationError, match="must hold a log as it was exported, found"):
                read_export(folder)
        path.write_bytes(content)
    assert len(read_export(folder)[1]) == 3


def test_a_file_less_or_more_in_an_exported_log_is_seen(tmp_path, store, head):
    log = store(3)
    folder = tmp_path / "x"
    export(log, head(log), folder)
    (folder / "tile/0/extra").write_bytes(b"")
    with pytest.raises(VerificationError, match="found other entries, hashes or files"):
        read_export(folder)
    (folder / "tile/0/extra").unlink()
    (folder / "checkpoint").unlink()
    with pytest.raises(VerificationError):
        read_export(folder)


def go(*arguments, cache):
    """Run Go with the packages that the system has, without a network."""
    if shutil.which("go") is None:
        pytest.skip("no Go here")
    paths = {"GOPATH": os.environ.get("GOPATH", "/usr/share/gocode"), "GOCACHE": str(cache), "HOME": str(cache)}
    environment = os.environ | paths | {"GO111MODULE": "off", "GOFLAGS": ""}
    return subprocess.run(["go", *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_go_verifies_heads_entries_growth_and_tiles(tmp_path, tmp_path_factory, store, head, key, body):
    cache = tmp_path_factory.mktemp("go")
    if go("list", "golang.org/x/mod/sumdb/tlog", cache=cache).returncode:
        pytest.skip("no golang.org/x/mod/sumdb in GOPATH")
    program = str(Path(__file__).parent / "verify.go")
    log = store(300)
    old = head(log)
    log.append(lambda size: [body(number) for number in range(size, 70_000)])
    export(log, head(log), tmp_path)
    (tmp_path / "old").write_bytes(bytes(old))
    for name, hashes in [("inclusion", log.inclusion(12345, 70_000)), ("consistency", log.consistency(300, 70_000))]:
        (tmp_path / name).write_text("".join(f"{hash_.hex()}\n" for hash_ in hashes))
    (tmp_path / "entry").write_bytes(body(12345))
    done = go("run", program, str(tmp_path), str(key().verifier), "12345", cache=cache)
    assert (done.stdout, done.stderr) == ("checkpoint tiles inclusion consistency\n", "")
    done = go("run", program, str(tmp_path), str(key().verifier), cache=cache)
    assert (done.stdout, done.stderr) == ("checkpoint tiles\n", "")
    (tmp_path / "entry").write_bytes(body(12346))
    assert "inclusion" in go("run", program, str(tmp_path), str(key().verifier), "12345", cache=cache).stderr
