"""Geometry, hubness and similarities against loops over single vectors."""

import math

import numpy as np
import pytest
import torch

from hf_vse.evaluation.diagnostics import geometry as geometry_module
from hf_vse.evaluation.diagnostics import neighbours
from hf_vse.evaluation.diagnostics.geometry import effective_rank, gap_separability, geometry, moments
from hf_vse.evaluation.diagnostics.hubness import at_random, hubness
from hf_vse.evaluation.diagnostics.neighbours import NOBODY, best_positives, find_hard_negatives, nearest_both_ways
from hf_vse.evaluation.diagnostics.similarities import similarities
from tests.evaluation.test_metrics import embeddings


def pairs(**options):
    """Images, texts and their correspondence as tensors, and as float64 arrays for the references."""
    arrays = embeddings(**options)
    return [torch.from_numpy(np.asarray(each)) for each in arrays], [np.asarray(each, np.float64) for each in arrays]


def slow_uniformity(vectors):
    total = [
        math.exp(-2 * float(np.sum((left - right) ** 2)))
        for row, left in enumerate(vectors)
        for right in vectors[row + 1 :]
    ]
    return math.log(np.mean(total))


def slow_mean_cosine(vectors):
    return np.mean([left @ right for i, left in enumerate(vectors) for j, right in enumerate(vectors) if i != j])


def slow_effective_rank(vectors):
    values = np.linalg.svd(vectors, compute_uv=False)
    shares = [value / values.sum() for value in values if value > 1e-12 * values[0]]
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("options", [{"ragged": True}, {"dim": 70, "images": 33, "captions": 3}])
def test_geometry_equals_loops_over_pairs(options, monkeypatch):
    monkeypatch.setattr(geometry_module, "TILE", 13)
    monkeypatch.setattr(neighbours, "TILE", 13)
    tensors, (images, texts, owner) = pairs(**options)
    owner = owner.astype(int)
    record = geometry(*tensors)
    count = min(len(images), len(texts))
    drawn = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:count].numpy()
    alike = [
        texts[i] @ texts[j] for i in range(len(texts)) for j in range(i) if owner[i] == owner[j]
    ]  # captions of one image
    expected = {
        "images": len(images),
        "texts": len(texts),
        "dim": images.shape[1],
        "sample": 2000,
        "seed": 0,
        "alignment": np.mean([np.sum((text - images[of]) ** 2) for text, of in zip(texts, owner, strict=True)]),
        "tolerance": np.mean(alike),
        "modality_gap": np.linalg.norm(np.mean(images, axis=0) - np.mean(texts, axis=0)),
        "gap_separability": record["gap_separability"],  # below
        "uniformity_image": slow_uniformity(images),
        "uniformity_text": slow_uniformity(texts),
        "uniformity_both": slow_uniformity(np.concatenate([images, texts[drawn]])),
        "effective_rank_image": slow_effective_rank(images),
        "effective_rank_text": slow_effective_rank(texts),
        "mean_cosine_image": slow_mean_cosine(images),
        "mean_cosine_text": slow_mean_cosine(texts),
        "centroid_norm_image": np.linalg.norm(images.mean(axis=0)),
        "centroid_norm_text": np.linalg.norm(texts.mean(axis=0)),
        "collapsed": False,
    }
    assert record == pytest.approx(expected, rel=1e-5)
    assert set(record) == set(expected)


def test_uniformity_of_a_sample_is_near_that_of_all():
    tensors, _ = pairs(images=600, captions=1, dim=16)
    exact, sampled = geometry(*tensors), geometry(*tensors, sample=150, seed=3)
    for name in ("uniformity_image", "uniformity_text", "uniformity_both"):
        assert exact[name] != sampled[name] == pytest.approx(exact[name], abs=0.1)
    assert sampled["sample"] == 150 and sampled["seed"] == 3 and sampled["tolerance"] is None
    assert geometry(*tensors, sample=150, seed=3) == sampled


def test_effective_rank_counts_the_directions_in_use():
    directions = torch.linalg.qr(torch.randn(50, 50)).Q
    assert effective_rank(moments(directions[:7].repeat(20, 1))).item() == pytest.approx(7, rel=1e-3)
    assert effective_rank(moments(directions[:1].repeat(20, 1))).item() == pytest.approx(1, rel=1e-3)


