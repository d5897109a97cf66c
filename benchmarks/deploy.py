"""Rounds between hosts on loopback, over TLS, four sites as processes: directly, through NVIDIA FLARE, and Flower's.

    python benchmarks/deploy.py [--rounds 40] [--no-peers]

What is timed is a whole attempt as the coordinator sees it: the charge on disk, the head cosigned by the sites, the
log shown, five stages of secure aggregation, the model's step; sites train nothing. Flower's is a round of SecAgg+.
What is weighed is what each process keeps in memory at most, looked at a hundred times a second, pages of files left
out, which the system takes back: in a round of 100 million parameters (400 MB) more than in one of a thousand.
Each half runs in a process of its own, which is its coordinator.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
from flower_deployment import flower_rounds
from goals import Result, finish, machine

from hubbub.engine.away import Deadlines, SitesAway
from hubbub.engine.coordinate import Coordinating
from hubbub.engine.direct import Credentials, DirectServer, Spool
from hubbub.engine.home import server_credentials

ROOT = Path(__file__).resolve().parents[1]
SITES, DIMENSION, LARGE = ("site-1", "site-2", "site-3", "site-4"), 100_000, 100_000_000
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
CODE = """
import numpy as np
from hubbub import Examples

def participants():
    return []

def data(name):
    return Examples(np.zeros((4, 4), dtype=np.float32), np.array([0, 1, 0, 1]))

def test_data():
    return data("test")

"""
MODELS = {
    "ndarrays": """
def parameters():
    return {"w": np.zeros(DIMENSION, dtype=np.float32)}

def train(parameters, examples, rng):
    return {"w": parameters["w"] + np.float32(1e-4)}

def evaluate(parameters, examples):
    return {"accuracy": 1.0}
""",
    "a torch model": """
import torch

WIDTH = int(DIMENSION**0.5) - 4  # whose three layers have almost DIMENSION parameters

def model():
    layers = torch.nn.Linear(4, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2)
    return torch.nn.Sequential(*layers)
""",
}


def load_deployment() -> Any:
    """The federation that the tests found, register and approve with."""
    spec = importlib.util.spec_from_file_location("deployment", ROOT / "tests" / "engine" / "deployment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Deployment


def join(folder: Path) -> subprocess.Popen:
    """Start a participant; returns when it dials."""
    errors = (folder / "errors").open("w+")
    process = subprocess.Popen([sys.executable, "-m", "hubbub", "join", str(folder)], stderr=errors)
    while "dials" not in (folder / "errors").read_text():
        if process.poll() is not None:
            sys.exit((folder / "errors").read_text())
        time.sleep(0.01)
    return process


class World:
    """A federation whose coordinator is this process and whose sites are processes.

    Args:
        folder: Everybody's folders.
        carrier: "direct" or "flare".
        rounds: Of its study.
        model: Which of `MODELS` it trains.
        dimension: Parameters of its model.
        seconds: Its deadlines.
    """

    def __init__(self, folder: Path, carrier: str, rounds: int, *, model: str, dimension: int, seconds: float) -> None:
        self.port, self.carrier = ports_in_a_row(1 + len(SITES)), carrier
        code = (CODE + MODELS[model]).replace("DIMENSION", str(dimension))
        here = {"address": f"localhost:{self.port}"}
        study = STUDY.format(rounds=rounds)
        self.deployment = load_deployment()(folder, names=SITES, study=study, code=code, epsilon=500.0, **here)
        for number, name in enumerate(SITES if carrier == "flare" else (), start=1):
            self.deployment.address = f"localhost:{self.port + number}"
            self.deployment.admit(name, self.deployment.site(name) / "node.membership")
        self.sites: dict[str, subprocess.Popen] = {}
        self.deadlines = Deadlines(stage=seconds, training=seconds, patience=seconds)

    @contextlib.contextmanager
    def started(self) -> Iterator[Coordinating]:
        """Coordinator, carrier and sites; everybody is there."""
        home, wire = self.deployment.home, None
        coordinating = Coordinating(home, self.deadlines)
        ends = Credentials(*server_credentials(home, ["localhost"], now=int(time.time())))
        spool, address = Spool(home / "spool"), f"localhost:{self.port}"
        coordinating.attach(
            DirectServer(ends, coordinating.identify, spool=spool, address=address, command=coordinating.command)
        )
        try:
            if self.carrier == "flare":
                wire = flare_network(home.parent / "flare", self.port)
            self.sites = {name: join(self.deployment.site(name)) for name in SITES}
            while set(coordinating.transport.sites()) != set(SITES):
                time.sleep(0.05)
            self.wire = wire
            yield coordinating
        finally:
            for process in [*self.sites.values(), *([wire] if wire else [])]:
                process.terminate()
                process.wait()
            coordinating.close()
            self.deployment.let_go()

    def start_run(self, coordinating: Coordinating) -> str:
        """Have the study approved and started; the run."""
        order = self.deployment.approve_study(coordinating.command)
        return self.deployment.ask(coordinating.command, "scientist", order).run

    def end_run(self, coordinating: Coordinating, run: str, seconds: float) -> None:
        """Wait until it is finished."""
        told = self.deployment.ended(coordinating.command, run, seconds)
        assert told.state == "finished", told


def ports_in_a_row(count: int) -> int:
    """The first of some ports that nobody has now."""
    while True:
        with contextlib.ExitStack() as taken, contextlib.suppress(OSError, OverflowError):
            first = taken.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def flare_network(folder: Path, port: int) -> subprocess.Popen:
    """The network of examples/hospitals, in FLARE's own environment; returns when each site's tunnel listens."""
    path = f"{peers.python('flare').parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    command = [ROOT / "examples" / "hospitals" / "flare.sh", folder, str(port), *SITES]
    with folder.with_suffix(".out").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    for number in range(1, 1 + len(SITES)):
        while not listens(port + number):
            if process.poll() is not None:
                sys.exit(folder.with_suffix(".out").read_text())
            time.sleep(0.2)
    return process


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# --- the halves, each in a process of its own


def time_rounds(carrier: str, rounds: int, model: str) -> dict[str, Any]:
    """Seconds of each attempt but the first, and until a killed site is in the run again once it dials."""
    seconds, attempt = [], SitesAway.attempt

    def timed(self: SitesAway, coordinator: Any) -> Any:
        before = time.perf_counter()
        closed = attempt(self, coordinator)
        seconds.append(time.perf_counter() - before)
        return closed

    SitesAway.attempt = timed
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name), carrier, rounds, model=model, dimension=DIMENSION, seconds=60)
        with world.started() as coordinating:
            run = world.start_run(coordinating)
            while len(seconds) < rounds // 2:
                time.sleep(0.01)
            before_kill = len(seconds)
            back = killed_and_back(coordinating, world)
            world.end_run(coordinating, run, 300)
    return {"seconds": seconds[1:before_kill], "back": back}


def killed_and_back(coordinating: Coordinating, world: World) -> float:
    """Kill one site's process, start it again; seconds from its dialling until it has joined the run again."""
    name = SITES[-1]
    world.sites[name].send_signal(signal.SIGKILL)
    world.sites[name].wait()
    joined = coordinating._current.sites._joined  # noqa: SLF001, what the coordinator itself goes by
    old = joined.get(name)
    world.sites[name] = join(world.deployment.site(name))
    dialled = time.perf_counter()
    while joined.get(name) == old and coordinating.current:
        time.sleep(0.002)
    return time.perf_counter() - dialled if joined.get(name) != old else float("inf")


