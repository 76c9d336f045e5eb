"""Verification: do two images show the same thing? Over all pairs of images, in the memory of one tile of scores.

Scores of unit vectors lie between -1 and 1. They are counted in `BINS` equal bins, apart for pairs of one class and of
two. The area under the ROC curve and the rate of true accepts follow from these counts; a pair is misplaced by the
width of a bin, 8e-6, at most. 100,000 images have five billion pairs.

For intervals, classes are drawn with replacement (see `intervals.py`), and a pair counts as often as both of its
classes were drawn, v * w. That is v + w - 1 up to (v - 1)(w - 1), whose mean is about 0, so sums over the pairs of
each class are all that is kept, in few bins. Of more than `GROUPS` classes, random groups are drawn.
"""

from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from hf_vse.evaluation.intervals import CONFIDENCE, drawn_sums, interval

BINS = 2**18
COARSE = 512  # bins of the counts of each class
GROUPS = 1000
ROWS, COLUMNS = 1024, 4096  # of a tile of scores


class PairCounts(NamedTuple):
    """Pairs of different classes first, then those of one class.

    Args:
        fine: (2, BINS) pairs by score.
        coarse: (groups, 2, COARSE) pairs that touch a group; one inside a group counts twice there.
    """

    fine: np.ndarray
    coarse: np.ndarray


def bins_of(scores: np.ndarray) -> np.ndarray:
    return np.clip((scores + 1) * (BINS / 2), 0, BINS - 1).astype(np.int32)


def count_pairs(embeds: np.ndarray, labels: np.ndarray, *, seed: int = 0, progress: bool = False) -> PairCounts:
    """Counts all pairs of images by score.

    Args:
        embeds: (images, dim) float32 unit vectors.
        labels: (images,) integers from 0 on, the class of each image.
        seed: of the groups of classes, and of a sample of pairs that the coarse bins are made for.
    """
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    groups = min(classes, GROUPS)
    group = (rng.permutation(classes) % groups)[labels]
    coarse_of = np.concatenate([coarse_bins(embeds, labels, rng), [2 * COARSE]])
    coarse_of[BINS : 2 * BINS] = COARSE + coarse_of[:BINS]
    fine, coarse = np.zeros(2 * BINS + 1, np.int64), np.zeros(groups * (2 * COARSE + 1), np.int64)
    tiles = [
        (start, other)
        for start in range(0, len(embeds), ROWS)
        for other in range(start - start % COLUMNS, len(embeds), COLUMNS)
    ]
    for start, other in tqdm(tiles, "comparing pairs", disable=not progress, leave=False):
        rows, columns = slice(start, start + ROWS), slice(other, other + COLUMNS)
        kinds = bins_of(embeds[rows] @ embeds[columns].T)
        kinds += BINS * (labels[rows][:, None] == labels[columns]).astype(np.int32)
        if other < start + ROWS:  # each pair once, and none of an image with itself
            places = np.arange(other, other + kinds.shape[1]), np.arange(start, start + len(kinds))
            kinds[places[0] <= places[1][:, None]] = 2 * BINS
        fine += np.bincount(kinds.ravel(), minlength=len(fine))
        few = coarse_of[kinds]
        for of_side in (group[rows][:, None], group[columns]):
            coarse += np.bincount((of_side * (2 * COARSE + 1) + few).ravel(), minlength=len(coarse))
    return PairCounts(fine[:-1].reshape(2, BINS), coarse.reshape(groups, -1)[:, :-1].reshape(groups, 2, COARSE))


