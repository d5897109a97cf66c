"""What FLARE must be told: start-up kits that load two classes and nothing else, and the job of one site."""

import json
from pathlib import Path
from typing import Any, Final

from hubbub.errors import InputError

ADDRESS: Final = "HUBBUB_TUNNEL"
"""HOST:PORT in the environment of FLARE's server (where the coordinator listens) and of each client (where the
participant dials); a submitter cannot set it."""
CLASSES: Final = ("hubbub.engine.flare.ServerTunnel", "hubbub.engine.flare.SiteTunnel")
_CLOSED: Final = ("byoc", "shell_commands")
"""Rights that nobody has: bringing code, and looking into a site's files."""


def configure_kit(kit: Path, *, storage: Path | None = None) -> None:
    """Write local/resources.json and local/authorization.json of a server's or a client's kit.

    Code comes from nobody's job; only our two classes are built; logs stay where they are written; a job starts within
    seconds; what FLARE stores lies in `storage` and not in the system's temporary folder.

    Args:
        kit: The folder that holds startup/ and local/.
        storage: Of a server; by default `kit`/storage.

    Raises:
        InputError: It is no kit.
    """
    local = kit / "local"
    resources, rights = _read(local / "resources.json.default"), _read(local / "authorization.json.default")
    resources |= {"class_allow_list": list(CLASSES), "class_list_enforcement_mode": "enforce"}
    if "servers" in resources:
        _configure_server(resources, storage or kit / "storage")
    else:
        resources["allow_log_streaming"] = False
        resources["components"] = [one for one in resources["components"] if one["id"] != "site_log_streamer"]
    rights["permissions"] = _closed(rights["permissions"])
    for name, content in (("resources", resources), ("authorization", rights)):
        (local / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def write_job(folder: Path, site: str) -> Path:
    """Write the job that carries one site: three files, no code; returns its folder."""
    job = folder / f"hubbub-{site}"
    config = job / site / "config"
    config.mkdir(parents=True, exist_ok=True)
    deploy = {"min_clients": 1, "mandatory_clients": [site], "deploy_map": {site: ["server", site]}}
    shared = {"format_version": 2, "task_data_filters": [], "task_result_filters": [], "components": []}
    server = shared | {
        "server": {"task_request_interval": 0.1},
        "workflows": [{"id": "tunnel", "path": CLASSES[0], "args": {}}],
    }
    client = shared | {
        "default_task_fetch_interval": 1.0,
        "executors": [{"tasks": ["none"], "executor": {"path": CLASSES[1], "args": {}}}],
    }
    (job / "meta.json").write_text(json.dumps({"name": job.name, "resource_spec": {}} | deploy))
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))
    return job


def _configure_server(resources: dict[str, Any], storage: Path) -> None:
    for server in resources["servers"]:
        server["heart_beat_timeout"] = 30
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(storage / "snapshots")
    changes = {
        "job_scheduler": {"max_jobs": 1000, "min_schedule_interval": 1.0},
        "job_manager": {"uri_root": str(storage / "jobs"), "job_store_id": "job_store"},
    }
    for component in resources["components"]:
        component["args"] = component.get("args", {}) | changes.get(component["id"], {})


def _closed(permissions: dict[str, Any]) -> dict[str, Any]:
    """The same permissions without some rights; a role that may do anything is written out first."""
    known = {right: "any" for role in permissions.values() if isinstance(role, dict) for right in role}
    roles = {name: known if role == "any" else role for name, role in permissions.items()}
    return {name: {**role, **dict.fromkeys(_CLOSED, "none")} for name, role in roles.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}, must be in a start-up kit of NVIDIA FLARE 2.9, {error}; nothing written",
            hint="nvflare package SIGNED.zip makes a kit",
        ) from None
