"""Verification, one-shot identification and open set against scikit-learn, loops, and a bootstrap of products."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from hf_vse.evaluation import verification
from hf_vse.evaluation.identification import (
    best_distractors,
    identification_metrics,
    levels_of,
    one_shot_answers,
    one_shot_metrics,
    open_set_metrics,
)
from hf_vse.evaluation.intervals import drawn_times
from hf_vse.evaluation.verification import COARSE, count_pairs, drawn_accepts, roc_auc, verification_metrics


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def some_images(classes=60, most=6, noise=0.5, seed=0):
    """Vectors of classes of one to `most` images, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), rng.integers(1, most + 1, classes)))
    return unit(unit(rng.normal(size=(classes, 16)))[labels] + noise * rng.normal(size=(len(labels), 16)) / 4), labels


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles with ragged ends, also across the diagonal."""
    for name, value in {"ROWS": 64, "COLUMNS": 128}.items():
        monkeypatch.setattr(verification, name, value)
    monkeypatch.setattr("hf_vse.evaluation.identification.TILE", 32)


@pytest.mark.parametrize("seed", [0, 1])
def test_verification_over_streamed_pairs_is_that_of_scikit_learn(seed):
    embeds, labels = some_images(noise=2.0, seed=seed)
    rows, columns = np.triu_indices(len(labels), 1)
    scores, same = (embeds @ embeds.T)[rows, columns], labels[rows] == labels[columns]
    found = verification_metrics(embeds, labels, resamples=50)
    assert found["same_pairs"] == same.sum() and found["different_pairs"] == (~same).sum()
    assert found["roc_auc"] == pytest.approx(roc_auc_score(same, scores), abs=2e-6)
    assert 0.6 < found["roc_auc"] < 0.99
    false, true, thresholds = roc_curve(same, scores, drop_intermediate=False)
    place = np.flatnonzero(false <= 1e-3)[-1]
    assert found["tar"] == pytest.approx(100 * true[place], abs=100 / same.sum() + 1e-9) and found["tar"] > 0
    assert (scores[~same] >= found["threshold"]).mean() <= 1e-3
    assert found["threshold"] <= thresholds[place] and found["far"] == pytest.approx(0.1)
    for name in ("roc_auc", "tar"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_coarse_counts_of_the_classes_are_those_of_their_pairs():
    embeds, labels = some_images(classes=12)
    counts = count_pairs(embeds, labels)
    rows, columns = np.triu_indices(len(labels), 1)
    same = labels[rows] == labels[columns]
    touched = np.stack([(labels[rows] == each).astype(int) + (labels[columns] == each) for each in range(12)])
    by_class = {(touched[each] @ ~same, touched[each] @ same) for each in range(12)}
    assert {tuple(each) for each in counts.coarse.sum(axis=2).tolist()} == by_class
    assert roc_auc(counts.coarse.sum(axis=0)) == pytest.approx(roc_auc(counts.fine), abs=2e-3)


def test_the_interval_of_verification_is_that_of_products_of_drawn_classes():
    """Each drawn set of pairs written out: a pair counts as often as both classes were drawn together."""
    embeds, labels = some_images(classes=80, most=4, noise=1.2)
    rows, columns = np.triu_indices(len(labels), 1)
    scores, same = (embeds @ embeds.T)[rows, columns], labels[rows] == labels[columns]
    order = np.argsort(-scores, kind="stable")
    areas, accepted = [], []
    for times in np.concatenate(list(drawn_times(80, 400, seed=5))):
        weights = np.where(same, times[labels[rows]], times[labels[rows]] * times[labels[columns]])[order]
        false, true = (weights * ~same[order]).cumsum(), (weights * same[order]).cumsum()
        areas.append((weights * same[order] * (false[-1] - false)).sum() / false[-1] / true[-1])
        accepted.append(100 * true[np.flatnonzero(false <= 1e-3 * false[-1])[-1]] / true[-1])
    assert areas[-1] == pytest.approx(roc_auc_score(same[order], scores[order], sample_weight=weights))
    found = verification_metrics(embeds, labels, resamples=2000)
    for name, values in (("roc_auc", areas), ("tar", accepted)):
        ends = np.quantile(values, [0.025, 0.975])
        assert np.ptp(ends) > 0 and np.abs(found[f"{name}_interval"] - ends).max() < 0.25 * np.ptp(ends), name


def test_many_classes_are_drawn_in_groups(monkeypatch):
    embeds, labels = some_images(classes=80, most=4, noise=1.2)
    whole = verification_metrics(embeds, labels, resamples=1000)
    monkeypatch.setattr(verification, "GROUPS", 40)
    grouped = verification_metrics(embeds, labels, resamples=1000)
    assert len(count_pairs(embeds, labels).coarse) == 40
    assert grouped["roc_auc"] == whole["roc_auc"] and grouped["tar"] == whole["tar"]
    widths = [np.ptp(each["roc_auc_interval"]) for each in (grouped, whole)]
    assert 0.6 < widths[0] / widths[1] < 1.6


def test_drawn_rates_are_a_line_between_edges():
    counts = np.zeros((1, 2, COARSE))
    counts[0, 0, -1], counts[0, 0, 0] = 2, 998  # 2 of 1,000 strangers in the highest bin, 6 of 10 others
    counts[0, 1, -1], counts[0, 1, 0] = 6, 4
    assert drawn_accepts(counts, 1e-3) == pytest.approx(0.3) and drawn_accepts(counts, 2e-3) == pytest.approx(0.6)


def answered(embeds, labels, distractors, references, seed):
    """The answers of one round, one query after the other, as `one_shot_answers` draws the references."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = {each: [row for row in order if labels[row] == each][:references] for each in set(labels.tolist())}
    gallery = {each: unit(embeds[rows].sum(axis=0)) for each, rows in chosen.items()}
    for row in order:
        if row not in chosen[labels[row]]:
            others = [float(embeds[row] @ vector) for each, vector in gallery.items() if each != labels[row]]
            far = [max(float(embeds[row] @ each) for each in distractors[:level]) for level in (100, 150)]
            yield row, labels[row], float(embeds[row] @ gallery[labels[row]]), max(others), *far


