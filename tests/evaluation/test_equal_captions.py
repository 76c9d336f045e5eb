"""Recalls that count equal captions, against a walk through every ranking, and what people are told of them."""

import resource
from itertools import combinations

import numpy as np
import pytest
import torch

from hf_vse.data.schema import same_words
from hf_vse.evaluation import equal_captions
from hf_vse.evaluation.equal_captions import Wording, equal_caption_ranks, equal_caption_record
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.judge import judge_embeddings, texts_of
from hf_vse.evaluation.metrics import RECALL_LEVELS, retrieval_metrics, retrieval_ranks, summarize_ranks
from hf_vse.evaluation.positions import positive_positions, sorted_positives
from hf_vse.evaluation.record import evaluation_of
from hf_vse.evaluation.tables import equal_caption_remark, evaluation_table, recall_table, table_rows
from hf_vse.training.result import run_summary
from tests.conftest import make_pairs


def sharing(images=30, sentences=25, seed=0, ties=False):
    """Embeddings and captions, one to four of an image, many of them captions of other images too."""
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.repeat(image, rng.integers(1, 5)) for image in range(images)])
    captions = [f"{'A' if rng.random() < 0.5 else 'a'} scene  {rng.integers(sentences)} " for _ in owner]
    pictures = torch.from_numpy(rng.normal(size=(images, 6)))
    texts = pictures[owner] + torch.from_numpy(rng.normal(size=(len(owner), 6)))
    pictures, texts = (torch.nn.functional.normalize(each.float(), dim=1) for each in (pictures, texts))
    if ties:
        texts[::3], pictures[::4] = texts[0], pictures[0]
    return pictures, texts, torch.from_numpy(owner), captions


def walked(images, texts, owner, captions):
    """Ranks from 0, by going down every ranking until there is a right candidate; of equal scores the wrong first."""
    words = [" ".join(each.lower().split()) for each in captions]
    of_image = [{words[text] for text in range(len(words)) if owner[text] == image} for image in range(len(images))]
    scores = images.double() @ texts.double().T

    def rank(row, right):
        order = sorted(range(len(row)), key=lambda place: (-round(row[place], 11), right[place]))
        return next(place for place, candidate in enumerate(order) if right[candidate])

    right = np.array([[word in mine for word in words] for mine in of_image])
    of_images = [rank(scores[image].tolist(), right[image]) for image in range(len(images))]
    of_texts = [rank(scores[:, text].tolist(), right[:, text]) for text in range(len(texts))]
    return of_images, of_texts, right


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tile", [7, 1000])
def test_ranks_are_those_of_a_walk_through_the_ranking(seed, ties, tile, monkeypatch):
    monkeypatch.setattr(equal_captions, "TILE", tile)
    images, texts, owner, captions = sharing(seed=seed, ties=ties)
    ranks = retrieval_ranks(images, texts, owner)
    wording = Wording(captions, owner, len(images))
    found = equal_caption_ranks(images, texts, wording, ranks)
    *expected, right = walked(images, texts, owner, captions)
    assert [each.tolist() for each in found] == expected
    assert (found[1] <= ranks[1]).all() and (found[0] < ranks[0]).any()
    every = torch.arange(len(images)), torch.arange(len(texts))
    assert np.array_equal(wording.right(*every).numpy(), right)


def test_ranks_are_the_first_of_the_places_of_all_positives():
    images, texts, owner, captions = sharing(images=60, sentences=40, seed=5)
    wording = Wording(captions, owner, len(images))
    right = wording.right(torch.arange(len(images)), torch.arange(len(texts)))
    found = equal_caption_ranks(images, texts, wording, retrieval_ranks(images, texts, owner))
    for ranks, queries, candidates, table in ((found[0], images, texts, right), (found[1], texts, images, right.T)):
        positives = sorted_positives(*table.nonzero(as_tuple=True))
        places = positive_positions(queries, candidates, positives)
        first = positives.query.diff(prepend=torch.tensor([-1])) > 0
        assert torch.equal(ranks, places[first])


