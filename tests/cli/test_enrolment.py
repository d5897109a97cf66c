"""enrol, admit, --at: from key files to a federation whose members never share a disk, over a real connection."""

import json
import shutil
import time
from pathlib import Path

import pytest

from hubbub.cli import main
from hubbub.engine.away import Deadlines
from hubbub.engine.coordinate import Coordinating
from hubbub.engine.direct import Credentials, DirectServer, Spool
from hubbub.engine.home import server_credentials
from hubbub.governance.enrolment import read_membership

PEOPLE = {
    "operator": ("it", "operator"),
    "officer": ("board", "privacy-officer"),
    "auditor": ("watch", "auditor"),
    "site-a": ("clinic-a", "node"),
    "owner-a": ("clinic-a", "data-owner"),
}


class Desk:
    """Everybody's folder with a key and, later, a membership; the operator's folder has the coordinator's home."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys, self.home = folder, capsys, folder / "operator" / "home"

    def typed(self, *arguments):
        words = [str(argument) for argument in arguments]
        self.capsys.readouterr()
        code = main(words)
        out, err = self.capsys.readouterr()
        return code, out, err

    def type(self, *arguments):
        """Run a command that must work; what it prints."""
        code, out, err = self.typed(*arguments)
        assert (code, err) == (0, "")
        return out

    def refused(self, *arguments):
        """Run a command that must fail: its code and its error."""
        code, out, err = self.typed(*arguments)
        assert out == ""
        error, hint = err.strip().splitlines()
        assert hint.startswith("hubbub: hint: ")
        return code, error.removeprefix("hubbub: error: ")

    def key(self, who):
        return self.folder / who / f"{who}.key"

    def at(self, who):
        return ("--key", self.key(who), "--at", self.folder / who / f"{who}.membership")

    def new(self, who, organisation, role):
        words = ("keys", "new", who, "--organisation", organisation, "--role", role)
        self.type(*words, "--out", self.folder / who)

    def request(self, who):
        return self.folder / f"{who}.request"

    def enrol(self, who):
        self.type("enrol", self.key(who), "--out", self.request(who))
        return self.request(who)

    def admit(self, *requests, port=8443):
        words = ("--home", self.home, "--address", f"localhost:{port}", "--out", self.folder)
        return self.type("admit", *requests, *words)

    def found(self):
        cards = [self.folder / who / f"{who}.card" for who in PEOPLE]
        words = ("federation", "found", "heart", *cards, "--home", self.home, "--key", self.key("operator"))
        return self.type(*words).partition(":")[0]

    def give(self, who):
        """Carry a membership from the operator to its holder."""
        shutil.move(self.folder / f"{who}.membership", self.folder / who / f"{who}.membership")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """Give a folder with everybody's key and request; made once."""
    folder = tmp_path_factory.mktemp("keyed")
    for name, (organisation, role) in PEOPLE.items():
        words = ["keys", "new", name, "--organisation", organisation, "--role", role]
        assert main([*words, "--out", str(folder / name)]) == 0
        assert main(["enrol", str(folder / name / f"{name}.key"), "--out", str(folder / f"{name}.request")]) == 0
    return folder


@pytest.fixture
def desk(tmp_path, capsys, monkeypatch, keyed):
    """Give everybody's folder with a key, and the operator's with their requests and a founding act that waits."""
    monkeypatch.delenv("HUBBUB_HOME", raising=False)
    shutil.copytree(keyed, tmp_path, dirs_exist_ok=True)
    desk = Desk(tmp_path, capsys)
    desk.case = desk.found()
    return desk


@pytest.fixture
def hub(desk):
    """Start the coordinator's end of the wire, as far as people reach it; its port."""
    coordinating = Coordinating(desk.home, Deadlines())
    server = DirectServer(
        Credentials(*server_credentials(desk.home, [], now=int(time.time()))),
        coordinating.identify,
        spool=Spool(desk.folder),
        command=coordinating.command,
    )
    yield server.port
    server.close()
    coordinating.close()


@pytest.fixture
def met(desk, hub):
    """Give a desk where everybody has a membership and the founding act waits."""
    desk.admit(*map(desk.request, PEOPLE), port=hub)
    for who in PEOPLE:
        desk.give(who)
    return desk


