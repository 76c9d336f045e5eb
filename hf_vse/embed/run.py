"""Runs a dual encoder over many images or sentences: in batches, broken files left out, resumable.

Vectors are brought to length one. With a file to keep them in, an interrupted call goes on where it was, and what a
finished one has left is read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Subset
from tqdm.auto import tqdm

from hf_vse.data.encoding import UNREAD, batches_of, readable_batches
from hf_vse.data.schema import IMAGE
from hf_vse.data.unfinished import finish, missing_rows, open_unfinished

if TYPE_CHECKING:  # encoder.py imports this file
    from hf_vse.embed.encoder import Encoder

LENGTH_TOLERANCE = 1e-3  # of the square of a length in float32


class Rows:
    """`count` vectors in memory or in a file, not a number until they are there.

    Args:
        dim: length of a vector.
        path: the .npy file they are kept in; while it is not complete under another name.
    """

    def __init__(self, count: int, dim: int, path: Path | None = None):
        self.path = path
        if path is None:
            self.array: np.ndarray = np.full((count, dim), np.nan, np.float32)
        else:
            self.array, self.unfinished = open_unfinished(path, (count, dim), "", np.float32)
        self.missing = missing_rows(self.array)

    def finish(self, what: str) -> Tensor:
        """All rows; `what` made them, for the error where they are not numbers and are to be kept."""
        if self.path is not None:
            finish(self.array, self.unfinished, self.path, what)
        return torch.from_numpy(np.asarray(self.array))


def finished_rows(path: Path | None, count: int) -> Tensor | None:
    """What an earlier call has left, if it came to its end.

    Raises:
        ValueError: it is no whole file of `count` unit vectors any more.
    """
    if path is None or not path.is_file():
        return None
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged, no whole array of vectors: remove it, it is computed anew") from error
    of_vectors = isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype == np.float32 and len(rows) == count
    if not of_vectors or not unit_or_unread(rows).all():
        raise ValueError(f"{path} is damaged, it does not hold {count} unit vectors: remove it, it is computed anew")
    return torch.from_numpy(rows)


def unit_or_unread(rows: np.ndarray) -> np.ndarray:
    """(rows,) booleans: which have length one, or none, or stand for an image that cannot be read."""
    lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return (np.abs(lengths - 1) < LENGTH_TOLERANCE) | (lengths == 0) | (rows == UNREAD).all(axis=1)


def unit(embeds: Tensor | np.ndarray, count: int, encoder: "Encoder") -> np.ndarray:
    """What an encoder gave for `count` inputs as (count, dim) float32 of length one."""
    vectors = torch.as_tensor(embeds).detach()
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(
            f"{encoder.name} gave an array of shape {tuple(vectors.shape)} for {count} inputs; "
            f"an encoder returns one vector for each, ({count}, dim)"
        )
    return normalize(vectors.float(), dim=1).cpu().numpy()


def check_readable(encoder: "Encoder", row: Mapping[str, Any]) -> None:
    """Raises ValueError where a model of photographs is given features, or the reverse."""
    of_photographs = IMAGE in row
    if not (encoder.reads_photographs if of_photographs else encoder.reads_features):
        reads, has = ("precomputed features", "photographs")[:: 1 if of_photographs else -1]
        raise ValueError(f"{encoder.name} reads {reads}, the data have {has}: give data or a model that fits")


@torch.no_grad()
def encode_images(
    encoder: "Encoder",
    images: Dataset | Sequence[Mapping[str, Any]],
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
    path: Path | None = None,
) -> Tensor:
    """Unit vectors of the images, (images, dim) float32 on the CPU; `UNREAD` where one cannot be read.

    Args:
        images: rows with the one column `image` (see `decode_image`) or `image_features`.
        path: keep them in this .npy file, which stands for one model and one data set.
    """
    if (kept := finished_rows(path, len(images))) is not None:
        return kept
    check_readable(encoder, images[0])
    one_by_one = readable_batches(images, encoder.prepare_images, 1, needed=encoder.needed_side)
    first = next((ready for _, ready in one_by_one if ready is not None), None)
    if first is None:
        return torch.full((len(images), 1), UNREAD)
    rows = Rows(len(images), unit(encoder.encode_images(first), 1, encoder).shape[1], path)
    missing = rows.missing
    rest = images if len(missing) == len(images) else Subset(images, missing.tolist())
    bar = tqdm(
        total=len(images),
        initial=len(images) - len(missing),
        desc="encoding images",
        leave=False,
        disable=not progress,
    )
    with bar:
        for readable, ready in readable_batches(
            rest, encoder.prepare_images, batch_size, num_workers, encoder.needed_side
        ):
            places, missing = missing[: len(readable)], missing[len(readable) :]
            good = readable.numpy()
            rows.array[places[~good]] = UNREAD
            # A batch of which nothing can be read passes through the model all the same, with another image: processes
            # that share a sharded model have to use it equally often.
            embeds = encoder.encode_images(first if ready is None else ready)
            if ready is not None:
                rows.array[places[good]] = unit(embeds, int(good.sum()), encoder)
            bar.update(len(places))
    return rows.finish(encoder.name)


@torch.no_grad()
def encode_texts(
    encoder: "Encoder",
    texts: Sequence[str],
    batch_size: int = 128,
    progress: bool = False,
    path: Path | None = None,
) -> Tensor:
    """Unit vectors of the sentences, (texts, dim) float32 on the CPU, encoded shortest first.

    Args:
        path: see `encode_images`.
    """
    if (kept := finished_rows(path, len(texts))) is not None:
        return kept
    rows = Rows(len(texts), unit(encoder.encode_texts([texts[0]]), 1, encoder).shape[1], path)
    by_length = sorted(rows.missing.tolist(), key=lambda place: len(texts[place]))
    bar = tqdm(
        total=len(texts), initial=len(texts) - len(by_length), desc="encoding texts", leave=False, disable=not progress
    )
    with bar:
        for places in batches_of(by_length, batch_size):
            embeds = encoder.encode_texts([texts[place] for place in places])
            rows.array[places] = unit(embeds, len(places), encoder)
            bar.update(len(places))
    return rows.finish(encoder.name)