def weigh_round(carrier: str, dimension: int, model: str) -> dict[str, int]:
    """Bytes that processes of each kind keep in memory at most, in a run of one round."""
    most, is_over = {"coordinator": 0}, threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            wire = descendants(world.wire.pid) if world.wire else []
            own = [process.pid for process in world.sites.values()]
            for kind, processes in (("coordinator", [os.getpid()]), ("site", own), ("FLARE", wire)):
                if processes:
                    most[kind] = max(most.get(kind, 0), *map(memory, processes))

    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name), carrier, 1, model=model, dimension=dimension, seconds=600)
        with world.started() as coordinating:
            run = world.start_run(coordinating)
            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                world.end_run(coordinating, run, 1200)
            finally:
                is_over.set()
                watcher.join()
    return most


def memory(process: int) -> int:
    """Bytes of its own that a process has in memory."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return 1024 * int(line.split()[1])
    return 0


@functools.cache
def descendants(process: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs, found = [tuple(map(int, line.split())) for line in listed.splitlines()], [process]
    for parent in found:
        found += [own for own, its in pairs if its == parent]
    return found


def half(*words: str) -> Any:
    """Run one half in a process of its own; what it found."""
    print(f"- {' '.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--half", *words]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(carrier: str, rounds: int, flower: list[float]) -> list[Result]:
    """What is measured of one carrier."""
    goals = {"direct": ("< 0.1 s", "< 1 s", ">= 50 x"), "flare": ("< 0.6 s", "< 5 s", ">= 10 x")}[carrier]
    found = half("time", carrier, str(rounds), "ndarrays")
    results = [
        Result(f"attempt with {len(SITES)} sites, d = {DIMENSION:,}, {carrier}", found["seconds"], goals[0]),
        Result(f"a killed site is in the run again, once it dials, {carrier}", [found["back"]], goals[1]),
    ]
    for model in MODELS:
        small, large = (half("weigh", carrier, str(dimension), model) for dimension in (1000, LARGE))
        for kind, size in large.items():
            what = f"memory for a round of {4 * LARGE // 10**6} MB, {model}, in a {kind} process / its size, {carrier}"
            results.append(Result(what, [(size - small[kind]) / (4 * LARGE)], "<= 3 x"))
    if flower:
        ratios = [flower[-1] / at for at in found["seconds"]]
        results.append(Result(f"Flower's SecAgg+ round / hubbub's attempt, {carrier}", ratios, goals[2]))
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-peers", action="store_true", help="leave Flower and FLARE out")
    parser.add_argument("--half", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    if options.half:
        what, carrier, number, model = options.half
        print(json.dumps({"time": time_rounds, "weigh": weigh_round}[what](carrier, int(number), model)))
        return
    flower, others = [], []
    if not options.no_peers:
        flower, others = flower_rounds(secure=True, sites=len(SITES), dimension=DIMENSION), ["flare"]
    results = [result for carrier in ("direct", *others) for result in compare(carrier, options.rounds, flower)]
    finish(results, machine("numpy", "grpcio"), "flwr 1.42, nvflare 2.9")


if __name__ == "__main__":
    main()
