"""Resampling against loops that draw, swap and count one image at a time."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from hf_vse.evaluation import intervals
from hf_vse.evaluation.intervals import compare_models, holm, recall_intervals
from hf_vse.evaluation.metrics import summarize_ranks
from hf_vse.evaluation.ranks import retrieval_ranks

NAMES = [f"{direction}_{name}" for direction in ("i2t", "t2i") for name in ("r1", "r5", "r10", "meanr")] + ["rsum"]


def make_ranks(images=40, captions=4, seed=0, ease=0.3):
    """Ranks by one of several models of a set with one to `captions` captions an image, and its correspondence."""
    rng = np.random.default_rng(images)
    owner = rng.permutation(np.repeat(np.arange(images), rng.integers(1, captions + 1, images)))
    rng = np.random.default_rng(seed)
    return (rng.geometric(ease, images) - 1, rng.geometric(ease, len(owner)) - 1), owner


def metrics_of_images(ranks, owner, chosen):
    """The metrics of a list of images, each with all its captions as often as it is listed."""
    image_ranks = [ranks[0][image] for image in chosen]
    text_ranks = [ranks[1][text] for image in chosen for text in np.flatnonzero(owner == image)]
    metrics = summarize_ranks(torch.tensor(np.array(image_ranks)), torch.tensor(np.array(text_ranks)))
    return {name: metrics[name] for name in NAMES}


def swapped(first, second, owner, images):
    """Both models' ranks after they have swapped what they found for some images."""
    parts = []
    for mine, others in ((first, second), (second, first)):
        image_ranks, text_ranks = mine[0].copy(), mine[1].copy()
        for image in images:
            image_ranks[image] = others[0][image]
            text_ranks[owner == image] = others[1][owner == image]
        parts.append((image_ranks, text_ranks))
    return parts


def difference(first, second, owner):
    whole = range(len(first[0]))
    before, after = metrics_of_images(first, owner, whole), metrics_of_images(second, owner, whole)
    return {name: after[name] - before[name] for name in NAMES}


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_intervals_equal_a_loop_over_drawn_images(confidence):
    ranks, owner = make_ranks()
    rng = np.random.default_rng(3)
    loop = [metrics_of_images(ranks, owner, rng.integers(40, size=40)) for _ in range(150)]
    found = recall_intervals(*ranks, owner, confidence=confidence, resamples=150, seed=3)
    assert list(found) and set(found) == set(NAMES)
    for name in NAMES:
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        assert found[name] == pytest.approx(np.quantile([each[name] for each in loop], tails), abs=1e-9), name
        assert found[name][0] < metrics_of_images(ranks, owner, range(40))[name] < found[name][1]


def test_intervals_do_not_depend_on_the_size_of_a_block(monkeypatch):
    ranks, owner = make_ranks()
    second, _ = make_ranks(seed=1)
    whole = recall_intervals(*ranks, owner, resamples=50), compare_models(ranks, second, owner, resamples=50)
    monkeypatch.setattr(intervals, "BLOCK", 7 * 40)
    parts = recall_intervals(*ranks, owner, resamples=50), compare_models(ranks, second, owner, resamples=50)
    assert whole == parts


def test_interval_of_a_perfect_model_has_no_width():
    owner = np.arange(60) // 3
    found = recall_intervals(np.zeros(20), np.zeros(60), owner, resamples=20)
    assert found["t2i_r1"] == [100, 100] and found["rsum"] == [600, 600] and found["i2t_meanr"] == [1, 1]


def test_intervals_take_what_retrieval_ranks_returns_with_distractors():
    torch.manual_seed(0)
    owner = torch.tensor([4, 1, 1, 7, 4])  # images 0, 2, 3, 5, 6 have no text
    ranks = retrieval_ranks(torch.randn(8, 4), torch.randn(5, 4), owner, distractors=True)
    found = recall_intervals(*ranks, owner, resamples=300)
    assert found["i2t_meanr"][0] <= ranks[0].double().mean() + 1 <= found["i2t_meanr"][1]


def test_intervals_hold_the_truth_as_often_as_they_say_where_captions_are_alike():
    """All captions of an image succeed or fail together, so that five of them are worth one."""
    images, captions, truth = 80, 5, 60.0
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), captions)
    held = 0
    for seed in range(200):
        hit = rng.random(images) < truth / 100
        image_ranks = np.where(rng.random(images) < truth / 100, 0, 20)
        found = recall_intervals(image_ranks, np.where(hit, 0, 20)[owner], owner, resamples=200, seed=seed)
        held += found["t2i_r1"][0] <= truth <= found["t2i_r1"][1]
    assert 0.88 <= held / 200 <= 0.99  # drawing captions one by one would reach about 0.6


