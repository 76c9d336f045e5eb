"""Photographs are prepared as a timm tower was trained to see them; timm itself is not needed for that."""

import json

import numpy as np
import PIL.Image
import pytest

from hf_vse.training import timm_towers
from hf_vse.training.build import build_image_processor
from hf_vse.training.settings import ModelArguments

# Of `timm/tf_efficientnet_lite2.in1k`, shortened.
LITE2 = {
    "input_size": [3, 260, 260],
    "interpolation": "bicubic",
    "crop_pct": 0.89,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
NAME = "timm/tf_efficientnet_lite2.in1k"


@pytest.fixture(autouse=True)
def on_the_hub(monkeypatch):
    """The configurations that lie beside the weights."""
    files = {NAME: {"architecture": "tf_efficientnet_lite2", "pretrained_cfg": dict(LITE2)}}
    monkeypatch.setattr(timm_towers, "stored_json", lambda name, file, kind: files.get(name))
    monkeypatch.setattr(timm_towers, "registered", lambda name: {})
    return files


def prepared(**options) -> dict:
    processor = build_image_processor(ModelArguments(**{"image_tower": NAME} | options))
    settings = processor.to_dict()
    mean, std = settings["image_mean"], settings["image_std"]
    return json.loads(processor.to_json_string()) | {"image_mean": list(mean), "image_std": list(std)}


def test_mean_size_and_interpolation_are_those_of_the_tower():
    found = prepared()
    assert found["image_mean"] == found["image_std"] == [0.5, 0.5, 0.5]
    assert found["crop_size"] == {"height": 260, "width": 260} and found["resample"] == 3
    assert found["size"] == {"shortest_edge": 292}  # floor(260 / 0.89), as timm has it


def test_what_is_given_wins():
    found = prepared(resize=230, crop=224, image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 1.0, 1.0])
    assert found["size"] == {"shortest_edge": 230} and found["crop_size"] == {"height": 224, "width": 224}
    assert found["image_mean"] == [0.1, 0.2, 0.3] and found["image_std"] == [1.0, 1.0, 1.0]
    assert prepared(crop=89)["size"] == {"shortest_edge": 100}  # the share of the tower about another size


def test_squashed_and_oblong_inputs(on_the_hub):
    config = on_the_hub[NAME]["pretrained_cfg"]
    config |= {"crop_mode": "squash", "crop_pct": 1.0}
    assert prepared()["size"] == {"height": 260, "width": 260}
    config |= {"crop_mode": "center", "input_size": [3, 128, 256]}
    assert prepared()["size"] == {"height": 128, "width": 256} == prepared()["crop_size"]
    processor = build_image_processor(ModelArguments(image_tower=NAME))
    picture = PIL.Image.fromarray(np.zeros((50, 70, 3), np.uint8))
    assert processor([picture], return_tensors="np")["pixel_values"].shape == (1, 3, 128, 256)
    config |= {"input_size": [1, 28, 28]}
    with pytest.raises(ValueError, match="takes 1 channels; choose a tower with 3"):
        prepared()


def test_a_file_of_weights_asks_the_register_and_not_the_hub(monkeypatch):
    monkeypatch.setattr(timm_towers, "registered", lambda name: {"mean": [0.4, 0.4, 0.4], "crop_pct": None})
    found = prepared(image_tower_weights="weights.safetensors")
    assert found["image_mean"] == [0.4, 0.4, 0.4] and found["size"] == {"shortest_edge": 256}


def test_a_tower_that_says_nothing_is_prepared_as_for_imagenet_and_that_is_said(caplog):
    found = prepared(image_tower="timm/unknown")
    assert found["image_mean"] == [0.485, 0.456, 0.406] and found["crop_size"]["height"] == 224
    assert "timm/unknown does not define its preprocessing" in caplog.text


def test_settings_without_an_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match="crop=224 has no effect on image_tower='google/vit'"):
        build_image_processor(ModelArguments(image_tower="google/vit", crop=224))
