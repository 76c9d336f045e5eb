"""Fields of a source live on beside images and captions, and disturb neither training nor each other."""

import logging
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_vse.data.collator import VSECollator
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.data.sources import to_pairs
from hf_vse.data.streams import StreamedPairs
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.search.filters import matching
from hf_vse.search.gallery_images import of_dataset
from tests.data.test_sources import column

FIELDS = {
    "place": (["Rome", None, "Oslo"], Value("string")),
    "year": ([1999, 2020, None], Value("int32")),
    "price": ([1.5, math.nan, math.inf], Value("float32")),
    "sold": ([True, False, None], Value("bool")),
    "tags": ([["a", "b"], [], ["b"]], List(Value("string"))),
    "kind": ([0, 1, -1], ClassLabel(names=["cup", "bowl"])),
    "kinds": ([[0, 1], [], [1]], List(ClassLabel(names=["cup", "bowl"]))),
    "draw": ([7, 7, 7], Value("int64")),
    "caption": (["no caption"] * 3, Value("string")),
    "vector": ([[0.5, 0.5]] * 3, List(Value("float32"), length=2)),
    "raw_bytes": ([b"1", b"2", b"3"], Value("binary")),
    "nested": ([{"x": 1}] * 3, {"x": Value("int64")}),
}
KEPT = {
    "place": (["Rome", None, "Oslo"], Value("string")),
    "year": ([1999, 2020, None], Value("int32")),
    "price": ([1.5, None, None], Value("float32")),
    "sold": ([True, False, None], Value("bool")),
    "tags": ([["a", "b"], [], ["b"]], List(Value("string"))),
    "kind": (["cup", "bowl", None], Value("string")),
    "kinds": ([["cup", "bowl"], [], ["bowl"]], List(Value("string"))),
    "source_draw": ([7, 7, 7], Value("int64")),
    "source_caption": (["no caption"] * 3, Value("string")),
}
OWN = {"image", "image_id", "captions", "caption_ids"}


@pytest.fixture
def source() -> Dataset:
    columns = {"image": column(3), "captions": [["a cup", "one cup"], ["a bowl"], ["a cup"]], "image_id": [5, 6, 7]}
    features = {"image": Image(), "captions": List(Value("string")), "image_id": Value("int64")}
    columns |= {name: values for name, (values, _) in FIELDS.items()}
    return Dataset.from_dict(columns, features=Features(features | {name: kind for name, (_, kind) in FIELDS.items()}))


def test_fields_are_kept_under_their_names_with_their_types(source, caplog):
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        pairs = to_pairs(source)["train"]
    said = [record.getMessage() for record in caplog.records]
    assert set(pairs.column_names) == OWN | set(KEPT)
    for name, (values, kind) in KEPT.items():
        assert pairs[name][:] == values and pairs.features[name] == kind, name
    assert "columns that are no fields are left out: vector, raw_bytes, nested" in said
    assert "column 'draw' is kept as 'source_draw', because the name has a meaning here" in said
    streamed = next(iter(to_pairs(source.to_iterable_dataset()).values()))
    assert streamed.features == pairs.features
    for row, whole in zip(streamed.remove_columns("image"), pairs.remove_columns("image"), strict=True):
        assert {**row, "caption_ids": None} == {**whole, "caption_ids": None}


def test_two_columns_of_one_name_are_refused(source):
    with pytest.raises(ValueError, match="'draw' and 'source_draw' would both be 'source_draw' here: rename one"):
        to_pairs(source.add_column("source_draw", [1, 2, 3]))


def test_ids_that_are_no_numbers_are_fields(source):
    renamed = source.remove_columns(["image_id", "place"]).add_column("image_id", ["b", "a", "c"])
    pairs = to_pairs(renamed.add_column("filename", ["1.jpg", "2.jpg", "3.jpg"]))["train"]
    assert pairs["source_image_id"][:] == ["b", "a", "c"] and pairs["filename"][:] == ["1.jpg", "2.jpg", "3.jpg"]
    assert pairs["image_id"][:] == [0, 1, 2]


def test_fields_of_the_json_of_a_webdataset_are_kept_and_its_keys_are_not():
    rows = {
        "jpg": column(2),
        "__key__": ["a", "b"],
        "json": [{"caption": "one", "year": 1}, {"caption": "two", "year": 2}],
    }
    features = {
        "jpg": Image(),
        "__key__": Value("string"),
        "json": {"caption": Value("string"), "year": Value("int64")},
    }
    pairs = to_pairs(Dataset.from_dict(rows, features=Features(features)))["train"]
    assert set(pairs.column_names) == OWN | {"year"} and pairs["year"][:] == [1, 2]


def test_rows_of_one_image_keep_the_fields_of_the_first_and_it_is_said(caplog):
    rows = {"image": [*column(2), *column(2)], "caption": ["a", "b", "c", "d"], "image_id": [1, 2, 1, 2]}
    rows |= {"place": ["Rome", "Oslo", "Rome", "Oslo"], "annotator": [1, 2, 3, 2]}
    features = {"image": Image(), "caption": Value("string"), "image_id": Value("int64")}
    features |= {"place": Value("string"), "annotator": Value("int64")}
    with caplog.at_level(logging.WARNING):
        pairs = to_pairs(Dataset.from_dict(rows, features=Features(features)))["train"]
    assert pairs["captions"][:] == [["a", "c"], ["b", "d"]]
    assert pairs["place"][:] == ["Rome", "Oslo"] and pairs["annotator"][:] == [1, 2]
    assert "split train: rows of one image differ in annotator; the values of the first are kept" in caplog.text


def test_training_passes_fields_by(source, tokenizer):
    features = source.remove_columns("image").add_column("image_features", [[0.5], [1.5], [2.5]])
    bare = features.remove_columns(list(FIELDS))
    collate = VSECollator(VSEProcessor(tokenizer=tokenizer))
    for kind in (PairDataset, StreamedPairs):
        batches = []
        for given in (features, bare):
            pairs = to_pairs(given)["train"] if kind is PairDataset else to_pairs(given.to_iterable_dataset())["train"]
            items = [kind(pairs)[Pair(row, 0, 3)] for row in range(3)] if kind is PairDataset else [*kind(pairs)]
            batches.append(collate(items))
        assert batches[0].keys() == batches[1].keys() >= {"image_features", "input_ids", "image_ids", "text_ids"}
        for name in batches[0]:
            torch.testing.assert_close(batches[0][name], batches[1][name])


class Numbers:
    """As much of an encoder as a gallery asks before it encodes."""

    name, reads_images = "numbers", False


def test_galleries_filter_by_fields(source):
    given = source.remove_columns("image").add_column("image_features", [[0.5], [1.5], [2.5]])
    items = [photograph.item for photograph in of_dataset(to_pairs(given)["train"], Numbers())]
    for condition, found in (
        ("place=Rome", [0]), ("year>=2000", [1]), ("tags=b", [0, 2]), ("kind=bowl", [1]), ("sold=true", [0]),
        ("price<2", [0]), ("source_draw=7", [0, 1, 2]), ("captions~cup", [0, 2]),
    ):  # fmt: skip
        assert np.flatnonzero(matching(items, [condition])).tolist() == found, condition
