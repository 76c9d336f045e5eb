"""Hubs: candidates that are among the nearest of far more queries than their share, and anti-hubs that no query finds.

N_k of a candidate is how many queries have it among their k nearest. In spaces of many dimensions its distribution is
skewed to the right (Radovanović et al., JMLR 11, 2010, section 3): a few candidates stand before the right ones of
many queries. The measure is the skewness of N_k. Compare it with its value if every query drew its k candidates at
random (a binomial distribution): both depend on k and on the size of the set. The Robin Hood index
(Feldbauer et al., ICBK 2018) is the share of places that would have to change hands for all candidates to have equally
many.

A correction at query time is in `hf_vse/embed/hub_correction.py`.
"""

from typing import Any

import torch
from torch import Tensor

from hf_vse.evaluation.diagnostics.neighbours import nearest_both_ways

LEVELS = (1, 10)
LARGEST = 10


def occurrences(rows: Tensor, candidates: int) -> Tensor:
    """N_k of every candidate, (candidates,) int64, from the rows (queries, k) that were found."""
    return torch.bincount(rows.flatten(), minlength=candidates)


def skewness(counts: Tensor) -> Tensor:
    """Third standardised moment of (candidates,), scalar float64; zero where all are equal."""
    deviation = counts.double() - counts.double().mean()
    spread = deviation.square().mean().sqrt()
    return torch.where(spread > 0, deviation.pow(3).mean() / spread.pow(3), 0.0)


def at_random(queries: int, candidates: int, k: int) -> dict[str, float]:
    """Skewness, and percent of candidates never found, if every query drew `k` candidates at random."""
    share = k / candidates
    spread = (queries * share * (1 - share)) ** 0.5
    return {
        "skewness_at_random": (1 - 2 * share) / spread if spread else 0.0,
        "antihubs_at_random": 100 * (1 - share) ** queries,
    }


def describe_hubs(rows: Tensor, candidates: int, largest: int) -> dict[str, Any]:
    """What `hubness` says about one direction and one k, from the rows (queries, k) that were found."""
    queries, k = rows.shape
    counts = occurrences(rows, candidates)
    top = counts.topk(min(largest, candidates))
    excess = (counts - counts.double().mean()).abs().sum() / (2 * counts.sum())
    return {
        "k": k,
        "queries": queries,
        "candidates": candidates,
        "skewness": skewness(counts).item(),
        "antihubs": 100 * (counts == 0).double().mean().item(),
        "robin_hood": 100 * excess.item(),
        "largest": [
            {"row": row, "occurrences": found}
            for row, found in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
    } | at_random(queries, candidates, k)


def hubness(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    levels: tuple[int, ...] = LEVELS,
    largest: int = LARGEST,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Hubs among the images that texts look for, and among the texts that images look for.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim).
        levels: the k; one beyond the number of candidates becomes that number.
        largest: so many of the largest hubs are listed.

    Returns:
        `{"t2i": {"k1": ..., "k10": ...}, "i2t": ...}`, for each `k`, `queries`, `candidates`, `skewness`,
        `skewness_at_random`, `antihubs` and `antihubs_at_random` (percent of candidates with N_k = 0), `robin_hood`
        (percent) and `largest`, a list of `{"row", "occurrences"}`; rows are images for `t2i`, texts for `i2t`.
    """
    of_texts, of_images = nearest_both_ways(image_embeds, text_embeds, max(levels))
    return {
        direction: {f"k{k}": describe_hubs(rows[:, :k], candidates, largest) for k in levels}
        for direction, rows, candidates in (
            ("t2i", of_texts.rows, len(image_embeds)),
            ("i2t", of_images.rows, len(text_embeds)),
        )
    }