def test_what_is_counted_and_what_chance_is():
    owner = [0, 0, 1, 1, 2]
    captions = ["A dog", "a cat", "a  DOG ", "a bird", "a cat"]
    wording = Wording(captions, owner, 3)
    assert wording.counts() == {"captions": 4, "images": 3, "sentences": 2}
    right = wording.right(torch.arange(3), torch.arange(5))
    assert right.tolist() == [[1, 1, 1, 0, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    chance = wording.chance()
    for level in RECALL_LEVELS:
        for way, table in (("i2t", right), ("t2i", right.T)):
            drawn = list(combinations(range(table.shape[1]), min(level, table.shape[1])))
            hits = [any(row[place] for place in places) for row in table.tolist() for places in drawn]
            assert chance[f"{way}_r{level}"] == pytest.approx(100 * np.mean(hits))


def test_a_caption_twice_of_one_image_is_nothing_to_speak_of():
    images, texts, owner, _ = sharing()
    captions = [f"only of image {each}" for each in owner.tolist()]
    record = equal_caption_record(images, texts, owner, captions, retrieval_ranks(images, texts, owner))
    assert record == {"equal_captions": {"captions": 0, "images": 0, "sentences": 0}}
    assert equal_caption_remark(record | {"metrics": {}, "captions": len(texts)}) == ""
    assert same_words(" Straße\tZWEI\u00a0") == "strasse zwei"


def test_one_sentence_for_all_is_always_right_and_takes_no_memory():
    """As many positives as pairs: nothing grows with them."""
    images, texts = torch.randn(3000, 4), torch.randn(9000, 4)
    owner = torch.arange(9000) % 3000
    ranks = torch.full((3000,), 7), torch.full((9000,), 7)
    equal_caption_record(images[:9], texts[:9], owner[:9], ["a photo"] * 9, (ranks[0][:9], ranks[1][:9]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = equal_caption_record(images, texts, owner, ["a photo"] * 9000, ranks)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB; the pairs alone are 420,000
    assert record["metrics_equal_captions"]["rsum"] == 600 == 6 * record["chance_equal_captions"]["i2t_r1"]


def equal_pairs(images: int, sentences: int):
    """A data set whose captions are few sentences."""
    pairs = make_pairs(images, size=4, captions=2)
    return pairs.map(
        lambda row, index: {"captions": [f"Scene {index % sentences}", f"scene {index}, alone"]}, with_indices=True
    )


def embedded(dataset) -> PairEmbeddings:
    torch.manual_seed(3)
    count = len(dataset)
    owner = torch.arange(count).repeat_interleave(2)
    images = torch.nn.functional.normalize(torch.randn(count, 8), dim=1)
    texts = torch.nn.functional.normalize(images[owner] + torch.randn(2 * count, 8), dim=1)
    return PairEmbeddings(images, texts, owner, torch.arange(count), 0)


def judged(pairs: PairEmbeddings, dataset, split: str) -> dict:
    return judge_embeddings(
        pairs, texts_of(dataset, pairs), dataset, name="org/one", facts={}, source="mine", split=split
    ).record


def test_record_and_table_say_it_beside_the_usual_numbers():
    dataset = equal_pairs(40, 4)
    pairs = embedded(dataset)
    record = judged(pairs, dataset, "test")
    usual = retrieval_metrics(pairs.image_embeds, pairs.text_embeds, pairs.text_to_image)
    captions = [caption for row in dataset["captions"][:] for caption in row]
    *ranks, _ = walked(pairs.image_embeds, pairs.text_embeds, pairs.text_to_image, captions)
    assert record["metrics"] == usual
    assert record["metrics_equal_captions"] == pytest.approx(summarize_ranks(*map(torch.tensor, ranks)))
    assert record["equal_captions"] == {"captions": 40, "images": 40, "sentences": 4}
    assert record["metrics_equal_captions"]["i2t_r1"] > usual["i2t_r1"]
    table = evaluation_table(evaluation_of({"org/one": record}, {}))
    assert "test, equal captions" in table and "chance, equal captions" in table
    assert "40 of 80 captions (50 %) are word for word captions of other images too" in table


def test_rows_of_equal_captions_stand_only_where_they_change_a_recall():
    """Two of 80 captions are equal, which matters to a model that is neither always right nor always wrong."""
    dataset = equal_pairs(40, 39)
    pairs = embedded(dataset)
    perfect = pairs._replace(text_embeds=pairs.image_embeds[pairs.text_to_image])
    worst = pairs._replace(text_embeds=-pairs.image_embeds[pairs.text_to_image])
    for each, rows in ((perfect, ["one", "chance"]), (worst, ["one", "chance"]), (pairs, None)):
        record = judged(each, dataset, "test")
        assert record["equal_captions"] == {"captions": 2, "images": 2, "sentences": 1}
        assert "metrics_equal_captions" in record and "chance_equal_captions" in record
        found = list(table_rows({"one": record}))
        assert found == (rows or ["one", "one, equal captions", "chance", "chance, equal captions"])
        assert ("equal captions" in evaluation_table(evaluation_of({"one": record}, {}))) == (rows is None)


def test_every_split_has_its_own_chance(tmp_path):
    records = {}
    for name, count in (("validation", 10), ("test", 40)):
        dataset = make_pairs(count, size=4, captions=2)
        records[name] = judged(embedded(dataset), dataset, name)
    rows = table_rows(records)
    assert list(rows) == ["validation", "test", "chance, validation", "chance, test"]
    assert [rows[f"chance, {name}"]["t2i_r1"] for name in records] == pytest.approx([10, 2.5])
    said = run_summary(tmp_path, {"metrics": records, "loss_type": "nce"})
    assert recall_table(rows) in said
    assert list(table_rows({"a": records["test"], "b": records["test"]})) == ["a", "b", "chance"]
