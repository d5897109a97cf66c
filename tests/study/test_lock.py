"""study.lock: what is written is read back, and nothing else is."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import StudyError
from hubbub.study import Lock
from hubbub.study.lock import read_lock, write_lock

LOCK = Lock(format=1, code_hash="a" * 64, schema_hash="b" * 64, parameters=31, slots={"north": 5, "south": 7})


def test_a_lock_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "study.lock"
    write_lock(path, LOCK)
    assert read_lock(path) == LOCK


def test_the_same_lock_is_the_same_bytes_with_a_line_per_participant(tmp_path):
    for name, slots in (("one", LOCK.slots), ("two", {"south": 7, "north": 5})):
        write_lock(tmp_path / name, Lock(**({"slots": slots} | {k: getattr(LOCK, k) for k in FIELDS})))
    text = (tmp_path / "one").read_text()
    assert text == (tmp_path / "two").read_text()
    assert re.search(r'^\s*"north": 5,\n\s*"south": 7$', text, re.MULTILINE)


FIELDS = ("format", "code_hash", "schema_hash", "parameters")


def test_no_lock_is_none(tmp_path):
    assert read_lock(tmp_path / "study.lock") is None


GOOD = '{"format":1,"code_hash":"a","schema_hash":"b","parameters":3,"slots":{"a":1}}'
BAD = {
    "empty": b"",
    "no JSON": b"slots = 3",
    "no UTF-8": GOOD.replace('"a"', '"\xff"', 1).encode("latin-1"),
    "other format": GOOD.replace('"format":1', '"format":2').encode(),
    "unknown field": GOOD.replace('"format":1', '"format":1,"epsilon":3').encode(),
    "missing field": GOOD.replace('"parameters":3,', "").encode(),
    "no parameters": GOOD.replace('"parameters":3', '"parameters":0').encode(),
    "negative slots": GOOD.replace('{"a":1}', '{"a":-1}').encode(),
    "no slots": GOOD.replace('{"a":1}', "{}").encode(),
    "nested": b"[" * 100_000,
    "half": GOOD[:40].encode(),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_lock_is_refused_with_what_to_type(tmp_path, content):
    path = tmp_path / "study.lock"
    path.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        read_lock(path)
    assert caught.value.message.startswith("study.lock, must be what hubbub check wrote, ")
    assert caught.value.hint == f"rm {path} && hubbub check {tmp_path}"


def test_a_folder_is_no_lock(tmp_path):
    with pytest.raises(StudyError, match="must be what hubbub check wrote"):
        read_lock(tmp_path)


@given(st.binary(max_size=100), st.integers(0, len(GOOD)), st.integers(0, 10))
def test_no_bytes_whatever_end_in_anything_but_a_lock_or_a_study_error(tmp_path_factory, noise, at, cut):
    path = tmp_path_factory.getbasetemp() / "fuzz.lock"
    path.write_bytes(GOOD[:at].encode() + noise + GOOD[at + cut :].encode())
    with suppress(StudyError):
        assert isinstance(read_lock(path), Lock)
