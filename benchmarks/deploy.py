"""A round between hosts on loopback, beside Flower's deployment: four sites, every one a process, over TLS.

    python benchmarks/deploy.py [--rounds 20] [--no-peer]

What is timed is a whole attempt as the coordinator sees it: the charge on disk, the head cosigned by the sites, the
log shown, five stages of secure aggregation, the model's step; sites train nothing. Flower's is a round of SecAgg+.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower_deployment import flower_rounds, free_ports
from goals import Result, finish, machine

from hubbub.engine.away import Deadlines, SitesAway
from hubbub.engine.coordinate import Coordinating
from hubbub.engine.direct import Credentials, DirectServer, Spool
from hubbub.engine.home import server_credentials

ROOT = Path(__file__).resolve().parents[1]
SITES, DIMENSION = "abcd", 100_000
STUDY = """
[study]
name = "away"
seed = 3
[data.x]
dtype = "float32"
shape = [4]
[data.y]
dtype = "int64"
classes = 2
[privacy]
unit = "client"
epsilon = 60.0
noise = "distributed"
retries = {rounds}
[cohort]
colluding = 1
minimum = 3
dropouts = 0.25
[training]
algorithm = "fedavg"
rounds = {rounds}
learning_rate = 0.5
batch_size = 8
"""
CODE = f"""
import numpy as np
from hubbub import Examples

def participants():
    return []

def data(name):
    return Examples(np.zeros((4, 4), dtype=np.float32), np.array([0, 1, 0, 1]))

def test_data():
    return data("test")

def parameters():
    return {{"w": np.zeros({DIMENSION}, dtype=np.float32)}}

def train(parameters, examples, rng):
    return {{"w": parameters["w"] + np.float32(1e-4)}}

def evaluate(parameters, examples):
    return {{"accuracy": 1.0}}
"""


def load_deployment() -> Any:
    """The federation that the tests found, register and approve with."""
    spec = importlib.util.spec_from_file_location("deployment", ROOT / "tests" / "engine" / "deployment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Deployment


def join(folder: Path) -> subprocess.Popen:
    """Start a participant; returns when it dials."""
    command = [sys.executable, "-m", "hubbub", "join", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "dials" in line:
            return process
    raise SystemExit(f"{folder} did not start")


@contextlib.contextmanager
def coordinator(world: Any, port: int) -> Iterator[Coordinating]:
    """A coordinator in this process, listening."""
    coordinating = Coordinating(world.home, Deadlines(stage=20, training=60, patience=60))
    ends = Credentials(*server_credentials(world.home, ["localhost"], now=int(time.time())))
    spool = Spool(world.home / "spool")
    server = DirectServer(
        ends, coordinating.identify, spool=spool, address=f"localhost:{port}", command=coordinating.command
    )
    coordinating.attach(server)
    yield coordinating
    coordinating.close()


def hubbub_rounds(rounds: int) -> tuple[list[float], float]:
    """Seconds of each attempt but the first, and until a killed site is in the run again once it dials."""
    seconds, attempt = [], SitesAway.attempt

    def timed(self: SitesAway, machine: Any) -> Any:
        before = time.perf_counter()
        closed = attempt(self, machine)
        seconds.append(time.perf_counter() - before)
        return closed

    SitesAway.attempt = timed
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as name:
        study = STUDY.format(rounds=rounds)
        world = load_deployment()(
            Path(name), names=SITES, study=study, code=CODE, epsilon=500.0, address=f"localhost:{port}"
        )
        sites = {site: join(world.site(site)) for site in SITES}
        with coordinator(world, port) as coordinating:
            while set(coordinating.transport.sites()) != set(SITES):
                time.sleep(0.05)
            order = world.approve_study(coordinating.command)
            run = world.ask(coordinating.command, "scientist", order).run
            while len(seconds) < rounds // 2:
                time.sleep(0.01)
            before_kill = len(seconds)
            back = killed_and_back(coordinating, world, sites)
            told = world.ended(coordinating.command, run)
            assert told.state == "finished", told
        world.let_go()
        for process in sites.values():
            process.terminate()
    return seconds[1:before_kill], back


def killed_and_back(coordinating: Coordinating, world: Any, sites: dict[str, Any]) -> float:
    """Kill one site's process, start it again; seconds from its dialling until it has joined the run again."""
    sites["d"].send_signal(signal.SIGKILL)
    sites["d"].wait()
    joined = coordinating._current.sites._joined  # noqa: SLF001, what the coordinator itself goes by
    old = joined.get("d")
    sites["d"] = join(world.site("d"))
    dialled = time.perf_counter()
    while joined.get("d") == old and coordinating.current:
        time.sleep(0.002)
    return time.perf_counter() - dialled if joined.get("d") != old else float("inf")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-peer", action="store_true", help="leave Flower out")
    options = parser.parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    seconds, back = hubbub_rounds(options.rounds)
    results = [
        Result(f"attempt with {len(SITES)} sites, d = {DIMENSION:,}, direct", seconds, "< 0.1 s"),
        Result("a killed site is in the run again, once it dials, direct", [back], "< 1 s"),
    ]
    if not options.no_peer:
        peer = flower_rounds(secure=True, sites=len(SITES), dimension=DIMENSION)
        results.append(
            Result("Flower's SecAgg+ round / hubbub's attempt", [peer[-1] / at for at in seconds], ">= 50 x")
        )
    finish(results, machine("numpy", "grpcio"), "flwr 1.42")


if __name__ == "__main__":
    main()
