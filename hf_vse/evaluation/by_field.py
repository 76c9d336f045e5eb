"""Recalls by a field of the data, such as a place or a year: for what a model is good, and for what it is not.

An image and its captions ask under the value that the image has; of a list, under each of its entries. The candidates
are those of the whole split, so the numbers of values of different size can be compared.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_vse.data.fields import is_field
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, GROUP_ID, IMAGE_ID
from hf_vse.evaluation.metrics import summarize_ranks

MOST_VALUES = 20
OTHER, WITHOUT = "other", "no value"


def fields_of(dataset: Dataset) -> list[str]:
    """The columns that recalls can be told by."""
    own = (CAPTIONS, CAPTION_IDS, IMAGE_ID, GROUP_ID)
    return [name for name, feature in dataset.features.items() if is_field(feature) and name not in own]


def check_fields_asked(dataset: Dataset, fields: Sequence[str]) -> None:
    """Raises ValueError for a field that the data do not have."""
    known = fields_of(dataset)
    for name in fields:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "they have none"
            raise ValueError(f"by {name!r:.60}: the data have no such field; {there}")


def recalls_by_field(
    dataset: Dataset, field: str, image_rows: Tensor, text_to_image: Tensor, ranks: tuple[Tensor, Tensor]
) -> list[dict[str, Any]]:
    """Recalls of the queries of every value of a field.

    Args:
        dataset: the split; image_rows: (images,) the row of each image in it.
        text_to_image: (texts,) the image of each caption.
        ranks: of `retrieval_ranks`: (images,) and (texts,).

    Returns:
        For each of the `MOST_VALUES` most frequent values its `value` as text, the numbers of `images` and
        `captions`, and `metrics` as of `retrieval_metrics`; then the same for all `other` values together, with their
        number as `joined`, and for the images with `no value`.
    """
    values = dataset.with_format(None)[field][:]
    images_of: dict[str, list[int]] = {}
    without = []
    for image, row in enumerate(image_rows.tolist()):
        of_image = values[row] if isinstance(values[row], list) else [values[row]]
        labels = {as_label(value) for value in of_image if value is not None}
        for label in labels:
            images_of.setdefault(label, []).append(image)
        if not labels:
            without.append(image)
    frequent = sorted(images_of, key=lambda label: (-len(images_of[label]), label))
    rare = frequent[MOST_VALUES:]
    groups: list[tuple[dict[str, Any], list[int]]] = [
        ({"value": label}, images_of[label]) for label in frequent[:MOST_VALUES]
    ]
    others = sorted({image for label in rare for image in images_of[label]})
    groups += [({"value": OTHER, "joined": len(rare)}, others), ({"value": WITHOUT}, without)]
    return [about | recalls_of(images, text_to_image, ranks) for about, images in groups if images]


def as_label(value: Any) -> str:
    """A value in one line; true and false as conditions have them."""
    return str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())


def recalls_of(images: Sequence[int], text_to_image: Tensor, ranks: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The numbers of some images and their captions as queries."""
    asking = torch.tensor(images)
    texts = torch.isin(text_to_image.cpu(), asking)
    metrics = summarize_ranks(ranks[0][asking], ranks[1][texts])
    return {"images": len(images), "captions": int(texts.sum()), "metrics": metrics}
