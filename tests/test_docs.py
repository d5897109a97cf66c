"""The documents say what the code does, by name."""

import argparse
import os
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import msgspec
import pytest

import hubbub
from hubbub.cli import main
from hubbub.cli.arguments import COMMANDS, _parser
from hubbub.engine import embedded, home
from hubbub.events import AnyEvent
from hubbub.governance import AttestationPolicy, read_attestation_policy, read_policy
from hubbub.governance.snp import Tcb
from hubbub.study.code import Code
from hubbub.study.config import Column, Settings

ROOT = Path(__file__).parents[1]
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
TABLES = {field.name: field.type for field in msgspec.structs.fields(Settings)}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), re.DOTALL | re.MULTILINE)


def section(text, heading):
    """The part of a page under one heading, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}[^\n]*\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no heading {heading!r}"
    return found[1]


def rows(text):
    """Cells of every table row, by the first cell."""
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def commands(parser, words=()):
    """Every command with the words that call it."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield words, parser
    for action in nested:
        for name, child in action.choices.items():
            yield from commands(child, (*words, name))


@pytest.mark.parametrize("words", [words for words, _ in commands(_parser())], ids=" ".join)
def test_each_command_and_option_is_documented(words):
    page, parser = read("docs/reference/commands.md"), dict(commands(_parser()))[words]
    command = f"hubbub {' '.join(words)}"
    assert f"`{command}" in read("README.md")
    part = section(page, f"`{command}")
    if words[0] == "budget":
        part += section(page, "Options of all budget actions")
    if words[0] == "log":
        part += section(page, "Options of the log actions on a home")
    if words[0] in {"keys", "federation", "dataset", "propose", "approve", "approvals", "incident"}:
        part += section(page, "Options of all commands from keys to incident")
    for action in parser._actions:
        names = [name for name in action.option_strings if name not in {"-h", "--help"}]
        assert all(f"| `{name}" in part for name in names), names


def test_all_commands_are_in_the_parser():
    assert {words[0] for words, _ in commands(_parser())} == set(COMMANDS)


def test_no_option_is_documented_that_does_not_exist():
    known = {name for _, parser in commands(_parser()) for action in parser._actions for name in action.option_strings}
    documented = set(re.findall(r"`(--[a-z-]+)", read("docs/reference/commands.md")))
    assert documented <= known | {"--version"}


def test_the_result_of_run_is_documented_field_by_field():
    part = section(read("docs/reference/commands.md"), "`hubbub run STUDY`")
    assert all(f"`{name}`" in part for name in embedded.RunResult.__struct_fields__)


def toml_value(value):
    return f'"{value}"' if isinstance(value, str) else str(value)


def as_documented(field):
    """What the default cell must hold."""
    if field.default is msgspec.NODEFAULT:
        return "required"
    return None if field.default in (None, ()) else toml_value(field.default)


@pytest.mark.parametrize(
    ("heading", "struct"),
    [*((f"`[{name}]`", struct) for name, struct in TABLES.items() if name != "data"), ("`[data]`", Column)],
)
def test_each_key_of_study_toml_is_documented_with_its_default(heading, struct):
    documented = {row[0].strip("`"): row for row in rows(section(read("docs/reference/study.md"), heading))[1:]}
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    assert list(documented) == list(fields)
    for name, field in fields.items():
        expected, found = as_documented(field), documented[name][2].strip("`")
        if isinstance(field.default, float):
            assert float(found) == field.default
        else:
            assert expected is None or found == expected


def test_each_upper_limit_of_study_toml_is_documented():
    page = read("docs/reference/study.md")
    undocumented = []
    tables = [*((f"`[{name}]`", one) for name, one in TABLES.items() if name != "data"), ("`[data]`", Column)]
    for heading, struct in tables:
        documented = {row[0].strip("`"): row[-1].replace(",", "") for row in rows(section(page, heading))[1:]}
        for name, annotation in typing.get_type_hints(struct, include_extras=True).items():
            for most in re.findall(r"\ble=([\d.e+]+)", repr(annotation)):
                written = (f"{int(float(most))}", f"{float(most):.0e}".replace("+0", ""))
                if not any(one in documented[name] for one in written):
                    undocumented.append((heading, name, most))
    assert not undocumented


