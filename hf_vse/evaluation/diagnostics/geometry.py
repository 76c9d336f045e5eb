"""The shape of the embedding space: how close pairs are, how well the sphere is used, how far apart the modalities.

- Alignment and uniformity: Wang & Isola, ICML 2020, arXiv 2005.10242, section 4; alignment is the mean
  squared distance of a pair (alpha = 2), uniformity the logarithm of the mean Gaussian potential of two different
  items (t = 2). Lower is better for both; each alone is easy to have.
- Tolerance: Wang & Liu, CVPR 2021, arXiv 2012.09740, mean similarity of items of one class. Here a class is
  an image and its items are the captions: how alike captions of one image are.
- Modality gap: Liang et al., NeurIPS 2022, arXiv 2203.02053, distance of the two centroids. How well the side of the
  plane between them tells images from texts is measured on the half of the images that did not place the plane.
- Effective rank: Roy & Vetterli, EUSIPCO 2007, exponential of the entropy of the normalised singular values, of the
  matrix as it is, not centred.

Everything is exact and linear in the number of rows, except the potential, which takes a seeded sample of them.
"""

from typing import Any

import torch
from torch import Tensor

from hf_vse.evaluation.diagnostics.neighbours import TILE, positive_similarities

COLLAPSED_COSINE = 0.98
SHARPNESS = 2  # t of the Gaussian potential
SAMPLE = 2000


def is_collapsed(image_cosine: float, text_cosine: float) -> bool:
    """Whether embeddings have collapsed, from the mean cosine between different items of each modality.

    The mean of both counts, because one modality collapses before the other: `hardnce` on the built-in scenes rests at
    0.975 between images and 0.998 between texts.
    """
    return (image_cosine + text_cosine) / 2 > COLLAPSED_COSINE


def potential(cosines: Tensor) -> Tensor:
    """Sum of the Gaussian potentials exp(-t |x - y|^2) of pairs of unit vectors, from their cosines: -> scalar."""
    return torch.exp(2 * SHARPNESS * (cosines - 1)).sum()


def uniformity(total: Tensor, count: int) -> Tensor:
    """Logarithm of the mean potential of different items, from that of all ordered pairs of `count` unit vectors."""
    return torch.log((total - count) / (count * (count - 1)))


def mean_cosine(centroid: Tensor, count: int) -> Tensor:
    """Mean cosine between different ones of `count` unit vectors, from their mean (dim,)."""
    return (count * centroid.square().sum() - 1) / (count - 1)


def moments(embeds: Tensor) -> Tensor:
    """The smaller of the two Gram matrices, float64: (dim, dim), or (rows, rows) if there are fewer rows."""
    if len(embeds) <= embeds.shape[1]:
        exact = embeds.double()
        return exact @ exact.T
    total = embeds.new_zeros(embeds.shape[1], embeds.shape[1], dtype=torch.float64)
    for part in embeds.split(TILE):
        exact = part.double()
        total.addmm_(exact.T, exact)
    return total


def effective_rank(gram: Tensor) -> Tensor:
    """How many directions are in use, 1 .. n, from a Gram matrix (n, n) of the embeddings."""
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(singular / singular.sum()).sum().exp()


