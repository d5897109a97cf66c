"""Give each hospital its records, and the coordinator the test records: records.py DIR."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

RADIUS = [10.15, 11.2, 14.0, 16.85]  # mm: hospital-1 sees the smallest tumours, none malignant; hospital-5 the largest


def main(root):
    found = load_breast_cancer()
    x, tests, y, test_labels = train_test_split(
        found.data, found.target, test_size=0.2, stratify=found.target, random_state=0
    )
    header = ",".join([*(name.replace(" ", "_") for name in found.feature_names), "is_benign"])
    hospitals = np.digitize(x[:, 0], RADIUS)
    for number in range(5):
        rows = hospitals == number
        write(root / f"hospital-{number + 1}" / "records" / f"hospital-{number + 1}.csv", header, x[rows], y[rows])
    write(root / "hub" / "records" / "test.csv", header, tests, test_labels)


def write(path, header, x, y):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.column_stack([x, y]), fmt="%.17g", delimiter=",", header=header, comments="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