def test_collapsed_model_is_called_so():
    near = torch.nn.functional.normalize(torch.ones(40, 16) + 0.02 * torch.randn(40, 16))
    record = geometry(near, near, torch.arange(40))
    assert record["collapsed"] is True and record["mean_cosine_image"] > 0.98
    alike = torch.ones(40, 16) / 4
    assert geometry(alike, alike, torch.arange(40))["uniformity_both"] == pytest.approx(0)
    (images, texts, owner), _ = pairs()
    assert geometry(torch.ones(60, 8) / 8**0.5, texts, owner)["collapsed"] is False


def test_separability_tells_a_gap_from_chance():
    """A plane through two centroids separates any few points in many dimensions, if it may see them before."""
    images, texts = (torch.nn.functional.normalize(torch.randn(200, 2000)) for _ in range(2))
    owner = torch.arange(200)
    gap = images.mean(dim=0) - texts.mean(dim=0)
    seen = ((images @ gap > 0).float().mean() + (texts @ gap < 0).float().mean()) / 2
    assert seen > 0.95 and gap_separability(images, texts, owner, 0) == pytest.approx(50, abs=8)
    shift = torch.nn.functional.one_hot(torch.tensor(0), 2000) * 0.5
    for of_images, of_texts in ((shift, -shift), (4 * shift, shift)):  # with the origin between them, or to one side
        apart = [torch.nn.functional.normalize(each) for each in (images + of_images, texts + of_texts)]
        assert gap_separability(*apart, owner, 0) == 100


def slow_nearest(queries, candidates, k, forbidden):
    """Rows of the `k` best candidates of each query that are not forbidden to it."""
    found = []
    for number, query in enumerate(queries):
        order = sorted(range(len(candidates)), key=lambda row: -float(candidates[row] @ query))
        order = [row for row in order if row not in forbidden[number]][:k]
        found.append(order + [NOBODY] * (min(k, len(candidates)) - len(order)))
    return found


