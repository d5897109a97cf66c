"""Both halves of a Flower app whose sites compute nothing: what is left of a round is Flower's own.

With `secure`, its SecAgg+ workflow and client mod, all sites holding shares; else its default workflow and FedAvg.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerConfig
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.server.workflow.default_workflows import default_fit_workflow
from flwr.serverapp import Grid, ServerApp


class Site(NumPyClient):
    """Answers with the model it was sent, a little moved."""

    def fit(self, parameters: list[np.ndarray], _: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Return new weights at once."""
        return [part + np.float32(0.01) for part in parameters], 1, {}


def make_site(_: Context) -> Any:
    return Site().to_client()


def only_if_secure(message: Any, context: Context, call_next: Any) -> Any:
    """SecAgg+ at the site, where the run asks for it."""
    if context.run_config["secure"]:
        return secaggplus_mod(message, context, call_next)
    return call_next(message, context)


client = ClientApp(client_fn=make_site, mods=[only_if_secure])
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the sites, then run the rounds and write down how long each took."""
    config = context.run_config
    sites, times, final = int(config["sites"]), [], []
    while len(list(grid.get_node_ids())) < sites:
        time.sleep(0.1)

    class Averaging(FedAvg):
        def aggregate_fit(self, *rest: Any) -> Any:
            result = super().aggregate_fit(*rest)
            final[:] = parameters_to_ndarrays(result[0])
            return result

    model = ndarrays_to_parameters([np.zeros(int(config["dimension"]), np.float32)])
    legacy = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=int(config["rounds"])),
        strategy=Averaging(
            fraction_fit=1.0,
            fraction_evaluate=0.0,
            min_fit_clients=sites,
            min_available_clients=sites,
            initial_parameters=model,
        ),
    )
    # Weights are at most 1 here: its resolution is that of the largest.
    secure = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=0.75, max_weight=1.0)
    fit = secure if config["secure"] else default_fit_workflow

    def timed(*rest: Any) -> None:
        start = time.perf_counter()
        fit(*rest)
        times.append(time.perf_counter() - start)

    DefaultWorkflow(fit_workflow=timed)(grid, legacy)
    apart = float(np.abs(final[0] - 0.01 * int(config["rounds"])).max())
    Path(str(config["times"])).write_text(json.dumps({"seconds": times, "apart": apart}))
