"""Breakdown and suspects: captions and images that were made to be found."""

import numpy as np
import pytest
import torch

from hf_vse.evaluation.diagnostics import suspects as suspects_module
from hf_vse.evaluation.diagnostics.breakdown import breakdown, quantile_bins, words_of
from hf_vse.evaluation.diagnostics.neighbours import find_hard_negatives
from hf_vse.evaluation.diagnostics.suspects import annotation_errors, duplicate_captions, near_duplicates, suspects
from hf_vse.evaluation.ranks import retrieval_ranks
from tests.evaluation.test_metrics import embeddings

WORDS = "one two three four five six seven eight nine ten".split()


def random_captions(count, seed=0):
    rng = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(10)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12), p=shares / shares.sum())) for _ in range(count)]


def tensors(**options):
    return [torch.from_numpy(np.asarray(each)) for each in embeddings(**options)]


def test_words_are_those_a_reader_counts():
    assert words_of("A man's T-shirt, isn't it?  2 dogs .") == ["a", "man's", "t-shirt", "isn't", "it", "2", "dogs"]
    assert words_of(" ... ") == []


@pytest.mark.parametrize("seed", range(3))
def test_quantile_bins_hold_all_values_in_order_and_tear_nothing_apart(seed):
    values = np.random.default_rng(seed).poisson(6, 300)
    bins = quantile_bins(values, 5)
    assert sorted(np.concatenate(bins).tolist()) == list(range(300))
    for before, after in zip(bins, bins[1:], strict=False):
        assert values[before].max() < values[after].min()
    commonest = np.bincount(values).max()
    assert len(bins) >= 4 and max(map(len, bins)) <= 60 + commonest
    assert [len(each) for each in quantile_bins(np.zeros(9, int), 5)] == [9]


def test_breakdown_equals_a_loop_over_captions():
    captions, ranks = random_captions(200), torch.from_numpy(np.random.default_rng(1).integers(0, 20, 200))
    training = random_captions(30, seed=5) + ["one two three four five six seven"]
    record = breakdown(ranks, captions, train_captions=training)
    assert record["frequency_in"] == "train_captions"
    everything = " ".join(training).split()
    frequency = [min(everything.count(word) for word in caption.split()) for caption in captions]
    values = {"length": [len(caption.split()) for caption in captions], "rarest_word": frequency}
    for name, of_caption in values.items():
        assert sum(row["queries"] for row in record[name]) == 200 and len(record[name]) > 3
        for row in record[name]:
            bounds = "0-0" if row["bin"] == "never seen" else row["bin"].split()[0]
            low, high = (int(bound) for bound in (bounds.split("-") * 2)[:2])
            inside = [rank for rank, value in zip(ranks.tolist(), of_caption, strict=True) if low <= value <= high]
            assert row["queries"] == len(inside)
            for level in (1, 5, 10):
                share = sum(rank < level for rank in inside) / len(inside)
                assert row[f"r{level}"] == pytest.approx(100 * share)
    assert record["rarest_word"][0]["bin"] == "never seen"


def test_breakdown_without_training_captions_counts_in_the_captions():
    record = breakdown(torch.arange(4), ["a a b", "a c", "!", "a"])
    assert record["frequency_in"] == "captions"
    assert [(row["bin"], row["queries"]) for row in record["rarest_word"]] == [
        ("never seen", 1),
        ("1 occurrences", 2),
        ("4 occurrences", 1),
    ]
    assert record["length"][0]["bin"] == "no word"
    with pytest.raises(ValueError, match="one text for each of the 4 ranks, got 1"):
        breakdown(torch.arange(4), ["a"])


