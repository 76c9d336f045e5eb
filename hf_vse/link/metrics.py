"""How right links and clusters are."""

from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from hf_vse.link.matching import components


def linkage_metrics(found: Mapping[int, int | None], truth: Mapping[int, AbstractSet[int]]) -> dict[str, float]:
    """Links of records whose matches are all known.

    Args:
        found: record -> the record that it is linked to, or None.
        truth: record -> its matches in the other catalogue; empty where it has none. Only these records count.

    Returns:
        accuracy: share of the records that are linked to a match, or to none where they have none.
        precision: share of the links that are right; 0 without a link.
        recall: right links among all true pairs; 0 without a pair.
        f1: their harmonic mean.
        ari: adjusted Rand index of the clusters that links and true pairs make of these records and of those of the
            other catalogue that either of them names.
    """
    return metrics_of_counts(linkage_counts(found, truth))


def linkage_counts(found: Mapping[int, int | None], truth: Mapping[int, AbstractSet[int]]) -> tuple[int, ...]:
    """Records, those decided rightly, right links, links, true pairs; and of the clusters: the pairs that are together
    in both, in those of links, in the true ones, and how many records of both catalogues there are."""
    right = sum(found[each] in truth[each] for each in truth)
    made = sum(found[each] is not None for each in truth)
    agreed = right + sum(found[each] is None and not matches for each, matches in truth.items())
    links = [(each, link) for each in truth if (link := found[each]) is not None]
    true_pairs = [(each, match) for each, matches in truth.items() for match in matches]
    clusters = partitions(list(truth), links, true_pairs)
    return len(truth), agreed, right, made, len(true_pairs), *pair_counts(*clusters)[:3], len(clusters[0])


def metrics_of_counts(counts: Sequence[int]) -> dict[str, float]:
    records, agreed, right, made, pairs, both, in_found, in_truth, named = counts
    ari = rand_index(both, in_found, in_truth, named * (named - 1) // 2)
    return {"accuracy": agreed / max(1, records)} | precision_recall(right, made, pairs) | {"ari": ari}


def resampled_metrics(
    found: Mapping[int, int | None],
    truth: Mapping[int, AbstractSet[int]],
    entities: Mapping[int, Hashable],
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, float]]:
    """What `linkage_metrics` would be on other entities: the bootstrap, for percentile intervals (Efron & Tibshirani,
    An Introduction to the Bootstrap, 1993, chapter 13).

    As many entities as there are, are drawn with replacement, each with all of its records and what they are linked
    to. One that is drawn twice counts as two, so links must be one-to-one. With the same truth, entities and seed, the
    same entities are drawn: differences of two ways to link are paired.

    Args:
        found, truth: see `linkage_metrics`.
        entities: record -> what it shows, for each record of `truth`.
    """
    of_entity: dict[Hashable, list[int]] = {}
    for record in truth:
        of_entity.setdefault(entities[record], []).append(record)
    counts = np.array(
        [linkage_counts(found, {record: truth[record] for record in records}) for records in of_entity.values()]
    )
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(counts), size=len(counts)) for _ in range(resamples))
    return [metrics_of_counts(counts[places].sum(axis=0).tolist()) for places in drawn]


def partitions(
    records: Sequence[int], links: Sequence[tuple[int, int]], true_pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The clusters of links and those of true pairs, of the same records of both catalogues."""
    named = dict.fromkeys(other for _, other in [*links, *true_pairs])
    others = {other: len(records) + place for place, other in enumerate(named)}
    own = {record: place for place, record in enumerate(records)}

    def labels(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        edges = np.array([(own[a], others[b]) for a, b in pairs], np.int64).reshape(-1, 2)
        return components(len(own) + len(others), edges[:, 0], edges[:, 1])

    return labels(links), labels(true_pairs)


def cluster_metrics(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Clusters of one catalogue: precision, recall and F1 of the pairs in one cluster, and the adjusted Rand index.

    Args:
        found, truth: (records,) the cluster of each record.
    """
    both, in_found, in_truth, _ = pair_counts(found, truth)
    return precision_recall(both, in_found, in_truth) | {"ari": adjusted_rand_index(found, truth)}


def precision_recall(right: int, made: int, true: int) -> dict[str, float]:
    precision, recall = right / max(1, made), right / max(1, true)
    f1 = 2 * right / max(1, made + true)
    return {"precision": precision, "recall": recall, "f1": f1}


def adjusted_rand_index(found: np.ndarray, truth: np.ndarray) -> float:
    """Agreement of two clusterings: 1 where they are equal, 0 on average by chance (Hubert & Arabie, 1985)."""
    return rand_index(*pair_counts(found, truth))


def rand_index(both: int, in_found: int, in_truth: int, all_pairs: int) -> float:
    """The same from the counts of pairs, see `pair_counts`."""
    if in_found == in_truth == both:
        return 1.0
    expected = in_found * in_truth / all_pairs
    return (both - expected) / ((in_found + in_truth) / 2 - expected)


def pair_counts(found: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, int]:
    """Pairs of records that are together in both clusterings, in each, and all pairs."""

    def pairs(*labels: np.ndarray) -> int:
        sizes = np.unique(np.stack(labels, axis=1), axis=0, return_counts=True)[1].astype(np.int64)
        return int((sizes * (sizes - 1) // 2).sum())

    return pairs(found, truth), pairs(found), pairs(truth), len(found) * (len(found) - 1) // 2
