"""Digests of what a stored result depends on: weights, preprocessing, configuration, content.

Equal digests mean equal results. Anything that changes a vector changes its digest. Anything else does not: file
locations, library versions, how the model was trained.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # files are told apart without them
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

# Configuration fields that do not affect the vectors.
NO_MATTER = {
    "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
    "num_labels", "num_classes", "label_names", "auto_map", "use_cache", "initializer_range", "problem_type",
    "pretrained_cfg",
}  # fmt: skip
# Image processor fields that do not affect the pixels: class names and the location of the code.
NO_SETTING = {"image_processor_type", "processor_class", "_processor_class", "auto_map", "feature_extractor_type"}
WHOLE_FILE = 2**18  # bytes; of a larger file three blocks are read, and the time
BLOCK = 2**14  # bytes


def digest_of(*parts: Any) -> str:
    """16-byte hex digest of values whose `repr` shows their content."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def weights_digest(*modules: "nn.Module") -> str:
    """16-byte hex digest of all parameters and buffers of a model, or of the modules of a tower."""
    import torch

    digest = blake2b(digest_size=16)
    for name, tensor in chain.from_iterable(sorted(module.state_dict().items()) for module in modules):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of the vocabulary, rules, maximum length and sides; ignores the padding of the latest call."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    sides = tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side
    return digest_of(json.dumps(rules, sort_keys=True), sides)


def image_processor_digest(image_processor: "BaseImageProcessor") -> str:
    """Digest of all settings of an image processor that affect the pixels."""
    settings = json.loads(image_processor.to_json_string())
    kind = type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")
    return digest_of(kind, sorted((key, value) for key, value in settings.items() if key not in NO_SETTING))


def configuration_digest(config: "PreTrainedConfig") -> str:
    """Digest of how a tower uses its weights: activations, heads, scales, and so on.

    Only values that differ from the class defaults count, so new fields in a newer library change nothing.
    """
    from transformers import PreTrainedConfig

    inner = [name for name in config.sub_configs if isinstance(getattr(config, name), PreTrainedConfig)]
    values = config.to_diff_dict()
    try:
        defaults = {} if inner else type(config)().to_diff_dict()
    except (ValueError, TypeError, ImportError):  # a class without defaults
        defaults = {}
    told = {
        key: value
        for key, value in values.items()
        if key not in NO_MATTER and key not in inner and "dropout" not in key and defaults.get(key, ...) != value
    }
    towers = [configuration_digest(getattr(config, name)) for name in inner]
    return digest_of(config.model_type, json.dumps(told, sort_keys=True, default=str), towers)


def images_digest(images: "Dataset | Sequence[Mapping[str, Any]]") -> str:
    """Digest of the contents of images, or of feature rows, in order.

    Args:
        images: rows with one column, as returned by `undecoded_images` or accepted by `decode_image`.

    Embedded images and features are read completely, at about 1 GB/s. For a file, the digest covers its name, size,
    modification time, and all bytes of a small file or 48 KiB of a larger one; this takes less than a millisecond.
    """
    digest = blake2b(digest_size=16)
    for row in images:
        digest.update(bytes.fromhex(item_key(next(iter(row.values())))))
    return digest.hexdigest()


def item_key(value: Any) -> str:
    """16-byte hex digest of one item: a file, bytes, a PIL image or an array."""
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
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """16-byte digest of name and content of a file; of its name alone if it does not exist.

    Of a file that is not read whole the time counts too. A copy of a small one has the same digest.
    """
    digest = blake2b(path.name.encode(errors="surrogateescape"), digest_size=16)
    if path.is_file():
        status = path.stat()
        time = status.st_mtime_ns if status.st_size > WHOLE_FILE else ""
        digest.update(f" {status.st_size} {time} ".encode())
        for block in sampled(path, status.st_size, WHOLE_FILE):
            digest.update(block)
    return digest.digest()


def sampled(path: Path, size: int, whole: int) -> Iterator[bytes]:
    """All bytes of a file of at most `whole`, or the beginning, the middle and the end of a larger one."""
    with path.open("rb") as file:
        if size <= whole:
            yield file.read()
        else:
            for start in (0, (size - BLOCK) // 2, size - BLOCK):
                file.seek(start)
                yield file.read(BLOCK)
