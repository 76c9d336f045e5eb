"""Short names for what a stored result depends on: weights, tokenizer, images. Equal digests, equal results."""

import json
from hashlib import blake2b
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_vse.data.schema import IMAGE


def weights_digest(tower: nn.Module) -> str:
    """Sixteen bytes, in hexadecimal, that change with any weight or statistic of the tower."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary and the rules, without the padding and truncation of the latest call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return blake2b(json.dumps(rules, sort_keys=True).encode(), digest_size=16).hexdigest()


def images_digest(images: Dataset) -> str:
    """Of the contents of embedded images; of files by name, size and time of their last change."""
    digest = blake2b(digest_size=16)
    for row in images:
        value = row[IMAGE]
        if value["bytes"] is not None:
            digest.update(value["bytes"])
        else:
            path = Path(value["path"])
            there = path.stat() if path.is_file() else None
            digest.update(f"{path.name} {there and (there.st_size, there.st_mtime_ns)}".encode())
    return digest.hexdigest()
