"""A workload as a study of hubbub, through `hubbub.run`: secret cohort, exact noise, ledger, log, metrics."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch  # noqa: F401, what is imported is no part of what a run needs
from laps import Laps
from safetensors.numpy import load_file
from workloads import CLASSES, MAX_NORM, SEED, client_name, torch_model

import hubbub

laps = Laps()
asked, workload = laps.asked, laps.workload
data = laps.load()
PRIVATE = {"noise": "server", "epsilon": 8.0, "delta": 1e-5}
SECRET = {
    "participants": "secret-poisson",
    "probability": asked.cohort / asked.clients,
    "minimum": int(0.9 * asked.clients),
}
study = hubbub.Study.from_functions(
    {
        "study": {"name": workload.name.lower(), "seed": SEED},
        "data": {"x": {"dtype": "float32", "shape": [workload.side**2]}, "y": {"dtype": "int64", "classes": CLASSES}},
        "privacy": {"unit": "client", "max_norm": MAX_NORM, **({"noise": "none"} if asked.exact else PRIVATE)},
        "cohort": {"participants": "everyone"} if asked.exact else SECRET,
        "training": {
            "algorithm": "fedavg",
            "rounds": asked.rounds,
            "learning_rate": workload.rate,
            "batch_size": workload.batch,
        },
        "speed": {"workers": asked.workers},
    },
    participants=lambda: [client_name(number) for number in range(asked.clients)],
    data=lambda name: hubbub.Examples(*data.client(int(name[-4:]))),
    test_data=lambda: hubbub.Examples(data.test_x, data.test_y),
    model=lambda: torch_model(workload),
)


def watch(event: Any, _: Any) -> None:
    """A round has ended when it was closed, and the model measured."""
    kind = type(event).__name__
    if kind == "RoundClosed":
        laps.measuring.append(-time.perf_counter())
    if kind == "Evaluated":
        laps.measuring[-1] += time.perf_counter()
        laps.lap()


with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "run"
    result = hubbub.run(study, out=out, home=Path(folder) / "home", watch=watch)
    assert result.rounds == asked.rounds
    assert asked.exact or (result.epsilon_spent or 99) <= 8
    model = load_file(out / "model.safetensors")
laps.finish([model[name] for name, _ in torch_model(workload).named_parameters()])
