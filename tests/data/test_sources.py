"""`load_pairs`: whatever the source, the same columns and splits, images left as they came, one line per mistake."""

import io
import json
import logging
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of Hugging Face is imported

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Value
from torch.utils.data import DataLoader

from hf_vse.data import sources
from hf_vse.data.sources import load_pairs, to_pairs, with_validation

COLUMNS = {"image", "image_id", "captions", "caption_ids"}
IMAGE = Features({"image": Image()})
CAPTIONED = Features({"image": Image(), "caption": Value("string")})


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def red(image: PIL.Image.Image) -> int:
    return image.getpixel((0, 0))[0]


def column(count: int, start: int = 0) -> list[dict]:
    return [{"bytes": encoded(start + number), "path": f"{start + number}.png"} for number in range(count)]


def table(count: int = 3, start: int = 0, **columns: list) -> Dataset:
    columns = columns or {"captions": [[f"a {start + row}", f"b {start + row}"] for row in range(count)]}
    images = Dataset.from_dict({"image": column(count, start)}, features=IMAGE)
    for name, values in columns.items():
        images = images.add_column(name, values)
    return images


def parquet(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table(**options).to_parquet(path)
    return path


def check(pairs: DatasetDict, **sizes: int) -> None:
    assert {split: len(part) for split, part in pairs.items()} == sizes
    for part in pairs.values():
        assert set(part.column_names) - {"filename", "split"} == COLUMNS
        assert part.features["image"] == Image() and part.features["image_id"] == Value("int64")
        assert part.features["captions"] == List(Value("string"))
        assert part.features["caption_ids"] == List(Value("int64"))
        assert isinstance(part[0]["image"], PIL.Image.Image)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# Opening


def test_scenes_take_their_options(monkeypatch):
    asked = {}
    monkeypatch.setattr(sources, "load_scenes", lambda **options: asked.update(options))
    load_pairs("scenes", num_train=8, num_eval=None, seed=0, difficulty="easy", data_dir=None, streaming=False)
    assert asked == {"num_train": 8, "seed": 0, "difficulty": "easy", "cache_dir": None}


def test_karpathy_sources_read_local_files(tmp_path):
    sentences = [{"raw": f"caption {number}"} for number in range(5)]
    image = {"imgid": 0, "split": "test", "filename": "0.png", "sentids": [*range(5)], "sentences": sentences}
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": [image]}))
    (tmp_path / "0.png").write_bytes(encoded(0))
    check(load_pairs("flickr8k", data_dir=tmp_path), test=1)
    check(load_pairs("flickr8k", split_file=tmp_path / "dataset_flickr8k.json"), test=1)
    np.save(tmp_path / "f.npy", np.zeros((1, 3), np.float32))
    assert "image_features" in load_pairs("flickr8k", data_dir=tmp_path, features=tmp_path / "f.npy")["test"][0]
    with pytest.raises(ValueError, match="source='flickr8k' cannot be used with streaming but with data_dir, feat"):
        load_pairs("flickr8k", data_dir=tmp_path, streaming=True)


def test_precomp_is_read_by_name_and_by_path(tmp_path):
    np.save(tmp_path / "dev_ims.npy", np.ones((1, 3), np.float32))
    (tmp_path / "dev_caps.txt").write_text("a\nb\nc\nd\ne\n")
    for pairs in (load_pairs("precomp", data_dir=tmp_path), load_pairs(str(tmp_path))):
        assert pairs["validation"][0]["captions"] == ["a", "b", "c", "d", "e"]


def test_parquet_files_and_folders_with_splits_in_their_names(tmp_path):
    cache = {"cache_dir": tmp_path / "cache"}
    file = parquet(tmp_path / "pairs.parquet")
    check(load_pairs("parquet", data_dir=file, **cache), train=3)
    check(load_pairs(str(file), **cache), train=3)
    folder = tmp_path / "folder"
    parquet(folder / "train-00000-of-00002.parquet")
    parquet(folder / "train-00001-of-00002.parquet", start=3)
    parquet(folder / "val" / "0.parquet", count=2)
    parquet(folder / "test_1k.parquet", count=1)
    (folder / "notes.txt").touch()
    for pairs in (load_pairs("parquet", data_dir=folder, **cache), load_pairs(str(folder), **cache)):
        check(pairs, train=6, validation=2, test=1)
        assert [red(row["image"]) for row in pairs["train"]] == [0, 1, 2, 3, 4, 5]


def test_parquet_without_hugging_face_types(tmp_path):
    rows = {"image": column(2), "captions": [["a"], ["b", "c"]], "split": ["train", "val"], "filename": ["0", "1"]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    pairs = load_pairs("parquet", data_dir=tmp_path / "p.parquet", cache_dir=tmp_path / "cache")
    check(pairs, train=1, validation=1)
    assert red(pairs["validation"][0]["image"]) == 1 and pairs["validation"][0]["captions"] == ["b", "c"]


def image_folder(folder: Path, rows: list[dict], start: int = 0) -> None:
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            name = row.get("file_name", f"{number}.png")
            (folder / name).write_bytes(encoded(start + number))
            file.write(json.dumps({"file_name": name} | row) + "\n")


@pytest.mark.parametrize("streaming", [False, True])
def test_imagefolder_with_and_without_split_folders(tmp_path, streaming):
    options = {"cache_dir": tmp_path / "cache", "streaming": streaming}
    image_folder(tmp_path / "flat", [{"captions": ["a", "b"]}, {"captions": ["c"]}])
    image_folder(tmp_path / "split" / "train", [{"captions": ["a"]}])
    image_folder(tmp_path / "split" / "val", [{"captions": ["b"]}], start=7)
    flat = tmp_path / "flat"
    for pairs in (load_pairs("imagefolder", data_dir=flat, **options), load_pairs(str(flat), **options)):
        assert [row["captions"] for row in pairs["train"]] == [["a", "b"], ["c"]] and list(pairs) == ["train"]
    pairs = load_pairs("imagefolder", data_dir=tmp_path / "split", **options)
    assert list(pairs) == ["train", "validation"]
    assert [red(row["image"]) for row in pairs["validation"]] == [7]


def test_imagefolder_with_csv_has_one_row_per_caption(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    lines = ["file_name,caption", "0.png,a", "1.png,b", "0.png,c", "0.png,d"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    pairs = load_pairs("imagefolder", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    check(pairs, train=2)
    assert pairs["train"]["captions"] == [["a", "c", "d"], ["b"]]


def test_missing_files_of_an_imagefolder_are_left_out_or_an_error(tmp_path, caplog):
    image_folder(tmp_path / "f", [{"captions": [str(number)]} for number in range(4)])
    (tmp_path / "f" / "2.png").unlink()
    options = {"data_dir": tmp_path / "f", "cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"1 of 4 images .*2.png: file does not exist\), more than max_broken_share"):
        load_pairs("imagefolder", **options)
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs("imagefolder", max_broken_share=0.5, **options)
    check(pairs, train=3)
    assert pairs["train"]["captions"] == [["0"], ["1"], ["3"]] and "1 of 4 images" in messages(caplog)[0]
    check(load_pairs("imagefolder", check_images=False, **options), train=4)


def test_imagefolder_needs_metadata(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(0))
    with pytest.raises(FileNotFoundError, match="has no metadata.jsonl or metadata.csv: add one with file_name"):
        load_pairs("imagefolder", data_dir=tmp_path)


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, fields in samples.items():
            for suffix, data in fields.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_with_nested_json(tmp_path, streaming):
    for split, start in (("train-000", 0), ("train-001", 2), ("val-000", 4)):
        rows = {row: {"captions": [f"a {row}", f"b {row}"], "cocoid": 100 + row} for row in (start, start + 1)}
        samples = {f"{row:04d}": {"jpg": encoded(row), "json": json.dumps(rows[row]).encode()} for row in rows}
        shard(tmp_path / "w" / f"{split}.tar", samples)
    options = {"cache_dir": tmp_path / "cache", "streaming": streaming}
    folder = str(tmp_path / "w")
    for pairs in (load_pairs("webdataset", data_dir=folder, **options), load_pairs(folder, **options)):
        rows = list(pairs["train"])
        assert list(pairs) == ["train", "validation"] and set(rows[0]) == COLUMNS
        assert [row["image_id"] for row in rows] == [100, 101, 102, 103]
        assert [red(row["image"]) for row in rows] == [0, 1, 2, 3]
        assert rows[3]["captions"] == ["a 3", "b 3"] and len({i for row in rows for i in row["caption_ids"]}) == 8


def test_webdataset_with_text(tmp_path):
    samples = {f"{row}": {"png": encoded(row), "txt": f"caption {row}".encode()} for row in range(3)}
    shard(tmp_path / "one.tar", samples)
    pairs = load_pairs("webdataset", data_dir=tmp_path / "one.tar", cache_dir=tmp_path / "cache")
    check(pairs, train=3)
    assert pairs["train"]["captions"] == [["caption 0"], ["caption 1"], ["caption 2"]]


@pytest.mark.parametrize("streaming", [False, True])
def test_json_with_paths_relative_to_it(tmp_path, streaming):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(encoded(5))
    row = {"image": "pictures/0.png", "caption": "a"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    for path in (tmp_path, tmp_path / "test.jsonl"):
        options = {"cache_dir": tmp_path / "cache", "streaming": streaming}
        rows = list(load_pairs("json", data_dir=path, **options)["test"])
        assert len(rows) == 1 and red(rows[0]["image"]) == 5 and rows[0]["captions"] == ["a"]


def test_a_saved_data_set_is_recognised_by_its_path(tmp_path):
    DatasetDict(train=table(), dev=table(2)).save_to_disk(tmp_path / "both")
    check(load_pairs(str(tmp_path / "both")), train=3, validation=2)
    table().save_to_disk(tmp_path / "one")
    check(load_pairs(str(tmp_path / "one")), train=3)
    again = load_pairs(str(tmp_path / "both"))
    again.save_to_disk(tmp_path / "again")
    assert load_pairs(str(tmp_path / "again"))["train"][:]["caption_ids"] == again["train"][:]["caption_ids"]


def test_saved_features_stay_features(tmp_path):
    array = Dataset.from_dict({"image_features": [[0.0, 1.0], [2.0, 3.0]], "caption": ["a", "b"]})
    array.save_to_disk(tmp_path / "f")
    train = load_pairs(str(tmp_path / "f"))["train"]
    assert set(train.column_names) == {"image_features", "image_id", "captions", "caption_ids"}
    assert train[1]["image_features"] == [2.0, 3.0]


def test_hub_data_sets_are_mapped_like_any_other(monkeypatch, caplog):
    five = {f"caption_{number}": [f"{row} {number}" for row in range(2)] for number in range(5)}
    asked = {}

    def load(name: str, **options: Any) -> DatasetDict:
        asked.update(options, name=name)
        return DatasetDict(train=table(2, **five), dev=table(2, **five), test=table(2, **five))

    monkeypatch.setattr("hf_vse.data.karpathy.load_dataset", load)
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs("flickr8k")
    check(pairs, train=2, validation=2, test=2)
    assert pairs["test"][1]["captions"] == [f"1 {number}" for number in range(5)]
    assert asked["name"] == "jxie/flickr8k" and asked["revision"] is None
    assert messages(caplog)[2].startswith("flickr8k: split test has 2 images, official 1,000")
    load_pairs("flickr30k")
    assert (asked["name"], asked["revision"]) == ("nlphuji/flickr30k", "refs/convert/parquet")
    check(load_pairs("org/name", revision="main", streaming=False), train=2, validation=2, test=2)
    assert (asked["name"], asked["revision"]) == ("org/name", "main")


def test_official_hub_data_sets_keep_five_captions(monkeypatch):
    seven = DatasetDict(train=table(1, captions=[[str(number) for number in range(7)]]))
    monkeypatch.setattr("hf_vse.data.karpathy.load_dataset", lambda *_, **__: seven)
    assert load_pairs("coco")["train"]["captions"] == [["0", "1", "2", "3", "4"]]
    assert len(load_pairs("org/coco")["train"]["captions"][0]) == 7


def test_an_unreachable_hub_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"cannot load 'jxie/flickr8k' from the Hub .*: give --data_dir DIR"):
        load_pairs("flickr8k")
    with pytest.raises(FileNotFoundError, match=r"cannot load 'org/name' from the Hub .*: check the name") as caught:
        load_pairs("org/name", streaming=True)
    assert "\n" not in str(caught.value)


# Mistakes


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("coco", {"num_train": 5}, "source='coco' cannot be used with num_train .*: give data_dir too"),
        ("coco", {"features": "f.npy"}, "'coco' cannot be used with features .*: give data_dir too"),
        ("scenes", {"streaming": True}, "'scenes' cannot be used with streaming but with difficulty, image_size"),
        ("scenes", {"caption_column": "x", "restval": False}, "cannot be used with caption_column, restval"),
        ("org/name", {"seed": 0}, "'org/name' cannot be used with seed .*: leave it out"),
        ("flikr8k", {}, "source='flikr8k' is not an existing path: give one, a Hub id .* or one of scenes, coco, "),
        ("parquet", {}, "source='parquet' needs data_dir"),
        ("precomp", {}, "source='precomp' needs data_dir"),
    ],
)
def test_options_and_sources_that_mean_nothing_are_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(source, **options)


@pytest.mark.parametrize("source", ["parquet", "webdataset", "json", "imagefolder", "precomp", "flickr8k"])
def test_a_folder_that_does_not_exist_or_is_empty_is_named(tmp_path, source):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist: give the folder that holds the data"):
        load_pairs(source, data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is empty: put the data there"):
        load_pairs(source, data_dir=tmp_path)


def test_a_file_of_the_wrong_kind_is_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("text")
    for source in ("imagefolder", "precomp", "coco"):
        with pytest.raises(FileNotFoundError, match="a.txt' is a file: give the folder"):
            load_pairs(source, data_dir=file)
    for path in (tmp_path, file):
        with pytest.raises(FileNotFoundError, match="holds no .parquet file"):
            load_pairs("parquet", data_dir=path)
        with pytest.raises(ValueError, match="is not recognised as a data set: name its kind and give it as"):
            load_pairs(str(path))
    with pytest.raises(FileNotFoundError, match="nowhere' is not an existing path"):
        load_pairs(str(tmp_path / "nowhere"))
    broken = tmp_path / "b.parquet"
    broken.write_text("no parquet")
    with pytest.raises(ValueError, match="cannot read .*b.parquet as parquet: ") as caught:
        load_pairs("parquet", data_dir=broken, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


# Mapping


@pytest.mark.parametrize("name", ["captions", "caption", "text", "texts", "sentences", "raw", "txt"])
def test_captions_are_found_by_customary_names_as_lists_or_strings(name):
    lists, strings = [["a", "b"], ["c"]], ["a", "b"]
    assert to_pairs(table(2, **{name: lists}))["train"]["captions"] == lists
    assert to_pairs(table(2, **{name: strings}))["train"]["captions"] == [["a"], ["b"]]


def test_numbered_captions_are_joined_in_numerical_order():
    names = {f"caption_{number}": [f"c{number}"] for number in (10, 2, 0)}
    assert to_pairs(table(1, **names))["train"]["captions"] == [["c0", "c2", "c10"]]


def test_columns_may_be_named():
    two = table(2, caption=["no", "no"], title=["a", "b"]).add_column("thumb", column(2, 9), feature=Image())
    train = to_pairs(two, image_column="thumb", caption_column="title")["train"]
    assert train["captions"] == [["a"], ["b"]] and red(train[0]["image"]) == 9
    assert red(to_pairs(two)["train"][0]["image"]) == 0  # of several, the one called image


@pytest.mark.parametrize("name", ["photo", "anything"])
def test_the_only_image_column_is_taken_whatever_its_name(name):
    train = to_pairs(table(2).rename_column("image", name))["train"]
    assert set(train.column_names) == COLUMNS and red(train[1]["image"]) == 1


def test_columns_that_are_not_found_are_listed():
    for columns, options, message in (
        ({"title": ["a"]}, {}, "no caption column is recognised among the columns image, title: name it with"),
        ({"title": ["a"]}, {"caption_column": "tilte"}, "caption_column='tilte' is not among the columns image"),
        ({"caption": ["a"]}, {"image_column": "x"}, "image_column='x' is not among the columns image, caption"),
        ({"caption": [7]}, {}, "column 'caption' holds 7, no caption: give caption_column"),
    ):
        with pytest.raises(ValueError, match=message):
            to_pairs(table(1, **columns), **options)
    with pytest.raises(ValueError, match="no image column is recognised among the columns caption: name it with"):
        to_pairs(Dataset.from_dict({"caption": ["a"]}))


def test_images_given_as_plain_bytes_are_images():
    types = Features(img=Value("binary"), caption=Value("string"))
    rows = Dataset.from_dict({"img": [encoded(4)], "caption": ["a"]}, features=types)
    assert red(to_pairs(rows)["train"][0]["image"]) == 4


def test_ids_are_taken_over_if_they_are_numbers():
    given = table(2, captions=[["a", "b"], ["c"]], cocoid=[70, 80], sentids=[[5, 6], [9]])
    train = to_pairs(given)["train"]
    assert train["image_id"] == [70, 80] and train["caption_ids"] == [[5, 6], [9]]
    names = table(2, captions=[["a", "b"], ["c"]], img_id=["x", "y"], sentids=[["5", "6"], ["9"]])
    train = to_pairs(names)["train"]
    assert train["image_id"] == [0, 1] and train["caption_ids"] == [[0, 1], [2]]
    uneven = table(2, captions=[["a", "b"], ["c"]], sentids=[[5], [9]])
    assert to_pairs(uneven)["train"]["caption_ids"] == [[0, 1], [2]]


def test_rows_of_one_image_are_joined_by_id_file_name_or_path():
    captions, images = ["a", "b", "c", "d"], [0, 1, 0, 1]
    names = ["x", "y", "x", "y"]
    for name, keys in (("image_id", [7, 8, 7, 8]), ("filename", names), ("img_id", names)):
        train = to_pairs(table(4, caption=captions, **{name: keys}))["train"]
        assert train["captions"] == [["a", "c"], ["b", "d"]]
        assert train["image_id"] == ([7, 8] if name == "image_id" else [0, 1])
    rows = {"image": [column(2)[number] for number in images], "caption": captions, "sentid": [4, 5, 6, 7]}
    train = to_pairs(Dataset.from_dict(rows).cast_column("image", Image()))["train"]
    assert train["captions"] == [["a", "c"], ["b", "d"]] and train["caption_ids"] == [[4, 6], [5, 7]]


def test_different_images_of_one_name_are_not_joined():
    rows = {"image": [{"bytes": encoded(n), "path": "image.png"} for n in range(3)], "caption": ["a", "b", "c"]}
    assert len(to_pairs(Dataset.from_dict(rows).cast_column("image", Image()))["train"]) == 3


def test_lists_of_captions_are_not_joined():
    assert len(to_pairs(table(2, captions=[["a", "b"], ["c"]], image_id=[7, 7]))["train"]) == 2


def test_empty_captions_and_rows_without_any_are_dropped_and_counted(caplog):
    captions = [["a", " ", "c "], ["", None], ["d"]]
    with caplog.at_level(logging.WARNING):
        train = to_pairs(table(3, captions=captions, sentids=[[1, 2, 3], [4, 5], [6]]))["train"]
    assert train["captions"] == [["a", "c"], ["d"]] and train["caption_ids"] == [[1, 3], [6]]
    assert red(train[1]["image"]) == 2
    assert messages(caplog) == [
        "split train: 3 empty captions left out",
        "split train: 1 images without any caption left out",
    ]
    with pytest.raises(ValueError, match="split train: none of 2 rows has a caption in text: give caption_column"):
        to_pairs(table(2, text=["", None]))


def test_a_split_column_divides_a_single_split():
    names = ["train", "restval", "val", "test"]
    whole = DatasetDict(test=table(4, caption=["a", "b", "c", "d"], split=names, filename=["w", "x", "y", "z"]))
    pairs = to_pairs(whole)
    check(pairs, train=2, validation=1, test=1)
    assert pairs["validation"]["captions"] == [["c"]] and pairs["test"]["image_id"] == [3]
    other = to_pairs(table(2, caption=["a", "b"], split=["easy", "hard"]))
    check(other, train=2)
    named = DatasetDict(train=table(1, caption=["a"], split=["test"]), test=table(1, caption=["b"], split=["test"]))
    check(to_pairs(named), train=1, test=1)


def test_splits_get_their_customary_names():
    pairs = to_pairs(DatasetDict(train=table(2), restval=table(1, start=2), dev=table(1), extra=table(1)))
    check(pairs, train=3, validation=1, extra=1)
    assert to_pairs(table(2)).keys() == {"train"}
    assert to_pairs(DatasetDict(valid=table(1))).keys() == {"validation"}


def test_images_are_not_copied():
    source = table(4, caption=["a", "", "c", "d"])
    bytes_before = source.data.table["image"].chunk(0).field("bytes").buffers()[2].address
    pairs = to_pairs(source)["train"]
    assert pairs.data.table["image"].chunk(0).field("bytes").buffers()[2].address == bytes_before and len(pairs) == 3


def test_rows_of_one_image_that_stay_apart_have_one_number_and_are_counted(caplog):
    for name in ("img_id", "filename"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            train = to_pairs(table(3, captions=[["a", "b"], ["c"], ["d"]], **{name: ["x", "y", "x"]}))["train"]
        assert train["image_id"] == [0, 1, 0] and len(train) == 3
        assert messages(caplog) == [
            "split train: 1 rows have the image_id of another row (first: 0): they are not negatives of each other in "
            "training, but count as different images in evaluation"
        ]


def test_rows_with_the_same_content_are_one_image_also_without_a_name():
    contents = [encoded(1), encoded(2), encoded(1)]
    rows = {"image": [{"bytes": each, "path": None} for each in contents]}
    images = Dataset.from_dict(rows, features=IMAGE)
    train = to_pairs(images.add_column("caption", ["a", "b", "c"]))["train"]
    assert train["captions"] == [["a", "c"], ["b"]]
    lists = to_pairs(images.add_column("captions", [["a", "x"], ["b"], ["c"]]))["train"]
    assert lists["image_id"] == [0, 1, 0]


def test_captions_of_an_image_that_repeat_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        train = to_pairs(table(2, captions=[["a", "a", "b"], ["a"]]))["train"]
    assert train["captions"] == [["a", "a", "b"], ["a"]]
    assert messages(caplog) == ["split train: 1 captions repeat another caption of the same image"]


def test_files_that_no_line_names_are_counted(tmp_path, caplog):
    folder = tmp_path / "photos"
    image_folder(folder, [{"caption": "a"}, {"caption": "b"}])
    for name in ("later.png", "phone.HEIC", "small.avif", ".hidden.png"):
        (folder / name).write_bytes(encoded(0))
    with caplog.at_level(logging.WARNING):
        check(load_pairs("imagefolder", data_dir=folder, cache_dir=tmp_path / "cache"), train=2)
    assert messages(caplog) == [f"3 images of {folder} are not in its metadata and are left out (first: later.png)"]


def test_a_line_without_its_file_is_counted_with_the_broken_images(tmp_path, caplog):
    folder = tmp_path / "photos"
    image_folder(folder, [{"caption": "a"}, {"caption": "b"}])
    (folder / "1.png").unlink()
    options = {"data_dir": folder, "cache_dir": tmp_path / "cache"}
    with pytest.raises(
        ValueError, match=r"1 of 2 images are missing or broken \(first: .*1.png: file does not exist\)"
    ):
        load_pairs("imagefolder", **options)
    with caplog.at_level(logging.WARNING):
        check(load_pairs("imagefolder", max_broken_share=0.5, **options), train=1)
    assert "and are left out" in messages(caplog)[0]
    (folder / "0.png").unlink()
    with pytest.raises(ValueError, match="split train: no image with a caption can be read .*does not exist"):
        load_pairs("imagefolder", max_broken_share=1.0, **options)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("address", ["{secret}", "file://{secret}", "zip://a.png::{secret}", "http://127.0.0.1/a.png"])
def test_strangers_cannot_name_pictures_of_this_machine(tmp_path, monkeypatch, address, streaming):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(7))
    values = [{"bytes": None, "path": address.format(secret=secret)}]
    stranger = Dataset.from_dict({"image": values, "caption": ["a"]}, features=CAPTIONED)
    loaded = DatasetDict(train=stranger.to_iterable_dataset() if streaming else stranger)
    monkeypatch.setattr("hf_vse.data.karpathy.load_dataset", lambda *_, **__: loaded)
    with pytest.raises(ValueError, match="column 'image' names .* which is not of this data set: remove it"):
        list(load_pairs("org/name", streaming=streaming)["train"])
    assert red(to_pairs(stranger)["train"][0]["image"]) == 7 if address == "{secret}" else True  # one's own table


def test_names_of_files_in_a_data_set_of_the_hub_name_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").write_bytes(encoded(7))
    stranger = DatasetDict(train=Dataset.from_dict({"image": ["mine.png"], "caption": ["a"]}))
    monkeypatch.setattr("hf_vse.data.karpathy.load_dataset", lambda *_, **__: stranger)
    with pytest.raises(ValueError, match="names 'mine.png', which is not of this data set"):
        load_pairs("org/name")


def test_what_is_downloaded_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "a.png").write_bytes(encoded(7))
    files = [{"bytes": None, "path": str(tmp_path / "hub" / "a.png")}]
    theirs = Dataset.from_dict({"image": files, "caption": ["a"]}, features=CAPTIONED)
    monkeypatch.setattr("hf_vse.data.karpathy.load_dataset", lambda *_, **__: DatasetDict(train=theirs))
    assert red(load_pairs("org/name")["train"][0]["image"]) == 7


def test_a_split_column_with_a_name_that_is_none_is_refused():
    with pytest.raises(ValueError, match="column 'split' holds 'trian' in 1 of 2 rows, others are train, restval"):
        to_pairs(table(2, caption=["a", "b"], split=["trian", "test"]))


def test_nothing_is_held_out_of_nothing():
    pairs = to_pairs(table(1, caption=["a"]))
    with pytest.raises(ValueError, match="the train split has one image"):
        with_validation(pairs)
    with pytest.raises(
        ValueError, match="there is no train split but test: name the files or folders train, val, test"
    ):
        with_validation({"test": pairs["train"]})


# Streaming


def stream(count: int = 6, shards: int = 2, **columns: list) -> IterableDataset:
    return table(count, **columns).to_iterable_dataset(num_shards=shards)


def test_streams_have_the_columns_and_stay_lazy(tmp_path):
    file = parquet(tmp_path / "train.parquet", count=3)
    part = load_pairs("parquet", data_dir=file, streaming=True, cache_dir=tmp_path / "cache")["train"]
    assert isinstance(part, IterableDataset) and set(part.column_names) == COLUMNS
    rows = list(part)  # to the end: where a stream of parquet is left unfinished, datasets waits for its threads
    assert [row["captions"] for row in rows] == [["a 0", "b 0"], ["a 1", "b 1"], ["a 2", "b 2"]]
    assert [red(row["image"]) for row in rows] == [0, 1, 2]
    undecoded = list(part.cast_column("image", Image(decode=False)))
    assert [row["image"]["bytes"] for row in undecoded] == [encoded(0), encoded(1), encoded(2)]


def test_streams_take_ids_over_and_drop_rows_without_captions():
    part = to_pairs(stream(3, 1, captions=[["a", ""], [""], ["c"]], imgid=[5, 6, 7], sentids=[[1, 2], [3], [4]]))
    rows = [(row["image_id"], row["captions"], row["caption_ids"]) for row in part["train"]]
    assert rows == [(5, ["a"], [1]), (7, ["c"], [4])]


def test_ids_of_a_stream_are_the_same_in_every_order_and_worker():
    part = to_pairs(stream())["train"]
    alone = {row["captions"][0]: (row["image_id"], *row["caption_ids"]) for row in part}
    assert len({number for ids in alone.values() for number in ids}) == 18
    shuffled = part.shuffle(seed=0, buffer_size=3)
    shared = DataLoader(part.cast_column("image", Image(decode=False)), batch_size=None, num_workers=2)
    for rows in (shuffled, shared):
        assert {row["captions"][0]: (row["image_id"], *row["caption_ids"]) for row in rows} == alone
    assert pickle.loads(pickle.dumps(part)).column_names == part.column_names


def test_a_stream_cannot_be_divided_by_a_column():
    with pytest.raises(ValueError, match="streaming cannot do: use streaming=False"):
        to_pairs(stream(2, 1, caption=["a", "b"], split=["train", "val"]))


def test_a_stream_of_unknown_columns_is_an_error():
    def rows():
        yield {"caption": "a"}

    with pytest.raises(ValueError, match="unknown before it is read: use streaming=False"):
        to_pairs(IterableDataset.from_generator(rows))