def test_a_federation_is_founded_registered_and_read_over_the_wire(met):
    for who in PEOPLE.keys() - {"operator"}:
        met.type("approve", met.case, *met.at(who))
    shown = json.loads(met.type("federation", "show", "--json", *met.at("site-a")))
    assert (shown["name"], shown["epoch"], shown["participants"]) == ("heart", 1, ["site-a"])
    assert shown["id"] == read_membership(met.folder / "site-a" / "site-a.membership").federation
    words = ("dataset", "register", "site-a", "--purpose", "research", "--epsilon", "12", "--retention", "2040-12-31")
    case = met.type(*words, *met.at("owner-a")).partition(":")[0]
    waiting = json.loads(met.type("approvals", "--json", *met.at("officer")))
    assert [row["waits for"] for row in waiting] == ["1 privacy-officer"]
    assert met.type("approve", case, *met.at("officer")).endswith(": in force\n")
    assert json.loads(met.type("dataset", "list", "--json", *met.at("auditor")))[0]["budget"].startswith("epsilon 12")
    incident = met.type("incident", "open", "S2", "a disk", *met.at("auditor")).partition(":")[0]
    met.type("incident", "acknowledge", incident, *met.at("operator"))
    assert json.loads(met.type("incident", "list", "--json", *met.at("site-a")))[0]["seen after"] == "0 min"
    assert met.type("dataset", "sweep", met.folder / "records", *met.at("owner-a")) == "erased 0 datasets\n"
    local, remote = (met.type("keys", "list", "--json", *place) for place in (("--home", met.home), met.at("site-a")))
    assert local == remote


def test_a_revoked_holder_reads_nothing_more_although_its_certificate_is_good(met):
    for who in PEOPLE.keys() - {"operator"}:
        met.type("approve", met.case, *met.at(who))
    rows = json.loads(met.type("keys", "list", "--json", *met.at("auditor")))
    key = next(row["key"] for row in rows if row["name"] == "auditor")
    case = met.type("keys", "revoke", key, "--reason", "left", *met.at("operator")).partition(":")[0]
    met.type("approve", case, *met.at("officer"))
    code, error = met.refused("keys", "list", *met.at("auditor"))
    assert (code, "knows those in its roster, not this key; nothing done" in error) == (1, True)


@pytest.mark.slow  # about 2 s; tests/governance/test_enrolment.py has the rule
def test_a_key_is_rotated_over_the_wire_with_a_membership_made_before(met, hub):
    for who in PEOPLE.keys() - {"operator"}:
        met.type("approve", met.case, *met.at(who))
    new = met.folder / "site-a" / "new.key"
    case = met.type("keys", "rotate", "--out", new, *met.at("site-a")).partition(":")[0]
    met.type("enrol", new, "--out", met.folder / "new.request")
    met.admit(met.folder / "new.request", port=hub)
    membership = met.folder / "site-a.membership"
    code, _ = met.refused("keys", "list", "--key", new, "--at", membership)
    assert code == 1
    met.type("approve", case, *met.at("officer"))
    rows = json.loads(met.type("keys", "list", "--json", "--key", new, "--at", membership))
    assert [row["standing"] for row in rows if row["name"] == "site-a"] == ["rotated", "in force"]
    assert met.refused("keys", "list", *met.at("site-a"))[0] == 1


def test_a_coordinator_that_is_not_there_is_one_error(met, hub):
    met.admit(met.request("site-a"), port=1)
    met.give("site-a")
    code, error = met.refused("keys", "list", *met.at("site-a"))
    assert code == 2
    assert error == "coordinator 'localhost:1', must listen there, found 'connection refused'; nothing was asked"


@pytest.mark.slow  # about 2 s; tests/governance/test_certificates.py has the handshake
def test_a_stranger_with_the_same_names_reaches_nothing(met, hub, tmp_path_factory, capsys):
    """Another operator's authority signs a certificate for site-a: this coordinator believes its own only."""
    other = Desk(tmp_path_factory.mktemp("other"), capsys)
    for name, (organisation, role) in PEOPLE.items():
        other.new(name, organisation, role)
    other.found()
    other.admit(other.enrol("site-a"), port=hub)
    other.give("site-a")
    code, error = other.refused("keys", "list", *other.at("site-a"))
    assert (code, error.startswith(f"coordinator 'localhost:{hub}', must answer")) == (2, True)


