"""Items as columns of an Arrow table, so that conditions are compared by column and no item is a Python object.

For each field and each kind of value that it holds there is one column, `KIND "FIELD"`:

    whole    int64; numbers without a fraction
    real     float64, finite
    text     large_string
    truth    bool
    other    large_string, JSON: objects, larger whole numbers, what is not finite, text that is no Unicode
    empty    bool, true: the field is there, as a list without entries

A row is null where it has no value of the kind, and a column is one of lists where some row has several. What a
condition means is said in `filters.py`; where no comparison of Arrow means the same, each value is asked once.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_vse.search.filters import Condition, as_number, entries_of, entry_fulfils, entry_kind

TYPES = {
    "whole": pa.int64(),
    "real": pa.float64(),
    "text": pa.large_string(),
    "truth": pa.bool_(),
    "other": pa.large_string(),
    "empty": pa.bool_(),
}
KIND_OF_FIELD = {"whole": "number", "real": "number", "text": "text", "truth": "truth"}
COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    ">": pc.greater,
    "<": pc.less,
}
LOWEST, HIGHEST = -(2**63), 2**63 - 1  # of int64
# Every text that `as_number` reads fits, and some others.
LIKE_A_NUMBER = r"^[\s\p{Z}\x{1c}-\x{1f}\x{85}+\-._eE\p{Nd}]*$"
MOST_COLUMNS = 1000  # items with more have none, and are asked one by one


def columns_of_items(items: Sequence[Any]) -> dict[str, pa.Array]:
    """Columns of items, each (items,), by name; none if there would be too many.

    Args:
        items: as `json.loads` gives them.
    """
    found: dict[str, tuple[str, list[int], list[Any]]] = {}
    for row, item in enumerate(items):
        for field, value in item.items() if isinstance(item, dict) else ():
            if value is None:
                continue
            for entry in list(entries_of(value)) or [True]:
                kind = column_kind(entry) if has_entries(value) else "empty"
                _, rows, values = found.setdefault(column_name(kind, field), (kind, [], []))
                rows.append(row)
                values.append(json.dumps(entry) if kind == "other" else entry)
        if len(found) > MOST_COLUMNS:
            return {}
    return {
        name: as_column(pa.array(values, TYPES[kind]), np.array(rows), len(items))
        for name, (kind, rows, values) in sorted(found.items())
    }


def has_entries(value: Any) -> bool:
    return next(entries_of(value), None) is not None


def column_name(kind: str, field: str) -> str:
    return f"{kind} {json.dumps(field)}"


def column_kind(entry: Any) -> str:
    kind = entry_kind(entry)
    if kind == "number":
        if isinstance(entry, int):
            return "whole" if LOWEST <= entry <= HIGHEST else "other"
        return "real" if math.isfinite(entry) else "other"
    if kind == "text":
        return "text" if is_utf8(entry) else "other"
    return "truth" if kind == "truth" else "other"


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_column(values: pa.Array, rows: np.ndarray, count: int) -> pa.Array:
    """(count,) with the values at their rows, which do not fall; of lists where a row has several."""
    places = np.searchsorted(rows, np.arange(count + 1))
    if (np.diff(places) <= 1).all():
        return values.take(pa.array(places[:-1], mask=np.diff(places) == 0))
    offsets = pa.array(places, pa.int64(), mask=np.append(np.diff(places) == 0, False))
    return pa.LargeListArray.from_arrays(offsets, values)


def fields_of_columns(table: pa.RecordBatch, alive: np.ndarray | None = None) -> dict[str, set[str]]:
    """The fields and the kinds of their values, as `item_fields` finds them in the items that are alive."""
    fields: dict[str, set[str]] = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        kind, _, field = name.partition(" ")
        if not field:
            continue
        there = pc.is_valid(column)
        if alive is not None:
            there = pc.and_(there, pa.array(alive))
        if there.true_count:
            kinds = fields.setdefault(json.loads(field), set())
            if kind == "other":
                kinds.update(
                    entry_kind(json.loads(text)) for text in values_and_rows(column.filter(there))[0].to_pylist()
                )
            elif kind != "empty":
                kinds.add(KIND_OF_FIELD[kind])
    return fields


def values_and_rows(column: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """The values of a column, and the row of each where it is one of lists."""
    if not pa.types.is_large_list(column.type):
        return column, None
    return pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()


def fulfilling(table: pa.RecordBatch, condition: Condition) -> np.ndarray:
    """(rows,) booleans: which rows of the columns fulfil a condition."""
    allowed = np.zeros(table.num_rows, bool)
    for kind in TYPES:
        place = table.schema.get_field_index(column_name(kind, condition.field))
        if place < 0 or kind == "empty":
            continue
        values, rows = values_and_rows(table.column(place))
        found = as_mask(compared_values(kind, values, condition))
        if rows is None:
            allowed |= found
        else:
            allowed[rows[found]] = True
    return allowed


def as_mask(found: pa.Array | np.ndarray) -> np.ndarray:
    return found if isinstance(found, np.ndarray) else found.fill_null(False).to_numpy(zero_copy_only=False)


def compared_values(kind: str, values: pa.Array, condition: Condition) -> pa.Array | np.ndarray:
    """(values,) booleans, null or False where there is none."""
    number = as_number(condition.value)
    if kind in ("whole", "real") and condition.op != "~":
        if number is None:
            return values.is_valid() if condition.op == "!=" else np.zeros(len(values), bool)
        if kind == "whole":
            return compared_whole(values, condition.op, number)
        if isinstance(number, float) or abs(number) <= 2**53:
            return COMPARE[condition.op](values, pa.scalar(float(number)))
    if kind == "text" and is_utf8(condition.value):
        if condition.op == "~":
            return containing(values, condition.value.lower())
        if number is None or not condition.is_order:
            return COMPARE[condition.op](values, pa.scalar(condition.value, values.type))
        like = as_mask(pc.match_substring_regex(values, LIKE_A_NUMBER))
        like[like] = asked_once(kind, values.filter(pa.array(like)), condition)
        return like
    return asked_once(kind, values, condition)


def compared_whole(values: pa.Array, op: str, number: int | float) -> pa.Array | np.ndarray:
    """Exactly, also with a number that has a fraction or is no int64."""
    below = math.floor(number)
    if below != number and op in ("=", "!="):
        return values.is_valid() if op == "!=" else np.zeros(len(values), bool)
    if below != number:
        op = {">=": ">", "<": "<="}.get(op, op)
    if LOWEST <= below <= HIGHEST:
        return COMPARE[op](values, pa.scalar(below, pa.int64()))
    is_true = op == "!=" or op[0] == ("<" if below > HIGHEST else ">")
    return values.is_valid() if is_true else np.zeros(len(values), bool)


def containing(values: pa.Array, folded: str) -> np.ndarray:
    """Texts that contain one in lower case; Arrow lowers the case of ASCII as Python does, but not of all letters."""
    ascii_only = as_mask(pc.string_is_ascii(values))
    found = np.zeros(len(values), bool)
    if folded.isascii():
        found = as_mask(pc.match_substring(pc.ascii_lower(values), folded)) & ascii_only
    others = np.flatnonzero(~ascii_only & as_mask(values.is_valid()))
    texts = values.take(pa.array(others)).to_pylist()
    found[others] = [folded in text.lower() for text in texts]
    return found


def asked_once(kind: str, values: pa.Array, condition: Condition) -> np.ndarray:
    """By `entry_fulfils`, for each different value."""
    if kind == "real":  # by their bits, as zero and minus zero are different texts
        values = values.view(pa.int64())
    encoded = values.dictionary_encode()
    different = encoded.dictionary.view(pa.float64()) if kind == "real" else encoded.dictionary
    asked = [json.loads(each) if kind == "other" else each for each in different.to_pylist()]
    fulfilled = np.array([entry_fulfils(entry, condition) for entry in asked] + [False], bool)
    return fulfilled[encoded.indices.fill_null(len(asked)).to_numpy(zero_copy_only=False)]
