"""Matrices of vectors: checked, and read from safetensors files."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open


def read_tensors(path: str | Path, *names: str) -> list[np.ndarray]:
    """Tensors of a safetensors file.

    Raises:
        ValueError: it is damaged, or lacks one.
    """
    try:
        with safe_open(path, framework="np") as file:
            return [file.get_tensor(name) for name in names]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or of another kind ({error}): write it again") from error


def as_vectors(name: str, embeds: Any) -> np.ndarray:
    """`embeds` as a matrix (items, dim); a ValueError that uses `name` where it is none, or is empty."""
    embeds = np.asarray(embeds)
    if embeds.ndim != 2 or not len(embeds):
        raise ValueError(f"{name} must be a non-empty (items, dim) matrix, got shape {embeds.shape}")
    return embeds
