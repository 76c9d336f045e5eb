"""A file of scores as a teacher: what a cross-encoder, or anything else, thinks of pairs of images and captions.

A safetensors file with

| tensor          | shape                | meaning                                                               |
|-----------------|----------------------|-----------------------------------------------------------------------|
| `scores`        | `(images, captions)` | float16 or float32, higher is more alike; minus infinity for unknown  |
| `image_ids`     | `(images,)`          | `image_id` of each row, int64                                         |
| `text_ids`      | `(captions,)`        | a digest of the words of each caption, int64, see `schema.text_id`    |
| `text_to_image` | `(captions,)`        | the row of the image that each caption belongs to, int64              |

It may hold more than the training split, in any order. Every caption of the split is looked up together with its
image, so a file of other data is refused. A cross-encoder is usually run on the best hundred captions of an image that
a faster model finds; the others then have minus infinity, and no share. Own pairs always need a score:

    split = load_pairs("flickr8k", data_dir=data_dir)["train"]
    texts, text_to_image = flatten_captions(split["captions"][:])
    scores = torch.full((len(split), len(texts)), -torch.inf, dtype=torch.float16)
    for row, image in enumerate(split["image"]):
        columns = [...]  # where text_to_image is row, and of captions to compare with
        scores[row, columns] = cross_encoder(image, [texts[column] for column in columns]).half()
    write_scores("scores.safetensors", split, scores)

The scores stay on disk, memory-mapped. A step reads those of its batch, of all processes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_vse.data.features import feature_column
from hf_vse.data.schema import CAPTIONS, IMAGE_ID, TEACHER_CAPTIONS, TEACHER_IMAGES, flatten_captions, text_id
from hf_vse.files import whole_file

IDS = ("image_ids", "text_ids", "text_to_image")
MOST = 2**24  # images or captions; places of the split's own are kept as float32


def write_scores(path: str | Path, split: Dataset, scores: Tensor) -> None:
    """Writes the scores (images, captions) of a split, its captions in the order of `flatten_captions`."""
    texts, text_to_image = flatten_captions(split.with_format(None)[CAPTIONS][:])
    if scores.shape != (len(split), len(texts)):
        raise ValueError(f"scores have shape {tuple(scores.shape)}; the split needs {(len(split), len(texts))}")
    ids = split.with_format(None)[IMAGE_ID][:], [text_id(text) for text in texts], text_to_image
    tensors = {name: torch.as_tensor(np.asarray(each, np.int64)) for name, each in zip(IDS, ids, strict=True)}
    with whole_file(path) as unfinished:
        save_file(tensors | {"scores": scores.contiguous()}, unfinished)


def read_scores(path: str | Path | None) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped.

    Raises:
        OSError: there is no such file.
        ValueError: it is no file of scores.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"teacher_scores {path} does not exist: give a safetensors file")
    try:
        with safe_open(path, framework="pt") as stored:
            found = {name: stored.get_tensor(name) for name in ("scores", *IDS)}
    except SafetensorError as error:
        raise ValueError(f"teacher_scores {path} cannot be read ({error}): write it with write_scores") from error
    scores = found["scores"]
    if scores.ndim != 2 or scores.dtype not in (torch.float16, torch.float32) or max(scores.shape) > MOST:
        raise ValueError(
            f"teacher_scores {path}: scores are {scores.dtype} {tuple(scores.shape)}: save a matrix (images, "
            "captions) of float16 or float32"
        )
    for name, length in zip(IDS, (len(scores), *scores.shape[1:] * 2), strict=True):
        if found[name].shape != (length,) or found[name].dtype != torch.int64:
            raise ValueError(f"teacher_scores {path}: {name} has to be {length} numbers of int64: write them anew")
    if len(owner := found["text_to_image"]) and not 0 <= owner.min() <= owner.max() < len(scores):
        raise ValueError(f"teacher_scores {path}: text_to_image names rows that scores do not have: write them anew")
    return found


def places_in_scores(path: str | Path | None, split: Dataset) -> pa.Table:
    """Two columns for a split: the row of each image in the scores, and the columns of its captions.

    Raises:
        ValueError: the file lacks a caption of an image, or its score.
    """
    found = read_scores(path)
    owner = found["text_to_image"]
    pairs = zip(found["image_ids"][owner].tolist(), found["text_ids"].tolist(), strict=True)
    known = {pair: column for column, pair in enumerate(pairs)}
    rows: list[int] = []
    columns: list[list[Any]] = []
    plain = split.with_format(None)
    for image_id, captions in zip(plain[IMAGE_ID], plain[CAPTIONS], strict=True):
        of_image = [known.get((image_id, text_id(caption))) for caption in captions]
        if None in of_image:
            caption = captions[of_image.index(None)]
            raise ValueError(
                f"teacher_scores {path} has no image {image_id} with the caption {caption!r:.80}, so it belongs to "
                "other data: write the scores of this training split"
            )
        rows.append(int(owner[of_image[0]]))
        columns.append(of_image)
    flat, of_rows = flatten_captions(columns)
    own = found["scores"][torch.tensor(rows)[of_rows], torch.tensor(flat)]
    if not own.isfinite().all():
        raise ValueError(
            f"teacher_scores {path}: {int((~own.isfinite()).sum())} captions have no finite score with their own "
            "image: score every own pair"
        )
    starts = np.cumsum([0] + [len(of_image) for of_image in columns]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(starts), feature_column(np.array(flat, np.float32)[:, None]))
    names = f"{TEACHER_IMAGES}_scores", f"{TEACHER_CAPTIONS}_scores"
    return pa.table(dict(zip(names, (feature_column(np.array(rows, np.float32)[:, None]), lists), strict=True)))
