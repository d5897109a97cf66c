"""Exact discrete Gaussian noise: hubbub against OpenDP, interleaved on one core.

    python benchmarks/noise.py [--sigma 3057090] [--count 1000000] [--repeats 7]

Both draw the same distribution exactly, from the operating system's entropy, and return it to Python.
OpenDP is asked for a tenth of the draws (its time is proportional to them) and noises a vector of
zeros, which is how its Python interface hands out noise. numpy's float64 normal stands beside them
as a measure of the machine: it is neither exact nor private.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from hubbub.mechanism.discrete_gaussian import build_strips, discrete_gaussian
from hubbub.randomness import OperatingSystemRandomness


def opendp_sampler(sigma: int) -> Callable[[int], object] | None:
    try:
        import opendp.prelude as dp
    except ImportError:
        return None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    measurement = dp.m.make_gaussian(*space, scale=float(sigma))
    return lambda count: measurement([0] * count)


def seconds_per_million(draw: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    draw(count)
    return (time.perf_counter() - start) * 1e6 / count


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} absent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sigma", type=int, default=3057090)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    randomness, floats = OperatingSystemRandomness(), np.random.default_rng()
    samplers = {
        "hubbub": (lambda count: discrete_gaussian(asked.sigma, count, randomness), asked.count),
        "numpy float64 normal": (lambda count: floats.normal(0, asked.sigma, count), asked.count),
    }
    if opendp := opendp_sampler(asked.sigma):
        samplers["OpenDP"] = (opendp, max(asked.count // 10, 1))

    start = time.perf_counter()
    build_strips(asked.sigma)
    table_seconds = time.perf_counter() - start
    times = {name: [] for name in samplers}
    for _ in range(asked.repeats):
        for name, (draw, count) in samplers.items():
            times[name].append(seconds_per_million(draw, count))

    packages = [version(package) for package in ("hubbub", "opendp", "numpy", "cryptography")]
    print(f"Python {platform.python_version()}, {', '.join(packages)}, {platform.machine()}, one core")
    print(f"sigma {asked.sigma}, {asked.repeats} interleaved repeats, seconds per million draws")
    print(f"table, once per sigma: {table_seconds:.3f} s")
    for name, seconds in times.items():
        print(f"{name:22} median {statistics.median(seconds):8.4f}", end="")
        print(f"   range {min(seconds):.4f} to {max(seconds):.4f}")
    if opendp:
        ratio = statistics.median(times["OpenDP"]) / statistics.median(times["hubbub"])
        print(f"hubbub is {ratio:.0f} times as fast as OpenDP")
    else:
        print("OpenDP is absent; to compare, give it an environment of its own:")
        print("  python -m venv bench && bench/bin/pip install . opendp && bench/bin/python benchmarks/noise.py")


if __name__ == "__main__":
    main()
