"""keys, federation, dataset, propose, approve, approvals, incident: what a person types, and what they read."""

import datetime as dt
import hashlib
import json
import re
import shutil
import time
from typing import get_args

import pytest

from hubbub.cli import main
from hubbub.cli.governance_arguments import PURPOSES, ROLES
from hubbub.errors import RefusedError
from hubbub.eventlog import EventLog
from hubbub.events import ParticipantJoined, RoundClosed, RunFinished, RunStarted
from hubbub.governance import Federation, terms_of
from hubbub.governance.keys import Role
from hubbub.planning import make_plan
from hubbub.study import load_study
from hubbub.study.config import Purpose

SITES = ("a", "b", "c")
PEOPLE = {
    "officer": ("board", "privacy-officer"),
    "officer-b": ("second-board", "privacy-officer"),
    "operator": ("it", "operator"),
    "scientist": ("lab", "data-scientist"),
    "auditor": ("watch", "auditor"),
    **{f"site-{site}": (f"clinic-{site}", "node") for site in SITES},
    **{f"owner-{site}": (f"clinic-{site}", "data-owner") for site in SITES},
}


class Desk:
    """A folder with everybody's keys and one log, and a keyboard."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys, self.home = folder, capsys, folder / "home"

    def key(self, who):
        return str(self.folder / "keys" / f"{who}.key")

    def type(self, *arguments, who=None, home=True):
        """Run a command that must work; what it prints."""
        words = [str(argument) for argument in arguments]
        words += ["--key", self.key(who)] if who else []
        words += ["--home", str(self.home)] if home else []
        self.capsys.readouterr()
        code = main(words)
        out, err = self.capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    def ask(self, *arguments, who):
        """Run a command that proposes; the id that it prints."""
        return self.type(*arguments, who=who).partition(":")[0]

    def refused(self, *arguments, who=None):
        """Run a command that must fail: its code and its error."""
        words = [str(argument) for argument in arguments] + (["--key", self.key(who)] if who else [])
        self.capsys.readouterr()
        code = main([*words, "--home", str(self.home)])
        out, err = self.capsys.readouterr()
        assert out == ""
        error, hint = err.strip().splitlines()
        assert hint.startswith("hubbub: hint: ")
        return code, error.removeprefix("hubbub: error: ")

    def rows(self, *arguments):
        return json.loads(self.type(*arguments, "--json"))

    def state(self):
        log = EventLog(self.home / "log.db")
        try:
            return log.fold(Federation)
        finally:
            log.close()

    def approve(self, case, *people):
        return [self.type("approve", case, who=who) for who in people][-1]

    def register(self, site, *options, retention="2040-12-31"):
        words = ("dataset", "register", f"site-{site}", "--purpose", "research", "--epsilon", "12")
        case = self.ask(*words, "--retention", retention, *options, who=f"owner-{site}")
        self.approve(case, "officer")
        return list(self.state().datasets)[-1]


@pytest.fixture(scope="module")
def founding(tmp_path_factory):
    """Give a folder with everybody's keys and a log in which they have founded a federation; made once."""
    folder = tmp_path_factory.mktemp("founding")
    home, keys = ["--home", str(folder / "home")], folder / "keys"
    for name, (organisation, role) in PEOPLE.items():
        assert main(["keys", "new", name, "--organisation", organisation, "--role", role, "--out", str(keys)]) == 0
    cards = [str(path) for path in sorted(keys.glob("*.card"))]
    assert main(["federation", "found", "heart", *cards, "--key", str(keys / "operator.key"), *home]) == 0
    log = EventLog(folder / "home" / "log.db")
    (case,) = log.fold(Federation).cases
    log.close()
    for name in PEOPLE.keys() - {"operator"}:
        assert main(["approve", case[:12], "--key", str(keys / f"{name}.key"), *home]) == 0
    return folder


@pytest.fixture
def desk(tmp_path, capsys, monkeypatch, founding):
    """Give a founded federation of three clinics."""
    monkeypatch.delenv("HUBBUB_HOME", raising=False)
    shutil.copytree(founding, tmp_path, dirs_exist_ok=True)
    return Desk(tmp_path, capsys)


@pytest.fixture
def study(desk):
    """Give a new study beside the log."""
    assert main(["new", str(desk.folder / "study")]) == 0
    return desk.folder / "study"


