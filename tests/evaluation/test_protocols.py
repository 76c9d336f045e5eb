"""Every named number against an independent computation; CxC and ECCV Caption against the package of their authors."""

import logging
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from hf_vse.data.official import OFFICIAL_DIGESTS, split_digests
from hf_vse.evaluation import extended
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.extended import annotation_folder, extended_metrics, extended_positives
from hf_vse.evaluation.judge import Texts, judge_embeddings
from hf_vse.evaluation.positions import standard_positives
from hf_vse.evaluation.protocols import PROTOCOLS, fold_order, official_split, protocol_results, split_title
from tests.evaluation.test_metrics import independent_metrics
from tests.evaluation.test_positions import reference_metrics, sorted_rankings

annotated = pytest.mark.skipif(find_spec("eccv_caption") is None, reason="needs the package eccv-caption")


def pairs(images=50, captions=5, dim=8, noise=0.8, seed=0, ragged=False):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, captions + 1, images) if ragged else np.full(images, captions)
    owner = rng.permutation(np.repeat(np.arange(images), counts))
    image_embeds = rng.normal(size=(images, dim))
    text_embeds = image_embeds[owner] + noise * rng.normal(size=(len(owner), dim))
    unit = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (image_embeds, text_embeds))
    return *(torch.from_numpy(each).float() for each in unit), torch.from_numpy(owner)


