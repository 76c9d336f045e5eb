"""Matrices of vectors: checked, read from safetensors files, and averaged; the best candidates of queries."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

SHORTEST = 1e-6  # a sum of unit vectors that is shorter has no direction


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


def mean_of_rows(embeds: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """The unit mean of the rows of each owner, (count, dim); zero for one without any. Rows of zeros do not count."""
    sums = np.zeros((count, embeds.shape[1]), np.float32)
    np.add.at(sums, owner, embeds)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(lengths > SHORTEST, lengths, 1)


def best_of(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of the scores (queries, candidates) and their rows, best first; of equal scores the first."""
    if scores.shape[1] > k:
        few = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1) if k > 1 else scores.argmax(1)[:, None]
        scores, rows = np.take_along_axis(scores, few, axis=1), np.take_along_axis(rows, few, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def no_candidates(queries: int) -> tuple[np.ndarray, np.ndarray]:
    """What `merge_best` begins with."""
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def merge_best(
    best: tuple[np.ndarray, np.ndarray], scores: np.ndarray, first: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`best_of` those known and of the scores of the rows `first`, `first + 1`, ..."""
    rows = np.broadcast_to(np.arange(first, first + scores.shape[1]), scores.shape)
    return best_of(np.concatenate([best[0], scores], axis=1), np.concatenate([best[1], rows], axis=1), k)
