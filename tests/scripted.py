"""Randomness of which a test knows every word."""

import numpy as np

from hubbub.randomness import Randomness


class ScriptedRandomness(Randomness):
    """Hands out the words of a script, and fails when asked for more."""

    name = "injected"

    def __init__(self, words):
        self.script = list(words)

    def words(self, count):
        taken, self.script = self.script[:count], self.script[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.uint64)
