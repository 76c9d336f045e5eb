"""Whole runs that take a second: two stages, the second with fresh heads, from features of a few images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hf_vse.files import read_json
from hf_vse.training.recipe import Recipe, build_recipe
from tests.conftest import WORDS, make_captions


def captions_with_foils(index: int, count: int = 5) -> list[str]:
    """In the words of `make_captions`, but as sentences: rules find a foil of each but the last two."""
    rng = np.random.default_rng(index)
    found = []
    for _ in range(count):
        (one, other), colours = (rng.choice(words, 2, False) for words in (WORDS[4:8], WORDS[:4]))
        relation = rng.choice(["above", "below"])
        found.append(f"a {colours[0]} {one} {relation} a {colours[1]} {other}")
    return [*found[: count - 2], f"{one} {other}", f"{other} {one}"]


def write_features(
    folder: Path, train: int = 16, dev: int = 8, dim: int = 6, captions_of: Callable = make_captions
) -> Path:
    """Features and captions of some images in the layout of VSE++."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("dev", dev)):
        np.save(folder / f"{split}_ims.npy", rng.normal(size=(count, dim)).astype(np.float32))
        captions = [caption for index in range(count) for caption in captions_of(index)]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


def tiny_values(data: Path, output: Path, **changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dataset": "precomp",
        "data_dir": str(data),
        "output_dir": str(output),
        "projection_dim": 4,
        "text_config": {"word_dim": 3, "hidden_size": 4},
        "min_word_count": 1,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "diagnostics_steps": 0,
        "disable_tqdm": True,
        "frozen_cache_dir": str(output.parent / "cache"),
        "stages": [
            {"name": "base", "word_dropout": 0.2},
            {"name": "heads", "projection_type": "mlp", "freeze_text_tower": True},
        ],
    }
    return values | changed


def tiny_recipe(data: Path, output: Path, **changed: Any) -> Recipe:
    return build_recipe(tiny_values(data, output, **changed))


def outcome(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the records that a run ended with, whatever its folder is called."""
    records = read_json(output / "metrics.json")["metrics"]
    unnamed = {split: record | {"model": ""} for split, record in records.items()}
    return load_file(output / "model.safetensors"), unnamed


def same_outcome(one: Path, other: Path) -> bool:
    """To the bit: for runs in one process layout, on one machine, with one number of threads."""
    (weights, metrics), (found, measured) = outcome(one), outcome(other)
    equal = weights.keys() == found.keys() and all(torch.equal(weights[name], found[name]) for name in weights)
    return equal and metrics == measured
