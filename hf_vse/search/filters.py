"""Conditions on what is known of an item, such as `year>=2020` or `split=validation`."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

CONDITION = re.compile(r"\s*([\w.-]+?)\s*(!=|>=|<=|==|=|>|<|~)\s*(.*?)\s*", flags=re.DOTALL)
ANOTHER_OPERATOR = re.compile(r"[=<>~!]|.*([=!<>]=|[<>])", flags=re.DOTALL)
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
TRUTH = {"true": True, "false": False}


class Condition(NamedTuple):
    """`field sign wanted`, the sign one of those of `COMPARE` or `~` (contains)."""

    field: str
    sign: str
    wanted: str

    @property
    def is_order(self) -> bool:
        return self.sign not in ("=", "!=", "~")


def matching(items: Sequence[Any], conditions: Iterable[str]) -> np.ndarray:
    """(items,) booleans: which items fulfil all conditions.

    Args:
        items: dicts; an item that lacks the field does not match.
        conditions: `FIELD OP VALUE` with OP one of `= != < <= > >=` and `~` (contains, whatever the case). Numbers are
            compared as numbers. Of a list any entry may fulfil it.

    Raises:
        ValueError: no condition, a field that no item has, or a value that cannot be compared with those of the field.
    """
    allowed = np.ones(len(items), bool)
    for text in conditions:
        condition = parse_condition(text)
        values = [item.get(condition.field) if isinstance(item, dict) else None for item in items]
        if all(value is None for value in values):
            fields = sorted({key for item in items[:1000] if isinstance(item, dict) for key in item})
            there = ", ".join(fields) or "no fields at all"
            raise ValueError(f"condition {text!r}: no item has {condition.field!r}; there are {there}")
        check_comparable(text, condition, values)
        allowed &= np.fromiter((fulfils(value, condition) for value in values), bool, len(items))
    return allowed


def parse_condition(text: str) -> Condition:
    """The parts of a condition; `==` is `=`.

    Raises:
        ValueError: it is none, or several in one.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"condition {text!r} is not of the form FIELD OP VALUE, OP one of {' '.join(COMPARE)} ~")
    field, sign, wanted = match.groups()
    sign = "=" if sign == "==" else sign
    if ANOTHER_OPERATOR.match(wanted) and not (sign == "~" and wanted[0] not in "=<>~!"):
        raise ValueError(f"condition {text!r} has two operators: write FIELD OP VALUE, and each condition on its own")
    if not wanted and sign not in ("=", "!="):
        raise ValueError(f"condition {text!r} has no value: write FIELD OP VALUE")
    return Condition(field, sign, wanted)


def check_comparable(text: str, condition: Condition, values: Sequence[Any]) -> None:
    """Raises ValueError where a field holds only numbers, or only true and false, and the condition neither."""
    there = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    kinds = {type(entry) for entry in there if entry is not None}
    if condition.sign == "~" or not kinds:
        return
    if kinds == {bool} and (condition.wanted.lower() not in TRUTH or condition.is_order):
        raise ValueError(f"condition {text!r}: {condition.field} is true or false; write {condition.field}=true")
    if kinds <= {int, float} and as_number(condition.wanted) is None:
        raise ValueError(f"condition {text!r}: {condition.field} holds numbers, {condition.wanted!r} is none")


def fulfils(value: Any, condition: Condition) -> bool:
    """Whether a value, or any entry of a list, does."""
    if isinstance(value, list):
        return any(fulfils(each, condition) for each in value)
    if value is None:
        return False
    if condition.sign == "~":
        return condition.wanted.lower() in str(value).lower()
    compare, number = COMPARE[condition.sign], as_number(condition.wanted)
    if isinstance(value, bool):
        return not condition.is_order and compare(value, TRUTH.get(condition.wanted.lower()))
    if isinstance(value, int | float):
        return number is not None and compare(value, number)
    own = as_number(str(value))
    if condition.is_order and number is not None and own is not None:
        return compare(own, number)  # "999" comes before "2000"
    return compare(str(value), condition.wanted)


def as_number(text: str) -> int | float | None:
    """The finite number that a text stands for, exact where it is whole; None where it stands for none."""
    try:
        return int(text)
    except ValueError:
        pass  # it may be a number with a fraction
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
