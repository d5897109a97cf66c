"""What a participant's own directory must hold before its process starts."""

import subprocess
import sys

import pytest

from hubbub.errors import InputError
from hubbub.participant.folder import SiteFolder

SITE = '[site]\nkey = "node.key"\nmembership = "node.membership"\ndata = "records"\n[policy]\nepsilon = 2.0\n'


@pytest.fixture
def site(tmp_path):
    """A directory that is complete but for keys."""
    (tmp_path / "records").mkdir()
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path


def test_a_complete_folder_is_let_through_and_its_salt_made_once(site):
    SiteFolder(site).check()
    salt = (site / "salt").read_bytes()
    SiteFolder(site).check()
    assert (site / "salt").read_bytes() == salt


def test_a_salt_that_no_disk_took_is_made_at_the_next_start(site):
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from hubbub.participant.folder import SiteFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "SiteFolder(Path(sys.argv[1])).salt()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(site)], capture_output=True, check=False)
    assert b"File too large" in done.stderr
    assert len(SiteFolder(site).salt()) == 32


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epsilon = 2.0", "epsilon = -2.0", "site.toml, must be a site file, found Expected `float` > 0"),
        ("[policy]", "[attestation]\nrequired = 3\n[policy]", "found Expected `bool`, got `int`"),
        ("[policy]", "[atestation]\n[policy]", "unknown field `atestation`"),
        ("[policy]\nepsilon = 2.0\n", "", r"found no table \[policy\]"),
        ('"records"', '"recrods"', "recrods, must be the folder of this site's records, found none; nothing started"),
    ],
)
def test_what_a_run_would_find_wrong_is_found_at_the_start(site, old, new, words):
    (site / "site.toml").write_text(SITE.replace(old, new))
    with pytest.raises(InputError, match=words):
        SiteFolder(site).check()


@pytest.mark.parametrize("text", ["", "[", "[policy]", "[site]\nkey = 3", "site = 3"])
def test_a_folder_without_its_facts_is_none(site, text):
    (site / "site.toml").write_text(text)
    with pytest.raises(InputError, match="must be a site file, found") as caught:
        SiteFolder(site)
    assert caught.value.hint.startswith("[site] knows key, membership, data")


def test_a_damaged_salt_is_found_at_the_start(site):
    (site / "salt").write_bytes(b"short")
    with pytest.raises(InputError, match="must hold 32 bytes, found 5"):
        SiteFolder(site).check()
