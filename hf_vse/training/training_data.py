"""What of the training split is no negative of each other: counted, told in the log, and left in the record; and
which images are neighbours.
"""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from hf_vse.data.groups import group_counts, plain_column
from hf_vse.data.neighbours import near_rows, vectors_of_images
from hf_vse.data.pairs import PairDataset
from hf_vse.data.ready_columns import iter_captions
from hf_vse.data.schema import GROUP_ID, same_words
from hf_vse.data.streams import StreamedPairs
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.entities import entities_of_batches

logger = logging.getLogger(__name__)


def training_data(train: Dataset | IterableDataset) -> dict[str, Any]:
    """How many `images` and `captions` a split has, its `equal_captions` (see `equal_caption_record`) and, where
    anybody looked for any, its `groups` (see `group_counts`). Nothing of a stream, which is not counted.
    """
    if isinstance(train, IterableDataset):
        return {}
    counts: list[int] = []

    def numbers() -> Iterator[int]:
        for captions in iter_captions(train):
            counts.append(len(captions))
            yield from (hash(same_words(caption)) for caption in captions)

    sentence = np.fromiter(numbers(), np.int64)
    found: dict[str, Any] = {"images": len(train), "captions": len(sentence)}
    found["equal_captions"] = shared_captions(sentence, np.repeat(np.arange(len(counts)), counts))
    if GROUP_ID in train.column_names:
        found["groups"] = group_counts(plain_column(train, GROUP_ID))
    return found


def shared_captions(sentence: np.ndarray, image: np.ndarray) -> dict[str, int]:
    """As `Wording.counts`, of the numbers of sentences and images of all captions, both (captions,)."""
    order = np.lexsort((image, sentence))
    sentence, image = sentence[order], image[order]
    begins = np.append(True, sentence[1:] != sentence[:-1])
    other_image = np.append(True, image[1:] != image[:-1]) | begins
    images_of = np.add.reduceat(other_image.astype(int), np.flatnonzero(begins))  # (sentences,)
    shared = (images_of > 1)[np.cumsum(begins) - 1]
    return {
        "captions": int(shared.sum()),
        "images": len(np.unique(image[shared])),
        "sentences": int((images_of > 1).sum()),
    }


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


def groups_of_batches(pairs: PairDataset | StreamedPairs, args: VSETrainingArguments) -> dict[str, Any]:
    """What the sampler takes for `batch_groups`, or for records of entities.

    Raises:
        ValueError: there are no kept vectors of captions, or groups of this kind cannot be formed.
    """
    if args.positives == "entity":
        return entities_of_batches(pairs, args)
    if args.batch_groups == "none":
        return {}
    if isinstance(pairs, StreamedPairs):
        raise ValueError(
            "batch_groups: neighbours compares all images, which a stream does not: give streaming: false"
        )
    first, last, size = args.group_first_rank, args.group_last_rank, args.group_size
    if pairs.texts is None or pairs.texts[0].ndim != 2:
        raise ValueError(
            "batch_groups: neighbours needs one kept vector of each caption: give freeze_text_tower: true without "
            "text_pooling gpo, word_dropout and set_dropout, or batch_groups: none"
        )
    if not args.unique_images:
        raise ValueError("batch_groups: neighbours orders images: give unique_images: true, or batch_groups: none")
    if min(last, len(pairs.captions) - 1) < first + size - 2:
        raise ValueError(
            f"group_size={size} needs {size - 1} ranks, but group_first_rank={first} and group_last_rank={last} have "
            f"fewer among {len(pairs.captions)} images: lower group_size or group_first_rank"
        )
    return {"near": near_rows(vectors_of_images(pairs.texts, len(pairs.captions)), first, last), "group_size": size}
