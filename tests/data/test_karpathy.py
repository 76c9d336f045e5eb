"""Karpathy splits: found, parsed to the field's protocol, matched with images or features, and sizes reported."""

import gzip
import json
import logging
import lzma
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import Image

from hf_vse.data.karpathy import OFFICIAL_IMAGES, load_karpathy, read_split_file, report_official_sizes

SPLITS = ["train", "train", "restval", "val", "test"]


def entries(splits: list[str] = SPLITS, captions: int = 5, coco: bool = False) -> list[dict]:
    images = []
    for row, split in enumerate(splits):
        sentids = [row * 10 + number for number in range(captions)]
        image = {
            "imgid": row,
            "split": split,
            "filename": f"{row}.jpg",
            "sentids": sentids,
            "sentences": [{"raw": f" caption {sentid} ", "tokens": [], "sentid": sentid} for sentid in sentids],
        }
        images.append(image | ({"cocoid": 1000 + row, "filepath": "val2014"} if coco else {}))
    return images


def write(folder: Path, images: list[dict], name: str = "dataset_flickr8k.json") -> Path:
    text = json.dumps({"dataset": "any", "images": images}).encode()
    data = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)(text)
    (folder / name).write_bytes(data)
    return folder / name


def draw(folder: Path, rows: range | list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        PIL.Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{row}.jpg")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.xz"])
def test_load_karpathy_gives_the_columns_and_splits(tmp_path, ending):
    write(tmp_path, entries(), f"dataset_flickr8k{ending}")
    draw(tmp_path / "images", range(5))
    pairs = load_karpathy("flickr8k", tmp_path)
    assert {split: len(part) for split, part in pairs.items()} == {"train": 3, "validation": 1, "test": 1}
    row = pairs["validation"][0]
    assert row["captions"] == [f"caption {number}" for number in range(30, 35)]
    assert row["caption_ids"] == [30, 31, 32, 33, 34] and row["image_id"] == 3
    assert row["image"].size == (8, 8) and pairs["train"].features["image"] == Image()
    assert pairs["train"].data.table["image"].chunk(0).field("bytes").null_count == 3  # paths only, decoded when read


def test_restval_joins_train_in_file_order_or_stays_out(tmp_path):
    write(tmp_path, entries(coco=True), "dataset_coco.json")
    draw(tmp_path / "val2014", range(5))
    assert load_karpathy("coco", tmp_path)["train"]["image_id"] == [1000, 1001, 1002]
    assert load_karpathy("coco", tmp_path, restval=False)["train"]["image_id"] == [1000, 1001]


def test_the_first_five_captions_count(tmp_path):
    path = write(tmp_path, entries(captions=7))
    assert [len(entry.captions) for entry in read_split_file(path)[0]] == [5] * 5
    assert read_split_file(path)[0][1].caption_ids == [10, 11, 12, 13, 14]


def test_empty_captions_are_dropped_and_counted(tmp_path, caplog):
    images = entries()
    images[0]["sentences"][1]["raw"] = "  "
    for sentence in images[4]["sentences"]:
        sentence["raw"] = ""
    images[1]["sentences"], images[1]["sentids"] = images[1]["sentences"][:3], images[1]["sentids"][:3]
    path = write(tmp_path, images)
    with caplog.at_level(logging.WARNING):
        found, num_rows = read_split_file(path)
    assert num_rows == 5 and [entry.row for entry in found] == [0, 1, 2, 3]
    assert found[0].caption_ids == [0, 2, 3, 4] and len(found[1].captions) == 3
    assert sorted(messages(caplog)) == [
        "dataset_flickr8k.json: 1 images without any caption left out",
        "dataset_flickr8k.json: 2 images with fewer than five captions",
        "dataset_flickr8k.json: 6 empty captions left out",
    ]


