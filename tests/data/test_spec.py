"""Everybody who names a model sees the images that its training saw under the same split."""

import json
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict

from hf_vse.cli import demo
from hf_vse.cli.main import main
from hf_vse.data import spec as spec_module
from hf_vse.data.schema import CAPTIONS, IMAGE_ID, fingerprint
from hf_vse.data.sources import load_pairs
from hf_vse.data.spec import OPTIONS, DataSpec
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.pictures import find_images
from hf_vse.training.build import load_splits
from hf_vse.training.recipe import Recipe, build_recipe
from hf_vse.training.run import run_recipe
from tests.conftest import make_pairs
from tests.embed.test_transformers_models import CASES, save

DECIDES = {"validation_share": 0.3, "seed": 7}
TINY = {
    "vision_config": {"model_type": "resnet", "layer_type": "basic", "embedding_size": 4, "hidden_sizes": [4],
                      "depths": [1]},
    "text_config": {"word_dim": 3, "hidden_size": 4}, "projection_dim": 4, "min_word_count": 1, "resize": 32,
    "crop": 32, "max_steps": 1, "per_device_train_batch_size": 4, "eval_strategy": "no", "save_strategy": "no",
    "diagnostics_steps": 0, "disable_tqdm": True,
}  # fmt: skip


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
    return load_splits(Recipe({"dataset": str(pairs), "output_dir": "."} | DECIDES).data)


@pytest.fixture
def other_defaults(monkeypatch):
    """A later version, say, that holds out other images where nothing is said."""
    monkeypatch.setattr(spec_module, "DEFAULT_SEED", 1234)
    monkeypatch.setattr(spec_module, "VALIDATION_SHARE", 0.5)
    monkeypatch.setattr(
        DataSpec.__init__, "__defaults__", (*DataSpec.__init__.__defaults__[:-5], 0.5, 1234, None, "none", None)
    )


def run_recorded(folder: Path, data: dict) -> None:
    measured = {"metrics": {"validation": {"fingerprint": "abc"}}}
    (folder / "metrics.json").write_text(json.dumps({"stages": [], "data": data} | measured))


def test_options_are_those_of_load_pairs():
    assert OPTIONS == signature(load_pairs).parameters.keys() - {"source", "revision", "cache_dir"}


def test_a_spec_survives_json_and_refuses_what_it_does_not_know():
    whole = DataSpec("coco", {"data_dir": Path("D"), "restval": False}, "main", "test", 0.2, 3)
    values = json.loads(json.dumps(whole.to_dict()))
    assert DataSpec.of_dict(values, "here") == replace(whole, options={"data_dir": "D", "restval": False})
    for wrong, message in (
        ({"sauce": "x"}, "here has the unknown field 'sauce'"),
        ({"options": {"split_fil": "x"}}, "here: coco has no setting 'split_fil'"),
        ({"options": ["restval"]}, "here does not say where the data are"),
        ({"source": 3}, "here does not say where the data are"),
        ({"options": {"data_dir": ["a"]}}, "here: data_dir is"),
        ({"split": ["a"]}, "here: split is"),
        ({"seed": -1}, "here: seed is -1"),
        ({"fingerprint": ["a"]}, "here: fingerprint is"),
        ({"validation_share": True}, "here: validation_share is True"),
    ):
        with pytest.raises(ValueError, match=message):
            DataSpec.of_dict(values | wrong, "here")


def test_a_recipe_writes_every_value_out():
    data = build_recipe({"dataset": "scenes", "num_eval": 3, "seed": 5}).data
    assert data.options == {
        "num_eval": 3, "check_images": True, "restval": True, "streaming": False, "max_broken_share": 0.01,
    }  # fmt: skip
    assert (data.source, data.validation_share, data.seed, data.split) == ("scenes", 0.05, 5, None)


