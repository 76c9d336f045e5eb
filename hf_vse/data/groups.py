"""Groups of images that show the same thing: near-duplicate photographs, and those of one product or event.

A burst of photographs is one scene. If a part of it is held out, recall on that part is too good, because the model
has learned the scene; and as negatives of each other its images teach the model to tell apart what is equal. So a
group stays together when images are held out (`hold_out`), and its images are no negatives of each other
(`pairs.py`). Images whose near-duplicate is a near-duplicate of a third belong to one group with it.

A group is a number in the column `group_id`, null for images without a group. In a stream, whose rows are not
compared, it stands for a value of a column.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, Value
from datasets.table import InMemoryTable

from hf_vse.data.features import unit_rows
from hf_vse.data.schema import GROUP_ID, IMAGE, IMAGE_FEATURES, IMAGE_ID, text_id

logger = logging.getLogger(__name__)

BLOCK = 1024  # images compared at once, with as many others
SIMILAR = 2 - 2 * 0.9  # squared distance of unit vectors with a cosine of 0.9


def near_pairs(vectors: np.ndarray, squared: float, block: int = BLOCK) -> Iterator[np.ndarray]:
    """All pairs of rows with at most this squared Euclidean distance, as arrays (pairs, 2), a block at a time.

    Exact for whole numbers below 2^24 / 2. The time grows with the square of the rows (100,000 hashes: a minute on
    one core), the memory does not.
    """
    vectors = vectors.astype(np.float32)
    half = (vectors * vectors).sum(1, keepdims=True) / 2
    ones = np.ones_like(half)
    left, right = (
        np.hstack([vectors, -half, ones]),
        np.hstack([vectors, ones, -half]),
    )  # left @ right.T = -distance / 2
    for start in range(0, len(vectors), block):
        for other in range(start, len(vectors), block):
            near = left[start : start + block] @ right[other : other + block].T >= -squared / 2
            pairs = np.argwhere(near) + (start, other)
            if len(pairs := pairs[pairs[:, 0] < pairs[:, 1]]):
                yield pairs


def connected(count: int, links: Iterable[np.ndarray]) -> np.ndarray:
    """(count,) for each of `count` things the smallest number of its connected component (union-find)."""
    parent = np.arange(count)

    def root(of: int) -> int:
        while parent[of] != of:
            of = parent[of]
        return of

    for pairs in links:
        for one, other in np.unique(parent[pairs], axis=0).tolist():
            low, high = sorted((root(one), root(other)))
            parent[high] = low
        while (parent != parent[parent]).any():
            parent = parent[parent]
    return parent


def equal_pairs(keys: Sequence[Hashable]) -> np.ndarray:
    """(pairs, 2): each thing with the first one that has the same key; None is no key."""
    first: dict[Hashable, int] = {}
    return np.array(
        [(first.setdefault(key, place), place) for place, key in enumerate(keys) if key is not None], dtype=np.int64
    ).reshape(-1, 2)


def with_groups(
    splits: DatasetDict,
    group_column: str | None = None,
    vectors: Sequence[np.ndarray] | None = None,
    squared: float = 0.0,
) -> DatasetDict:
    """The splits with the groups of their images, which may lie in several splits.

    Args:
        splits: as `load_pairs` returns them; rows with one `image_id` are of one group.
        group_column: a column with equal values for images of one group, and null or "" for those of none.
        vectors: for each split a vector of each image, zeros where nothing is known; see `image_hashes`.
        squared: up to this squared distance of their vectors two images are near-duplicates.
    """
    keys, given = [], []
    for name, split in splits.items():
        check_column(group_column, split.column_names, name)
        keys += [(name, image_id) for image_id in plain_column(split, IMAGE_ID)]
        given += [None if is_none(value) else repr(value) for value in plain_column(split, group_column)]
    links: Iterable[np.ndarray] = [equal_pairs(keys), equal_pairs(given)]
    if vectors is not None:
        found = np.concatenate(vectors)
        known = np.flatnonzero(found.any(axis=1))
        links = chain(links, (known[pairs] for pairs in near_pairs(found[known], squared)))
    group = connected(len(keys), links)
    several = np.bincount(group, minlength=len(keys)) > 1
    ids = [text_id(f"group {of}") if several[of] else None for of in group.tolist()]
    ends = np.cumsum([len(split) for split in splits.values()]).tolist()
    of_split = {name: ids[end - len(split) : end] for (name, split), end in zip(splits.items(), ends, strict=True)}
    report_groups(of_split)
    return DatasetDict({name: with_group_ids(split, of_split[name]) for name, split in splits.items()})


def with_streamed_groups(streams: IterableDatasetDict, group_column: str) -> IterableDatasetDict:
    """The streamed splits with the groups of a column, which are known before all rows are."""
    for name, stream in streams.items():
        check_column(group_column, stream.column_names, name)
    logger.info(
        "images of one %s are no negatives of each other; near-duplicates are not looked for in a stream", group_column
    )
    return IterableDatasetDict({name: with_group_numbers(each, group_column) for name, each in streams.items()})


def with_group_numbers(stream: IterableDataset, group_column: str) -> IterableDataset:
    features = Features(stream.features | {GROUP_ID: Value("int64")})
    undecoded = stream.cast_column(IMAGE, Image(decode=False)) if IMAGE in features else stream
    # cast, because after map(features=...) images would stay undecoded
    return undecoded.map(group_numbers, batched=True, batch_size=32, input_columns=group_column).cast(features)


def group_numbers(values: Sequence[Any]) -> dict[str, list[int | None]]:
    """For each value of a group column a number from 0 on (63 bits), the same on all machines."""
    digests = [blake2b(repr(value).encode(errors="surrogatepass"), digest_size=8).digest() for value in values]
    numbers = [int.from_bytes(digest) >> 1 for digest in digests]
    return {GROUP_ID: [None if is_none(value) else number for value, number in zip(values, numbers, strict=True)]}


def is_none(value: Any) -> bool:
    """Whether a value of a group column stands for an image without a group."""
    return value in (None, "")


def check_column(group_column: str | None, columns: Sequence[str], split: str) -> None:
    """Raises ValueError where a split has no such column."""
    if group_column is not None and group_column not in columns:
        raise ValueError(
            f"group_column={group_column!r} is not among the columns {', '.join(columns)} of {split}: correct it"
        )


def plain_column(split: Dataset, name: str | None) -> list[Any]:
    """The values of a column; None for each row without it."""
    return split.with_format(None)[name][:] if name in split.column_names else [None] * len(split)


def unit_features(split: Dataset) -> np.ndarray:
    """(images, dim) float32: the features of each image, or the mean of those of its regions, with length 1."""
    rows = split.select_columns([IMAGE_FEATURES]).with_format("numpy")
    found = []
    for start in range(0, len(rows), BLOCK):
        features = np.asarray(rows[start : start + BLOCK][IMAGE_FEATURES], np.float32)
        features = features.mean(axis=1) if features.ndim == 3 else features
        found.append(unit_rows(features))
    return np.concatenate(found)


def with_group_ids(split: Dataset, ids: Sequence[int | None]) -> Dataset:
    """The split with this column `group_id`; its images are not copied, even where rows were selected."""
    whole = split.with_format(None).remove_columns([GROUP_ID] if GROUP_ID in split.column_names else [])
    rows = np.arange(len(split)) if whole._indices is None else whole._indices.column(0).to_numpy()
    column: list[int | None] = [None] * whole.data.num_rows
    for row, group in zip(rows.tolist(), ids, strict=True):
        column[row] = group
    features = Features(whole.features | {GROUP_ID: Value("int64")})
    table = whole.data.table.append_column(GROUP_ID, pa.array(column, pa.int64()))
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    return Dataset(InMemoryTable(table), indices_table=whole._indices)


def group_counts(ids: Sequence[int | None]) -> dict[str, int]:
    """Of a split: how many groups of several images there are, how many images are in them, and in the largest."""
    sizes = [size for group, size in Counter(ids).items() if group is not None and size > 1]
    return {"groups": len(sizes), "images": sum(sizes), "largest": max(sizes, default=0)}


def report_groups(of_split: Mapping[str, Sequence[int | None]]) -> None:
    """Says in one line what groups there are, and warns where one lies in training and in another split."""
    images = sum(map(len, of_split.values()))
    found = group_counts(list(chain.from_iterable(of_split.values())))
    logger.info(
        "%d groups of near-duplicate or related images: %d of %d images, %d in the largest; images of a group are "
        "held out together and are no negatives of each other", found["groups"], found["images"], images,
        found["largest"],
    )  # fmt: skip
    trained = {*of_split.get("train", ())} - {None}
    for name in of_split.keys() - {"train"}:
        if known := sum(group in trained for group in of_split[name]):
            logger.warning(
                "%s: %d of %d images have a near-duplicate in the training split: recall on them is too good",
                name, known, len(of_split[name]),
            )  # fmt: skip


def hold_out(train: Dataset, share: float, seed: int) -> dict[str, Dataset]:
    """Divides a split in `train` and `validation`; a group of images goes into one of them.

    The share is one of groups, and of images without a group; without groups the parts are those of
    `Dataset.train_test_split`.

    Raises:
        ValueError: all images are of one group.
    """
    units: dict[Hashable, list[int]] = {}
    for row, group in enumerate(plain_column(train, GROUP_ID)):
        units.setdefault(("row", row) if group is None else group, []).append(row)
    if len(units) < 2:
        raise ValueError(
            "all images of the train split are of one group and none can be held out: give a validation split, or "
            "near_duplicates: none"
        )
    parts = Dataset.from_dict({"rows": list(units.values())}).train_test_split(test_size=share, seed=seed)
    names = {"train": "train", "validation": "test"}
    return {name: train.select(list(chain.from_iterable(parts[part]["rows"]))) for name, part in names.items()}
