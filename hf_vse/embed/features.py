"""Runs an image tower over images once and writes its outputs as one array, which `--features` reads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.data.digests import configuration_digest, digest_of, image_processor_digest, item_key, weights_digest
from hf_vse.data.images import MAX_BROKEN_SHARE, check_broken_share
from hf_vse.data.schema import IMAGE
from hf_vse.data.transforms import needed_side
from hf_vse.embed.batches import Images, first_readable, image_batches, image_parts
from hf_vse.embed.store import Store
from hf_vse.files import check_output_file, whole_file
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.towers_vse import state_sequence

LARGEST = float(np.finfo(np.float16).max)


@torch.no_grad()
def extract_features(
    model: VSEModel,
    image_processor: BaseImageProcessor,
    images: Images,
    path: str | Path,
    *,
    regions: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = MAX_BROKEN_SHARE,
    progress: bool = True,
) -> np.ndarray:
    """Writes the outputs of the image tower as a float16 .npy file.

    Until the file is complete its rows are kept in a hidden folder beside it: an interrupted call continues when it is
    repeated, and the disk needs room for twice the file.

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

    def run(inputs: dict[str, torch.Tensor], count: int) -> np.ndarray:
        outputs = [model.pool_images(alone=True, **part).to_tuple()[:2] for part in image_parts(inputs, model)]
        states, pooled = (torch.cat(each) for each in zip(*outputs, strict=True))
        found = (state_sequence(states) if regions else pooled).float().cpu().numpy()
        if np.abs(found).max() > LARGEST:
            raise ValueError(f"the image tower gives {np.abs(found).max():.3g}, more than float16 holds ({LARGEST:g})")
        return found.astype(np.float16)

    def prepare(readable: list[Any]) -> dict[str, torch.Tensor]:
        return dict(image_processor(readable, return_tensors="pt"))

    store = unfinished_store(path, features_digest(model, image_processor, regions))
    keys = [item_key(row[IMAGE]) for row in images]
    missing, title = store.missing(keys), "image tower" if progress else None
    needed = needed_side(image_processor)
    first = first_readable(images, prepare, needed)
    if first is None:
        raise ValueError(f"none of the {len(images)} images can be read")
    row = run(first, 1)[0]
    check_output_file("output", path, (len(images) + len(missing)) * row.nbytes)
    batches = image_batches(run, images, missing, prepare, batch_size, num_workers, needed, title)
    store.fill(keys, batches, "the image tower")
    unread = store.missing(keys)
    broken = {image_name(images[row][IMAGE], row): "cannot be read, its row is zero" for row in unread}
    check_broken_share(broken, len(images), max_broken_share)
    with whole_file(path) as unfinished:
        array = np.lib.format.open_memmap(unfinished, "w+", row.dtype, (len(images), *row.shape))
        for places, rows in store.read(keys):
            array[places] = rows
        array.flush()
    store.remove()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def unfinished_store(path: Path, made_by: str) -> Store:
    """Keeps the rows of an array until the file is complete."""
    return Store(path.with_name(f".{path.stem}.{made_by[:8]}.unfinished"))


def features_digest(model: VSEModel, image_processor: BaseImageProcessor, regions: bool) -> str:
    """Digest of everything but the images that the rows of `extract_features` depend on."""
    tower = weights_digest(*model.tower_modules()["vision"]), configuration_digest(model.config.vision_config)
    pooling = None if regions else (model.config.vision_pooling, weights_digest(model.vision_pooling))
    return digest_of(*tower, pooling, image_processor_digest(image_processor))


def image_name(image: Any, row: int) -> str:
    path = image.get("path") if isinstance(image, dict) else image
    return path if isinstance(path, str) and path else f"image {row}"
