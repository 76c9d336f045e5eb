"""How long training on many pairs takes to begin, and how much memory: from the recipe to the first step.

    python scripts/benchmarks/large_training.py FOLDER --pairs 10000000 [--output FILE]

Two data sets are made in FOLDER, which must be new: one has five captions in each row, the other one caption in each
row and a number of the image, so that rows of one image have to be found. Features of 16 numbers stand for the images.
Each start runs in a process of its own that has imported everything. It reads the data, trains the vocabulary, looks
for captions that are equal or too long, and ends when the first step would begin.
"""

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, List, Value
from measuring import record, status_bytes

from hf_vse.evaluation.environment import environment
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from hf_vse.training.trainer import VSETrainer

CAPTIONS, DIM, WORDS, HELD_OUT = 5, 16, 2000, 1000
RECIPE = {
    "text_config": {"word_dim": 32, "hidden_size": 32},
    "projection_dim": 32,
    "per_device_train_batch_size": 128,
    "max_steps": 1,
    "near_duplicates": "none",
}
LAYOUTS = {"five captions in a row": "five", "a row for each caption": "one"}


class Begun(Exception):
    """The first step would begin."""


def captions_of(pairs: int, rng: np.random.Generator) -> pa.Array:
    """Sentences of eight words, of which the most are different."""
    words = pa.array([f"word{number}" for number in range(WORDS)])
    chosen = [words.take(pa.array(np.minimum(rng.zipf(1.2, pairs), WORDS) - 1)) for _ in range(6)]
    return pc.binary_join_element_wise(pa.scalar("a"), chosen[0], pa.scalar("by the"), *chosen[1:], pa.scalar(" "))


def rows_of(pairs: int, rng: np.random.Generator, layout: str) -> Dataset:
    images, captions = pairs // CAPTIONS, captions_of(pairs, rng)
    numbers = np.arange(images) if layout == "five" else np.repeat(np.arange(images), CAPTIONS)
    values = rng.standard_normal((images, DIM), np.float32)
    if layout == "one":
        values = np.repeat(values, CAPTIONS, axis=0)
        columns = {"caption": captions}
    else:
        ends = np.arange(0, pairs + 1, CAPTIONS, dtype=np.int32)
        columns = {"captions": pa.ListArray.from_arrays(ends, captions)}
    columns["image_features"] = pa.FixedSizeListArray.from_arrays(values.ravel(), DIM)
    columns["image_id"] = pa.array(numbers)
    text = Value("string") if layout == "one" else List(Value("string"))
    kinds = {"image_features": List(Value("float32"), length=DIM), "image_id": Value("int64")}
    features = Features({next(iter(columns)): text} | kinds)
    return Dataset(pa.table(columns).cast(features.arrow_schema), fingerprint=f"{layout}-{pairs}")


def make(folder: Path, pairs: int, layout: str) -> None:
    rng = np.random.default_rng(0)
    splits = {"train": rows_of(pairs, rng, layout), "validation": rows_of(HELD_OUT, rng, layout)}
    DatasetDict(splits).save_to_disk(folder)


def start(folder: Path) -> dict[str, Any]:
    """From the recipe to the first step."""

    def begin(trainer: VSETrainer, *_: Any, **__: Any) -> None:
        found["images"], found["pairs"] = len(trainer.train_dataset.captions), len(trainer.train_dataset)
        raise Begun

    found: dict[str, Any] = {}
    VSETrainer.training_step = begin
    before, begun, spent = status_bytes("VmRSS"), time.perf_counter(), time.process_time()
    try:
        run_recipe(build_recipe(RECIPE | {"dataset": str(folder), "output_dir": f"{folder}-run"}))
    except Begun:
        taken = {"s": round(time.perf_counter() - begun, 1), "cpu_s": round(time.process_time() - spent, 1)}
        return found | taken | {"imported_bytes": before, "peak_bytes": status_bytes("VmHWM")}
    raise RuntimeError("training ended before its first step")


def apart(work: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS.values(), default=list(LAYOUTS.values()))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists: give a new folder")
    started = {}
    for title, layout in LAYOUTS.items():
        if layout in arguments.layouts:
            apart(make, arguments.folder / layout, arguments.pairs, layout)
            started[title] = apart(start, arguments.folder / layout)
            print(title, started[title], file=sys.stderr, flush=True)
    result = {"command": " ".join(sys.argv), "recipe": RECIPE, "started": started}
    record(result | {"environment": environment()}, arguments.output)


if __name__ == "__main__":
    main()
