"""The bounds behind the k-neighbour graph of secure aggregation, recomputed in whole numbers.

    python benchmarks/secagg_tails.py [--search] [--every 1]

For each cell of the table (n, corrupt, dropouts -> k, t), and for every number of adverts from (1 - dropouts) n to
n with all corrupt keys still among them:

    both    some dealer's two secrets can be rebuilt: h P[Hyp(|A| - 1, c, k) >= 2t - k - 1]
    cut     a closed set of at most half of the honest: sum_s C(h, s) P[Hyp(|A| - 1, c + s - 1, k) >= t - 1]^s
    fewer   the worst of both + cut if only some of the corrupt are among the adverts (a twentieth at a time)
    stays   a survivor is left without t holders, at |A| = n: (n - D) P[Hyp(n - 1, D, k) >= k - t + 2]
    gone    a dropped dealer is left without t holders:        D P[Hyp(n - 1, D - 1, k) >= k - t + 1]

Hypergeometric terms are exact integers (math.comb), sums too; only the s-th powers are taken at 60 digits. Nothing
of hubbub.secagg is used. The worst |A| is shown. `--search` also looks for the smallest k of three rules: the
table's; the table's with stays + gone <= 2^-20; and that of a session in which a quorum of all agrees on the
survivors (docs/proofs/secagg.md), where corrupt holders alone would have to reach t.
"""

import argparse
import math
from collections.abc import Iterable

from goals import Result, finish, machine
from mpmath import mp, mpf

mp.dps = 60
TABLE = {
    (200, 5, 5): (28, 20),
    (200, 10, 10): (54, 38),
    (200, 20, 10): (77, 59),
    (200, 33, 10): (103, 84),
    (500, 5, 5): (45, 33),
    (500, 10, 10): (85, 61),
    (500, 20, 10): (125, 95),
    (500, 33, 10): (188, 151),
    (1000, 5, 5): (53, 39),
    (1000, 10, 10): (103, 74),
    (1000, 20, 10): (154, 117),
    (1000, 33, 10): (251, 201),
}
SECRET, CORRECT = -50, -20


def ways(x: int, population: int, marked: int, k: int) -> int:
    """Draws of k with at least x marked; each term follows from the last by an exact division."""
    x = max(x, 0, k - (population - marked))
    if x > min(k, marked):
        return 0
    term = total = math.comb(marked, x) * math.comb(population - marked, k - x)
    for hits in range(x, min(k, marked)):
        term = term * (marked - hits) * (k - hits) // ((hits + 1) * (population - marked - k + hits + 1))
        total += term
    return total


def tail(x: int, population: int, marked: int, k: int) -> mpf:
    return mpf(ways(x, population, marked, k)) / mpf(math.comb(population, k))


def log2(value: mpf) -> float:
    return float(mp.log(value, 2)) if value > 0 else -math.inf


def both(adverts: int, c: int, k: int, t: int) -> mpf:
    return (adverts - c) * tail(2 * t - k - 1, adverts - 1, c, k)


def cut(adverts: int, c: int, k: int, t: int, *, enough: float = math.inf) -> mpf:
    total, honest = mpf(0), adverts - c
    for size in range(1, honest // 2 + 1):
        total += math.comb(honest, size) * tail(t - 1, adverts - 1, c + size - 1, k) ** size
        if total > enough:
            break
    return total


def fewer(sessions: list[int], c: int, k: int, t: int) -> mpf:
    """The server may withhold corrupt adverts too; it gains nothing if this is below the worst of both and cut."""
    counts = range(0, c, max(c // 20, 1))
    return max(both(a, less, k, t) + cut(a, less, k, t) for a in (sessions[0], sessions[-1]) for less in counts)


def stays(n: int, dropped: int, k: int, t: int) -> mpf:
    return (n - dropped) * tail(k - t + 2, n - 1, dropped, k)


def gone(n: int, dropped: int, k: int, t: int) -> mpf:
    return dropped * tail(k - t + 1, n - 1, dropped - 1, k)


def largest_correct(n: int, dropped: int, k: int, *, together: bool) -> int:
    goal = mpf(2) ** CORRECT
    for t in range(k + 1, 1, -1):
        first, second = stays(n, dropped, k, t), gone(n, dropped, k, t)
        if (first + second if together else max(first, second)) <= goal:
            return t
    return 0


def smallest(n: int, c: int, dropped: int, *, together: bool, quorum: bool) -> tuple[int, int]:
    """Smallest k by this script's own numbers, at the two ends of the range of adverts."""
    goal = mpf(2) ** SECRET
    for k in range(4, n - dropped - 1):
        t = largest_correct(n, dropped, k, together=together)
        if t and all(
            (quorum or both(adverts, c, k, t) <= goal) and cut(adverts, c, k, t, enough=goal) <= goal
            for adverts in (n - dropped, n)
        ):
            return k, t
    return 0, 0


def worst(values: Iterable[tuple[mpf, int]]) -> tuple[float, int]:
    value, adverts = max(values)
    return log2(value), adverts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="look at every so many-th number of adverts only")
    asked = parser.parse_args()
    line = "{:>5} {:>4} {:>4} {:>4} {:>4}  {:>16} {:>16} {:>8} {:>8} {:>8} {:>9}  {}"
    print(f"log2 of each bound; goals: both <= {SECRET}, cut <= {SECRET}, stays <= {CORRECT}, gone <= {CORRECT}")
    print(
        line.format("n", "c %", "D %", "k", "t", "both at |A|", "cut at |A|", "fewer", "stays", "gone", "together", "")
    )
    secret, correct = [], []
    for (n, percent, drop), (k, t) in TABLE.items():
        c, dropped = n * percent // 100, n * drop // 100
        sessions = sorted({*range(n - dropped, n + 1, asked.every), n})
        first, second = worst((both(a, c, k, t), a) for a in sessions), worst((cut(a, c, k, t), a) for a in sessions)
        third, fourth = stays(n, dropped, k, t), gone(n, dropped, k, t)
        less = fewer(sessions, c, k, t)
        secret.append(max(first[0], second[0]))
        assert log2(less) <= secret[-1], "fewer corrupt among the adverts are worse than all of them"
        correct.append(max(log2(third), log2(fourth)))
        good = secret[-1] <= SECRET and correct[-1] <= CORRECT
        shown = [f"{log2(value):.2f}" for value in (less, third, fourth, third + fourth)]
        print(
            line.format(
                n, percent, drop, k, t, *(f"{v:.2f} at {a}" for v, a in (first, second)), *shown,
                "pass" if good else "miss",
            ),
            flush=True,
        )  # fmt: skip
    if asked.search:
        search()
    cells = f"worst of {len(TABLE)} cells of the table of neighbours"
    finish(
        [
            Result(
                f"{cells}: a secret is rebuilt, or the honest are cut apart, log2", secret, f"<= {SECRET}", by="max"
            ),
            Result(f"{cells}: a session fails though it should not, log2", correct, f"<= {CORRECT}", by="max"),
        ],
        machine("mpmath"),
    )


def search() -> None:
    print("\nsmallest (k, t): the table's rule; stays + gone <= 2^-20; one quorum of all on the survivors")
    for (n, percent, drop), cell in TABLE.items():
        c, dropped = n * percent // 100, n * drop // 100
        rules = [(False, False), (True, False), (True, True)]
        found = [smallest(n, c, dropped, together=together, quorum=quorum) for together, quorum in rules]
        print(f"{n:>5} {percent:>3} {drop:>3}  {cell}", *found, "pass" if found[0] == cell else "MISS", flush=True)


if __name__ == "__main__":
    main()