@pytest.mark.parametrize("references", [1, 2])
def test_one_shot_answers_are_those_of_a_loop(references):
    embeds, labels = some_images(noise=0.8)
    distractors = unit(np.random.default_rng(9).normal(size=(150, 16)))
    assert levels_of(distractors) == [100, 150] and levels_of(None) == []
    answers = one_shot_answers(embeds, labels, references=references, distractors=distractors, rounds=1, seed=3)
    expected = sorted(answered(embeds, labels, distractors, references, 3))
    given = np.column_stack([answers.labels, answers.own, answers.other, answers.distractor])
    np.testing.assert_allclose(given, [each[1:] for each in expected], atol=1e-6)
    classes = int(labels.max()) + 1
    found = one_shot_metrics(answers, [100, 150], classes, resamples=200, seed=0)
    alone = np.mean([own > other for _, _, own, other, *_ in expected])
    assert found["top1"] == pytest.approx(100 * alone) and 10 < found["top1"] < 95
    assert found["queries"] == len(expected) and found["chance"] == pytest.approx(100 / 60)
    for place, each in enumerate(found["with_distractors"]):
        share = np.mean([row[2] > max(row[3], row[4 + place]) for row in expected])
        assert each["top1"] == pytest.approx(100 * share) and each["top1"] < found["top1"]
        assert each["top1_interval"][0] < each["top1"] < each["top1_interval"][1]
    assert one_shot_answers(embeds, labels, rounds=3).own.shape == (3 * (len(labels) - 60),)


def test_the_open_set_is_that_of_a_loop_over_thresholds():
    embeds, labels = some_images(noise=1.0)
    answers = one_shot_answers(embeds, labels, rounds=2)
    found = open_set_metrics(answers, resamples=200, seed=0, rate=0.05)
    best = 0.0
    for threshold in answers.other:  # every score of a stranger
        if (answers.other > threshold).mean() <= 0.05:
            best = max(best, np.mean((answers.own > threshold) & (answers.own > answers.other)))
    assert found["tpir"] == pytest.approx(100 * best) and 5 < found["tpir"] < 99
    assert (answers.other > found["threshold"]).mean() <= 0.05
    known = np.maximum(answers.own, answers.other)
    truth = np.repeat([1, 0], len(known))
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([known, answers.other])))
    assert found["tpir_interval"][0] < found["tpir"] < found["tpir_interval"][1]
    far = unit(np.random.default_rng(9).normal(size=(150, 16)))
    among = open_set_metrics(one_shot_answers(embeds, labels, distractors=far, rounds=2), 10, 0, rate=0.05)
    assert among["tpir"] < found["tpir"]  # distractors are references too


def test_intervals_hold_what_other_classes_give():
    """Of thirty sets of classes drawn alike, most intervals hold the mean of all."""
    found = [identification_metrics(*some_images(40, 4, 1.5, seed), resamples=100, rounds=2) for seed in range(30)]
    for part, name in (("verification", "roc_auc"), ("one_shot", "top1"), ("open_set", "tpir")):
        mean = np.mean([each[part][name] for each in found])
        inside = [each[part][f"{name}_interval"][0] <= mean <= each[part][f"{name}_interval"][1] for each in found]
        assert 20 <= sum(inside), (name, sum(inside))


def test_what_cannot_be_identified_is_refused():
    embeds, labels = some_images()
    with pytest.raises(ValueError, match="no class has more than 6 images"):
        identification_metrics(embeds, labels, references=6)
    with pytest.raises(ValueError, match="show 1 things"):
        identification_metrics(embeds, np.zeros(len(embeds), int))
    with pytest.raises(ValueError, match="0 pairs of images show the same thing"):
        verification_metrics(embeds[:5], np.arange(5))
    assert best_distractors(embeds, None).shape == (len(embeds), 0)
