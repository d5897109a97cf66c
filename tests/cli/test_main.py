"""What a person types, and what they read."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from hubbub.cli import main
from hubbub.cli.arguments import COMMANDS, _parser


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Give a new study's folder and a fresh home."""
    monkeypatch.delenv("HUBBUB_HOME", raising=False)
    assert main(["new", str(tmp_path / "study")]) == 0
    return tmp_path / "study"


def change(study, old, new):
    text = (study / "study.toml").read_text()
    assert old in text
    (study / "study.toml").write_text(text.replace(old, new))


def refused(capsys, *arguments):
    """Run a command that must fail: its code, its error, its hint; nothing else on either stream."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out == ""
    error, hint = err.strip().splitlines()
    return code, error.removeprefix("hubbub: error: "), hint.removeprefix("hubbub: hint: ")


def test_a_new_study_runs_as_it_is_and_meets_its_goal(study, capsys):
    assert main(["run", str(study), "--out", str(study / "run-1")]) == 0
    out, _ = capsys.readouterr()
    for word in ("rounds", "participants", "accuracy", "epsilon spent", "report", "success", "met"):
        assert word in out
    assert (study / "run-1" / "report.html").exists()
    assert (study / ".hubbub" / "log.db").exists()


def test_the_third_run_is_refused_with_exit_code_one_until_somebody_grants_more(study, capsys):
    for _ in range(2):
        assert main(["run", str(study), "--quiet"]) == 0
    code, error, hint = refused(capsys, "run", study)
    assert code == 1
    assert "left at delta" in error
    assert error.endswith("nothing trained, nothing spent")
    typed = hint[hint.index("hubbub budget grant") :].replace("'", "").split()[1:]
    assert main(typed) == 0
    assert main(["run", str(study), "--quiet"]) == 0


def test_a_run_that_has_ended_says_that_nothing_was_trained(study, capsys):
    assert main(["run", str(study), "--out", str(study / "run-1"), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["resume", str(study / "run-1")]) == 0
    assert "had ended before: nothing was trained" in capsys.readouterr().out
    assert main(["resume", str(study / "run-1"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["had_ended"] is True


def test_run_prints_json_for_a_machine(study, capsys):
    capsys.readouterr()
    assert main(["run", str(study), "--json", "--out", str(study / "r")]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    wanted = {"run", "rounds", "epsilon_spent", "epsilon_planned", "epsilon_budget", "delta", "metrics"}
    assert wanted | {"wall_seconds", "log_size", "log_root", "out"} <= set(result)
    assert len(result["log_root"]) == 64
    assert err == ""


def test_quiet_prints_nothing(study, capsys):
    capsys.readouterr()
    assert main(["run", str(study), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_plan_prints_for_a_person_and_for_a_machine(study, capsys):
    main(["check", str(study)])
    capsys.readouterr()
    assert main(["plan", str(study)]) == 0
    shown = capsys.readouterr().out
    for word in ("noise multiplier", "who must be trusted for what", "coordinator", "plan hash", "sensitivity"):
        assert word in shown
    assert main(["plan", str(study), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan_hash"] in shown.replace("\n", "").replace(" ", "")


def test_check_shows_null_slots_only_to_the_owner_who_asks(study, capsys):
    capsys.readouterr()
    assert main(["check", str(study)]) == 0
    assert "null slots" not in capsys.readouterr().out
    assert main(["check", str(study), "--private"]) == 0
    assert "null slots (private)" in capsys.readouterr().out


def test_the_ledger_is_shown_and_told(study, capsys):
    main(["run", str(study), "--quiet"])
    capsys.readouterr()
    assert main(["budget", "show", "--study", str(study)]) == 0
    assert "filter" in capsys.readouterr().out
    assert main(["budget", "show", "--study", str(study), "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert all(line["runs"] == 1 and line["epsilon_spent"] > 0 for line in lines)
    assert main(["budget", "history", "--study", str(study / "study.toml")]) == 0
    told = capsys.readouterr().out
    assert "round 1 … round 30" in told
    assert "round-closed" not in told
    assert main(["budget", "history", "--study", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["event"] == "budget-settled"


def test_an_owner_grants_a_budget_before_the_first_run(study, capsys):
    home = ["--home", str(study / ".hubbub")]
    main(["check", str(study)])
    names = list(json.loads((study / "study.lock").read_text())["slots"])
    assert main(["budget", "grant", *names, "--epsilon", "0.01", *home]) == 0
    assert "new budgets, of names that nothing was granted to before: " + ", ".join(names) in capsys.readouterr().err
    code, error, _ = refused(capsys, "run", study)
    assert code == 1
    assert "has epsilon 0.01 of 0.01 left" in error


def test_a_schedule_admits_its_plan_once(study, capsys):
    home = ["--home", str(study / ".hubbub")]
    main(["check", str(study)])
    names = list(json.loads((study / "study.lock").read_text())["slots"])
    assert main(["budget", "grant", *names, "--epsilon", "9", "--plan", str(study), *home]) == 0
    assert main(["run", str(study), "--quiet"]) == 0
    code, error, _ = refused(capsys, "run", study)
    assert code == 1
    assert "admits its listed plans only" in error


def test_a_budget_is_lowered_only_by_who_says_so(capsys, tmp_path):
    grant = ["budget", "grant", "--home", tmp_path, "--epsilon"]
    assert main([str(one) for one in (*grant, 9, "site-a", "site-b")]) == 0
    code, error, hint = refused(capsys, *grant, 5.8, "site-*")
    assert (code, error) == (1, "site-a, has epsilon 9, found less, 5.8, and 1 more like it; nothing granted")
    assert hint == "name other datasets, or add --lower"
    assert main([str(one) for one in (*grant, 5.8, "site-b", "--lower")]) == 0
    out, err = capsys.readouterr()
    assert "5.8000" in out
    assert err == ""


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (["--unit", "client"], "has unit example, which stays as it is, found client", "--unit"),
        (["--delta", "1e-6"], "has delta 1e-05, which stays as it is, found 1e-06", "--delta"),
        (["--delta", "0"], "has delta 1e-05, which stays as it is, found 0.0", "--delta"),
        (["--gaussian"], "has kind filter, which stays as it is, found gaussian", "--gaussian"),
    ],
)
def test_a_budget_keeps_its_unit_delta_and_kind(capsys, tmp_path, options, words, hint):
    grant = ["budget", "grant", "--home", str(tmp_path), "site-a", "--epsilon"]
    assert main([*grant, "9"]) == 0
    code, error, found = refused(capsys, *grant, 40, *options)
    assert (code, error) == (1, f"site-a, {words}; nothing granted")
    assert found == f"leave out {hint}, or grant to other names"
    assert main([*grant, "40", "--unit", "example", "--delta", "1e-5"]) == 0
    assert "40.0000" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [36, 60, 100])
def test_a_narrow_terminal_folds_names_and_crops_no_number(tmp_path, capsys, monkeypatch, columns):
    names = [f"university-hospital-of-the-northern-district-{number}" for number in (1, 2)]
    assert main(["budget", "grant", *names, "--epsilon", "12.75", "--home", str(tmp_path)]) == 0
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["budget", "show", "--home", str(tmp_path), "--planned"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    told = [line.split() for line in lines if "12.7500" in line]
    assert [words[-8:] for words in told] == [
        ["example", "filter", "0.0000", "12.7500", "12.7500", "1e-05", "0", "0.0000"]
    ] * 2
    assert all(name in "".join(line.split()[0] for line in lines if line.strip()) for name in names)
    assert max(map(len, lines)) <= max(columns, 70)


def test_what_a_study_would_cost_is_read_from_the_home_beside_it(study, capsys):
    assert main(["run", str(study), "--quiet"]) == 0
    assert main(["budget", "forecast", str(study)]) == 0
    assert "runs that fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["rnu"], "must be given a command it has, found 'rnu'", "hubbub run"),
        (["xyzzy"], "must be given a command it has, found 'xyzzy'", "hubbub --help"),
        (["run"], "the following arguments are required: STUDY", "hubbub run --help"),
        (["verify", "nowhere"], "nowhere, must be a bundle, found no folder", "hubbub release"),
        (["plan", "study.py"], "must be a study's folder or its study.toml, found Python code", "name its folder: ."),
        (["plan", "nowhere"], "must be a readable study file, No such file or directory", "hubbub new DIR"),
        (
            ["budget", "show", "--home", "nowhere"],
            "nowhere, must hold a log, found none",
            "--study STUDY",
        ),
        (["budget", "grant", "x-*", "--epsilon", "1"], "must match a dataset of the ledger, found none", "budget show"),
        (["budget", "grant", "x", "--epsilon", "-1"], "epsilon, must be a positive number, found -1.0", "--epsilon 3"),
        (["budget", "grant", "x", "--epsilon", "many"], "invalid float value: 'many'", "hubbub budget grant --help"),
        (["new", "file"], "file, must be a new or empty folder, found a file; nothing written", "name another folder"),
        (
            ["verify", ".", "--policy", "file"],
            "file: a policy, must be lines of text",
            "write it again with an editor for text",
        ),
        (
            ["coordinate", "hub3", "--address", "localhost:8443"],
            "hub3, must hold the log of a federation, found none; nothing made, nothing started",
            "hubbub federation found NAME CARD... --key FILE --home hub3",
        ),
        (
            ["keys", "new", "x" * 64, "--organisation", "clinic", "--role", "node"],
            "'.', '_' and '-', the first a letter or a digit, and not 'none'; no key made",
            "hubbub keys new ana",
        ),
        (
            ["dataset", "register", "a", "--purpose", "resarch", "--retention", "2040-12-31", "--epsilon", "3"],
            "argument --purpose: invalid choice: 'resarch' (choose from ",
            "hubbub dataset register --help",
        ),
        (
            ["dataset", "register", "a", "--purpose", "care", "--retention", "31.12.2040", "--epsilon", "3"],
            "argument --retention: must be a day as YYYY-MM-DD, found '31.12.2040'",
            "hubbub dataset register --help",
        ),
        (["--verbose"], "hubbub, unrecognized arguments: --verbose", "hubbub --help"),
        (["run", "wine", "extra"], "hubbub run, unrecognized arguments: extra", "hubbub run --help"),
        (["budget", "show", "--jsn"], "hubbub budget show, unrecognized arguments: --jsn", "hubbub budget show --help"),
    ],
)
def test_a_wrong_command_line_is_one_error_and_a_hint(capsys, tmp_path, monkeypatch, arguments, words, hint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HUBBUB_HOME", raising=False)
    (tmp_path / "file").write_text("no policy")
    code, error, found = refused(capsys, *arguments)
    assert code == 2
    assert words in error
    assert hint in found


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epsilon = ", "epsilon = -1 # ", "privacy.epsilon, must be float > 0.0, found -1"),
        ('examples = "poisson"', 'examples = "poison"', "found 'poison'"),
        ('dtype = "float32"', 'dtype = "float64"', "must have dtype float64, found float32"),
    ],
)
def test_a_wrong_study_is_one_error_and_a_hint(study, capsys, old, new, words):
    change(study, old, new)
    code, error, hint = refused(capsys, "run", study)
    assert code == 2
    assert words in error
    assert hint


def test_a_new_study_overwrites_nothing(study, capsys):
    code, error, _ = refused(capsys, "new", study)
    assert code == 2
    assert "must be a new or empty folder, found one that holds files; nothing written" in error


def test_what_is_to_be_typed_next_can_be_typed_whatever_the_folder_is_called(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "Studie für Ärzte"]) == 0
    typed = shlex.split(capsys.readouterr().out.partition("next: hubbub ")[2])
    assert typed == ["run", "Studie für Ärzte"]
    assert main([*typed, "--out", "a run", "--quiet"]) == 0
    (tmp_path / "a run" / "model.safetensors").unlink()
    _, _, hint = refused(capsys, "release", "a run")
    assert shlex.split(hint)[:2] == ["hubbub", "run"], "a run that has ended cannot go on"


def test_a_broken_study_py_is_one_line_that_names_the_place(study, capsys):
    code_file = study / "study.py"
    code_file.write_text("import numpy\n\n1 / 0\n")
    code, error, _ = refused(capsys, "run", study)
    assert code == 2
    assert error == "study.py:3, must import, ZeroDivisionError: division by zero"


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_in_study_py_is_no_exit_of_hubbub(study, capsys, code):
    (study / "study.py").write_text(f"import sys\n\nsys.exit({code})\n")
    found, error, _ = refused(capsys, "run", study)
    assert found == 2
    assert error == f"study.py:3, must import, SystemExit: {code}"


def test_an_exit_of_a_loss_in_the_second_round_is_no_exit_of_hubbub(study, capsys):
    with (study / "study.py").open("a") as file:
        file.write(
            "\n\ndef loss(outputs, y):\n"
            f"    if outputs.requires_grad and __import__('os').path.exists({str(study / 'out' / 'snapshot-1')!r}):\n"
            "        raise SystemExit(0)\n"
            "    return torch.nn.functional.cross_entropy(outputs, y, reduction='none')\n"
        )
    code, error, hint = refused(capsys, "run", study, "--out", study / "out")
    assert code == 2
    assert error.startswith("study code at study.py:")
    assert error.endswith(": model() or loss() in training, must not raise, SystemExit: 0")
    assert hint == "take the exit out: whoever runs a study says when it ends"


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["new", LONG],
        ["check", LONG],
        ["plan", LONG],
        ["run", LONG],
        ["verify", LONG],
        ["budget", "show", "--home", LONG],
        ["budget", "show", "--study", LONG],
        ["log", "show", "--home", LONG],
        ["keys", "list", "--home", LONG],
        ["incident", "list", "--home", LONG],
        ["dataset", "list", "--home", LONG],
    ],
    ids=" ".join,
)
def test_a_name_that_no_file_can_have_is_one_error(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, error, hint = refused(capsys, *arguments)
    assert code == 2
    assert re.fullmatch(rf"{LONG}\S*, must be a [^,]*, (found )?'?File name too long'?; nothing .*", error)
    assert hint in {"name another", "name another folder"}


@pytest.mark.parametrize("command", ["check", "run"])
def test_what_cannot_be_read_or_written_in_a_study_is_one_error(study, capsys, command):
    (study / "study.py").unlink()
    (study / "study.py").mkdir()
    code, error, hint = refused(capsys, command, study)
    assert code == 2
    found = "found 'Is a directory'; nothing more was done"
    assert error == f"{study}/study.py, must be a file or folder that can be used, {found}"
    assert hint == f"ls -ld {study}/study.py"


def test_an_exception_that_is_no_word_of_the_systems_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("pathlib.Path.exists", lambda _: (_ for _ in ()).throw(OSError("libx.so: cannot open")))
    with pytest.raises(OSError, match="libx"):
        main(["new", str(tmp_path / "study")])


def test_whoever_has_read_enough_of_a_plan_is_not_told_that_it_was_refused(study):
    assert main(["check", str(study)]) == 0
    typed = f"{shlex.quote(sys.executable)} -m hubbub plan {shlex.quote(str(study))} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_a_study_is_checked_says_that_nothing_was_spent(study, capsys):
    (study / "study.py").write_text("raise KeyboardInterrupt\n")
    code, error, hint = refused(capsys, "run", study)
    assert code == 130
    assert error == "my-study, was stopped while code and data were checked; nothing trained, nothing spent"
    assert shlex.split(hint) == ["hubbub", "run", str(study)]


def test_every_command_stands_in_the_help():
    text = _parser().format_help()
    assert all(re.search(rf"hubbub {name}\b|^    {name}\s", text, re.MULTILINE) for name in COMMANDS)


def test_python_dash_m_hubbub_prints_the_help():
    done = subprocess.run([sys.executable, "-m", "hubbub"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: hubbub")
    assert "exit codes: 0 done, 1 refused by policy or budget" in done.stdout
