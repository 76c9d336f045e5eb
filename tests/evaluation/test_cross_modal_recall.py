"""The metric that is published for `evaluate` equals the package's own."""

import numpy as np
import pytest

from hf_vse.evaluation import metrics
from tests.evaluation.test_metrics import embeddings

evaluate = pytest.importorskip("evaluate")
FOLDER = metrics.__file__.replace("metrics.py", "cross_modal_recall")


@pytest.fixture
def recall(tmp_path):
    return evaluate.load(FOLDER, cache_dir=str(tmp_path))


@pytest.mark.parametrize("ragged", [False, True])
def test_metric_equals_retrieval_metrics(recall, ragged):
    images, texts, owner = embeddings(ragged=ragged)
    expected = metrics.retrieval_metrics(images, texts, owner)
    assert 5 < expected["i2t_r1"] < 95
    found = recall.compute(image_embeds=images, text_embeds=texts, text_to_image=owner)
    assert found == pytest.approx(expected, abs=1e-9) and list(found) == list(expected)
    for rows in np.array_split(np.arange(len(texts)), 3):
        recall.add_batch(text_embeds=texts[rows].tolist(), text_to_image=owner[rows].tolist())
    assert recall.compute(image_embeds=images.tolist()) == found


def test_metric_counts_ties_against_the_query_as_retrieval_metrics_does(recall):
    images, texts, owner = embeddings(ragged=True)
    images, texts = np.round(2 * images) / 3, np.round(2 * texts) / 3  # many equal similarities
    expected = metrics.retrieval_metrics(images, texts, owner)
    assert expected["rsum"] < metrics.retrieval_metrics(*embeddings(ragged=True))["rsum"] - 50
    found = recall.compute(image_embeds=images, text_embeds=texts, text_to_image=owner)
    assert found == pytest.approx(expected, abs=1e-9)


def test_metric_says_what_is_wrong(recall):
    images, texts = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match="image 1 and 0 more have no text"):
        recall.compute(image_embeds=images, text_embeds=texts, text_to_image=[0, 0])
    with pytest.raises(ValueError, match="must lie in 0 .. 1"):
        recall.compute(image_embeds=images, text_embeds=texts, text_to_image=[0, 2])
    with pytest.raises(ValueError, match="image_embeds is missing"):
        recall.compute(text_embeds=texts, text_to_image=[0, 1])
