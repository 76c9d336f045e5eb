"""The baseline of record linkage: how alike the texts are as strings, by rapidfuzz (extra `link`)."""

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from hf_vse.embed.matrices import best_of
from hf_vse.link.candidates import NOBODY, BestCandidates

AT_ONCE = 256  # records compared with all others


def check_strings_installed() -> None:
    """Raises ImportError with the extra to install where rapidfuzz is missing."""
    try:
        import rapidfuzz  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "comparing strings needs rapidfuzz: pip install 'hf_vse[link]', or leave --strings out"
        ) from error


def string_candidates(
    queries: Sequence[str],
    others: Sequence[str],
    k: int,
    *,
    same: bool = False,
    blocks: tuple[np.ndarray, np.ndarray] | None = None,
    progress: bool = False,
) -> BestCandidates:
    """The `k` best by the normalised edit similarity of the sorted words, from 0 to 1; all pairs are compared.

    Args:
        queries, others: the texts of the records; an empty one is like no other.
        same, blocks: see `find_candidates`.
    """
    from rapidfuzz import fuzz, process, utils

    prepared = [utils.default_process(text) for text in others]
    empty = np.array([not text for text in prepared])
    parts = []
    for start in tqdm(range(0, len(queries), AT_ONCE), "comparing strings", disable=not progress, leave=False):
        asked = [utils.default_process(text) for text in queries[start : start + AT_ONCE]]
        scores = process.cdist(asked, prepared, scorer=fuzz.token_sort_ratio, dtype=np.float32) / 100
        scores[:, empty] = -np.inf
        scores[[not text for text in asked]] = -np.inf
        if same:
            scores[np.arange(len(asked)), np.arange(start, start + len(asked))] = -np.inf
        if blocks is not None:
            own = blocks[0][start : start + len(asked)][:, None]
            scores[(own != blocks[1]) | (own < 0)] = -np.inf
        rows = np.broadcast_to(np.arange(len(others)), scores.shape)
        parts.append(best_of(scores, rows, k))
    scores, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    lacking = ((0, 0), (0, max(0, k - scores.shape[1])))
    scores, rows = np.pad(scores, lacking, constant_values=-np.inf), np.pad(rows, lacking)
    return BestCandidates(scores, np.where(np.isinf(scores), NOBODY, rows))
