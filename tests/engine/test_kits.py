"""What FLARE is told: our two classes, nobody's code, and a job of three files."""

import json

import pytest

from hubbub.engine import flare
from hubbub.engine.flare.__main__ import main
from hubbub.engine.flare.kits import CLASSES, configure_kit, write_job
from hubbub.errors import InputError

RIGHTS = {
    "format_version": "1.0",
    "permissions": {
        "project_admin": "any",
        "lead": {"submit_job": "any", "shell_commands": "o:site", "byoc": "any"},
        "member": {"view": "any"},
    },
}
CLIENT = {
    "class_list_enforcement_mode": "warn",
    "class_allow_list": ["nvflare.app_common.workflows.fedavg.FedAvg"],
    "allow_log_streaming": True,
    "client": {"retry_timeout": 30},
    "components": [
        {"id": "resource_manager", "path": "a.B", "args": {"n": 0}},
        {"id": "site_log_streamer", "path": "a.C"},
    ],
}
TEMPORARY = "/tmp/nvflare"
SERVER = {
    "servers": [{"heart_beat_timeout": 600, "admin_timeout": 10.0}],
    "snapshot_persistor": {"args": {"storage": {"args": {"root_dir": f"{TEMPORARY}/snapshots"}}}},
    "components": [
        {"id": "job_scheduler", "path": "a.B", "args": {"max_jobs": 4}},
        {
            "id": "job_manager",
            "path": "a.C",
            "args": {"uri_root": "/tmp/nvflare/jobs-storage", "job_store_id": "job_store"},
        },
        {"id": "job_store", "path": "a.D"},
    ],
}


@pytest.fixture
def kit(tmp_path):
    def make(resources):
        (tmp_path / "local").mkdir()
        (tmp_path / "local" / "resources.json.default").write_text(json.dumps(resources))
        (tmp_path / "local" / "authorization.json.default").write_text(json.dumps(RIGHTS))
        return tmp_path

    return make


def written(kit, name="resources"):
    return json.loads((kit / "local" / f"{name}.json").read_text())


@pytest.mark.parametrize("resources", [CLIENT, SERVER])
def test_a_kit_loads_two_classes_and_nobody_brings_code_or_looks_into_files(kit, resources):
    home = kit(resources)
    configure_kit(home)
    assert written(home)["class_allow_list"] == list(CLASSES)
    assert written(home)["class_list_enforcement_mode"] == "enforce"
    roles = written(home, "authorization")["permissions"]
    assert {(role["byoc"], role["shell_commands"]) for role in roles.values()} == {("none", "none")}
    assert roles["project_admin"]["submit_job"] == roles["lead"]["submit_job"] == roles["member"]["view"] == "any"
    assert "submit_job" not in roles["member"]


def test_a_clients_logs_stay_where_they_are_written(kit):
    home = kit(CLIENT)
    configure_kit(home)
    assert written(home)["allow_log_streaming"] is False
    assert written(home)["components"] == CLIENT["components"][:1]
    assert written(home)["client"] == CLIENT["client"]


@pytest.mark.parametrize("storage", [None, "elsewhere"])
def test_a_server_starts_jobs_soon_and_keeps_nothing_in_the_temporary_folder(kit, storage, tmp_path):
    home = kit(SERVER)
    words = ["configure", str(home), *(["--storage", str(tmp_path / storage)] if storage else [])]
    assert main(words) == 0
    place = tmp_path / (storage or "storage")
    scheduler, manager, store = written(home)["components"]
    assert scheduler["args"] == {"max_jobs": 1000, "min_schedule_interval": 1.0}
    assert manager["args"] == {"uri_root": str(place / "jobs"), "job_store_id": "job_store"}
    assert store == {"id": "job_store", "path": "a.D", "args": {}}
    assert written(home)["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] == str(place / "snapshots")
    assert written(home)["servers"] == [{"heart_beat_timeout": 30, "admin_timeout": 10.0}]


def test_what_is_no_kit_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match=r"must be in a start-up kit of NVIDIA FLARE 2\.9"):
        configure_kit(tmp_path)
    assert main(["configure", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("hubbub: error: ")


def test_a_job_is_three_files_for_one_site_without_arguments_or_code(tmp_path):
    job = write_job(tmp_path, "north")
    assert write_job(tmp_path, "north") == job
    files = {path.relative_to(job).as_posix(): json.loads(path.read_text()) for path in job.rglob("*.json")}
    assert sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()) == sorted(files)
    meta = files.pop("meta.json")
    assert (meta["deploy_map"], meta["mandatory_clients"]) == ({"north": ["server", "north"]}, ["north"])
    server, client = (files.pop(f"north/config/config_fed_{kind}.json") for kind in ("server", "client"))
    assert not files
    assert server["workflows"] == [{"id": "tunnel", "path": CLASSES[0], "args": {}}]
    assert [one["executor"] for one in client["executors"]] == [{"path": CLASSES[1], "args": {}}]


def test_the_two_classes_are_the_ones_that_are_exported():
    assert [f"hubbub.engine.flare.{name}" for name in flare.__all__] == list(CLASSES)
    with pytest.raises(AttributeError, match="no attribute 'Cell'"):
        _ = flare.Cell
