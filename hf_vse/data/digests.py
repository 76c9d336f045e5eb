"""Short names for what a stored result depends on: weights, preparation, configuration, content.

Equal digests, equal results. What changes a vector changes its digest; what does not (where things lie, which version
of a library wrote a file, how the model was trained) leaves it.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

# Of a configuration, what says nothing about the vectors of a model that is run as it is.
NO_MATTER = {
    "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
    "num_labels", "num_classes", "label_names", "auto_map", "use_cache", "initializer_range", "problem_type",
    "pretrained_cfg",
}  # fmt: skip
# Of an image processor: a name that differs between its variants, and where its code is.
NO_SETTING = {"image_processor_type", "processor_class", "_processor_class", "auto_map", "feature_extractor_type"}
WHOLE_FILE = 2**17  # bytes; of a larger file three blocks are read
BLOCK = 2**14


def digest_of(*parts: Any) -> str:
    """Sixteen bytes, in hexadecimal, of values that print what they are."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def weights_digest(tower: nn.Module) -> str:
    """Sixteen bytes, in hexadecimal, that change with any weight or statistic of the tower."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary, the rules, and how much is read of a sentence; without the padding of the latest call."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    sides = tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side
    return digest_of(json.dumps(rules, sort_keys=True), sides)


def image_processor_digest(image_processor: BaseImageProcessor) -> str:
    """Of everything an image processor does to a picture."""
    settings = json.loads(image_processor.to_json_string())
    kind = type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")
    return digest_of(kind, sorted((key, value) for key, value in settings.items() if key not in NO_SETTING))


def configuration_digest(config: PreTrainedConfig) -> str:
    """Of what a tower computes with its weights: activations, heads, scales, and the like.

    Only what differs from the defaults of its kind, so that a newer library with more fields changes nothing.
    """
    inner = [name for name in config.sub_configs if isinstance(getattr(config, name), PreTrainedConfig)]
    values = config.to_diff_dict()
    try:
        defaults = {} if inner else type(config)().to_diff_dict()
    except (ValueError, TypeError, ImportError):  # a kind that has no defaults
        defaults = {}
    told = {
        key: value
        for key, value in values.items()
        if key not in NO_MATTER and key not in inner and "dropout" not in key and defaults.get(key, ...) != value
    }
    towers = [configuration_digest(getattr(config, name)) for name in inner]
    return digest_of(config.model_type, json.dumps(told, sort_keys=True, default=str), towers)


def images_digest(images: Dataset | Sequence[Mapping[str, Any]]) -> str:
    """Of the contents of images, or of the rows of features that take their place, in their order.

    Args:
        images: rows with one column, as `undecoded_images` gives them or as `decode_image` reads them.

    Embedded images and features are read whole, about a second for each gigabyte. Of a file count its name, size and
    time, and its bytes: all of a small one, 48 KiB of a larger one, less than a millisecond for each.
    """
    digest = blake2b(digest_size=16)
    for row in images:
        digest.update(content_digest(next(iter(row.values()))))
    return digest.hexdigest()


def content_digest(value: Any) -> bytes:
    """Sixteen bytes for one image: a file, its bytes, a picture or an array."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    digest = blake2b(digest_size=16)
    if isinstance(value, str | Path):
        digest.update(file_digest(Path(value)))
    elif isinstance(value, bytes):
        digest.update(value)
    elif value is not None:
        array = np.ascontiguousarray(value)
        mode = value.mode if isinstance(value, Image.Image) else ""
        digest.update(f"{mode} {array.shape} {array.dtype}".encode())
        digest.update(array.view(np.uint8).reshape(-1))
    return digest.digest()


def file_digest(path: Path) -> bytes:
    """Sixteen bytes that change with a file; of one that is not there, with its name."""
    digest = blake2b(path.name.encode(errors="surrogateescape"), digest_size=16)
    if path.is_file():
        status = path.stat()
        digest.update(f" {status.st_size} {status.st_mtime_ns} ".encode())
        with open(path, "rb") as file:
            if status.st_size <= WHOLE_FILE:
                digest.update(file.read())
            else:
                for start in (0, (status.st_size - BLOCK) // 2, status.st_size - BLOCK):
                    file.seek(start)
                    digest.update(file.read(BLOCK))
    return digest.digest()
