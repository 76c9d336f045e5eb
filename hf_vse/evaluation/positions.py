"""Positions of a query's positives in its ranking, from which every retrieval metric follows.

A query ranks all candidates by score, and a tie counts against it: of equal scores, negatives stand before positives.
So the j-th best positive, j counted from 0, stands at j plus the number of negatives that score at least as high. A
query may have any number of positives (the five captions of an image, Karpathy & Fei-Fei, arXiv 1412.2306; those that
people found besides, CxC, arXiv 2004.15020, and ECCV Caption, arXiv 2204.03359), and one that has none is not asked.

Scores are float64 and computed tile by tile; embeddings are read a tile at a time, so memory-mapped arrays will do.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_vse.evaluation.ranks import TIE_TOLERANCE, Array, as_matrix, as_tensor, finite_norms, pair_scores, reaching

# Pairs whose row of scores is compared at once: with `chunk_size` candidates they stay in the cache of a CPU.
PAIRS_AT_ONCE = 128


class Positives(NamedTuple):
    """Which candidates are right for which queries: unique pairs, sorted by query.

    A negative candidate stands for one that is annotated but not among the candidates: it counts as a positive of its
    query and stands behind all of them.
    """

    query: Tensor  # (pairs,) int64
    candidate: Tensor  # (pairs,) int64


def sorted_positives(query: Array, candidate: Array) -> Positives:
    """Positives from pairs in any order, (pairs,) each, with or without repetitions."""
    pairs = torch.stack([as_tensor(query).long(), as_tensor(candidate).long()], dim=1).unique(dim=0)
    return Positives(*pairs.T.contiguous())


def standard_positives(text_to_image: Array, images: int) -> tuple[Positives, Positives]:
    """Image-to-text and text-to-image positives where each of the texts (texts,) describes one of `images` images.

    Raises:
        ValueError: a text describes an image that is not there.
    """
    owner = as_tensor(text_to_image).long()
    if len(owner) and (owner.min() < 0 or owner.max() >= images):
        raise ValueError(f"text_to_image must lie in 0 .. {images - 1}, the rows of image_embeds")
    by_image, texts = owner.sort(stable=True)
    return Positives(by_image, texts), Positives(torch.arange(len(owner), device=owner.device), owner)


def check_positives(positives: Positives, queries: int, candidates: int) -> None:
    query, candidate = positives
    if query.shape != candidate.shape or query.ndim != 1 or not len(query):
        shapes = tuple(query.shape), tuple(candidate.shape)
        raise ValueError(f"positives must be two lists of one length, not empty, got {shapes[0]} and {shapes[1]}")
    if query.min() < 0 or query.max() >= queries:
        raise ValueError(f"positives.query must lie in 0 .. {queries - 1}, the rows of queries")
    if candidate.max() >= candidates:
        raise ValueError(f"positives.candidate must be below {candidates}, the number of candidates")
    if (query.diff() < 0).any() or len(torch.stack(positives, dim=1).unique(dim=0)) < len(query):
        raise ValueError("positives must be unique and sorted by query; sorted_positives makes them so")


def count_negatives(
    queries: Tensor, candidates: Tensor, positives: Positives, thresholds: Tensor, chunk_size: int
) -> Tensor:
    """For each pair how many negatives of its query reach its threshold, (pairs,) int64."""
    asked, row = positives.query.unique_consecutive(return_inverse=True)
    negatives = torch.zeros_like(row)
    for top in range(0, len(asked), chunk_size):
        first, last = torch.searchsorted(row, torch.tensor([top, top + chunk_size], device=row.device)).tolist()
        mine, own, found = row[first:last] - top, positives.candidate[first:last], negatives[first:last]
        rows = queries.index_select(0, asked[top : top + chunk_size]).double()
        for left in range(0, len(candidates), chunk_size):
            scores = rows @ candidates[left : left + chunk_size].double().T
            inside = (own >= left) & (own < left + chunk_size)
            scores[mine[inside], own[inside] - left] = -torch.inf
            for part in range(0, len(mine), PAIRS_AT_ONCE):
                pairs = slice(part, part + PAIRS_AT_ONCE)
                found[pairs] += reaching(scores.index_select(0, mine[pairs]), thresholds[first:last][pairs])
    return negatives


def positive_positions(queries: Array, candidates: Array, positives: Positives, chunk_size: int = 1000) -> Tensor:
    """The positions of all positives in the rankings of their queries, counted from 0.

    Args:
        queries: (queries, dim); candidates: (candidates, dim); of any precision, in memory or memory-mapped.
        positives: see `Positives`; queries without any are not asked.
        chunk_size: queries and candidates compared at once; the result does not depend on it.

    Returns:
        (pairs,) int64: for each query in turn its positions in ascending order, so that `positives.query` says whose
        each is. A positive that is not among the candidates stands behind all of them.

    Raises:
        ValueError: shapes that do not fit, pairs that name no row, or embeddings that are not finite.
    """
    asking = as_matrix("queries", queries)
    offered = as_matrix("candidates", candidates).to(asking.device)
    if asking.shape[1] != offered.shape[1]:
        raise ValueError(f"queries have {asking.shape[1]} dimensions and candidates {offered.shape[1]}")
    positives = Positives(*(each.to(asking.device) for each in positives))
    check_positives(positives, len(asking), len(offered))
    longest = finite_norms("queries", asking).max(), finite_norms("candidates", offered).max()
    query, candidate = positives
    there = candidate >= 0
    scores = torch.full(query.shape, torch.inf, dtype=torch.float64, device=asking.device)
    scores[there] = pair_scores(asking, offered, (query[there], candidate[there]))
    negatives = count_negatives(
        asking, offered, positives, scores - TIE_TOLERANCE * longest[0] * longest[1], chunk_size
    )
    scores[~there] = -torch.inf
    found = torch.bincount(query[there], minlength=len(asking))
    negatives[~there] = len(offered) - found[query[~there]]
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[query[by_score].argsort(stable=True)]
    counts = torch.bincount(query, minlength=len(asking))
    better = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    return (negatives[order] + better).cpu()
