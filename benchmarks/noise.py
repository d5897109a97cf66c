"""Exact discrete Gaussian noise: hubbub against OpenDP, interleaved on one core.

    python benchmarks/noise.py [--sigma 3057090] [--count 1000000] [--repeats 7] [--without-opendp]

Both draw the same distribution exactly, from the operating system's entropy, and return it to Python.
OpenDP is asked for a tenth of the draws (its time is proportional to them) and noises a vector of
zeros, which is how its Python interface hands out noise. numpy's float64 normal stands beside them
as a measure of the machine: it is neither exact nor private. OpenDP gets an environment of its own.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import peers
from goals import Result, finish, machine

from hubbub.mechanism.discrete_gaussian import build_strips, discrete_gaussian
from hubbub.randomness import OperatingSystemRandomness


def opendp_sampler(sigma: int) -> Callable[[int], object]:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    measurement = dp.m.make_gaussian(*space, scale=float(sigma))
    return lambda count: measurement([0] * count)


def seconds_per_million(draw: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    draw(count)
    return (time.perf_counter() - start) * 1e6 / count


def measure(asked: argparse.Namespace) -> Mapping[str, Sequence[float]]:
    """Seconds per million draws, by turns."""
    randomness, floats = OperatingSystemRandomness(), np.random.default_rng()
    samplers = {
        "hubbub": (lambda count: discrete_gaussian(asked.sigma, count, randomness), asked.count),
        "numpy float64 normal": (lambda count: floats.normal(0, asked.sigma, count), asked.count),
    }
    if asked.beside_opendp:
        samplers["OpenDP"] = (opendp_sampler(asked.sigma), max(asked.count // 10, 1))
    start = time.perf_counter()
    build_strips(asked.sigma)
    print(f"sigma {asked.sigma}; its table, made once: {time.perf_counter() - start:.3f} s", flush=True)
    times = {name: [] for name in samplers}
    for _ in range(asked.repeats):
        for name, (draw, count) in samplers.items():
            times[name].append(seconds_per_million(draw, count))
    return times


def report(times: Mapping[str, Sequence[float]]) -> None:
    named = "exact noise, a million integers"
    results = [Result(f"{named}: hubbub", times["hubbub"], "<= 0.1 s", is_headline=True)]
    results.append(
        Result("the same number of numpy's floats, neither exact nor private", times["numpy float64 normal"], "s")
    )
    if "OpenDP" in times:
        ratios = [one / other for one, other in zip(times["OpenDP"], times["hubbub"], strict=True)]
        results.append(Result(f"{named}: OpenDP", times["OpenDP"], "s"))
        results.append(Result(f"{named}: OpenDP / hubbub", ratios, ">= 20 x", is_headline=True))
    finish(results, machine("numpy", "cryptography", *(["opendp"] if "OpenDP" in times else [])), "one core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sigma", type=int, default=3057090)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--without-opendp", action="store_true")
    parser.add_argument("--beside-opendp", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.without_opendp or asked.beside_opendp:
        report(measure(asked))
    settings = [f"--{name}={getattr(asked, name)}" for name in ("sigma", "count", "repeats")]
    raise SystemExit(peers.rerun("opendp", "--beside-opendp", *settings))


if __name__ == "__main__":
    main()
