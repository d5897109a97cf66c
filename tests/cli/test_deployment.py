"""What people ask of a coordinator over a real connection, and what a dishonest one cannot do to them."""

import threading
import time
from pathlib import Path

import deployment
import pytest

from hubbub.cli import deployment as commands
from hubbub.cli import main, show_deployment
from hubbub.engine.away import Deadlines
from hubbub.engine.commands import Done, FetchFile, FilePart, ReleaseRun, RunStatus, Status, read_command
from hubbub.engine.coordinate import Coordinating
from hubbub.engine.direct import Credentials, DirectServer, Spool, serve
from hubbub.engine.home import server_credentials
from hubbub.governance.enrolment import client_credentials, read_membership


class Listening:
    """A deployment whose coordinator listens; people type."""

    def __init__(self, root, command=None):
        self.world = deployment.Deployment(root)
        self.coordinating = Coordinating(self.world.home, Deadlines(stage=5, training=20, patience=1))
        self.server = DirectServer(
            Credentials(*server_credentials(self.world.home, ["localhost"], now=int(time.time()))),
            self.coordinating.identify,
            spool=Spool(root / "spool"),
            command=command or self.coordinating.command,
        )
        self.coordinating.transport = self.server
        self.world.address = f"localhost:{self.server.port}"
        self.world.keys["scientist"].save(root / "scientist.key")
        self.at = ["--key", str(root / "scientist.key"), "--at", str(self.admitted("scientist"))]
        self.stop, self.threads = threading.Event(), []

    def admitted(self, name):
        return self.world.admit(name, self.world.root / f"{name}.membership")

    def join(self, name):
        """A participant that has nothing to say."""
        end = client_credentials(self.world.keys[name], read_membership(self.admitted(name)), now=int(time.time()))
        arguments = (self.world.address, Credentials(*end), lambda _: None)
        options = {"stop": self.stop, "spool": Spool(self.world.root / f"spool-{name}")}
        self.threads.append(threading.Thread(target=serve, args=arguments, kwargs=options))
        self.threads[-1].start()

    def close(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.coordinating.close()
        self.server.close()


@pytest.fixture
def listening(tmp_path):
    made = []

    def listen(command=None):
        made.append(Listening(tmp_path, command))
        return made[0]

    yield listen
    for one in made:
        one.close()


def test_status_waits_until_enough_participants_are_connected(listening, capsys, monkeypatch):
    here = listening()
    assert main(["status", "--wait", "0", *here.at]) == 0
    assert "a absent b absent" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(commands, "PATIENCE", 0.5)
    here.join("a")
    assert main(["status", "--wait", "2", *here.at]) == 1
    assert "must have 2 participants connected within 0.5 s, found a" in capsys.readouterr().err
    monkeypatch.setattr(commands, "PATIENCE", 60.0)
    here.join("b")
    assert main(["status", "--wait", "2", *here.at]) == 0
    assert "a connected b connected c absent" in " ".join(capsys.readouterr().out.split())


def test_status_waits_for_a_coordinator_that_does_not_listen_yet(listening, capsys, monkeypatch):
    here = listening()
    here.server.close()
    monkeypatch.setattr(commands, "PATIENCE", 1.0)
    started = time.monotonic()
    assert main(["status", "--wait", "0", *here.at]) == 2
    assert time.monotonic() - started > 1
    error, hint = capsys.readouterr().err.splitlines()
    found = "must listen there, found 'connection refused'; nothing was asked"
    assert error == f"hubbub: error: coordinator '{here.world.address}', {found}"
    assert "hubbub coordinate DIR --address HOST:PORT" in hint


def test_a_hint_of_a_coordinators_says_what_to_type_here(listening, capsys):
    here = listening()
    assert main(["fetch", "no-such-run", "claim.json", *here.at]) == 2
    hint = capsys.readouterr().err.splitlines()[-1]
    _, key, _, at = here.at
    assert hint == f"hubbub: hint: hubbub status --at {at} --key {key}"
    assert main(hint.removeprefix("hubbub: hint: hubbub ").split()) == 0


def test_a_coordinator_cannot_name_a_file_outside_the_bundle(listening, tmp_path, capsys):
    names = ["../evil", "/tmp/evil", "log/../../evil", ".bashrc", "a/./b", "model\n", ""]

    def dishonest(_who, data):
        match read_command(data):
            case ReleaseRun():
                return Done().encode()
            case FetchFile():
                return FilePart(b"evil", is_last=True, names=(names[0],)).encode()

    here = listening(dishonest)
    before = set(tmp_path.rglob("*"))
    while names:
        assert main(["release", "run-1", "--out", str(tmp_path / "bundle"), *here.at]) == 3, names[0]
        assert "must name files of a bundle, found" in capsys.readouterr().err
        names.pop(0)
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set()
    assert not Path("/tmp/evil").exists()


def test_who_did_not_answer_is_named_when_a_study_is_proposed(listening, capsys):
    here = listening()
    here.join("a")
    main(["status", "--wait", "1", *here.at])
    capsys.readouterr()
    assert main(["propose", "study", str(here.world.study_folder), *here.at]) == 2
    err = capsys.readouterr().err
    assert "a did not answer; it is not in this plan" in err
    assert "e did not answer; it is not in this plan" in err
    assert "found 0 participants" in err


def test_status_shows_names_whole_and_no_terminal_obeys_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "a-study-with-a-name-of-some-length-1234abcd"
    run = RunStatus(run=name, study="study", state="interrupted", rounds=3, of=40, attempts=4, words="waits \x1b[2J")
    show_deployment.status(Status(("a\x1b[2J",), ("b",), (run,)))
    out = capsys.readouterr().out
    assert name in out
    assert "\x1b" not in out
