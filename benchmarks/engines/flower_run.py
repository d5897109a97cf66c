"""A workload through Flower's simulation (Ray), its message API and its server-side strategy with fixed clipping.

At its best: one actor for each core, data loaded once for each actor, no evaluation at the clients.
"""

import logging
import os
import time
import warnings
from pathlib import Path

os.environ.update(
    RAY_DISABLE_IMPORT_WARNING="1", FLWR_TELEMETRY_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_USAGE_STATS_ENABLED="0",
    PYTHONPATH=str(Path(__file__).resolve().parent),
)  # fmt: skip
warnings.filterwarnings("ignore")
from flower_client import client  # noqa: E402, the environment comes first
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402
from laps import Laps  # noqa: E402
from workloads import MAX_NORM, measured, torch_model  # noqa: E402

logging.getLogger("flwr").setLevel(logging.ERROR)
laps = Laps()
asked, workload = laps.asked, laps.workload
data, net, final, server = laps.load(), torch_model(workload), [], ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Measure the model; Flower calls this before the first round too."""
    start = time.perf_counter()
    net.load_state_dict(arrays.to_torch_state_dict())
    found = MetricRecord(measured(net, data, workload.piece))
    if server_round:
        laps.measuring.append(time.perf_counter() - start)
        laps.lap()
    return found


@server.main()
def main(grid: Grid, _: Context) -> None:
    """Train, and keep the final weights."""
    averaging = FedAvg(
        fraction_train=asked.cohort / asked.clients,
        fraction_evaluate=0.0,
        min_train_nodes=asked.cohort,
        min_evaluate_nodes=0,
        min_available_nodes=asked.clients,
    )
    noise = 0.0 if asked.exact else 0.5
    config = ConfigRecord({"workload": workload.name, "exact": asked.exact})
    DifferentialPrivacyServerSideFixedClipping(averaging, noise, MAX_NORM, asked.cohort).start(
        grid, ArrayRecord(net.state_dict()), num_rounds=asked.rounds, evaluate_fn=evaluate, train_config=config
    )
    final.extend(value.detach().numpy().copy() for value in net.parameters())


run_simulation(
    server,
    client,
    asked.clients,
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": asked.workers, "include_dashboard": False, "log_to_driver": False},
    },
)
laps.finish(final)
