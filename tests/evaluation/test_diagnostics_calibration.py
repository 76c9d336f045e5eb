"""Calibration against a dense softmax, and a temperature that is known because the labels were drawn with it."""

import numpy as np
import pytest
import torch

from hf_vse.evaluation.diagnostics import calibration as calibration_module
from hf_vse.evaluation.diagnostics.calibration import (
    TextQueries,
    calibration,
    fit_temperature,
    reliability,
    softmax_over,
)
from hf_vse.evaluation.ranks import retrieval_ranks
from tests.evaluation.test_metrics import embeddings


def measured(**options):
    images, texts, owner = (torch.from_numpy(np.asarray(each)) for each in embeddings(**options))
    return images, texts, owner, retrieval_ranks(images, texts, owner)[1]


def dense_softmax(scores, temperature):
    exponentials = np.exp(scores / temperature - (scores / temperature).max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def slow_error(confidence, correct):
    """Mean over queries of how far confidence and accuracy of their bin are apart."""
    total = 0.0
    for number in range(15):
        inside = [i for i, value in enumerate(confidence) if number / 15 < value <= (number + 1) / 15]
        if inside:
            apart = np.mean([confidence[i] for i in inside]) - np.mean([correct[i] for i in inside])
            total += len(inside) * abs(apart)
    return 100 * total / len(confidence)


@pytest.mark.parametrize("tile", [7, 2000])
def test_given_temperature_equals_a_dense_softmax(tile, monkeypatch):
    monkeypatch.setattr(calibration_module, "TILE", tile)
    images, texts, owner, ranks = measured(noise=1.0)
    scores = texts.double().numpy() @ images.double().numpy().T
    record = calibration(images, texts, owner, ranks, temperature=0.2)
    probabilities = dense_softmax(scores, 0.2)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == owner.numpy()
    assert record["queries"] == len(texts) and record["candidates"] == 60
    assert record["accuracy"] == pytest.approx(100 * correct.mean()) and 0.2 < correct.mean() < 0.9
    given = record["given"]
    assert given["temperature"] == 0.2
    assert given["ece"] == pytest.approx(slow_error(confidence, correct), abs=1e-4)
    assert given["confidence"] == pytest.approx(100 * confidence.mean(), rel=1e-5)
    own = probabilities[np.arange(len(texts)), owner]
    assert given["nll"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert sum(row["queries"] for row in given["bins"]) == len(texts) and len(given["bins"]) > 5
    assert all(row["low"] <= row["confidence"] <= row["high"] for row in given["bins"])
    assert calibration(images, texts, owner, ranks)["given"] is None


def drawn_questions(temperature, queries=4000, images=40):
    """Texts whose right image is drawn from their own softmax."""
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(count, 12)) for count in (images, queries))
    images, texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts))
    scores = texts @ images.T
    owner = np.array([rng.choice(len(images), p=row) for row in dense_softmax(scores, temperature)])
    return [torch.from_numpy(each.astype(np.float32)) for each in (images, texts)] + [torch.from_numpy(owner)]


@pytest.mark.parametrize("temperature", [0.03, 0.3])
def test_fitted_temperature_is_the_one_that_made_the_labels(temperature):
    images, texts, owner = drawn_questions(temperature)
    scores = texts @ images.T
    ranks = (scores > scores.gather(1, owner[:, None])).sum(dim=1)
    record = calibration(images, texts, owner, ranks, temperature=temperature / 5, sample=4000)
    assert record["fitted"]["temperatures"] == pytest.approx([temperature, temperature], rel=0.1)
    assert record["fitted"]["ece"] < 3 < 10 < record["given"]["ece"]
    assert record["fitted"]["nll"] < record["given"]["nll"]


def test_fitted_temperature_has_the_least_likelihood_loss_of_a_grid():
    images, texts, owner, _ = measured(noise=1.0, seed=3)
    scores = (texts.double() @ images.double().T).numpy()
    own = scores[np.arange(len(texts)), owner]
    queries = TextQueries(
        texts, *(torch.from_numpy(each.astype(np.float32)) for each in (own, scores.max(axis=1))), owner
    )
    fitted = fit_temperature(queries, images)
    losses = {
        t: -np.log(dense_softmax(scores, t)[np.arange(len(texts)), owner]).mean() for t in np.geomspace(0.01, 1, 400)
    }
    assert fitted == pytest.approx(min(losses, key=losses.get), rel=0.02)


