"""Runs an encoder over many images or sentences in batches. Broken images are left out.

Vectors are normalised to length one. With a store (see `store.py`) vectors that were computed before are read, and an
interrupted call continues where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vse.data.digests import item_key
from hf_vse.data.schema import IMAGE
from hf_vse.embed.batches import Images, image_batches, text_batches
from hf_vse.embed.store import Batches, Store

if TYPE_CHECKING:  # encoder.py imports this file
    from hf_vse.embed.encoder import Encoder


class ImageVectors(NamedTuple):
    """`embeds` (images, dim), unit vectors, zero where an image cannot be read; `readable` (images,) booleans."""

    embeds: Tensor
    readable: Tensor


@torch.no_grad()
def encode_images(
    encoder: "Encoder",
    images: Images,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
    store: Store | None = None,
    keys: Sequence[str] | None = None,
) -> ImageVectors:
    """Unit vectors of the images, float32 on the CPU; (images, 1) if no image can be read.

    Args:
        images: rows with the one column `image` (see `decode_image`) or `image_features`.
        store: keeps the vectors of this encoder.
        keys: name the contents of the images in the store; default: digests of them.
    """
    check_readable(encoder, images[0])
    places: Sequence[int] = range(len(images))
    if store is not None:
        keys = [item_key(next(iter(row.values()))) for row in images] if keys is None else keys
        places = store.missing(keys)
    batches = image_batches(
        lambda ready, count: unit(encoder.encode_images(ready), count, encoder),
        images,
        places,
        encoder.prepare_images,
        batch_size,
        num_workers,
        encoder.needed_side,
        "encoding images" if progress else None,
    )
    embeds, readable = placed(len(images), kept(batches, store, keys, encoder))
    return ImageVectors(torch.from_numpy(embeds), torch.from_numpy(readable))


@torch.no_grad()
def encode_texts(
    encoder: "Encoder",
    texts: Sequence[str],
    batch_size: int = 128,
    progress: bool = False,
    store: Store | None = None,
) -> Tensor:
    """Unit vectors of the sentences, (texts, dim) float32 on the CPU, encoded shortest first.

    Args:
        store: keeps the vectors of this encoder.
    """
    keys = [] if store is None else [item_key(text.encode("utf-8", "surrogatepass")) for text in texts]
    batches = text_batches(
        lambda batch: unit(encoder.encode_texts(batch), len(batch), encoder),
        texts,
        range(len(texts)) if store is None else store.missing(keys),
        batch_size,
        "encoding texts" if progress else None,
    )
    return torch.from_numpy(placed(len(texts), kept(batches, store, keys, encoder))[0])


def kept(batches: Batches, store: Store | None, keys: Sequence[str] | None, encoder: "Encoder") -> Batches:
    """The batches; with a store they are written to it first, and all its rows for the keys are read."""
    if store is None or keys is None:
        return batches
    store.fill(keys, batches, encoder.name)
    return store.read(keys)


def placed(count: int, batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all batches at their places, zero elsewhere, and at which places there are some, (count,)."""
    array, there = np.zeros((count, 1), np.float32), np.zeros(count, bool)
    for places, rows in batches:
        if not there.any():
            array = np.zeros((count, *rows.shape[1:]), rows.dtype)
        array[places] = rows
        there[places] = True
    return array, there


def unit(embeds: Tensor | np.ndarray, count: int, encoder: "Encoder") -> np.ndarray:
    """The output of an encoder for `count` inputs as unit vectors, (count, dim) float32."""
    vectors = torch.as_tensor(embeds).detach()
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(
            f"{encoder.name} gave an array of shape {tuple(vectors.shape)} for {count} inputs; "
            f"an encoder returns one vector for each, ({count}, dim)"
        )
    return normalize(vectors.float(), dim=1).cpu().numpy()


def check_readable(encoder: "Encoder", row: Mapping[str, Any]) -> None:
    """Raises ValueError if an encoder of photographs gets features, or the reverse."""
    of_photographs = IMAGE in row
    if not (encoder.reads_images if of_photographs else encoder.reads_features):
        reads, has = ("precomputed features", "photographs")[:: 1 if of_photographs else -1]
        raise ValueError(f"{encoder.name} reads {reads}, the data have {has}: give data or a model that fits")
