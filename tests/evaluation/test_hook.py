"""The hook in a real `transformers.Trainer`, against metrics of embeddings computed without one."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    EvalPrediction,
    SiglipConfig,
    SiglipModel,
    Trainer,
    TrainingArguments,
)

from hf_vse.evaluation.hook import KeepEmbeddings, compute_retrieval_metrics, pair_metrics
from hf_vse.evaluation.metrics import retrieval_metrics
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel

WORDS, LENGTH, SIDE = 50, 10, 32
LAYERS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = LAYERS | {"vocab_size": WORDS, "max_position_embeddings": LENGTH}
VISION = LAYERS | {"image_size": SIDE, "patch_size": 16}


def make_model(kind, tiny_resnet):
    if kind == "clip":
        text = TEXT | {"eos_token_id": WORDS - 1, "bos_token_id": WORDS - 2, "pad_token_id": 0}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": 16}, vision_config=VISION))
    text = {"vocab_size": WORDS, "word_dim": 8, "hidden_size": 16}
    return VSEModel(VSEConfig(vision_config=tiny_resnet, text_config=text, projection_dim=16))


def make_rows(images, id_column="image_id", seed=0) -> Dataset:
    """One to three pairs an image, mixed, in the columns of a data set of pairs and one that no model reads."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        pixels = rng.normal(size=(3, SIDE, SIDE)).astype(np.float32)
        for _ in range(1 + image % 3):
            words = rng.integers(1, WORDS - 2, size=rng.integers(3, LENGTH)).tolist() + [WORDS - 1]
            rows.append({"pixel_values": pixels, "input_ids": words, id_column: 100 + image, "source": "made up"})
    return Dataset.from_list([rows[place] for place in rng.permutation(len(rows))])


def collate(rows):
    words = [row["input_ids"] for row in rows]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
    return batch | {
        "input_ids": torch.tensor([each + [0] * (LENGTH - len(each)) for each in words]),
        "attention_mask": torch.tensor([[1] * len(each) + [0] * (LENGTH - len(each)) for each in words]),
        "return_loss": True,
    }


