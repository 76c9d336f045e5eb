"""Kept results are taken up where nothing has changed, and only there."""

import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from PIL import ImageOps

from hf_vse.data.digests import WHOLE_FILE, images_digest, item_key
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.sources import load_pairs
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.evaluation.evaluator import embed_pairs
from tests.bad_input.test_model import with_field
from tests.conftest import make_feature_pairs, make_pairs

CONFIG, PROCESSOR, TOKENIZER = "config.json", "processor_config.json", "tokenizer_config.json"
MATTERS = [
    (CONFIG, "vision_power", 0.5),
    (CONFIG, "mirror_average", True),
    (CONFIG, "vision_norm", "none"),
    (CONFIG, "text_norm", "l2"),
    (CONFIG, "text_pooling", "mean"),
    (CONFIG, "vision_pooling", "max"),
    (CONFIG, "vision_config.hidden_act", "silu"),
    (PROCESSOR, "image_processor.crop_size", {"height": 28, "width": 28}),
    (PROCESSOR, "image_processor.image_mean", [0.5, 0.5, 0.5]),
    (PROCESSOR, "image_processor.resample", 2),
    (PROCESSOR, "image_processor.do_center_crop", False),
    (TOKENIZER, "model_max_length", 5),
    (TOKENIZER, "padding_side", "left"),
    ("tokenizer.json", "normalizer", None),
]
NO_MATTER = [
    (CONFIG, "temperature", 0.07),
    (CONFIG, "margin", 0.5),
    (CONFIG, "loss_type", "hardnce"),
    (CONFIG, "feature_dropout", 0.3),
    (CONFIG, "transformers_version", "5.99.0"),
    (CONFIG, "text_config.use_cache", True),
    (PROCESSOR, "processor_class", "Other"),
]


@pytest.fixture(scope="module")
def before(tiny_model):
    return VSEEncoder.from_pretrained(tiny_model, "cpu").digest


@pytest.fixture
def copied(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.mark.parametrize(("file", "field", "value"), MATTERS, ids=lambda value: str(value))
def test_what_changes_vectors_changes_the_digest(copied, before, file, field, value):
    with_field(copied / file, field, value)
    assert VSEEncoder.from_pretrained(copied, "cpu").digest != before


@pytest.mark.parametrize(("file", "field", "value"), NO_MATTER, ids=lambda value: str(value))
def test_what_changes_none_does_not(copied, before, file, field, value):
    with_field(copied / file, field, value)
    assert VSEEncoder.from_pretrained(copied, "cpu").digest == before


def test_other_content_of_the_same_rows_has_other_keys():
    pairs, features = make_pairs(4), make_feature_pairs(4)

    def keys(dataset) -> list[str]:
        return [item_key(next(iter(row.values()))) for row in undecoded_images(dataset)]

    assert keys(pairs) == keys(make_pairs(4)) and len(set(keys(pairs))) == 4
    exchanged = pairs.map(lambda row: {"image": ImageOps.invert(row["image"])})
    assert not set(keys(exchanged)) & set(keys(pairs))
    rows = np.array(features["image_features"])
    rows[3, 2] += 0.5
    moved = features.remove_columns("image_features")
    moved = moved.add_column("image_features", list(rows), feature=features.features["image_features"])
    assert keys(moved)[:3] == keys(features)[:3] and keys(moved)[3] != keys(features)[3]


@pytest.mark.parametrize("size", [1000, WHOLE_FILE + 1000])
def test_a_file_exchanged_with_equal_size_and_time_is_noticed(size, tmp_path):
    path = tmp_path / "a.ppm"
    content = bytearray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    path.write_bytes(content)
    time = path.stat()
    before = images_digest([{"image": str(path)}])
    path.write_bytes(bytes(reversed(content)))
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert path.stat().st_mtime_ns == time.st_mtime_ns and path.stat().st_size == time.st_size
    assert images_digest([{"image": str(path)}]) != before
    path.write_bytes(content)
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert images_digest(Dataset.from_list([{"image": {"path": str(path), "bytes": None}}])) == before


@pytest.mark.parametrize("size", [1000, WHOLE_FILE + 1000])
def test_a_copy_of_a_file_is_the_same_where_all_of_it_was_read(size, tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(bytes(size))
    before = item_key(str(path))
    os.utime(path, (1, 1))
    assert (item_key(str(path)) == before) is (size <= WHOLE_FILE)


def test_photographs_exchanged_under_their_names_are_judged_anew(tiny_model, photographs, tmp_path):
    """All of them exchanged, names, sizes and times as before: the old vectors were judged."""
    for picture in photographs.rglob("*.png"):
        PIL.Image.open(picture).save(picture.with_suffix(".bmp"))
        picture.unlink()
    metadata = photographs / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace(".png", ".bmp"))
    encoder = VSEEncoder.from_pretrained(tiny_model, "cpu")

    def embedded(keep: Path | None = None):
        split = load_pairs("imagefolder", data_dir=photographs)["train"]
        return embed_pairs(encoder, split, progress=False, keep=keep).image_embeds

    first = embedded(tmp_path / "kept")
    files = sorted(photographs.rglob("*.bmp"))
    contents, times = [file.read_bytes() for file in files], [file.stat().st_mtime_ns for file in files]
    for file, content, time in zip(files, reversed(contents), times, strict=True):
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
    again = embedded(tmp_path / "kept")
    assert torch.equal(again, embedded()) and not torch.equal(again, first)
    assert len(list((tmp_path / "kept").glob("images-*/*.arrow"))) == 2
