"""Secure aggregation: hubbub against Flower's SecAgg+, in turns on one core, bare AES beside the masks.

    python benchmarks/secagg.py [--quick] [--repeats 5]

Each round is one process, hubbub's and Flower's by turns, after a small round that warms it up. Both keep all
participants in that process, on the complete graph, with the same threshold and the same dropouts: those leave
when their vector is due, which costs the server most. Compute is CPU time. hubbub's is from bytes to bytes with
every check. Flower signs nothing, so hubbub's signatures, with the hashes of the vectors that they are over, are
shown apart: goals are before them, and the ratio with them stands beside. What Flower does besides aggregating is
left out: clipping, weights and quantization on both sides, training, writing to the wire.
Flower gets an environment of its own.

Beside Flower: what a participant's masking costs over AES-256-CTR alone for as many masks, its upload, Shamir's
combine with no coefficient in the cache, and one round of a thousand participants (left out with --quick).
"""

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import json
import logging
import os
import resource
import secrets
import statistics
import subprocess
import sys
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from goals import Result, finish, machine
from peers import python as python_of

# Nothing of hubbub up here: Flower's environment runs this file too.

STAGES = ("advert", "share", "masked", "consent", "unmask")
MINUTES = 15


@dataclass(frozen=True)
class Case:
    """One round: `dropouts` of n participants leave before they send their vector of length `dimension`."""

    n: int
    dimension: int
    dropouts: int
    colluding: int
    threshold: int = 0

    def __str__(self) -> str:
        return f"n={self.n:,} d={self.dimension:,}, {self.dropouts} drop out"


WARM_UP = Case(n=5, dimension=1000, dropouts=1, colluding=1, threshold=4)
WIDE = Case(n=30, dimension=1_000_000, dropouts=3, colluding=9)
NARROW = Case(n=50, dimension=1000, dropouts=5, colluding=16)
LARGE = Case(n=1000, dimension=100_000, dropouts=50, colluding=50)


class Meter:
    """CPU seconds by label; a label inside another one is not counted in that."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._label, self._since = "else", time.process_time()

    def _switch(self, label: str) -> str:
        before, now = self._label, time.process_time()
        self.seconds[before] += now - self._since
        self._label, self._since = label, now
        return before

    @contextlib.contextmanager
    def label(self, label: str) -> Iterator[None]:
        """Count what happens inside under a label."""
        before = self._switch(label)
        try:
            yield
        finally:
            self._switch(before)

    def apart(self, owner: Any, name: str, label: str) -> None:
        """Count every call of a function of a module or class under a label; {} in it is the label around."""
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            before = self._switch(label.format(self._label))
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(before)

        setattr(owner, name, call)


# --- hubbub ---


def make_cohort(case: Case, parameters: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A session, its server, and its clients by name."""
    from hubbub.secagg import SUITE, Client, Member, Roster, Server, Session, SigningKey

    keys = {f"site-{number:04}": SigningKey(secrets.token_bytes(32)) for number in range(case.n)}
    coordinator = SigningKey(secrets.token_bytes(32))
    roster = Roster([Member(name, f"org-{name}", key.public) for name, key in keys.items()])
    session = Session(
        suite=SUITE, coordinator=coordinator.public, study="benchmark", plan=bytes(32), run=1,
        parameters=parameters.hash, roster_epoch=1, roster=bytes(32), payload="update", round_number=1, attempt=1,
        model=bytes(32), log_origin="benchmark", log_size=0, log_root=bytes(32),
    )  # fmt: skip
    common = {"roster": roster, "parameters": parameters}
    ports = {"mark": lambda *_: None, "charge": lambda *_: None}
    clients = {name: Client(name, key=key, **common, **ports) for name, key in keys.items()}
    return session, Server(session, key=coordinator, **common), clients


