"""Positions and the metrics made of them against a full sort in float64, and against rankings worked out by hand."""

import math
import warnings

import numpy as np
import pytest
import torch

from hf_vse.evaluation.metrics import retrieval_metrics, retrieval_ranks
from hf_vse.evaluation.positions import Positives, positive_positions, sorted_positives, standard_positives
from hf_vse.evaluation.ranking import ranking_metrics, retrieval_ranking

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def embeddings(queries=40, candidates=90, dim=12, noise=1.5, seed=0, dtype=torch.float32):
    """Candidates near the query from which they were made, and which of them are right: none, one or many."""
    generator = torch.Generator().manual_seed(seed)
    asking = torch.randn(queries, dim, generator=generator, dtype=torch.float64)
    origin = torch.randint(0, queries, (candidates,), generator=generator)
    offered = asking[origin] + noise * torch.randn(candidates, dim, generator=generator, dtype=torch.float64)
    right = torch.rand(queries, candidates, generator=generator) < 0.03
    right |= (origin == torch.arange(queries)[:, None]) & (torch.arange(queries)[:, None] % 7 > 0)
    right[:2] = False
    query, candidate = right.nonzero(as_tuple=True)
    asking, offered = (torch.nn.functional.normalize(each).to(dtype) for each in (asking, offered))
    return asking, offered, sorted_positives(query, candidate)


def pessimistic_order(query, candidates, right):
    """All candidates by score; of equal scores, to eleven digits, the wrong ones first."""
    scores = np.array([round(math.fsum(a * b for a, b in zip(query, each, strict=True)), 11) for each in candidates])
    return np.lexsort((np.isin(np.arange(len(candidates)), right), -scores))


def sorted_rankings(queries, candidates, positives):
    """For each query with positives, its whole ranking as a list of booleans: is this one right?"""
    queries, candidates = (torch.as_tensor(each).double().tolist() for each in (queries, candidates))
    rankings = {}
    for query in sorted(set(positives.query.tolist())):
        right = positives.candidate[positives.query == query].numpy()
        rankings[query] = np.isin(pessimistic_order(queries[query], candidates, right), right)
    return rankings


def reference_positions(queries, candidates, positives):
    return [
        place for found in sorted_rankings(queries, candidates, positives).values() for place in np.flatnonzero(found)
    ]


def reference_metrics(rankings):
    """Every metric by its definition, one query at a time, walking down the whole ranking."""
    per_query = {name: [] for name in ("mrr", "map_at_r", "r_precision", "ndcg_10", "first")}
    per_query |= {f"{kind}_r{level}": [] for kind in ("hit", "recall") for level in (1, 5, 10)}
    for ranking in rankings:
        right = [bool(each) for each in ranking]
        relevant = sum(right)
        per_query["first"].append(right.index(True))
        per_query["mrr"].append(1 / (right.index(True) + 1))
        for level in (1, 5, 10):
            per_query[f"hit_r{level}"].append(float(any(right[:level])))
            per_query[f"recall_r{level}"].append(sum(right[:level]) / relevant)
        precisions = [sum(right[: r + 1]) / (r + 1) if right[r] else 0 for r in range(relevant)]
        per_query["map_at_r"].append(sum(precisions) / relevant)
        per_query["r_precision"].append(sum(right[:relevant]) / relevant)
        gain = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(right))) if right[rank])
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(10, relevant)))
        per_query["ndcg_10"].append(gain / ideal)
    metrics = {name: 100 * np.mean(values) for name, values in per_query.items() if name != "first"}
    metrics["medr"] = math.floor(np.median(per_query["first"])) + 1
    metrics["meanr"] = np.mean(per_query["first"]) + 1
    metrics["queries"] = len(rankings)
    return metrics | {"positives_per_query": np.mean([sum(ranking) for ranking in rankings])}


