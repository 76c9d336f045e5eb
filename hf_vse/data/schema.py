"""The common schema of all data sources: a row is an image with all its captions.

| column           | type                            | meaning                                                |
|------------------|---------------------------------|--------------------------------------------------------|
| `image`          | `datasets.Image`                | the image, decoded lazily                              |
| `image_features` | `(dim,)` or `(regions, dim)`    | precomputed features, replace `image`                  |
| `image_states`   | as a block of the tower gets them | what the frozen blocks below gave, replace `image`   |
| `image_id`       | int64                           | pairs with equal ids are not negatives of each other   |
| `group_id`       | int64 or null, may be absent    | the same for images of a group, see `groups.py`        |
| `captions`       | list of strings                 | all captions of the image, at least one                |
| `caption_features` | list of `(dim,)`              | a frozen text tower's output for `captions` or their pieces |
| `foils`, `foil_features` | as captions     | a foil of each, or itself, see `training/foils.py`     |
| `teacher_images_D`, `teacher_captions_D` | as features | a teacher's, with digest D: `training/teachers.py` |
| `caption_ids`    | list of int64                   | id of each caption, in the order of `captions`         |

The correspondence between captions and images is data (`text_to_image`), never the arithmetic `j // 5`.
"""

import logging
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from itertools import chain
from typing import Any, TypeVar

import numpy as np

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

IMAGE = "image"
IMAGE_FEATURES = "image_features"
IMAGE_STATES = "image_states"
IMAGE_ID = "image_id"
GROUP_ID = "group_id"
CAPTIONS = "captions"
CAPTION_IDS = "caption_ids"
CAPTION_FEATURES = "caption_features"
FOILS, FOIL_FEATURES = "foils", "foil_features"
TEACHER_IMAGES, TEACHER_CAPTIONS = "teacher_images", "teacher_captions"


def view_column(view: int, kind: str = IMAGE_FEATURES) -> str:
    """The column with the features or states of one of several crops; view 0 is the evaluation crop."""
    return kind if view == 0 else f"{kind}_{view}"


def same_words(caption: str) -> str:
    """A caption without differences of case and white space: equal captions give equal strings."""
    return " ".join(caption.split()).casefold()


def text_id(caption: str) -> int:
    """A number from 0 on (63 bits) that is equal for equal captions, on all machines."""
    return int.from_bytes(blake2b(same_words(caption).encode(errors="surrogatepass"), digest_size=8).digest()) >> 1


def is_id(value: object) -> bool:
    """Whether a value is an integer that fits an id column (int64)."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def report_repeated(where: str, twice: int, image_ids: Sequence[int] | np.ndarray) -> None:
    """Warns in one line each about `twice` captions that repeat another of their image, and about image ids that occur
    in several rows."""
    if twice:
        logger.warning("%s: %s captions repeat another caption of the same image", where, f"{twice:,}")
    values, times = np.unique(image_ids, return_counts=True)
    if again := len(image_ids) - len(values):
        several = np.isin(image_ids, values[times > 1])
        first = image_ids[int(several.argmax())]
        logger.warning(
            "%s: %s rows have the image_id of another row (first: %d): they are not negatives of each other in "
            "training, but count as different images in evaluation",
            where,
            f"{again:,}",
            first,
        )


def repeated_captions(captions: Iterable[Sequence[str]]) -> int:
    """How many captions repeat another caption of the same image."""
    return sum(len(of_image) - len(set(of_image)) for of_image in captions)


def flatten_captions(captions: Sequence[Sequence[Item]]) -> tuple[list[Item], np.ndarray]:
    """All captions in one list, and the row of the image for each caption.

    Args:
        captions: list of captions per image.

    Returns:
        `texts`, a list of T strings, and `text_to_image (T,)` int64: `texts[j]` describes image `text_to_image[j]`.
    """
    counts = [len(of_image) for of_image in captions]
    return list(chain.from_iterable(captions)), np.repeat(np.arange(len(counts)), counts)


def fingerprint(image_ids: Sequence[int], captions: Sequence[Sequence[str]]) -> str:
    """16 hex digits; equal if two evaluations used the same images and captions in the same order."""
    digest = sha256()
    for image_id, of_image in zip(image_ids, captions, strict=True):
        digest.update(repr((int(image_id), list(of_image))).encode())
    return digest.hexdigest()[:16]


def data_fingerprint(split: Any) -> str:
    """The fingerprint of a split as `load_pairs` returns it."""
    plain = split.with_format(None)
    return fingerprint(plain[IMAGE_ID][:], plain[CAPTIONS][:])
