"""Wisconsin breast cancer: each hospital reads its own records, the coordinator the test records, from HUBBUB_DATA."""

import os
from pathlib import Path

import numpy as np
import torch

import hubbub

# Ranges of the 30 features as published with the data set (Street, Wolberg, Mangasarian 1993): public
# knowledge, so scaling by them spends no privacy. Columns: means, standard errors, worst values.
LOW = [6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05,
       0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001,
       7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055]  # fmt: skip
HIGH = [28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097,
        2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03,
        36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208]  # fmt: skip


def read(name):
    """A row is 30 features and 1 if benign; a cell that is empty makes its record a null one."""
    rows = np.genfromtxt(Path(os.environ["HUBBUB_DATA"]) / name, delimiter=",", skip_header=1)
    low, high = np.array(LOW), np.array(HIGH)
    scaled = 3 * ((rows[:, :30] - low) / (high - low) - 0.3)
    return hubbub.Examples(scaled.astype(np.float32), rows[:, 30].astype(np.int64))


def participants():
    return [f"hospital-{number}" for number in range(1, 6)]


def data(participant):
    return read(f"{participant}.csv")


def test_data():
    return read("test.csv")


def model():
    return torch.nn.Linear(30, 1)


def loss(outputs, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.float(), reduction="none")