def test_a_federation_is_shown_to_a_person_and_to_a_machine(desk):
    shown = desk.rows("federation", "show")
    assert (shown["name"], shown["epoch"], len(shown["participants"])) == ("heart", 1, 3)
    assert "officer, privacy-officer of board" in shown["people"]
    assert "heart" in desk.type("federation", "show")


def test_a_log_without_a_federation_is_shown_as_a_sandbox(study, desk):
    desk.home = desk.folder / "other"
    EventLog(desk.home / "log.db").close()
    assert desk.rows("federation", "show")["name"].startswith("sandbox: ")


def test_nothing_is_signed_where_there_is_no_log(desk, study):
    desk.home = desk.folder / "nowhere"
    for words, who in ((("incident", "open", "S1", "x"), "owner-a"), (("propose", "study", study), "scientist")):
        code, error = desk.refused(*words, who=who)
        assert code == 2
        assert error == f"{desk.home}, must hold a log, found none; nothing recorded"
        assert not desk.home.exists()


def test_a_founding_may_ask_for_more(desk):
    tighter = desk.folder / "tighter.toml"
    tighter.write_text("[acts.propose-study]\nexpires_days = 9999\n")
    cards = sorted((desk.folder / "keys").glob("*.card"))
    desk.home = desk.folder / "other"
    code, error = desk.refused("federation", "found", "x", *cards, "--tighten", tighter, who="operator")
    assert code == 2
    assert "must be a file of tighter rules" in error
    tighter.write_text("[acts.propose-study]\nexpires_days = 9\n")
    desk.ask("federation", "found", "x", *cards, "--tighten", tighter, who="operator")
    assert [case.act.tighter.acts["propose-study"].expires_days for case in desk.state().cases.values()] == [9]


def test_keys_are_listed_enrolled_replaced_rotated_and_revoked(desk):
    keys = desk.folder / "keys"
    desk.type("keys", "new", "eve", "--organisation", "lab", "--role", "auditor", "--out", keys, home=False)
    desk.approve(desk.ask("propose", "key", keys / "eve.card", who="operator"), "officer")
    listed = {row["name"]: row for row in desk.rows("keys", "list")}
    assert (listed["eve"]["epoch"], listed["eve"]["standing"]) == (2, "in force")
    desk.approve(desk.ask("keys", "rotate", "--out", keys / "eve-2.key", who="eve"), "officer")
    assert desk.refused("incident", "open", "S3", "x", who="eve")[0] == 1
    desk.type("incident", "open", "S3", "x", who="eve-2")
    again = desk.folder / "again"
    desk.type("keys", "new", "eve", "--organisation", "lab", "--role", "auditor", "--out", again, home=False)
    stolen = {row["standing"]: row for row in desk.rows("keys", "list") if row["name"] == "eve"}["in force"]["key"]
    case = desk.ask("propose", "key", again / "eve.card", "--replaces", stolen, who="operator")
    desk.approve(case, "officer", "officer-b")
    now = {row["standing"]: row["key"] for row in desk.rows("keys", "list") if row["name"] == "eve"}
    assert list(now) == ["rotated", "stolen", "in force"]
    case = desk.ask("keys", "revoke", "eve", "--reason", "left", who="operator")
    (waiting,) = desk.rows("approvals")
    assert waiting["asks for"] == f"revoke-key {now['in force']} of eve, left"
    desk.approve(case, "officer")
    assert "left" in desk.type("keys", "list")
    code, error = desk.refused("propose", "key", again / "eve.card", "--replaces", now["in force"], who="operator")
    assert (code, "ends once, found it left" in error) == (1, True)


def test_a_key_file_open_to_others_signs_nothing(desk):
    (desk.folder / "keys" / "owner-a.key").chmod(0o644)
    code, error = desk.refused("incident", "open", "S1", "x", who="owner-a")
    assert code == 1
    assert error.endswith("must be readable by its owner only, found it open to others; nothing signed")


def values_in(document):
    """Names, texts and numbers that are in a JSON document."""
    if isinstance(document, dict):
        return [one for name, inner in document.items() for one in [name, *values_in(inner)]]
    return [one for inner in document for one in values_in(inner)] if isinstance(document, list) else [document]


