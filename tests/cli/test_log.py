"""The log on the command line: from a home to a proof that somebody else checks."""

import json
import os
import re
from pathlib import Path

import pytest

from hubbub.cli import main
from hubbub.tlog import Store
from hubbub.tlog.note import parse_note
from hubbub.tlog.proof import parse_proof

SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "log.md"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give a home with a log of five entries."""
    monkeypatch.setenv("HUBBUB_HOME", str(tmp_path / "home"))
    append(tmp_path / "home", 5)
    return tmp_path / "home"


def append(home, count):
    store = Store(home / "log.db")
    store.append(lambda size: [b'{"event": "tested", "number": %d}' % (size + more) for more in range(count)])
    store.close()


def done(capsys, *arguments):
    """Run a command that must succeed; what it printed."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys, *arguments):
    """Run a command that must fail: its code and its error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err.splitlines()[0].removeprefix("hubbub: error: ")


def shown(capsys, *options):
    return json.loads(done(capsys, "log", "show", "--json", *options))


def write_policy(capsys, tmp_path, *witnesses):
    """Write the policy of the log and some witnesses, all of whom must have cosigned."""
    lines = [f"log {shown(capsys)['vkey']}", *(f"witness W{at} {vkey}" for at, vkey in enumerate(witnesses))]
    names = " ".join(f"W{at}" for at in range(len(witnesses)))
    lines += [f"group all-of-them all {names}", "quorum all-of-them"] if witnesses else ["quorum none"]
    path = tmp_path / "policy"
    path.write_text("\n".join([*lines, ""]))
    return path


def witnessed(capsys, folder):
    """Have a witness cosign; its verifier key."""
    return re.search(r"witness NAME (\S+)$", done(capsys, "log", "witness", folder).strip())[1]


def test_show_tells_head_key_and_entries_and_makes_the_key_once(home, capsys):
    out = done(capsys, "log", "show", "--last", 2, "--check")
    assert '{"event": "tested", "number": 4}' in out
    assert '"number": 2' not in out
    assert "every hash follows from the 5 entries" in out
    facts = shown(capsys)
    assert f"in a policy: log {facts['vkey']}\n" in out
    assert facts["size"] == 5
    assert len(bytes.fromhex(facts["root"])) == 32
    assert re.fullmatch(r"hubbub\.local/[0-9a-f]{16}", facts["origin"])
    assert [line["index"] for line in facts["entries"]] == [0, 1, 2, 3, 4]
    assert facts["entries"][4]["entry"] == {"event": "tested", "number": 4}
    assert facts["cosigned_size"] is None
    assert (home / "log.key").stat().st_mode & 0o777 == 0o600
    assert (home / "log.key").read_text().startswith(f"PRIVATE+KEY+{facts['origin']}+")


def test_no_terminal_obeys_an_entry(home, capsys):
    store = Store(home / "log.db")
    store.append(lambda _: ['{"word": "[bold]\x9b31m\\u001b[31mred"}'.encode()])
    store.close()
    out = done(capsys, "log", "show", "--last", 1)
    assert "[bold]" in out
    assert "\x9b" not in out
    assert "\x1b[31m" not in out


def test_a_home_without_a_log_is_named(tmp_path, capsys):
    code, error = refused(capsys, "log", "show", "--home", tmp_path)
    assert (code, error) == (2, f"{tmp_path}, must hold a log, found none; nothing read")


def test_a_log_beside_a_study_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HUBBUB_HOME", raising=False)
    append(tmp_path / ".hubbub", 1)
    (tmp_path / "study.toml").touch()
    assert shown(capsys, "--study", tmp_path / "study.toml")["size"] == 1
    assert shown(capsys, "--study", tmp_path)["size"] == 1


def test_an_entry_is_proved_and_verified_without_the_home(home, tmp_path, capsys):
    policy = write_policy(capsys, tmp_path)
    out = done(capsys, "log", "prove", 3, "--out", tmp_path / "out")
    assert "entry 3 of 5, 0 cosignatures" in out
    (home / "log.db").unlink()
    proof, entry = tmp_path / "out" / "3.tlog-proof", tmp_path / "out" / "3.json"
    out = done(capsys, "log", "verify", proof, "--entry", entry, "--policy", policy)
    assert out.startswith("verified: entry 3 of hubbub.local/")
    entry.write_bytes(entry.read_bytes().replace(b"3", b"4"))
    code, error = refused(capsys, "log", "verify", proof, "--entry", entry, "--policy", policy)
    assert code == 3
    assert "must hold this entry at index 3 of 5" in error
    code, error = refused(capsys, "log", "verify", proof, "--policy", policy)
    assert (code, "must be checked together with its entry" in error) == (2, True)


def test_the_specifications_lines_verify_a_proof(home, tmp_path, capsys, monkeypatch):
    write_policy(capsys, tmp_path)
    done(capsys, "log", "prove", 3, "--out", tmp_path)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"^```python\n(.*?)^```", SPECIFICATION.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(lines, "log.md", "exec"), {})
    assert capsys.readouterr().out == "5\n"


def test_entries_that_are_not_there_cannot_be_proved(home, capsys, tmp_path):
    for index in (5, -1):
        code, error = refused(capsys, "log", "prove", "--out", tmp_path / "out", "--", index)
        assert (code, "has 5 entries" in error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_witnesses_cosign_and_a_proof_shows_it(home, tmp_path, capsys):
    vkeys = [witnessed(capsys, tmp_path / name) for name in ("w0", "w1")]
    policy = write_policy(capsys, tmp_path, *vkeys)
    append(home, 3)
    done(capsys, "log", "prove", 4, "--out", tmp_path)
    arguments = ("log", "verify", tmp_path / "4.tlog-proof", "--entry", tmp_path / "4.json", "--policy", policy)
    out = done(capsys, *arguments)
    assert re.findall(r"^cosigned by (W\d) at \d{4}-", out, re.MULTILINE) == ["W0", "W1"]
    assert done(capsys, *arguments, "--fresh", 1) == out
    assert refused(capsys, *arguments, "--fresh", -1)[0] == 3
    done(capsys, "log", "prove", 7, "--out", tmp_path)
    assert len(parse_proof((tmp_path / "7.tlog-proof").read_bytes()).checkpoint.signatures) == 1
    assert witnessed(capsys, tmp_path / "w0") == vkeys[0]
    assert shown(capsys)["cosigned_size"] == 8
    assert os.listdir(home / "cosignatures")  # noqa: PTH208
    code, error = refused(capsys, "log", "verify", home / "cosignatures" / "8", "--policy", policy)
    assert (code, "found W0, where 2 of W0, W1 must" in error) == (3, True)


def test_a_witness_asked_twice_keeps_one_line_with_the_newer_time(home, tmp_path, capsys):
    for _ in range(2):
        witnessed(capsys, tmp_path / "w0")
    assert len(parse_note((home / "cosignatures" / "5").read_bytes()).signatures) == 2


def test_an_exported_log_carries_its_cosignatures(home, tmp_path, capsys):
    policy = write_policy(capsys, tmp_path, witnessed(capsys, tmp_path / "w0"))
    assert "wrote 5 entries in 2 files" in done(capsys, "log", "export", tmp_path / "site")
    out = done(capsys, "log", "verify", tmp_path / "site" / "checkpoint", "--policy", policy)
    assert out.startswith("verified: the head of hubbub.local/")


def test_a_log_that_was_cut_after_it_was_cosigned_signs_nothing_more(home, tmp_path, capsys):
    witnessed(capsys, tmp_path / "w0")
    for path in home.glob("log.db*"):
        path.unlink()
    append(home, 4)
    for words in (["show"], ["prove", "0"], ["export", tmp_path / "x"], ["witness", tmp_path / "w1"]):
        code, error = refused(capsys, "log", *words)
        assert code == 3
        assert "must begin with the 5 entries that were cosigned" in error
        assert error.endswith("; nothing signed")


def test_a_witness_meets_a_log_once_and_refuses_another_key_for_its_origin(home, tmp_path, capsys):
    witnessed(capsys, tmp_path / "w0")
    (home / "cosignatures" / "5").unlink()
    lines = (tmp_path / "w0" / "logs").read_text()
    other = shown(capsys, "--home", home)["vkey"]
    assert lines == f"log {other}\nquorum none\n"
    for path in home.glob("log.db*"):
        path.unlink()
    append(home, 6)
    store = Store(home / "log.db")
    store.close()
    assert witnessed(capsys, tmp_path / "w0")
    (home / "cosignatures" / "6").unlink()
    from hubbub.tlog.keys import ED25519, Signer

    origin = shown(capsys)["origin"]
    (home / "log.key").write_text(Signer(origin, ED25519, bytes(32)).secret_text() + "\n")
    code, error = refused(capsys, "log", "witness", tmp_path / "w0")
    assert (code, "which answered '403" in error) == (1, True)


def test_a_witness_that_lost_its_memory_is_retired(home, tmp_path, capsys):
    witnessed(capsys, tmp_path / "w0")
    for path in (tmp_path / "w0").glob("witness.db*"):
        path.unlink()
    code, error = refused(capsys, "log", "witness", tmp_path / "w0")
    assert code == 2
    assert "must hold what the witness has signed, found its key only; nothing signed" in error


def test_a_holders_key_that_has_signed_is_not_begun_anew_in_another_folder(home, tmp_path, capsys):
    done(capsys, "keys", "new", "site-a", "--organisation", "a", "--role", "node", "--out", tmp_path)
    key = ("--key", tmp_path / "site-a.key")
    done(capsys, "log", "witness", tmp_path / "w0", *key)
    append(home, 1)
    code, error = refused(capsys, "log", "witness", tmp_path / "w1", *key)
    assert (code, "must hold what the witness has signed, found its key only; nothing signed" in error) == (2, True)
    assert "cosigned size 6" in done(capsys, "log", "witness", tmp_path / "w0", *key)


@pytest.mark.parametrize("hours", ["nan", "inf", "x"])
def test_an_age_that_is_none_is_refused(home, tmp_path, capsys, hours):
    done(capsys, "log", "prove", "0", "--out", tmp_path)
    words = ("log", "verify", tmp_path / "0.tlog-proof", "--policy", write_policy(capsys, tmp_path))
    code, error = refused(capsys, *words, "--entry", tmp_path / "0.json", f"--fresh={hours}")
    assert (code, "argument --fresh: " in error) == (2, True)


def test_a_time_that_is_in_no_calendar_is_told_in_seconds(home, tmp_path, capsys):
    from hubbub.tlog import Note, Signer, sign_checkpoint
    from hubbub.tlog.keys import COSIGNATURE, open_key

    store, witness = Store(home / "log.db"), Signer("w", COSIGNATURE, bytes(32))
    head = sign_checkpoint(store, open_key(home / "log.key", "hubbub.local/"))
    store.close()
    late = Note(head.text, (*head.signatures, witness.sign(head.text, 2**62)))
    (tmp_path / "head").write_bytes(bytes(late))
    policy = write_policy(capsys, tmp_path, str(witness.verifier))
    out = done(capsys, "log", "verify", tmp_path / "head", "--policy", policy)
    assert f"cosigned by W0 at {2**62} s after 1970 UTC" in out


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    code, error = refused(capsys, "log", "verify", tmp_path / "none", "--policy", tmp_path / "none")
    assert (code, error) == (2, f"{tmp_path}/none, must be a file that can be read, No such file or directory")
