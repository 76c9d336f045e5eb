"""Metrics of rankings with any number of positives: hit rate, true recall, precision and gain.

The R@K of image-text retrieval is a hit rate: one of an image's five captions among the first K will do. Recall proper
is the share of the positives found. Both are reported under their own names, with what information retrieval measures
besides: MRR, R-precision, nDCG (Järvelin & Kekäläinen, 2002) with gains of 0 and 1, and mAP@R (Musgrave et al., "A
Metric Learning Reality Check", arXiv 2003.08505, section 3.2), which ECCV Caption (arXiv 2204.03359) found to agree
best with people. Ties count against the query, as `positions.py` says.
"""

import numpy as np
import torch
from torch import Tensor

from hf_vse.evaluation.metrics import RECALL_LEVELS
from hf_vse.evaluation.positions import Positives, positive_positions
from hf_vse.evaluation.ranks import Array, as_matrix, finite_norms

GAIN_DEPTH = 10


def ranking_metrics(positives_query: Tensor, positions: Tensor) -> dict[str, float | int]:
    """Means over the queries that have positives.

    Args:
        positives_query: (pairs,) the query of each pair, sorted; positions: (pairs,) where its positive stands,
            counted from 0 and ascending within a query, as `positive_positions` gives them.

    Returns:
        From 0 to 100: `hit_r1, hit_r5, hit_r10` (a positive among the first K), `recall_r1, recall_r5, recall_r10`
        (the share of its positives there), `mrr` (one over the place of the first), `map_at_r` (the mean over ranks
        r <= R of the precision up to r where r holds a positive, else 0, for R positives), `r_precision` (the share of
        positives among the first R) and `ndcg_10`. Counted from 1: `medr` (floor of the median) and `meanr`, the place
        of the first positive. And the number of `queries` and of `positives_per_query`.
    """
    query, counts = positives_query.unique_consecutive(return_inverse=True, return_counts=True)[1:]
    start = counts.cumsum(0) - counts
    place = positions.double() + 1  # counted from 1
    found = (torch.arange(len(query)) - start[query] + 1).double()  # positives up to here, this one included
    relevant = counts[query].double()  # R, for each pair

    def over_queries(of_pairs: Tensor) -> Tensor:
        return torch.zeros(len(counts), dtype=torch.float64).index_add_(0, query, of_pairs)

    first = positions[start].double()
    metrics: dict[str, float | int] = {}
    for level in RECALL_LEVELS:
        metrics[f"hit_r{level}"] = 100 * (first < level).double().mean().item()
    for level in RECALL_LEVELS:
        metrics[f"recall_r{level}"] = 100 * over_queries((positions < level) / relevant).mean().item()
    gains, ideal = (over_queries((each <= GAIN_DEPTH) / (each + 1).log2()) for each in (place, found))
    metrics["mrr"] = 100 * (1 / (first + 1)).mean().item()
    metrics["map_at_r"] = 100 * over_queries((place <= relevant) * found / place / relevant).mean().item()
    metrics["r_precision"] = 100 * over_queries((place <= relevant) / relevant).mean().item()
    metrics[f"ndcg_{GAIN_DEPTH}"] = 100 * (gains / ideal).mean().item()
    metrics["medr"] = float(np.floor(np.median(first.numpy())) + 1)
    metrics["meanr"] = first.mean().item() + 1
    return metrics | {"queries": len(counts), "positives_per_query": len(query) / len(counts)}


def retrieval_ranking(
    image_embeds: Array, text_embeds: Array, positives_i2t: Positives, positives_t2i: Positives
) -> dict[str, float | int]:
    """`ranking_metrics` of both directions, as `i2t_hit_r1` and so on, then `t2i_hit_r1` and so on.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim).
        positives_i2t: texts that are right for an image; positives_t2i: images that are right for a text. Neither need
            be the other turned round: some annotations ask for some images and other texts.

    Raises:
        ValueError: shapes that do not fit, pairs that name no row, or embeddings that are not finite.
    """
    images, texts = as_matrix("image_embeds", image_embeds), as_matrix("text_embeds", text_embeds)
    for name, matrix in (("image_embeds", images), ("text_embeds", texts)):
        finite_norms(name, matrix)  # here, where a row that is not finite has its own name
    metrics: dict[str, float | int] = {}
    for direction, queries, candidates, positives in (
        ("i2t", images, texts, positives_i2t),
        ("t2i", texts, images, positives_t2i),
    ):
        of_direction = ranking_metrics(positives.query.cpu(), positive_positions(queries, candidates, positives))
        metrics |= {f"{direction}_{name}": value for name, value in of_direction.items()}
    return metrics
