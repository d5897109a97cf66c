"""Handwritten digits (1797 images of 8 by 8 pixels), spread unevenly over six post offices."""

import os
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hubbub

SPLIT = int(os.environ.get("SPLIT", "0"))  # which random fifth is held out for testing
INK = 310  # an image's ink, summed over its pixels: above it, a broad pen
TILT = [-25, 30]  # ink in the upper half minus ink in the lower half


def scale(images):
    return (images / 16 - 0.3).astype(np.float32)  # a pixel is 0 to 16 by the file's definition


def office(images):
    """The office that an image comes to: by how it is written, so each office sees other digits."""
    tilt = images[:, :32].sum(axis=1) - images[:, 32:].sum(axis=1)
    return 3 * (images.sum(axis=1) > INK) + np.digitize(tilt, TILT)


@cache
def split():
    images, y = load_digits(return_X_y=True)
    return train_test_split(images, y.astype(np.int64), test_size=0.2, stratify=y, random_state=SPLIT)


def participants():
    return [f"office-{number}" for number in range(1, 7)]


def data(participant):
    images, _, y, _ = split()
    rows = office(images) == participants().index(participant)
    return hubbub.Examples(scale(images[rows]), y[rows])


def test_data():
    _, images, _, y = split()
    return hubbub.Examples(scale(images), y)


def model():
    return torch.nn.Linear(64, 10)
