"""Fields of a source beside its images and captions, such as place, year or tags: kept under their own names.

A field is text, a number, true or false, or a list of these. Lists of fractions are vectors and no fields. Galleries
filter by fields, and evaluations tell recalls by them. Training passes them by.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_vse.data.schema import CAPTION_FEATURES, CAPTION_IDS, CAPTIONS, GROUP_ID, IMAGE, IMAGE_FEATURES, IMAGE_ID

logger = logging.getLogger(__name__)

Fields = Mapping[str, tuple[str, Any]]  # name in the source -> name here, and type there
NUMBERS_AND_TEXT = ("string", "large_string", "int", "uint", "float", "bool")
# Names with a meaning in the rows of `load_pairs`, in training pairs, and in the items of a gallery.
RESERVED = {IMAGE, IMAGE_FEATURES, IMAGE_ID, GROUP_ID, CAPTIONS, CAPTION_IDS, CAPTION_FEATURES}
RESERVED |= {"caption", "whole_caption", "draw", "row", "file"}
TEXT_FEATURES = {IMAGE_ID: Value("int64"), CAPTIONS: List(Value("string")), CAPTION_IDS: List(Value("int64"))}


def is_field(feature: Any) -> bool:
    """Whether values of a column are text, numbers, true or false, or lists of these that are no vectors."""
    inner = getattr(feature, "feature", feature)
    plain = isinstance(inner, Value | ClassLabel) and inner.dtype.startswith(NUMBERS_AND_TEXT)
    return plain and (inner is feature or not inner.dtype.startswith("float"))


def is_whole(feature: Any) -> bool:
    """Whether a column holds whole numbers, or lists of them."""
    return getattr(getattr(feature, "feature", feature), "dtype", "").startswith(("int", "uint"))


def field_names(features: Mapping[str, Any], used: Iterable[str | None]) -> dict[str, str]:
    """The fields of a source: name there -> name here.

    Args:
        features: its columns, and the fields of a column `json` (webdataset).
        used: columns with another purpose.

    Raises:
        ValueError: two fields would have one name.
    """
    names, left = {}, []
    for name, feature in features.items():
        if name in {*used, "json"} or name.startswith("__"):  # __key__ and __url__ of webdataset
            continue
        if is_field(feature):
            names[name] = f"source_{name}" if name in RESERVED or name.startswith(IMAGE_FEATURES) else name
        else:
            left.append(name)
    if left:
        logger.info("columns that are no fields are left out: %s", ", ".join(left))
    for name, own in names.items():
        if own != name:
            if own in names:
                raise ValueError(f"the columns {name!r} and {own!r} would both be {own!r} here: rename one")
            logger.warning("column %r is kept as %r, because the name has a meaning here", name, own)
    return names


def field_features(fields: Fields) -> dict[str, Any]:
    """The types of fields under their names here; the labels of classes are texts."""
    found = {}
    for own, feature in fields.values():
        inner = getattr(feature, "feature", feature)
        kind = Value("string") if isinstance(inner, ClassLabel) else inner
        found[own] = kind if inner is feature else List(kind)
    return found


def field_value(value: Any, feature: Any) -> Any:
    """A value as JSON can hold it: None for what is not a finite number, and the name of a class."""
    if isinstance(value, list):
        return [field_value(each, feature.feature) for each in value]
    if isinstance(feature, ClassLabel):
        return None if value is None or value < 0 else feature.names[value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def are_kept(feature: Any) -> bool:
    """Whether `field_value` changes none of the values of a field."""
    inner = getattr(feature, "feature", feature)
    return isinstance(inner, Value) and not inner.dtype.startswith("float")


def field_columns(rows: Iterable[Mapping[str, Any]], fields: Fields) -> Dataset:
    """The fields of rows that hold them under their names in the source."""
    columns: dict[str, list] = {own: [] for own, _ in fields.values()}
    for row in rows:
        for name, (own, feature) in fields.items():
            columns[own].append(field_value(row[name], feature))
    return Dataset.from_dict(columns, features=Features(field_features(fields)))


def report_differing(split: str, fields: Dataset, rows: np.ndarray, first: np.ndarray) -> None:
    """Says in one line which fields differ between rows of one image, of which the first is kept.

    Args:
        rows: of images that have an earlier row.
        first: the first row of the image of each.
    """
    table = fields.with_format("arrow")[:]
    differing = [name for name in table.column_names if not table[name].take(rows).equals(table[name].take(first))]
    if differing:
        logger.warning(
            "split %s: rows of one image differ in %s; the values of the first are kept", split, ", ".join(differing)
        )
