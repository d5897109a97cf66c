"""Two sessions byte by byte: a second implementation must write the same, and refuse each with one byte changed.

HUBBUB_WRITE_VECTORS=1 writes tests/vectors/secagg-*.json again, for a change that is meant.
"""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hubbub.errors import HubbubError
from hubbub.randomness import SeededRandomness
from hubbub.secagg import Client, Server

VECTORS = Path(__file__).parents[1] / "vectors"
STAGES = ("advert", "share", "masked", "consent", "unmask")
SHAPES = {
    "secagg-complete": {"n": 4, "drops": {"site-02": "masked"}, "dimension": 3},
    "secagg-sparse": {"n": 6, "neighbours": 4, "threshold": 3, "drops": {"site-04": "masked"}, "dimension": 3},
}


class ScriptedClient(Client):
    """Draws from a stream that repeats, and remembers what it drew."""

    def _stream(self):
        if "stream" not in self.__dict__:
            self.stream, self.drawn = SeededRandomness(0, "transcript", self.name), []
        return self.stream

    def _draw(self, size):
        drawn = self._stream().words((size + 7) // 8).tobytes()[:size]
        self.drawn.append(drawn.hex())
        return drawn

    def _choose(self, population, size):
        chosen = self._stream().choose(population, size).tolist()
        self.drawn.append(chosen)
        return chosen


class ScriptedServer(Server):
    def _draw(self, size):
        return bytes(range(size))


def make_script(make_world, make_vectors, name):
    shape = dict(SHAPES[name])
    drops = shape.pop("drops")
    world = make_world(shape.pop("n"), client_type=ScriptedClient, server_type=ScriptedServer, **shape)
    return world, make_vectors(world), drops


def hexed(value):
    return value.hex() if isinstance(value, bytes) else value


def record(world, vectors, drops):
    """Everything that a second implementation needs to write the same messages."""
    world.run(vectors, drops)
    for name, data in world.server.close(b"aggregate").items():
        world.transcript.append((f"to {name}", data))
    session = world.server.session
    return {
        "parameters": msgspec.to_builtins(world.parameters),
        "coordinator_seed": world.key._key.private_bytes_raw().hex(),
        "session": {field: hexed(getattr(session, field)) for field in session.__struct_fields__},
        "session_id": session.id.hex(),
        "members": [
            {"name": name, "org": member.org, "seed": world.keys[name]._key.private_bytes_raw().hex()}
            for name, member in world.roster.members.items()
        ],
        "drawn": {name: client.drawn for name, client in world.clients.items()},
        "salt": bytes(range(32)).hex(),
        "vectors": {name: vector.tolist() for name, vector in vectors.items()},
        "messages": [[way, data.hex()] for way, data in world.transcript],
        "adverts": world.server._adverts_hash.hex(),
        "edges": world.server._edges_hash.hex(),
        "survivors": list(world.server.survivors),
        "sum": world.server.total.tolist(),
    }


@pytest.mark.parametrize("name", SHAPES)
def test_the_transcript_is_written_byte_by_byte_as_it_was(make_world, make_vectors, name):
    found = record(*make_script(make_world, make_vectors, name))
    path = VECTORS / f"{name}.json"
    if os.environ.get("HUBBUB_WRITE_VECTORS"):
        VECTORS.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(path.read_text())


@pytest.mark.parametrize("name", SHAPES)
def test_each_message_with_one_byte_changed_is_refused_by_name(make_world, make_vectors, name):
    """Twins of the frozen transcript, a byte in seven of every message; the true one is then taken."""
    world, vectors, drops = make_script(make_world, make_vectors, name)
    script = json.loads((VECTORS / f"{name}.json").read_text())
    world.server.open()
    for number, (way, text) in enumerate(script["messages"]):
        direction, peer = way.split()
        data = bytes.fromhex(text)

        def take(data, peer=peer, direction=direction):
            if direction == "from":
                return world.server.receive(data)
            client = world.clients[peer]
            return client.open(data, world.session()) if client.stage is None else client.receive(data)

        for at in range(number % 7, len(data), 7):
            twin = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            with pytest.raises(HubbubError) as refused:
                take(twin)
            assert ", found " in refused.value.message, (way, at)
        take(data)
        client = world.clients[peer]
        if client.stage == "training":
            client.charge()
            client.mask(vectors[peer].copy())
        stage = world.server.stage
        gone = {name for name, dropped in drops.items() if stage in STAGES[STAGES.index(dropped) :]}
        if direction == "from" and not world.server.awaited - gone:
            world.server.advance()
    assert world.server.total.tolist() == script["sum"]
    np.testing.assert_array_equal(
        world.server.total,
        sum((vectors[name] for name in script["survivors"]), start=np.zeros(3, dtype=np.uint32)),
    )
