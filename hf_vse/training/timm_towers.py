"""timm image towers: weights from a local file, and the preprocessing that they were trained with.

The preprocessing is in the `pretrained_cfg` of a tower: next to the weights on the Hub, or in timm's registry. A wrong
mean, size or interpolation silently lowers recall.
"""

import logging
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from safetensors.torch import load_file
from transformers import AutoModel, CLIPImageProcessorPil, PreTrainedModel, TimmWrapperConfig
from transformers.utils import CONFIG_NAME

from hf_vse.embed.stored import stored_json
from hf_vse.training.settings import CROP, RESIZE, ModelArguments

logger = logging.getLogger(__name__)

PREFIX = "timm/"
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
# The paper's evaluation transform; also the default for networks without a `pretrained_cfg`.
IMAGENET: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "input_size": [3, CROP, CROP],
    "crop_pct": CROP / RESIZE,
    "interpolation": "bilinear",
    "crop_mode": "center",
}


def is_timm(name: str | None) -> TypeGuard[str]:
    return (name or "").startswith(PREFIX)


def image_processor_of(model: ModelArguments) -> CLIPImageProcessorPil:
    """The image processor for the tower of a recipe; settings in the recipe override those of the tower."""
    if not is_timm(model.image_tower):
        return framed(IMAGENET, replace(model, resize=RESIZE if model.resize is None else model.resize))
    of_tower = pretrained_cfg(model.image_tower, of_file=model.image_tower_weights is not None)
    return framed(IMAGENET | of_tower, model)


def framed(described: dict[str, Any], model: ModelArguments) -> CLIPImageProcessorPil:
    """timm's evaluation transform: resize the shorter side to slightly more than the input size, then centre crop.

    Raises:
        ValueError: the tower does not take three channels, or `resize` is smaller than the crop.
    """
    channels, height, width = described["input_size"]
    if channels != 3:
        raise ValueError(f"image_tower={model.image_tower!r} takes {channels} channels; choose a tower with 3")
    if model.crop is not None:
        height = width = model.crop
    share = described["crop_pct"] or 1.0
    around = {"height": math.floor(height / share), "width": math.floor(width / share)}
    if described["crop_mode"] == "border":
        logger.warning("%s was trained on whole images with a border; here a centre crop is used", model.image_tower)
    if model.resize is not None:
        if model.resize < max(height, width):
            raise ValueError(
                f"resize={model.resize} is smaller than the crop of {height} x {width}: give a larger value"
            )
        around = {"shortest_edge": model.resize}
    elif height == width and described["crop_mode"] != "squash":
        around = {"shortest_edge": around["height"]}
    return CLIPImageProcessorPil(
        size=around,
        crop_size={"height": height, "width": width},
        resample=INTERPOLATIONS.get(described["interpolation"], INTERPOLATIONS["bilinear"]),
        image_mean=model.image_mean or list(described["mean"]),
        image_std=model.image_std or list(described["std"]),
    )


def pretrained_cfg(name: str, of_file: bool = False) -> dict[str, Any]:
    """The preprocessing fields of timm's `pretrained_cfg` for a tower; empty if unknown.

    Args:
        name: `timm/ARCHITECTURE.TAG`.
        of_file: the weights come from a file, so the Hub is not contacted.
    """
    config = None if of_file else stored_json(name, CONFIG_NAME, dict)
    found = (config or {}).get("pretrained_cfg") or registered(name.removeprefix(PREFIX))
    known = {key: value for key, value in found.items() if key in IMAGENET and value is not None}
    if not known:
        logger.warning("%s does not define its preprocessing: using that of ImageNet", name)
    return known


def registered(name: str) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a network by name, with or without the tag of its weights."""
    if find_spec("timm") is None or find_spec("torchvision") is None:  # timm needs torchvision
        return {}
    from timm.models import get_pretrained_cfg

    for each in (name, name.split(".")[0]):
        try:
            found = get_pretrained_cfg(each)
        except RuntimeError:  # no such tag
            continue
        if found is not None:
            return found.to_dict()
    return {}


def timm_tower(name: str | None, weights: str) -> PreTrainedModel:
    """A timm network without its classifier, with weights from a local safetensors file.

    Raises:
        ValueError: the name does not start with `timm/`, or the file does not hold the weights of that network.
        FileNotFoundError: the file does not exist.
    """
    if not is_timm(name):
        raise ValueError(f"image_tower_weights needs a timm image_tower, such as timm/resnet50, got {name!r}")
    if not Path(weights).is_file():
        raise FileNotFoundError(f"image_tower_weights={weights!r} does not exist: give a safetensors file")
    architecture = name.removeprefix(PREFIX).split(".")[0]
    tower = AutoModel.from_config(TimmWrapperConfig.from_dict({"architecture": architecture, "num_classes": 0}))
    network, state = tower.timm_model, load_file(weights)
    expected, classifier = network.state_dict(), np.atleast_1d(network.default_cfg["classifier"])
    wrong = [
        key
        for key, tensor in expected.items()
        if not key.endswith("num_batches_tracked") and (key not in state or state[key].shape != tensor.shape)
    ]
    wrong += [key for key in sorted(state) if key not in expected and key.rpartition(".")[0] not in classifier]
    if wrong:
        raise ValueError(
            f"image_tower_weights={weights!r} does not hold the weights of {name}: {len(wrong)} tensors are missing, "
            f"unexpected or have another shape, the first is {wrong[0]!r}"
        )
    network.load_state_dict(state, strict=False)
    return tower
