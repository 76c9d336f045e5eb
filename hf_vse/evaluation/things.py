"""What `hf-vse evaluate --identify` asks: things of a column of the data, or the classes of labelled images.

Images of things that the training split shows are left out, so that recognising them is no question of memory.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_vse.data.folders import images_below
from hf_vse.data.groups import is_none, plain_column
from hf_vse.data.schema import IMAGE
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images
from hf_vse.evaluation.identification import identification_metrics
from hf_vse.evaluation.zero_shot import LabelledImages

logger = logging.getLogger(__name__)

ENTITY = "entity"  # the usual name of the column


def check_things_asked(identify: bool, entity: str | None, references: int | None, distractors: str | None) -> None:
    """Raises OSError or ValueError, before the work, for options without effect or a folder without images."""
    for name, value in (("entity", entity), ("references", references), ("distractors", distractors)):
        if value is not None and not identify:
            raise ValueError(f"{name}={value!r} has no effect where nothing is identified: add --identify")
    if distractors is not None:
        distractor_files(distractors)


def check_column_of_things(dataset: Dataset, entity: str) -> None:
    """Raises ValueError for data without such a column."""
    if entity not in dataset.column_names:
        raise ValueError(
            f"identify: the data have no column {entity!r} that says what an image shows; there are "
            f"{', '.join(dataset.column_names)}: name it with --entity, or give --labelled"
        )


def distractor_files(folder: str | Path) -> list[str]:
    """The image files below a folder."""
    found = images_below(folder)
    if not found:
        raise FileNotFoundError(f"distractors {folder} holds no image: give a folder of images of other things")
    return found


def things_of_split(
    image_embeds: np.ndarray,
    rows: Sequence[int],
    dataset: Dataset,
    train: Dataset | None,
    entity: str,
    **asked: Any,
) -> dict[str, Any]:
    """Identification of what the images of a split show.

    Args:
        image_embeds: (images, dim) unit vectors; rows: the row of `dataset` that each is of.
        train: the split that the model was trained on; None: it was trained on other data.
        entity: column with what an image shows; images without a value are left out.
        asked: see `identification_metrics`.

    Raises:
        ValueError: nothing is left.
    """
    values = plain_column(dataset, entity)
    trained = set(plain_column(train, entity)) if train is not None else set()
    named = [values[row] for row in rows]
    return {"of": entity} | of_unseen(np.asarray(image_embeds), named, trained, **asked)


def things_of_labelled(
    encoder: Encoder,
    labelled: LabelledImages,
    train: Dataset | None,
    entity: str,
    reading: dict[str, Any],
    **asked: Any,
) -> dict[str, Any]:
    """Identification of the classes of labelled images. `reading`: options of `encode_images`."""
    found = encode_images(encoder, labelled.images, **reading)
    readable = found.readable.numpy()
    named = [labelled.class_names[label] for label in labelled.labels[found.readable].tolist()]
    trained = set(plain_column(train, entity)) if train is not None else set()
    return {"of": "labelled"} | of_unseen(found.embeds.numpy()[readable], named, trained, **asked)


def of_unseen(embeds: np.ndarray, named: Sequence[Any], trained: set[Any], **asked: Any) -> dict[str, Any]:
    known = [value in trained and not is_none(value) for value in named]
    kept = np.array([not is_none(value) and not seen for value, seen in zip(named, known, strict=True)], bool)
    if not kept.any():
        raise ValueError(
            f"identify: of {len(named):,} images {sum(known):,} show things that the training split shows too, and "
            "the others nothing: hold out whole things (group_column), or give --labelled"
        )
    things = [value for value, keep in zip(named, kept, strict=True) if keep]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(things))}
    found = identification_metrics(embeds[kept], np.array([numbers[value] for value in things]), **asked)
    return {"left_out": len(named) - len(things), "trained_on": sum(known)} | found


def distractor_vectors(encoder: Encoder, folder: str, reading: dict[str, Any]) -> np.ndarray:
    """Vectors of the images of a folder that can be read."""
    found = encode_images(encoder, [{IMAGE: name} for name in distractor_files(folder)], **reading)
    if not found.readable.all():
        logger.warning("%d distractors of %s cannot be read", int((~found.readable).sum()), folder)
    return found.embeds.numpy()[found.readable.numpy()]
