"""Nearest neighbours among unit vectors, by FAISS as a `Plan` says; rows and scores only.

Exact search needs no FAISS: a matrix product gives the same answer.
"""

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vse.embed.matrices import best_of, merge_best, no_candidates
from hf_vse.search.plan import EXACT_VALUES, RERANK, Plan

if TYPE_CHECKING:
    from hf_vse.search.segments import SegmentVectors

logger = logging.getLogger(__name__)

TARGET_RECALL = 0.95
MEASURED_QUERIES = 256
NEIGHBOURS_MEASURED = 10
BLOCK = 65_536  # vectors added, or compared, at once
TRAINING_VECTORS = 64  # for each cell
ITERATIONS = 10  # of k-means
BUILD_EFFORT = 80  # nodes kept while a graph is built
EFFORT_STEP = 1.3
STEPS_TO_GAIN, GAIN = 5, 0.002  # a larger effort is tried while the last steps have found so much more
RERANKED = (RERANK, 4 * RERANK, 16 * RERANK)  # candidates for every result of a quantised index
UNIT_TOLERANCE = 0.01
FEW_QUERIES = 8  # answered by a matrix product before FAISS is imported for an exact search
SMALL_SUBSET = 50_000  # allowed vectors that are compared one by one instead of filtered


class VectorIndex:
    """Unit vectors (items, dim), searched by inner product.

    Args:
        embeds: (items, dim) float32; may be memory-mapped.
        plan: how; `build` makes it true, `load` finds what was made.
    """

    def __init__(self, embeds: "np.ndarray | SegmentVectors", plan: Plan):
        self.embeds = embeds
        self.plan = plan
        self.faiss: Any = None
        self.asked = 0
        if plan.kind != "exact" and not find_spec("faiss"):
            remedy = "pip install 'hf_vse[index]', or kind='exact'"
            raise ImportError(f"an index of kind {plan.kind!r} needs FAISS: {remedy}")

    def build(self, queries: np.ndarray | None = None, recall: float = TARGET_RECALL, progress: bool = True) -> None:
        """Trains and fills the index, then finds the smallest effort that reaches `recall`.

        Args:
            queries: (queries, dim) such as will be asked, to measure with; default: vectors of the gallery itself.
        """
        if self.plan.kind == "exact":
            return
        import faiss

        count, dim = self.embeds.shape
        rng = np.random.default_rng(0)
        self.faiss = faiss.index_factory(dim, self.plan.factory, faiss.METRIC_INNER_PRODUCT)
        if self.plan.kind == "hnsw":
            self.faiss.hnsw.efConstruction = BUILD_EFFORT
        else:
            chosen = np.sort(rng.permutation(count)[: max(TRAINING_VECTORS * self.faiss.nlist, 2**16)])
            self.faiss.cp.niter = ITERATIONS
            self.faiss.cp.min_points_per_centroid = 1  # no warning on small galleries
            if self.plan.kind == "pq":
                self.faiss.pq.cp.min_points_per_centroid = 1
                self.faiss.pq.cp.niter = ITERATIONS
            self.faiss.train(np.ascontiguousarray(self.embeds[chosen], np.float32))
        self.add(0, progress)
        measured_on = "given queries" if queries is not None else "vectors of the gallery"
        if queries is None:
            queries = self.embeds[rng.permutation(count)[:MEASURED_QUERIES]]
        self.tune(np.ascontiguousarray(queries[:MEASURED_QUERIES], np.float32), recall, measured_on)

    def add(self, first: int, progress: bool = False) -> None:
        """Adds the vectors from a row on to the index."""
        from tqdm.auto import tqdm

        starts = range(first, len(self.embeds), BLOCK)
        for start in tqdm(starts, f"indexing ({self.plan.kind})", disable=not progress, leave=False):
            self.faiss.add(np.ascontiguousarray(self.embeds[start : start + BLOCK], np.float32))

    def tune(self, queries: np.ndarray, recall: float, measured_on: str) -> None:
        """Raises the effort until `recall` of the exact neighbours are found, and for `pq` the candidates compared.

        Where a larger effort gains nothing any more, the smallest that finds as much is taken.
        """
        exact = exact_search(self.embeds, queries, NEIGHBOURS_MEASURED)[1]
        for rerank in RERANKED if self.plan.kind == "pq" else (self.plan.rerank,):
            self.plan = replace(self.plan, rerank=rerank)
            tried = self.tried_efforts(queries, exact, recall)
            best = max(tried.values())
            if best >= recall:
                break
        effort = next(each for each, found in tried.items() if found >= min(recall, best - GAIN))
        self.plan = self.plan.measured(effort, tried[effort], f"{len(queries)} {measured_on}")
        if best < recall:
            logger.warning("recall@10 of the index is %.3f and does not reach %.3f at any effort", best, recall)

    def tried_efforts(self, queries: np.ndarray, exact: np.ndarray, recall: float) -> dict[int, float]:
        """Effort -> recall, from the smallest to the first that reaches it or gains nothing."""
        graph = self.plan.kind == "hnsw"  # which keeps as many nodes as it gives
        effort, most = (float(exact.shape[1]), len(self.embeds)) if graph else (1.0, self.faiss.nlist)
        tried: dict[int, float] = {}
        while True:
            now = min(most, round(effort))
            self.plan = self.plan.measured(now, 0.0, "")
            found = self.search(queries, exact.shape[1])[1]
            hits = [np.isin(of_exact, of_found) for of_exact, of_found in zip(exact, found, strict=True)]
            tried[now] = float(np.mean(hits))
            before = list(tried.values())[:-STEPS_TO_GAIN]
            if tried[now] >= recall or now == most or (before and max(tried.values()) - max(before) < GAIN):
                return tried
            effort = max(effort * EFFORT_STEP, effort + 1)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows for every query, best first.

        Args:
            queries: (queries, dim) contiguous float32.
            allowed: (items,) booleans, which rows may be found.

        Returns:
            `scores` and `rows`, both (queries, min(k, allowed rows)).
        """
        kept = len(self.embeds) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, kept)
        self.asked += len(queries)
        if self.plan.kind == "exact" and self.faiss is None and self.asked > FEW_QUERIES:
            self.make_flat()
        if allowed is not None and (self.faiss is None or kept <= SMALL_SUBSET):
            return self.exactly(queries, k, allowed)
        if self.faiss is None:
            return exact_search(self.embeds, queries, k)
        wanted, indexed = k * self.plan.rerank if self.plan.kind == "pq" else k, self.faiss.ntotal
        parameters = self.parameters(wanted, None if allowed is None else allowed[:indexed])
        scores, rows = self.faiss.search(queries, min(wanted, indexed), params=parameters)
        if self.plan.kind == "pq":
            scores, rows = self.compare_again(queries, rows, k)
        most = min(k, indexed if allowed is None else int(np.count_nonzero(allowed[:indexed])))
        short = np.flatnonzero((rows[:, :most] < 0).any(axis=1))  # too few in the cells that were visited
        if indexed < len(self.embeds):  # the others came later, and are few
            there = np.flatnonzero(np.ones(len(self.embeds) - indexed) if allowed is None else allowed[indexed:])
            more, places = exact_search(self.embeds, queries, k, there + indexed)
            both = np.concatenate([rows, (there + indexed)[places]], axis=1)
            scores, rows = best_of(np.concatenate([scores, more], axis=1), both, k)
        if len(short):
            scores[short], rows[short] = self.exactly(queries[short], k, allowed)
        return scores, rows

    def make_flat(self) -> None:
        """A copy of the vectors in FAISS, for those who ask often; the first queries do not wait for its import."""
        if find_spec("faiss") and self.embeds.size <= EXACT_VALUES:
            import faiss

            flat = faiss.IndexFlatIP(self.embeds.shape[1])
            flat.add(np.ascontiguousarray(self.embeds, np.float32))
            self.faiss = flat

    def parameters(self, wanted: int, allowed: np.ndarray | None):
        """Parameters for FAISS: the filter, and the effort, increased if few vectors per cell are left."""
        import faiss

        options = {}
        if allowed is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        effort = self.plan.effort
        if allowed is not None:
            effort = round(effort / max(np.count_nonzero(allowed) / len(allowed), 1e-3))
        if self.plan.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(effort, wanted), **options)
        if self.plan.kind == "ivf":
            return faiss.SearchParametersIVF(nprobe=min(effort, self.faiss.nlist), **options)
        if self.plan.kind == "pq":
            return faiss.IVFPQSearchParameters(nprobe=min(effort, self.faiss.nlist), **options)
        return faiss.SearchParameters(**options) if options else None

    def compare_again(self, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best of the candidates `rows` by exact similarity; -1 stays last."""
        scores = np.empty(rows.shape, np.float32)
        for query, candidates, of_query in zip(queries, rows, scores, strict=True):
            of_query[:] = np.where(candidates < 0, -np.inf, self.embeds[candidates] @ query)
        return best_of(scores, rows, k)

    def exactly(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(self.embeds)) if allowed is None else np.flatnonzero(allowed)
        scores, places = exact_search(self.embeds, queries, k, rows)
        return scores, rows[places]

    def save(self, path: Path) -> None:
        if self.plan.kind != "exact":
            import faiss

            faiss.write_index(self.faiss, str(path))

    def load(self, path: Path, indexed: int | None = None) -> None:
        """Reads a file that `save` wrote; the caller has verified its checksum.

        Args:
            indexed: how many of the vectors, the first, are in it; default: all.

        Raises:
            ValueError: it is not, or belongs to other vectors.
        """
        if self.plan.kind == "exact":
            return
        import faiss

        indexed = len(self.embeds) if indexed is None else indexed
        if indexed > len(self.embeds):
            raise ValueError(f"{path} has {indexed} vectors, the gallery {len(self.embeds)}: build the gallery again")
        try:
            self.faiss = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read by FAISS: build the gallery again") from error
        wanted = {"hnsw": faiss.IndexHNSW, "ivf": faiss.IndexIVFFlat, "pq": faiss.IndexIVFPQ}[self.plan.kind]
        if not isinstance(self.faiss, wanted) or (self.faiss.ntotal, self.faiss.d) != (indexed, self.embeds.shape[1]):
            raise ValueError(
                f"{path} holds {type(self.faiss).__name__} with {self.faiss.ntotal} vectors of {self.faiss.d}, the "
                f"gallery {self.plan.kind!r} with {(indexed, self.embeds.shape[1])}: build the gallery again"
            )


def check_unit(embeds: np.ndarray, name: str) -> None:
    """Raises ValueError if a row of (items, dim) does not have unit length, within the precision of float16."""
    for start in range(0, len(embeds), BLOCK):
        lengths = np.linalg.norm(np.asarray(embeds[start : start + BLOCK], np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # not a number is wrong too
        if len(wrong):
            raise ValueError(
                f"{name}: row {start + wrong[0]} has length {lengths[wrong[0]]:.4g}, not 1; divide each vector by its "
                "length, leave out those without one"
            )


def exact_search(
    embeds: "np.ndarray | SegmentVectors", queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and places of the `k` best of `embeds` (or of its `rows`) for every query, without an index.

    A block of vectors at a time, so that they may lie on disk.
    """
    total = len(embeds) if rows is None else len(rows)
    best = no_candidates(len(queries))
    for start in range(0, total, BLOCK):
        block = embeds[start : start + BLOCK] if rows is None else embeds[rows[start : start + BLOCK]]
        best = merge_best(best, queries @ block.T, start, k)
    return best
