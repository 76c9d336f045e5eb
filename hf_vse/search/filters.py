"""Conditions on what is known of an item, such as `year>=2020` or `split=validation`."""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

CONDITION = re.compile(r"\s*([\w.-]+?)\s*(!=|>=|<=|=|>|<|~)\s*(.*?)\s*")
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda value, part: str(part).lower() in str(value).lower(),
}


def matching(items: Sequence[Any], conditions: Iterable[str]) -> np.ndarray:
    """(items,) booleans: which items fulfil all conditions.

    Args:
        items: dicts; an item that lacks the field does not match.
        conditions: `FIELD OP VALUE` with OP one of `= != < <= > >=` and `~` (contains, whatever the case). Numbers are
            compared as numbers. Of a list any entry may fulfil it.

    Raises:
        ValueError: no condition, or a field that no item has.
    """
    allowed = np.ones(len(items), bool)
    for condition in conditions:
        field, compare, wanted = parse_condition(condition)
        values = [item.get(field) if isinstance(item, dict) else None for item in items]
        if all(value is None for value in values):
            raise ValueError(f"condition {condition!r}: no item has {field!r}; there are {known_fields(items)}")
        allowed &= np.fromiter((fulfils(value, compare, wanted) for value in values), bool, len(items))
    return allowed


def parse_condition(text: str) -> tuple[str, Callable[[Any, Any], bool], str]:
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"condition {text!r} is not of the form FIELD OP VALUE, OP one of {' '.join(COMPARE)}")
    field, sign, wanted = match.groups()
    return field, COMPARE[sign], wanted


def fulfils(value: Any, compare: Callable[[Any, Any], bool], wanted: str) -> bool:
    if isinstance(value, list):
        return any(fulfils(each, compare, wanted) for each in value)
    if value is None:
        return False
    if isinstance(value, bool):
        return compare(str(value).lower(), wanted.lower())
    if isinstance(value, int | float) and compare is not COMPARE["~"]:
        try:
            return compare(value, float(wanted))
        except ValueError:
            return False
    return compare(str(value), wanted)


def known_fields(items: Sequence[Any]) -> str:
    fields = sorted({key for item in items[:1000] if isinstance(item, dict) for key in item})
    return ", ".join(fields) or "no fields at all"
