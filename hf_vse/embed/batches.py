"""Runs a tower over batches of readable images and over batches of sentences of similar length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_vse.data.collator import joined
from hf_vse.data.decoding import BrokenImageError, decode_image, groups_in_flight
from hf_vse.data.images import BrokenImages
from hf_vse.data.schema import IMAGE
from hf_vse.model.modeling_vse import VSEModel

AT_ONCE = 64 * 224 * 224  # pixels that a CPU gets: of many more the states fit no cache, and glibc does not keep them

Images: TypeAlias = (
    Dataset | Sequence[Mapping[str, Any]]
)  # rows with the one column `image`, see `decode_image`, or of features


class ReadableBatch:
    """Makes a batch of rows: which of its images can be read, (batch,) booleans, and these prepared, or None.

    A class, because worker processes that are spawned get it pickled.
    """

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


def readable_batches(
    images: Images,
    prepare: Callable[[list[Any]], Any],
    batch_size: int,
    num_workers: int = 0,
    needed: int | None = None,
) -> Iterator[tuple[Tensor, Any]]:
    """For each batch what `ReadableBatch` makes of it.

    Args:
        prepare: makes model inputs of a list of PIL images or arrays; runs in the worker processes. A batch of large
            images is prepared in parts, so that few are held decoded.
        needed: see `decode_image`.
    """
    from_pixels = len(images) > 0 and IMAGE in images[0]
    yield from DataLoader(
        cast(Any, images),  # torch asks for its own class, and reads anything with a length and rows
        batch_size=batch_size,
        collate_fn=ReadableBatch(prepare, from_pixels, needed),
        num_workers=num_workers if from_pixels else 0,  # of arrays there is nothing to decode
    )


def image_batches(
    run: Callable[[Any, int], np.ndarray],
    images: Images,
    places: Sequence[int],
    prepare: Callable[[list[Any]], Any],
    batch_size: int,
    num_workers: int = 0,
    needed: int | None = None,
    title: str | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Runs a tower over some of the images; yields the places of those that can be read, and a row for each.

    For a batch without a readable image the model is run on another image, because processes that share a sharded
    model must run it equally often.

    Args:
        run: prepared images and their number -> (images, ...).
        places: of the images that are wanted.
        title: of the progress bar; None: no bar.
    """
    chosen: Any = images if len(places) == len(images) else Subset(cast(Any, images), list(places))
    done, spare = 0, None
    with progress_bar(len(images), len(places), title) as bar:
        for readable, ready in readable_batches(chosen, prepare, batch_size, num_workers, needed):
            good = [places[done + at] for at in readable.nonzero()[:, 0].tolist()]
            if ready is not None:
                yield good, run(ready, len(good))
            else:
                spare = first_readable(chosen, prepare, needed) if spare is None else spare
                if spare is not None:
                    run(spare, 1)
            done += len(readable)
            bar.update(len(readable))


def first_readable(images: Images, prepare: Callable[[list[Any]], Any], needed: int | None) -> Any:
    """The first image that can be read, prepared; None if there is none."""
    return next((ready for _, ready in readable_batches(images, prepare, 1, needed=needed) if ready is not None), None)


def text_batches(
    run: Callable[[list[str]], np.ndarray],
    texts: Sequence[str],
    places: Sequence[int],
    batch_size: int,
    title: str | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Runs a tower over some of the sentences, shortest first; yields their places, and a row for each."""
    by_length = sorted(places, key=lambda place: len(texts[place]))
    with progress_bar(len(texts), len(places), title) as bar:
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            yield batch, run([texts[place] for place in batch])
            bar.update(len(batch))


def progress_bar(total: int, missing: int, title: str | None) -> tqdm:
    return tqdm(total=total, initial=total - missing, desc=title, leave=False, disable=title is None)


def to_device(inputs: Mapping[str, Tensor], model: VSEModel) -> dict[str, Tensor]:
    """The inputs where the model is; images in the layout in which convolutions are fastest (on a CPU by 1.7)."""
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    if "pixel_values" in moved and moved["pixel_values"].ndim == 4:  # not patches in a sequence
        moved["pixel_values"] = moved["pixel_values"].contiguous(memory_format=torch.channels_last)
    return moved


def image_parts(inputs: Mapping[str, Tensor], model: VSEModel) -> Iterator[dict[str, Any]]:
    """Inputs of an image tower where the model is; on a CPU a batch of large pictures in parts, in which it is faster
    (64 pictures of 384 x 384 by 2). A sharded model gets it whole: its processes have to run it equally often.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or model.device.type != "cpu" or isinstance(model, FSDPModule):
        yield to_device(inputs, model)
        return
    size = max(1, AT_ONCE // (pixels.shape[-2] * pixels.shape[-1]))
    for start in range(0, len(pixels), size):
        yield to_device({name: each[start : start + size] for name, each in inputs.items()}, model)
