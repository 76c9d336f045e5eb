"""Conditions by column equal those that ask each item."""

import json

import numpy as np
import pyarrow as pa
import pytest

from hf_vse.search import columns
from hf_vse.search.columns import columns_of_items, fields_of_columns, fulfilling
from hf_vse.search.filters import COMPARE, item_fields, matching, parse_condition, parse_conditions
from tests.search.conditions import ITEMS, TABLE

VALUES = [
    *(None, True, False, 0, -0.0, 0.0, 5, "5", "5.0", " ５ ", 5.5, -7, "-7", "1_0", "1e3", "nan", "inf", 1e300),
    *(2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 2**63, 10**30, float("inf"), float("nan")),
    *("", "a", "A", "Straße", "STRASSE", "İ", "i̇", "K", "k", "ΟΔΟΣ", "οδος", "%_", "\ud800", "é", "\U0001f600"),
    *(
        "\uffff",
        [],
        [None],
        [[]],
        {},
        {"w": 1},
        ["a", 5],
        [["5", [True]]],
        [2**70, "x"],
        ["\x1c7", 7.25],
        [1, 2],
        ["b", None],
    ),
]
ASKED = [
    *("5", "5.0", "5.5", "-7", "0", "-0", "1e3", "10", "true", "False", "a", "A", "é", "ß", "straß", "İ", "i", "K"),
    *("σ", "ς", "Σ", "\ud800", "\U0001f600", "\uffff", "nan", "inf", "w", '{"w": 1}', "x", "7", ".", "soon", "1e300"),
    *(str(2**53), str(2**53 + 1), str(2**63), str(2**63 - 1), str(-(2**63)), str(10**30), str(10**400), "9.3e18", "k"),
]


def table_of(items: list) -> pa.RecordBatch:
    made = columns_of_items(items)
    return pa.record_batch(list(made.values()), list(made)) if made else None


@pytest.mark.parametrize(("where", "rows"), TABLE, ids=[" and ".join(where) for where, _ in TABLE])
def test_the_table_of_conditions(where, rows):
    table = table_of(ITEMS)
    allowed = np.logical_and.reduce([fulfilling(table, condition) for condition in parse_conditions(where)])
    assert np.flatnonzero(allowed).tolist() == rows


@pytest.mark.parametrize("op", [*COMPARE, "~"])
def test_every_kind_of_value_with_every_operator(op):
    items = [{"a": value} for value in VALUES] + [{}, "text", {"b": 1}]
    items = json.loads(json.dumps(items))
    single, table = [table_of([item]) for item in items], table_of(items)
    found = 0
    for asked in ASKED:
        condition = parse_condition(f"a{op}{asked}")._replace(value=asked)
        expected = matching(items, [], {}) & np.array([columns_free(item, condition) for item in items])
        np.testing.assert_array_equal(fulfilling(table, condition), expected, f"a{op}{asked!r}")
        alone = [each is not None and bool(fulfilling(each, condition)[0]) for each in single]
        np.testing.assert_array_equal(alone, expected, f"a{op}{asked!r}, columns without lists")
        found += expected.sum()
    assert found > 20


def columns_free(item, condition) -> bool:
    from hf_vse.search.filters import fulfils

    return isinstance(item, dict) and fulfils(item.get(condition.field), condition)


def test_fields_are_those_of_the_items_that_are_alive(monkeypatch):
    items = [{"a": value, f"f{row}": value} for row, value in enumerate(VALUES)] + ["text", {"\ud800 x": [1]}]
    items = json.loads(json.dumps(items))
    table = table_of(items)
    for alive in (np.ones(len(items), bool), np.arange(len(items)) % 3 == 0, np.zeros(len(items), bool)):
        left = [item for item, is_alive in zip(items, alive, strict=True) if is_alive]
        found = {name: sorted(kinds) for name, kinds in sorted(fields_of_columns(table, alive).items())}
        assert found == item_fields(left)
    monkeypatch.setattr(columns, "MOST_COLUMNS", 3)
    assert columns_of_items(items) == {}
