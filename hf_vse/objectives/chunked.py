"""Any row loss on a few anchors at a time: O(chunk x candidates) memory.

The rows of a chunk are computed, reduced to one loss each and forgotten; the backward pass computes them again
(activation checkpointing, Chen et al., arXiv 1604.06174). Nothing is asked of the row loss, so it is the way for one
that is not in the table; for those that are, `streamed` does half of the arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_vse.model.losses_vse import same_image, similarity


def chunked_rows(
    row_loss: Callable[..., Tensor],
    queries: Tensor,
    candidates: Tensor,
    positives: Tensor,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    *,
    chunk_size: int | None = None,
    **options: Any,
) -> Tensor:
    """`row_loss` of every query.

    Args:
        row_loss: as those of `losses_vse`.
        queries: (Q, dim); candidates: (C, dim).
        positives: (Q,) the place of each query's own candidate.
        query_ids, candidate_ids: (Q,), (C,) integers; candidates of a query's image are no negatives of it.
        chunk_size: queries compared at once; None compares all, and keeps what the backward pass needs.
        options: of the row loss.

    Returns:
        (Q,) float32.
    """

    def rows(queries, candidates, positives, query_ids):
        excluded = None if query_ids is None else same_image(query_ids, candidate_ids, positives)
        with torch.autocast(queries.device.type, enabled=False):
            return row_loss(similarity(queries, candidates), positives, excluded, **options)

    if chunk_size is None or chunk_size >= len(queries):
        return rows(queries, candidates, positives, query_ids)
    losses = []
    for start in range(0, len(queries), chunk_size):
        part = slice(start, start + chunk_size)
        ids = None if query_ids is None else query_ids[part]
        losses.append(
            checkpoint(
                rows, queries[part], candidates, positives[part], ids, use_reentrant=False, preserve_rng_state=False
            )
        )
    return torch.cat(losses)
