"""Checks that every search makes, wherever the vectors are."""

from typing import Any

import numpy as np


def checked_queries(queries: Any, dim: int, k: int) -> np.ndarray:
    """(queries, dim) contiguous float32.

    Raises:
        ValueError: another shape, what is not a number, or k < 1.
    """
    queries = np.ascontiguousarray(np.asarray(queries), dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries must be (queries, {dim}), got shape {queries.shape}")
    if not np.isfinite(queries).all():
        raise ValueError("queries hold nan or inf: the model that made them is broken")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return queries


def check_made_by(facts: dict[str, Any], model: Any) -> None:
    """Raises ValueError if `model`, a name or an `Encoder`, is not what made the gallery with these facts."""
    name, known = (model if isinstance(model, str) else model.name), facts.get("digest")
    by_name = isinstance(model, str) or known is None
    same = name == facts.get("model") if by_name else model.digest == known
    if facts.get("model") is not None and not same:
        raise ValueError(
            f"the gallery was made by {facts['model']!r}, the query by {name!r}"
            f"{' with other weights or another preparation' if name == facts['model'] else ''}; use one model for both"
        )
