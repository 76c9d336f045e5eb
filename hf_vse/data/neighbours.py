"""Groups of images whose captions are alike, so that a batch of whole groups has hard negatives.

B3 (arXiv 2505.11293): a fixed model ranks all examples for each; examples of the ranks p to q of each other belong
together, and a batch is made of random groups. The nearest p are skipped, because they are mostly no negatives: other
pictures of the same, for which the sentence is true as well. Here the groups are found greedily, anew in every epoch.
"""

from collections.abc import Sequence

import numpy as np

from hf_vse.data.features import FeatureRows, unit_rows

AT_ONCE = 1024  # rows of the matrix of similarities that are held


def near_rows(vectors: np.ndarray, first: int, last: int) -> np.ndarray:
    """For each row the others with ranks `first` to `last` by cosine, the nearest of all has rank 1.

    Args:
        vectors: (rows, dim).

    Returns:
        (rows, last - first + 1) places of rows, the nearest first; fewer where there are not so many rows.
    """
    units = unit_rows(vectors)
    last = min(last, len(units) - 1)
    found = np.empty((len(units), last - first + 1), dtype=np.int64)
    for start in range(0, len(units), AT_ONCE):
        scores = units[start : start + AT_ONCE] @ units.T
        places = np.arange(len(scores))
        scores[places, start + places] = -np.inf
        nearest = np.argpartition(-scores, last - 1, axis=1)[:, :last]
        order = np.argsort(-np.take_along_axis(scores, nearest, axis=1), axis=1, kind="stable")
        found[start : start + AT_ONCE] = np.take_along_axis(nearest, order, axis=1)[:, first - 1 :]
    return found


def grouped(near: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts all rows into groups: a random row and the first of its near rows that are in no group yet.

    Args:
        near: (rows, candidates), see `near_rows`.
        size: rows of a group; a group is smaller where too few of the near rows are left.

    Returns:
        (rows,) the number of the group of each row.
    """
    groups = np.full(len(near), -1)
    for number, row in enumerate(rng.permutation(len(near)).tolist()):
        if groups[row] < 0:
            groups[row] = number
            free = near[row][groups[near[row]] < 0]
            groups[free[: size - 1]] = number
    return np.unique(groups, return_inverse=True)[1]


def vectors_of_images(features: Sequence[np.ndarray] | FeatureRows, rows: int) -> np.ndarray:
    """The mean of the unit vectors of each image's captions: (rows, dim)."""
    return np.stack([unit_rows(np.asarray(features[row], dtype=np.float32)).mean(axis=0) for row in range(rows)])
