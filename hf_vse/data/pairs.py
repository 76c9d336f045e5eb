"""What training reads: a data set of images with captions, seen as pairs.

A pair is asked for by `(row, caption, draw)`. The sampler chooses all three, so everything random about a pair, its crop
and its dropped words included, follows from the integer `draw`: workers are pure functions, and a resumed run sees what
an uninterrupted one would have seen.
"""

from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Image
from torch.utils.data import Dataset as TorchDataset

from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES, IMAGE_ID


class Pair(NamedTuple):
    """Which pair, and the seed of everything random about it."""

    row: int
    caption: int
    draw: int


class PairDataset(TorchDataset):
    """Pairs of one split.

    Args:
        dataset: a split as `load_pairs` returns it.

    Raises:
        ValueError: the split is empty or lacks the columns.
    """

    def __init__(self, dataset: Dataset):
        source = IMAGE_FEATURES if IMAGE_FEATURES in dataset.column_names else IMAGE
        missing = [name for name in (source, CAPTIONS, IMAGE_ID) if name not in dataset.column_names]
        if missing:
            raise ValueError(f"columns {missing} are missing from {dataset.column_names}; load it with load_pairs")
        if not len(dataset):
            raise ValueError("the split is empty; check the data directory and the split names")
        self.source = source
        self.captions: list[list[str]] = dataset.with_format(None)[CAPTIONS][:]
        self.image_ids = np.asarray(dataset.with_format(None)[IMAGE_ID][:], dtype=np.int64)
        images = dataset.select_columns([source])
        if source == IMAGE:
            self.images = images.cast_column(IMAGE, Image(decode=False))
        else:
            self.images = images.with_format("numpy")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer's data loader; the sampler reads it."""
        self.epoch = epoch

    @property
    def caption_counts(self) -> np.ndarray:
        """(rows,) captions of every image."""
        return np.array([len(captions) for captions in self.captions])

    def __len__(self) -> int:
        return int(self.caption_counts.sum())

    def __getitem__(self, pair: Pair) -> dict[str, Any]:
        row, caption, draw = pair
        return {
            self.source: self.images[int(row)][self.source],
            "caption": self.captions[row][caption],
            IMAGE_ID: int(self.image_ids[row]),
            "draw": int(draw),
        }
