"""Recognition with one example each, at scale: time and memory for all pairs of 100,000 images and for distractors.

    python scripts/benchmarks/identification_scale.py --size 100000 [--output FILE]

Vectors are synthetic: things have centres, their five images are views of it (the centre plus noise), and there are as
many distractors, single views of other things. Measured is what `hf-vse evaluate --identify` computes from vectors:
verification over all pairs, one-shot identification in five rounds, and the open set. Memory is what it takes beyond
the vectors, beside the bytes that all scores would take at once.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from link_scale import timed, views_of
from measuring import record
from search_speed import unit

from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.identification import identification_metrics

VIEWS = 5


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rng, size, dim = np.random.default_rng(0), arguments.size, arguments.dim
    labels = np.repeat(np.arange(size // VIEWS), VIEWS)
    centres = unit(rng.standard_normal((size // VIEWS, dim), dtype=np.float32))
    embeds = views_of(centres[labels], arguments.noise, rng)
    distractors = views_of(unit(rng.standard_normal((size, dim), dtype=np.float32)), arguments.noise, rng)
    identification_metrics(embeds[: 20 * VIEWS], labels[: 20 * VIEWS])  # so that all is imported
    metrics, taken = timed(lambda: identification_metrics(embeds, labels, distractors=distractors, progress=True))
    return {
        "images": len(embeds),
        "distractors": len(distractors),
        "dim": dim,
        "noise": arguments.noise,
        "vectors_mib": round((embeds.nbytes + distractors.nbytes) / 2**20),
        "all_scores_mib": round(4 * len(embeds) * (len(embeds) + len(distractors)) / 2**20),
        "metrics": metrics,
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
