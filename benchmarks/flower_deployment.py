"""Flower's deployment on loopback: a SuperLink, SuperNodes and TLS; seconds of rounds in which sites compute nothing.

    python benchmarks/flower_deployment.py [--plain] [--sites 4] [--dimension 100000] [--rounds 3]

benchmarks/deploy.py puts hubbub's beside it. The processes are Flower's own commands with their defaults (each
message is answered by an app process that the SuperNode starts), its app stands in engines/flower_app: SecAgg+ with
shares at all sites, three quarters of which rebuild, or with --plain its default workflow and FedAvg.
"""

import argparse
import contextlib
import datetime as dt
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import peers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from goals import Result, finish, machine

APP = Path(__file__).resolve().parent / "engines" / "flower_app"
MINUTES = 8


def flower_rounds(*, secure: bool, sites: int = 4, dimension: int = 100_000, rounds: int = 3) -> list[float]:
    """Seconds of each round, the first included, over TLS on loopback, every site a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificates(folder)
        times = folder / "times.json"
        with federation(folder, sites) as run:
            config = {"secure": secure, "sites": sites, "dimension": dimension, "rounds": rounds, "times": f"'{times}'"}
            run(" ".join(f"{key}={str(value).lower()}" for key, value in config.items()))
            wait_for(times, 60 * MINUTES)
        found = json.loads(times.read_text())
    assert found["apart"] < 1e-3, f"Flower's rounds did not average, off by {found['apart']:.1e}"
    return found["seconds"]


def make_certificates(folder: Path) -> None:
    """An authority and a server certificate for 127.0.0.1."""
    now, keys, names = dt.datetime.now(dt.UTC), {}, {}
    for part in ("ca", "server"):
        keys[part] = ec.generate_private_key(ec.SECP256R1())
        names[part] = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"benchmark {part}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[part])
            .issuer_name(names["ca"])
            .public_key(keys[part].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=part == "ca", path_length=None), critical=True)
        )
        if part == "server":
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            alternatives = x509.SubjectAlternativeName([address, x509.DNSName("localhost")])
            certificate = certificate.add_extension(alternatives, critical=False)
        signed = certificate.sign(keys["ca"], hashes.SHA256())
        (folder / f"{part}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{part}.key").write_bytes(keys[part].private_bytes(*form))


@contextlib.contextmanager
def federation(folder: Path, sites: int) -> Iterator:
    """A SuperLink and its SuperNodes; yields what submits the app with a run configuration."""
    bin_folder = peers.python("flower").parent
    environment = {
        **os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    port, *others = free_ports(1 + sites)
    ca, server, key = (str(folder / name) for name in ("ca.pem", "server.pem", "server.key"))
    (folder / "home").mkdir()
    connection = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
    (folder / "home" / "config.toml").write_text(f'{connection}root-certificates = "{ca}"\n')
    tls = ["--ssl-ca-certfile", ca, "--ssl-certfile", server, "--ssl-keyfile", key]
    commands = [["flower-superlink", *tls, "--port", str(port), "--disable-runtime-dependency-installation"]]
    for other in others:
        link = ["--superlink", f"127.0.0.1:{port}", "--root-certificates", ca]
        commands.append(["flower-supernode", *link, "--port", str(other), *tls])
    started = []
    try:
        for number, command in enumerate(commands):
            log = (folder / f"{number}.log").open("wb")
            process = subprocess.Popen(
                [bin_folder / command[0], *command[1:]],
                env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            started.append(process)
            if not number:
                wait_for_port(port)

        def run(config: str) -> None:
            command = [bin_folder / "flwr", "run", APP, "here", "--run-config", config]
            done = subprocess.run(command, env=environment, cwd=folder, check=False, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"flwr run: {done.stdout}{done.stderr}")

        yield run
    finally:
        if os.environ.get("KEEP_LOGS"):
            for path in sorted(folder.glob("*.log")):
                print(f"--- {path.name}\n{path.read_text()}", file=sys.stderr)
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def wait_for_port(port: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    sys.exit(f"nobody listened on port {port} within {seconds:g} s")


def wait_for(path: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        if time.monotonic() > end:
            sys.exit(f"Flower's rounds did not end within {seconds:g} s")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="without secure aggregation")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--dimension", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    times = flower_rounds(secure=not asked.plain, sites=asked.sites, dimension=asked.dimension, rounds=asked.rounds)
    what = "FedAvg" if asked.plain else "SecAgg+"
    name = f"Flower deployed, {asked.sites} SuperNodes, d={asked.dimension:,}: a {what} round"
    finish([Result(name, times, "s")], machine(), peers.version("flower", "flwr"))


if __name__ == "__main__":
    main()
