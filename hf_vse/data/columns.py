"""Finds the columns with images, captions and ids in any data set, and converts it to the columns of `schema.py`.

Columns are found by type and customary name. Every row becomes one image with all its captions, and splits are named
train, validation and test. Images are neither copied nor decoded.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, Value

from hf_vse.data.fields import (
    TEXT_FEATURES,
    Fields,
    are_kept,
    field_columns,
    field_features,
    field_names,
    field_value,
    is_whole,
    report_differing,
)
from hf_vse.data.images import MAX_BROKEN_SHARE, find_broken_rows, image_keys, stored_images
from hf_vse.data.ready_columns import count_repeated, joined_columns, read_by_column, renamed
from hf_vse.data.schema import (
    CAPTION_IDS,
    CAPTIONS,
    IMAGE,
    IMAGE_FEATURES,
    IMAGE_ID,
    is_id,
    report_repeated,
)  # fmt: skip
from hf_vse.files import inside

logger = logging.getLogger(__name__)

SPLITS = {"train": "train", "restval": "train", "test": "test"}
SPLITS |= dict.fromkeys(["validation", "valid", "val", "dev"], "validation")

_IMAGE_NAMES = ("image", "img", "jpg", "png", "jpeg", "photo", "picture")
_CAPTION_NAMES = ("captions", "caption", "text", "texts", "sentences", "raw", "txt")
_IMAGE_ID_NAMES = ("cocoid", "image_id", "img_id", "imgid")
_CAPTION_ID_NAMES = ("sentids", "caption_ids", "sentid", "caption_id")
_FILE_NAMES = ("filename", "file_name", "image_path")
_PATHS = (Value("string"), Value("large_string"))
_CONTENTS = (Value("binary"), Value("large_binary"))


@dataclass(frozen=True)
class Layout:
    """The columns to read; a name is that of a column, or of a field of the column `json` (webdataset)."""

    image: str
    captions: tuple[str, ...]
    image_id: str | None
    caption_ids: str | None
    file_name: str | None


def find_layout(
    features: Features | None, image_column: str | None, caption_column: str | None, needs_captions: bool = True
) -> Layout:
    """The columns to read: the ones named, or else by type and customary name."""
    if features is None:
        raise ValueError("the columns of this streamed data set are unknown before it is read: use streaming=False")
    available = named_features(features)

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in available), None)

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not images and IMAGE_FEATURES in features:
        images = [IMAGE_FEATURES]
    if len(images) != 1:
        images = [name for name in _IMAGE_NAMES if name in (images or features)][:1]
    numbered = [name for name in features if re.fullmatch(r"caption_\d+", name)]
    captions = [name] if (name := first(_CAPTION_NAMES)) else sorted(numbered, key=lambda name: int(name[8:]))
    images, captions = [image_column] if image_column else images, [caption_column] if caption_column else captions
    for what, names, known in (("image", images, features), ("caption", captions, available)):
        if what == "caption" and not names and not needs_captions:
            continue
        if not names or names[0] not in known:
            problem = f"{what}_column={names[0]!r} is not" if names else f"no {what} column is recognised"
            raise ValueError(f"{problem} among the columns {', '.join(known)}: name it with {what}_column")
    check_image_type(images[0], features[images[0]])
    return Layout(images[0], tuple(captions), first(_IMAGE_ID_NAMES), first(_CAPTION_ID_NAMES), first(_FILE_NAMES))


def named_features(features: Features) -> dict[str, Any]:
    """The columns, and the fields of a column `json` (webdataset)."""
    nested = features.get("json")
    return {**(nested if isinstance(nested, dict) else {}), **features}


def other_fields(features: Features, layout: Layout, divided: bool) -> Fields:
    """Fields beside images, captions and their numbers: name in the source -> name here, and type there."""
    available = named_features(features)
    ids = [name for name in (layout.image_id, layout.caption_ids) if name and is_whole(available[name])]
    names = field_names(available, [layout.image, *layout.captions, *ids, "split" if divided else None])
    return {name: (own, available[name]) for name, own in names.items()}


def check_image_type(name: str, feature: Any) -> None:
    """Raises ValueError for a column that cannot hold images: `datasets` would turn lists of numbers into images."""
    of_file = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if name != IMAGE_FEATURES and not (isinstance(feature, Image) or of_file or feature in (*_PATHS, *_CONTENTS)):
        kind = getattr(feature, "dtype", None) or type(feature).__name__
        raise ValueError(
            f"column {name!r} holds {kind}, no images (files, their names or contents): give image_column"
        )


def _field(row: Mapping[str, Any], name: str | None) -> Any:
    if name is not None and name in row:
        return row[name]
    nested = row.get("json")
    return nested.get(name) if isinstance(nested, Mapping) else None


@dataclass
class RowText:
    """One row without its image; unknown ids are None or [], `key` is equal for rows of one image."""

    captions: list[str]
    caption_ids: list[int]
    image_id: int | None
    key: Any
    split: str | None  # train, validation or test
    num_empty: int


def read_row(row: Mapping[str, Any], layout: Layout) -> RowText:
    """The text of a row, without empty captions."""
    values = [_field(row, name) for name in layout.captions]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"column {layout.captions[0]!r} holds {text!r:.60}, no caption: give caption_column")
    ids = _field(row, layout.caption_ids)
    ids = ids if isinstance(ids, list) else [ids]
    known = len(ids) == len(texts) and all(map(is_id, ids))
    kept = [place for place, text in enumerate(texts) if text and text.strip()]
    image_id = _field(row, layout.image_id)
    key = _field(row, layout.file_name) if image_id is None else image_id
    return RowText(
        captions=[texts[place].strip() for place in kept],
        caption_ids=[ids[place] for place in kept] if known else [],
        image_id=image_id if is_id(image_id) else None,
        key=key if isinstance(key, str | int | None) else repr(key),
        split=SPLITS.get(str(row.get("split"))),
        num_empty=len(texts) - len(kept),
    )


def to_pairs(
    dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    image_column: str | None = None,
    caption_column: str | None = None,
    *,
    root: Path | None = None,
    places: Sequence[Path] | None = None,
    max_captions: int | None = None,
    max_broken_share: float = MAX_BROKEN_SHARE,
    check_images: bool = True,
) -> DatasetDict | IterableDatasetDict:
    """Any data set with images and captions, in the columns of `schema.py`.

    Where a row has one caption, rows of the same image (same id, file name or path) become one. A single split is
    divided by its column `split`, if it has one.

    Args:
        root: the folder (or a file in it) that the paths in an image column of strings start from and stay in.
        places: folders that image files must lie in, for data sets that are not trusted; any by default.
        max_captions: how many captions of an image to keep; all by default.
    """
    groups: dict[str, list] = {}
    for name, part in dataset.items() if isinstance(dataset, dict) else [("train", dataset)]:
        groups.setdefault(SPLITS.get(name, name), []).append(part)
    parts = {name: datasets.concatenate_datasets(g) if len(g) > 1 else g[0] for name, g in groups.items()}
    if not parts:
        raise ValueError("the data set has no split: give one with images and captions")
    first = next(iter(parts.values()))
    layout = find_layout(first.features, image_column, caption_column)
    root = root.parent if root and root.is_file() else root
    where = Where(layout.image, root, places)
    divide = len(parts) == 1 and "split" in first.features
    if isinstance(first, IterableDataset):
        if divide:
            raise ValueError("a column 'split' divides this data set, which streaming cannot do: use streaming=False")
        fields = other_fields(first.features, layout, divided=False)
        options: dict[str, Any] = {"where": where, "max_captions": max_captions}
        streams = {name: _stream(part, layout, fields, **options) for name, part in parts.items()}
        return IterableDatasetDict(streams)
    fields = other_fields(first.features, layout, divide)
    splits: dict[str, Dataset] = {}
    for name, part in parts.items():
        images = _image_column(part.with_format(None), where)
        broken = find_broken_rows(images, max_broken_share) if check_images else {}
        others = _field_columns(part.with_format(None), fields)
        if not broken and not divide:
            found = read_by_column(name, part.with_format(None), images, others, layout, max_captions)
            if found is not None:
                splits[name] = found
                continue
        rows = _read_rows(name, part.with_format(None), layout, broken)
        if not divide or not _divides(part["split"], rows):
            rows = [replace(row, split=name) for row in rows]
        joined = np.array(_join_rows_of_one_image(rows, images), np.int64).reshape(-1, 2)
        report_differing(name, others, *joined.T)
        splits |= _assemble([images, others], rows, max_captions)
    for name, part in splits.items():
        report_repeated(f"split {name}", count_repeated(part), part.with_format("arrow")[IMAGE_ID][:].to_numpy())
    return DatasetDict(splits)


def _divides(names: Sequence[Any], rows: Sequence[RowText]) -> bool:
    """Whether a column `split` names the split of every row."""
    unknown = [name for name, row in zip(names, rows, strict=True) if not row.split]
    if 0 < len(unknown) < len(rows):
        raise ValueError(
            f"column 'split' holds {unknown[0]!r:.40} in {len(unknown):,} of {len(rows):,} rows, others are "
            f"{', '.join(SPLITS)}: correct it, or remove the column"
        )
    return not unknown


@dataclass(frozen=True)
class Where:
    """Where the files of an image column may lie; see `to_pairs`."""

    column: str
    root: Path | None
    places: Sequence[Path] | None

    def path(self, name: str | None) -> str | None:
        """The path in a column of strings; None if it is empty."""
        if not name or not name.strip():
            return None
        return name if self.root is None else str(inside(self.root, name, f"column {self.column!r}"))

    def check(self, path: str | None) -> None:
        """Raises ValueError for a file outside of `places`: else a data set could show any image of the disk."""
        if path is None or self.places is None:
            return
        file = path.rpartition("::")[2]  # the archive that it is in
        own = file.startswith("hf://") or ("://" not in file and any(under(file, place) for place in self.places))
        if not own:
            raise ValueError(f"column {self.column!r} names {path!r:.80}, which is not of this data set: remove it")


def under(path: str, folder: Path) -> bool:
    """Whether a path lies in a folder; the folder may be a link."""
    places = {os.path.join(find(folder), "") for find in (os.path.abspath, os.path.realpath)}
    return os.path.abspath(path).startswith(tuple(places))


def _image_column(part: Dataset, where: Where) -> Dataset:
    """The image column alone and under its final name, decoded lazily; a column of features stays as it is."""
    feature = part.features[where.column]
    if where.column == IMAGE_FEATURES:
        return part.select_columns([IMAGE_FEATURES])
    if feature in _PATHS:
        paths = [where.path(name) for name in part[where.column]]
        images = Dataset.from_dict({IMAGE: paths}, features=Features({IMAGE: Image()}))
    else:
        images = part.select_columns([where.column]).rename_columns({where.column: IMAGE})
        images = images if feature == Image() else images.cast_column(IMAGE, Image())
    for path, content in stored_images(images):
        if content is None:
            where.check(path)
    return images


def _read_rows(name: str, part: Dataset, layout: Layout, broken: Mapping[int, str]) -> list[RowText]:
    """All rows, in the order of the images; rows to leave out have no captions."""
    used = {*layout.captions, layout.image_id, layout.caption_ids, layout.file_name, "json", "split"}
    rows = [read_row(row, layout) for row in part.select_columns([c for c in part.column_names if c in used])]
    if empty := sum(row.num_empty for row in rows):
        logger.warning("split %s: %s empty captions left out", name, f"{empty:,}")
    if without := sum(not row.captions for row in rows):
        logger.warning("split %s: %s images without any caption left out", name, f"{without:,}")
    if any(row.captions for row in rows) and not any(row.captions for n, row in enumerate(rows) if n not in broken):
        raise ValueError(
            f"split {name}: no image with a caption can be read (row {min(broken)}: {min(broken.items())[1]})"
        )
    rows = [replace(row, captions=[], caption_ids=[]) if n in broken else row for n, row in enumerate(rows)]
    if not any(row.captions for row in rows):
        where = ", ".join(layout.captions)
        raise ValueError(f"split {name}: none of {len(rows):,} rows has a caption in {where}: give caption_column")
    return rows


def _field_columns(part: Dataset, fields: Fields) -> Dataset:
    if not fields:
        return Dataset.from_dict({})
    kept = {name: own for name, (own, feature) in fields.items() if name in part.column_names and are_kept(feature)}
    others = {name: each for name, each in fields.items() if name not in kept}
    columns = [renamed(part, kept)] if kept else []
    if others:
        read = part.select_columns([name for name in part.column_names if name in {*others, "json"}])
        columns.append(field_columns(({name: _field(row, name) for name in others} for row in read), others))
    return joined_columns(columns).select_columns([own for own, _ in fields.values()])


def _join_rows_of_one_image(rows: Sequence[RowText], images: Dataset) -> list[tuple[int, int]]:
    """Moves all captions of an image to its first row, if every row has one caption.

    Returns:
        The places of the other rows, and of the first of each.
    """
    if all(row.key is None for row in rows):
        for row, key in zip(rows, image_keys(images), strict=True):
            row.key = key
    if any(len(row.captions) + row.num_empty > 1 for row in rows):
        return []
    first: dict[Any, int] = {}
    joined = []
    for number, row in enumerate(rows):
        place = number if row.key is None else first.setdefault((row.split, row.key), number)
        if place != number:
            rows[place].captions += row.captions
            rows[place].caption_ids += row.caption_ids
            row.captions, row.caption_ids = [], []
            joined.append((number, place))
    return joined


def _assemble(beside: list[Dataset], rows: Sequence[RowText], max_captions: int | None) -> dict[str, Dataset]:
    captions = [row.captions[:max_captions] for row in rows]
    caption_ids = [row.caption_ids[:max_captions] for row in rows]
    if list(map(len, caption_ids)) != list(map(len, captions)):  # some are unknown
        running = count()
        caption_ids = [[next(running) for _ in texts] for texts in captions]
    image_ids = [row.image_id for row in rows]
    if None in image_ids:  # equal for rows of one image, also if its name is not a number
        numbers: dict[Any, int] = {}
        keys = [row.key for row in rows]
        image_ids = [n if key is None else numbers.setdefault(key, n) for n, key in enumerate(keys)]
    columns = {IMAGE_ID: image_ids, CAPTIONS: captions, CAPTION_IDS: caption_ids}
    texts = Dataset.from_dict(columns, features=Features(TEXT_FEATURES))
    images, fields = beside
    pairs = joined_columns([images, texts, fields])
    kept: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        if row.captions:
            kept.setdefault(row.split, []).append(number)
    return {split: pairs.select(numbers) for split, numbers in kept.items()}


def _stream(part: IterableDataset, layout: Layout, fields: Fields, **options: Any) -> IterableDataset:
    feature = part.features[layout.image]
    undecoded = part.cast_column(layout.image, Image(decode=False)) if isinstance(feature, Image) else part
    read = partial(_stream_batch, layout=layout, fields=fields, **options)
    pairs = undecoded.map(read, batched=True, batch_size=32, remove_columns=list(part.features))
    # cast, because after map(features=...) images would stay undecoded
    image = {IMAGE_FEATURES: feature} if layout.image == IMAGE_FEATURES else {IMAGE: Image()}
    return pairs.cast(Features(image | TEXT_FEATURES | field_features(fields)))


def _stream_batch(
    batch: dict[str, list],
    layout: Layout,
    where: Where,
    max_captions: int | None,
    fields: Fields,
) -> dict[str, list]:
    rows = []
    for values in zip(*batch.values(), strict=True):
        row = dict(zip(batch, values, strict=True))
        text = read_row(row, layout)
        if text.captions:
            image = row[layout.image]
            image = where.path(image) if isinstance(image, str) else image
            file = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else image
            where.check(file if isinstance(file, str) else None)
            image_id = _identity(image) if text.image_id is None else text.image_id
            caption_ids = text.caption_ids or [_identity((image_id, caption)) for caption in text.captions]
            others = [field_value(_field(row, name), feature) for name, (_, feature) in fields.items()]
            rows.append((image, image_id, text.captions[:max_captions], caption_ids[:max_captions], *others))
    target = IMAGE_FEATURES if layout.image == IMAGE_FEATURES else IMAGE
    names = (target, IMAGE_ID, CAPTIONS, CAPTION_IDS, *(own for own, _ in fields.values()))
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _identity(value: Any) -> int:
    """A number made from the content: row numbers would repeat, because every process and worker starts at 0."""
    content = (value["bytes"] or value["path"]) if isinstance(value, dict) else value
    digest = blake2b(content if isinstance(content, bytes) else repr(content).encode(), digest_size=8)
    return int.from_bytes(digest.digest()) >> 1  # fits int64