def independent_averages(text_embeds, owner):
    texts = text_embeds.double().numpy()
    means = np.stack([texts[owner.numpy() == image].mean(axis=0) for image in range(int(owner.max()) + 1)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_protocol_equals_an_independent_computation(seed, ragged):
    images, texts, owner = data = pairs(seed=seed, ragged=ragged)
    results = protocol_results(*data, source="flickr8k", split="test")
    assert list(results) == ["hit_rate", "ranking", "first_caption", "mean_caption"]
    arrays = [each.numpy() for each in data]
    expected = {"hit_rate": independent_metrics(*arrays)}
    each, first = np.arange(len(images)), [arrays[2].tolist().index(image) for image in range(len(images))]
    expected["first_caption"] = independent_metrics(arrays[0], arrays[1][first], each)
    expected["mean_caption"] = independent_metrics(arrays[0], independent_averages(texts, owner), each)
    expected["ranking"] = {}
    i2t, t2i = standard_positives(owner, len(images))
    for direction, rankings in (
        ("i2t", sorted_rankings(images, texts, i2t)),
        ("t2i", sorted_rankings(texts, images, t2i)),
    ):
        for name, value in reference_metrics(list(rankings.values())).items():
            expected["ranking"][f"{direction}_{name}"] = value
    for name, metrics in expected.items():
        assert results[name]["metrics"] == pytest.approx(metrics, abs=1e-9), name
    assert len({round(results[name]["metrics"]["t2i_r1"], 3) for name in expected if name != "ranking"}) == 3


def test_results_are_plain_and_say_what_they_are_not():
    results = protocol_results(*pairs(ragged=True), source="scenes", split="validation")
    for name, result in results.items():
        assert result.keys() == {"title", "note", "metrics"}
        assert result["title"].startswith("scenes validation, 50 images, ") and result["note"].endswith(".")
        assert all(type(value) in (int, float) for value in result["metrics"].values()), name
    assert "not comparable" in results["first_caption"]["note"] and "not comparable" in results["mean_caption"]["note"]


def test_one_to_one_pairs_are_called_so():
    results = protocol_results(*pairs(captions=1), source="org/pairs", split="test")
    assert list(results) == ["hit_rate", "ranking"]
    assert results["hit_rate"]["title"] == "org/pairs test, 50 images, 50 captions, one-to-one pairs, hit rate"
    metrics = results["ranking"]["metrics"]
    assert metrics["i2t_recall_r5"] == metrics["i2t_hit_r5"] == results["hit_rate"]["metrics"]["i2t_r5"]


def test_an_image_without_text_is_refused():
    images, texts, owner = pairs()
    with pytest.raises(ValueError, match="image 50 and 0 more have no text"):
        protocol_results(torch.cat([images, images[:1]]), texts, owner, source="flickr8k", split="test")


def test_official_sizes_are_those_of_the_field():
    sizes = {
        ("coco", "test"): (5_000, 25_000),
        ("coco", "validation"): (5_000, 25_000),
        ("coco", "train"): (113_287, 566_435),
        ("flickr30k", "test"): (1_000, 5_000),
        ("flickr30k", "validation"): (1_014, 5_070),
        ("flickr30k", "train"): (29_000, 145_000),
        ("flickr8k", "test"): (1_000, 5_000),
        ("flickr8k", "train"): (6_000, 30_000),
        ("flickr8k", "restval"): None,
        ("scenes", "test"): None,
    }
    assert {split: official_split(*split) for split in sizes} == sizes


def test_only_official_sizes_bear_the_official_name():
    for arguments, title in (
        (("flickr30k", "test", 1_000, 5_000), "Flickr30K test 1K"),
        (("coco", "test", 5_000, 25_000), "COCO test 5K"),
        (("flickr30k", "validation", 1_014, 5_070), "Flickr30K validation 1,014"),
        (("flickr8k", "train", 6_000, 30_000), "Flickr8k train 6K"),
    ):
        for digest in OFFICIAL_DIGESTS[arguments[:2]]:
            assert split_title(*arguments, digests={digest, "of its ids"}) == (title, True)
        name = f"{arguments[0]} {arguments[1]}, {arguments[2]:,} images, {arguments[3]:,} captions"
        assert split_title(*arguments, digests={"another"}) == (f"{name} (not the official ones)", False)
        assert split_title(*arguments) == (f"{name} (as many as official, not checked to be these)", None)
    unknown = "flickr8k test, 1,000 images, 5,000 captions (as many as official, not checked to be these)"
    assert split_title("flickr8k", "test", 1_000, 5_000, digests={"any"}) == (unknown, None)
    for arguments, title in (
        (("flickr30k", "test", 500, 2_500), "flickr30k test, 500 images (official: 1,000)"),
        (
            ("flickr8k", "test", 1_000, 4_999),
            "flickr8k test, 1,000 images, 4,999 captions (official: 1,000 and 5,000)",
        ),
        (("coco", "test", 4_998, 24_990, 2), "coco test, 4,998 images, 2 unreadable left out (official: 5,000)"),
        (("scenes", "test", 500, 2_500), "scenes test, 500 images, 2,500 captions"),
    ):
        assert split_title(*arguments) == (title, False)
    assert split_title("flickr8k", "test", 1_000, 5_000, broken=3)[1] is False


def test_other_images_of_the_right_number_do_not_get_the_title(monkeypatch):
    captions = [f"scene {number} from {side} sides" for number in range(1_000) for side in range(5)]
    monkeypatch.setitem(OFFICIAL_DIGESTS, ("flickr8k", "validation"), split_digests(captions, np.arange(5_000) // 5))

    def judged(captions, split="validation"):
        images, texts, owner = pairs(1_000)
        order = torch.argsort(owner, stable=True)
        embeds = PairEmbeddings(images, texts[order], owner[order], torch.arange(1_000), 0)
        record = judge_embeddings(embeds, Texts(captions), name="any", facts={}, source="flickr8k", split=split).record
        titles = {each["title"].removesuffix(f", {PROTOCOLS[name][0]}") for name, each in record["protocols"].items()}
        assert titles == {record["title"]}
        return record["title"], record["official"]

    assert judged(captions) == ("Flickr8k validation 1K", True)
    others = [*captions[:-1], "another image"]
    assert judged(others) == ("flickr8k validation, 1,000 images, 5,000 captions (not the official ones)", False)
    for unchecked in (judged(None), judged(captions, "test")):
        assert unchecked[0].endswith("(as many as official, not checked to be these)") and unchecked[1] is None


@pytest.fixture(scope="module")
def coco():
    """The ids of COCO's test split in the order of the package, and embeddings that find some of what CxC adds."""
    caption_ids = np.load(annotation_folder() / "coco_test_ids.npy")
    owner_of = dict(extended.read_annotations("coco", "caption_to_image").tolist())
    image_ids = list(dict.fromkeys(owner_of[each] for each in caption_ids.tolist()))
    rows = {each: row for row, each in enumerate(image_ids)}
    owner = torch.tensor([rows[owner_of[each]] for each in caption_ids.tolist()])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5000, 16, generator=generator)
    _, crossed = extended_positives("cxc", image_ids, caption_ids.tolist())
    other = torch.zeros(25000, dtype=torch.int64).scatter_reduce(0, *crossed, "amax")
    texts = images[owner] + images[other] + 0.9 * torch.randn(25000, 16, generator=generator)
    images, texts = (torch.nn.functional.normalize(each) for each in (images, texts))
    return images, texts, owner, image_ids, caption_ids.tolist()


def best_candidates(queries, candidates, query_ids, candidate_ids, depth=100):
    """For the id of each query those of its best candidates, as the package wants them."""
    ids, rankings = np.array(candidate_ids), []
    for some in queries.double().split(500):
        rankings += ids[(some @ candidates.double().T).topk(depth, sorted=True).indices.numpy()].tolist()
    return dict(zip(query_ids, rankings, strict=True))


@pytest.fixture(scope="module")
def authors(coco):
    """The metrics of the package, in percent, as a function of their name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eccv_caption import Metrics
    images, texts, _, image_ids, caption_ids = coco
    metrics = Metrics()
    ranked = {
        "i2t": best_candidates(images, texts, image_ids, caption_ids),
        "t2i": best_candidates(texts, images, caption_ids, image_ids),
    }

    def percent(found):
        return {key: percent(each) for key, each in found.items()} if isinstance(found, dict) else 100 * found

    return lambda name, **options: percent(getattr(metrics, name)(ranked, "all", **options))


@annotated
def test_coco_gets_all_protocols_and_the_numbers_of_the_authors(coco, authors):
    *data, image_ids, caption_ids = coco
    ids = {"image_ids": image_ids, "caption_ids": caption_ids}
    results = protocol_results(*data, source="coco", split="test", digests=OFFICIAL_DIGESTS["coco", "test"], **ids)
    assert list(results) == list(PROTOCOLS)
    assert results["eccv"]["title"] == "COCO test 5K, ECCV Caption"
    assert results["folds_1k"]["note"].endswith("the folds are the published ones.")
    metrics = {name: result["metrics"] for name, result in results.items()}
    for level in (1, 5, 10):
        whole, crossed = authors("coco_5k_recalls", K=level), authors("cxc_recalls", K=level)
        for direction in ("i2t", "t2i"):
            assert metrics["hit_rate"][f"{direction}_r{level}"] == pytest.approx(whole[direction])
            assert metrics["cxc"][f"{direction}_hit_r{level}"] == pytest.approx(crossed[direction])
            assert 2 < whole[direction] < 99.9
        assert level > 1 or crossed["t2i"] > whole["t2i"] + 1
    folds, verified = authors("coco_1k_recalls", K=1), authors("eccv_metrics")
    for direction in ("i2t", "t2i"):
        assert metrics["folds_1k"][f"{direction}_r1"] == pytest.approx(folds[direction])
        for name, ours in (("eccv_r1", "hit_r1"), ("eccv_map_at_r", "map_at_r"), ("eccv_rprecision", "r_precision")):
            expected = verified[name][direction]
            assert metrics["eccv"][f"{direction}_{ours}"] == pytest.approx(expected) and 0.5 < expected < 98
    assert (metrics["cxc"]["t2i_queries"], metrics["eccv"]["i2t_queries"]) == (24_972, 1_261)


def pairs_of_ids(positives, query_ids, candidate_ids):
    rows = zip(positives.query.tolist(), positives.candidate.tolist(), strict=True)
    return {(query_ids[query], candidate_ids[candidate]) for query, candidate in rows if candidate >= 0}


@annotated
def test_annotations_follow_the_rows_wherever_they_are(coco):
    _, _, owner, image_ids, caption_ids = coco
    rng = np.random.default_rng(0)
    images, captions = rng.permutation(image_ids), rng.permutation(caption_ids)
    for name, i2t_pairs, t2i_pairs in (("cxc", 35_585, 35_585), ("eccv", 22_548, 11_279)):
        i2t, t2i = extended_positives(name, image_ids, caption_ids)
        shuffled_i2t, shuffled_t2i = extended_positives(name, images, captions)
        of_images, of_captions = pairs_of_ids(i2t, image_ids, caption_ids), pairs_of_ids(t2i, caption_ids, image_ids)
        assert (len(of_images), len(of_captions)) == (i2t_pairs, t2i_pairs)
        assert pairs_of_ids(shuffled_i2t, images, captions) == of_images
        assert pairs_of_ids(shuffled_t2i, captions, images) == of_captions
    standard = standard_positives(owner, 5000)
    for one, other in zip(extended_positives("coco", image_ids, caption_ids), standard, strict=True):
        assert torch.equal(one.query, other.query) and torch.equal(one.candidate, other.candidate)
    assert (extended_positives("eccv", image_ids, caption_ids)[0].candidate < 0).sum() == 2
    assert "need not be" in fold_order(images) and "need not be" in fold_order(None)


def test_annotated_candidates_outside_the_split_stay_apart():
    found = extended.mapped(np.array([(7, 30), (7, 31), (5, 20), (7, 21)]), {5: 0, 7: 1}, {20: 0, 21: 1})
    assert found.query.tolist() == [0, 1, 1, 1]
    assert found.candidate.tolist()[0] == 0 and found.candidate[1:].max() == 1 and (found.candidate < 0).sum() == 2


@annotated
def test_ids_that_are_not_those_of_the_split_are_refused(coco, caplog):
    images, texts, owner, image_ids, caption_ids = coco
    for ids, message in (
        ((image_ids[:-3], caption_ids), "image_ids lack 3 of the 5,000 ids .* whole split with its original ids"),
        ((image_ids, [1, *caption_ids[1:]]), "caption_ids lack 1 of the 25,000 ids .* hold 1 others and 0 twice"),
        ((image_ids, [*caption_ids, caption_ids[0]]), "caption_ids lack 0 .* hold 0 others and 1 twice"),
    ):
        with pytest.raises(ValueError, match=message):
            extended_metrics(images, texts, *ids)
    with pytest.raises(ValueError, match="name='pm' .* choose one of coco, cxc, eccv"):
        extended_positives("pm", image_ids, caption_ids)
    few, kept = images[:20], owner < 20
    with caplog.at_level(logging.WARNING):
        results = protocol_results(
            few,
            texts[kept],
            owner[kept],
            source="coco",
            split="test",
            image_ids=image_ids[:20],
            caption_ids=np.array(caption_ids)[kept],
        )
    assert list(results) == ["hit_rate", "ranking", "first_caption", "mean_caption"]
    assert "no CxC and no ECCV Caption: image_ids lack 4,980" in caplog.text


def test_without_the_package_there_are_no_extended_numbers(monkeypatch, caplog):
    monkeypatch.setattr(extended, "find_spec", lambda name: None)
    ids = {"image_ids": range(50), "caption_ids": range(250)}
    with caplog.at_level(logging.WARNING):
        results = protocol_results(*pairs(), source="coco", split="test", **ids)
        assert "pip install eccv-caption" in caplog.text and "cxc" not in results
        caplog.clear()
        protocol_results(*pairs(), source="coco", split="test", extended=False, **ids)
        protocol_results(*pairs(), source="coco", split="validation", **ids)
        assert not caplog.text
    with pytest.raises(ImportError, match="pip install eccv-caption"):
        extended_positives("cxc", range(50), range(250))
