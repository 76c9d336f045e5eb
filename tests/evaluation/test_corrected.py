import numpy as np
import pytest
import torch

from hf_vse.evaluation.corrected import corrected_ranks, corrected_results
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.ranks import retrieval_ranks


def unit(rng, rows, dim=8):
    vectors = rng.normal(size=(rows, dim))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).float()


def one_by_one(queries, gallery, own, bank, kind, temperature=0.05):
    """The papers' formulas, query by query, item by item."""
    queries, gallery, bank = (each.double().numpy() for each in (queries, gallery, bank))
    weights = np.array([np.exp(bank @ item / temperature).sum() for item in gallery])
    active = {int(np.argmax(gallery @ query)) for query in bank}
    ranks = []
    for number, query in enumerate(queries):
        scores = gallery @ query
        corrected = np.exp(scores / temperature) / weights
        used = corrected if kind == "inverted_softmax" or int(np.argmax(scores)) in active else scores
        mine = [item for row, item in own.tolist() if row == number]
        negatives = [item for item in range(len(gallery)) if item not in mine]
        ranks.append(sum(used[item] >= max(used[mine]) for item in negatives))
    return ranks


@pytest.mark.parametrize("kind", ["qbnorm", "inverted_softmax"])
def test_corrected_ranks_equal_the_formulas(kind):
    rng = np.random.default_rng(0)
    queries, gallery, bank = unit(rng, 30), unit(rng, 12), unit(rng, 7)
    own = torch.from_numpy(np.stack([np.arange(30), rng.integers(12, size=30)], axis=1))
    found = corrected_ranks(queries, gallery, own, bank, kind).tolist()
    assert found == one_by_one(queries, gallery, own, bank, kind)
    plain = retrieval_ranks(gallery, queries, own[:, 1], distractors=True)[1].tolist()
    assert found != plain


def test_both_directions_have_their_own_bank():
    rng = np.random.default_rng(1)
    owner = torch.from_numpy(np.repeat(np.arange(10), 2))
    nothing = torch.empty(0)
    pairs = PairEmbeddings(unit(rng, 10), unit(rng, 20), owner, nothing, 0)
    bank = PairEmbeddings(unit(rng, 9), unit(rng, 11), nothing, nothing, 0)
    found = corrected_results(pairs, bank, "inverted_softmax")
    own = torch.stack([torch.arange(20), owner], dim=1)
    texts = one_by_one(pairs.text_embeds, pairs.image_embeds, own, bank.text_embeds, "inverted_softmax")
    images = one_by_one(pairs.image_embeds, pairs.text_embeds, own.flip(1), bank.image_embeds, "inverted_softmax")
    assert found["metrics"]["t2i_r5"] == pytest.approx(100 * np.mean(np.array(texts) < 5))
    assert found["metrics"]["i2t_r1"] == pytest.approx(100 * np.mean(np.array(images) < 1))
    assert "11 captions and 9 images" in found["note"]
