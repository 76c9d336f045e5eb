"""How far to trust a recall, and whether one model is really better than another.

The images of a test set, each with all its captions, are taken as a sample of those that could have been asked: an
image and its captions are drawn together, because captions of one image are not independent of each other. All
negatives stay: what is said holds for queries like these against this gallery, since a larger one lowers every recall.

- `recall_intervals`: the percentile bootstrap over images (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
  chapter 13). An interval has no width where every query succeeds or every one fails.
- `compare_models`: both models answer the same queries, so the same images are drawn for both. The p-value is that of
  Fisher's randomisation test, where the two models swap their results on each image by the toss of a coin (Smucker,
  Allan & Carterette, CIKM 2007), counted as Phipson & Smyth advise (arXiv 1603.05766): random tosses never give p = 0.
- `holm`: several comparisons at once (Holm, Scandinavian Journal of Statistics, 1979).
"""

from collections.abc import Iterator
from functools import reduce
from typing import TypeVar

import numpy as np

from hf_vse.evaluation.metrics import DIRECTIONS, RECALL_LEVELS
from hf_vse.evaluation.ranks import Array, as_tensor

# Columns of the sums of one direction: queries, those with a positive among the first 1, 5 and 10, ranks from 1.
COLUMNS = len(RECALL_LEVELS) + 2
# Differing images up to which all 2^images ways to swap are tried instead of random ones.
ENUMERATED = 12
# Numbers of a block of resamples that are in memory at once.
BLOCK = 4_000_000
# Metrics that differ by less are the same number, summed in another order.
ROUNDING = 1e-9
CONFIDENCE = 0.95  # how often an interval is to hold the true value

Ranks = tuple[Array, Array]
Name = TypeVar("Name", str, int)


def sums_by_image(image_ranks: Array, text_ranks: Array, text_to_image: Array) -> np.ndarray:
    """What each image adds to the sums that the metrics are made of, (images with a text, 2 * COLUMNS) float64.

    Args: see `recall_intervals`.
    """
    ranks = [as_tensor(each).cpu().numpy() for each in (image_ranks, text_ranks)]
    described, image_of_text = np.unique(as_tensor(text_to_image).cpu().numpy(), return_inverse=True)
    for name, given, count in zip(
        ("image_ranks", "text_ranks"), ranks, (len(described), len(image_of_text)), strict=True
    ):
        if given.shape != (count,):
            raise ValueError(
                f"{name} has shape {given.shape}, but text_to_image names {len(described)} images for "
                f"{len(image_of_text)} texts: give the ranks that retrieval_ranks returned for it"
            )
    sums = np.zeros((len(described), 2 * COLUMNS))
    for first, of_query, owner in ((0, ranks[0], np.arange(len(described))), (COLUMNS, ranks[1], image_of_text)):
        columns = [np.ones(len(of_query)), *(of_query < level for level in RECALL_LEVELS), of_query + 1.0]
        for place, values in enumerate(columns, first):
            sums[:, place] = np.bincount(owner, weights=values, minlength=len(described))
    return sums


def metrics_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The recalls, mean ranks and rsum of sums over images (..., 2 * COLUMNS), each (...)."""
    metrics: dict[str, np.ndarray] = {}
    for direction, half in zip(DIRECTIONS, np.split(sums, 2, axis=-1), strict=True):
        queries = half[..., 0]
        for place, level in enumerate(RECALL_LEVELS, 1):
            metrics[f"{direction}_r{level}"] = 100 * half[..., place] / queries
        metrics[f"{direction}_meanr"] = half[..., -1] / queries
    metrics["rsum"] = reduce(np.add, [values for name, values in metrics.items() if not name.endswith("meanr")])
    return metrics


def blocks(resamples: int, images: int) -> Iterator[int]:
    """Sizes of the blocks in which `resamples` are made."""
    size = max(1, BLOCK // images)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def drawn_sums(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over as many images as there are, drawn with replacement, (resamples, columns of `sums`)."""
    return np.concatenate([times.astype(np.float64) @ sums for times in drawn_times(len(sums), resamples, seed)])


