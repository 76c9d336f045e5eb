"""Cross-modal retrieval metrics: pure functions from embeddings and their correspondence to numbers.

Conventions of the field (Karpathy & Fei-Fei, arXiv 1412.2306; VSE++, arXiv 1707.05612), made explicit:

- R@K is the hit rate in percent: a query counts if any of its positives is among the first K.
- An image-to-text query is ranked by the best of its captions; its other captions are no negatives.
- A tie counts against the query, so that a collapsed model scores zero and not one hundred.
- MedR is the floor of the median rank, MeanR the mean rank, both counted from 1.
- rsum is the sum of the six recalls at 1, 5 and 10.

Similarities are those of float64; `ranks.py` says how they are had at the price of float32.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb

import numpy as np
from torch import Tensor

from hf_vse.evaluation.ranks import Array, as_matrix, as_tensor, finite_norms, retrieval_ranks

DIRECTIONS = ("i2t", "t2i")
RECALL_LEVELS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{level}" for direction in DIRECTIONS for level in RECALL_LEVELS)


def summarize_ranks(image_ranks: Tensor, text_ranks: Tensor) -> dict[str, float]:
    """Recalls in percent, median and mean ranks from ranks counted from 0."""
    metrics: dict[str, float] = {}
    for direction, ranks in zip(DIRECTIONS, (image_ranks.double(), text_ranks.double()), strict=True):
        for level in RECALL_LEVELS:
            metrics[f"{direction}_r{level}"] = 100 * (ranks < level).double().mean().item()
        metrics[f"{direction}_medr"] = float(np.floor(np.median(ranks.numpy())) + 1)
        metrics[f"{direction}_meanr"] = ranks.mean().item() + 1
    metrics["rsum"] = sum(metrics[name] for name in RECALLS)
    return metrics


def retrieval_metrics(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, chunk_size: int = 2000, *, distractors: bool = False
) -> dict[str, float]:
    """Image-to-text and text-to-image retrieval over the whole set.

    Args: see `retrieval_ranks`. With `distractors`, images without text are candidates, but no queries.

    Returns:
        `i2t_r1, i2t_r5, i2t_r10` in percent, `i2t_medr, i2t_meanr` counted from 1, the same for `t2i`, and `rsum`.

    Raises:
        ValueError: shapes that do not fit, an unexpected image without text, or embeddings that are not finite.
    """
    ranks = retrieval_ranks(image_embeds, text_embeds, text_to_image, chunk_size, distractors=distractors)
    return summarize_ranks(*ranks)


def fold_metrics(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, fold_size: int = 1000
) -> dict[str, float]:
    """Mean of the metrics over consecutive folds of images: the COCO 1K protocol with five folds of 1,000.

    Raises:
        ValueError: the images cannot be cut into folds of `fold_size`.
    """
    images = as_matrix("image_embeds", image_embeds)
    texts = as_matrix("text_embeds", text_embeds)
    owner = as_tensor(text_to_image).long()
    for name, matrix in (("image_embeds", images), ("text_embeds", texts)):
        finite_norms(name, matrix)  # here, where a row that is not finite has its number in the whole set
    if len(images) % fold_size:
        raise ValueError(f"{len(images)} images cannot be cut into folds of {fold_size}; COCO test has 5,000")
    folds = []
    for first in range(0, len(images), fold_size):
        inside = (owner >= first) & (owner < first + fold_size)
        folds.append(retrieval_metrics(images[first : first + fold_size], texts[inside], owner[inside] - first))
    return {name: sum(fold[name] for fold in folds) / len(folds) for name in folds[0]}


def chance_of_hit(positives: int, candidates: int, drawn: int) -> float:
    """The probability that `drawn` of the `candidates`, none twice, hold one of the `positives` (hypergeometric)."""
    drawn = min(drawn, candidates)
    return 1 - comb(candidates - positives, drawn) / comb(candidates, drawn)


def chance_recalls(images: int, texts: int, captions: Sequence[int] | None = None) -> dict[str, float]:
    """Recalls of guessing in percent.

    Args:
        captions: how many captions each image has; default: `texts` spread over the images as evenly as possible.
    """
    if captions is None:
        few, more = divmod(texts, images)
        numbers = {few: images - more, few + 1: more}
    else:
        numbers = Counter(captions)
    numbers = {own: count for own, count in numbers.items() if own and count}  # images without captions do not ask
    asking = sum(numbers.values())
    found = {
        level: sum(count * chance_of_hit(own, texts, level) for own, count in numbers.items()) / asking
        for level in RECALL_LEVELS
    }
    return {f"i2t_r{level}": 100 * found[level] for level in RECALL_LEVELS} | {
        f"t2i_r{level}": 100 * chance_of_hit(1, images, level) for level in RECALL_LEVELS
    }