def test_settings_that_decide_which_images_there_are_come_from_training(tmp_path):
    kept = {"check_images": False, "restval": False, "max_broken_share": 0.5}
    recipe = {"dataset": "coco", "margin": 1.0, "revision": "abc", "seed": 3} | kept
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    known = DataSpec("coco", kept, "abc", None, seed=3, near_duplicates="auto")
    assert DataSpec.of_model(tmp_path) == known
    assert DataSpec.of_model(tmp_path, "coco", "test", data_dir="D", features=None) == replace(
        known, options={"data_dir": "D"} | kept, split="test"
    )
    assert DataSpec.of_model(tmp_path, "scenes", num_eval=3) == DataSpec("scenes", {"num_eval": 3}, seed=3)
    assert DataSpec.of_model(tmp_path / "none") == DataSpec("scenes")
    run_recorded(tmp_path, DataSpec("flickr8k", {"data_dir": "E", "streaming": False}, seed=9).to_dict())
    assert DataSpec.of_model(tmp_path) == DataSpec("flickr8k", {"data_dir": "E"}, seed=9, fingerprint="abc")
    assert DataSpec.of_model(tmp_path, data_dir="F").fingerprint is None  # other data
    assert DataSpec.of_model(tmp_path, "coco").fingerprint is None


def test_a_folder_has_one_source_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    run_recorded(tmp_path, DataSpec("photos", {"image_column": "a"}).to_dict())
    for name in ("photos", "./photos", str(tmp_path / "photos")):
        assert DataSpec.of_model(tmp_path, name).options == {"image_column": "a"}
    assert DataSpec.of_model(tmp_path, "photographs").options == {}
    assert DataSpec("photos", {"data_dir": "photos", "features": "gone"}).absolute() == DataSpec(
        str(tmp_path / "photos"), {"data_dir": str(tmp_path / "photos"), "features": "gone"}
    )


def test_nothing_is_held_out_of_a_stream(tmp_path, pairs):
    (tmp_path / "recipe.yaml").write_text(f"dataset: {pairs}\nstreaming: true\nseed: 3")
    data = DataSpec.of_model(tmp_path)
    assert (data.validation_share, data.seed, data.options) == (0, 3, {})
    assert data.load().keys() == {"train"}


