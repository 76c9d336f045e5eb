"""Training on records of entities: batches, a step, the metric that chooses, whole runs, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Value

from hf_vse.data.pairs import PairDataset
from hf_vse.data.sampler import PairBatchSampler, groups_of_labels
from hf_vse.data.scene_catalogues import write_catalogues
from hf_vse.data.schema import text_id
from hf_vse.evaluation.entities import entity_recall, records_of
from hf_vse.link.pooling import mean_of_texts, pooled_vectors
from hf_vse.objectives.execution import execute_loss
from hf_vse.training.recipe import build_recipe
from hf_vse.training.result import run_summary
from hf_vse.training.run import run_recipe
from tests.conftest import make_feature_pairs
from tests.embed.test_transformers_models import CASES, save
from tests.training.test_trainer import GradientSpy, losses, make_model, make_trainer, weights

ENTITY = {"positives": "entity", "group_size": 2}


def records(entities: int = 8, views: int = 3):
    """The features of a view are those of its entity and noise; the captions of a view are its own."""
    rng = np.random.default_rng(0)
    data = make_feature_pairs(entities * views)
    label = np.arange(len(data)) % entities
    features = rng.normal(size=(entities, 16))[label] + 0.7 * rng.normal(size=(len(data), 16))
    data = data.remove_columns("image_features").add_column("image_features", features.astype(np.float32).tolist())
    return data.add_column("group_id", [text_id(f"{each}") for each in label.tolist()], feature=Value("int64"))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_groups_have_the_size_or_a_few_more(size):
    labels = np.random.default_rng(0).permutation(np.repeat([7, -3, 0, 5, 9], [1, 2, 5, 11, 20]))
    groups = groups_of_labels(labels, size, np.random.default_rng(1))
    for label, count in Counter(labels.tolist()).items():
        sizes = sorted(Counter(groups[labels == label].tolist()).values())
        assert len(sizes) == max(1, count // size) and sizes[-1] - sizes[0] <= 1
        assert min(size, count) <= sizes[0] and sizes[-1] < 2 * size
        assert not set(groups[labels == label]) & set(groups[labels != label])
    assert not np.array_equal(groups, groups_of_labels(labels, size, np.random.default_rng(2)))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_has_records_of_the_same_entities(processes):
    pairs = PairDataset(records(entities=10, views=4))
    pairs.captions = list(pairs.captions)
    pairs.captions[3] = pairs.captions[3][:2]  # comes as often as the others of its entity all the same
    sampler = PairBatchSampler(pairs, 4, processes, labels=pairs.image_ids, group_size=2, captions_per_image=2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 40 * 3 // 4
    for first in range(0, len(batches), processes):
        together = [pair.row for batch in batches[first : first + processes] for pair in batch]
        assert len(set(together)) == len(together)
        assert set(Counter(pairs.image_ids[together].tolist()).values()) <= {2, 4}
    seen = Counter((pair.row, each) for batch in batches for pair in batch for each in pair.caption)
    assert len(seen) == len(pairs) and {seen[3, 0], seen[3, 1]} == {3}


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("execution", [{}, {"grad_cache_batch_size": 3}, {"caption_weight": 0.5}])
def test_gradient_of_a_step_is_that_of_the_records(captions, execution, tokenizer, tmp_path):
    data = records()
    more = ENTITY | {"captions_per_image": captions, "max_steps": 1} | execution
    trainer = make_trainer(tmp_path, tokenizer, data, make_model(tokenizer, image_weight=0.3), **more)
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(Counter(batch["image_ids"].tolist()).values()) == [2, 3, 3]
    reference = make_model(tokenizer, image_weight=0.3)
    images = reference.get_image_features(image_features=batch["image_features"]).pooler_output
    words, mask = (batch[name].view(8 * captions, -1) for name in ("input_ids", "attention_mask"))
    texts = reference.get_text_features(words, mask).pooler_output
    texts = texts if captions == 1 else texts.view(8, captions, -1)
    pooled = {"positives": "entity", "image_weight": 0.3, "temperature": 0.1}
    beside = {"caption_weight": execution.get("caption_weight", 0.0)}
    loss = execute_loss(images, texts, image_ids=batch["image_ids"], **beside, **pooled)
    loss.backward()
    seen = {}
    trainer.add_callback(GradientSpy(seen))
    trainer.train()
    assert losses(trainer) == [pytest.approx(loss.item(), rel=1e-4)]
    for name, parameter in reference.named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_checkpoint_that_finds_entities_best_is_kept(tokenizer, tmp_path):
    data = records()
    trainer = make_trainer(
        tmp_path, tokenizer, data, eval_dataset=data, num_train_epochs=6, eval_strategy="epoch", save_strategy="epoch",
        **ENTITY,
    )  # fmt: skip
    before = trainer.evaluate()["eval_entity_r1"]
    trainer.train()
    measured = [entry["eval_entity_r1"] for entry in trainer.state.log_history if "eval_entity_r1" in entry]
    assert trainer.state.best_metric == max(measured) > before + 20
    assert trainer.evaluate()["eval_entity_r1"] == pytest.approx(max(measured))


def test_recall_of_entities_is_that_of_a_loop():
    rng = np.random.default_rng(1)
    images, texts = (rng.normal(size=(count, 4)).astype(np.float32) for count in (9, 20))
    images, texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts))
    owner = np.sort(np.r_[np.arange(9), rng.integers(9, size=11)])
    found = records_of(torch.from_numpy(images), torch.from_numpy(texts), torch.from_numpy(owner), 0.3).numpy()
    expected = pooled_vectors(images, mean_of_texts(texts, np.bincount(owner)), 0.3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    entities = [4, 4, None, 1, 1, 1, None, 0, 4]
    right = []
    for row, entity in enumerate(entities):
        others = [place for place in range(9) if place != row]
        if entity is not None and any(entities[place] == entity for place in others):
            right.append(entities[max(others, key=lambda place: found[row] @ found[place])] == entity)
    assert len(right) == 6 and 0 < sum(right) < 6
    assert entity_recall(torch.from_numpy(found), entities) == pytest.approx(100 * sum(right) / 6)
    assert entity_recall(torch.from_numpy(found), [None] * 9) == 0


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tokenizer, tmp_path):
    options = ENTITY | {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "word_dropout": 0.3}
    whole = make_trainer(tmp_path / "whole", tokenizer, records(), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", tokenizer, records(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(resumed.model)[name]), name


def test_a_run_from_a_dual_encoder_on_a_catalogue(tmp_path, tokenizer):
    """From a folder with a column `entity` to a model; the record says what chose it, and entities stay together."""
    start = save(tmp_path / "source" / "clip", CASES["clip"], tokenizer)
    write_catalogues(tmp_path / "catalogues", 4, training=12, views=3, image_size=32)
    values = {
        "dataset": "imagefolder", "data_dir": str(tmp_path / "catalogues" / "train"), "group_column": "entity",
        "near_duplicates": "none", "validation_share": 0.25, "init_from": str(start), "positives": "entity",
        "captions_per_image": 2, "group_size": 3, "per_device_train_batch_size": 9, "max_steps": 2,
        "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "output_dir": str(tmp_path / "run"),
        "mirror_images": False, "crop_min_scale": 1.0, "disable_tqdm": True,
    }  # fmt: skip
    result = run_recipe(build_recipe(values))
    assert result["training_data"]["groups"] == {"groups": 9, "images": 27, "largest": 3}
    log = json.loads((tmp_path / "run" / "stages" / "train" / "stage.json").read_text())
    best = log["best_entity_r1"]
    assert f"stage train: entity R@1 of validation records {best:.1f} at step" in run_summary(tmp_path / "run", result)
    assert best == max(entry["eval_entity_r1"] for entry in log["log"] if "eval_entity_r1" in entry)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 8}, "positives entity and queue_size=8: .*give queue_size: 0"),
        ({"extra_negatives": "same_modality"}, "give extra_negatives: none"),
        ({"unique_images": False}, "give unique_images: true"),
        ({"mask_same_image": False}, "give mask_same_image: true"),
        ({"negatives": "ring", "loss_execution": "auto"}, "give negatives: gather"),
        ({"loss_execution": "streamed"}, "no loss execution 'streamed': give auto, dense, chunked"),
    ],
)
def test_what_has_no_place_beside_entities_is_refused(options, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, records(), **ENTITY | options)


def test_data_without_entities_are_refused(tokenizer, tmp_path):
    data = make_feature_pairs(24)
    with pytest.raises(ValueError, match="no two records of the training split are of one entity"):
        make_trainer(tmp_path, tokenizer, data, **ENTITY).get_train_dataloader()
    with pytest.raises(ValueError, match="give streaming: false"):
        stream = records().to_iterable_dataset()
        make_trainer(tmp_path, tokenizer, stream, max_steps=2, **ENTITY).get_train_dataloader()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "positives entity needs labels: name their column as group_column"),
        (
            {"positives": "one", "caption_weight": 0.5},
            "caption_weight does nothing: captions are all that is contrasted",
        ),
        ({"group_column": "entity"}, "near_duplicates=auto would make one entity of .*give near_duplicates: none"),
        (
            {"group_column": "entity", "near_duplicates": "none", "control_dataset": "scenes", "init_from": "some"},
            "control_dataset chooses weights by recall",
        ),
    ],
)
def test_recipes_without_labels_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build_recipe({"dataset": "scenes", "positives": "entity"} | values)