@pytest.mark.parametrize("chunk_size", [7, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_positions_equal_a_full_sort(seed, dtype, chunk_size):
    queries, candidates, positives = embeddings(seed=seed, dtype=dtype)
    found = positive_positions(queries, candidates, positives, chunk_size)
    assert found.dtype == torch.int64
    assert found.tolist() == reference_positions(queries, candidates, positives)
    assert 0.02 < (found < 1).double().mean() < 0.9 and len(positives.query.unique()) < len(queries)


@pytest.mark.parametrize("chunk_size", [7, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_duplicated_candidates_tie(seed, chunk_size):
    """Each candidate three times over, in another order, where some copies are right and others wrong."""
    queries, candidates, _ = embeddings(seed=seed, candidates=40)
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.cat([candidates] * 3)[torch.randperm(120, generator=generator)]
    positives = sorted_positives(*(torch.rand(40, 120, generator=generator) < 0.1).nonzero(as_tuple=True))
    found = positive_positions(queries, candidates, positives, chunk_size)
    assert found.tolist() == reference_positions(queries, candidates, positives)
    shuffled = torch.randperm(120, generator=generator)
    again = sorted_positives(positives.query, shuffled.argsort()[positives.candidate])
    assert torch.equal(positive_positions(queries, candidates[shuffled], again), found)


@pytest.mark.parametrize("value", [1.0, 0.3, 1 / 3])
def test_a_collapsed_model_finds_its_positives_last(value):
    positives = sorted_positives([0, 0, 2, 2, 2], [5, 1, 0, 3, 9])
    found = positive_positions(np.full((3, 7), value), np.full((10, 7), value), positives, chunk_size=4)
    assert found.tolist() == [8, 9, 7, 8, 9]
    metrics = ranking_metrics(positives.query, found)
    assert metrics["hit_r5"] == metrics["map_at_r"] == metrics["r_precision"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_first_position_is_the_rank(seed):
    """Near ties are told apart just as `retrieval_ranks` does."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(60).repeat_interleave(3)[torch.randperm(180, generator=generator)]
    images = torch.randn(60, 16, generator=generator, dtype=torch.float64)
    images[30:] = images[:30] + 1e-10 * images[30:]
    texts = images[owner] + torch.randn(180, 16, generator=generator, dtype=torch.float64)
    i2t, t2i = standard_positives(owner, 60)
    image_ranks, text_ranks = retrieval_ranks(images, texts, owner, 16)
    first = torch.full((60,), 180).scatter_reduce(0, i2t.query, positive_positions(images, texts, i2t, 16), "amin")
    assert torch.equal(first, image_ranks)
    assert torch.equal(positive_positions(texts, images, t2i, 16), text_ranks)


def test_a_positive_that_is_not_there_stands_last():
    queries, candidates = np.eye(3), np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0.6, 0, 0.8]])
    positives = sorted_positives([0, 0, 1, 1, 2], [-3, 3, 0, 1, -1])
    found = positive_positions(queries, candidates, positives, chunk_size=2)
    assert found.tolist() == [1, 4, 0, 3, 4]
    metrics = ranking_metrics(positives.query, found)
    assert metrics["recall_r1"] == metrics["hit_r1"] / 2 == pytest.approx(100 / 6)
    assert metrics["r_precision"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 0) / 3)


def test_positives_of_a_split_group_texts_by_image():
    i2t, t2i = standard_positives([1, 0, 1, 3], 4)
    assert (i2t.query.tolist(), i2t.candidate.tolist()) == ([0, 1, 1, 3], [1, 0, 2, 3])
    assert (t2i.query.tolist(), t2i.candidate.tolist()) == ([0, 1, 2, 3], [1, 0, 1, 3])
    twice = sorted_positives([2, 0, 2], [1, 5, 1])
    assert (twice.query.tolist(), twice.candidate.tolist()) == ([0, 2], [5, 1])


def test_memory_mapped_arrays_are_read_in_place(tmp_path):
    queries, candidates, positives = embeddings()
    mapped = []
    for name, embeds in (("queries", queries), ("candidates", candidates)):
        np.save(tmp_path / f"{name}.npy", embeds.numpy())
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = positive_positions(*mapped, positives, 16)
    assert torch.equal(found, positive_positions(queries, candidates, positives))


def test_bad_positives_are_refused():
    queries, candidates, good = embeddings()
    broken = candidates.clone()
    broken[4] = torch.nan
    reverse, none = Positives(good.query.flip(0), good.candidate.flip(0)), good.query[:0]
    cases = [
        ((queries, candidates[:, :3], good), "12 dimensions and candidates 3"),
        ((queries, broken, good), "candidates row 4 is not finite"),
        ((queries, candidates[:20], good), "below 20, the number of candidates"),
        ((queries[:5], candidates, good), "must lie in 0 .. 4"),
        ((queries, candidates, reverse), "unique and sorted by query; sorted_positives"),
        ((queries, candidates, Positives(*(torch.cat([each[:1], each]) for each in good))), "unique and sorted"),
        ((queries, candidates, Positives(none, none)), "not empty, got .0,. and .0,."),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            positive_positions(*arguments)
    with pytest.raises(ValueError, match="must lie in 0 .. 2"):
        standard_positives([0, 3], 3)
    with pytest.raises(ValueError, match="text_embeds row 4 is not finite"):
        retrieval_ranking(queries, broken, good, good)


@pytest.mark.parametrize("seed", range(4))
def test_ranking_metrics_equal_their_definitions(seed):
    queries, candidates, positives = embeddings(seed=seed)
    found = ranking_metrics(positives.query, positive_positions(queries, candidates, positives))
    rankings = list(sorted_rankings(queries, candidates, positives).values())
    assert max(ranking.sum() for ranking in rankings) > 5
    expected = reference_metrics(rankings)
    assert found.keys() == expected.keys() and found == pytest.approx(expected, abs=1e-9)
    assert found["recall_r1"] < found["hit_r1"] and found["map_at_r"] < found["r_precision"]


def test_ranking_metrics_of_rankings_worked_out_by_hand():
    """One query finds places 1, 3 and 4 of its three, another only place 2 of its one."""
    found = ranking_metrics(torch.tensor([4, 4, 4, 9]), torch.tensor([0, 2, 3, 1]))
    assert found["hit_r1"] == 50 and found["hit_r5"] == 100
    assert found["recall_r1"] == pytest.approx(100 * (1 / 3 + 0) / 2) and found["recall_r5"] == 100
    assert found["mrr"] == pytest.approx(100 * (1 + 1 / 2) / 2)
    assert found["r_precision"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert found["map_at_r"] == pytest.approx(100 * ((1 + 2 / 3) / 3 + 0) / 2)
    first = (1 + 1 / 2 + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2)
    assert found["ndcg_10"] == pytest.approx(100 * (first + 1 / math.log2(3)) / 2)
    assert (found["medr"], found["meanr"], found["queries"], found["positives_per_query"]) == (1, 1.5, 2, 2)


def test_map_at_r_tells_apart_what_r_precision_does_not():
    """Ten positives: the first right and then none is worth a tenth by both; the tenth alone only by R-precision."""
    query = torch.zeros(10, dtype=torch.int64)
    best, worst = torch.cat([torch.tensor([0]), torch.arange(20, 29)]), torch.arange(9, 19)
    worst[1:] += 20
    assert ranking_metrics(query, best)["map_at_r"] == pytest.approx(10)
    assert ranking_metrics(query, worst)["map_at_r"] == pytest.approx(1)
    assert ranking_metrics(query, best)["r_precision"] == ranking_metrics(query, worst)["r_precision"] == 10


def test_both_directions_and_the_hit_rate_of_the_field():
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(50).repeat_interleave(5)[torch.randperm(250, generator=generator)]
    images = torch.randn(50, 8, generator=generator)
    texts = images[owner] + torch.randn(250, 8, generator=generator)
    found = retrieval_ranking(images, texts, *standard_positives(owner, 50))
    standard = retrieval_metrics(images, texts, owner)
    for direction in ("i2t", "t2i"):
        for level in (1, 5, 10):
            assert found[f"{direction}_hit_r{level}"] == standard[f"{direction}_r{level}"]
        assert found[f"{direction}_medr"] == standard[f"{direction}_medr"]
        assert found[f"{direction}_meanr"] == pytest.approx(standard[f"{direction}_meanr"])
    assert found["t2i_recall_r5"] == found["t2i_hit_r5"] and found["i2t_recall_r5"] < found["i2t_hit_r5"] - 10
    assert (found["i2t_positives_per_query"], found["t2i_positives_per_query"]) == (5, 1)
    assert found["t2i_map_at_r"] == found["t2i_hit_r1"]
