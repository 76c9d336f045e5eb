"""Groups of images with near captions against a full sort of all similarities."""

import numpy as np
import pytest

from hf_vse.data import neighbours
from hf_vse.data.neighbours import grouped, near_rows, vectors_of_images
from hf_vse.data.pairs import PairDataset
from hf_vse.data.sampler import PairBatchSampler
from tests.conftest import make_feature_pairs


def clouds(rows: int, dim: int = 6, centres: int = 9) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(size=(centres, dim))[rng.integers(centres, size=rows)] + 0.3 * rng.normal(size=(rows, dim))


def ranks_of(vectors: np.ndarray) -> np.ndarray:
    """(rows, rows): the rank of each row among the others of each, 1 for the nearest; by loops and full sorts."""
    ranks = np.zeros((len(vectors), len(vectors)), dtype=int)
    for i, own in enumerate(vectors):
        others = [j for j in range(len(vectors)) if j != i]
        cosine = {j: own @ vectors[j] / (np.linalg.norm(own) * np.linalg.norm(vectors[j])) for j in others}
        for rank, j in enumerate(sorted(others, key=lambda j: -cosine[j]), start=1):
            ranks[i, j] = rank
    return ranks


@pytest.mark.parametrize(("first", "last"), [(1, 5), (4, 12), (3, 200)])
def test_near_rows_are_those_of_a_full_sort(first, last, monkeypatch):
    monkeypatch.setattr(neighbours, "AT_ONCE", 7)  # and a ragged last part
    vectors = clouds(40)
    ranks = ranks_of(vectors)
    for row, found in enumerate(near_rows(vectors, first, last)):
        assert ranks[row, found].tolist() == list(range(first, min(last, 39) + 1))


def test_every_row_is_in_one_group_of_near_rows():
    vectors = clouds(90)
    ranks = ranks_of(vectors)
    groups = grouped(near_rows(vectors, 3, 30), 4, np.random.default_rng(0))
    sizes = np.bincount(groups)
    assert groups.shape == (90,) and sizes.min() >= 1 and sizes.max() == 4 and (sizes == 4).mean() > 0.7
    for group in range(len(sizes)):
        members = np.flatnonzero(groups == group)
        others = [[ranks[row, each] for each in members if each != row] for row in members]
        assert any(all(3 <= rank <= 30 for rank in found) for found in others)  # of the one that began it
    again = grouped(near_rows(vectors, 3, 30), 4, np.random.default_rng(1))
    assert not np.array_equal(groups[:, None] == groups, again[:, None] == again)  # other groups in another epoch


def test_vector_of_an_image_is_the_mean_direction_of_its_captions():
    features = [np.array([[3.0, 0.0], [0.0, 0.1]]), np.array([[2.0, 0.0]])]
    np.testing.assert_allclose(vectors_of_images(features, 2), [[0.5, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_consist_of_groups_and_every_caption_comes_once(processes):
    pairs, vectors = PairDataset(make_feature_pairs(60)), clouds(60)
    near = near_rows(vectors, 3, 20)
    sampler = PairBatchSampler(pairs, 12 // processes, processes, seed=1, near=near, group_size=4)
    groups = grouped(near, 4, np.random.default_rng((1, 0)))
    batches = list(sampler)
    whole = [sum(batches[at : at + processes], []) for at in range(0, len(batches), processes)]
    seen = sorted((row, caption) for batch in whole for row, caption, _ in batch)
    assert seen == [(row, caption) for row in range(60) for caption in range(5)]
    together = 0
    for batch in whole:
        rows = [row for row, _, _ in batch]
        assert len(set(rows)) == len(rows) == 12
        changes = sum(groups[one] != groups[other] for one, other in zip(rows, rows[1:], strict=False))
        assert changes == len(set(groups[rows].tolist())) - 1  # a group comes in one piece
        together += changes + 1
    sizes = np.bincount(groups)
    assert together <= 5 * len(sizes) + len(whole) - 1  # and is cut at the ends of batches alone
    orders = {tuple(row for row, _, _ in batch) for batch in whole}
    pairs.set_epoch(1)
    assert orders.isdisjoint(tuple(row for row, _, _ in batch) for batch in sampler)


def test_without_groups_the_order_is_that_of_before():
    pairs = PairDataset(make_feature_pairs(10))
    assert list(PairBatchSampler(pairs, 4)) == list(PairBatchSampler(pairs, 4, near=None, group_size=3))
