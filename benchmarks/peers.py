"""Environments of the others that hubbub is measured beside, made at the first use in build/peers or HUBBUB_PEERS.

    python benchmarks/peers.py [opacus] [opendp] [pfl] [flare] [flower]

A peer gets its own versions of what it needs and runs on the torch and numpy of this environment, which it
sees through a path file: what it installed itself comes first. None of it is ever a dependency of hubbub.
"""

import fcntl
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("HUBBUB_PEERS", Path(__file__).resolve().parent.parent / "build" / "peers"))
OWN = sysconfig.get_path("purelib")


@dataclass(frozen=True)
class Peer:
    """What pip installs, and which packages of this environment have to be the same in both."""

    packages: tuple[str, ...]
    shared: tuple[str, ...] = ("torch", "numpy")
    without_dependencies: tuple[str, ...] = ()
    """Packages whose pins cannot all be met; what they need otherwise stands in `packages`."""


FLOWER_NEEDS = (
    "certifi", "grpcio>=1.70,<2", "grpcio-health-checking>=1.70,<2", "protobuf>=5.28,<7", "cryptography>=50,<51",
    "pycryptodome>=3.18,<4", "iterators>=0.0.2,<0.0.3", "typer>=0.13,<0.21", "uv>=0.13.5,<0.14", "tomli>=2.0.1,<3",
    "tomli-w>=1,<2", "pathspec>=1.0.4,<2", "prompt-toolkit>=3.0.52,<4", "rich>=14,<15", "pyyaml>=6.0.2,<7",
    "requests>=2.33,<3", "httpx>=0.28.1,<1", "click>=8,<9", "packaging>=24,<26", "sqlalchemy[asyncio]>=2.0.45,<3",
    "alembic>=1.18.1,<2", "uvicorn[standard]>=0.49,<0.50", "fastapi>=0.138,<0.139", "starlette>=1.3.1,<1.4",
)  # fmt: skip
PEERS = {
    "opacus": Peer(("opacus==1.6.0",)),
    "opendp": Peer(("opendp==0.16.0",), shared=("numpy",)),
    "pfl": Peer(("pfl==0.6.0", "dp-accounting==0.5.1")),
    "flower": Peer(
        (*FLOWER_NEEDS, "ray==2.55.1"),
        shared=("torch", "numpy", "cryptography"),
        without_dependencies=("flwr==1.42.0",),
    ),
    "flare": Peer(("nvflare==2.9.0",), shared=("numpy", "cryptography", "grpcio", "protobuf")),
}


def python(name: str) -> Path:
    """A peer's interpreter; its environment is made first if it is absent or of other versions.

    Whoever asks while another process makes it waits until that one is done.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(PEERS[name], FOLDER / name)


def _made(peer: Peer, home: Path) -> Path:
    shared = [f"{package}=={importlib.metadata.version(package)}" for package in peer.shared]
    wanted = "\n".join([*peer.packages, *peer.without_dependencies, *shared])
    done = home / "installed"
    library = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    beside = library / "beside.pth"
    if done.exists() and done.read_text() == wanted and beside.read_text() != OWN + "\n":
        beside.write_text(OWN + "\n")  # another checkout's: the versions that both see are the same
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {', '.join([*peer.packages[:3], *peer.without_dependencies])} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        beside.write_text(OWN + "\n")
        _install(home, *peer.packages, *shared)
        if peer.without_dependencies:
            _install(home, "--no-deps", *peer.without_dependencies)
        done.write_text(wanted)
    return home / "bin" / "python"


def _install(home: Path, *packages: str) -> None:
    """Let pip work in silence: that a peer's pins are not hubbub's is the point."""
    command = [home / "bin" / "pip", "install", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def rerun(name: str, *arguments: str) -> int:
    """Run the script that asks once more, on one core, in a peer's environment with hubbub on its path."""
    import hubbub  # a peer's environment may import this file too

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    source = str(Path(hubbub.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([python(name), sys.argv[0], *arguments], env=environment, check=False).returncode


def version(name: str, *packages: str) -> str:
    """Versions of packages as a peer's environment sees them."""
    code = "import importlib.metadata as m, sys; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    done = subprocess.run([python(name), "-c", code, *packages], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    for asked in sys.argv[1:] or PEERS:
        print(asked, python(asked))