def test_each_choice_of_study_toml_is_documented():
    page = read("docs/reference/study.md")
    for struct in [*TABLES.values(), Column]:
        for field in msgspec.structs.fields(struct):
            if typing.get_origin(field.type) is typing.Literal:
                assert all(f'`"{choice}"`' in page for choice in typing.get_args(field.type)), field.name


def test_each_function_of_study_py_is_documented():
    part = section(read("docs/reference/study.md"), "study.py")
    assert all(f"`{name}(" in part for name in Code.__dataclass_fields__)


def exposure(annotation):
    return next(meta.extra["exposure"] for meta in annotation.__metadata__ if getattr(meta, "extra", None))


def test_each_event_is_documented_field_by_field_with_its_exposure():
    documented, current = [], ""
    for row in rows(section(read("docs/reference/run-directory.md"), "Events"))[1:]:
        current = row[0].strip("`") or current
        documented.append((current, row[1].strip("`"), row[2]))
    actual = [
        (kind.__struct_config__.tag, name, exposure(annotation))
        for kind in typing.get_args(AnyEvent)
        for name, annotation in typing.get_type_hints(kind, include_extras=True).items()
        if name in kind.__struct_fields__
    ]
    assert documented == actual


def test_the_run_directory_is_documented_file_by_file(finished_run):
    documented = {row[0].strip("`") for row in rows(read("docs/reference/run-directory.md").partition("## Events")[0])}
    assert {path.name for path in Path(finished_run).iterdir()} == documented - {"file"}
    assert home.VARIABLE in read("docs/reference/commands.md")


def test_exit_codes_are_documented():
    page = read("docs/reference/commands.md")
    for error in (hubbub.errors.InputError, hubbub.errors.RefusedError, hubbub.errors.VerificationError):
        assert f"| {error.exit_code} |" in page


def test_the_picture_of_the_rooms_is_the_one_that_is_enforced():
    contract = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]["layers"]
    picture = re.search(r"```\n(cli .*?)```", read("docs/architecture.md"), re.DOTALL)[1]
    drawn = [re.split(r"\s{2,}", line)[0] for line in picture.splitlines()]
    rooms = [layer.replace("/", "").replace(".py", "") for layer in drawn]
    assert rooms == contract


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"\b((?:src|tests|docs|examples|benchmarks)/[\w./-]*\w)", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda page: page.stem)
def test_each_decision_has_a_title_and_states_itself(page):
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# \S.*\n\n\*\*Decision\.\*\* ", text)
    assert "\n## Why" in text


def test_the_readme_shows_the_study_that_the_demo_runs():
    (shown,) = blocks("README.md", "toml")
    assert shown == read("examples/breast_cancer/study.toml")
    shown = blocks("README.md", "python")[0].splitlines()
    actual = read("examples/breast_cancer/study.py").splitlines()
    left_out = [line for line in actual if line not in shown]
    assert [line for line in actual if line in shown and line] == [line for line in shown if line]
    assert all(re.match(r"(#|LOW =|HIGH =|\s+\d)", line.replace("# knowledge", "#")) for line in left_out)


def test_the_readmes_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HUBBUB_HOME", raising=False)
    names = {}
    exec(compile(blocks("README.md", "python")[-1], "README.md", "exec"), names)
    assert names["result"].epsilon_spent < names["plan"].epsilon <= 3
    assert names["result"].metrics["accuracy"] > 0.8
    assert "coordinator" in capsys.readouterr().out


