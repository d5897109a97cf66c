"""Flower's client side, a module of its own: what `__main__` defines is pickled by value for every call.

That would empty `kept` each time, and every client would load the data and build the model anew.
"""

from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional
from workloads import WORKLOADS, load, torch_model

client = ClientApp()
kept: dict[str, Any] = {}


@client.train()
def train(message: Message, context: Context) -> Message:
    """One pass over this client's records."""
    config = message.content["config"]
    workload = WORKLOADS[str(config["workload"])]
    if not kept:
        torch.set_num_threads(1)
        kept.update(net=torch_model(workload), data=load(workload))
    net, number = kept["net"], int(context.node_config["partition-id"])
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    exact = config["exact"]
    rows = kept["data"].shuffled(number, config["server-round"]) if exact else kept["data"].client(number)
    x, y = map(torch.from_numpy, rows)
    optimiser = torch.optim.SGD(net.parameters(), lr=workload.rate)
    for at in range(0, len(y), workload.batch):
        optimiser.zero_grad()
        functional.cross_entropy(net(x[at : at + workload.batch]), y[at : at + workload.batch]).backward()
        optimiser.step()
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
