"""Three sites, points in a plane, one straight line between two classes. Replace the data by your own."""

import numpy as np
import torch

import hubbub

SITES = {"site-a": 500, "site-b": 300, "site-c": 100}  # records of each; sizes are public


def points(seed, count):
    """Made-up records, the same for everybody: class 1 lies up and to the right of class 0."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.normal(size=(count, 2)) + np.where(y, 1.5, -1.5)[:, None]
    return scale(x), y.astype(np.int64)


def scale(x):
    """Scale by constants that are known beforehand. A mean computed from the records would leak them."""
    return (x / 3.0).astype(np.float32)


def participants():
    return list(SITES)


def data(participant):
    """One participant's records. Reading another one's here would void every claim."""
    x, y = points(seed=1 + list(SITES).index(participant), count=SITES[participant])
    return hubbub.Examples(x, y)


def test_data():
    """Records that nobody trains on; public=True says that anybody may know them."""
    x, y = points(seed=100, count=400)
    return hubbub.Examples(x, y, public=True)


def model():
    return torch.nn.Linear(2, 2)  # one score per class; the default loss is cross-entropy
