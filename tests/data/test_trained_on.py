"""What a model folder says of its data, and that nobody tests on what it was trained on."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import yaml
from datasets import DatasetDict

from hf_vse.cli.main import main
from hf_vse.data.schema import CAPTIONS, IMAGE_ID, fingerprint
from hf_vse.data.trained_on import DATA_KEYS, data_settings, held_out, load_as_trained
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.pictures import find_photographs
from hf_vse.training.build import load_splits
from hf_vse.training.recipe import DataArguments, Recipe
from tests.conftest import make_pairs

DECIDES = {"validation_share": 0.3, "seed": 7}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Data without a validation split."""
    folder = tmp_path_factory.mktemp("saved") / "pairs"
    DatasetDict({"train": make_pairs(20, first_id=100)}).save_to_disk(str(folder))
    return folder


@pytest.fixture
def model(tiny_model, pairs, tmp_path):
    """A model that was trained on them, as its recipe says."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"dataset": str(pairs)} | DECIDES))
    return folder


@pytest.fixture
def trained(pairs):
    recipe = Recipe({"dataset": str(pairs), "output_dir": "."} | DECIDES)
    return load_splits(recipe.data, 0.01, DECIDES["seed"])


def test_every_setting_of_the_data_is_carried_over():
    of_splits = {"dataset", "validation_share", "streaming"}
    assert {field.name for field in fields(DataArguments)} == set(DATA_KEYS) - {"max_broken_share"} | of_splits


def test_settings_that_decide_which_images_there_are_come_from_the_recipe(tmp_path):
    kept = {"check_images": False, "revision": "abc", "restval": False, "max_broken_share": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"dataset": "coco", "margin": 1.0} | kept))
    assert data_settings(tmp_path, None, {"data_dir": None}) == {"dataset": "coco"} | kept
    assert data_settings(tmp_path, "coco", {"data_dir": "D"}) == {"dataset": "coco", "data_dir": "D"} | kept
    assert data_settings(tmp_path, "scenes", {"num_eval": 3}) == {"dataset": "scenes", "num_eval": 3}
    assert data_settings(tmp_path / "none", None, {}) == {"dataset": "scenes"}


def test_nothing_is_held_out_of_a_stream(tmp_path):
    (tmp_path / "recipe.yaml").write_text("streaming: true\nseed: 3")
    assert held_out(tmp_path) == {"share": 0, "seed": 3}


def test_everybody_sees_the_images_that_training_held_out(model, trained, pairs, tmp_path, capsys):
    chosen = trained["validation"]
    expected = chosen[IMAGE_ID][:]
    assert len(expected) == 6 and not set(expected) & set(trained["train"][IMAGE_ID][:])
    splits = load_as_trained(data_settings(model, None, {}), "validation", held_out(model))
    assert splits["validation"][IMAGE_ID][:] == expected
    words = ["evaluate", str(model), "--split", "validation", "--output", str(tmp_path / "m.json"), "--quiet"]
    assert main(words) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["fingerprint"] == fingerprint(expected, chosen[CAPTIONS][:]) and found["images"] == 6
    words = ["index", str(tmp_path / "index"), "--dataset", str(pairs), "--split", "validation"]
    assert main([*words, "--model", str(model), "--quiet"]) == 0
    gallery = GalleryIndex.load(tmp_path / "index")
    assert [item[IMAGE_ID] for item in gallery.items] == expected
    pictures = find_photographs(gallery, list(gallery.items))
    for picture, row in zip(pictures, chosen, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(row["image"]))


def test_models_that_held_out_other_images_are_not_compared(model, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    recipe = yaml.safe_load((other / "recipe.yaml").read_text()) | {"seed": 8}
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["evaluate", str(model), str(other), "--split", "validation", "--output", str(tmp_path / "m.json")]
    assert main([*words, "--quiet"]) == 1
    assert "would be judged on different images of 'validation'" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()
