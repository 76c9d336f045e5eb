"""The model in sentence-transformers' own trainer and evaluators, and in MTEB, which give named inputs."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_vse.embed.adapters.transformers_models import TransformersEncoder, processor_of
from hf_vse.model.modeling_vse import VSEModel
from tests.conftest import make_pairs
from tests.embed.test_transformers_models import CASES, save

library = pytest.importorskip("sentence_transformers")


@pytest.fixture
def model(tokenizer, tmp_path):
    save(tmp_path / "source", CASES["clip"], tokenizer)
    start = VSEModel.from_dual_encoder(TransformersEncoder.from_pretrained(str(tmp_path / "source"), "cpu").model)
    start.save_pretrained(tmp_path / "own")
    processor_of(str(tmp_path / "source")).save_pretrained(tmp_path / "own")
    return library.SentenceTransformer(str(tmp_path / "own"), trust_remote_code=True, device="cpu")


@pytest.fixture
def pairs():
    rows = make_pairs(8)
    return list(rows["image"]), [captions[0] for captions in rows["captions"]]


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning")
def test_trainer_and_evaluators(model, pairs, tmp_path):
    from sentence_transformers.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    images, captions = pairs
    queries = {str(place): {"text": caption} for place, caption in enumerate(captions)}
    corpus = {str(place): {"image": image} for place, image in enumerate(images)}
    evaluator = InformationRetrievalEvaluator(queries, corpus, {key: {key} for key in queries}, write_csv=False)
    scores = model.encode(captions) @ model.encode(images).T
    expected = np.mean(scores.argmax(axis=1) == np.arange(len(captions)))
    assert evaluator(model)["cosine_accuracy@1"] == pytest.approx(expected)

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {"max_steps": 1, "per_device_train_batch_size": 8, "use_cpu": True, "save_strategy": "no"}
    arguments = library.SentenceTransformerTrainingArguments(str(tmp_path / "out"), **options, learning_rate=1e-3)
    data = Dataset.from_dict({"anchor": images, "positive": captions})
    loss = MultipleNegativesRankingLoss(model)
    library.SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert all(name.endswith("logit_scale") for name in still)  # the loss has a scale of its own

    trained = model.encode([{"image": images[0]}, {"text": captions[0]}])
    model.save_pretrained(str(tmp_path / "again"))
    again = library.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode([images[0], captions[0]]), trained, atol=1e-6)


def test_mteb(model, tmp_path, monkeypatch):
    mteb = pytest.importorskip("mteb")
    from mteb.mocks import mock_run
    from mteb.models import SentenceTransformerEncoderWrapper

    wrapped = SentenceTransformerEncoderWrapper(model)
    # MTEB reads this from the Hub, of a model that it loads by name.
    kinds = json.loads((tmp_path / "own" / "sentence_bert_config.json").read_text())["modality_config"]
    wrapped.mteb_model_meta.modalities = sorted(kinds)
    tasks = [each for each in mock_run.ALL_MOCK_TASK_TEST_GRID if "Any2AnyRetrieval" in each.metadata.name]
    monkeypatch.setattr(mock_run, "ALL_MOCK_TASK_TEST_GRID", tasks)
    found = mteb.mock_run(wrapped).task_results
    for name in ("MockAny2AnyRetrievalI2T", "MockAny2AnyRetrievalT2I"):
        assert type(found[name]).__name__ == "TaskResult", found[name]
