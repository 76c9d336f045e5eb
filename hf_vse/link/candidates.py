"""The best candidates of every record among the records of another catalogue, or of its own, in bounded memory.

Exact search compares block by block; FAISS does the same faster where it is installed and the sets are large. With
`kind="auto"` very large catalogues get the approximate index that a gallery of their size would have
(`search/plan.py`), whose recall is measured.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from hf_vse.embed.matrices import merge_best, no_candidates
from hf_vse.search.plan import choose_plan
from hf_vse.search.vectors import VectorIndex

QUERIES, EMBEDS = 1024, 16_384  # rows of a tile of scores: 64 MiB of float32
LARGE = 10**8  # comparisons, above which FAISS pays
NOBODY = -1  # the row of a candidate that is not there; its score is -inf


class BestCandidates(NamedTuple):
    """`scores` (records, k) float32, best first, and `rows` (records, k) of the other catalogue; -inf and -1 where
    there are fewer."""

    scores: np.ndarray
    rows: np.ndarray


def find_candidates(
    queries: np.ndarray,
    embeds: np.ndarray,
    k: int = 2,
    *,
    same: bool = False,
    blocks: tuple[np.ndarray, np.ndarray] | None = None,
    kind: str = "exact",
    progress: bool = False,
) -> BestCandidates:
    """The `k` best rows of `embeds` for each row of `queries`, by the dot product.

    Args:
        queries, embeds: (records, dim) float32 unit vectors.
        same: the two are one catalogue, and no record is a candidate of itself.
        blocks: an integer for each row of both; only rows of equal integers are compared, and none below 0.
        kind: `exact`, or `auto`, `ivf`, `hnsw`, `pq`, see `search/plan.py`. A block is always searched exactly.
    """
    if blocks is None:
        return without_itself(nearest(queries, embeds, k + same, kind, progress), np.arange(len(queries)), same)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), NOBODY, np.int64)
    for asked, there in tqdm(list(in_blocks(*blocks)), "comparing blocks", disable=not progress, leave=False):
        found = nearest(queries[asked], embeds[there], k + same, "exact", False)
        found = BestCandidates(found.scores, np.where(found.rows < 0, NOBODY, there[found.rows]))
        scores[asked], rows[asked] = without_itself(found, asked, same)
    return BestCandidates(scores, rows)


def in_blocks(of_queries: np.ndarray, of_embeds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each block that both sides have, its rows on each side."""
    orders = [np.argsort(each, kind="stable") for each in (of_queries, of_embeds)]
    common = np.intersect1d(of_queries, of_embeds)
    for block in common[common >= 0]:
        queries, embeds = (
            order[np.searchsorted(each, block, "left", order) : np.searchsorted(each, block, "right", order)]
            for each, order in zip((of_queries, of_embeds), orders, strict=True)
        )
        yield queries, embeds


def block_numbers(first: Sequence[Any], second: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The values of a field, for both catalogues, as integers that are equal where the texts of the values are; -1 for
    None."""
    known: dict[str, int] = {}
    ours, theirs = (
        np.array([-1 if value is None else known.setdefault(str(value), len(known)) for value in each], np.int64)
        for each in (first, second)
    )
    return ours, theirs


def nearest(queries: np.ndarray, embeds: np.ndarray, k: int, kind: str, progress: bool) -> BestCandidates:
    """The same as `find_candidates`, a record itself included."""
    plan = choose_plan(len(embeds), embeds.shape[1], kind)
    if plan.kind != "exact":
        index = VectorIndex(embeds, plan)
        index.build(queries[:: max(1, len(queries) // 256)], progress=progress)
        search = index.search
    elif len(queries) * len(embeds) >= LARGE and find_spec("faiss"):
        search = search_with_faiss(embeds)
    else:
        search = search_in_tiles(embeds)
    starts = tqdm(range(0, len(queries), QUERIES), "comparing", disable=not progress, leave=False)
    parts = [search(np.ascontiguousarray(queries[start : start + QUERIES]), min(k, len(embeds))) for start in starts]
    scores, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    lacking = ((0, 0), (0, k - scores.shape[1]))
    scores, rows = np.pad(scores, lacking, constant_values=-np.inf), np.pad(rows, lacking, constant_values=NOBODY)
    order = np.lexsort((rows, -scores))  # of equal scores the first row, whoever searched
    return BestCandidates(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


def search_in_tiles(embeds: np.ndarray):
    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        best = no_candidates(len(queries))
        for start in range(0, len(embeds), EMBEDS):
            best = merge_best(best, queries @ embeds[start : start + EMBEDS].T, start, k)
        return best

    return search


def search_with_faiss(embeds: np.ndarray):
    import faiss

    embeds = np.ascontiguousarray(embeds, np.float32)  # no copy of what is so already

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return faiss.knn(queries, embeds, k, metric=faiss.METRIC_INNER_PRODUCT)

    return search


def without_itself(found: BestCandidates, own: np.ndarray, same: bool) -> BestCandidates:
    """One candidate less for each record: itself, or the last where equal ones have displaced it."""
    if not same:
        return found
    itself = found.rows == own[:, None]
    itself[~itself.any(axis=1), -1] = True
    return BestCandidates(*(each[~itself].reshape(len(own), -1) for each in found))


def scores_of_tiles(
    queries: np.ndarray, embeds: np.ndarray, chosen: np.ndarray, blocks: tuple[np.ndarray, np.ndarray] | None
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """For the chosen rows of `queries`, tile by tile: the rows, the first row of `embeds` and their scores, -inf
    across blocks."""
    for begin in range(0, len(chosen), QUERIES):
        rows = chosen[begin : begin + QUERIES]
        for start in range(0, len(embeds), EMBEDS):
            scores = queries[rows] @ embeds[start : start + EMBEDS].T
            if blocks is not None:
                asked, there = blocks[0][rows][:, None], blocks[1][start : start + EMBEDS]
                scores[(asked != there) | (asked < 0)] = -np.inf
            yield rows, start, scores
