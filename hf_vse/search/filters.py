"""Conditions on what is known of an item, such as `year>=2020` or `split=validation`.

A condition is data, `(field, op, value)`, and means the same in every store of galleries:

    =  !=        numbers are equal as numbers, true and false in any case, texts to the letter
    < <= > >=    a value that is a number is compared with numbers and with texts that are one ("999" before "2000");
                 any other value with texts, by code points
    ~            contained in the text, whatever the case; numbers, true, false and objects as JSON writes them

Of a list, one entry has to fulfil it, also for `!=`. A missing field, null and an empty list fulfil nothing. A field
that no item has is an error, as is a value that cannot be compared with those of the field.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
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

Fields = Mapping[str, Sequence[str]]  # of each field the kinds of its values: number, text, truth, object


class Condition(NamedTuple):
    """`field op value`, the op one of those of `COMPARE` or `~` (contains)."""

    field: str
    op: str
    value: str

    @property
    def is_order(self) -> bool:
        return self.op not in ("=", "!=", "~")

    @property
    def text(self) -> str:
        return f"{self.field}{self.op}{self.value}"


def parse_condition(text: str) -> Condition:
    """The parts of a condition; `==` is `=`.

    Raises:
        ValueError: it is none, or several in one.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"condition {text!r} is not of the form FIELD OP VALUE, OP one of {' '.join(COMPARE)} ~")
    field, op, value = match.groups()
    op = "=" if op == "==" else op
    if ANOTHER_OPERATOR.match(value) and not (op == "~" and value[0] not in "=<>~!"):
        raise ValueError(f"condition {text!r} has two operators: write FIELD OP VALUE, and each condition on its own")
    if not value and op not in ("=", "!="):
        raise ValueError(f"condition {text!r} has no value: write FIELD OP VALUE")
    return Condition(field, op, value)


def parse_conditions(where: str | Iterable[str]) -> tuple[Condition, ...]:
    return tuple(parse_condition(text) for text in ([where] if isinstance(where, str) else where))


def item_fields(items: Iterable[Any]) -> dict[str, list[str]]:
    """The fields of items and the kinds of their values, as a gallery records them."""
    fields: dict[str, set[str]] = {}
    for item in items:
        for name, value in item.items() if isinstance(item, dict) else ():
            if value is not None:
                fields.setdefault(name, set()).update(map(entry_kind, entries_of(value)))
    return {name: sorted(kinds) for name, kinds in sorted(fields.items())}


def check_conditions(conditions: Iterable[Condition], fields: Fields) -> None:
    """Raises ValueError for a field that no item has, or a value that cannot be compared with those of the field."""
    for condition in conditions:
        if condition.field not in fields:
            there = ", ".join(fields) or "no fields at all"
            raise ValueError(f"condition {condition.text!r}: no item has {condition.field!r}; there are {there}")
        kinds = set(fields[condition.field])
        if condition.op == "~" or not kinds:
            continue
        if kinds == {"truth"} and (condition.value.lower() not in TRUTH or condition.is_order):
            remedy = f"{condition.field} is true or false; write {condition.field}=true"
            raise ValueError(f"condition {condition.text!r}: {remedy}")
        if kinds == {"number"} and as_number(condition.value) is None:
            reason = f"{condition.field} holds numbers, {condition.value!r} is none"
            raise ValueError(f"condition {condition.text!r}: {reason}")


def matching(items: Sequence[Any], where: str | Iterable[str], fields: Fields | None = None) -> np.ndarray:
    """(items,) booleans: which items fulfil all conditions.

    Args:
        items: dicts; anything else has no fields.
        where: conditions such as `year>=2020`.
        fields: those of the items, if known, see `item_fields`.

    Raises:
        ValueError: no condition, or one that does not fit the fields.
    """
    conditions = parse_conditions(where)
    if conditions:
        check_conditions(conditions, item_fields(items) if fields is None else fields)
    allowed = np.ones(len(items), bool)
    for condition in conditions:
        values = (item.get(condition.field) if isinstance(item, dict) else None for item in items)
        allowed &= np.fromiter((fulfils(value, condition) for value in values), bool, len(items))
    return allowed


def fulfils(value: Any, condition: Condition) -> bool:
    """Whether a value, or an entry of a list, does."""
    return any(entry_fulfils(entry, condition) for entry in entries_of(value))


def entry_fulfils(entry: Any, condition: Condition) -> bool:
    if condition.op == "~":
        return condition.value.lower() in text_of(entry).lower()
    if not condition.is_order:
        return is_equal(entry, condition.value) == (condition.op == "=")
    compare, number = COMPARE[condition.op], as_number(condition.value)
    if number is None:
        return isinstance(entry, str) and compare(entry, condition.value)
    own = number_of(entry)
    return own is not None and compare(own, number)


def is_equal(entry: Any, value: str) -> bool:
    if isinstance(entry, bool):
        return TRUTH.get(value.lower()) is entry
    if isinstance(entry, Real):
        return entry == as_number(value)
    return text_of(entry) == value


def entries_of(value: Any) -> Iterator[Any]:
    """The value, or the entries of a list, also of lists in it, without null."""
    if isinstance(value, list):
        for each in value:
            yield from entries_of(each)
    elif value is not None:
        yield value


def entry_kind(entry: Any) -> str:
    if isinstance(entry, bool):
        return "truth"
    return "number" if isinstance(entry, Real) else "text" if isinstance(entry, str) else "object"


def text_of(entry: Any) -> str:
    if isinstance(entry, bool | dict):
        return json.dumps(entry, ensure_ascii=False, sort_keys=True, default=str)
    return str(entry)


def number_of(entry: Any) -> int | float | None:
    """The finite number that an entry is, or that its text stands for; None where there is none."""
    if isinstance(entry, str):
        return as_number(entry)
    return entry if entry_kind(entry) == "number" and abs(entry) < math.inf else None


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