def drawn_times(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of the images was drawn, in blocks of resamples (block, images)."""
    rng = np.random.default_rng(seed)
    for size in blocks(resamples, images):
        drawn = rng.integers(images, size=(size, images))
        drawn += images * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images)


def interval(values: np.ndarray, confidence: float) -> list[float]:
    return [float(each) for each in np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])]


def check_resampling(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1: 0.95 is customary")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1: 2000 is customary")


def recall_intervals(
    image_ranks: Array,
    text_ranks: Array,
    text_to_image: Array,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Intervals in which the metrics of other images of the same kind would lie.

    Args:
        image_ranks, text_ranks: what `retrieval_ranks` returns: (images that have a text,) and (texts,) from 0.
        text_to_image: (texts,) the image that each text describes, as given to `retrieval_ranks`.
        confidence: how often such an interval is to hold the true value.
        resamples: how many test sets are drawn.

    Returns:
        `[low, high]` for `i2t_r1, i2t_r5, i2t_r10, i2t_meanr`, the same for `t2i`, and `rsum`; in the units of
        `retrieval_metrics`.

    Raises:
        ValueError: as many ranks as do not fit `text_to_image`, or a `confidence` or `resamples` out of range.
    """
    check_resampling(confidence, resamples)
    sums = sums_by_image(image_ranks, text_ranks, text_to_image)
    drawn = metrics_of(drawn_sums(sums, resamples, seed))
    return {name: interval(values, confidence) for name, values in drawn.items()}


def swapped_sums(changes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How the sums change if the models swap their results on some images, (ways, columns of `changes`).

    Args:
        changes: (images, columns) what a swap adds to the sums of the first model and takes from the second's.

    Returns:
        All ways to choose images if they are few, the first of which swaps none, or else `resamples` random ones.
    """
    images = len(changes)
    if images <= ENUMERATED:
        return (np.arange(2**images)[:, None] >> np.arange(images) & 1) @ changes
    rng = np.random.default_rng(seed)
    tosses = (rng.integers(2, size=(size, images)) for size in blocks(resamples, images))
    return np.concatenate([swaps.astype(np.float64) @ changes for swaps in tosses])


def swap_p_values(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """How often coin tosses give a difference at least as large, in either direction, as that of the two models."""
    differs = (first != second).any(axis=1)  # elsewhere a swap changes nothing
    changes = (second - first)[differs]
    gained = swapped_sums(changes, resamples, seed)
    before, after = metrics_of(first.sum(0) + gained), metrics_of(second.sum(0) - gained)
    observed = difference_of(first.sum(0), second.sum(0))
    p_values = {}
    for name, value in observed.items():
        reached = np.abs(after[name] - before[name]) >= abs(value) - ROUNDING
        exact = len(changes) <= ENUMERATED  # then the way it was is one of them
        p_values[name] = float(reached.mean() if exact else (reached.sum() + 1) / (len(reached) + 1))
    return p_values


def difference_of(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of the second sums minus those of the first."""
    before, after = metrics_of(first), metrics_of(second)
    return {name: after[name] - before[name] for name in before}


def compare_models(
    first: Ranks,
    second: Ranks,
    text_to_image: Array,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, float | list[float]]]:
    """Tests whether the second model is better than the first on the same queries and gallery.

    Args:
        first, second: `(image_ranks, text_ranks)` of each model as `retrieval_ranks` returns them.
        text_to_image: (texts,) the image that each text describes, the same for both.
        resamples: how many test sets are drawn for the interval, and how many times coins are tossed for the p-value;
            up to 12 images on which the models differ, all outcomes are tried instead.

    Returns:
        For every metric of `recall_intervals` `difference`, that of the second model minus that of the first (above
        zero the second has the higher recall, below zero the better mean rank), its `interval` `[low, high]`, and the
        two-sided `p_value` that results as different arise from models that are equally good.

    Raises:
        ValueError: see `recall_intervals`.
    """
    check_resampling(CONFIDENCE, resamples)
    sums = [sums_by_image(*ranks, text_to_image) for ranks in (first, second)]
    drawn = np.split(drawn_sums(np.hstack(sums), resamples, seed), 2, axis=1)
    differences = difference_of(*drawn)
    p_values = swap_p_values(sums[0], sums[1], resamples, seed)
    return {
        name: {
            "difference": float(value),
            "interval": interval(differences[name], CONFIDENCE),
            "p_value": p_values[name],
        }
        for name, value in difference_of(*(each.sum(0) for each in sums)).items()
    }


def holm(p_values: dict[Name, float]) -> dict[Name, float]:
    """P-values of several comparisons, adjusted for their number: see Holm above.

    The k-th smallest of m is multiplied by m - k + 1; none may be below a smaller one's, none is above 1.
    """
    raised: dict[Name, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - place) * p_values[name])
        raised[name] = min(1.0, largest)
    return {name: raised[name] for name in p_values}