def test_worst_queries_are_those_of_the_largest_ranks():
    images, texts, owner = tensors(images=30, noise=1.2, ragged=True)
    ranks = retrieval_ranks(images, texts, owner)
    record = suspects(images, texts, owner, ["word"] * len(texts), ranks, limit=6)
    scores = texts.double() @ images.double().T
    assert [row["rank"] for row in record["worst_texts"]] == sorted((ranks[1] + 1).tolist(), reverse=True)[:6]
    for row in record["worst_texts"]:
        text, image = row["text"], row["image"]
        assert image == owner[text] and row["rank"] == 1 + int((scores[text] > scores[text, image]).sum())
        order = scores[text].argsort(descending=True).tolist()
        order.remove(image)
        assert row["found"] == order[:3] and row["own_score"] == pytest.approx(scores[text, image].item(), abs=1e-6)
        assert row["found_scores"] == pytest.approx(scores[text, order[:3]].tolist(), abs=1e-6)
    assert [row["rank"] for row in record["worst_images"]] == sorted((ranks[0] + 1).tolist(), reverse=True)[:6]
    for row in record["worst_images"]:
        assert row["texts"] == [text for text in range(len(texts)) if owner[text] == row["image"]]
        order = scores[:, row["image"]].argsort(descending=True).tolist()
        assert row["found"] == [text for text in order if text not in row["texts"]][:3]


def test_swapped_captions_are_the_first_suspects():
    images, texts, owner = tensors(images=80, dim=32, noise=1.0)
    swapped = torch.tensor([3, 57, 121, 200, 333])
    assert len(set(owner[swapped].tolist())) == 5
    owner[swapped] = owner[swapped.roll(1)]
    found = annotation_errors(find_hard_negatives(images, texts, owner), owner, 5)
    assert {row["text"] for row in found["rows"]} == set(swapped.tolist())
    assert [row["score"] for row in found["rows"]] == sorted((row["score"] for row in found["rows"]), reverse=True)
    whose = {text: image for text, image in zip(swapped.tolist(), owner[swapped.roll(-1)].tolist(), strict=True)}
    assert all(row["found"] == whose[row["text"]] and row["mutual"] for row in found["rows"])


def test_suspicion_equals_its_formula():
    images, texts, owner = tensors(images=15, ragged=True, noise=1.5, seed=8)
    rows = annotation_errors(find_hard_negatives(images, texts, owner), owner, 1000)["rows"]
    scores = (texts.double() @ images.double().T).numpy()
    own = [scores[text, image] for text, image in enumerate(owner)]
    expected = {}
    for text, image in enumerate(owner.tolist()):
        siblings = [own[other] for other in range(len(own)) if owner[other] == image and other != text]
        gap = max(np.delete(scores[text], image)) - own[text]
        low = min(gap, np.mean(siblings) - own[text]) if siblings else gap
        if low > 0:
            expected[text] = low / np.std(own)
    assert {row["text"]: row["score"] for row in rows} == pytest.approx(expected, rel=1e-5)
    assert any(row["siblings_score"] is None for row in rows) and 3 < len(rows) < len(texts)
    for row in rows:
        best = [text for text in np.argsort(-scores[:, row["found"]]) if owner[text] != row["found"]]
        assert row["mutual"] == (row["text"] in best[:3]) == ("best wrong captions" in row["rationale"])
        assert f"{row['own_score']:.2f} with its image" in row["rationale"]


@pytest.mark.parametrize("tile", [7, 2000])
def test_near_duplicates_equal_a_loop_over_pairs(tile, monkeypatch):
    monkeypatch.setattr(suspects_module, "TILE", tile)
    images = tensors(images=40, dim=4)[0]
    images[31] = torch.nn.functional.normalize(images[2] + 1e-3 * torch.randn(4), dim=0)
    cosines = {(i, j): float(images[i].double() @ images[j].double()) for j in range(40) for i in range(j)}
    best = sorted(cosines, key=cosines.get, reverse=True)
    record = near_duplicates(images, 0.9, 9)
    assert record["pairs"] == sum(value >= 0.9 for value in cosines.values()) > 9
    assert [tuple(row["images"]) for row in record["rows"]] == best[:9]
    assert best[0] == (2, 31) and record["rows"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert len(near_duplicates(images[:3], 0.95, 9)["rows"]) == 3


def test_duplicate_captions_are_those_of_different_images():
    captions = ["A dog runs .", "a dog runs", "Two cats", "a dog, runs!", "two cats", "one bird", "one bird"]
    owner = torch.tensor([0, 1, 1, 2, 3, 3, 3])
    record = duplicate_captions(captions, owner, 10)
    assert record["texts"] == 5
    assert record["rows"] == [
        {"images_sharing": 3, "texts": [0, 1, 3], "images": [0, 1, 2]},
        {"images_sharing": 2, "texts": [2, 4], "images": [1, 3]},
    ]
    assert len(duplicate_captions(captions, owner, 1)["rows"]) == 1