@pytest.mark.parametrize("size", [7, 2000])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_neighbours_equal_a_full_sort(size, k):
    tensors, (images, texts, owner) = pairs(images=20, ragged=True)
    nothing = [set()] * len(texts)
    of_texts, of_images = nearest_both_ways(*tensors[:2], k, size=size)
    assert of_texts.rows.tolist() == slow_nearest(texts, images, k, nothing)
    assert of_images.rows.tolist() == slow_nearest(images, texts, k, nothing)
    of_texts, of_images = nearest_both_ways(*tensors[:2], k, tensors[2], size)
    own = [set(np.flatnonzero(owner == image)) for image in range(len(images))]
    assert of_texts.rows.tolist() == slow_nearest(texts, images, k, [{int(of)} for of in owner])
    assert of_images.rows.tolist() == slow_nearest(images, texts, k, own)
    assert torch.equal(of_texts.rows == NOBODY, of_texts.scores == -torch.inf)
    scores = [texts[row] @ images[best] for row, best in enumerate(of_texts.rows[:, 0])]
    np.testing.assert_allclose(of_texts.scores[:, 0], scores, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_hubness_equals_a_count_of_sorted_lists(seed):
    statistics = pytest.importorskip("scipy.stats")
    tensors, (images, texts, _) = pairs(seed=seed, dim=6, noise=1.5)
    record = hubness(*tensors[:2], levels=(1, 7), largest=3)
    for direction, queries, candidates in (("t2i", texts, images), ("i2t", images, texts)):
        for k in (1, 7):
            counts = [0] * len(candidates)
            for row in sum(slow_nearest(queries, candidates, k, [set()] * len(queries)), []):
                counts[row] += 1
            of_level = record[direction][f"k{k}"]
            assert of_level["skewness"] == pytest.approx(statistics.skew(counts))
            assert of_level["antihubs"] == pytest.approx(100 * counts.count(0) / len(counts))
            mean = sum(counts) / len(counts)
            surplus = sum(count - mean for count in counts if count > mean)
            assert of_level["robin_hood"] == pytest.approx(100 * surplus / sum(counts))
            assert [row["occurrences"] for row in of_level["largest"]] == sorted(counts, reverse=True)[:3]
            assert all(counts[row["row"]] == row["occurrences"] for row in of_level["largest"])
            binomial = statistics.binom(len(queries), k / len(candidates))
            assert of_level["skewness_at_random"] == pytest.approx(float(binomial.stats("s")))
            assert of_level["antihubs_at_random"] == pytest.approx(100 * binomial.pmf(0))


def test_hubness_finds_the_image_that_is_near_to_everything():
    images, texts, _ = (torch.from_numpy(np.asarray(each)) for each in embeddings(dim=64))
    texts = torch.nn.functional.normalize(texts + 0.15)  # they have something in common
    before = hubness(images, texts)["t2i"]["k1"]
    images[17] = torch.nn.functional.normalize(texts.sum(dim=0), dim=0)
    after = hubness(images, texts)["t2i"]["k1"]
    assert after["largest"][0]["row"] == 17 and after["largest"][0]["occurrences"] > 20
    assert after["skewness"] > 2 * before["skewness"] and after["antihubs"] >= before["antihubs"]


def test_hubness_of_few_candidates_is_finite():
    """Every one of three candidates is among the ten nearest of all queries."""
    record = hubness(torch.eye(3), torch.eye(3).repeat(4, 1))["t2i"]["k10"]
    assert record["k"] == 3 and record["skewness"] == record["antihubs"] == record["robin_hood"] == 0
    assert at_random(12, 3, 3) == {"skewness_at_random": 0.0, "antihubs_at_random": 0.0}


def test_similarities_equal_loops_over_queries():
    tensors, (images, texts, owner) = pairs(images=40, ragged=True, seed=2)
    owner = owner.astype(int)
    scores = texts @ images.T
    own, hardest = [], []
    for text, image in enumerate(owner):
        own.append(scores[text, image])
        hardest.append(max(scores[text, other] for other in range(len(images)) if other != image))
    of_images, hardest_of_images = [], []
    for image in range(len(images)):
        of_images.append(max(scores[text, image] for text in range(len(texts)) if owner[text] == image))
        hardest_of_images.append(max(scores[text, image] for text in range(len(texts)) if owner[text] != image))
    record = similarities(*tensors)
    edges = np.array(record["edges"])
    np.testing.assert_allclose(edges, np.linspace(-1, 1, 101), atol=1e-12)
    random = np.array(record["random_negatives"]["counts"]) / len(texts)
    cases = (("t2i", own, hardest), ("i2t", of_images, hardest_of_images))
    for direction, positives, negatives in cases:
        counts = [np.histogram(values, edges)[0] for values in (positives, negatives)]
        of_direction = record[direction]
        for name, values, count in zip(
            ("positives", "hardest_negatives"), (positives, negatives), counts, strict=True
        ):
            assert of_direction[name]["counts"] == count.tolist()
            assert of_direction[name]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
            assert of_direction[name]["std"] == pytest.approx(np.std(values), abs=1e-6)
        shares = [count / count.sum() for count in counts]
        assert of_direction["overlap_hardest"] == pytest.approx(100 * sum(map(min, *shares)))
        assert of_direction["overlap_random"] == pytest.approx(100 * sum(map(min, shares[0], random)))
        assert of_direction["margin"] == pytest.approx(np.mean(positives) - np.mean(negatives), abs=1e-6)
    assert 0 < record["t2i"]["overlap_random"] < record["t2i"]["overlap_hardest"] < 100


def test_random_negatives_are_never_the_own_image():
    eye = torch.eye(5)
    record = similarities(eye, eye.repeat(40, 1), torch.arange(5).repeat(40))
    assert record["random_negatives"]["mean"] == 0 and record["t2i"]["positives"]["mean"] == 1
    assert record["t2i"]["overlap_hardest"] == 0
    (images, texts, owner), _ = pairs(images=200, captions=10, noise=3)
    mean = (texts @ images.T).mean().item()
    assert similarities(images, texts, owner)["random_negatives"]["mean"] == pytest.approx(mean, abs=0.03)


def test_best_own_is_the_nearest_caption():
    (images, texts, owner), _ = pairs(images=12, ragged=True)
    nearest = best_positives(find_hard_negatives(images, texts, owner), owner)
    for image in range(12):
        assert nearest[image] == pytest.approx((texts[owner == image] @ images[image]).max())
