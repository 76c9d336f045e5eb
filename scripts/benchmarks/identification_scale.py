"""Recognition with one example each, at scale: time and memory for all pairs of 100,000 images and for distractors.

    python scripts/benchmarks/identification_scale.py --size 100000 [--output FILE]

Vectors are synthetic: things have centres, their five images are views of it (the centre plus noise), and there are as
many distractors, single views of other things. Measured is what `hf-vse evaluate --identify` computes from vectors:
verification over all pairs, one-shot identification in five rounds, and the open set. Memory is what it takes beyond
the vectors, beside the bytes that all scores would take at once.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import peak_bytes_of, record
from search_speed import unit

from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.identification import identification_metrics

VIEWS = 5
BLOCK = 50_000


def views_of(things: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    for start in range(0, len(things), BLOCK):
        rows = things[start : start + BLOCK]
        rows[:] = unit(rows + rng.standard_normal(rows.shape, dtype=np.float32) * (noise / rows.shape[1] ** 0.5))
    return things


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rng, size, dim = np.random.default_rng(0), arguments.size, arguments.dim
    labels = np.repeat(np.arange(size // VIEWS), VIEWS)
    centres = unit(rng.standard_normal((size // VIEWS, dim), dtype=np.float32))
    embeds = views_of(centres[labels], arguments.noise, rng)
    distractors = views_of(unit(rng.standard_normal((size, dim), dtype=np.float32)), arguments.noise, rng)
    identification_metrics(embeds[: 20 * VIEWS], labels[: 20 * VIEWS])  # so that all is imported
    found: list[dict[str, Any]] = []
    clock, cores = time.perf_counter(), time.process_time()
    peak = peak_bytes_of(
        lambda: found.append(identification_metrics(embeds, labels, distractors=distractors, progress=True))
    )
    taken = {"s": round(time.perf_counter() - clock, 1), "cpu_s": round(time.process_time() - cores, 1)}
    return {
        "images": len(embeds),
        "distractors": len(distractors),
        "dim": dim,
        "noise": arguments.noise,
        "vectors_mib": round((embeds.nbytes + distractors.nbytes) / 2**20),
        "all_scores_mib": round(4 * len(embeds) * (len(embeds) + len(distractors)) / 2**20),
        "peak_mib": round(peak / 2**20),
        "metrics": found[0],
    } | taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000, help="images, and distractors [100000]")
    parser.add_argument("--dim", type=int, default=512, help="[512]")
    parser.add_argument("--noise", type=float, default=2.0, help="length of what a view adds to a centre [2]")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    facts = {"command": " ".join(sys.argv), "environment": environment()}
    record(measure(arguments) | facts, arguments.output)


if __name__ == "__main__":
    main()
