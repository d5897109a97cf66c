"""A coordinator's keys: made once, its owner's alone, refused when damaged."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from hubbub.engine.home import open_authority, open_coordinator_key, open_log, salts, server_credentials
from hubbub.errors import InputError
from hubbub.governance import Federation
from hubbub.governance.certificates import read_certificate

NOW = 1_790_000_000
DAY = 86_400


def test_the_coordinators_key_is_made_once_and_its_owners_alone(tmp_path):
    key = open_coordinator_key(tmp_path / "home")
    assert len(key.public) == 32
    assert open_coordinator_key(tmp_path / "home").public == key.public
    assert open_coordinator_key(tmp_path / "other").public != key.public
    assert (tmp_path / "home" / "coordinator.key").stat().st_mode & 0o777 == 0o600


def test_salts_that_many_make_at_once_are_all_kept(tmp_path):
    names = [f"site-{number}" for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda name: salts(tmp_path, [name])[name], names))
    assert [salts(tmp_path, names)[name] for name in names] == made


@pytest.mark.parametrize("content", ["", "00", "zz" * 32, "00" * 33])
def test_a_damaged_coordinators_key_is_refused_and_not_quoted(tmp_path, content):
    open_coordinator_key(tmp_path)
    (tmp_path / "coordinator.key").write_text(content)
    with pytest.raises(InputError, match="must hold the coordinator's key in hexadecimal, found something else"):
        open_coordinator_key(tmp_path)


def test_an_authority_is_made_once(tmp_path):
    first = open_authority(tmp_path, now=NOW)
    assert open_authority(tmp_path, now=NOW + DAY).certificate == first.certificate
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in (tmp_path / "ca.crt").read_bytes()


def test_an_authority_whose_certificate_was_lost_goes_on_with_its_key(tmp_path):
    first = open_authority(tmp_path, now=NOW).certificate
    (tmp_path / "ca.crt").unlink()
    ends = server_credentials(tmp_path, ["hub.example.org"], now=NOW + DAY)
    assert read_certificate(ends.certificate, first).name == "coordinator"


@pytest.mark.parametrize(("name", "open_it"), [("ca.key", open_authority), ("coordinator.key", open_coordinator_key)])
def test_a_secret_that_others_may_read_is_refused(tmp_path, name, open_it):
    options = {"now": NOW} if open_it is open_authority else {}
    open_it(tmp_path, **options)
    (tmp_path / name).chmod(0o640)
    with pytest.raises(InputError, match="must be readable by its owner only, found mode 640; nothing signed"):
        open_it(tmp_path, **options)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_damaged_authority_is_refused(tmp_path, name):
    open_authority(tmp_path, now=NOW)
    (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match="authority, must be a private key of P-256 and its certificate, found"):
        open_authority(tmp_path, now=NOW)


def test_a_home_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InputError, match=r"must be a file that can be read, .*; nothing signed"):
        open_coordinator_key(tmp_path / "home")


def test_nobody_is_at_the_end_of_any_connection_before_a_founding_is_asked_for(tmp_path):
    log = open_log(tmp_path)
    assert log.fold(Federation).holder_of_transport("00" * 32) is None
    log.close()
