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
from hf_vse.objectives.captions import Candidates


def chunked_rows(
    objective: Objective,
    queries: Tensor,
    candidates: Tensor,
    positives: Tensor,
    query_ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    own: Tensor | None = None,
    *,
    settings: Mapping[str, Scalar],
    chunk_size: int | None = None,
    past: Candidates | None = None,
) -> Tensor:
    """The row loss of every query.

    Args:
        queries: (Q, dim); candidates: (C, dim).
        positives: (Q, P) the places of each query's positives among the candidates; a row loss for each.
        query_ids, candidate_ids: (Q, kinds), (C, kinds) integers; candidates that share an id are no negatives.
        own: (Q, P) what the positives score instead of their similarities.
        settings: `SETTINGS` by name.
        chunk_size: row losses computed at once; None computes all, and keeps what the backward pass needs.
        past: further candidates, see `past.py`.

    Returns:
        (Q * P,) float32.
    """
    each = positives.shape[1]

    def rows(queries, candidates, positives, query_ids, own):
        scores, excluded, places = similarity(queries, candidates), None, positives.reshape(-1, 1)
        if query_ids is not None and candidate_ids is not None:
            excluded = share_an_id(query_ids, candidate_ids)
        if past is not None:
            assert excluded is not None  # past candidates need ids
            scores = torch.cat([scores, similarity(queries, past.embeds)], dim=1)
            excluded = torch.cat([excluded, share_an_id(query_ids, past.ids)], dim=1)
        if excluded is not None:
            excluded = excluded.repeat_interleave(each, dim=0).scatter(1, places, False)
        scores = scores if each == 1 else scores.repeat_interleave(each, dim=0)
        scores = scores if own is None else scores.scatter(1, places, own.reshape(-1, 1))
        return objective.rows(scores, places[:, 0], excluded, settings)

    size = None if chunk_size is None else max(1, chunk_size // each)
    if size is None or size >= len(queries):
        return rows(queries, candidates, positives, query_ids, own)
    losses = []
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        ids, of_part = (None if given is None else given[part] for given in (query_ids, own))
        inputs = queries[part], candidates, positives[part], ids, of_part
        losses.append(checkpoint(rows, *inputs, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(losses)
