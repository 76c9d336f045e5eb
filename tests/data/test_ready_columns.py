"""A split that is taken as it is equals what the general way makes of it; any other split goes the general way."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from hf_vse.data import columns
from hf_vse.data.columns import to_pairs
from hf_vse.data.ready_columns import (
    caption_blocks,
    caption_counts,
    count_repeated,
    iter_captions,
    read_by_column,
)
from hf_vse.evaluation.equal_captions import Wording
from hf_vse.training.training_data import shared_captions, training_data

ROWS = [
    {"image_features": [float(row)], "cocoid": 7 * row, "place": f"p{row}", "raw": [f"a {row}", "b"][: 1 + row % 2]}
    for row in range(6)
]


def split_of(rows: list[dict], **types) -> Dataset:
    kinds = {"image_features": List(Value("float32")), "cocoid": Value("int64"), "place": Value("string")}
    kinds |= {"raw": List(Value("string")), "sentids": List(Value("int64"))} | types
    return Dataset.from_list(rows, features=Features({name: kinds[name] for name in rows[0]}))


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether each split was taken as it is."""
    seen = []

    def looked_at(*arguments):
        seen.append((found := read_by_column(*arguments)) is not None)
        return found

    monkeypatch.setattr(columns, "read_by_column", looked_at)
    return seen


@pytest.mark.parametrize("more", [{}, {"sentids": True}])
def test_a_split_that_needs_no_change_is_what_the_general_way_makes(more, taken, monkeypatch):
    own = [row | {"sentids": list(range(50 - len(row["raw"]), 50))} if more else row for row in ROWS]
    fast = to_pairs(split_of(own))["train"]
    monkeypatch.setattr(columns, "read_by_column", lambda *_: None)
    slow = to_pairs(split_of(own))["train"]
    assert taken == [True] and fast.features == slow.features and fast.column_names == slow.column_names
    assert fast[:] == slow[:]


def changed(row: int, **values) -> list[dict]:
    return [each | (values if number == row else {}) for number, each in enumerate(ROWS)]


@pytest.mark.parametrize(
    "rows, types",
    [
        (changed(2, raw=["a", " b"]), {}),
        (changed(2, raw=["a", "b\u2003"]), {}),
        (changed(2, raw=["a", ""]), {}),
        (changed(2, raw=["a", None]), {}),
        (changed(2, raw=[]), {}),
        (changed(2, cocoid=None), {}),
        ([row | {"raw": row["raw"][:1]} for row in ROWS], {}),
        (ROWS, {"cocoid": Value("int32")}),
        ([row | {"sentids": [1]} for row in ROWS], {}),
    ],
)
def test_any_other_split_goes_the_general_way(rows, types, taken):
    assert len(to_pairs(split_of(rows, **types))["train"]) >= 5 and taken == [False]


def test_rows_that_were_selected_and_more_captions_than_are_kept_go_the_general_way(taken):
    to_pairs(split_of(ROWS).select([3, 1, 4]))
    assert max(map(len, to_pairs(split_of(ROWS), max_captions=1)["train"]["captions"])) == 1
    assert taken == [False, False]


def of_one_caption(rng: np.random.Generator, by: str, folder: Path) -> Dataset:
    """Rows with one caption each, of images that are told apart by a number, a file name, a path or not at all."""
    size, images = int(rng.integers(1, 30)), int(rng.integers(1, 12))
    image = rng.integers(images, size=size).tolist()
    rows = [
        {
            "caption": f"c {rng.integers(6)}",
            "place": f"p {each % 3} {rng.integers(20) // 19}",
            "tags": [each],
            "w": each / 2,
        }
        for each in image
    ]
    kinds: dict = {
        "caption": Value("string"),
        "place": Value("string"),
        "tags": List(Value("int64")),
        "w": Value("float64"),
    }
    ids = {"image_id": rng.integers(100, size=images)[image].tolist(), "filename": [f"{each}.jpg" for each in image]}
    if by in ids:
        rows = [row | {by: each} for row, each in zip(rows, ids[by], strict=True)]
        kinds[by] = Value("int64" if by == "image_id" else "string")
    if by == "path":
        rows = [row | {"image": str(folder / f"{each}.jpg")} for row, each in zip(rows, image, strict=True)]
        kinds["image"] = Value("string")
    else:
        rows = [row | {"image_features": [float(each)]} for row, each in zip(rows, image, strict=True)]
        kinds["image_features"] = List(Value("float32"))
    if rng.integers(2):
        rows = [row | {"sentid": number} for row, number in zip(rows, rng.permutation(size).tolist(), strict=True)]
        kinds["sentid"] = Value("int64")
    parts = [each for each in (rows[:9], rows[9:]) if each]
    return concatenate_datasets([Dataset.from_list(each, features=Features(kinds)) for each in parts])


