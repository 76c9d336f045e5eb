"""Batches of images that can be read, and of sentences: what all that runs a tower over a data set has in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from hf_vse.data.decoding import BrokenImageError, decode_image, groups_in_flight
from hf_vse.data.images import BrokenImages
from hf_vse.data.schema import IMAGE
from hf_vse.model.modeling_vse import VSEModel

UNREAD = float("inf")  # fills the row of an image that cannot be read; a diverged model gives NaN, never this


def readable_batches(
    images: Dataset | Sequence[Mapping[str, Any]],
    prepare: Callable[[list[Any]], Any],
    batch_size: int,
    num_workers: int = 0,
    needed: int | None = None,
) -> Iterator[tuple[Tensor, Any]]:
    """For every batch which of its images can be read, (batch,) booleans, and these prepared, None if there are none.

    Args:
        images: rows with the one column `image` (see `decode_image`) or `image_features`.
        prepare: what worker processes do with a list of PIL images, or of arrays; called for as many at once as may
            be held decoded.
        needed: see `decode_image`.
    """
    from_pixels = len(images) > 0 and IMAGE in images[0]
    yield from DataLoader(
        images,
        batch_size=batch_size,
        collate_fn=ReadableBatch(prepare, from_pixels, needed),
        num_workers=num_workers if from_pixels else 0,  # of arrays there is nothing to decode
    )


class ReadableBatch:
    """Makes a batch of rows: which can be read, and these prepared. A class, because it is pickled for processes that
    are spawned."""

    def __init__(self, prepare: Callable[[list[Any]], Any], from_pixels: bool, needed: int | None):
        self.prepare = prepare
        self.from_pixels = from_pixels
        self.needed = needed
        self.seen = BrokenImages(max_share=1.0)  # names them; how many are too many is for the caller to say

    def __call__(self, rows: list[Mapping[str, Any]]) -> tuple[Tensor, Any]:
        values = [next(iter(row.values())) for row in rows]
        readable, prepared = [], []
        for group in groups_in_flight(map(self.read, values)) if self.from_pixels else [values]:
            readable += [image is not None for image in group]
            if any(readable[-len(group) :]):
                prepared.append(self.prepare([image for image in group if image is not None]))
        return torch.tensor(readable), joined(prepared) if prepared else None

    def read(self, value: Any) -> Any:
        try:
            return decode_image(value, needed=self.needed)
        except BrokenImageError as error:
            self.seen.seen_broken(error)
            return None


def joined(prepared: Sequence[Any]) -> Any:
    """What `prepare` made of the parts of a batch, as it would have made it of the whole."""
    first = prepared[0]
    if len(prepared) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in prepared]) for name in first}
    if isinstance(first, Tensor):
        return torch.cat(list(prepared))
    if isinstance(first, np.ndarray):
        return np.concatenate(prepared)
    return [image for part in prepared for image in part]


def batches_of(places: list[int], batch_size: int) -> Iterator[list[int]]:
    return (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def to_device(inputs: Mapping[str, Tensor], model: VSEModel) -> dict[str, Tensor]:
    """The inputs where the model is; photographs in the layout in which convolutions are fastest (on a CPU by 1.7)."""
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].contiguous(memory_format=torch.channels_last)
    return moved
