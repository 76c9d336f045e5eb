from collections import Counter

import numpy as np
import pytest

from hf_vse.data.pairs import PairDataset
from hf_vse.data.sampler import PairBatchSampler, spread_order, unique_batches
from tests.conftest import make_feature_pairs


def epoch(sampler):
    return [[tuple(pair) for pair in batch] for batch in sampler]


@pytest.fixture
def pairs():
    return PairDataset(make_feature_pairs(23))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_no_image_occurs_twice_in_a_global_batch_and_every_caption_comes_once(pairs, processes, seed):
    sampler = PairBatchSampler(pairs, batch_size=4, num_processes=processes, seed=seed)
    batches = epoch(sampler)
    assert len(batches) == len(sampler)
    for first in range(0, len(batches), processes):
        rows = [row for batch in batches[first : first + processes] for row, _, _ in batch]
        assert len(rows) == len(set(rows))
    seen = Counter((row, caption) for batch in batches for row, caption, _ in batch)
    assert set(seen.values()) == {1}
    left_over = len(pairs) - len(seen)
    assert left_over == len(pairs) % (4 * processes) if sampler.remainder == 0 else left_over == 0


def test_plain_order_does_repeat_images(pairs):
    batches = epoch(PairBatchSampler(pairs, batch_size=16, unique_images=False))
    assert any(len({row for row, _, _ in batch}) < len(batch) for batch in batches)
    assert sum(map(len, batches)) == len(pairs)


def test_order_follows_from_seed_and_epoch(pairs):
    sampler = PairBatchSampler(pairs, batch_size=8, seed=1)
    first = epoch(sampler)
    assert epoch(sampler) == first
    pairs.set_epoch(1)
    assert epoch(sampler) != first
    assert epoch(PairBatchSampler(pairs, batch_size=8, seed=2)) != epoch(PairBatchSampler(pairs, batch_size=8, seed=1))


def test_two_processes_share_the_batches_of_one(pairs):
    one = epoch(PairBatchSampler(pairs, batch_size=8))
    two = epoch(PairBatchSampler(pairs, batch_size=4, num_processes=2))
    assert [a + b for a, b in zip(two[::2], two[1::2], strict=True)] == one[: len(two) // 2]
    assert len(two) // 2 == 14 and len(one[-1]) == 3  # three pairs are too few for two processes


def test_last_batch_is_kept_or_dropped(pairs):
    kept = PairBatchSampler(pairs, batch_size=8)
    dropped = PairBatchSampler(pairs, batch_size=8, drop_last=True)
    assert len(pairs) % 8 == 3
    assert len(epoch(kept)) == len(epoch(dropped)) + 1
    assert len(epoch(kept)[-1]) == 3


def test_captions_of_an_image_are_spread_over_the_epoch():
    rows, captions = spread_order(np.array([4, 1, 2] * 50), np.random.default_rng(0))
    assert len(set(zip(rows, captions, strict=True))) == len(rows) == 350
    places = np.flatnonzero(rows == 0) / len(rows)
    assert all(quarter / 4 - 0.1 < place < (quarter + 1) / 4 + 0.1 for quarter, place in enumerate(places))


def test_what_cannot_be_unique_is_placed_all_the_same():
    batches = list(unique_batches(np.array([0, 0, 0, 0, 1]), 2))
    assert sorted(position for batch in batches for position in batch) == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in batches] == [2, 2, 1]


def test_too_large_a_batch_is_an_error_with_the_remedy(pairs):
    with pytest.raises(ValueError, match="needs 48 different images.*has 23; lower .* to at most 11"):
        PairBatchSampler(pairs, batch_size=24, num_processes=2)


def test_empty_split_and_missing_columns_are_errors():
    with pytest.raises(ValueError, match="the split is empty"):
        PairDataset(make_feature_pairs(3).select([]))
    with pytest.raises(ValueError, match=r"columns \['captions'\] are missing"):
        PairDataset(make_feature_pairs(3).remove_columns("captions"))


def order_by_rows(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`spread_order`, with a draw for every image, also of one caption."""
    rows = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([rng.permutation(count) for count in counts])
    captions = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((place + rng.random(len(rows))) / counts[rows], kind="stable")
    return rows[order], captions[order]


def test_images_of_one_caption_need_no_draw():
    for seed in range(40):
        counts = np.random.default_rng(seed).integers(1, 2 + seed % 5, size=30)
        found = spread_order(counts, np.random.default_rng(seed))
        for one, other in zip(found, order_by_rows(counts, np.random.default_rng(seed)), strict=True):
            np.testing.assert_array_equal(one, other)
