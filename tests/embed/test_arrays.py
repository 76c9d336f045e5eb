"""Embeddings that come as files, and what is wrong with those that are refused."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_vse.embed.adapters.arrays import GivenEmbeddings, read_embeddings, save_embeddings
from hf_vse.evaluation.metrics import retrieval_metrics


def given(**options) -> GivenEmbeddings:
    rng = np.random.default_rng(0)
    owner = torch.tensor([2, 0, 0, 1, 2])  # in no order, and not as many for each
    parts = {
        "image_embeds": rng.normal(size=(3, 4)).astype(np.float32),
        "text_embeds": rng.normal(size=(5, 4)).astype(np.float32),
        "text_to_image": owner,
        "image_ids": [30, 10, 20],
        "caption_ids": [5, 4, 3, 2, 1],
        "captions": ["a dog", "zwei Hunde, grün", "", "one\nline", "x"],
    }
    return GivenEmbeddings(**(parts | options))


@pytest.mark.parametrize("place", ["pairs.safetensors", "pairs"])
def test_what_was_saved_is_read(place, tmp_path):
    saved = given()
    save_embeddings(tmp_path / "new" / place, saved)
    read = read_embeddings(tmp_path / "new" / place)
    for name in GivenEmbeddings._fields[:3]:
        np.testing.assert_array_equal(getattr(read, name), getattr(saved, name))
    assert read[3:] == saved[3:] and read.text_to_image.dtype == torch.int64
    assert retrieval_metrics(*read[:3]) == retrieval_metrics(*saved[:3])


@pytest.mark.parametrize("place", ["pairs.safetensors", "pairs"])
def test_optional_columns_and_low_precision(place, tmp_path):
    halves = torch.randn(3, 4).bfloat16()
    save_embeddings(tmp_path / place, given(image_embeds=halves, image_ids=None, caption_ids=None, captions=None))
    read = read_embeddings(tmp_path / place)
    assert read[3:] == (None, None, None)
    assert torch.equal(torch.as_tensor(np.array(read.image_embeds)) if place == "pairs" else read.image_embeds.float(),
                       halves.float())  # fmt: skip


def test_large_arrays_are_not_read_into_memory(tmp_path):
    save_embeddings(tmp_path, given())
    assert isinstance(read_embeddings(tmp_path).image_embeds, np.memmap)


def test_columns_of_a_folder_may_be_lists(tmp_path):
    save_embeddings(tmp_path, given(captions=None))
    for name, values in (("text_to_image", [2, 0, 0, 1, 2]), ("image_ids", [7, 8, 9])):
        (tmp_path / f"{name}.npy").unlink()
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    (tmp_path / "captions.txt").write_text("one\ntwo\nthree\nfour\nfünf\n", encoding="utf-8")
    read = read_embeddings(tmp_path)
    assert read.text_to_image.tolist() == [2, 0, 0, 1, 2] and read.image_ids == [7, 8, 9]
    assert read.captions == ["one", "two", "three", "four", "fünf"]


def with_row(row: int, value: float) -> np.ndarray:
    vectors = np.ones((5, 4), np.float32)
    vectors[row, 1:] = value
    vectors[row] *= value != 0
    return vectors


WRONG = {
    "whole numbers": (
        {"image_embeds": np.ones((3, 4), np.int64)},
        "image_embeds holds .*int64; save .* floating point",
    ),
    "a cube": ({"text_embeds": np.ones((5, 4, 1), np.float32)}, r"text_embeds has shape \(5, 4, 1\)"),
    "other space": ({"text_embeds": np.ones((5, 3), np.float32)}, "image_embeds have 4 dimensions and text_embeds 3"),
    "not a number": ({"text_embeds": with_row(3, np.nan)}, "text_embeds row 3 is zero or not a finite number"),
    "infinite": ({"text_embeds": with_row(4, np.inf)}, "text_embeds row 4 is zero or not a finite number"),
    "zero": ({"text_embeds": with_row(2, 0.0)}, "text_embeds row 2 is zero or not a finite number"),
    "ids in place of rows": (
        {"text_to_image": torch.tensor([30, 10, 10, 20, 30])},
        r"text_to_image\[0\] is 30; it must lie in 0 .. 2",
    ),
    "below": ({"text_to_image": torch.tensor([0, 1, 2, -1, 0])}, r"text_to_image\[3\] is -1"),
    "too few": ({"text_to_image": torch.tensor([0, 1, 2])}, "text_to_image has 3 entries for 5 rows of text_embeds"),
    "fractions": ({"text_to_image": torch.zeros(5)}, "text_to_image is float32 of shape .* list of whole numbers"),
    "no table": ({"text_to_image": None}, "holds no text_to_image; .* not assumed to be j // 5"),
    "no images": ({"image_embeds": None}, "holds no image_embeds; save one vector for each image"),
    "too few ids": ({"image_ids": [1, 2]}, "image_ids has 2 entries for 3 rows of image_embeds"),
    "too many captions": ({"captions": ["x"] * 6}, "captions has 6 entries for 5 rows of text_embeds"),
    "captions of numbers": ({"captions": ["a", 2, "c", "d", "e"]}, "entry 1 of the captions is not text but int"),
}


@pytest.mark.parametrize("place", ["pairs.safetensors", "pairs"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, place, tmp_path):
    options, message = WRONG[case]
    save_embeddings(tmp_path / place, given(**options))
    with pytest.raises(ValueError, match=message) as refused:
        read_embeddings(tmp_path / place)
    assert str(tmp_path / place) in str(refused.value) and "\n" not in str(refused.value)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(OSError, match="nothing does not exist; give a .safetensors file, or a folder"):
        read_embeddings(tmp_path / "nothing")
    (tmp_path / "pairs.pt").write_bytes(b"no tensors")
    with pytest.raises(OSError, match="pairs.pt is not a safetensors file"):
        read_embeddings(tmp_path / "pairs.pt")
    save_embeddings(tmp_path / "folder", given())
    np.save(tmp_path / "folder" / "caption_ids.npy", np.array([{"an": "object"}] * 5), allow_pickle=True)
    with pytest.raises(ValueError, match=re.escape("caption_ids.npy is not a complete .npy array")):
        read_embeddings(tmp_path / "folder")
    (tmp_path / "folder" / "caption_ids.npy").unlink()
    (tmp_path / "folder" / "caption_ids.json").write_text('{"0": 1}')
    with pytest.raises(ValueError, match="caption_ids.json holds a dict; write a list"):
        read_embeddings(tmp_path / "folder")
    save_file({"image_embeds": torch.ones(1, 1)}, tmp_path / "other.safetensors", {"captions": "not JSON"})
    with pytest.raises(ValueError, match="other.safetensors is not valid JSON"):
        read_embeddings(tmp_path / "other.safetensors")
