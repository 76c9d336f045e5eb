"""Batches of images that can be read, and of sentences: what all that runs a tower over a data set has in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from hf_vse.data.images import BrokenImageError, BrokenImages, decode_image
from hf_vse.data.schema import IMAGE
from hf_vse.model.modeling_vse import VSEModel

UNREAD = float("inf")  # fills the row of an image that cannot be read; a diverged model gives NaN, never this


def readable_batches(
    images: Dataset | Sequence[Mapping[str, Any]],
    prepare: Callable[[list[Any]], Any],
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Any]]:
    """For every batch which of its images can be read, (batch,) booleans, and these prepared, None if there are none.

    Args:
        images: rows with the one column `image` (see `decode_image`) or `image_features`.
        prepare: what worker processes do with a list of PIL images, or of arrays.
    """
    from_pixels = len(images) > 0 and IMAGE in images[0]
    yield from DataLoader(
        images,
        batch_size=batch_size,
        collate_fn=ReadableBatch(prepare, from_pixels),
        num_workers=num_workers if from_pixels else 0,  # of arrays there is nothing to decode
    )


class ReadableBatch:
    """Makes a batch of rows: which can be read, and these prepared. A class, because it is pickled for processes that
    are spawned."""

    def __init__(self, prepare: Callable[[list[Any]], Any], from_pixels: bool):
        self.prepare = prepare
        self.from_pixels = from_pixels
        self.seen = BrokenImages(max_share=1.0)  # names them; how many are too many is for the caller to say

    def __call__(self, rows: list[Mapping[str, Any]]) -> tuple[Tensor, Any]:
        values = [next(iter(row.values())) for row in rows]
        decoded = [self.read(value) for value in values] if self.from_pixels else values
        readable = [image for image in decoded if image is not None]
        return torch.tensor([image is not None for image in decoded]), self.prepare(readable) if readable else None

    def read(self, value: Any) -> Any:
        try:
            return decode_image(value)
        except BrokenImageError as error:
            self.seen.seen_broken(error)
            return None


def batches_of(places: list[int], batch_size: int) -> Iterator[list[int]]:
    return (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def to_device(inputs: Mapping[str, Tensor], model: VSEModel) -> dict[str, Tensor]:
    """The inputs where the model is; photographs in the layout in which convolutions are fastest (on a CPU by 1.7)."""
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].contiguous(memory_format=torch.channels_last)
    return moved