def coarse_bins(embeds: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The coarse bin of every fine one, twice, (2 * BINS,): quantiles of samples of both kinds of pairs, half of them
    of one class, and many where few pairs of two classes are accepted."""
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    same, different = (
        np.concatenate([sampled_scores(embeds, labels, rows, shift, alike) for shift in range(1, 9)])
        for rows, alike in ((by_class, True), (order, False))
    )
    rare = 1 - np.logspace(-1, -5, COARSE // 4)
    edges = [np.quantile(same, np.linspace(0, 1, COARSE // 2 - 1))] if len(same) else []
    edges += [np.quantile(different, at) for at in (np.linspace(0, 0.9, COARSE // 4), rare) if len(different)]
    bins = np.sort(bins_of(np.concatenate([*edges, [-1.0]])))
    return np.tile(np.searchsorted(bins, np.arange(BINS), side="right") - 1, 2)


def sampled_scores(embeds: np.ndarray, labels: np.ndarray, rows: np.ndarray, shift: int, alike: bool) -> np.ndarray:
    """Scores of pairs that are so far apart in an order, of one class or of two."""
    one, other = rows[:-shift], rows[shift:]
    kept = np.flatnonzero((labels[one] == labels[other]) == alike)[: 2**15]
    return np.einsum("ij,ij->i", embeds[one[kept]], embeds[other[kept]])


def roc_auc(counts: np.ndarray) -> np.ndarray:
    """How often a pair of one class scores higher than a pair of two; ties count half.

    Args:
        counts: (..., 2, bins) pairs of different classes, and of one, by rising score.
    """
    different, same = np.moveaxis(counts.astype(np.float64), -2, 0)
    above = same.sum(-1, keepdims=True) - same.cumsum(-1)
    return (different * (above + same / 2)).sum(-1) / (different.sum(-1) * same.sum(-1))


def accepts(counts: np.ndarray, rate: float) -> tuple[float, float]:
    """The share of pairs of one class, and the score, from which on at most this share of pairs of two is accepted.

    Args:
        counts: (2, BINS), see `roc_auc`.
    """
    different, same = counts[:, ::-1].cumsum(axis=1)
    kept = int((different <= rate * different[-1]).sum())  # bins from the top
    return (float(same[kept - 1] / same[-1]) if kept else 0.0), 1 - 2 * kept / BINS


def drawn_accepts(counts: np.ndarray, rate: float) -> np.ndarray:
    """The first of `accepts` for each of several coarse counts (draws, 2, COARSE), a line between their edges."""
    cumulated = counts[..., ::-1].cumsum(axis=-1)
    shares = np.pad(cumulated / cumulated[..., -1:], ((0, 0), (0, 0), (1, 0)))
    return np.array([np.interp(rate, np.maximum.accumulate(each[0]), each[1]) for each in shares])


def verification_metrics(
    embeds: np.ndarray,
    labels: np.ndarray,
    *,
    rate: float = 1e-3,
    resamples: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float | list[float]]:
    """Over all pairs of images.

    Args:
        embeds: (images, dim) float32 unit vectors.
        labels: (images,) the class of each, integers from 0 on.
        rate: share of pairs of different classes that may be accepted.

    Returns:
        `roc_auc` from 0 to 1; `tar`, true accepts in percent at `far`, that rate in percent, and the `threshold` that
        accepts so many; numbers of `same_pairs` and `different_pairs`; `roc_auc_interval`, `tar_interval` of 95 %.

    Raises:
        ValueError: there are no pairs of one class, or none of two.
    """
    counts = count_pairs(embeds, labels, seed=seed, progress=progress) if len(embeds) else None
    different, same = (0, 0) if counts is None else counts.fine.sum(axis=1).tolist()
    if counts is None or not different or not same:
        raise ValueError(
            f"{same:,} pairs of images show the same thing and {different:,} different ones: verification needs both"
        )
    tar, threshold = accepts(counts.fine, rate)
    drawn = drawn_sums(counts.coarse.reshape(len(counts.coarse), -1).astype(np.float64), resamples, seed)
    drawn = drawn.reshape(resamples, 2, COARSE)
    drawn[:, 1] /= 2
    drawn[:, 0] -= counts.coarse[:, 0].sum(axis=0) / 2
    drawn = drawn[drawn.sum(axis=2).min(axis=1) > 0]  # of few classes none with a pair may be drawn
    return {
        "roc_auc": float(roc_auc(counts.fine)),
        "roc_auc_interval": interval(roc_auc(drawn), CONFIDENCE),
        "far": 100 * rate,
        "tar": 100 * tar,
        "tar_interval": interval(100 * drawn_accepts(drawn, rate), CONFIDENCE),
        "threshold": threshold,
        "same_pairs": same,
        "different_pairs": different,
    }
