"""From the records of two catalogues, or of one, to links, with the threshold and how good it is.

    asked = read_records("shop_a"), read_records("shop_b")
    first, second = (embed_records(each, encoder, image_weight=0.5) for each in asked)
    linkage = link_records(first, second)
    linkage.links  # for every record of the first catalogue the row in the second, or -1

With known pairs, half of the records that they name choose the threshold and the other half judge it.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hf_vse.link.candidates import NOBODY, BestCandidates, block_numbers, find_candidates
from hf_vse.link.labels import FEW, Pairs, halves, true_clusters, truth_of
from hf_vse.link.matching import (
    acceptable_candidates,
    best_links,
    clusters,
    components,
    one_to_one,
    optimal_assignment,
)
from hf_vse.link.metrics import cluster_metrics, linkage_metrics
from hf_vse.link.records import Records
from hf_vse.link.strings import string_candidates
from hf_vse.link.threshold import FALSE_ACCEPT_RATE, threshold_for_f1, threshold_for_false_accepts

Mode = Literal["one_to_one", "one_to_many", "clusters"]
Assignment = Literal["greedy", "optimal"]
Blocks = tuple[np.ndarray, np.ndarray] | None

LISTED = 10  # candidates of each record
STEPS = 200  # thresholds that are tried for clusters
LOWEST = -2.0  # below every cosine


@dataclass
class Linkage:
    """Links and how they were made.

    Args:
        mode: see `link_records`.
        asking, others: every record of `asking` has a row below; `others` are what it may be linked to.
        threshold: of a link.
        chosen: how the threshold was chosen, in words.
        links: (asking,) the linked row of `others`, or -1. For clusters: the best neighbour above the threshold.
        scores: (asking,) of the link; -inf without one.
        runners_up: (asking,) the best candidate that is not linked, or -1.
        runner_up_scores: (asking,), -inf without one.
        clusters: (asking,) the first record of the cluster of each; only for clusters.
        judged: how good `vectors`, and `strings` where they were asked for, link the records that judge.
        judged_on: these, in words.
    """

    mode: Mode
    asking: Records
    others: Records
    threshold: float
    chosen: str
    links: np.ndarray
    scores: np.ndarray
    runners_up: np.ndarray
    runner_up_scores: np.ndarray
    clusters: np.ndarray | None = None
    judged: dict[str, dict[str, float]] = field(default_factory=dict)
    judged_on: str = ""


@dataclass(frozen=True)
class Wanted:
    """What decides the links, beside the candidates; see `link_records`."""

    mode: Mode
    threshold: float | None
    false_accept_rate: float | None
    assignment: Assignment
    pairs: Pairs


def link_records(
    first: Records,
    second: Records | None = None,
    *,
    mode: Mode = "one_to_one",
    threshold: float | None = None,
    false_accept_rate: float | None = None,
    pairs: Pairs = (),
    block: str | None = None,
    assignment: Assignment = "greedy",
    strings: bool = False,
    kind: str = "exact",
    progress: bool = False,
) -> Linkage:
    """Links two catalogues, or finds the duplicates of one.

    Args:
        first, second: see `embed_records`; without a second one `mode` is `clusters`.
        mode: `one_to_one`: every record has at most one link, and those of `first` ask. `one_to_many`: a record of
            `first` may have several, one of `second` has its best; those of `second` ask. `clusters`: see `clusters`.
        threshold: default: the highest F1 on `pairs`; without them, or with a rate, by `false_accept_rate`.
        false_accept_rate: see `threshold_for_false_accepts`; default 0.01.
        pairs: known ones, see `read_labels`.
        block: field of the records: only those of equal value are compared, and those without a value with nobody.
        assignment: of one-to-one: `greedy` or `optimal`, see `matching.py`.
        strings: also link by the similarity of texts, and judge that on the same pairs.
        kind: how candidates are found, see `find_candidates`.

    Raises:
        ValueError: options that exclude each other, or nothing to choose a threshold from.
    """
    if (second is None) != (mode == "clusters"):
        raise ValueError(f"mode={mode!r} links {'one catalogue' if second else 'two catalogues'}: give another mode")
    if threshold is not None and false_accept_rate is not None:
        raise ValueError("threshold and false_accept_rate exclude each other: give one of them")
    if strings and not pairs:
        raise ValueError("strings are judged on known pairs: give labels too")
    wanted = Wanted(mode, threshold, false_accept_rate, assignment, pairs)
    asking, others = first, first if second is None else second
    if mode == "one_to_many":
        asking, others = others, first
    blocks = None if block is None else block_numbers(asking.values(block), others.values(block))
    options: dict[str, Any] = {"same": second is None, "blocks": blocks, "progress": progress}
    count = 2 if mode == "one_to_many" else LISTED
    vectors = asking.vectors_of_all, others.vectors_of_all
    candidates = find_candidates(*vectors, count, kind=kind, **options)
    threshold, chosen = chosen_threshold(candidates, len(others), wanted)
    found = decided(candidates, len(others), threshold, wanted, vectors, blocks)
    linkage = described_links(candidates, found, threshold, chosen, wanted, asking, others)
    if pairs:
        linkage.judged["vectors"] = judge_links(found, wanted)
        linkage.judged_on = judges_in_words(wanted)
    if strings:
        ours, theirs = ([" ".join(each) for each in records.texts] for records in (asking, others))
        candidates = string_candidates(ours, theirs, count, **options)
        by_f1 = Wanted(mode, None, None, assignment, pairs)
        cut, _ = chosen_threshold(candidates, len(others), by_f1)
        found = decided(candidates, len(others), cut, wanted, None, blocks)
        linkage.judged["strings"] = judge_links(found, by_f1)
    return linkage


def choosing(wanted: Wanted) -> bool:
    """Whether known pairs choose the threshold."""
    return bool(wanted.pairs) and wanted.threshold is None and wanted.false_accept_rate is None


def chosen_threshold(candidates: BestCandidates, others: int, wanted: Wanted) -> tuple[float, str]:
    """The threshold, and in words how it was chosen."""
    if wanted.threshold is not None:
        return wanted.threshold, "given"
    if not choosing(wanted):
        rate = FALSE_ACCEPT_RATE if wanted.false_accept_rate is None else wanted.false_accept_rate
        second_best = candidates.scores[:, 1]
        return threshold_for_false_accepts(second_best, rate), f"false-accept rate {rate:g}, from the runners-up"
    if wanted.mode == "clusters":
        return threshold_of_clusters(candidates, wanted)
    truth = truth_of(wanted.pairs, asking_side(wanted.mode))
    choose, _ = halves(sorted(truth))
    threshold = tuned_threshold(candidates, others, wanted.mode, {each: truth[each] for each in choose})
    return threshold, f"highest F1 on {len(choose):,} labelled records"


def tuned_threshold(
    candidates: BestCandidates, others: int, mode: Mode, truth: Mapping[int, AbstractSet[int]]
) -> float:
    """The threshold of the links of two catalogues that has the highest F1 on records whose matches are known."""
    if mode == "one_to_one":  # greedy: those above any threshold are the same as with that threshold
        links = one_to_one(candidates, others, LOWEST)
    else:
        links = best_links(candidates, LOWEST)
    linked = [each for each in truth if links[each] >= 0]
    right = np.array([links[each] in truth[each] for each in linked], bool)
    return threshold_for_f1(scores_of(candidates, links)[linked], right, sum(map(len, truth.values())))


def threshold_of_clusters(candidates: BestCandidates, wanted: Wanted) -> tuple[float, str]:
    """The one of `STEPS` thresholds whose clusters have the highest F1 of pairs."""
    named, truth = true_clusters(wanted.pairs)
    choose = np.isin(truth, halves(sorted(set(truth.tolist())))[0])
    left, place = np.nonzero(candidates.rows >= 0)
    right, scores = candidates.rows[left, place], candidates.scores[left, place].astype(np.float64)
    of_named = scores[np.isin(left, named)]
    tried = np.unique(np.quantile(of_named, np.linspace(0, 1, STEPS)))[::-1]
    labels, best = np.arange(len(candidates.rows)), (0.0, 0.0)
    above = np.inf
    for step in tried:
        new = (scores >= step) & (scores < above)
        labels, above = components(len(labels), left[new], right[new], labels), step
        best = max(best, (cluster_metrics(labels[named[choose]], truth[choose])["f1"], float(step)))
    if best[0] == 0:
        raise ValueError(
            "no known duplicates would be together at any threshold, so none can be chosen: check the names in the "
            "labels, or give --threshold NUMBER"
        )
    return best[1], f"highest F1 on {int(choose.sum()):,} labelled records"


def asking_side(mode: Mode) -> int:
    """Which of the two names in a pair asks."""
    return int(mode == "one_to_many")


def decided(
    candidates: BestCandidates,
    others: int,
    threshold: float,
    wanted: Wanted,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    blocks: Blocks,
) -> np.ndarray:
    """Links, or the clusters of one catalogue. Without vectors the lists of candidates are all there is."""
    if wanted.mode == "one_to_many":
        return best_links(candidates, threshold)
    if wanted.mode == "one_to_one":
        if wanted.assignment == "optimal":
            return optimal_assignment(candidates, others, threshold)
        more = vectors and acceptable_candidates(*vectors, candidates.rows.shape[1], threshold, blocks)
        return one_to_one(candidates, others, threshold, more)
    if vectors is not None:
        return clusters(candidates, vectors[0], threshold, None if blocks is None else blocks[0])
    left, place = np.nonzero(candidates.scores >= threshold)
    return components(others, left, candidates.rows[left, place])


def scores_of(candidates: BestCandidates, links: np.ndarray) -> np.ndarray:
    """(asking,) the score of each link that is among the candidates; -inf for others."""
    among = (candidates.rows == links[:, None]) & (links >= 0)[:, None]
    return np.where(among, candidates.scores, -np.inf).max(axis=1)


def described_links(
    candidates: BestCandidates,
    found: np.ndarray,
    threshold: float,
    chosen: str,
    wanted: Wanted,
    asking: Records,
    others: Records,
) -> Linkage:
    """Every link with its score and its runner-up."""
    links = best_links(candidates, threshold) if wanted.mode == "clusters" else found
    scores = scores_of(candidates, links)
    beyond = np.flatnonzero((links >= 0) & np.isinf(scores))  # found when the list was used up
    scores[beyond] = (asking.vectors_of_all[beyond] * others.vectors_of_all[links[beyond]]).sum(axis=1)
    linked_first = (candidates.rows[:, 0] == links) & (links >= 0)
    place = linked_first.astype(np.int64)[:, None]
    runners_up = np.take_along_axis(candidates.rows, place, axis=1)[:, 0]
    runner_up_scores = np.take_along_axis(candidates.scores, place, axis=1)[:, 0]
    of_clusters = found if wanted.mode == "clusters" else None
    return Linkage(
        wanted.mode,
        asking,
        others,
        threshold,
        chosen,
        links,
        scores,
        np.where(np.isinf(runner_up_scores), NOBODY, runners_up),
        runner_up_scores,
        of_clusters,
    )


def judge_links(found: np.ndarray, wanted: Wanted) -> dict[str, float]:
    """Metrics on the labelled records that did not choose the threshold."""
    if wanted.mode == "clusters":
        named, clusters = true_clusters(wanted.pairs)
        judging = sorted(set(clusters.tolist()))
        some = np.isin(clusters, halves(judging)[1] if choosing(wanted) else judging)
        return cluster_metrics(found[named[some]], clusters[some])
    truth = truth_of(wanted.pairs, asking_side(wanted.mode))
    judges = halves(sorted(truth))[1] if choosing(wanted) else list(truth)
    links = {each: int(found[each]) if found[each] >= 0 else None for each in judges}
    return linkage_metrics(links, {each: truth[each] for each in judges})


def judges_in_words(wanted: Wanted) -> str:
    if wanted.mode == "clusters":
        labelled, what = sorted(set(true_clusters(wanted.pairs)[1].tolist())), "labelled clusters"
    else:
        labelled, what = sorted(truth_of(wanted.pairs, asking_side(wanted.mode))), "labelled records"
    if not choosing(wanted):
        return f"{len(labelled):,} {what}"
    apart = (
        "that did not choose the threshold" if len(labelled) >= FEW else "that chose the threshold, too few to split"
    )
    return f"{len(halves(labelled)[1]):,} {what} {apart}"
