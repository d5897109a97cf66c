"""A copy of somebody else's log: it grows with heads, and leads to their roots."""

import pytest

from hubbub.errors import InputError
from hubbub.tlog import Signer, Store, sign_checkpoint
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.copy import Copy
from hubbub.tlog.keys import ED25519

KEY = Signer("log.example", ED25519, bytes(32))


def bodies(start, end):
    return [b'{"n":%d}' % number for number in range(start, end)]


@pytest.fixture
def store(tmp_path):
    """Give a log of 20 entries."""
    store = Store(tmp_path / "log.db")
    store.append(lambda _: bodies(0, 20))
    yield store
    store.close()


@pytest.fixture
def copy(tmp_path):
    """Give an empty copy."""
    copy = Copy(tmp_path / "copy.db")
    yield copy
    copy.close()


@pytest.mark.parametrize("steps", [(20,), (1, 20), (7, 8, 13, 20), tuple(range(1, 21))])
def test_a_copy_leads_to_the_root_of_each_head(store, copy, steps):
    for size in steps:
        new = store.entries(copy.size, size)
        assert copy.root_with(new) == store.root(size)
        copy.extend(sign_checkpoint(store, KEY, size), lambda _, new=new: new)
        assert (copy.size, copy.root(size)) == (size, store.root(size))
    assert copy.entries(0) == bodies(0, 20)
    assert copy.root_with([]) == store.root()


def test_an_empty_copy_has_the_root_of_an_empty_log(copy, tmp_path):
    empty = Store(tmp_path / "empty.db")
    assert copy.root_with([]) == empty.root()
    assert copy.head is None
    empty.close()


def test_a_copy_remembers_its_last_head(store, copy, tmp_path):
    for size in (5, 9):
        copy.extend(sign_checkpoint(store, KEY, size), lambda at, size=size: store.entries(at, size))
    again = Copy(tmp_path / "copy.db")
    assert parse_checkpoint(again.head.text).size == again.size == 9
    again.close()


def test_what_is_refused_leaves_copy_and_head_as_they_were(store, copy):
    copy.extend(sign_checkpoint(store, KEY, 5), lambda at: store.entries(at, 5))

    def refuse(_size):
        raise InputError("no", hint="no")

    with pytest.raises(InputError):
        copy.extend(sign_checkpoint(store, KEY, 9), refuse)
    assert (copy.size, parse_checkpoint(copy.head.text).size) == (5, 5)


def test_a_head_is_signed_as_it_was_at_a_size(store):
    head = parse_checkpoint(sign_checkpoint(store, KEY, 7).text)
    assert (head.size, head.root) == (7, store.root(7))
    with pytest.raises(InputError, match="has 20 entries, found a question about others"):
        sign_checkpoint(store, KEY, 21)
