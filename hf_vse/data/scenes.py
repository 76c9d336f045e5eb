"""Scenes: the built-in, generated image-caption data set; nothing to download.

    from hf_vse import load_pairs
    dataset = load_pairs("scenes", difficulty="hard")
    dataset["train"][0]["captions"]

`scene_truth.py` samples the content of a scene, `scene_pictures.py` draws it, `scene_captions.py` describes it.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import datasets
from datasets import Dataset, DatasetDict, Features, NamedSplit

from hf_vse.data.fields import TEXT_FEATURES
from hf_vse.data.scene_captions import CAPTIONS_PER_IMAGE, describe
from hf_vse.data.scene_pictures import render
from hf_vse.data.scene_truth import SPLITS, Difficulty, check_choice, random_stream, sample_scene
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_ID

SCENES_VERSION = 1  # increase it when any pixel or word changes, so that old caches are not used


def load_scenes(
    *,
    num_train: int = 4000,
    num_eval: int = 500,
    seed: int = 0,
    difficulty: Difficulty = "medium",
    image_size: int = 64,
    cache_dir: str | Path | None = None,
) -> DatasetDict:
    """`train`, `validation` and `test` with the columns of `schema.py`; generated once, then read from the cache.

    `validation` and `test` have `num_eval` images each; images are `image_size` x `image_size` pixels. Two processes
    may call it at the same time: one writes under the file lock of `datasets`, the other waits.
    """
    check_choice("difficulty", difficulty, get_args(Difficulty))
    for name, value, least in (("num_train", num_train, 1), ("num_eval", num_eval, 1), ("image_size", image_size, 16)):
        if value < least:
            raise ValueError(f"{name}={value} is too small: give at least {least}")
    dataset = DatasetDict()
    for split, count in zip(SPLITS, (num_train, num_eval, num_eval), strict=True):
        dataset[split] = Dataset.from_generator(
            _generate_rows,
            features=Features({IMAGE: datasets.Image()} | TEXT_FEATURES),
            cache_dir=cache_dir and str(cache_dir),
            gen_kwargs=dict(seed=seed, split=split, difficulty=difficulty, count=count, image_size=image_size),
            split=NamedSplit(split),
            fingerprint=f"scenes-v{SCENES_VERSION}-{difficulty}-{image_size}px-seed{seed}-{split}-{count}",
        )
    return dataset


def _generate_rows(seed: int, split: str, difficulty: Difficulty, count: int, image_size: int) -> Iterator[dict]:
    for index in range(count):
        scene = sample_scene(seed, index, difficulty, split)
        png = io.BytesIO()
        render(scene, image_size).save(png, format="PNG")
        image_id = index * len(SPLITS) + SPLITS.index(split)  # interleaved: unique across splits of any size
        yield {
            IMAGE: {"bytes": png.getvalue(), "path": None},
            IMAGE_ID: image_id,
            CAPTIONS: describe(scene, random_stream(seed, split, index, "captions")),
            CAPTION_IDS: [image_id * CAPTIONS_PER_IMAGE + number for number in range(CAPTIONS_PER_IMAGE)],
        }
