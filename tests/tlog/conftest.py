"""Logs, keys and witnesses that are the same in every run."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hubbub
from hubbub.tlog import Policy, Signer, Store, Witness, sign_checkpoint
from hubbub.tlog.keys import COSIGNATURE, ED25519
from hubbub.tlog.policy import majority_policy

ORIGIN = "example.com/log"


@pytest.fixture
def start():
    """Start a script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(hubbub.__file__).parents[1])}

    def call(script, *arguments):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)

    return call


@pytest.fixture
def race(start):
    """Run a script in processes that start together, one for each argument; what each printed."""

    def call(script, path, arguments):
        racers = [start(script, path, argument) for argument in arguments]
        outputs = [racer.communicate()[0] for racer in racers]
        assert {racer.returncode for racer in racers} == {0}
        return outputs

    return call


@pytest.fixture
def key():
    """Make a key from its name."""
    return lambda name=ORIGIN, kind=ED25519: Signer(name, kind, hashlib.sha256(f"{name} {kind}".encode()).digest())


@pytest.fixture
def body():
    """Make the entry with a number."""
    return lambda number: b'{"number": %d}' % number


@pytest.fixture
def store(tmp_path, body):
    """Make logs with some entries; every call is another log."""
    made = []

    def make(size=0, word=None):
        made.append(Store(tmp_path / f"log-{len(made)}.db"))
        bodies = [body(number) if word is None else b'{"word": "%b%d"}' % (word, number) for number in range(size)]
        made[-1].append(lambda _: bodies)
        return made[-1]

    yield make
    for log in made:
        log.close()


@pytest.fixture
def witness(tmp_path, key):
    """Make witnesses of the one log; calls with one name share a memory."""
    made = []

    def make(name="w1", kind=COSIGNATURE, logs=None):
        logs = [key().verifier] if logs is None else logs
        made.append(Witness(tmp_path / f"{name}.db", [key(name, kind)], logs))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def policy(key):
    """Make the policy of the one log and some witnesses w1, w2, ..."""

    def make(witnesses=0, lying=0):
        if not witnesses:
            return Policy(majority_policy(key().verifier, {"x": key("x", COSIGNATURE).verifier}, 0).logs)
        names = [f"w{number}" for number in range(1, witnesses + 1)]
        return majority_policy(key().verifier, {name: key(name, COSIGNATURE).verifier for name in names}, lying)

    return make


@pytest.fixture
def head(key):
    """Sign the head of a log."""
    return lambda log: sign_checkpoint(log, key())
