"""Metrics against sklearn and loops; thresholds against all that there could be."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from hf_vse.link.metrics import adjusted_rand_index, cluster_metrics, linkage_metrics, resampled_metrics
from hf_vse.link.threshold import threshold_for_f1, threshold_for_false_accepts


@pytest.mark.parametrize("seed", range(5))
def test_cluster_metrics_are_those_of_sklearn_and_of_loops(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(6, size=30)
    found = np.where(rng.random(30) < 0.7, truth, rng.integers(9, size=30))
    metrics = cluster_metrics(found, truth)
    together = [(found[i] == found[j], truth[i] == truth[j]) for i, j in combinations(range(30), 2)]
    both, made, true = (sum(map(each, together)) for each in (all, lambda t: t[0], lambda t: t[1]))
    assert metrics["precision"] == pytest.approx(both / made)
    assert metrics["recall"] == pytest.approx(both / true)
    assert metrics["f1"] == pytest.approx(2 / (made / both + true / both))
    assert metrics["ari"] == pytest.approx(adjusted_rand_score(truth, found))


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_equal_clusterings_agree_whatever_they_are(labels):
    assert adjusted_rand_index(np.array(labels), np.array(labels)) == adjusted_rand_score(labels, labels) == 1


@pytest.mark.parametrize("seed", range(5))
def test_linkage_metrics_are_those_of_loops(seed):
    rng = np.random.default_rng(seed)
    truth = {record: set(rng.integers(12, size=rng.integers(3)).tolist()) for record in range(20)}
    found = {record: [None, *range(12)][rng.integers(13)] for record in truth}
    found |= {record: min(matches) for record, matches in truth.items() if matches and rng.random() < 0.5}
    metrics = linkage_metrics(found | {99: 5}, truth)  # a record of which nothing is known does not count
    right = made = pairs = agreed = 0
    for record, matches in truth.items():
        pairs += len(matches)
        if found[record] is None:
            agreed += not matches
        else:
            made += 1
            right += found[record] in matches
            agreed += found[record] in matches
    assert metrics["accuracy"] == pytest.approx(agreed / 20)
    assert metrics["precision"] == pytest.approx(right / made) and metrics["recall"] == pytest.approx(right / pairs)
    assert metrics["f1"] == pytest.approx(2 * right / (made + pairs))
    named = {f"b{b}" for b in found.values() if b is not None} | {f"b{b}" for each in truth.values() for b in each}
    everybody = [*(f"a{record}" for record in truth), *sorted(named)]

    def clusters(pairs):
        """By growing sets until none changes."""
        groups = {name: {name} for name in everybody}
        for _ in everybody:
            for a, b in pairs:
                groups[a] = groups[b] = groups[a] | groups[b]
            for group in list(groups.values()):
                for name in group:
                    groups[name] = groups[name] | group
        return [min(groups[name]) for name in everybody]

    made = clusters([(f"a{a}", f"b{b}") for a, b in found.items() if b is not None])
    true = clusters([(f"a{a}", f"b{b}") for a, matches in truth.items() for b in matches])
    assert metrics["ari"] == pytest.approx(adjusted_rand_score(true, made))


def test_nothing_linked_and_nothing_to_link_give_numbers():
    nothing = linkage_metrics({0: None, 1: None}, {0: {3}, 1: set()})
    assert nothing["accuracy"] == 0.5 and nothing["precision"] == nothing["recall"] == nothing["f1"] == 0
    assert linkage_metrics({0: None}, {0: set()})["accuracy"] == 1


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_has_the_highest_f1_of_all(seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(40), 1 + seed % 2)  # many are equal
    right = rng.random(40) < scores
    true_pairs = int(right.sum()) + 5

    def f1(threshold):
        kept = scores >= threshold
        return 2 * (kept & right).sum() / (kept.sum() + true_pairs)

    chosen = threshold_for_f1(scores, right, true_pairs)
    assert f1(chosen) == pytest.approx(max(f1(each) for each in scores))
    assert f1(chosen) > f1(scores.max() + 1)


def test_the_threshold_lies_between_what_it_keeps_and_what_it_refuses():
    scores, right = np.array([0.2, 0.9, 0.8, 0.4]), np.array([False, True, True, False])
    assert threshold_for_f1(scores, right, 2) == pytest.approx(0.6)
    assert threshold_for_f1(scores[1:3], right[1:3], 2) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="none of the known pairs"):
        threshold_for_f1(scores, np.zeros(4, bool), 2)


def test_the_false_accept_rate_is_kept_where_the_assumption_holds():
    """Records with one match; then strangers are asked, and the stated share of them is linked."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    catalogue, strangers = vectors[:1000], vectors[1000:]
    scores = np.sort(catalogue @ catalogue.T, axis=1)  # each record's match is itself
    threshold = threshold_for_false_accepts(np.append(scores[:, -2], -np.inf), 0.05)
    assert (strangers @ catalogue.T).max(axis=1).__ge__(threshold).mean() == pytest.approx(0.05, abs=0.015)
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="false_accept_rate must lie between 0 and 1"):
            threshold_for_false_accepts(scores[:, -2], wrong)
    with pytest.raises(ValueError, match="no record has two candidates"):
        threshold_for_false_accepts(np.array([-np.inf]), 0.05)


def one_to_one_links(seed: int):
    """100 records of 80 entities, of which some are linked right, some wrong and some not."""
    rng = np.random.default_rng(seed)
    truth = {record: {record} if record < 60 else set() for record in range(100)}
    found = {record: record if rng.random() < 0.7 else None for record in range(70)}
    found |= {record: int(1000 + record) if rng.random() < 0.3 else None for record in range(100) if record >= 60}
    return found, truth, {record: f"e{record % 80}" for record in truth}


def test_entities_are_drawn_with_all_their_records():
    found, truth, entities = one_to_one_links(0)
    drawn = np.random.default_rng(3).integers(80, size=(20, 80))
    metrics = resampled_metrics(found, truth, entities, resamples=20, seed=3)
    for draw, of_draw in zip(drawn, metrics, strict=True):
        rows = [record for place in draw for record in truth if entities[record] == f"e{place}"]
        right = sum(found[row] in truth[row] for row in rows)
        made, pairs = sum(found[row] is not None for row in rows), sum(len(truth[row]) for row in rows)
        agreed = sum(found[row] in truth[row] or (found[row] is None and not truth[row]) for row in rows)
        assert of_draw["f1"] == pytest.approx(2 * right / (made + pairs))
        assert of_draw["accuracy"] == pytest.approx(agreed / len(rows))
    assert len({each["ari"] for each in metrics}) > 10


def test_each_entity_drawn_once_gives_the_metrics_themselves(monkeypatch):
    found, truth, entities = one_to_one_links(1)

    class Once:
        def integers(self, count, size):
            return np.arange(count)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Once())
    assert resampled_metrics(found, truth, entities, resamples=1) == [linkage_metrics(found, truth)]


def test_the_interval_is_as_wide_as_other_samples_spread():
    """Shares of accuracy of independent samples of 80 entities have the spread that the bootstrap of one tells."""
    found, truth, entities = one_to_one_links(2)
    values = [each["accuracy"] for each in resampled_metrics(found, truth, entities, resamples=400)]
    others = []
    for seed in range(400):
        linked, of_others, _ = one_to_one_links(seed)
        others.append(linkage_metrics(linked, of_others)["accuracy"])
    assert np.std(values) == pytest.approx(np.std(others), rel=0.35)
    assert np.mean(values) == pytest.approx(linkage_metrics(found, truth)["accuracy"], abs=0.02)
