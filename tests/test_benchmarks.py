"""What the benchmarks share: a goal as text, its verdict, the lines that go to a file, the pages made of them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def goals(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("goals")


@pytest.fixture
def run_all(goals):
    return importlib.import_module("run_all")


@pytest.mark.parametrize(
    ("values", "goal", "verdict"),
    [
        ([10], ">= 10 x", "pass"),
        ([9.99], ">= 10 x", "miss"),
        ([1, 10, 11], ">= 10 x", "pass"),
        ([0.3], "< 0.3 s", "miss"),
        ([0.3], "<= 0.3 s", "pass"),
        ([0.31], "> 0.3", "pass"),
        ([2e-5], "<= 1e-5", "miss"),
        ([-50.5], "<= -50 log2", "pass"),
        ([7], "ms", ""),
    ],
)
def test_the_median_is_held_to_the_goal(goals, values, goal, verdict):
    assert goals.Result("something", values, goal).verdict == verdict


@pytest.mark.parametrize("goal", ["=> 3 x", "< fast", ">=3 x and more > 2"])
def test_a_goal_that_cannot_be_read_is_refused(goals, goal):
    with pytest.raises(ValueError, match="something: a goal is a comparison, a number and a unit"):
        goals.Result("something", [1], goal)


def test_nothing_measured_is_no_result(goals):
    with pytest.raises(ValueError, match="nothing was measured"):
        goals.Result("something", [], ">= 1 x")


def test_a_script_prints_and_records_each_line_and_fails_on_a_miss(goals, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(goals.VARIABLE, str(tmp_path / "results"))
    monkeypatch.setattr(sys, "argv", ["benchmarks/engine.py"])
    results = [goals.Result("quick", [0.1, 0.2, 0.15], "< 0.3 s"), goals.Result("slow", [4000.0], "<= 5 ms")]
    with pytest.raises(SystemExit) as ended:
        goals.finish(results, goals.machine("numpy"), "peer 1.0")
    assert ended.value.code == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == ["quick", "<", "0.3", "s", "0.15", "s", "0.1", "to", "0.2", "pass"]
    assert printed[-1].split() == ["slow", "<=", "5", "ms", "4,000", "ms", "miss"]
    lines = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert [(line["benchmark"], line["name"], line["verdict"]) for line in lines] == [
        ("engine", "quick", "pass"),
        ("engine", "slow", "miss"),
    ]
    assert lines[0]["values"] == [0.1, 0.2, 0.15]
    assert lines[0]["versions"].endswith("peer 1.0")


def test_a_script_without_a_miss_ends_well(goals, monkeypatch):
    monkeypatch.delenv(goals.VARIABLE, raising=False)
    with pytest.raises(SystemExit) as ended:
        goals.finish([goals.Result("a value", [1.0], "ms")], "versions")
    assert ended.value.code == 0


def test_the_pages_show_what_the_scripts_found(run_all):
    found = [json.loads(line) for line in run_all.KEPT.read_text().splitlines()]
    assert {line["benchmark"] for line in found} <= run_all.LIMITS.keys()
    shown = (ROOT / "README.md").read_text().partition(run_all.BEGIN)[2].partition(run_all.END)[0]
    assert shown.strip() == run_all.summary(found).strip()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == run_all.page(found)


def test_the_readme_never_leaves_out_a_miss(run_all, goals):
    results = [goals.Result("kept", [1.0], ">= 1 x"), goals.Result("broken", [0.5, 0.7], ">= 1 x")]
    text = run_all.summary([{"benchmark": "some"} | result.line() for result in results])
    assert "| broken | >= 1 x | 0.6 x (0.5 to 0.7) | miss |" in text
    assert "kept" not in text
    assert "1 of 2 goals are met" in text


@pytest.mark.slow  # environments are made
def test_an_environment_that_several_processes_ask_for_is_made_once(tmp_path):
    code = "import peers; peers.PEERS['x'] = peers.Peer(('packaging',), shared=()); print(peers.python('x'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "HUBBUB_PEERS": str(tmp_path)}
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    told = [one.communicate(timeout=300) for one in asking]
    assert [out for out, _ in told] == [f"{tmp_path / 'x' / 'bin' / 'python'}\n"] * 3
    assert sum("installing" in errors for _, errors in told) == 1
