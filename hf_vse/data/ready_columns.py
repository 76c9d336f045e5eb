"""A split with clean captions is read by column: its columns stay memory-mapped, no row becomes a Python object.

With millions of images that is the difference between seconds and minutes, and between megabytes and gigabytes. Rows
have a list of captions each and need no change (`ready_texts`), or one caption each, and those of one image become one
(`joined_texts`). All other splits go the way of `columns.py`, which would give the same for these (tests compare).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, List, Value

from hf_vse.data.digests import digest_of
from hf_vse.data.features import selected_rows
from hf_vse.data.fields import report_differing
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_FEATURES, IMAGE_ID

if TYPE_CHECKING:
    from hf_vse.data.columns import Layout

READ_AT_ONCE = 10_000  # rows
MOST_BYTES = 2**31  # of captions in one Arrow array of strings


def read_by_column(
    name: str, part: Dataset, images: Dataset, others: Dataset, layout: "Layout", max_captions: int | None
) -> Dataset | None:
    """The split `name` without a Python object for each row; None where that cannot be.

    Args:
        images, others: its images, and its other fields.
        max_captions: how many captions of an image are kept; all if None.
    """
    if len(layout.captions) != 1:
        return None
    [caption] = layout.captions
    texts = ready_texts(part, caption, layout.image_id, layout.caption_ids, max_captions)
    if texts is not None:
        return joined_columns([images, texts, others])
    joined = joined_texts(part, images, caption, layout, max_captions)
    if joined is None:
        return None
    rows = np.arange(len(part))
    later = rows[joined.first != rows]
    report_differing(name, others, later, joined.first[later])
    pairs = joined_columns([images, joined.texts, others])
    return pairs.select(np.flatnonzero(joined.first == rows)) if len(later) else pairs


def joined_columns(parts: list[Dataset]) -> Dataset:
    return datasets.concatenate_datasets([each for each in parts if each.column_names], axis=1)


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


class JoinedTexts(NamedTuple):
    """The text columns of `schema.py`, with all captions of an image in its first row and none in the others; and for
    each row of the source that first row."""

    texts: Dataset
    first: np.ndarray


def joined_texts(
    part: Dataset, images: Dataset, caption: str, layout: "Layout", most: int | None
) -> JoinedTexts | None:
    """The texts of a split whose rows have one clean caption each; those of one image become one.

    Returns:
        None if a caption is missing, empty or has white space around it, if what tells images apart is missing in a
        row or is their content, or if columns are of other types.
    """
    column = part.data.column(caption) if part.features.get(caption) == Value("string") else None
    if part._indices is not None or column is None or not 0 < column.nbytes < MOST_BYTES:
        return None
    texts, numbers = column.combine_chunks(), values_of(part, layout.caption_ids)
    if not are_clean(texts) or (layout.caption_ids is not None and numbers is None):
        return None
    ids = values_of(part, layout.image_id)
    keys = ids if layout.image_id is not None else codes_of_files(part, images, layout.file_name)
    if keys is None:
        return None
    _, places, of_row = np.unique(keys, return_index=True, return_inverse=True)
    first = places[of_row]
    order = np.argsort(first, kind="stable")  # by image as they come first, rows of one image as they come
    counts = np.bincount(first, minlength=len(first))
    if most is not None and counts.max() > most:
        nth = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, counts = order[nth < most], np.minimum(counts, most)
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    columns = {
        IMAGE_ID: pa.array(first if ids is None else ids),
        CAPTIONS: pa.ListArray.from_arrays(ends, texts.take(pa.array(order))),
        CAPTION_IDS: pa.ListArray.from_arrays(ends, np.arange(len(order)) if numbers is None else numbers[order]),
    }
    fingerprint = digest_of("joined_texts", part._fingerprint, images._fingerprint, layout, most)
    return JoinedTexts(Dataset(pa.table(columns), fingerprint=fingerprint), first)


def values_of(part: Dataset, name: str | None) -> np.ndarray | None:
    """A column of numbers; None without it, or if one is missing."""
    if name is None or part.features.get(name) != Value("int64") or part.data.column(name).null_count:
        return None
    return part.data.column(name).to_numpy()


def codes_of_files(part: Dataset, images: Dataset, file_name: str | None) -> np.ndarray | None:
    """A number for each row, equal for images of one file, by its name or path; None if their content is needed."""
    if file_name is not None:
        names = part.data.column(file_name) if part.features.get(file_name) == Value("string") else None
    elif IMAGE_FEATURES in images.column_names:
        return np.arange(len(images))
    else:
        stored = images.with_format("arrow")[:][IMAGE]
        named = all(pc.struct_field(chunk, "bytes").null_count == len(chunk) for chunk in stored.chunks)
        names = pa.chunked_array([pc.struct_field(chunk, "path") for chunk in stored.chunks]) if named else None
    if names is None or names.null_count:
        return None
    return names.combine_chunks().dictionary_encode().indices.to_numpy()


def renamed(part: Dataset, names: dict[str, str]) -> Dataset:
    return part.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})


def are_clean(captions: pa.Array) -> bool:
    """Whether no caption, alone or in a list, is missing or empty, or begins or ends with white space."""
    texts = captions.flatten() if pa.types.is_list(captions.type) else captions
    if texts.null_count:
        return False
    shortest = pc.min(pc.binary_length(texts)).as_py()
    return shortest != 0 and pc.all(pc.equal(pc.utf8_trim_whitespace(texts), texts)).as_py() is not False


def caption_counts(split: Dataset) -> np.ndarray:
    """(images,) how many captions each image has."""
    counts, rows = pc.list_value_length(split.data.column(CAPTIONS)).to_numpy().astype(int), selected_rows(split)
    return counts if rows is None else counts[rows]


def caption_lists(split: Dataset) -> Iterator[pa.ListArray]:
    """The captions of each image, some thousand images at a time."""
    column, rows = split.data.column(CAPTIONS), selected_rows(split)
    if rows is not None and not (np.diff(rows) > 0).all():
        for batch in split.with_format("arrow").select_columns([CAPTIONS]).iter(READ_AT_ONCE):
            yield batch[CAPTIONS].combine_chunks()
        return
    start = 0
    for chunk in column.chunks:
        if rows is None:
            yield from (chunk.slice(first, READ_AT_ONCE) for first in range(0, len(chunk), READ_AT_ONCE))
        else:
            places = rows[slice(*np.searchsorted(rows, (start, start + len(chunk))))] - start
            for first in range(0, len(places), READ_AT_ONCE):
                yield chunk.take(pa.array(places[first : first + READ_AT_ONCE]))
        start += len(chunk)


def caption_blocks(split: Dataset) -> Iterator[pa.Array]:
    """All captions, as Arrow arrays of some thousand."""
    return (block.flatten() for block in caption_lists(split))


def count_repeated(split: Dataset) -> int:
    """How many captions repeat another caption of the same image."""
    repeated = 0
    for block in caption_lists(split):
        captions = block.flatten()
        if len(captions) > len(block):
            code, image = captions.dictionary_encode().indices.to_numpy(), pc.list_parent_indices(block).to_numpy()
            repeated += len(code) - len(np.unique(image * len(code) + code))
    return repeated


def iter_captions(split: Dataset) -> Iterator[list[str]]:
    """The captions of each image, read some at a time."""
    for block in caption_lists(split):
        yield from block.to_pylist()
