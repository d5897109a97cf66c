"""A FLARE server, two clients and our keeper as processes on loopback, in FLARE's own environment."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import hubbub

ROOT = Path(__file__).parents[2]
SERVER, ADMIN = "localhost", "operator@hub.test"
SITES = ("site-1", "site-2")
KINDS = {SERVER: "server", ADMIN: "admin", **dict.fromkeys(SITES, "client")}
PROFILE = """\
name: hubbub
scheme: grpc
connection_security: mtls
server:
  host: localhost
  fed_learn_port: {}
  admin_port: {}
"""
PARTICIPANT = """\
name: hubbub
participants:
  - name: {}
    type: {}
    org: hub
{}"""


def free_ports(count):
    """Ports that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def interpreter():
    """Python of FLARE's environment, made at the first use.

    Raises:
        SystemExit: It cannot be made, with pip's words.
    """
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("peers").python("flare")
    finally:
        sys.path.pop(0)


class System:
    """Enrols everybody by certificate request, as docs/how-to/flare.md says, and starts all processes."""

    def __init__(self, folder, python):
        self.folder, self.python = folder, python
        learn, admin, self.coordinator, *ports = free_ports(3 + len(SITES))
        self.ports = dict(zip(SITES, ports, strict=True))
        self.processes = {}
        try:
            self._enrol(learn, admin)
            self.start(SERVER)
            self._wait_for(learn)
            for site in SITES:
                self.start(site)
            self.keep()
        except BaseException:
            self.close()
            raise

    def _flare(self, *words):
        done = subprocess.run(
            [self.python.with_name("nvflare"), "--format", "json", *words],
            cwd=self.folder,
            env=self._environment(HOME=str(self.folder)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["data"]

    def _environment(self, **more):
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PYTHONPATH": str(Path(hubbub.__file__).parents[1]), "PATH": path} | more

    def _enrol(self, learn, admin):
        (self.folder / "profile.yml").write_text(PROFILE.format(learn, admin))
        made = self._flare("cert", "init", "--profile", "profile.yml", "-o", "ca")
        for name, kind in KINDS.items():
            role = "    role: lead\n" if kind == "admin" else ""
            (self.folder / f"{name}.yml").write_text(PARTICIPANT.format(name, kind, role))
            self._flare("cert", "request", "-p", f"{name}.yml", "--out", name)
            signed = f"{name}.signed.zip"
            request = f"{name}/{name}.request.zip"
            self._flare("cert", "approve", request, "-c", "ca", "--profile", "profile.yml", "--out", signed)
            proof = ("--fingerprint", made["rootca_fingerprint_sha256"])
            self._flare("package", signed, "--request-dir", name, *proof, "-w", "kits")
            if kind != "admin":
                self._ours("configure", self.kit(name))

    def kit(self, name):
        return self.folder / "kits" / "hubbub" / "prod_00" / name

    def _ours(self, *words):
        command = [self.python, "-m", "hubbub.engine.flare", *map(str, words)]
        subprocess.run(command, env=self._environment(), check=True, stdout=subprocess.DEVNULL)

    def start(self, name):
        """Start one of FLARE's processes."""
        kit, port = self.kit(name), self.ports.get(name, self.coordinator)
        kind = "server" if name == SERVER else "client"
        (kit / "transfer").mkdir(exist_ok=True)
        common = ["-m", str(kit), "-s", f"fed_{kind}.json", "--set", "secure_train=true", "org=hub"]
        own = ["config_folder="] if name == SERVER else ["config_folder=config", f"uid={name}"]
        module = f"nvflare.private.fed.app.{kind}.{kind}_train"
        environment = self._environment(HUBBUB_TUNNEL=f"127.0.0.1:{port}")
        self._run(name, [self.python, "-u", "-m", module, *common, *own], environment)

    def keep(self):
        """Start the keeper."""
        words = ["-m", "hubbub.engine.flare", "keep", str(self.kit(ADMIN)), ADMIN, *SITES]
        self._run("keeper", [self.python, *words], self._environment())

    def _run(self, name, command, environment):
        output = (self.folder / f"{name}.out").open("ab")
        with output:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self, site, seconds=90.0):
        """Wait until a site's tunnel listens; returns its port."""
        self._wait_for(self.ports[site], seconds)
        return self.ports[site]

    def _wait_for(self, port, seconds=60.0):
        end = time.monotonic() + seconds
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            assert time.monotonic() < end, "".join(path.read_text()[-2000:] for path in self.folder.glob("*.out"))
            time.sleep(0.05)

    def jobs(self, name):
        """Ids of the job processes that one of FLARE's processes has started, oldest first."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return sorted(pid for pid, parent in pairs if parent == self.processes[name].pid)

    def close(self):
        """End every process that was started here, and theirs."""
        for name, process in self.processes.items():
            children = self.jobs(name)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
