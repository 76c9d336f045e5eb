"""Recalls against an independent NumPy implementation that sorts."""

from itertools import combinations

import numpy as np
import pytest
import torch

from hf_vse.evaluation.metrics import chance_recalls, fold_metrics, retrieval_metrics


def embeddings(images=60, captions=5, dim=8, noise=0.7, seed=0, ragged=False):
    rng = np.random.default_rng(seed)
    image_embeds = rng.normal(size=(images, dim))
    counts = rng.integers(1, captions + 1, images) if ragged else np.full(images, captions)
    text_to_image = rng.permutation(np.repeat(np.arange(images), counts))
    text_embeds = image_embeds[text_to_image] + noise * rng.normal(size=(len(text_to_image), dim))
    image_embeds, text_embeds = (
        (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32) for each in (image_embeds, text_embeds)
    )
    return image_embeds, text_embeds, text_to_image


def sorted_ranks(queries, candidates, own):
    """Position of the first own candidate in the full sorted list of each query; `own[q]` is a set of candidates."""
    ranks = []
    for query, mine in zip(queries.astype(np.float64), own, strict=True):
        order = np.argsort(-(candidates.astype(np.float64) @ query), kind="stable")
        ranks.append(min(int(np.flatnonzero(order == candidate)[0]) for candidate in mine))
    return np.array(ranks)


def independent_metrics(image_embeds, text_embeds, text_to_image):
    own_texts = [np.flatnonzero(text_to_image == image).tolist() for image in range(len(image_embeds))]
    own_images = [[image] for image in text_to_image]
    metrics = {}
    for name, ranks in (
        ("i2t", sorted_ranks(image_embeds, text_embeds, own_texts)),
        ("t2i", sorted_ranks(text_embeds, image_embeds, own_images)),
    ):
        for level in (1, 5, 10):
            metrics[f"{name}_r{level}"] = 100.0 * len(np.where(ranks < level)[0]) / len(ranks)
        metrics[f"{name}_medr"] = np.floor(np.median(ranks)) + 1
        metrics[f"{name}_meanr"] = ranks.mean() + 1
    metrics["rsum"] = sum(value for key, value in metrics.items() if "_r" in key)
    return metrics


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("chunk_size", [7, 1024])
def test_metrics_equal_a_full_sort(seed, ragged, chunk_size):
    data = embeddings(seed=seed, ragged=ragged)
    metrics = retrieval_metrics(*data, chunk_size=chunk_size)
    expected = independent_metrics(*data)
    assert 5 < expected["t2i_r1"] < 95
    assert metrics == pytest.approx(expected, abs=1e-9)


def test_collapsed_model_scores_zero():
    for value in (1.0, 0.3, 1 / 3):
        image_embeds, text_embeds = np.full((40, 7), value), np.full((200, 7), value)
        metrics = retrieval_metrics(image_embeds, text_embeds, np.arange(200) // 5)
        assert metrics["rsum"] == 0 and metrics["t2i_medr"] == 40 and metrics["i2t_medr"] == 196


def test_perfect_model_scores_six_hundred():
    eye = np.eye(20)
    metrics = retrieval_metrics(eye, np.repeat(eye, 5, axis=0), np.arange(100) // 5)
    assert metrics["rsum"] == 600 and metrics["i2t_medr"] == metrics["t2i_meanr"] == 1


def test_a_tie_with_a_rival_counts_against_the_query():
    image_embeds = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    metrics = retrieval_metrics(image_embeds, image_embeds, np.arange(3))
    assert metrics["t2i_r1"] == pytest.approx(100 / 3)


def test_folds_are_the_mean_over_consecutive_images():
    data = embeddings(images=40, seed=1)
    image_embeds, text_embeds, text_to_image = data
    expected = []
    for first in (0, 20):
        chosen = np.flatnonzero((text_to_image >= first) & (text_to_image < first + 20))
        part = image_embeds[first : first + 20], text_embeds[chosen], text_to_image[chosen] - first
        expected.append(independent_metrics(*part))
    mean = {key: (expected[0][key] + expected[1][key]) / 2 for key in expected[0]}
    assert fold_metrics(*data, fold_size=20) == pytest.approx(mean)
    with pytest.raises(ValueError, match="40 images cannot be cut into folds of 30"):
        fold_metrics(*data, fold_size=30)


def test_chance_is_what_random_embeddings_score():
    runs = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        runs.append(retrieval_metrics(rng.normal(size=(50, 16)), rng.normal(size=(250, 16)), np.arange(250) // 5))
    for name, value in chance_recalls(50, 250).items():
        assert np.mean([run[name] for run in runs]) == pytest.approx(value, rel=0.3), name


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 2, 4], [3, 1], [1, 1, 1, 1, 1], [9, 3]])
def test_chance_is_the_share_of_all_orders_in_which_an_own_candidate_comes_first(counts):
    """Enumerated: every set of first candidates is equally likely."""
    texts, images = sum(counts), len(counts)
    owner = [image for image, count in enumerate(counts) for _ in range(count)]
    for level in (1, 5, 10):
        firsts = list(combinations(range(texts), min(level, texts)))
        hits = [sum(any(owner[text] == image for text in first) for first in firsts) for image in range(images)]
        expected = 100 * sum(hits) / len(firsts) / images
        found = chance_recalls(images, texts, counts)
        assert found[f"i2t_r{level}"] == pytest.approx(expected), level
        assert found[f"t2i_r{level}"] == pytest.approx(100 * min(1, level / images))
        if max(counts) - min(counts) <= 1:
            assert chance_recalls(images, texts) == found


def test_chance_of_any_small_split_is_a_share():
    for images in range(1, 13):
        for texts in range(images, 40):
            assert all(0 < value <= 100 for value in chance_recalls(images, texts).values()), (images, texts)
    assert chance_recalls(5000, 25000)["i2t_r1"] == pytest.approx(100 * 5 / 25000)


def test_bad_input_is_refused():
    image_embeds, text_embeds, text_to_image = embeddings(images=4)
    broken = text_embeds.copy()
    broken[3, 1] = np.nan
    cases = [
        ((image_embeds, broken, text_to_image), "text_embeds row 3 is not finite"),
        ((image_embeds, text_embeds[:, :3], text_to_image), "8 dimensions and text_embeds 3"),
        ((image_embeds, text_embeds, text_to_image[:3]), "one image for each of the 20 texts"),
        ((image_embeds, text_embeds, text_to_image + 1), "must lie in 0 .. 3"),
        ((image_embeds[:, 0], text_embeds, text_to_image), "non-empty .items, dim. matrix"),
        ((np.vstack([image_embeds] * 2), text_embeds, text_to_image), "image 4 and 3 more have no text"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            retrieval_metrics(*arguments)


def test_torch_and_low_precision_input_is_accepted():
    data = embeddings()
    expected = retrieval_metrics(*data)
    assert retrieval_metrics(*(torch.from_numpy(np.asarray(each)) for each in data)) == expected
    half = retrieval_metrics(*(torch.from_numpy(each).bfloat16() for each in data[:2]), data[2])
    assert half["rsum"] == pytest.approx(expected["rsum"], abs=30)
