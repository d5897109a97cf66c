"""What docs/how-to/deploy says can be typed, started and parsed."""

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import msgspec
import pytest
import yaml

from hubbub.cli.arguments import parse
from hubbub.governance import read_policy
from hubbub.participant.folder import SiteFolder, SiteSettings

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
PAGE = (HOW_TO / "deploy.md").read_text()
FOLDER = HOW_TO / "deploy"
UNITS = {"coordinate": "hubbub-coordinator.service", "join": "hubbub-participant.service"}


def unit(name):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string((FOLDER / name).read_text())
    return parser


def typed(text):
    """Arguments of every `hubbub` that stands in a fenced block."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in [] if language else block.splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:  # HUBBUB_DATA=...
                words.pop(0)
            if words and words[0] == "hubbub":
                yield tuple(words[1:])


COMMANDS = list(typed(PAGE))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_of_the_page_is_one(words):
    command, options = parse(list(words))
    assert callable(command)
    assert options is not None


def test_the_page_has_every_command_that_a_deployment_needs():
    said = {words[0] for words in COMMANDS}
    needed = {"coordinate", "join", "recover", "submit", "status", "fetch", "release", "verify", "enrol", "admit"}
    assert needed <= said


@pytest.mark.parametrize(("command", "name"), UNITS.items())
def test_a_unit_starts_its_command_as_a_user_of_its_own_that_dumps_no_core(command, name):
    service = unit(name)["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program.startswith("/")
    assert words[0] == command
    parse(words)
    assert service["User"] == "hubbub"
    assert (service["LimitCORE"], service["MemorySwapMax"], service["UMask"]) == ("0", "0", "0077")
    hardened = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": ""}
    assert hardened.items() <= dict(service).items()


def test_a_participants_unit_lets_study_code_listen_nowhere_and_dial_one_host():
    service = unit(UNITS["join"])["Service"]
    assert (service["SocketBindDeny"], service["IPAddressDeny"]) == ("any", "any")
    assert service["IPAddressAllow"].split() == ["192.0.2.10", "localhost"]


def test_both_services_of_the_compose_file_start_their_command_without_privileges():
    services = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]
    assert [service["command"][1] for service in services.values()] == list(UNITS)
    for service in services.values():
        assert service["command"][0] == "hubbub"
        parse(service["command"][1:])
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["ulimits"] == {"core": 0}
        assert not service["user"].startswith("0")
    assert [name for name, service in services.items() if "ports" in service] == ["coordinator"]


def test_the_site_file_of_the_page_is_one_and_each_key_is_documented_with_its_default(tmp_path):
    (site,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "site.toml").write_text(site)
    assert SiteFolder(tmp_path).settings.organisations == 3
    assert read_policy(tmp_path / "site.toml").minimum == 4
    assert set(tomllib.loads(site)["site"]) == set(SiteSettings.__struct_fields__)
    documented = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (.*?) \|$", PAGE, re.MULTILINE))
    assert documented == {
        field.name: "required" if field.required else f"`{msgspec.json.encode(field.default).decode()}`"
        for field in msgspec.structs.fields(SiteSettings)
    }