@pytest.mark.parametrize("by", ["image_id", "filename", "path", "nothing"])
def test_rows_of_one_caption_are_joined_as_the_general_way_joins_them(by, taken, monkeypatch, tmp_path, caplog):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        source, most = of_one_caption(rng, by, tmp_path), [None, 1, 2][seed % 3]
        options = {"max_captions": most, "check_images": False}
        caplog.clear()
        fast, said = to_pairs(source, **options)["train"], [each.getMessage() for each in caplog.records]
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(columns, "read_by_column", lambda *_: None)
            slow = to_pairs(source, **options)["train"]
        assert said == [each.getMessage() for each in caplog.records]
        assert fast.features == slow.features and fast.column_names == slow.column_names
        raw = [each.cast_column("image", Image(decode=False)) if by == "path" else each for each in (fast, slow)]
        assert raw[0][:] == raw[1][:]
    assert all(taken) and len(taken) == 25


@pytest.mark.parametrize("caption", [None, "", " a"])
def test_a_caption_that_needs_a_change_goes_the_general_way(caption, taken):
    rows = [{"image_features": [0.0], "caption": each} for each in ("a", caption, "b")]
    split = Dataset.from_list(rows, features=Features(image_features=List(Value("float32")), caption=Value("string")))
    assert len(to_pairs(split)["train"]) == 3 - (not caption) and taken == [False]


def test_what_python_strips_is_white_space_for_arrow_too():
    stripped = [char for char in map(chr, range(sys.maxunicode)) if char.isspace()]
    assert len(stripped) > 20 and set(pc.utf8_trim_whitespace(pa.array(stripped)).to_pylist()) == {""}


def test_shared_captions_are_counted_as_by_wording():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = int(rng.integers(1, 40))
        sentence, image = rng.integers(1 + rng.integers(20), size=size), np.sort(rng.integers(9, size=size))
        expected = Wording([f"c {each}" for each in sentence], image, 9).counts()
        assert shared_captions(sentence, image) == expected
    found = training_data(to_pairs(split_of(changed(2, raw=["A 1", "x"])))["train"])
    assert found == {"images": 6, "captions": 10, "equal_captions": {"captions": 5, "images": 4, "sentences": 2}}


@pytest.mark.parametrize("at_once", [2, 1000])
def test_captions_are_read_in_the_order_of_the_split_however_it_was_selected(at_once, monkeypatch):
    monkeypatch.setattr("hf_vse.data.ready_columns.READ_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    rows = [{"captions": [f"{rng.integers(4)}" for _ in range(rng.integers(1, 6))]} for _ in range(30)]
    parts = [Dataset.from_list(rows[first : first + 10]) for first in (0, 10, 20)]
    whole = concatenate_datasets(parts)
    for chosen in (None, [0, 3, 4, 11, 29], [12], [], rng.permutation(30).tolist(), [5, 5, 2]):
        split = whole if chosen is None else whole.select(chosen)
        expected = [row["captions"] for row in split]
        assert list(iter_captions(split)) == expected
        assert [text for block in caption_blocks(split) for text in block.to_pylist()] == sum(expected, [])
        assert caption_counts(split).tolist() == [len(each) for each in expected]
        assert count_repeated(split) == sum(len(each) - len(set(each)) for each in expected)
