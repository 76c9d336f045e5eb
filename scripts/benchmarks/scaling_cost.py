"""Cost of training on many pairs on 1, 8 and 64 GPUs: calculated from recorded numbers, nothing is run.

    python scripts/benchmarks/scaling_cost.py --output scripts/benchmarks/results/scaling_cost.json

The parts of a step with b pairs on each of P GPUs, D-dimensional float32 embeddings and W trainable weights:

- towers: b x (FLOP per pair) / (FLOP per second of a GPU in training), from `train_step.py`;
- loss, streamed: 8 b (P b) D FLOP at the speed of a matrix product;
- gradients: all-reduce of 4 W bytes; each GPU sends 2 (P - 1) / P of them (ring);
- texts: gathered twice and their gradient reduced once; each GPU sends about (P - 1) b D 4 bytes three times.

Assumes no overlap, and data loading that keeps up. If no step was recorded on a GPU, its speed is the specified matrix
product rate times an assumed share, and the record says so.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from measuring import record

RESULTS = Path(__file__).parent / "results"
# One H200: specified bfloat16 matrix product rate, not measured here. The share of it that a training step reaches is
# assumed; it is low for convolutions, which are limited by memory bandwidth.
MATMUL_RATE = 790e12
ASSUMED_SHARE = {"resnet50": 0.1, "resnet152": 0.1, "vit_b_16": 0.35}
# Bytes per second that one GPU sends: NVLink within a machine of 8; one 400 Gbit/s adapter per GPU between machines.
WITHIN_MACHINE, BETWEEN_MACHINES, GPUS_OF_MACHINE = 450e9, 50e9, 8
PAIRS = {"COCO (566,435)": 566_435, "10 M": 10_000_000, "1 B": 1_000_000_000}
GPUS = (1, 8, 64)
LOCAL_BATCH, DIM = 512, 1024


class Tower(NamedTuple):
    """The cost of a training step with one image tower."""

    name: str
    gflop_of_a_pair: float
    weights: int
    operations_per_second: float
    measured: bool


def towers() -> list[Tower]:
    """Read from the record of a GPU, or, if there is none, from the counted FLOP in the record of a CPU."""
    gpu, cpu = RESULTS / "train_step_gpu.json", RESULTS / "train_step.json"
    measured = gpu.is_file()
    steps = json.loads((gpu if measured else cpu).read_text(encoding="utf-8"))["steps"]
    found = []
    for step in (each for each in steps if each["way"] == "plain"):
        operations = step["gflop_of_a_pair"] * 1e9
        speed = step["images_per_second"] * operations if measured else MATMUL_RATE * ASSUMED_SHARE[step["tower"]]
        found.append(Tower(step["tower"], step["gflop_of_a_pair"], step["weights"], speed, measured))
    return found


def seconds_of_step(tower: Tower, gpus: int) -> dict[str, float]:
    """Seconds of each part of a step with `LOCAL_BATCH` pairs per GPU."""
    network = WITHIN_MACHINE if gpus <= GPUS_OF_MACHINE else BETWEEN_MACHINES
    embeddings = (gpus - 1) * LOCAL_BATCH * DIM * 4
    return {
        "towers": LOCAL_BATCH * tower.gflop_of_a_pair * 1e9 / tower.operations_per_second,
        "loss": 8 * LOCAL_BATCH * (gpus * LOCAL_BATCH) * DIM / MATMUL_RATE,
        "gradients": 2 * (gpus - 1) / gpus * 4 * tower.weights / network,
        "texts": 3 * embeddings / network,
    }


def cost(tower: Tower) -> list[dict]:
    rows = []
    for gpus in GPUS:
        parts = seconds_of_step(tower, gpus)
        step = sum(parts.values())
        hours = {name: pairs / (gpus * LOCAL_BATCH) * step / 3600 for name, pairs in PAIRS.items()}
        rows.append(
            {
                "tower": tower.name,
                "gpus": gpus,
                "global_batch": gpus * LOCAL_BATCH,
                "milliseconds_of_step": {name: round(1e3 * value, 3) for name, value in parts.items()},
                "efficiency": round(parts["towers"] / step, 3),
                "hours_of_a_pass": {name: float(f"{value:.3g}") for name, value in hours.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    found = towers()
    result = {
        "what": "hours of one pass over the pairs, computed; nothing overlaps",
        "speed_of_a_gpu": "measured" if found[0].measured else "assumed share of the stated rate of matrix products",
        "matmul_tflops": MATMUL_RATE / 1e12,
        "assumed_share": None if found[0].measured else ASSUMED_SHARE,
        "gigabytes_per_second": {"within a machine": WITHIN_MACHINE / 1e9, "between": BETWEEN_MACHINES / 1e9},
        "pairs_on_each_gpu": LOCAL_BATCH,
        "costs": [row for tower in found for row in cost(tower)],
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
