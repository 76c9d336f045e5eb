"""Any row loss on a few queries at a time: O(chunk x candidates) memory.

The scores of a chunk are computed, reduced to one loss for each query and dropped; the backward pass computes them
again (activation checkpointing, Chen et al., arXiv 1604.06174). It works with any row loss; for those that `streamed`
knows, that needs half of the arithmetic.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_vse.model.losses_vse import Objective, Scalar, share_an_id, similarity


def chunked_rows(
    objective: Objective,
    queries: Tensor,
    candidates: Tensor,
    positives: Tensor,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    *,
    settings: Mapping[str, Scalar],
    chunk_size: int | None = None,
) -> Tensor:
    """The row loss of every query.

    Args:
        queries: (Q, dim); candidates: (C, dim).
        positives: (Q,) the place of each query's positive among the candidates.
        query_ids, candidate_ids: (Q, kinds), (C, kinds) integers; candidates that share an id are no negatives.
        settings: `SETTINGS` by name.
        chunk_size: queries compared at once; None compares all, and keeps what the backward pass needs.

    Returns:
        (Q,) float32.
    """

    def rows(queries, candidates, positives, query_ids):
        excluded = None
        if query_ids is not None:
            excluded = share_an_id(query_ids, candidate_ids).scatter(1, positives[:, None], False)
        return objective.rows(similarity(queries, candidates), positives, excluded, settings)

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
