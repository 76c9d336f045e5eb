"""Does a model know when it is right? Text-to-image retrieval as classification among the images.

The softmax of a caption's scores over all images, divided by a temperature, gives its first image a probability. A
model is calibrated if of the captions with 70 percent about 70 in 100 are right (Guo et al., ICML 2017, arXiv
1706.04599): the expected calibration error is the mean difference of confidence and accuracy over 15 bins of equal
width, weighted with their sizes.

One number, the temperature, is fitted as there, by the least negative log-likelihood of the right images. This is
convex in 1 / temperature (its slope is the mean score under the softmax less that of the right image), so Newton's
method within a bracket finds it. It is fitted on one half of the captions, split by their images, and reported on the
other, and vice versa. Probabilities are those among the images of this set: with more images they are smaller. The
likelihood punishes a few captions that lie far from their images, and may make a model look too modest for them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_vse.evaluation.diagnostics.neighbours import TILE, positive_similarities
from hf_vse.evaluation.ranks import true_float32

BINS = 15
SAMPLE = 2000
TEMPERATURES = (1e-3, 10.0)  # searched
FIRST_GUESS = 0.05
PRECISION = 1e-3
ITERATIONS = 50


class TextQueries(NamedTuple):
    """Captions as queries for their image."""

    texts: Tensor  # (queries, dim)
    positive: Tensor  # (queries,) float32, score of the right image
    top: Tensor  # (queries,) float32, largest score of any image
    correct: Tensor  # (queries,) booleans, the right image is the first

    def of(self, rows: Tensor) -> "TextQueries":
        return TextQueries(*(each[rows] for each in self))


class Softmax(NamedTuple):
    """A softmax over all images, for each query (queries,) float64, with scores measured from the largest."""

    log_total: Tensor  # logarithm of the sum of exponentials
    mean: Tensor  # of the scores
    variance: Tensor


@torch.no_grad()
def largest_scores(texts: Tensor, image_embeds: Tensor) -> Tensor:
    with true_float32(), torch.autocast(texts.device.type, enabled=False):
        parts = [(texts @ images.float().T).amax(dim=1) for images in image_embeds.split(TILE)]
    return torch.stack(parts).amax(dim=0)


@torch.no_grad()
def softmax_over(queries: TextQueries, image_embeds: Tensor, temperature: float | Tensor) -> Softmax:
    """One pass over the images, a tile at a time; one temperature, or one for each query (queries,)."""
    total, first, second = torch.zeros(3, len(queries.positive), dtype=torch.float64, device=queries.positive.device)
    scale = temperature[:, None].float() if isinstance(temperature, Tensor) else temperature
    with true_float32(), torch.autocast(total.device.type, enabled=False):
        for images in image_embeds.split(TILE):
            below = queries.texts @ images.float().T - queries.top[:, None]
            weights = torch.exp(below / scale)
            total += weights.sum(dim=1)
            first += weights.mul_(below).sum(dim=1)
            second += weights.mul_(below).sum(dim=1)
    mean = first / total
    return Softmax(total.log(), mean, (second / total - mean.square()).clamp(min=0))


def fit_temperature(queries: TextQueries, image_embeds: Tensor) -> float:
    """The temperature with the least mean negative log-likelihood, within `TEMPERATURES`."""
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    sharpness = 1 / FIRST_GUESS
    right = (queries.positive - queries.top).double().mean()
    for _ in range(ITERATIONS):
        softmax = softmax_over(queries, image_embeds, 1 / sharpness)
        slope, curvature = (softmax.mean.mean() - right).item(), softmax.variance.mean().item()
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        step = sharpness - slope / curvature if curvature > 0 else high
        before, sharpness = sharpness, step if low < step < high else (low * high) ** 0.5
        if abs(sharpness / before - 1) < PRECISION:
            break
    return 1 / sharpness


def reliability(confidence: Tensor, correct: Tensor) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error in percent, and the bins that are not empty, from confidences 0 .. 1."""
    bin_of = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        inside = bin_of == number
        if queries := int(inside.sum()):
            mean, accuracy = 100 * confidence[inside].mean().item(), 100 * correct[inside].double().mean().item()
            error += queries / len(confidence) * abs(mean - accuracy)
            row = {"low": 100 * number / BINS, "high": 100 * (number + 1) / BINS, "queries": queries}
            bins.append(row | {"confidence": mean, "accuracy": accuracy})
    return error, bins


def calibration_at(queries: TextQueries, image_embeds: Tensor, temperature: float | Tensor) -> dict[str, Any]:
    """Calibration at one temperature, or one for each query."""
    log_total = softmax_over(queries, image_embeds, temperature).log_total
    confidence = torch.exp(-log_total)
    error, bins = reliability(confidence, queries.correct)
    return {
        "ece": error,
        "nll": (log_total + (queries.top - queries.positive) / temperature).mean().item(),
        "confidence": 100 * confidence.mean().item(),
        "bins": bins,
    }


def sampled_queries(
    image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor, text_ranks: Tensor, sample: int, seed: int
) -> tuple[TextQueries, Tensor]:
    """At most `sample` captions, and (queries,) booleans: whose images are in one random half of all images."""
    generator, device = torch.Generator().manual_seed(seed), image_embeds.device
    chosen = torch.randperm(len(text_embeds), generator=generator)[:sample].sort().values.to(device)
    half = torch.randperm(len(image_embeds), generator=generator).to(device)[text_to_image[chosen]] % 2 == 0
    texts = text_embeds[chosen].float()
    positive = positive_similarities(image_embeds, texts, text_to_image[chosen])
    top = torch.maximum(largest_scores(texts, image_embeds), positive)
    return TextQueries(texts, positive, top, text_ranks.to(device)[chosen] == 0), half


def calibration(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor,
    text_ranks: Tensor,
    *,
    temperature: float | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibration of the first image that each caption finds; see the head of this file.

    Args:
        image_embeds: (images, dim) unit vectors, two at least with a text; text_embeds: (texts, dim) unit vectors.
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        text_ranks: (texts,) text-to-image ranks counted from 0, as `retrieval_ranks` returns them.
        temperature: that of the model, which its scores are divided by; default: none is reported.
        sample: captions at most, drawn with `seed`; all images are candidates.

    Returns:
        `queries`, `candidates`, `sample`, `seed`, `accuracy` in percent; `fitted`, with `temperatures` of the two
        halves, and `given`, with `temperature` (or None), both with `ece` and `confidence` in percent, `nll` in nats
        and `bins`: `{"low", "high", "queries", "confidence", "accuracy"}` in percent, those that are not empty.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}; leave it out to report only the fitted one"
        )
    queries, half = sampled_queries(image_embeds, text_embeds, text_to_image, text_ranks, sample, seed)
    if half.all() or not half.any():
        raise ValueError(f"calibration needs captions of two images at least, got those of {len(image_embeds)}")
    fitted = [fit_temperature(queries.of(rows), image_embeds) for rows in (half, ~half)]
    each = torch.where(half, fitted[1], fitted[0]).double()  # fitted on the half that a caption is not in
    given = None
    if temperature is not None:
        given = {"temperature": temperature} | calibration_at(queries, image_embeds, temperature)
    return {
        "queries": len(half),
        "candidates": len(image_embeds),
        "sample": sample,
        "seed": seed,
        "accuracy": 100 * queries.correct.double().mean().item(),
        "fitted": {"temperatures": fitted} | calibration_at(queries, image_embeds, each),
        "given": given,
    }
