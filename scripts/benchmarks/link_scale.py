"""Record linkage of large catalogues: time and memory of a million records against a million.

    python scripts/benchmarks/link_scale.py --size 1000000 --kind auto [--output FILE]
    python scripts/benchmarks/link_scale.py --size 100000 --dim 128 --kind exact

Vectors are grown from synthetic clusters, as in `search_speed.py`. Half of the records of the first catalogue are
views (a vector plus noise) of records of the second one, the others views of strangers from the same clusters. Two
steps of `hf-vse link` are measured: the best candidates, and greedy one-to-one links above the threshold of a
false-accept rate. Memory is what the process takes beyond the two arrays of vectors.

    recall, precision    of the links at that threshold; strangers_linked is to be compared with the rate
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import peak_bytes_of, record
from search_speed import grown, unit

from hf_vse.evaluation.environment import environment
from hf_vse.link.candidates import find_candidates
from hf_vse.link.matching import acceptable_candidates, one_to_one
from hf_vse.link.run import LISTED
from hf_vse.link.threshold import threshold_for_false_accepts

CLUSTERS = 500
BLOCK = 50_000


def catalogues(size: int, dim: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of both catalogues, (size, dim) each, and the row of the match of each record of the first, or -1."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, dim))
    seeds = unit(centres[rng.integers(CLUSTERS, size=2000)] + rng.normal(size=(2000, dim)))
    second, first = grown(seeds, size, rng), grown(seeds, size, rng)
    truth = np.full(size, -1)
    matched = rng.permutation(size)[: size // 2]
    truth[matched] = rng.permutation(size)[: size // 2]
    first[matched] = second[truth[matched]]
    return views_of(first, noise, rng), second, truth


def views_of(things: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The unit vectors (things, dim), changed in place: each plus a random vector of the length `noise`."""
    for start in range(0, len(things), BLOCK):
        rows = things[start : start + BLOCK]
        rows[:] = unit(rows + rng.standard_normal(rows.shape, dtype=np.float32) * (noise / rows.shape[1] ** 0.5))
    return things


def timed(step: Any) -> tuple[Any, dict[str, float]]:
    """What a step returns, its seconds on the clock and on all cores, and its peak of memory."""
    result = []
    clock, cores = time.perf_counter(), time.process_time()
    peak = peak_bytes_of(lambda: result.append(step()))
    taken = {"s": round(time.perf_counter() - clock, 1), "cpu_s": round(time.process_time() - cores, 1)}
    return result[0], taken | {"peak_mib": round(peak / 2**20)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    first, second, truth = catalogues(arguments.size, arguments.dim, arguments.noise)
    found, of_candidates = timed(lambda: find_candidates(first, second, LISTED, kind=arguments.kind, progress=True))
    threshold = threshold_for_false_accepts(found.scores[:, 1], arguments.rate)
    more = acceptable_candidates(first, second, LISTED, threshold)
    links, of_links = timed(lambda: one_to_one(found, len(second), threshold, more))
    linked, right = links >= 0, (links == truth) & (truth >= 0)
    return {
        "records": [len(first), len(second)],
        "dim": arguments.dim,
        "kind": arguments.kind,
        "vectors_mib": round((first.nbytes + second.nbytes) / 2**20),
        "candidates": of_candidates,
        "one_to_one": of_links,
        "threshold": round(threshold, 4),
        "rate": arguments.rate,
        "recall": round(float(right.sum() / (truth >= 0).sum()), 4),
        "precision": round(float(right.sum() / max(1, linked.sum())), 4),
        "strangers_linked": round(float(linked[truth < 0].mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, help="records of each catalogue [1000000]")
    parser.add_argument("--dim", type=int, default=512, help="[512]")
    parser.add_argument("--kind", default="auto", help="how candidates are found, as in `hf-vse link` [auto]")
    parser.add_argument("--noise", type=float, default=0.5, help="length of what a view adds to a vector [0.5]")
    parser.add_argument("--rate", type=float, default=0.01, help="false-accept rate [0.01]")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    facts = {"command": " ".join(sys.argv), "environment": environment()}
    record(measure(arguments) | facts, arguments.output)


if __name__ == "__main__":
    main()
