"""Rows worth a look: the worst queries, pairs that may be wrong in the data, and items that occur twice.

All of it is a list of rows to look at, short and sorted, never a verdict. A model can only point at pairs that it
finds odd: a wrong caption, or a right one that it does not understand. It does not see errors that it has learned by
heart, nor captions that fit many images equally. An image all of whose captions are wrong is among the worst images.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_vse.evaluation.diagnostics.breakdown import words_of
from hf_vse.evaluation.diagnostics.neighbours import NOBODY, TILE, HardNegatives, Neighbours, find_hard_negatives
from hf_vse.evaluation.ranks import true_float32

LIMIT = 20
LISTED = 10  # texts of one duplicate caption
NEAR_DUPLICATE = 0.95  # cosine of two images from which they are counted as one
NOTE = (
    "pairs that the model finds odd: wrong captions, and right ones that it does not understand; errors that it has "
    "learned, captions that fit many images, and images all of whose captions are wrong are not among them"
)


def found_instead(neighbours: Neighbours, query: int) -> dict[str, list]:
    """The best negatives of a query and their scores."""
    rows = [row for row in neighbours.rows[query].tolist() if row != NOBODY]
    return {"found": rows, "found_scores": neighbours.scores[query, : len(rows)].tolist()}


def worst_queries(
    negatives: HardNegatives, text_to_image: Tensor, image_ranks: Tensor, text_ranks: Tensor, limit: int
) -> dict[str, list[dict[str, Any]]]:
    """Captions and images whose positive ranks lowest, with what was found instead.

    Returns:
        `worst_texts`: `text`, `image`, `rank` from 1, `own_score`, `found` (images), `found_scores`.
        `worst_images`: `image`, `texts`, `rank` of the best of these, `found` (texts), `found_scores`.
    """
    owner = text_to_image.cpu()
    texts, images = (
        ranks.sort(descending=True, stable=True).indices[:limit].tolist() for ranks in (text_ranks, image_ranks)
    )
    return {
        "worst_texts": [
            {"text": text, "image": owner[text].item(), "rank": text_ranks[text].item() + 1}
            | {"own_score": negatives.positive[text].item()}
            | found_instead(negatives.of_texts, text)
            for text in texts
        ],
        "worst_images": [
            {"image": image, "texts": (owner == image).nonzero()[:, 0].tolist(), "rank": image_ranks[image].item() + 1}
            | found_instead(negatives.of_images, image)
            for image in images
        ],
    }


def siblings_mean(own: Tensor, text_to_image: Tensor, images: int) -> Tensor:
    """Mean similarity of the other captions of the same image to it, (texts,) float64; NaN without others."""
    counts = torch.bincount(text_to_image, minlength=images)
    sums = torch.zeros(images, dtype=torch.float64, device=own.device).index_add_(0, text_to_image, own.double())
    return (sums[text_to_image] - own.double()) / (counts[text_to_image] - 1)  # 0 / 0 without others


def mutual_negatives(negatives: HardNegatives) -> Tensor:
    """Whether the best wrong image of a text has the text among its own best wrong texts, (texts,) booleans."""
    best = negatives.of_texts.rows[:, 0]
    texts = torch.arange(len(best), device=best.device)
    return (negatives.of_images.rows[best] == texts[:, None]).any(dim=1)


def explain(row: dict[str, Any]) -> str:
    """Why a pair is suspect, in words."""
    reasons = [f"scores {row['own_score']:.2f} with its image"]
    if row["siblings_score"] is not None:
        reasons.append(f"whose other captions score {row['siblings_score']:.2f} on average")
    reasons.append(f"and {row['found_score']:.2f} with image {row['found']}")
    if row["mutual"]:
        reasons.append("which has it among its best wrong captions")
    return ", ".join(reasons)


def annotation_errors(negatives: HardNegatives, text_to_image: Tensor, limit: int) -> dict[str, Any]:
    """Pairs whose caption may belong elsewhere.

    Two things are asked for: the other captions of the image fit it, and the caption fits another image. The score is
    the smaller of how far the pair lies below the mean of these others, and below the best wrong image, in standard
    deviations of the similarities of all pairs; for an only caption it is the second alone. Pairs whose score is not
    positive are not listed. Where one caption in a hundred of Flickr8k had been swapped, 17 of the first 20 rows were
    swapped ones; to ask that caption and image be mutually nearest, or for the larger difference, found fewer.

    Returns:
        `rows`: `text`, `image`, `score`, `own_score`, `siblings_score` (None for an only caption), `found` (an image),
        `found_score`, `mutual`, `rationale`; and `note`, what this can and cannot see.
    """
    own = negatives.positive.double()
    siblings = siblings_mean(negatives.positive, text_to_image, len(negatives.of_images.rows))
    mutual = mutual_negatives(negatives)
    disagreement = torch.where(siblings.isnan(), torch.inf, siblings - own)
    displacement = negatives.of_texts.scores[:, 0].double() - own
    unit = own.std(correction=0).clamp(min=torch.finfo(torch.float32).eps)  # zero in a collapsed model
    scores = torch.minimum(disagreement, displacement) / unit
    worst = scores.topk(min(limit, len(scores)))
    rows = []
    for text, score in zip(worst.indices.tolist(), worst.values.tolist(), strict=True):
        if score <= 0:
            break
        others = siblings[text].item()
        row = {
            "text": text,
            "image": text_to_image[text].item(),
            "score": score,
            "own_score": own[text].item(),
            "siblings_score": None if math.isnan(others) else others,
            "found": negatives.of_texts.rows[text, 0].item(),
            "found_score": negatives.of_texts.scores[text, 0].item(),
            "mutual": mutual[text].item(),
        }
        rows.append(row | {"rationale": explain(row)})
    return {"rows": rows, "note": NOTE}


@torch.no_grad()
def near_duplicates(embeds: Tensor, threshold: float, limit: int) -> dict[str, Any]:
    """Pairs of different rows that are nearly the same: every pair is compared, tile by tile.

    Returns:
        `threshold`; `pairs`, how many have at least this cosine; and `rows`, the `limit` most similar of all, above it
        or not: `{"images": [i, j], "score"}` with i < j.
    """
    found = torch.empty(0, device=embeds.device), torch.empty(2, 0, dtype=torch.int64, device=embeds.device)
    pairs = 0
    with true_float32(), torch.autocast(embeds.device.type, enabled=False):
        for top in range(0, len(embeds), TILE):
            for left in range(top, len(embeds), TILE):
                scores = embeds[top : top + TILE].float() @ embeds[left : left + TILE].float().T
                if left == top:
                    scores[torch.ones_like(scores, dtype=torch.bool).tril()] = -torch.inf
                pairs += int((scores >= threshold).sum())
                best = scores.flatten().topk(min(limit, scores.numel()))
                rows = torch.stack([best.indices // scores.shape[1] + top, best.indices % scores.shape[1] + left])
                kept = torch.cat([found[0], best.values])
                order = kept.topk(min(limit, len(kept))).indices
                found = kept[order], torch.cat([found[1], rows], dim=1)[:, order]
    alike = [
        {"images": images, "score": score}
        for score, images in zip(found[0].tolist(), found[1].T.tolist(), strict=True)
        if score > -torch.inf
    ]
    return {"threshold": threshold, "pairs": pairs, "rows": alike}


def duplicate_captions(captions: Sequence[str], text_to_image: Tensor, limit: int) -> dict[str, Any]:
    """Captions that several images share, apart from case and punctuation: no ranking can tell them apart.

    Returns:
        `texts`, how many captions have the words of another image's; and `rows`, the `limit` captions of the most
        images: `{"images_sharing", "texts", "images"}`, the first ten of each.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for text, caption in enumerate(captions):
        groups[tuple(words_of(caption))].append(text)
    owner = text_to_image.tolist()
    shared = [(texts, sorted({owner[text] for text in texts})) for texts in groups.values() if len(texts) > 1]
    shared = sorted((group for group in shared if len(group[1]) > 1), key=lambda group: -len(group[1]))
    rows = [
        {"images_sharing": len(images), "texts": texts[:LISTED], "images": images[:LISTED]}
        for texts, images in shared[:limit]
    ]
    return {"texts": sum(len(texts) for texts, _ in shared), "rows": rows}


def suspects(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor,
    captions: Sequence[str] | None,
    ranks: tuple[Tensor, Tensor],
    *,
    negatives: HardNegatives | None = None,
    limit: int = LIMIT,
) -> dict[str, Any]:
    """Rows of a set that are worth looking at; see the head of this file.

    Args:
        image_embeds: (images, dim) unit vectors, each with a text; text_embeds: (texts, dim) unit vectors.
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        captions: the texts; None where they are not known, and no duplicates among them are listed.
        ranks: what `retrieval_ranks` returns for them, of images and of texts, counted from 0.
        negatives: what `find_hard_negatives` returns for them, if it is known.
        limit: rows in each list.

    Returns:
        `worst_texts`, `worst_images`, `annotation_errors`, `near_duplicate_images`, `duplicate_captions`.
    """
    negatives = find_hard_negatives(image_embeds, text_embeds, text_to_image) if negatives is None else negatives
    return worst_queries(negatives, text_to_image, *ranks, limit) | {
        "annotation_errors": annotation_errors(negatives, text_to_image, limit),
        "near_duplicate_images": near_duplicates(image_embeds, NEAR_DUPLICATE, limit),
        "duplicate_captions": None if captions is None else duplicate_captions(captions, text_to_image, limit),
    }
