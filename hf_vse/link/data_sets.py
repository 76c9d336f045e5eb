"""A split of a data set as a catalogue: a saved data set, parquet or tar files, a JSON file, or an id of the Hub.

`NAME#SPLIT` names the split; without it there must be only one.
"""

import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_vse.data.fields import is_field
from hf_vse.data.karpathy import HUB_DATASETS
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import IMAGE_FEATURES
from hf_vse.data.sources import load_pairs

FILES = (".parquet", ".tar", ".json")
SAVED = ("dataset_dict.json", "state.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_dataset(source: str | Path) -> bool:
    """Whether a catalogue is a data set; folders of images, galleries and JSON Lines are not."""
    name = str(source) if Path(source).exists() else str(source).partition("#")[0]
    path = Path(name)
    if not path.exists():
        return name in HUB_DATASETS or bool(HUB_ID.fullmatch(name) and path.suffix != ".jsonl")
    if path.is_file():
        return path.suffix in FILES
    return any((path / name).is_file() for name in SAVED) or any(path.glob("*.parquet")) or any(path.glob("*.tar"))


def load_catalogue(source: str) -> Dataset:
    """The split that is named, or the only one.

    Raises:
        OSError, ValueError: it cannot be read, or has no such split, or several and none is named.
    """
    name, _, split = (source, "", "") if Path(source).exists() else source.partition("#")
    splits = load_pairs(name)
    if split and split not in splits:
        raise ValueError(f"{name} has no split {split!r:.60}: choose one of {', '.join(splits)}")
    if not split and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: name one, as {name}#{next(iter(splits))}")
    return splits[split or next(iter(splits))]


def dataset_items(split: Dataset) -> tuple[list[dict[str, Any]], Dataset]:
    """What a data set says of each row, captions included, and the rows of its images, undecoded."""
    names = [
        name for name, feature in split.features.items() if is_field(feature) and not name.startswith(IMAGE_FEATURES)
    ]
    facts = split.with_format(None).select_columns(names)
    return [{"row": row} | fields | {"row": row} for row, fields in enumerate(facts)], undecoded_images(split)
