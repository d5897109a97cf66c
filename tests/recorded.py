"""What a run wrote down."""

from hubbub.events import decode_event


def read_events(path):
    """The events of a file, in order."""
    return [decode_event(line) for line in path.read_bytes().splitlines()]