def test_comparison_equals_loops_over_drawn_and_swapped_images():
    first, owner = make_ranks()
    second, _ = make_ranks(seed=1, ease=0.4)
    found = compare_models(first, second, owner, resamples=200, seed=5)
    rng = np.random.default_rng(5)
    draws = [rng.integers(40, size=40) for _ in range(200)]
    loop = [[metrics_of_images(ranks, owner, drawn) for ranks in (first, second)] for drawn in draws]
    observed = difference(first, second, owner)
    rng = np.random.default_rng(5)
    alone = [[metrics_of_images(ranks, owner, [image]) for ranks in (first, second)] for image in range(40)]
    differing = [image for image, (before, after) in enumerate(alone) if before != after]
    assert 12 < len(differing)
    tosses = [rng.integers(2, size=len(differing)) for _ in range(200)]
    outcomes = [difference(*swapped(first, second, owner, np.array(differing)[toss == 1]), owner) for toss in tosses]
    for name in NAMES:
        assert found[name]["difference"] == pytest.approx(observed[name], abs=1e-9)
        bounds = np.quantile([after[name] - before[name] for before, after in loop], [0.025, 0.975])
        assert found[name]["interval"] == pytest.approx(bounds, abs=1e-9)
        reached = sum(abs(outcome[name]) >= abs(observed[name]) - 1e-9 for outcome in outcomes)
        assert found[name]["p_value"] == pytest.approx((reached + 1) / 201)
    assert len({found[name]["p_value"] for name in NAMES}) > 3


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_few_images_are_swapped_in_every_way(seed, monkeypatch):
    first, owner = make_ranks(images=7)
    second, _ = make_ranks(images=7, seed=seed)
    observed = difference(first, second, owner)
    subsets = [np.flatnonzero(choice) for choice in product((0, 1), repeat=7)]
    outcomes = [difference(*swapped(first, second, owner, subset), owner) for subset in subsets]
    exact = {
        name: np.mean([abs(outcome[name]) >= abs(observed[name]) - 1e-9 for outcome in outcomes]) for name in NAMES
    }
    found = compare_models(first, second, owner, resamples=10)
    assert {name: found[name]["p_value"] for name in NAMES} == pytest.approx(exact)
    assert 0 < min(exact.values()) < 0.5
    monkeypatch.setattr(intervals, "ENUMERATED", 0)
    tossed = compare_models(first, second, owner, resamples=4000)
    assert {name: tossed[name]["p_value"] for name in NAMES} == pytest.approx(exact, abs=0.04)


def test_identical_models_do_not_differ():
    ranks, owner = make_ranks()
    for name, found in compare_models(ranks, ranks, owner, resamples=100).items():
        assert found == {"difference": 0, "interval": [0, 0], "p_value": 1}, name


def test_comparison_with_the_models_exchanged_has_the_other_sign():
    first, owner = make_ranks()
    second, _ = make_ranks(seed=1, ease=0.5)
    there, back = compare_models(first, second, owner), compare_models(second, first, owner)
    assert there["rsum"]["difference"] > 0 and there["rsum"]["interval"][0] > 0 > there["t2i_meanr"]["difference"]
    for name in NAMES:
        assert there[name]["difference"] == -back[name]["difference"]
        assert there[name]["p_value"] == back[name]["p_value"]


def test_p_values_of_equally_good_models_are_uniform():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(60), 3)
    p_values = []
    for seed in range(200):
        ease = rng.uniform(0.1, 0.6, 60)  # some images are hard for both
        models = [(rng.geometric(ease) - 1, rng.geometric(ease[owner]) - 1) for _ in range(2)]
        p_values.append(compare_models(*models, owner, resamples=200, seed=seed)["rsum"]["p_value"])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.1), level


def test_p_value_is_never_zero():
    owner = np.repeat(np.arange(100), 2)
    found = compare_models((np.full(100, 30), np.full(200, 30)), (np.zeros(100), np.zeros(200)), owner, resamples=99)
    assert found["rsum"]["difference"] == 600 and found["rsum"]["p_value"] == pytest.approx(0.01)


def test_results_are_plain_json():
    ranks, owner = make_ranks()
    found = recall_intervals(*map(torch.tensor, ranks), torch.tensor(owner), resamples=5)
    assert json.loads(json.dumps(found)) == found
    assert json.loads(json.dumps(compare := compare_models(ranks, ranks, owner, resamples=5))) == compare


def test_holm_by_hand():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.06, "b": 0.03, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1, "b": 1}
    assert list(holm({"b": 0.5, "a": 0.1})) == ["b", "a"] and holm({}) == {}


def test_bad_input_is_refused():
    ranks, owner = make_ranks()
    with pytest.raises(ValueError, match="image_ranks has shape .39,., but text_to_image names 40 images"):
        recall_intervals(ranks[0][1:], ranks[1], owner)
    with pytest.raises(ValueError, match="text_ranks has shape"):
        compare_models(ranks, (ranks[0], ranks[1][1:]), owner)
    with pytest.raises(ValueError, match="confidence=95 must lie between 0 and 1"):
        recall_intervals(*ranks, owner, confidence=95)
    with pytest.raises(ValueError, match="resamples=0 must be at least 1"):
        compare_models(ranks, ranks, owner, resamples=0)


def test_differences_that_are_equal_but_rounded_differently_count_as_equal():
    first, second = np.array([20, 20, 3, 7, 0, 20]), np.array([0, 0, 0, 20, 0, 20])
    found = compare_models((first, first), (second, second), np.arange(6))
    # Of four coins that add or take 3, 3, 1 and 1 recalls, 3 + 3 + 1 - 1 or more come up 6 times in 16.
    assert found["rsum"]["p_value"] == 6 / 16