def centroid(embeds: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of the rows, (dim,) float64, or of those with weight 1 if weights of 0 and 1 are given."""
    if weights is None:
        return embeds.sum(dim=0, dtype=torch.float64) / len(embeds)
    parts = zip(weights.double().split(TILE), embeds.split(TILE), strict=True)
    return sum(weight @ part.double() for weight, part in parts) / weights.sum()


def tolerance(text_embeds: Tensor, text_to_image: Tensor, images: int) -> float | None:
    """Mean cosine of two captions of one image; None where no image has two."""
    counts = torch.bincount(text_to_image, minlength=images).double()
    pairs = (counts * (counts - 1)).sum()
    if not pairs:
        return None
    sums = torch.zeros(images, text_embeds.shape[1], device=text_embeds.device)
    sums.index_add_(0, text_to_image, text_embeds.float())
    of_pairs = sum(part.double().square().sum() for part in sums.split(TILE)) - len(text_embeds)
    return (of_pairs / pairs).item()


def gap_separability(image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor, seed: int) -> float | None:
    """Percent of items on their modality's side of the plane between the centroids: 50 mixed, 100 apart.

    Centroids are those of one half of the images and their texts, the items those of the other half, and vice versa;
    images and texts weigh the same.
    """
    images = len(image_embeds)
    if images < 2:
        return None
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).to(image_embeds.device)
    half = torch.zeros(images, dtype=torch.bool, device=image_embeds.device)
    half[order[: images // 2]] = True
    shares = []
    for measured in (half, ~half):
        of_texts = measured[text_to_image]
        ours, theirs = centroid(image_embeds, ~measured), centroid(text_embeds, ~of_texts)
        gap = (ours - theirs).float()
        middle = gap @ (ours + theirs).float() / 2
        shares.append(((image_embeds.float() @ gap)[measured] > middle).double().mean())
        shares.append(((text_embeds.float() @ gap)[of_texts] < middle).double().mean())
    return 100 * (sum(share.item() for share in shares) / len(shares))


def sample_rows(embeds: Tensor, count: int, seed: int) -> Tensor:
    """A seeded sample of rows in float64, in their order; all of them where there are no more."""
    if len(embeds) <= count:
        return embeds.double()
    rows = torch.randperm(len(embeds), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return embeds[rows.to(embeds.device)].double()


@torch.no_grad()
def geometry(
    image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor, *, sample: int = SAMPLE, seed: int = 0
) -> dict[str, Any]:
    """Where the embeddings lie; see the head of this file.

    Args:
        image_embeds: (images, dim) unit vectors, two at least; text_embeds: (texts, dim) unit vectors.
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        sample: items of a modality at most for its uniformity; `uniformity_both` takes equally many of each.

    Returns:
        `alignment`, `uniformity_image, _text, _both`, `tolerance` (None with one caption for each image),
        `modality_gap`, `gap_separability` in percent, `effective_rank_image, _text`, `mean_cosine_image, _text`
        between different items, `centroid_norm_image, _text`, `collapsed`; and `images`, `texts`, `dim`, `sample`,
        `seed`.
    """
    count = min(sample, len(image_embeds), len(text_embeds))
    centroids = {"image": centroid(image_embeds), "text": centroid(text_embeds)}
    record: dict[str, Any] = {
        "images": len(image_embeds),
        "texts": len(text_embeds),
        "dim": image_embeds.shape[1],
        "sample": sample,
        "seed": seed,
        "alignment": 2 - 2 * positive_similarities(image_embeds, text_embeds, text_to_image).double().mean().item(),
        "tolerance": tolerance(text_embeds, text_to_image, len(image_embeds)),
        "modality_gap": (centroids["image"] - centroids["text"]).norm().item(),
        "gap_separability": gap_separability(image_embeds, text_embeds, text_to_image, seed),
    }
    for name, embeds in (("image", image_embeds), ("text", text_embeds)):
        drawn = sample_rows(embeds, sample, seed)
        record[f"uniformity_{name}"] = uniformity(potential(drawn @ drawn.T), len(drawn)).item()
        record[f"effective_rank_{name}"] = effective_rank(moments(embeds)).item()
        record[f"mean_cosine_{name}"] = mean_cosine(centroids[name], len(embeds)).item()
        record[f"centroid_norm_{name}"] = centroids[name].norm().item()
    images, texts = sample_rows(image_embeds, count, seed), sample_rows(text_embeds, count, seed)
    total = potential(images @ images.T) + potential(texts @ texts.T) + 2 * potential(images @ texts.T)
    record["uniformity_both"] = uniformity(total, 2 * count).item()
    record["collapsed"] = is_collapsed(record["mean_cosine_image"], record["mean_cosine_text"])
    return record
