"""Candidates and links equal what loops over all pairs make."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import DBSCAN

from hf_vse.link import candidates as module
from hf_vse.link.candidates import block_numbers, find_candidates
from hf_vse.link.matching import (
    acceptable_candidates,
    best_links,
    clusters,
    components,
    one_to_one,
    optimal_assignment,
)


def unit(rng, count, dim=6):
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sorted_pairs(scores, threshold):
    """All pairs from the best score on, of equal ones the lower rows first."""
    left, right = np.nonzero(scores >= threshold)
    return sorted(zip(-scores[left, right], left, right, strict=True))


def greedy(scores, threshold):
    links = np.full(len(scores), -1)
    taken = set()
    for _, left, right in sorted_pairs(scores, threshold):
        if links[left] < 0 and right not in taken:
            links[left] = right
            taken.add(right)
    return links


@pytest.fixture(params=["tiles", "faiss"])
def small_tiles(request, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 7)
    monkeypatch.setattr(module, "EMBEDS", 5)
    if request.param == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(module, "LARGE", 0)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_candidates_are_the_best_of_all(small_tiles, same, k):
    rng = np.random.default_rng(k)
    embeds = unit(rng, 23)
    queries = embeds if same else unit(rng, 17)
    scores = queries @ embeds.T
    if same:
        np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, 23 - same)]
    found = find_candidates(queries, embeds, k, same=same)
    assert found.rows.shape == (len(queries), k) and (found.rows[:, order.shape[1] :] == -1).all()
    np.testing.assert_array_equal(found.rows[:, : order.shape[1]], order)
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_allclose(found.scores[:, : order.shape[1]], expected, atol=1e-6)


@pytest.mark.parametrize("same", [False, True])
def test_blocks_compare_equal_values_only(small_tiles, same):
    rng = np.random.default_rng(5)
    embeds = unit(rng, 30)
    queries = embeds if same else unit(rng, 20)
    values = [[None, "a", 3, "3", "never"][number] for number in rng.integers(5, size=30)]
    asked = values if same else [[None, "a", 3, "other"][number] for number in rng.integers(4, size=20)]
    scores = queries @ embeds.T
    for row, one in enumerate(asked):
        for place, other in enumerate(values):
            if one is None or other is None or str(one) != str(other) or (same and row == place):
                scores[row, place] = -np.inf
    found = find_candidates(queries, embeds, 4, same=same, blocks=block_numbers(asked, values))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    best = np.take_along_axis(scores, order, axis=1)
    assert np.isinf(best).any() and np.isfinite(best).any()
    np.testing.assert_array_equal(found.rows, np.where(np.isinf(best), -1, order))


def test_a_record_among_equal_ones_is_not_its_own_candidate():
    embeds = np.repeat(unit(np.random.default_rng(0), 1), 9, axis=0)
    found = find_candidates(embeds, embeds, 2, same=True)
    assert (found.rows != np.arange(9)[:, None]).all() and (found.rows >= 0).all()


def test_an_approximate_index_finds_the_best():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    embeds = unit(rng, 400)
    near = embeds[:50] + 0.01 * unit(rng, 50)
    found = find_candidates(near / np.linalg.norm(near, axis=1, keepdims=True), embeds, 2, kind="ivf")
    assert (found.rows[:, 0] == np.arange(50)).mean() > 0.9


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.8])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_one_to_one_from_short_lists_is_greedy_over_all_pairs(small_tiles, k, threshold, blocked):
    rng = np.random.default_rng(k)
    queries, embeds = unit(rng, 31, 3), unit(rng, 26, 3)
    blocks = (rng.integers(-1, 3, 31), rng.integers(-1, 3, 26)) if blocked else None
    scores = queries @ embeds.T
    if blocked:
        scores[(blocks[0][:, None] != blocks[1]) | (blocks[0][:, None] < 0)] = -np.inf
    found = find_candidates(queries, embeds, k, blocks=blocks)
    more = acceptable_candidates(queries, embeds, k, threshold, blocks)
    links = one_to_one(found, 26, threshold, more)
    np.testing.assert_array_equal(links, greedy(scores, threshold))
    if k == 1 and threshold < 0.5 and not blocked:
        assert (one_to_one(found, 26, threshold) != links).any()  # short lists alone do not suffice


def test_one_to_one_takes_the_lower_rows_of_equal_scores():
    scores = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.9]], np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    found = module.BestCandidates(np.take_along_axis(scores, order, axis=1), order)
    np.testing.assert_array_equal(one_to_one(found, 2, 0.1), [0, -1, 1])
    np.testing.assert_array_equal(one_to_one(found, 2, 0.1), greedy(scores, 0.1))


def test_the_optimal_assignment_has_the_highest_sum_and_can_beat_greedy():
    scores = np.array([[0.9, 0.8], [0.85, 0.1]], np.float32)
    found = find_candidates(scores, np.eye(2, dtype=np.float32), 2)
    np.testing.assert_array_equal(optimal_assignment(found, 2, 0.2), [1, 0])
    np.testing.assert_array_equal(one_to_one(found, 2, 0.2), [0, -1])
    rng = np.random.default_rng(1)
    queries, embeds = unit(rng, 12), unit(rng, 9)
    links = optimal_assignment(find_candidates(queries, embeds, 9), 9, 0.3)
    gain = np.maximum(queries @ embeds.T - 0.3, 0)
    linked = np.flatnonzero(links >= 0)
    assert gain[linked, links[linked]].sum() == pytest.approx(gain[linear_sum_assignment(-gain)].sum(), abs=1e-5)
    with pytest.raises(ValueError, match="at most 5,000 records.*use greedy"):
        optimal_assignment(found, 5001, 0.3)


def test_below_the_threshold_there_is_no_link():
    found = module.BestCandidates(np.float32([[0.9, 0.1], [0.4, 0.3]]), np.array([[3, 1], [2, 0]]))
    np.testing.assert_array_equal(best_links(found, 0.4), [3, 2])
    np.testing.assert_array_equal(best_links(found, 0.5), [3, -1])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("distance", [0.05, 0.2])
def test_clusters_are_those_of_dbscan(small_tiles, k, distance):
    """Single linkage, as DBSCAN of min_samples 1 in CLIPPINGS; lists are shorter than clusters are large."""
    rng = np.random.default_rng(3)
    centres = unit(rng, 6)
    embeds = centres[rng.integers(6, size=60)] + 0.15 * rng.standard_normal((60, 6)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    expected = DBSCAN(eps=distance, min_samples=1, metric="cosine").fit_predict(embeds)
    found = clusters(find_candidates(embeds, embeds, k, same=True), embeds, 1 - distance)
    assert len(set(expected)) < 60 and np.bincount(expected).max() > 4
    np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)
    np.testing.assert_array_equal(found[found], found)


def test_clusters_do_not_cross_blocks():
    embeds = np.repeat(unit(np.random.default_rng(0), 1), 6, axis=0)
    blocks = np.array([0, 0, 1, 1, -1, -1])
    found = find_candidates(embeds, embeds, 1, same=True, blocks=(blocks, blocks))
    np.testing.assert_array_equal(clusters(found, embeds, 0.9, blocks), [0, 0, 2, 2, 4, 5])


def test_components_go_on_from_earlier_ones():
    rng = np.random.default_rng(2)
    left, right = rng.integers(50, size=(2, 40))
    whole = components(50, left, right)
    in_parts = components(50, left[20:], right[20:], components(50, left[:20], right[:20]))
    np.testing.assert_array_equal(whole, in_parts)
    assert 1 < len(set(whole)) < 50
