"""Several captions of an image in one batch, from the sampler to the tensors."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import List, Value

from hf_vse.data.collator import VSECollator
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.data.sampler import PairBatchSampler, report_repeats
from hf_vse.data.schema import text_id
from hf_vse.data.streams import StreamedPairs
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_captions, make_feature_pairs, make_pairs


def of_counts(counts: list[int]) -> PairDataset:
    pairs = PairDataset(make_feature_pairs(len(counts)))
    pairs.captions = [make_captions(row, count) for row, count in enumerate(counts)]
    return pairs


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("captions", "counts"), [(5, [5] * 23), (2, [4, 6, 2] * 8), (3, [1, 2, 5, 7, 3] * 5)])
def test_every_caption_comes_once_and_few_are_repeated(captions, counts, processes, caplog):
    pairs = of_counts(counts)
    report_repeats.cache_clear()
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        sampler = PairBatchSampler(pairs, 4, processes, captions_per_image=captions)
    visits = [-(-count // captions) for count in counts]
    repeats = sum(visits) * captions - sum(counts)
    expected = (
        f"{repeats} places of an epoch repeat one of {sum(counts)} captions: images come with {captions} at a time"
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * (repeats > 0)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for first in range(0, len(batches), processes):
        rows = [pair.row for batch in batches[first : first + processes] for pair in batch]
        assert len(rows) == len(set(rows)), "an image occurs twice"
    seen = [pair for batch in batches for pair in batch]
    assert all(len(pair.caption) == captions for pair in seen)
    if len(seen) < sum(visits):  # a remainder that is too small for all processes
        assert sum(visits) - len(seen) < 4 * processes
        return
    times = Counter((pair.row, caption) for pair in seen for caption in pair.caption)
    assert len(times) == sum(counts)
    for row, count in enumerate(counts):
        of_image = [times[row, caption] for caption in range(count)]
        assert max(of_image) - min(of_image) <= 1 and sum(of_image) == visits[row] * captions


def test_captions_come_together_in_another_order_in_every_epoch():
    pairs = of_counts([6] * 12)
    sampler = PairBatchSampler(pairs, 4, seed=1, captions_per_image=3)

    def epoch():
        return {(pair.row, pair.caption) for batch in sampler for pair in batch}

    first = epoch()
    assert epoch() == first
    pairs.set_epoch(1)
    assert len(epoch() & first) < len(first) / 4


def test_too_large_a_batch_is_refused_by_its_images():
    pairs = of_counts([5] * 6)
    with pytest.raises(ValueError, match="needs 7 different images, the training split has 6"):
        PairBatchSampler(pairs, 7, captions_per_image=5)
    with pytest.raises(ValueError, match="needs 7 pairs, the training split has 6"):
        PairBatchSampler(pairs, 7, unique_images=False, captions_per_image=5)


def check_batch(batch: dict[str, torch.Tensor], captions: list[list[str]]) -> None:
    """`captions` of every image of the batch, in order."""
    assert batch["text_ids"].tolist() == [[text_id(caption) for caption in of_image] for of_image in captions]
    assert batch["input_ids"].shape[:2] == batch["attention_mask"].shape[:2] == (len(captions), len(captions[0]))


def test_batch_has_the_captions_of_each_image(tokenizer):
    data = make_feature_pairs(4)
    pairs, collate = PairDataset(data), VSECollator(VSEProcessor(tokenizer=tokenizer))
    items = [pairs[Pair(row, (row, 4), 10 + row)] for row in (2, 0, 1)]
    batch = collate(items)
    check_batch(batch, [[data[row]["captions"][place] for place in (row, 4)] for row in (2, 0, 1)])
    assert batch["image_ids"].tolist() == [2, 0, 1] and batch["image_features"].shape == (3, 16)
    alone = collate([pairs[Pair(0, 0, 0)]])["input_ids"][0]
    assert torch.equal(batch["input_ids"][1, 0][: len(alone)], alone)


def test_captions_of_a_broken_image_leave_with_it(tiny_model):
    pairs = PairDataset(make_pairs(3, captions=2))
    items = [pairs[Pair(row, (0, 1), row)] for row in range(3)]
    items[1]["image"] = {"bytes": b"no image", "path": None}
    batch = VSECollator(VSEProcessor.from_pretrained(tiny_model), max_broken_share=1)(items)
    assert batch["image_ids"].tolist() == [0, 2] and len(batch["pixel_values"]) == 2
    check_batch(batch, [pairs.captions[0], pairs.captions[2]])


def test_words_are_dropped_in_each_caption_on_its_own(tokenizer):
    pairs = PairDataset(make_feature_pairs(2))
    items = [pairs[Pair(0, (1, 1, 1), 5)]]
    dropping = VSECollator(VSEProcessor(tokenizer=tokenizer), word_dropout=0.5)
    one, other = dropping(items)["input_ids"], dropping(items)["input_ids"]
    assert torch.equal(one, other)
    assert len({tuple(ids) for ids in one[0].tolist()}) > 1


def test_cached_vectors_of_captions_are_those_of_the_captions():
    data, vectors = make_feature_pairs(3), np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    kind = List(List(Value("float32"), length=4))
    pairs = PairDataset(data.add_column("caption_features", vectors.tolist(), feature=kind))
    batch = VSECollator(None)([pairs[Pair(2, (4, 0), 1)], pairs[Pair(1, (3, 1), 2)]])
    np.testing.assert_array_equal(batch["text_features"], np.stack([vectors[2, [4, 0]], vectors[1, [3, 1]]]))
    assert "input_ids" not in batch


def test_pieces_of_long_captions_are_drawn_for_each():
    long = "one two. three four. five six."
    pairs = PairDataset(make_feature_pairs(1), {long: ["one two.", "three four.", "five six."]})
    pairs.captions = [[long, "short", "seven"]]
    items = [pairs[Pair(0, (0, 0, 1), draw)]["texts"] for draw in range(40)]
    assert {text["caption"] for texts in items for text in texts[:2]} == {"one two.", "three four.", "five six."}
    assert any(texts[0]["caption"] != texts[1]["caption"] for texts in items)
    assert all(texts[0]["whole_caption"] == long and texts[2]["caption"] == "short" for texts in items)


def test_stream_gives_several_captions_and_repeats_them_where_there_are_fewer(tokenizer):
    data = make_feature_pairs(6, captions=3)
    for captions in (2, 5):
        items = list(StreamedPairs(data.to_iterable_dataset(), captions_per_image=captions))
        for item in items:
            found, there = [text["caption"] for text in item["texts"]], data[item["image_id"]]["captions"]
            assert len(found) == captions and len(set(found)) == min(captions, 3) and set(found) <= set(there)
        batch = VSECollator(VSEProcessor(tokenizer=tokenizer))(items)
        check_batch(batch, [[text["caption"] for text in item["texts"]] for item in items])