def hubbub_round(case: Case, meter: Meter) -> dict[str, float]:
    """One session in memory, its sum checked."""
    parameters = choose_parameters(case)
    session, server, clients = make_cohort(case, parameters)
    gone = set(list(clients)[:: case.n // case.dropouts][: case.dropouts])
    seed, uploads = secrets.randbits(64), dict.fromkeys(clients, 0)

    def vector(name: str) -> np.ndarray:
        rng = np.random.default_rng([seed, int(name[-4:])])
        return rng.integers(0, 2**32, case.dimension, dtype=np.uint32)

    def answer(stage: str, name: str, data: bytes) -> bytes:
        client = clients[name]
        with meter.label("clients"):
            reply = client.open(data, session) if stage == "advert" else client.receive(data)
        if stage != "masked":
            return reply
        own = vector(name)
        if not parameters.neighbours:
            with meter.label("bare"):
                bare_masks(case.n, case.dimension)
        with meter.label("masking"):
            client.charge()
            return client.mask(own)

    start = time.perf_counter()
    with meter.label("server"):
        messages = server.open()
    for stage in STAGES:
        for name in messages.keys() - gone if stage == "masked" else messages:
            reply = answer(stage, name, messages[name])
            uploads[name] += len(reply)
            with meter.label("server"):
                server.receive(reply)
        with meter.label("server"):
            messages = server.advance()
    with meter.label("server"):
        messages = server.close(bytes(32))
    for name in messages.keys() - gone:
        with meter.label("clients"):
            clients[name].receive(messages[name])
    wall = time.perf_counter() - start

    assert set(server.survivors) == clients.keys() - gone
    expected = np.zeros(case.dimension, dtype=np.uint32)
    for name in server.survivors:
        expected += vector(name)
    assert np.array_equal(server.total, expected)
    return {
        "wall": wall,
        "upload": max(uploads.values()) / (4 * case.dimension),
        "neighbours": parameters.neighbours,
        "threshold": parameters.threshold,
    }


def choose_parameters(case: Case) -> Any:
    from hubbub.secagg import parameters

    left, dropouts = case.n - case.dropouts, case.dropouts / case.n
    return parameters.choose(
        case.n, colluding=case.colluding, dropouts=dropouts, dimension=case.dimension, minimum=left
    )


def bare_masks(masks: int, dimension: int) -> None:
    """AES-256-CTR alone, where it is fastest: one stretch in the processor's cache, again and again."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stretch = min(4 * dimension, 1 << 17)
    zeros, room = bytes(stretch), bytearray(stretch + 15)
    for _ in range(masks):
        stream = Cipher(algorithms.AES256(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()
        for start in range(0, 4 * dimension, stretch):
            stream.update_into(zeros[: 4 * dimension - start], room)


def meter_hubbub(meter: Meter) -> None:
    from hubbub.secagg import client, keys, server

    meter.apart(client, "add_masks", "masks")
    for half in (client, server):  # of vectors; other hashes stay where they are
        meter.apart(half, "sha256", "{} signatures")
    meter.apart(keys, "is_signed_bytes", "{} signatures")
    meter.apart(keys.SigningKey, "sign_bytes", "{} signatures")


def shamir_combine(holders: int, threshold: int, repeats: int) -> list[float]:
    """Seconds to rebuild one secret, its holders new each time."""
    from hubbub.secagg import shamir

    times: list[float] = []
    for _ in range(repeats):
        secret = secrets.token_bytes(32)
        coefficients = secrets.token_bytes(shamir.COEFFICIENT_BYTES * (threshold - 1))
        shares = shamir.split(secret, range(1, holders + 1), coefficients)
        chosen = secrets.SystemRandom().sample(range(holders), threshold)
        kept = {place + 1: shares[place] for place in chosen}
        start = time.process_time()
        found = shamir.combine(kept)
        times.append(time.process_time() - start)
        assert found == secret
    return times


# --- Flower ---


def flower_round(case: Case, meter: Meter) -> dict[str, float]:
    """Flower's own workflow and client mod, its grid replaced by calls in this process; the mean checked."""
    import flwr.compat.common.recorddict_compat as compat
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
    from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import ServerConfig
    from flwr.server.client_manager import SimpleClientManager
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
    from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    rng = np.random.default_rng()
    vectors = {node: rng.normal(0, 0.1, case.dimension).astype(np.float32) for node in range(1, case.n + 1)}
    contexts = {node: types.SimpleNamespace(state=RecordDict({}), run_config={}) for node in vectors}
    gone, result = set(list(vectors)[: case.dropouts]), []

    def train(message: Message, _: Any) -> Message:
        with meter.label("else"):
            own = ndarrays_to_parameters([vectors[message.metadata.dst_node_id]])
            fitted = FitRes(Status(Code.OK, ""), own, 500, {})
            return Message(compat.fitres_to_recorddict(fitted, keep_input=False), reply_to=message)

    class Grid:
        def send_and_receive(self, messages: Sequence[Message], **_: Any) -> list[Message]:
            return [reply for message in messages if (reply := self._ask(message)) is not None]

        def _ask(self, message: Message) -> Message | None:
            node = message.metadata.dst_node_id
            stage = message.content.config_records["secaggplus_configs"]["stage"]
            if node in gone and stage in ("collect_masked_vectors", "unmask"):
                return None
            with meter.label("else"):  # a client changes what it is given
                records = {
                    name: ConfigRecord(dict(record)) if isinstance(record, ConfigRecord) else record
                    for name, record in message.content.items()
                }
                kind = message.metadata.message_type
                copy = Message(RecordDict(records), dst_node_id=node, message_type=kind, group_id="1")
            with meter.label("clients"):
                return secaggplus_mod(copy, contexts[node], train)

    class Strategy(FedAvg):
        def configure_fit(self, _round: int, parameters: Any, _manager: Any) -> list[tuple[Any, FitIns]]:
            return [(types.SimpleNamespace(node_id=node, cid=str(node)), FitIns(parameters, {})) for node in vectors]

        def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> tuple[Any, dict[str, Any]]:
            with meter.label("else"):
                result.extend(parameters_to_ndarrays(results[0][1].parameters))
            return results[0][1].parameters, {}

    context = LegacyContext(
        Context(1, 1, {}, RecordDict({}), {}),
        config=ServerConfig(num_rounds=1),
        strategy=Strategy(),
        client_manager=SimpleClientManager(),
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    model = ndarrays_to_parameters([np.zeros(case.dimension, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(model, keep_input=True)
    workflow = SecAggPlusWorkflow(num_shares=case.n, reconstruction_threshold=case.threshold, max_weight=1000.0)
    start = time.perf_counter()
    with meter.label("server"):
        workflow(Grid(), context)
    wall = time.perf_counter() - start

    mean = np.mean([vectors[node] for node in vectors if node not in gone], axis=0)
    assert np.abs(result[0] - mean).max() < 1e-4
    return {"wall": wall}


def meter_flower(meter: Meter) -> None:
    """Encoding is not aggregation: hubbub's participants come with integers."""
    client = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    server = importlib.import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")
    logging.disable(logging.CRITICAL)
    for name in ("parameters_to_ndarrays", "parameters_multiply", "quantize", "factor_combine"):
        meter.apart(client, name, "else")
    for name in ("factor_extract", "dequantize", "ndarrays_to_parameters"):
        meter.apart(server, name, "else")


# --- one round in a process of its own ---

PACKAGES = {"hubbub": ("hubbub", "numpy", "cryptography"), "flower": ("flwr", "numpy", "cryptography", "pycryptodome")}
ROUNDS: dict[str, tuple[Callable[[Case, Meter], dict[str, float]], Callable[[Meter], None]]] = {
    "hubbub": (hubbub_round, meter_hubbub),
    "flower": (flower_round, meter_flower),
}


def play(whose: str, case: Case) -> dict[str, Any]:
    play_round, prepare = ROUNDS[whose]
    meter = Meter()
    prepare(meter)
    play_round(WARM_UP, meter)
    gc.collect()
    meter.seconds.clear()
    found = play_round(case, meter)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packages = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES[whose]]
    gib = peak / (2**30 if sys.platform == "darwin" else 2**20)
    return {**found, "seconds": dict(meter.seconds), "gib": gib, "packages": packages}


def run(whose: str, case: Case) -> dict[str, Any]:
    python = python_of("flower") if whose == "flower" else Path(sys.executable)
    command = [str(python), __file__, "--play", whose, json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- the table ---


def side(played: Mapping[str, Any], whose: str) -> tuple[float, float]:
    """CPU seconds of the clients together or of the server, and how many of them are signatures'."""
    labels = ("clients", "masking", "masks") if whose == "clients" else ("server",)
    seconds = played["seconds"]
    signatures = sum(seconds.get(f"{label} signatures", 0) for label in labels)
    return sum(seconds.get(label, 0) for label in labels) + signatures, signatures


def in_turns(case: Case, repeats: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hubbub's rounds and Flower's, in pairs; who starts a pair changes."""
    ours, peers = [], []
    for repeat in range(repeats):
        for whose in ("hubbub", "flower") if repeat % 2 else ("flower", "hubbub"):
            (ours if whose == "hubbub" else peers).append(run(whose, case))
    return ours, peers


def compare(
    case: Case, ours: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]], goals: Mapping[str, float]
) -> list[Result]:
    """Print both sides' seconds; the ratios are those within each pair."""
    print(f"\n{case}, threshold {case.threshold}; CPU seconds, median and range")
    rows: list[Result] = []
    for whose, goal in goals.items():
        peer, own, signatures = (
            [side(one, whose)[at] for one in one_side] for one_side, at in ((peers, 0), (ours, 0), (ours, 1))
        )
        for what, seconds in (("Flower", peer), ("hubbub", own), ("hubbub's signatures", signatures)):
            print(f"  {whose + ', ' + what:30} {statistics.median(seconds):9.4f}", end="")
            print(f"   {min(seconds):.4f} to {max(seconds):.4f}")
        ratios = [one / other for one, other in zip(peer, own, strict=True)]
        unsigned = [one / (other - less) for one, other, less in zip(peer, own, signatures, strict=True)]
        print(f"  {whose}, Flower over hubbub with signatures", end="")
        print(f" {statistics.median(ratios):.1f}   {min(ratios):.1f} to {max(ratios):.1f}")
        named = f"{case}: {whose}, Flower / hubbub"
        rows.append(Result(f"{named} before signatures", unsigned, f">= {goal:g} x", is_headline=True))
        rows.append(Result(f"{named} with signatures", ratios, "x"))
    return rows


def masking(played: Mapping[str, Any]) -> tuple[float, float]:
    """Adding the masks, and all of mask() (agreeing on keys, hash and message too), over the cipher alone."""
    seconds = played["seconds"]
    rest = seconds["masking"] + seconds["masking signatures"]
    return seconds["masks"] / seconds["bare"], (seconds["masks"] + rest) / seconds["bare"]


def large_round() -> Result:
    played = run("hubbub", with_threshold(LARGE))
    print(f"\n{LARGE}, {played['neighbours']} neighbours, threshold {played['threshold']}, everybody in one process")
    print(
        f"  wall {played['wall']:.0f} s, peak memory {played['gib']:.1f} GiB, upload {played['upload']:.3f} x 4 d bytes"
    )
    for whose in ("clients", "server"):
        seconds, signatures = side(played, whose)
        print(f"  {whose}, CPU seconds {seconds:.1f}, of which signatures {signatures:.1f}")
    return Result(f"{LARGE}: whole round, one core", [played["wall"] / 60], f"<= {MINUTES} min")


def with_threshold(case: Case) -> Case:
    return Case(**{**asdict(case), "threshold": choose_parameters(case).threshold})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the round of a thousand")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--play", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.play:
        print(json.dumps(play(asked.play[0], Case(**json.loads(asked.play[1])))))
        return
    python_of("flower")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    rows: list[Result] = []
    for case, goals in ((WIDE, {"clients": 3, "server": 30}), (NARROW, {"clients": 2, "server": 100})):
        ours, peers = in_turns(with_threshold(case), asked.repeats)
        rows += compare(with_threshold(case), ours, peers, goals)
        if case is WIDE:
            added, whole = zip(*map(masking, ours), strict=True)
            rows.append(Result(f"{case}: masks added / bare AES-256-CTR", added, "<= 1.6 x"))
            rows.append(Result(f"{case}: all of mask() / bare AES-256-CTR", whole, "<= 1.6 x"))
            rows.append(Result(f"{case}: upload / 4 d bytes", [one["upload"] for one in ours], "<= 1.01 x"))
    combine = [1000 * seconds for seconds in shamir_combine(100, 67, 101)]
    rows.append(Result("Shamir combine, 67 of 100, no coefficient cached", combine, "<= 1 ms"))
    if not asked.quick:
        rows.append(large_round())

    finish(rows, machine("numpy", "cryptography"), ", ".join(peers[0]["packages"]), f"one core, {asked.repeats} turns")


if __name__ == "__main__":
    main()
