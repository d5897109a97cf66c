"""What NVIDIA FLARE's processes do to the wire when they die, and what FLARE refuses to run."""

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import closing, suppress

import pytest

pytestmark = pytest.mark.slow

FOREIGN = """
import json, sys, time
from pathlib import Path
from nvflare.fuel.flare_api.flare_api import new_secure_session
from hubbub.engine.flare.kits import write_job

kit, user, folder, kind = sys.argv[1:]
job = write_job(Path(folder), "site-2")
if kind == "class":
    path = job / "site-2" / "config" / "config_fed_client.json"
    content = json.loads(path.read_text())
    content["executors"][0]["executor"]["path"] = "nvflare.app_common.np.np_trainer.NPTrainer"
    path.write_text(json.dumps(content))
if kind == "code":
    (job / "site-2" / "custom").mkdir()
    (job / "site-2" / "custom" / "own.py").write_text("print('code of the submitter')")
session = new_secure_session(user, kit)
try:
    number = session.submit_job(str(job))
    end = time.monotonic() + 60
    while time.monotonic() < end and not session.get_job_status(number).startswith("FINISHED"):
        time.sleep(0.5)
    print("STATUS", session.get_job_status(number))
finally:
    session.close()
"""


@pytest.fixture
def echo(flare):
    """Answer at the coordinator's port whatever comes, as long as the test runs."""
    listener = socket.create_server(("127.0.0.1", flare.coordinator))

    def answer(local):
        with local, suppress(OSError):
            while data := local.recv(1 << 16):
                local.sendall(data)

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield flare
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def passes(port):
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)) as local:
        local.settimeout(2)
        local.sendall(b"there?")
        return local.recv(16) == b"there?"
    return False


def seconds_until_it_passes(port, limit):
    start = time.monotonic()
    while not passes(port):
        assert time.monotonic() - start < limit
        time.sleep(0.05)
    return time.monotonic() - start


def settled(system, seconds=8.0):
    """Wait until each site has had the same two jobs for a while: one that carries and one that waits."""
    end, since, last = time.monotonic() + 120, time.monotonic(), {}
    while time.monotonic() < since + seconds:
        assert time.monotonic() < end
        time.sleep(0.2)
        now = {site: system.jobs(site) for site in system.ports}
        if now != last or any(len(jobs) != 2 for jobs in now.values()):
            since, last = time.monotonic(), now
    return last


@pytest.mark.parametrize("name", ["site-1", "localhost"])
def test_a_killed_job_is_replaced_within_five_seconds(echo, name):
    settled(echo)
    for process in echo.jobs(name)[:1]:
        os.kill(process, signal.SIGKILL)
    for site in echo.ports:
        seconds_until_it_passes(echo.ports[site], 5)


def test_a_restarted_server_gets_its_jobs_back(echo):
    echo.wait("site-1")
    for process in [*echo.jobs("localhost"), echo.processes["localhost"].pid]:
        os.kill(process, signal.SIGKILL)
    echo.processes["localhost"].wait()
    echo.start("localhost")
    for site in echo.ports:
        seconds_until_it_passes(echo.ports[site], 120)


def test_a_restarted_client_gets_its_jobs_back(echo):
    echo.wait("site-2")
    for process in [*echo.jobs("site-2"), echo.processes["site-2"].pid]:
        os.kill(process, signal.SIGKILL)
    echo.processes["site-2"].wait()
    assert not passes(echo.ports["site-2"])
    echo.start("site-2")
    seconds_until_it_passes(echo.ports["site-2"], 120)


def test_a_restarted_keeper_submits_nothing_that_runs_already(echo):
    before = settled(echo)
    echo.processes["keeper"].kill()
    echo.processes["keeper"].wait()
    echo.keep()
    time.sleep(8)  # it has looked a dozen times by then
    assert {site: echo.jobs(site) for site in echo.ports} == before


@pytest.mark.parametrize("kind", ["class", "code"])
def test_a_job_with_a_class_or_code_of_the_submitters_does_not_run(flare, tmp_path, kind):
    flare.wait("site-2")
    words = [flare.kit("operator@hub.test"), "operator@hub.test", tmp_path, kind]
    done = subprocess.run(
        [flare.python, "-c", FOREIGN, *map(str, words)],
        env=flare._environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "COMPLETED" not in done.stdout
    output = (flare.folder / "site-2.out").read_text() + (flare.folder / "localhost.out").read_text()
    assert "code of the submitter" not in output
    assert "not in allow_list" in output if kind == "class" else "BYOC" in done.stdout + done.stderr + output