def test_the_tutorials_recomputation_gives_the_claims_epsilon(finished_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "first").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    loading, recomputing = blocks("docs/tutorial.md", "python")[:2]
    exec(compile(loading.replace("Linear(2, 2)", "Linear(4, 2)"), "tutorial.md", "exec"), {})  # that of this study
    exec(compile(recomputing, "tutorial.md", "exec"), {})
    claim = msgspec.json.decode((tmp_path / "first" / "claim.json").read_bytes())
    assert float(capsys.readouterr().out) == pytest.approx(claim["epsilon_spent"], abs=5e-4)


def test_the_verify_page_makes_an_entry_for_the_registry(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hubbub.release_run(finished_run, out=tmp_path / "bundle")
    (publication,) = blocks("docs/how-to/verify.md", "toml")
    (tmp_path / "publication.toml").write_text(publication)
    assert main(["registry", "bundle", "publication.toml"]) == 0
    basic = msgspec.json.decode(capsys.readouterr().out)["deployment"]["basic"]
    assert (basic["data_curators"], basic["data_product_sector"]) == (["Clinic A", "Clinic B"], "Healthcare")
    model = tmp_path / "bundle" / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes() + b"\0")
    assert main(["registry", "bundle", "publication.toml"]) == 3
    assert capsys.readouterr().out == ""


def test_the_tutorials_hook_trains_scikit_learn(tmp_path, run):
    (tmp_path / "study.py").write_text(blocks("docs/tutorial.md", "python")[2])
    (settings,) = blocks("docs/tutorial.md", "toml")
    (tmp_path / "study.toml").write_text(settings.replace("rounds = 40", "rounds = 2"))
    result = run(hubbub.load_study(tmp_path))
    assert (result.rounds, result.participants) == (2, 300)
    assert result.metrics["accuracy"] > 0.2


def test_the_template_is_described_as_it_is():
    tutorial = read("docs/tutorial.md")
    template = hubbub.load_study(ROOT / "src" / "hubbub" / "cli" / "template")
    training, privacy = template.settings.training, template.settings.privacy
    assert f"for {training.rounds} rounds and {privacy.retries} retries" in tutorial
    assert f"(goal {template.settings.success.accuracy:g})" in tutorial


def test_the_glossary_is_in_order_and_says_each_word_once():
    words = [row[0] for row in rows(read("docs/glossary.md"))][1:]
    assert words == sorted(words, key=str.lower)
    assert len(words) == len(set(words))


@pytest.mark.slow
def test_the_how_to_of_approvals_runs_as_it_is_written(tmp_path):
    script = tmp_path / "approve.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(blocks("docs/how-to/approve.md", "sh")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "propose-study my-study: in force" in done.stdout
    assert re.search(r"release-model my-study-\w+: in force", done.stdout)
    assert "verified: Against" in done.stdout


@pytest.mark.slow
def test_the_how_to_of_enrolment_runs_as_it_is_written_up_to_the_wire(tmp_path):
    script = tmp_path / "enrol.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(blocks("docs/how-to/enrol.md", "sh")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("members/*.membership")) == [
        f"{name}.membership" for name in ("officer", "operator", "owner-a", "owner-b", "site-a", "site-b")
    ]


def test_what_a_site_may_ask_of_a_coordinator_is_documented_key_by_key(tmp_path):
    (policy,) = blocks("docs/how-to/attest.md", "toml")
    (tmp_path / "site.toml").write_text(policy)
    assert read_attestation_policy(tmp_path / "site.toml").minimum_tcb == {
        "Milan": Tcb(bootloader=4, snp=24, microcode=219)
    }
    page = read("docs/how-to/attest.md")
    assert [row[0].strip("`") for row in rows(section(page, "What a site says"))[1:]] == [
        *AttestationPolicy.__struct_fields__
    ]
    assert all(f"`{level}`" in page for level in Tcb.__struct_fields__)


def test_the_site_policy_of_the_how_to_is_one(tmp_path):
    (policy,) = blocks("docs/how-to/approve.md", "toml")
    (tmp_path / "site.toml").write_text(policy)
    assert read_policy(tmp_path / "site.toml").epsilon == 3.0