def test_nothing_is_logged_about_a_clean_file(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read_split_file(write(tmp_path, entries()))
    assert not caplog.records


FOLDERS = ["", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images"]


@pytest.mark.parametrize("folder", [*FOLDERS, "val2014", "images/val2014"])
def test_images_are_found_in_the_customary_folders(tmp_path, folder):
    write(tmp_path, entries(coco=True), "dataset_coco.json")
    draw(tmp_path / folder, range(5))
    pairs = load_karpathy("coco", tmp_path)
    assert sum(map(len, pairs.values())) == 5 and pairs["test"][0]["image"].getpixel((0, 0))[0] in range(2, 7)


def test_images_may_be_spread_over_folders_as_in_coco(tmp_path):
    images = entries(coco=True)
    images[0]["filepath"] = "elsewhere"
    write(tmp_path, images, "dataset_coco.json")
    draw(tmp_path / "elsewhere", [0])
    draw(tmp_path / "images" / "val2014", [1, 2, 3, 4])
    assert len(load_karpathy("coco", tmp_path)["train"]) == 3


def test_no_image_at_all_names_the_folders_tried(tmp_path):
    write(tmp_path, entries(coco=True), "dataset_coco.json")
    with pytest.raises(FileNotFoundError) as caught:
        load_karpathy("coco", tmp_path)
    for part in ("none of the 5 images", "0.jpg", str(tmp_path), "'val2014'", "'images/val2014'", "features"):
        assert part in str(caught.value)


def test_too_many_missing_images_are_an_error_and_few_are_left_out(tmp_path, caplog):
    write(tmp_path, entries())
    draw(tmp_path, [0, 1, 3, 4])
    with pytest.raises(ValueError, match=r"1 of 5 images .*2.jpg: not found.*max_broken_share=0.01: repair"):
        load_karpathy("flickr8k", tmp_path)
    with caplog.at_level(logging.WARNING):
        pairs = load_karpathy("flickr8k", tmp_path, max_broken_share=0.2)
    assert pairs["train"]["image_id"] == [0, 1]
    assert "1 of 5 images are missing or broken (first: 2.jpg: not found) and are left out" in messages(caplog)


def test_broken_images_are_found_before_the_run_unless_told_not_to(tmp_path):
    write(tmp_path, entries())
    draw(tmp_path, range(5))
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 5 .*1.jpg: 0 bytes"):
        load_karpathy("flickr8k", tmp_path)
    assert load_karpathy("flickr8k", tmp_path, max_broken_share=0.2)["train"]["image_id"] == [0, 2]
    assert load_karpathy("flickr8k", tmp_path, check_images=False)["train"]["image_id"] == [0, 1, 2]


def test_features_take_the_place_of_images_in_file_order(tmp_path):
    images = entries(["val", "train", "test", "train"])
    for sentence in images[1]["sentences"]:
        sentence["raw"] = ""
    write(tmp_path, images)
    array = np.arange(12, dtype=np.float16).reshape(4, 3)
    np.save(tmp_path / "f.npy", array)
    pairs = load_karpathy("flickr8k", tmp_path, features=tmp_path / "f.npy")
    assert pairs["train"].column_names[0] == "image_features" and "image" not in pairs["train"].column_names
    for split, row in (("validation", 0), ("test", 2), ("train", 3)):
        assert len(pairs[split]) == 1 and pairs[split]["image_id"] == [row]
        assert (pairs[split].with_format("numpy")[0]["image_features"] == array[row]).all()


def test_features_of_another_length_are_an_error(tmp_path):
    write(tmp_path, entries())
    np.save(tmp_path / "f.npy", np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"f.npy' has 4 rows but .*dataset_flickr8k.json has 5 images"):
        load_karpathy("flickr8k", tmp_path, features=tmp_path / "f.npy")


def test_official_sizes_are_those_of_the_field():
    assert sum(OFFICIAL_IMAGES["flickr30k"].values()) == 31_014
    assert OFFICIAL_IMAGES["coco"]["train"] * 5 == 566_435 and 113_287 - 82_783 == 30_504


def test_other_sizes_are_reported_one_line_a_split(tmp_path, caplog):
    write(tmp_path, entries(["train", "val"]))
    draw(tmp_path, range(2))
    with caplog.at_level(logging.WARNING):
        assert set(load_karpathy("flickr8k", tmp_path)) == {"train", "validation"}
    assert messages(caplog) == [
        "flickr8k: split train has 1 images, official 6,000: numbers on it are not comparable",
        "flickr8k: split validation has 1 images, official 1,000: numbers on it are not comparable",
        "flickr8k: split test has 0 images, official 1,000: numbers on it are not comparable",
    ]


def test_report_official_sizes_counts_captions_and_knows_coco_without_restval(caplog):
    sizes = {"train": [5] * 82_783, "validation": [5] * 5000, "test": [5] * 4999 + [4]}
    with caplog.at_level(logging.WARNING):
        report_official_sizes("coco", sizes, restval=False)
    assert messages(caplog) == [
        "coco: split test has 24,999 captions, official 25,000: numbers on it are not comparable"
    ]


def test_split_file_may_be_named_and_lie_elsewhere(tmp_path):
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists", entries(["test"], coco=True), "any_name.json.xz")
    draw(tmp_path / "data", [0])
    pairs = load_karpathy("coco", tmp_path / "data", split_file=tmp_path / "lists" / "any_name.json.xz")
    assert list(pairs) == ["test"] and pairs["test"]["image_id"] == [1000]
    write(tmp_path / "data", entries(["val"]), "own.json")
    assert list(load_karpathy("coco", tmp_path / "data", split_file="own.json")) == ["validation"]


def test_a_single_file_with_a_longer_name_is_found_and_the_exact_name_is_preferred(tmp_path):
    write(tmp_path, entries(["test"]), "dataset_flickr8k_test1k.json.xz")
    draw(tmp_path, range(2))
    assert list(load_karpathy("flickr8k", tmp_path)) == ["test"]
    write(tmp_path, entries(["train", "val"]), "dataset_flickr8k.json")
    assert list(load_karpathy("flickr8k", tmp_path)) == ["train", "validation"]


def test_several_split_files_must_be_chosen_from(tmp_path):
    for name in ("dataset_coco_a.json", "dataset_coco_b.json.gz"):
        write(tmp_path, entries(), name)
    with pytest.raises(ValueError, match=r"dataset_coco_a.json, dataset_coco_b.json.gz: choose one with split_file"):
        load_karpathy("coco", tmp_path)


def test_a_missing_split_file_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"dataset_coco\*.json .*\['readme.txt'\].* name it with split_file"):
        load_karpathy("coco", tmp_path)
    with pytest.raises(FileNotFoundError, match="split_file='x.json' is not a file"):
        load_karpathy("coco", tmp_path, split_file="x.json")
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        load_karpathy("coco", tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"annotations": []}'])
def test_a_file_of_another_kind_is_one_clear_line(tmp_path, text):
    (tmp_path / "dataset_coco.json").write_text(text)
    with pytest.raises(ValueError, match="dataset_coco.json is not a Karpathy split JSON") as caught:
        load_karpathy("coco", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dataset_coco.json.gz", "dataset_coco.json.xz"])
def test_a_damaged_archive_is_one_clear_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a Karpathy split JSON"):
        load_karpathy("coco", tmp_path)


def test_an_unreadable_kind_of_split_file_is_named(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a.csv' must end with .json, .json.gz or .json.xz"):
        load_karpathy("coco", tmp_path, split_file="a.csv")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"split": "trian"}, "trian"),
        ({"sentids": [1]}, "zip"),
        ({"sentences": [{}] * 5}, "raw"),
        ({"sentences": 3}, "int"),
        ({"imgid": "x"}, "x"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, change, named):
    images = entries()
    images[3] |= change
    with pytest.raises(ValueError, match=rf"dataset_flickr8k.json: images\[3\] .*{named}.*it needs split"):
        read_split_file(write(tmp_path, images))


def test_a_file_without_any_caption_is_an_error(tmp_path):
    path = write(tmp_path, [])
    np.save(tmp_path / "f.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match=f"{path.name} has no image with a caption"):
        load_karpathy("flickr8k", tmp_path, features=tmp_path / "f.npy")


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path):
    images = entries(["train", "train", "test"], coco=True)
    for image, folder in zip(images, ("train2014", "val2014", "elsewhere"), strict=True):
        image |= {"filename": "1.jpg", "filepath": folder}
        draw(tmp_path / "images" / folder, [1])
        (tmp_path / "images" / folder / "1.jpg").unlink()
        PIL.Image.new("RGB", (8, 8), (0, 0, 40 * len(folder))).save(tmp_path / "images" / folder / "1.jpg")
    write(tmp_path, images, "dataset_coco.json")
    pairs = load_karpathy("coco", tmp_path)
    names = [
        Path(row["image"]["path"]).parent.name for row in pairs["train"].cast_column("image", Image(decode=False))
    ]
    assert names == ["train2014", "val2014"]


def test_images_and_captions_that_occur_twice_are_counted(tmp_path, caplog):
    images = entries(["train", "test", "test"])
    images[1]["filename"] = "0.jpg"  # also in train
    images[2]["imgid"] = 1
    images[2]["sentences"][1]["raw"] = images[2]["sentences"][0]["raw"]
    write(tmp_path, images)
    draw(tmp_path, [0, 2])
    with caplog.at_level(logging.WARNING):
        load_karpathy("flickr8k", tmp_path)
    said = messages(caplog)
    assert f"1 images are named by several entries (first: {tmp_path / '0.jpg'})" in said
    assert "dataset_flickr8k.json, test: 1 captions repeat another caption of the same image" in said
    assert any(
        each.startswith("dataset_flickr8k.json, test: 1 rows have the image_id of another row (first: 1)")
        for each in said
    )


@pytest.mark.parametrize("field", ["filename", "filepath"])
@pytest.mark.parametrize("name", ["../0.jpg", "/etc/hostname", "C:\\0.jpg", "file:///0.jpg"])
def test_names_that_lead_out_are_refused(tmp_path, field, name):
    images = entries(["train"])
    images[0][field] = name
    with pytest.raises(ValueError, match=rf"images\[0\] is not as .*{field} is .* points outside"):
        read_split_file(write(tmp_path, images))
