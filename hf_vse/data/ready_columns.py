"""A split whose rows need no change is taken as it is: its columns stay memory-mapped, no row becomes a Python object.

With millions of images that is the difference between seconds and minutes, and between megabytes and gigabytes. All
other splits go the way of `columns.py`, which would give the same for this one (a test compares them).
"""

from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, List, Value

from hf_vse.data.digests import digest_of
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE_ID

READ_AT_ONCE = 10_000  # rows


def ready_texts(
    part: Dataset, captions: str, image_id: str | None, caption_ids: str | None, max_captions: int | None
) -> Dataset | None:
    """The text columns of `schema.py`, where a split has lists of clean captions and a number for every image.

    Args:
        captions, image_id, caption_ids: its columns.
        max_captions: how many of an image are kept.

    Returns:
        None if a caption is missing, empty or has white space around it, if no image has several captions (then rows
        of one image are joined) or one has more than `max_captions`, or if columns are missing or of other types.
    """
    features = part.features
    if part._indices is not None or features.get(captions) != List(Value("string")):
        return None
    if image_id is None or features.get(image_id) != Value("int64") or part.data.column(image_id).null_count:
        return None
    column = part.data.column(captions)
    counts = pc.list_value_length(column)
    least, most = pc.min_max(counts).values()
    if column.null_count or least.as_py() < 1 or not 1 < most.as_py() <= (max_captions or most.as_py()):
        return None
    if not all(map(are_clean, column.chunks)):
        return None
    if caption_ids is None:
        ends = np.cumsum(counts.to_numpy())
        ids = pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), np.arange(ends[-1]))
        numbers = Dataset(
            pa.table({CAPTION_IDS: ids}), fingerprint=digest_of("caption_ids", part._fingerprint, captions)
        )
    elif features.get(caption_ids) == List(Value("int64")):
        own = part.data.column(caption_ids)
        values_missing = any(chunk.flatten().null_count for chunk in own.chunks)
        if own.null_count or values_missing or not pc.list_value_length(own).equals(counts):
            return None
        numbers = renamed(part, {caption_ids: CAPTION_IDS})
    else:
        return None
    texts = renamed(part, {image_id: IMAGE_ID, captions: CAPTIONS})
    return datasets.concatenate_datasets([texts, numbers], axis=1)


def renamed(part: Dataset, names: dict[str, str]) -> Dataset:
    return part.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})


def are_clean(captions: pa.Array) -> bool:
    """Whether no caption of a column of lists is missing or empty, or begins or ends with white space."""
    texts = captions.flatten()
    if texts.null_count:
        return False
    shortest = pc.min(pc.binary_length(texts)).as_py()
    return shortest != 0 and pc.all(pc.equal(pc.utf8_trim_whitespace(texts), texts)).as_py() is not False


def iter_captions(split: Dataset) -> Iterator[list[str]]:
    """The captions of each image, read some at a time."""
    for batch in split.with_format(None).select_columns([CAPTIONS]).iter(READ_AT_ONCE):
        yield from batch[CAPTIONS]
