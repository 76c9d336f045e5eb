"""What of the training split is no negative of each other: counted, told in the log, and left in the record."""

import logging
from functools import cache
from typing import Any

from datasets import Dataset, IterableDataset

from hf_vse.data.groups import group_counts, plain_column
from hf_vse.data.schema import CAPTIONS, GROUP_ID, flatten_captions
from hf_vse.evaluation.equal_captions import Wording

logger = logging.getLogger(__name__)


def training_data(train: Dataset | IterableDataset) -> dict[str, Any]:
    """How many `images` and `captions` a split has, its `equal_captions` (see `equal_caption_record`) and, where
    anybody looked for any, its `groups` (see `group_counts`). Nothing of a stream, which is not counted.
    """
    if isinstance(train, IterableDataset):
        return {}
    captions, text_to_image = flatten_captions(train.with_format(None)[CAPTIONS][:])
    found: dict[str, Any] = {"images": len(train), "captions": len(captions)}
    found["equal_captions"] = Wording(captions, text_to_image, len(train)).counts()
    if GROUP_ID in train.column_names:
        found["groups"] = group_counts(plain_column(train, GROUP_ID))
    return found


def report_equal_captions(train: Dataset | IterableDataset, masked: bool) -> None:
    """Says once how many captions of the training split belong to several images, if any, and what follows."""
    if isinstance(train, IterableDataset):
        follows = "no negatives of each other" if masked else "negatives of each other"
        logger.info("pairs of equal caption are %s; in a stream they are not counted", follows)
        return
    found = training_data(train)
    if found["equal_captions"]["captions"]:
        say(**found["equal_captions"], of=found["captions"], masked=masked)


@cache
def say(captions: int, images: int, sentences: int, of: int, masked: bool) -> None:
    logger.info(
        "%s of %s training captions are word for word captions of other images too (%s sentences): pairs of equal "
        "caption are %s", f"{captions:,}", f"{of:,}", f"{sentences:,}",
        "no negatives of each other" if masked else "negatives of each other, as mask_equal_captions is off",
    )  # fmt: skip