def test_a_study_is_proposed_read_approved_and_waits_no_more(study, desk, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, error = desk.refused("propose", "study", study, who="scientist")
    assert (code, error) == (2, "site-a, must hold a registered dataset, found none; nothing recorded")
    data = [desk.register(site) for site in SITES]
    case = desk.ask("propose", "study", study, who="scientist")
    (waiting,) = desk.rows("approvals")
    assert waiting["id"].startswith(case)
    assert waiting["waits for"].endswith("1 data-owner of clinic-c, 1 privacy-officer")
    assert case in desk.type("approvals")
    whole = json.loads(desk.type("approvals", case, "--json"))
    assert set(whole["proposal"]["act"]["data"]) == set(data)
    assert whole["proposal"]["act"]["terms"]["epsilon"] == 3.0
    shown = desk.type("approvals", case)
    values = values_in(whole["proposal"]["act"])
    assert [value for value in values if value is not None and str(value) not in shown] == []
    assert re.search(r"terms\.epsilon +3\.0 ", shown)
    assert re.search(r"waits for +1 data-owner of clinic-a, ", shown)
    words = ("--condition", "report weekly", "--expires", "7")
    assert desk.type("approve", case, *words, who="officer").endswith("data-owner of clinic-c\n")
    said = desk.approve(case, "owner-a", "owner-b", "owner-c")
    assert said == f"{case}: propose-study my-study: in force\n"
    assert desk.rows("approvals") == []
    decisions = json.loads(desk.type("approvals", case, "--json"))["decisions"]
    assert decisions["officer"]["conditions"] == ["report weekly"]
    assert decisions["officer"]["expires"] - decisions["officer"]["at"] == 7 * 86_400
    assert re.search("decision of officer +approve on .*, on condition: report weekly ", desk.type("approvals", case))


@pytest.mark.slow
def test_the_permit_is_for_the_study_as_it_was_proposed(study, desk):
    for site in SITES:
        desk.register(site)
    case = desk.ask("propose", "study", study, who="scientist")
    desk.approve(case, "officer", "owner-a", "owner-b", "owner-c")
    loaded = load_study(study)
    plan, state = make_plan(loaded), desk.state()
    proposed = next(reversed(state.cases.values())).act
    facts = {
        "plan_hash": plan.hash,
        "study_hash": plan.study_hash,
        "code_hash": plan.code_hash,
        "datasets": proposed.data,
        "purpose": loaded.settings.study.purpose,
        "terms": terms_of(loaded.settings, minimum=plan.minimum),
        "now": next(reversed(state.cases.values())).proposal.at + 1,
    }
    assert state.may_run(**facts).case.startswith(case)
    with pytest.raises(RefusedError, match="must have the terms that was proposed"):
        state.may_run(**facts | {"terms": terms_of(loaded.settings, minimum=plan.minimum - 1)})


@pytest.mark.slow
def test_a_change_names_the_study_that_it_changes(study, desk):
    for site in SITES:
        desk.register(site)
    case = desk.ask("propose", "study", study, who="scientist")
    desk.approve(case, "officer", "owner-a", "owner-b", "owner-c")
    text = (study / "study.toml").read_text()
    (study / "study.toml").write_text(text.replace("\nepsilon = 3.0", "\nepsilon = 2.0"))
    assert (study / "study.toml").read_text() != text
    said = desk.type("propose", "study", study, "--change", "B", "--changes", case, who="scientist")
    assert said.endswith(": in force\n")
    code, error = desk.refused("propose", "study", study, "--change", "A", "--changes", case, who="scientist")
    assert code == 1
    assert "is no change of class A" in error


def test_a_denial_ends_a_proposal(desk):
    data = desk.register("a")
    case = desk.ask("propose", "budget", data[:8], "--epsilon", "13", who="officer")
    assert desk.type("approve", case, "--deny", who="owner-a").endswith(": denied\n")
    code, error = desk.refused("approve", case, who="owner-a")
    assert code == 1
    assert "decides once" in error


def test_the_requesters_own_approval_is_refused(desk):
    data = desk.register("a")
    case = desk.ask("propose", "budget", data, "--epsilon", "13", who="officer")
    code, error = desk.refused("approve", case, who="officer")
    assert code == 1
    assert "officer, never decides on an own proposal" in error
    key = next(row["key"] for row in desk.rows("keys", "list") if row["name"] == "officer")
    event = json.loads(desk.type("budget", "history", "--json"))[-1]
    assert event["event"] == "request-refused"
    assert event["asked"] == f"key {key}: approve {case[:12]}"
    assert event["reason"].startswith("officer, never decides on an own proposal, found ")
    assert f"key {key}: approve {case[:12]}: officer, never decides" in " ".join(desk.type("budget", "history").split())
    (before,) = desk.rows("budget", "show")
    desk.approve(case, "owner-a")
    assert desk.rows("dataset", "list")[0]["budget"] == "epsilon 13 at delta 1e-05 per example"
    (after,) = desk.rows("budget", "show")
    assert (before["dataset"], before["epsilon_budget"], before["runs"]) == (data, 12.0, 0)
    assert (after["dataset"], after["epsilon_budget"], after["epsilon_spent"]) == (data, 13.0, 0.0)


def test_a_new_version_shares_its_budget_and_disjoint_units_do_not(desk):
    first = desk.register("a")
    second = desk.register("a", "--version-of", first[:10])
    words = ("dataset", "register", "site-a", "--purpose", "care", "--retention", "2030-01-01", "--epsilon", "1")
    case = desk.ask(*words, "--version-of", first, "--disjoint", "--unit-column", "patient", who="owner-a")
    assert desk.approve(case, "officer").endswith("waits for 1 data-owner of clinic-a\n")
    assert desk.state().datasets[second].account == first
    assert desk.type("dataset", "list").count("kept") == 2


def test_what_is_past_its_last_day_is_swept(desk):
    today = dt.datetime.now(dt.UTC).date()
    data = [desk.register("a", retention=str(today)), desk.register("a", "--delta", "1e-6", retention=str(today))]
    desk.register("a")
    records = desk.folder / "records"
    (records / data[0]).mkdir(parents=True)
    (records / data[0] / "x.csv").write_text("1")
    (records / data[1]).write_text("1")
    assert desk.type("dataset", "sweep", records, who="site-a") == "erased 0 datasets\n"
    assert (records / data[0] / "x.csv").exists()


def test_a_sweep_deletes_folders_and_files_and_records_what_its_owner_says_is_gone(desk, monkeypatch):
    today = dt.datetime.now(dt.UTC).date()
    data = [desk.register("a", "--delta", delta, retention=str(today)) for delta in ("1e-5", "1e-6", "1e-7")]
    records = desk.folder / "records"
    (records / data[0]).mkdir(parents=True)
    (records / data[0] / "x.csv").write_text("1")
    (records / data[1]).write_text("1")
    (records / "other").write_text("1")
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    code, error = desk.refused("dataset", "sweep", desk.folder / "recrods", who="site-a")
    words = "must hold records that are past their last day, found nothing or a link; 0 datasets erased, 3 not recorded"
    assert (code, error) == (2, f"{desk.folder}/recrods/{data[0]}, {words}")
    assert {row["standing"] for row in desk.rows("dataset", "list")} == {"kept"}
    (records / data[2]).symlink_to(records / "other")
    code, error = desk.refused("dataset", "sweep", records, who="site-a")
    assert (code, error.endswith("2 datasets erased, 1 not recorded")) == (2, True)
    assert (records / "other").exists()
    (records / data[2]).unlink()
    assert desk.type("dataset", "sweep", records, "--gone", who="site-a") == "erased 1 datasets\n"
    assert [path.name for path in records.iterdir()] == ["other"]
    assert {row["standing"] for row in desk.rows("dataset", "list")} == {"erased"}
    assert desk.type("dataset", "sweep", records, who="site-a") == "erased 0 datasets\n"


def test_an_incident_is_listed_until_it_is_closed(desk):
    case = desk.ask("incident", "open", "S2", "a disk is lost", "--run", "r-1", who="owner-a")
    (row,) = desk.rows("incident", "list")
    assert (row["severity"], row["run"], row["seen after"]) == ("S2", "r-1", "")
    desk.type("incident", "acknowledge", case, who="operator")
    desk.approve(desk.ask("incident", "close", case, "restored", who="officer"), "auditor")
    (row,) = desk.rows("incident", "list")
    assert (row["seen after"], row["closed after"]) == ("0 min", "0 min")
    assert case in desk.type("incident", "list")


def test_what_is_late_is_shown_with_what_waits(desk, monkeypatch):
    case = desk.ask("incident", "open", "S1", "fork", who="auditor")
    today = dt.datetime.now(dt.UTC).date()
    data = desk.register("a", retention=str(today))
    later = time.time() + 2 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    late = {row["asks for"]: row for row in desk.rows("approvals")}
    assert late["late: incident"]["id"].startswith(case)
    assert late["late: incident"]["waits for"] == "1 privacy-officer"
    assert (late["late: retention"]["id"], late["late: retention"]["waits for"]) == (data, "1 data-owner of clinic-a")


def run_directory(desk, study):
    """A run of the approved study, as the engine records it in the log and in its folder."""
    log = EventLog(desk.home / "log.db")
    federation = log.fold(Federation)
    proposed = next(reversed(federation.cases.values())).act
    held = {key: one.registered.participant for key, one in federation.datasets.items()}
    log.append(
        lambda: [
            RunStarted(
                run="run-1",
                study="s",
                plan_hash=proposed.plan_hash,
                code_hash=proposed.code_hash,
                noise_source="os",
                is_test_public=False,
                versions={},
            ),
            *(
                ParticipantJoined(run="run-1", participant=held[key], slots=1, data_commitment=commitment)
                for key, commitment in proposed.data.items()
            ),
            RoundClosed(run="run-1", round_number=1, attempt=1, participants=3, step_norm=0.0),
            RunFinished(run="run-1", rounds=1, model_hash=hashlib.sha256(b"model").hexdigest()),
        ]
    )
    log.close()
    folder = study / "run-1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"model")
    (folder / "claim.json").write_text('{"run": "run-1"}')
    return folder


@pytest.mark.slow
def test_a_run_is_reviewed_released_and_stopped(study, desk):
    text = (study / "study.toml").read_text()
    (study / "study.toml").write_text(text + "\n[governance]\nreviews = [1]\n")
    for site in SITES:
        desk.register(site)
    desk.approve(desk.ask("propose", "study", study, who="scientist"), "officer", "owner-a", "owner-b", "owner-c")
    folder = run_directory(desk, study)
    code, error = desk.refused("propose", "release", folder, who="scientist")
    assert code == 1
    assert "needs every review passed" in error
    desk.approve(desk.ask("propose", "review", "run-1", "1", who="operator"), "officer")
    case = desk.ask("propose", "release", folder, who="scientist")
    assert desk.approve(case, "officer", "owner-a", "owner-b", "owner-c").endswith("in force\n")
    assert desk.type("propose", "stop", "run-1", who="officer").endswith("stop-run run-1: in force\n")
    assert desk.state().is_stopped("run-1")


def test_a_folder_that_holds_no_finished_run_is_not_released(desk, study):
    code, error = desk.refused("propose", "release", study, who="scientist")
    assert code == 2
    assert "must be the directory of a finished run" in error


@pytest.mark.parametrize("content", [b"", b"[" * 200_000, b'{"name": "\xff"}', bytes(range(256))])
def test_a_file_that_is_no_card_is_one_error(desk, content):
    (desk.folder / "x.card").write_bytes(content)
    code, error = desk.refused("propose", "key", desk.folder / "x.card", who="operator")
    assert (code, "x.card, must be a card" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["incident", "open", "S1", "x" * 501], "open-incident, summary must be `str` of length <= 500"),
        (["propose", "review", "run-1", "0"], "pass-review, round_number must be `int` >= 1"),
        (["approve", "ffffffff"], "'ffffffff', must begin the id of a proposal, found none"),
        (["incident", "close", "x", "x"], "'x', must begin the id of an incident, found none"),
        (["approve", ""], "hubbub, must be given arguments that are text in UTF-8, found ''"),
        (["incident", "open", "S1", "\udcff"], "hubbub, must be given arguments that are text in UTF-8, found"),
        (["propose", "stop", "x" * 101], "stop-run, run must be `str` of length <= 100"),
        (
            ["keys", "revoke", "short", "--reason", "left"],
            "'short', must begin the id of a key, or name its",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_error(desk, arguments, words):
    code, error = desk.refused(*arguments, who="officer")
    assert code == 2
    assert words in error


def test_a_beginning_that_fits_two_ids_is_refused(desk):
    digits: list[str] = []
    while len(set(digits)) == len(digits):
        digits.append(desk.ask("incident", "open", "S3", str(len(digits)), who="owner-a")[0])
    code, error = desk.refused("incident", "acknowledge", digits[-1], who="operator")
    assert (code, error) == (2, f"'{digits[-1]}', must begin the id of an incident, found 2 of them")


def test_the_history_tells_of_proposals_and_decisions(desk):
    told = desk.type("budget", "history")
    assert "found-federation" in told
    assert "approve" in told


def test_the_help_knows_every_purpose_and_role():
    assert get_args(Purpose) == PURPOSES
    assert get_args(Role) == ROLES
