"""Whatever a file of strangers holds: pairs as `schema.py` says, or one clear line. Never anything else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vse.data.columns import to_pairs
from hf_vse.data.folders import check_image_folder, check_json_files
from hf_vse.data.karpathy import load_karpathy
from hf_vse.errors import refusal

bounded = settings(max_examples=60, deadline=None, derandomize=True)
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", " ", "../x", "/etc/x", "0.png", "http://x/y", "half \ud83d", "a\u2028b"]
)
NUMBERS = st.integers() | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1, 10**30, True]) | st.floats()
LEAVES = st.none() | TEXTS | NUMBERS
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def check(pairs: DatasetDict, images: int) -> None:
    """What `schema.py` promises."""
    assert pairs
    for part in pairs.values():
        assert 0 < len(part) <= images
        assert part.features["image"] == Image() and part.features["image_id"] == Value("int64")
        assert part.features["captions"] == List(Value("string"))
        assert part.features["caption_ids"] == List(Value("int64"))
        for captions, ids in zip(part["captions"], part["caption_ids"], strict=True):
            assert 0 < len(captions) == len(ids)
            assert all(caption.strip() == caption != "" for caption in captions)
            assert all(isinstance(number, int) for number in ids)


def expect_line(error: Exception) -> None:
    line = refusal(error)
    assert line is not None, repr(error)
    assert "\n" not in line and 0 < len(line) < 600, line


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("any")
    for row in range(2):
        PIL.Image.new("RGB", (4, 4), (row, 0, 0)).save(place / f"{row}.png")
    return place


def karpathy() -> dict[str, Any]:
    sentences = [{"raw": f"caption {number}"} for number in range(5)]
    images = [
        {"split": "train", "filename": f"{row}.png", "imgid": row, "sentids": [*range(5)], "sentences": sentences}
        for row in range(2)
    ]
    return json.loads(json.dumps({"images": images}))


def places(value: Any, above: tuple = ()) -> list[tuple]:
    """The way to every part of a JSON value."""
    found = [above] if above else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        found += places(part, (*above, key))
    return found


@bounded
@given(st.sampled_from(places(karpathy())), ANYTHING)
def test_any_value_at_any_place_of_a_split_file(folder, place, value):
    whole = karpathy()
    target = whole
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    (folder / "dataset_flickr8k.json").write_text(json.dumps(whole))
    try:
        pairs = load_karpathy("flickr8k", folder, max_broken_share=1.0)
    except (ValueError, OSError) as error:
        expect_line(error)
    else:
        check(pairs, 2)


@bounded
@given(st.binary(max_size=60))
def test_any_bytes_as_a_split_file(folder, content):
    (folder / "dataset_flickr8k.json").write_bytes(content)
    with pytest.raises((ValueError, OSError)) as caught:
        load_karpathy("flickr8k", folder)
    expect_line(caught.value)


CELLS = {
    "captions": st.lists(TEXTS, max_size=3) | TEXTS | st.none(),
    "image_id": st.integers(-(2**63), 2**64 - 1) | TEXTS | st.floats() | st.none() | st.lists(NUMBERS, max_size=2),
    "sentids": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3) | st.none() | TEXTS,
    "filename": TEXTS | st.none() | st.integers(0, 9),
    "split": st.sampled_from(["train", "val", "test", "trian", "", None]) | st.integers(0, 3),
    "json": TEXTS | st.dictionaries(st.sampled_from(["captions", "cocoid"]), TEXTS, max_size=2) | st.none(),
}


@st.composite
def columns(draw) -> dict[str, list]:
    names = draw(st.lists(st.sampled_from(sorted(CELLS)), unique=True, max_size=5))
    found = {}
    for name in names:
        values = draw(st.lists(CELLS[name], min_size=2, max_size=2))
        try:
            pa.array(values).validate(full=True)
        except (pa.ArrowException, OverflowError, UnicodeError):
            continue  # no table can hold it
        found[name] = values
    return found


@settings(bounded, max_examples=25)
@given(columns(), st.booleans())
def test_any_columns_beside_the_images(folder, columns, one_caption):
    table = Dataset.from_dict({"image": [str(folder / f"{row}.png") for row in range(2)]})
    table = table.cast_column("image", Image())
    if one_caption:
        columns["captions"] = ["one", "two"]
    for name, values in columns.items():
        table = table.add_column(name, values)
    try:
        pairs = to_pairs(table)
    except (ValueError, OSError) as error:
        expect_line(error)
    else:
        check(pairs, 2)
        ids = [number for part in pairs.values() for number in part["image_id"]]
        first, second = columns.get("image_id", (0, 1))
        if first == second is not None and "json" not in columns:  # whose cocoid would go before
            assert len(set(ids)) == 1  # rows of one image are no negatives of each other


@bounded
@given(st.lists(st.dictionaries(st.sampled_from(["file_name", "captions", "x_file_name"]), ANYTHING), max_size=3))
def test_any_lines_of_metadata(tmp_path_factory, lines):
    place = tmp_path_factory.mktemp("metadata")
    (place / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for read in (check_image_folder, lambda path: check_json_files([path / "metadata.jsonl"])):
        try:
            read(place)
        except (ValueError, OSError) as error:
            expect_line(error)


@bounded
@given(st.binary(max_size=200), st.sampled_from([".npy", ".safetensors"]))
def test_any_bytes_as_features(tmp_path_factory, content, suffix):
    from hf_vse.data.features import read_array

    path = tmp_path_factory.mktemp("features") / f"f{suffix}"
    np.save(path.with_suffix(".npy"), np.zeros((2, 3), np.float32))
    start = path.with_suffix(".npy").read_bytes()[:10] if suffix == ".npy" else b"\x40" + bytes(7) + b'{"features": '
    path.write_bytes(start + content)
    with pytest.raises((ValueError, OSError)) as caught:
        read_array(path)
    expect_line(caught.value)
