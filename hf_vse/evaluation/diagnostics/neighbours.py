"""Nearest neighbours: the best candidates of texts and of images from one pass over the scores, tile by tile.

Memory is that of a few tiles and of the result, whatever the size of the set. Scores are those of float32; which of
several candidates with one score comes first is not defined. Ranks, where this matters, come from `ranks.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_vse.evaluation.ranks import tiles, true_float32

# Not a power of two, whose tiles compete for the same lines of the cache.
TILE = 2000
NOBODY = -1


class Neighbours(NamedTuple):
    """The best candidates of each query, best first; `NOBODY` with score -inf where there are no more."""

    scores: Tensor  # (queries, k) float32
    rows: Tensor  # (queries, k) int64


class HardNegatives(NamedTuple):
    """The best negatives of each query, beside its positive."""

    positive: Tensor  # (texts,) float32, similarity of each text to its image
    of_texts: Neighbours  # other images
    of_images: Neighbours  # texts of other images


def nobody(queries: int, k: int, device: torch.device) -> Neighbours:
    scores = torch.full((queries, k), -torch.inf, device=device)
    return Neighbours(scores, torch.full((queries, k), NOBODY, device=device))


def merge(best: Neighbours, scores: Tensor, first: int) -> Neighbours:
    """The best of the known candidates and of further ones.

    Args:
        best: (queries, k) so far.
        scores: (queries, candidates) of the candidates `first`, `first + 1`, ...; -inf is not a candidate.
    """
    k = best.scores.shape[1]
    found, columns = scores.topk(min(k, scores.shape[1]), dim=1)
    rows = torch.where(found > -torch.inf, columns + first, NOBODY)
    kept, places = torch.cat([best.scores, found], dim=1).topk(k, dim=1)
    return Neighbours(kept, torch.cat([best.rows, rows], dim=1).gather(1, places))


@torch.no_grad()
def nearest_both_ways(
    image_embeds: Tensor, text_embeds: Tensor, k: int, leave_out: Tensor | None = None, size: int = TILE
) -> tuple[Neighbours, Neighbours]:
    """The `k` nearest images of every text, and the `k` nearest texts of every image.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim).
        leave_out: (texts,) the image of each text, to leave the pairs themselves out; default: nothing is left out.
        size: texts and images compared at once.
    """
    device = image_embeds.device
    owner = torch.full((len(text_embeds),), NOBODY, device=device) if leave_out is None else leave_out
    of_texts = nobody(len(text_embeds), min(k, len(image_embeds)), device)
    of_images = nobody(len(image_embeds), min(k, len(text_embeds)), device)
    with true_float32(), torch.autocast(device.type, enabled=False):
        for rows, columns, tile in tiles(text_embeds, image_embeds, owner, size):
            scores = tile.scores(torch.float32)
            part = merge(Neighbours(of_texts.scores[rows], of_texts.rows[rows]), scores, columns.start)
            of_texts.scores[rows], of_texts.rows[rows] = part
            part = merge(Neighbours(of_images.scores[columns], of_images.rows[columns]), scores.T, rows.start)
            of_images.scores[columns], of_images.rows[columns] = part
    return of_texts, of_images


@torch.no_grad()
def positive_similarities(image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor) -> Tensor:
    """Similarity of every text to its image, (texts,) float32."""
    parts = zip(text_embeds.split(TILE), text_to_image.split(TILE), strict=True)
    return torch.cat([(texts.float() * image_embeds[owner].float()).sum(dim=1) for texts, owner in parts])


def find_hard_negatives(image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor, k: int = 3) -> HardNegatives:
    """For every pair its similarity, and the `k` best negatives of both queries.

    Other captions of the same image are no negatives of each other.
    """
    positive = positive_similarities(image_embeds, text_embeds, text_to_image)
    return HardNegatives(positive, *nearest_both_ways(image_embeds, text_embeds, k, text_to_image))


def best_positives(negatives: HardNegatives, text_to_image: Tensor) -> Tensor:
    """Similarity of each image to the nearest of its texts, (images,); -inf without any."""
    none = torch.full_like(negatives.of_images.scores[:, 0], -torch.inf)
    return none.scatter_reduce(0, text_to_image, negatives.positive, "amax")