def test_a_damaged_record_is_refused_and_that_of_an_evaluation_is_none(tmp_path):
    (tmp_path / "recipe.yaml").write_text("dataset: coco")
    (tmp_path / "metrics.json").write_text(json.dumps({"data": {"source": "scenes"}, "metrics": {}}))
    assert DataSpec.of_model(tmp_path).source == "coco"
    run_recorded(tmp_path, DataSpec("coco").to_dict() | {"seed": "many"})
    with pytest.raises(ValueError, match="metrics.json: data: seed is 'many'"):
        DataSpec.of_model(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json"):
        DataSpec.of_model(tmp_path)


def sees(model: Path, expected: Dataset, folder: Path, *data: str) -> None:
    """Asserts that evaluation, a gallery, its pictures and the demo page show exactly these images."""
    ids = expected[IMAGE_ID][:]
    words = ["evaluate", str(model), *data, "--split", "validation", "--output", str(folder / "m.json"), "--quiet"]
    assert main(words) == 0
    [found] = json.loads((folder / "m.json").read_text())["metrics"].values()
    assert found["fingerprint"] == fingerprint(ids, expected[CAPTIONS][:]) and found["images"] == len(ids)
    of_training = data or ("--dataset", DataSpec.of_model(model).source)
    words = ["index", str(folder / "index"), *of_training, "--split", "validation", "--model", str(model), "--quiet"]
    assert main(words) == 0
    gallery = GalleryIndex.load(folder / "index")
    assert [item[IMAGE_ID] for item in gallery.items] == ids
    for picture, row in zip(find_images(gallery, list(gallery.items)), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(row["image"]))
    arguments = demo.parse(["--model", str(model), *data])
    assert Dataset.from_parquet(demo.photographs(arguments, str(model)))[IMAGE_ID][:] == ids


def test_everybody_sees_the_images_that_training_held_out(model, trained, pairs, tmp_path, monkeypatch, capsys):
    """As a run of version 0.1 left it: a recipe, no `data` in its record."""
    monkeypatch.setattr(demo, "cache", lambda: tmp_path / "cache")
    expected = trained["validation"]
    assert len(expected) == 6 and not set(expected[IMAGE_ID][:]) & set(trained["train"][IMAGE_ID][:])
    sees(model, expected, tmp_path)
    assert main(["evaluate", str(model), "--dataset", str(pairs), "--output", str(tmp_path / "m.json")]) == 1
    assert "has no split 'test'; choose one of train with --split" in capsys.readouterr().err


def test_a_run_says_what_it_held_out_whatever_the_defaults_are_later(pairs, tmp_path, monkeypatch, request):
    """Neither share nor seed is given: the record of the run has them, not the code that evaluates."""
    monkeypatch.setattr(demo, "cache", lambda: tmp_path / "cache")
    recipe = build_recipe(TINY | {"dataset": str(pairs), "output_dir": str(tmp_path / "run"), "validation_share": 0.2})
    expected = load_splits(recipe.data)["validation"]
    run_recipe(recipe)
    request.getfixturevalue("other_defaults")
    assert DataSpec.of_model(tmp_path / "run", split="validation").load_split()[IMAGE_ID][:] == expected[IMAGE_ID][:]
    assert DataSpec.of_model(tmp_path / "none", str(pairs)).load()["validation"][IMAGE_ID][:] != expected[IMAGE_ID][:]
    sees(tmp_path / "run", expected, tmp_path)
    (tmp_path / "again").mkdir()
    sees(tmp_path / "run", expected, tmp_path / "again", "--dataset", str(pairs))


def test_other_images_than_training_held_out_are_refused(pairs, tmp_path, capsys):
    """Data that grew: the same share and seed would hold out images that the model was trained on."""
    folder = tmp_path / "pairs"
    shutil.copytree(pairs, folder)
    run_recipe(build_recipe(TINY | {"dataset": str(folder), "output_dir": str(tmp_path / "run")} | DECIDES))
    run, line = str(tmp_path / "run"), f"{folder} has changed since training: other images would be held out"
    indexed = ["--dataset", str(folder), "--split", "validation", "--model", run]
    assert main(["index", str(tmp_path / "index"), *indexed]) == 0
    shutil.rmtree(folder)
    DatasetDict({"train": make_pairs(24, first_id=100)}).save_to_disk(str(folder))
    asked = ["evaluate", run, "--split", "validation", "--output", str(tmp_path / "m.json")]
    for words in (asked, [*asked, "--dataset", str(folder)], ["index", str(tmp_path / "other"), *indexed]):
        assert main([*words, "--quiet"]) == 1
        assert line in capsys.readouterr().err
    gallery = GalleryIndex.load(tmp_path / "index")
    with pytest.raises(ValueError, match="has changed since training"):
        find_images(gallery, list(gallery.items))
    assert main([*asked[:3], "train", *asked[4:], "--quiet"]) == 0
    (tmp_path / "run" / "metrics.json").unlink()  # as of a run that was interrupted: nothing tells
    assert main([*asked, "--quiet"]) == 0


def test_the_origin_of_an_older_gallery_is_read():
    older = {"dataset": "coco", "data_dir": "D", "restval": False, "revision": "abc", "split": "validation"}
    spec = DataSpec.of_dict(older | {"held_out": {"share": 0.3, "seed": 7}}, "origin")
    assert spec == DataSpec("coco", {"data_dir": "D", "restval": False}, "abc", "validation", 0.3, 7)
    assert DataSpec.of_dict(older, "origin") == replace(spec, validation_share=0.05, seed=42)


def test_models_that_held_out_other_images_are_not_compared(model, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    recipe = yaml.safe_load((other / "recipe.yaml").read_text()) | {"seed": 8}
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["evaluate", str(model), str(other), "--split", "validation", "--output", str(tmp_path / "m.json")]
    assert main([*words, "--quiet"]) == 1
    assert "would be judged on different images of 'validation'" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_a_pretrained_model_is_judged_on_what_a_run_held_out(model, trained, tokenizer, tmp_path):
    """It has no record of its own; the split is that of the run, in either order."""
    pretrained = str(save(tmp_path / "clip", CASES["clip"], tokenizer))
    for names in ([pretrained, str(model)], [str(model), pretrained]):
        words = ["evaluate", *names, "--split", "validation", "--output", str(tmp_path / "m.json"), "--quiet"]
        assert main(words) == 0
        found = json.loads((tmp_path / "m.json").read_text())["metrics"].values()
        expected = fingerprint(trained["validation"][IMAGE_ID][:], trained["validation"][CAPTIONS][:])
        assert [each["fingerprint"] for each in found] == [expected] * 2
        (tmp_path / "m.json").unlink()