def make_trainer(model, folder, id_column="image_id", **options):
    given = {"label_names": [id_column], "metric_for_best_model": "rsum", "eval_strategy": "steps", "eval_steps": 2}
    given |= {"per_device_eval_batch_size": 8, "per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "no"}
    given |= {"report_to": "none", "disable_tqdm": True, "learning_rate": 1e-2}
    return Trainer(
        model,
        TrainingArguments(str(folder), **given | options),
        data_collator=collate,
        train_dataset=make_rows(6, id_column, seed=1),
        eval_dataset=make_rows(13, id_column),
        compute_metrics=compute_retrieval_metrics,
        preprocess_logits_for_metrics=KeepEmbeddings(model),
    )


def direct_metrics(model, rows, id_column):
    """All pairs in one batch; of each image the first row."""
    batch = collate([{name: value for name, value in row.items() if name != "source"} for row in rows])
    ids = batch.pop(id_column).tolist()
    model.cpu().eval()
    with torch.no_grad():
        output = model(**batch)
    places, owner, kept = {}, [], []
    for row, image_id in enumerate(ids):
        if image_id not in places:
            places[image_id] = len(places)
            kept.append(row)
        owner.append(places[image_id])
    return retrieval_metrics(output.image_embeds[kept], output.text_embeds, np.array(owner))


@pytest.mark.parametrize("kind, id_column", [("clip", "image_id"), ("siglip", "image_id"), ("vse", "image_ids")])
def test_trainer_reports_the_metrics_of_the_embeddings(kind, id_column, tiny_resnet, tmp_path):
    model = make_model(kind, tiny_resnet)
    trainer = make_trainer(model, tmp_path, id_column)
    trainer.train()
    during = [entry["eval_rsum"] for entry in trainer.state.log_history if "eval_rsum" in entry]
    assert len(during) == 2 and during[0] != during[1]
    rows = trainer.eval_dataset
    assert len(rows) % 8 and "source" in rows.column_names
    found = trainer.evaluate()
    expected = direct_metrics(model, rows, id_column)
    assert 0 < expected["rsum"] < 600 and expected["i2t_meanr"] != expected["t2i_meanr"]
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert found["eval_images"] == 13 and found["eval_texts"] == len(rows) and found["eval_loss"] > 0


def test_predictions_are_two_matrices_and_no_similarities(tiny_resnet, tmp_path):
    trainer = make_trainer(make_model("clip", tiny_resnet), tmp_path)
    result = trainer.predict(make_rows(13))
    assert [each.shape for each in result.predictions] == [(25, 8), (25, 8)]
    assert "test_rsum" in result.metrics


def test_nothing_is_kept_while_training(tiny_resnet):
    model = make_model("clip", tiny_resnet)
    keep = KeepEmbeddings(model)
    batch = collate([{name: row[name] for name in ("input_ids", "pixel_values")} for row in make_rows(3)])
    model(**batch)
    assert not keep.seen
    with torch.no_grad():
        output = model(**batch)
    assert keep.seen["image_embeds"] is not output.text_embeds and len(keep.seen) == 2
    kept = keep(None, torch.zeros(6))
    assert kept[0].equal(output.image_embeds) and kept[1].equal(output.text_embeds) and not keep.seen


@pytest.mark.parametrize("label_names", [None, ["image_ids"], ["image_id", "input_ids"]])
def test_trainer_without_ids_as_labels_is_told_so(label_names, tiny_resnet, tmp_path):
    """And does not end without any metrics, as it would by itself."""
    options = {"label_names": label_names, "remove_unused_columns": False}
    trainer = make_trainer(make_model("clip", tiny_resnet), tmp_path, **options)
    trainer.eval_dataset = trainer.eval_dataset.remove_columns("source")
    with pytest.raises(ValueError, match=r'pass label_names=\["image_id"\] to TrainingArguments'):
        trainer.evaluate()


def test_models_that_do_not_name_their_embeddings_are_refused():
    model = nn.Linear(3, 2)
    keep = KeepEmbeddings(model)
    with torch.no_grad():
        model(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="Linear gave KeepEmbeddings no image_embeds and no text_embeds"):
        keep((), torch.zeros(4))


def test_batches_without_a_text_for_each_image_are_refused(tiny_resnet):
    model = make_model("clip", tiny_resnet)
    keep = KeepEmbeddings(model)
    batch = collate([{name: row[name] for name in ("input_ids", "pixel_values")} for row in make_rows(3)])
    with torch.no_grad():
        model(**batch | {"pixel_values": batch["pixel_values"][:2], "return_loss": False})
    with pytest.raises(ValueError, match=r"CLIPModel embedded \[2, 6\] images and texts of a batch of 6 pairs"):
        keep((), torch.zeros(6))


def test_predictions_and_labels_of_another_kind_are_refused():
    matrix, ids = np.eye(3), np.arange(3)
    for predictions, labels, message in (
        ((matrix, matrix, matrix), ids, "pass preprocess_logits_for_metrics=KeepEmbeddings"),
        ([(matrix, matrix)], ids, "leave eval_do_concat_batches on"),
        ((matrix, matrix), (ids, ids), "the labels are not one integer for each pair"),
        ((matrix, matrix), ids / 2, "the labels are not one integer for each pair"),
        ((matrix, matrix[:2]), ids, r"text_embeds \(2, 3\) and image ids \(3,\) do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            compute_retrieval_metrics(EvalPrediction(predictions=predictions, label_ids=labels))


def test_pairs_of_one_image_become_one_candidate():
    rng = np.random.default_rng(0)
    images, owner = rng.normal(size=(20, 6)), rng.permutation(np.repeat(np.arange(20), 3))
    texts = images[owner] + 1.2 * rng.normal(size=(60, 6))
    units, unit_texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts))
    expected = retrieval_metrics(units, unit_texts, owner)
    found = pair_metrics(3 * images[owner], texts, -7 * owner)
    assert 100 < expected["rsum"] < 500
    assert found == pytest.approx(expected | {"images": 20, "texts": 60})
    alone = pair_metrics(images[owner], texts, np.arange(60))  # as if each pair had an image of its own
    assert alone["t2i_r1"] == 0


def test_one_id_for_two_images_is_refused():
    images = torch.eye(4)
    with pytest.raises(ValueError, match="rows 1 and 3 have the image id 5 but not the same image"):
        pair_metrics(images, images, [3, 5, 4, 5])
    nearly = torch.nn.functional.normalize(torch.randn(2, 256), dim=1).repeat(2, 1)
    nearly[2:] = nearly[2:].bfloat16().float()
    assert pair_metrics(nearly, nearly, [0, 1, 0, 1])["images"] == 2


def test_diverged_models_are_refused():
    images = torch.eye(4)
    images[2, 1] = torch.nan
    with pytest.raises(ValueError, match="image_embeds row 2 is not finite"):
        pair_metrics(images, torch.eye(4), np.arange(4))
