"""How far the right candidates stand above the wrong ones: histograms of cosine similarity.

Positives are pairs that belong together; the hardest negative of a query is its best candidate that does not belong to
it (VSE++, arXiv 1707.05612), random negatives are pairs of a caption and another image. Other captions of the same
image are no negatives. Where positives and random negatives overlap, the model has learned little; where positives and
hardest negatives do, the set has candidates that are nearly right, which is the rule.
"""

from typing import Any

import torch
from torch import Tensor

from hf_vse.evaluation.diagnostics.neighbours import (
    HardNegatives,
    best_positives,
    find_hard_negatives,
    positive_similarities,
)  # fmt: skip

BINS = 100  # of -1 .. 1


def histogram(values: Tensor) -> Tensor:
    """How many values lie in each bin, (BINS,) float64; the last bin includes 1."""
    return torch.histc(values.float().clamp(-1, 1), BINS, -1, 1).double()


def distribution(values: Tensor) -> dict[str, Any]:
    """Mean, standard deviation and counts of some similarities."""
    values = values.double()
    counts = [int(count) for count in histogram(values).tolist()]
    return {"mean": values.mean().item(), "std": values.std(correction=0).item(), "counts": counts}


def overlap(left: Tensor, right: Tensor) -> float:
    """Percent that two histograms share: 0 apart, 100 the same."""
    shares = [histogram(values) / len(values) for values in (left, right)]
    return 100 * torch.minimum(*shares).sum().item()


def against_negatives(positives: Tensor, hardest: Tensor, random: Tensor) -> dict[str, Any]:
    """What `similarities` says about one direction; positives and hardest negatives (queries,) of the same queries."""
    return {
        "positives": distribution(positives),
        "hardest_negatives": distribution(hardest),
        "overlap_hardest": overlap(positives, hardest),
        "overlap_random": overlap(positives, random),
        "margin": (positives.double() - hardest.double()).mean().item(),
    }


def random_negatives(image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor, seed: int) -> Tensor:
    """Similarity of every text to an image drawn from those that are not its own, (texts,)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, len(image_embeds), text_to_image.shape, generator=generator).to(text_to_image.device)
    return positive_similarities(image_embeds, text_embeds, (text_to_image + steps) % len(image_embeds))


def similarities(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor,
    *,
    negatives: HardNegatives | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Distributions of cosine similarity.

    Args:
        image_embeds: (images, dim) unit vectors, two at least; text_embeds: (texts, dim) unit vectors.
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        negatives: what `find_hard_negatives` returns for them, if it is known.

    Returns:
        `edges` of the bins (101 numbers); `random_negatives`, one for each text; and for `t2i` (every text and its
        image) and `i2t` (every image that has texts and the nearest of these): `positives` and `hardest_negatives`,
        each with `mean`, `std` and `counts`, the histogram; `overlap_hardest` and `overlap_random`, percent that the
        histogram of the positives shares with the other; and `margin`, the mean of positive less hardest negative.
    """
    negatives = find_hard_negatives(image_embeds, text_embeds, text_to_image, k=1) if negatives is None else negatives
    random = random_negatives(image_embeds, text_embeds, text_to_image, seed)
    of_images = best_positives(negatives, text_to_image)
    asked = of_images.isfinite() & negatives.of_images.scores[:, 0].isfinite()
    return {
        "edges": torch.linspace(-1, 1, BINS + 1, dtype=torch.float64).tolist(),
        "seed": seed,
        "random_negatives": distribution(random),
        "t2i": against_negatives(negatives.positive, negatives.of_texts.scores[:, 0], random),
        "i2t": against_negatives(of_images[asked], negatives.of_images.scores[asked, 0], random),
    }