def test_temperature_is_fitted_on_other_queries_than_it_is_reported_on():
    """Captions of the two halves of the images follow temperatures of their own; each half is given the other's."""
    images, texts, owner, ranks = measured(noise=1.0)
    record = calibration(images, texts, owner, ranks)
    generator = torch.Generator().manual_seed(0)
    torch.randperm(len(texts), generator=generator)
    half = (torch.randperm(len(images), generator=generator)[owner] % 2 == 0).numpy()
    scores = texts.double().numpy() @ images.double().numpy().T
    first, second = record["fitted"]["temperatures"]
    assert first != second
    probabilities = np.where(half[:, None], dense_softmax(scores, second), dense_softmax(scores, first))
    assert record["fitted"]["nll"] == pytest.approx(
        -np.log(probabilities[np.arange(len(texts)), owner]).mean(), rel=1e-5
    )
    for rows, temperature in ((half, first), (~half, second)):
        inside = np.flatnonzero(rows)
        losses = {
            t: -np.log(dense_softmax(scores[inside], t)[np.arange(len(inside)), owner[inside]]).mean()
            for t in np.geomspace(0.03, 1, 200)
        }
        assert temperature == pytest.approx(min(losses, key=losses.get), rel=0.03)


def test_perfect_and_hopeless_models_have_temperatures_at_the_ends():
    eye = torch.eye(8)
    perfect = calibration(eye, eye, torch.arange(8), torch.zeros(8, dtype=torch.int64))
    assert (
        perfect["fitted"]["temperatures"][0] < 0.02 and perfect["accuracy"] == 100 and perfect["fitted"]["ece"] < 1e-6
    )
    hopeless = calibration(eye, -eye, torch.arange(8), torch.full((8,), 7))
    assert hopeless["fitted"]["temperatures"] == pytest.approx([10, 10], rel=0.01)
    collapsed = calibration(torch.ones(8, 4) / 2, torch.ones(8, 4) / 2, torch.arange(8), torch.full((8,), 7))
    assert collapsed["fitted"]["nll"] == pytest.approx(np.log(8)) and collapsed["fitted"]["ece"] == pytest.approx(12.5)


@pytest.mark.parametrize("tile", [7, 2000])
def test_moments_are_those_of_a_dense_softmax(tile, monkeypatch):
    monkeypatch.setattr(calibration_module, "TILE", tile)
    images, texts, owner, _ = measured(noise=1.0)
    scores = texts.double().numpy() @ images.double().numpy().T
    top = torch.from_numpy(scores.max(axis=1).astype(np.float32))
    temperatures = torch.rand(len(texts), dtype=torch.float64) + 0.05
    softmax = softmax_over(TextQueries(texts, top, top, owner), images, temperatures)
    probabilities = dense_softmax(scores, temperatures.numpy()[:, None])
    below = scores - scores.max(axis=1, keepdims=True)
    mean = (probabilities * below).sum(axis=1)
    variance = (probabilities * (below - mean[:, None]) ** 2).sum(axis=1)
    np.testing.assert_allclose(softmax.mean, mean, atol=1e-5)
    np.testing.assert_allclose(softmax.variance, variance, atol=1e-5)
    np.testing.assert_allclose(softmax.log_total, -np.log(probabilities.max(axis=1)), atol=1e-5)
    assert variance.min() > 1e-3


def test_small_temperatures_do_not_underflow():
    images, texts, owner, ranks = measured()
    record = calibration(images, texts, owner, ranks, temperature=1e-3)
    assert np.isfinite(record["given"]["nll"]) and record["given"]["confidence"] > 90
    softmax = softmax_over(TextQueries(texts, *[(texts @ images.T).amax(dim=1)] * 2, owner), images, 1e-4)
    assert all(each.isfinite().all() for each in softmax)


def test_bins_are_of_equal_width_and_leave_nobody_out():
    confidence = torch.tensor([0.0, 1e-9, 1 / 15, 0.5, 1.0], dtype=torch.float64)
    error, bins = reliability(confidence, torch.tensor([False, True, False, True, True]))
    assert [row["queries"] for row in bins] == [3, 1, 1]
    assert error == pytest.approx(20 * (3 * (1 / 3 - 1 / 45) + 0.5))


def test_sample_is_seeded_and_bad_temperatures_are_refused():
    arguments = measured(images=50)
    record = calibration(*arguments, sample=90, seed=1)
    assert record["queries"] == 90 and calibration(*arguments, sample=90, seed=1) == record
    assert calibration(*arguments, sample=90, seed=2)["fitted"] != record["fitted"]
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        calibration(*arguments, temperature=0)
    with pytest.raises(ValueError, match="captions of two images at least"):
        calibration(*arguments, sample=1)
