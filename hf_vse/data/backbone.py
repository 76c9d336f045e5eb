"""Runs an image tower over photographs once and keeps its outputs, in the form that `--features` reads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.data.digests import (
    configuration_digest,
    digest_of,
    image_processor_digest,
    images_digest,
    weights_digest,
)
from hf_vse.data.encoding import readable_batches, to_device
from hf_vse.data.images import check_broken_share
from hf_vse.data.schema import IMAGE
from hf_vse.data.transforms import needed_side
from hf_vse.data.unfinished import finish, missing_rows, open_unfinished, zero_rows
from hf_vse.files import check_output_file
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.towers_vse import state_sequence

logger = logging.getLogger(__name__)

LARGEST = float(np.finfo(np.float16).max)


@torch.no_grad()
def extract_features(
    model: VSEModel,
    image_processor: BaseImageProcessor,
    images: Dataset | Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    regions: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = 0.01,
    progress: bool = True,
) -> np.ndarray:
    """Writes the outputs of the image tower as a float16 .npy file; interrupted, the same call goes on.

    Args:
        images: rows with a column `image`, see `decode_image`; row i of the file is for `images[i]`, zero where it
            cannot be read.
        regions: all states (images, regions, dim) instead of the pooled vector (images, dim).

    Returns:
        The array, memory-mapped.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise ValueError(f"output {path} must end in .npy")
    check_output_file("output", path)

    def run(inputs: dict[str, torch.Tensor]) -> np.ndarray:
        states, pooled = model.pool_images(**to_device(inputs, model))
        found = (state_sequence(states) if regions else pooled).float().cpu().numpy()
        if np.abs(found).max() > LARGEST:
            raise ValueError(f"the image tower gives {np.abs(found).max():.3g}, more than float16 holds ({LARGEST:g})")
        return found

    def prepare(readable: list[Any]) -> dict[str, torch.Tensor]:
        return dict(image_processor(readable, return_tensors="pt"))

    needed = needed_side(image_processor)
    first = next((inputs for _, inputs in readable_batches(images, prepare, 1, needed=needed) if inputs), None)
    if first is None:
        raise ValueError(f"none of the {len(images)} images can be read")
    made_by = features_digest(model, image_processor, images, regions)
    array, unfinished = open_unfinished(path, (len(images), *run(first)[0].shape), made_by, np.float16)
    missing = missing_rows(array)
    with tqdm(total=len(images), initial=len(images) - len(missing), desc="image tower", disable=not progress) as bar:
        rest = Subset(images, missing.tolist())
        for readable, inputs in readable_batches(rest, prepare, batch_size, num_workers, needed):
            rows, missing = missing[: len(readable)], missing[len(readable) :]
            good = readable.numpy()
            if inputs:
                array[rows[good]] = run(inputs)
            array[rows[~good]] = 0
            bar.update(len(rows))
    broken = {name_of(images[row][IMAGE], row): "cannot be read, its row is zero" for row in zero_rows(array)}
    check_broken_share(broken, len(images), max_broken_share)
    finish(array, unfinished, path, "the image tower")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def features_digest(
    model: VSEModel,
    image_processor: BaseImageProcessor,
    images: Dataset | Sequence[Mapping[str, Any]],
    regions: bool,
) -> str:
    """Of all that `extract_features` depends on."""
    tower = weights_digest(model.vision_model), configuration_digest(model.config.vision_config)
    pooling = None if regions else (model.config.vision_pooling, weights_digest(model.vision_pooling))
    return digest_of(*tower, pooling, image_processor_digest(image_processor), images_digest(images))


def name_of(image: Any, row: int) -> str:
    path = image.get("path") if isinstance(image, dict) else image
    return path if isinstance(path, str) and path else f"image {row}"
