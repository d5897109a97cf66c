"""examples/hospitals as anybody would run it: five sites as processes, from keys to a verified bundle."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import hubbub
from hubbub.events import ParticipantJoined, ParticipantRefused, RunStarted, decode_event
from hubbub.governance.enrolment import read_membership
from hubbub.release.verify import verify_bundle
from hubbub.tlog.tiles import read_export

EXAMPLE = Path(__file__).parents[2] / "examples" / "hospitals"
HOSPITALS = [f"hospital-{number}" for number in range(1, 6)]


def load(name):
    spec = importlib.util.spec_from_file_location(f"hospitals_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def records(tmp_path):
    load("records").main(tmp_path)
    return tmp_path


def test_the_script_can_be_read():
    for name in ("run.sh", "flare.sh", "study.py"):
        assert len((EXAMPLE / name).read_text().splitlines()) <= 60


def test_each_hospital_reads_its_own_records_and_nobody_elses(records, monkeypatch):
    study, read = load("study"), []
    for site in HOSPITALS:
        monkeypatch.setenv("HUBBUB_DATA", str(records / site / "records"))
        read.append(study.data(site))
        with pytest.raises(FileNotFoundError):
            study.data(HOSPITALS[HOSPITALS.index(site) - 1])
    assert sum(len(part.y) for part in read) == 455
    rows = np.concatenate([part.x for part in read])
    assert len(np.unique(rows, axis=0)) == 455
    monkeypatch.setenv("HUBBUB_DATA", str(records / "hub" / "records"))
    assert len(study.test_data().y) == 114


def test_they_hold_what_the_example_in_one_process_holds(records, monkeypatch):
    spec = importlib.util.spec_from_file_location("one_process", EXAMPLE.parent / "breast_cancer" / "study.py")
    together = importlib.util.module_from_spec(spec)
    monkeypatch.delenv("SPLIT", raising=False)
    spec.loader.exec_module(together)
    monkeypatch.setenv("HUBBUB_DATA", str(records / "hub" / "records"))
    assert np.array_equal(load("study").test_data().x, together.test_data().x)


def test_the_same_study_runs_in_one_process(records, tmp_path, monkeypatch, run):
    folder = tmp_path / "all"
    folder.mkdir()
    for file in [*records.glob("*/records/*.csv"), EXAMPLE / "study.py"]:
        shutil.copy(file, folder)
    settings = (EXAMPLE / "study.toml").read_text()
    (folder / "study.toml").write_text(settings.replace("rounds = 40", "rounds = 6"))
    monkeypatch.setenv("HUBBUB_DATA", str(folder))
    result = run(hubbub.load_study(folder))
    assert (result.rounds, result.participants) == (6, 5)


def free_ports(count):
    """The first of some ports in a row that nobody has now."""
    while True:
        with contextlib.ExitStack() as taken, contextlib.suppress(OSError, OverflowError):
            first = taken.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


@pytest.fixture(params=["direct", "flare"])
def carrier(request):
    """Give what run.sh is told about one carrier."""
    own = {
        "CARRIER": request.param,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(free_ports(1 + len(HOSPITALS))),
    }
    if request.param == "flare":
        python = request.getfixturevalue("flare_python")
        own["PATH"] = own["PATH"].replace(os.pathsep, f"{os.pathsep}{python.parent}{os.pathsep}", 1)
        own["PYTHONPATH"] = str(Path(hubbub.__file__).parents[1])
    return own


@pytest.mark.slow
def test_five_sites_as_processes_go_from_keys_to_a_verified_bundle(tmp_path, carrier):
    environment = os.environ | carrier
    environment.pop("HUBBUB_HOME", None)
    done = subprocess.run(
        [EXAMPLE / "run.sh", tmp_path / "away"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: Against coordinator" in done.stdout
    assert "Traceback" not in done.stderr
    assert (carrier["CARRIER"] == "flare") == ("server and clients start" in done.stdout)

    root = tmp_path / "away"
    bundle, member = root / "bundle", read_membership(root / "owner-3" / "owner-3.membership")
    checks = [check.what for check in verify_bundle(bundle, policy=member.witnesses).checks]
    assert checks[-1] == "recomputed claim"
    claim = msgspec.json.decode((bundle / "claim.json").read_bytes())
    assert claim["federation"].endswith("each participant on a host of its own, says the coordinator")
    assert claim["epsilon_spent"] <= 3
    assert claim["metrics"]["accuracy"] > 0.88

    note, bodies = read_export(bundle / "log")
    events = [decode_event(body) for body in bodies]
    assert [event.hosts for event in events if isinstance(event, RunStarted)] == ["own"]
    assert [event.participant for event in events if isinstance(event, ParticipantJoined)] == HOSPITALS
    assert not [event for event in events if isinstance(event, ParticipantRefused)]
    assert member.witnesses.is_quorum([name for name in HOSPITALS if name.encode() in bytes(note)])
    assert not list(root.glob("*/refusals"))
    for site in HOSPITALS:
        assert sorted(path.name for path in (root / site / "records").iterdir()) == [f"{site}.csv"]