# --- what is refused before anything is sent


def test_a_request_is_written_for_the_operator_and_holds_no_secret(desk):
    path = desk.enrol("site-a")
    assert b"BEGIN CERTIFICATE REQUEST" in path.read_bytes()
    assert b"PRIVATE" not in path.read_bytes()


def test_a_request_is_written_over_an_older_one_and_over_no_key(desk):
    path = desk.enrol("site-a")
    assert desk.enrol("site-a") == path
    key, card = Path(desk.key("site-a")), Path(desk.key("auditor")).with_suffix(".card")
    for out in (key, card):
        before = out.read_bytes()
        code, error = desk.refused("enrol", key, "--out", out)
        words = f"{out}, must be a new file or an older request, found another file; nothing written"
        assert (code, error, out.read_bytes()) == (2, words, before)


def test_memberships_are_made_for_all_requests_or_for_none(desk):
    desk.new("eve", "lab", "auditor")
    requests = [desk.request("site-a"), desk.enrol("eve")]
    words = ("admit", *requests, "--home", desk.home, "--address", "localhost:1", "--out", desk.folder)
    code, error = desk.refused(*words)
    assert (code, error) == (
        1,
        "request of eve, must be of a founder in one founding act, found 0 of them; no certificate made",
    )
    assert not (desk.folder / "site-a.membership").exists()
    assert desk.admit(requests[0]).startswith(f"wrote {desk.folder / 'site-a.membership'}: federation ")


def test_admitting_one_holder_leaves_the_others_as_they_are(desk):
    desk.admit(desk.request("site-a"), desk.request("auditor"))
    before = (desk.folder / "auditor.membership").read_bytes()
    desk.admit(desk.folder / "site-a.request")
    assert (desk.folder / "auditor.membership").read_bytes() == before
    first, second = (read_membership(desk.folder / f"{who}.membership") for who in ("site-a", "auditor"))
    assert (first.authority, first.log, first.coordinator) == (second.authority, second.log, second.coordinator)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--address", "hub"), "must be HOST:PORT where the coordinator is dialled"),
        (("--address", "hub:1", "--days", "0"), "days, must be 1 to 3650, found 0; no certificate made"),
    ],
)
def test_what_no_membership_can_say_is_refused(desk, words, found):
    code, error = desk.refused("admit", desk.request("site-a"), "--home", desk.home, *words)
    assert (code, found in error) == (2, True)


def test_nobody_is_admitted_where_there_is_no_log(desk):
    desk.home = desk.folder / "nowhere"
    code, error = desk.refused("admit", desk.request("site-a"), "--home", desk.home, "--address", "hub:1")
    assert (code, error) == (2, f"{desk.home}, must hold a log, found none; no certificate made")
    assert not desk.home.exists()


@pytest.mark.parametrize(("content", "found"), [(None, "must be a request, No such file"), ("x", "request, must be")])
def test_what_is_no_request_is_refused_by_its_file(desk, content, found):
    path = desk.folder / "x.request"
    if content is not None:
        path.write_text(content)
    code, error = desk.refused("admit", path, "--home", desk.home, "--address", "hub:1")
    assert (code, error.startswith(str(path)), found in error) == (2, True, True)


def test_a_membership_is_used_with_its_key(desk):
    desk.admit(desk.request("site-a"))
    membership = desk.folder / "site-a.membership"
    code, error = desk.refused("keys", "list", "--at", membership)
    assert (code, error) == (2, f"{membership}, must be used with the key that it is for, found no --key")
    code, error = desk.refused("keys", "list", "--at", membership, "--key", desk.key("auditor"))
    assert (code, "membership of site-a, must be of auditor and its transport key" in error) == (2, True)


def test_a_command_is_about_one_log(desk):
    code, error = desk.refused("keys", "list", "--at", "x", "--home", desk.home)
    assert (code, "not allowed with argument" in error) == (2, True)
