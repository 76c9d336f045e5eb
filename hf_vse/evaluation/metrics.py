"""Cross-modal retrieval metrics: pure functions from embeddings and their correspondence to numbers.

Conventions of the field (Karpathy & Fei-Fei, arXiv 1412.2306; VSE++, arXiv 1707.05612), made explicit:

- R@K is the hit rate in percent: a query counts if any of its own candidates is among the first K.
- An image-to-text query is ranked by the best of its captions; the other captions of that image are no rivals.
- A tie counts against the query, so that a collapsed model scores zero and not one hundred.
- MedR is the floor of the median rank, MeanR the mean rank, both counted from 1.
- rsum is the sum of the six recalls at 1, 5 and 10.

Similarities are computed in float64, tile by tile, so that the result depends on the embeddings alone and not on the
device, the tile size or the order of the candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RECALL_LEVELS = (1, 5, 10)
# Two float64 dot products of unit vectors that differ by less are the same number, rounded differently.
TIE_TOLERANCE = 1e-12

Array = Tensor | np.ndarray | Sequence


def as_matrix(name: str, embeds: Array) -> Tensor:
    """Embeddings as a float64 matrix (items, dim)."""
    matrix = torch.as_tensor(np.asarray(embeds) if isinstance(embeds, list) else embeds).detach().double()
    if matrix.ndim != 2 or not len(matrix):
        raise ValueError(f"{name} must be a non-empty (items, dim) matrix, got shape {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        bad = (~matrix.isfinite().all(dim=1)).nonzero()[0].item()
        raise ValueError(f"{name} row {bad} is not finite; the model diverged, train with a lower learning rate")
    return matrix


def check_correspondence(images: Tensor, texts: Tensor, text_to_image: Tensor) -> None:
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_embeds have {images.shape[1]} dimensions and text_embeds {texts.shape[1]}")
    if text_to_image.shape != (len(texts),):
        raise ValueError(
            f"text_to_image must name one image for each of the {len(texts)} texts, got {tuple(text_to_image.shape)}"
        )
    if text_to_image.min() < 0 or text_to_image.max() >= len(images):
        raise ValueError(f"text_to_image must lie in 0 .. {len(images) - 1}, the rows of image_embeds")
    without = (torch.bincount(text_to_image, minlength=len(images)) == 0).nonzero()
    if len(without):
        raise ValueError(f"image {without[0].item()} and {len(without) - 1} more have no text; leave them out")


def retrieval_ranks(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """For every query the number of rivals that score at least as high as its best own candidate.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim).
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        chunk_size: texts compared at once; memory is `chunk_size * images`, the result does not depend on it.

    Returns:
        Image-to-text ranks (images,) and text-to-image ranks (texts,), int64, counted from 0.
    """
    images = as_matrix("image_embeds", image_embeds)
    texts = as_matrix("text_embeds", text_embeds).to(images.device)
    owner = torch.as_tensor(text_to_image, dtype=torch.int64, device=images.device)
    check_correspondence(images, texts, owner)
    tolerance = TIE_TOLERANCE * images.norm(dim=1).max() * texts.norm(dim=1).max()
    own = (texts * images[owner]).sum(dim=1)
    best = torch.full((len(images),), -torch.inf, dtype=own.dtype, device=own.device)
    best = best.scatter_reduce(0, owner, own, "amax")
    image_ranks = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    text_ranks = torch.empty(len(texts), dtype=torch.int64, device=images.device)
    for start in range(0, len(texts), chunk_size):
        rows = slice(start, start + chunk_size)
        rivals = (texts[rows] @ images.T).scatter_(1, owner[rows, None], -torch.inf)  # (chunk, images)
        text_ranks[rows] = (rivals >= own[rows, None] - tolerance).sum(dim=1)
        image_ranks += (rivals >= best[None, :] - tolerance).sum(dim=0)
    return image_ranks.cpu(), text_ranks.cpu()


def summarize_ranks(image_ranks: Tensor, text_ranks: Tensor) -> dict[str, float]:
    """Recalls in percent, median and mean ranks from ranks counted from 0."""
    metrics: dict[str, float] = {}
    for direction, ranks in (("i2t", image_ranks.double()), ("t2i", text_ranks.double())):
        for level in RECALL_LEVELS:
            metrics[f"{direction}_r{level}"] = 100 * (ranks < level).double().mean().item()
        metrics[f"{direction}_medr"] = float(np.floor(np.median(ranks.numpy())) + 1)
        metrics[f"{direction}_meanr"] = ranks.mean().item() + 1
    metrics["rsum"] = sum(metrics[f"{direction}_r{level}"] for direction in ("i2t", "t2i") for level in RECALL_LEVELS)
    return metrics


def retrieval_metrics(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, chunk_size: int = 1024
) -> dict[str, float]:
    """Image-to-text and text-to-image retrieval over the whole set.

    Args: see `retrieval_ranks`.

    Returns:
        `i2t_r1, i2t_r5, i2t_r10` in percent, `i2t_medr, i2t_meanr` counted from 1, the same for `t2i`, and `rsum`.

    Raises:
        ValueError: shapes that do not fit, an image without text, or embeddings that are not finite.
    """
    return summarize_ranks(*retrieval_ranks(image_embeds, text_embeds, text_to_image, chunk_size))


def fold_metrics(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, fold_size: int = 1000
) -> dict[str, float]:
    """Mean of the metrics over consecutive folds of images: the COCO 1K protocol with five folds of 1,000.

    Raises:
        ValueError: the images cannot be cut into folds of `fold_size`.
    """
    images = as_matrix("image_embeds", image_embeds)
    texts = as_matrix("text_embeds", text_embeds)
    owner = torch.as_tensor(text_to_image, dtype=torch.int64)
    if len(images) % fold_size:
        raise ValueError(f"{len(images)} images cannot be cut into folds of {fold_size}; COCO test has 5,000")
    folds = []
    for first in range(0, len(images), fold_size):
        inside = (owner >= first) & (owner < first + fold_size)
        folds.append(retrieval_metrics(images[first : first + fold_size], texts[inside], owner[inside] - first))
    return {name: sum(fold[name] for fold in folds) / len(folds) for name in folds[0]}


def chance_recalls(images: int, texts: int) -> dict[str, float]:
    """What guessing scores in percent, for images that have `texts / images` captions each."""
    captions = texts / images
    hit = {level: 1 - (1 - level / texts) ** captions for level in RECALL_LEVELS}
    return {f"i2t_r{level}": 100 * hit[level] for level in RECALL_LEVELS} | {
        f"t2i_r{level}": 100 * min(1.0, level / images) for level in RECALL_LEVELS
    }
