"""From candidates to links: one-to-one, the best one of each record, or clusters. Below the threshold nothing links.

One-to-one takes pairs greedily, the best score first, as if all pairs were sorted. With scores that both sides share,
that is the one stable matching (Gale & Shapley, 1962), which deferred acceptance finds from short lists of candidates:
each record proposes to its next candidate, each candidate keeps the best proposal. A record whose list is used up gets
the next candidates that would still accept it. So memory stays bounded and the result is that of all pairs.

The optimal assignment maximises the sum of what scores exceed the threshold by. It holds a matrix of all pairs, so it
is for small catalogues.
"""

from collections.abc import Callable

import numpy as np

from hf_vse.embed.matrices import merge_best, no_candidates
from hf_vse.link.candidates import NOBODY, BestCandidates, scores_of_tiles

LARGEST_ASSIGNMENT = 5000  # records of a catalogue

# Rows of the first catalogue, and for each of the second the score and the row that it holds (-inf, -1: none) -> new
# lists for these rows, of candidates that would accept them.
More = Callable[[np.ndarray, np.ndarray, np.ndarray], BestCandidates]


def best_links(candidates: BestCandidates, threshold: float) -> np.ndarray:
    """(records,) the best candidate of each record, -1 below the threshold."""
    return np.where(candidates.scores[:, 0] >= threshold, candidates.rows[:, 0], NOBODY)


def one_to_one(candidates: BestCandidates, others: int, threshold: float, more: More | None = None) -> np.ndarray:
    """Greedy one-to-one links; of equal scores the pair of the lower rows comes first.

    Args:
        candidates: lists of the first catalogue.
        others: records of the second catalogue.
        more: finds further candidates, see `acceptable_candidates`; None: the lists are all there is.

    Returns:
        (records,) the row of the second catalogue, or -1.
    """
    scores, rows = (each.copy() for each in candidates)
    place = np.zeros(len(rows), np.int64)
    holder, held = np.full(others, NOBODY), np.full(others, -np.inf, np.float32)
    free, used_up = np.arange(len(rows)), np.empty(0, np.int64)
    while len(free) or (more is not None and len(used_up)):
        through = place[free] >= rows.shape[1]
        used_up, free = np.concatenate([used_up, free[through]]), free[~through]
        free = free[(scores[free, place[free]] >= threshold) & (rows[free, place[free]] >= 0)]
        if not len(free) and more is not None and len(used_up):
            found = more(used_up, held, holder)
            scores[used_up], rows[used_up] = found
            place[used_up] = 0
            free, used_up = used_up[found.rows[:, 0] >= 0], used_up[:0]
            continue
        wanted, offered = rows[free, place[free]], scores[free, place[free]]
        place[free] += 1
        order = np.lexsort((free, -offered, wanted))
        best = order[np.unique(wanted[order], return_index=True)[1]]  # the best proposal to each
        asking, asked, score = free[best], wanted[best], offered[best]
        better = (score > held[asked]) | ((score == held[asked]) & (asking < holder[asked]))
        asking, asked, score = asking[better], asked[better], score[better]
        left = holder[asked]
        holder[asked], held[asked] = asking, score
        free = np.concatenate([np.setdiff1d(free, asking, assume_unique=True), left[left >= 0]])
    links = np.full(len(rows), NOBODY)
    taken = np.flatnonzero(holder >= 0)
    links[holder[taken]] = taken
    return links


def acceptable_candidates(
    queries: np.ndarray,
    embeds: np.ndarray,
    k: int,
    threshold: float,
    blocks: tuple[np.ndarray, np.ndarray] | None = None,
) -> More:
    """What `one_to_one` asks for more candidates: an exact search in tiles."""

    def more(asking: np.ndarray, held: np.ndarray, holder: np.ndarray) -> BestCandidates:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for rows, start, scores in scores_of_tiles(queries, embeds, asking, blocks):
            if start == 0:
                parts.append(no_candidates(len(rows)))
            of_tile = slice(start, start + scores.shape[1])
            loses = (scores == held[of_tile]) & (rows[:, None] >= holder[of_tile])
            scores[(scores < held[of_tile]) | loses | (scores < threshold)] = -np.inf
            parts[-1] = merge_best(parts[-1], scores, start, k)
        scores, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
        lacking = ((0, 0), (0, k - scores.shape[1]))
        scores, rows = np.pad(scores, lacking, constant_values=-np.inf), np.pad(rows, lacking)
        return BestCandidates(scores, np.where(np.isinf(scores), NOBODY, rows))

    return more


def optimal_assignment(candidates: BestCandidates, others: int, threshold: float) -> np.ndarray:
    """One-to-one links that maximise the sum of (score - threshold), as `one_to_one` returns them.

    Pairs outside of the lists of candidates do not link.

    Raises:
        ValueError: a catalogue is too large.
        ImportError: scipy is missing.
    """
    if max(len(candidates.rows), others) > LARGEST_ASSIGNMENT:
        raise ValueError(
            f"assignment='optimal' takes catalogues of at most {LARGEST_ASSIGNMENT:,} records, got "
            f"{len(candidates.rows):,} and {others:,}: use greedy"
        )
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("assignment='optimal' needs scipy: pip install 'hf_vse[link]', or use greedy") from error
    gain = np.zeros((len(candidates.rows), others))
    left, place = np.nonzero(candidates.scores >= threshold)
    tiny = 1e-9  # a pair at the threshold is better than none
    gain[left, candidates.rows[left, place]] = candidates.scores[left, place] - threshold + tiny
    links = np.full(len(gain), NOBODY)
    chosen, taken = linear_sum_assignment(gain, maximize=True)
    some = gain[chosen, taken] > 0
    links[chosen[some]] = taken[some]
    return links


def clusters(
    candidates: BestCandidates,
    embeds: np.ndarray,
    threshold: float,
    blocks: np.ndarray | None = None,
) -> np.ndarray:
    """Connected components of the pairs of one catalogue that score at least the threshold (single linkage).

    Records all of whose candidates do are compared with all others, so that short lists cut no cluster.

    Returns:
        (records,) the lowest row of the cluster of each record.
    """
    left, place = np.nonzero(candidates.scores >= threshold)
    labels = components(len(embeds), left, candidates.rows[left, place])
    full = np.flatnonzero(candidates.scores[:, -1] >= threshold)
    for rows, start, scores in scores_of_tiles(embeds, embeds, full, None if blocks is None else (blocks, blocks)):
        left, right = np.nonzero(scores >= threshold)
        labels = components(len(embeds), rows[left], start + right, labels)
    return labels


def components(count: int, left: np.ndarray, right: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Connected components of a graph: (count,) the lowest row of each row's component.

    Args:
        left, right: (edges,) rows that are joined.
        labels: what an earlier call returned, to go on from.
    """
    labels = np.arange(count) if labels is None else labels.copy()
    while True:
        one, other = labels[left], labels[right]
        apart = one != other
        if not apart.any():
            return labels
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while (labels[labels] != labels).any():
            labels = labels[labels]
