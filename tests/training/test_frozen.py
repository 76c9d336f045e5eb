"""Outputs of frozen towers: equal to running the tower, found again, and not found once anything has changed."""

import copy
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Image
from transformers import BertConfig, CLIPImageProcessorPil

from hf_vse.data.features import FeatureRows
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.embed.store import Store
from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training import frozen
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.frozen import cache_frozen_towers, with_kept_outputs
from hf_vse.training.trainer import VSETrainer
from tests.conftest import make_feature_pairs, make_pairs


@pytest.fixture
def processor(tokenizer):
    return VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=16), tokenizer)


@pytest.fixture
def model(tokenizer, tiny_resnet, request):
    text = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    options = {"text_pooling": "mean", "text_layers": getattr(request, "param", 1), "projection_dim": 8}
    return VSEModel(VSEConfig(vision_config=tiny_resnet, text_config=text, **options)).eval()


@pytest.fixture
def make_args(tmp_path):
    defaults = {"output_dir": str(tmp_path / "run"), "frozen_cache_dir": str(tmp_path / "cache")}
    defaults |= {"crop_min_scale": 1.0, "mirror_images": False, "freeze_image_tower": True, "save_strategy": "no"}
    defaults |= {"eval_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": 4, "logging_steps": 1}
    return lambda **options: VSETrainingArguments(**defaults | options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(frozen, "SHARD", 5)


def shards(args) -> dict[str, int]:
    """Name and time of every shard in the cache."""
    root = args.frozen_cache_dir
    return {str(path): path.stat().st_mtime_ns for path in Path(root).rglob("*.arrow")}


def test_image_features_are_the_pooled_outputs_of_the_tower(model, processor, make_args):
    split = make_pairs(12)
    cached = cache_frozen_towers(model, processor, {"train": split, "test": split}, make_args())
    assert "image" not in cached["train"].column_names and cached["test"] is split
    with torch.no_grad():
        expected = model.pool_images(**processor(images=split["image"][:]))[1]
    rows = FeatureRows(cached["train"], "image_features")
    torch.testing.assert_close(torch.tensor(np.stack([rows[row] for row in range(12)])), expected)


def test_mirror_average_counts_in_evaluation_alone(model, processor, make_args):
    """The training split keeps each view by itself, as training reads them; the others what evaluation pools."""
    split, args = make_pairs(6), make_args()
    plain = cache_frozen_towers(model, processor, {"train": split, "validation": split}, args)
    model.config.mirror_average = True
    count = len(shards(args))
    cached = cache_frozen_towers(model, processor, {"train": split, "validation": split}, args)
    assert len(shards(args)) == 2 * count
    pixels = processor(images=split["image"][:])
    with torch.no_grad():
        expected = {"train": model.pool_images(**pixels, alone=True)[1], "validation": model.pool_images(**pixels)[1]}
    for name, features in expected.items():
        found = FeatureRows(cached[name], "image_features")
        torch.testing.assert_close(torch.tensor(np.stack([found[row] for row in range(6)])), features)
    before, after = (FeatureRows(each["train"], "image_features") for each in (plain, cached))
    assert all(np.array_equal(before[row], after[row]) for row in range(6))
    assert evaluate_retrieval(model, processor, cached["validation"], progress=False) == pytest.approx(
        evaluate_retrieval(model, processor, split, progress=False)
    )


def test_training_on_the_cache_equals_training_with_the_tower(model, processor, make_args):
    split, losses = make_pairs(12), []
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for cache in (True, False):
        model.load_state_dict(start)
        args = make_args(cache_frozen=cache, freeze_text_tower=True, num_train_epochs=2, learning_rate=1e-2)
        splits = cache_frozen_towers(model, processor, {"train": split}, args)
        assert ("image_features" in splits["train"].column_names) is cache
        trainer = VSETrainer(model, args, train_dataset=splits["train"], processing_class=processor)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 30 and losses[0][0] != pytest.approx(losses[0][-1], rel=0.01)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_recall_on_the_cache_equals_recall_with_the_towers(model, processor, make_args):
    split = make_pairs(12)
    cached = cache_frozen_towers(model, processor, {"train": split}, make_args(freeze_text_tower=True))["train"]
    assert {"image_features", "caption_features"} <= set(cached.column_names)
    metrics = evaluate_retrieval(model, processor, cached, progress=False)
    assert metrics == pytest.approx(evaluate_retrieval(model, processor, split, progress=False))


@pytest.mark.parametrize("model", [1, 2], indirect=True, ids=["one layer", "two layers"])
def test_features_of_a_caption_follow_it_through_selections(model, processor, make_args):
    splits = {"train": make_pairs(12, captions=3)}
    args = make_args(freeze_image_tower=False, freeze_text_tower=True)
    cached = cache_frozen_towers(model, processor, splits, args)["train"]
    pairs = PairDataset(cached.select([7, 2]))
    for row, caption in ((0, 2), (1, 0)):
        item = pairs[Pair(row, caption, 0)]
        with torch.no_grad():
            expected = model.pool_texts(**processor(text=item["caption"]))[1][0]
        torch.testing.assert_close(torch.tensor(item["caption_features"]), expected)


def test_second_run_computes_nothing(model, processor, make_args):
    args, splits = make_args(freeze_text_tower=True), {"train": make_pairs(12)}
    cache_frozen_towers(model, processor, splits, args)
    before = shards(args)
    processor(text=["red", "one more word"], padding="max_length", max_length=9)  # leaves its traces in the tokenizer
    processor.image_processor.auto_map = {"AutoProcessor": "processing_vse.VSEProcessor"}  # as a saved one has
    cache_frozen_towers(model, processor, splits, args)
    assert len(before) == 6 and shards(args) == before


def test_interrupted_computation_continues(model, processor, make_args, monkeypatch):
    args, splits = make_args(), {"train": make_pairs(12)}
    write, written = Store.write, []

    def write_one(store, *shard):
        if written:
            raise KeyboardInterrupt
        written.append(shard)
        write(store, *shard)

    monkeypatch.setattr(Store, "write", write_one)
    with pytest.raises(KeyboardInterrupt):
        cache_frozen_towers(model, processor, splits, args)
    first = shards(args)
    monkeypatch.setattr(Store, "write", write)
    cached = cache_frozen_towers(model, processor, splits, args)["train"]
    assert len(first) == 1 and len(shards(args)) == 3 and first.items() <= shards(args).items()
    assert len(FeatureRows(cached, "image_features")) == 12


def brighter(split):
    """The same data set with its first picture changed in one pixel."""

    def change(row, index):
        if index == 0:
            picture = PIL.Image.open(io.BytesIO(row["image"]["bytes"]))
            picture.putpixel((0, 0), (1, 2, 3))
            file = io.BytesIO()
            picture.save(file, format="PNG")
            row["image"]["bytes"] = file.getvalue()
        return row

    return split.cast_column("image", Image(decode=False)).map(change, with_indices=True).cast_column("image", Image())


@pytest.mark.parametrize("changed", ["nothing", "weight", "statistic", "transform", "pooling", "image", "crops"])
def test_anything_changed_is_computed_anew(model, processor, make_args, changed):
    split = make_pairs(6)
    args = make_args()
    cache_frozen_towers(model, processor, {"train": split}, args)
    before = len(shards(args))
    norm = next(each for each in model.vision_model.modules() if isinstance(each, torch.nn.BatchNorm2d))
    if changed == "weight":
        next(model.vision_model.parameters()).data[0] += 1
    if changed == "statistic":
        norm.running_mean += 1
    if changed == "transform":
        processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    if changed == "pooling":
        model.config.vision_pooling = "max"
    split = brighter(split) if changed == "image" else split
    args = make_args(cached_crops=1) if changed == "crops" else args
    cache_frozen_towers(model, processor, {"train": split}, args)
    expected = {"nothing": before, "image": before + 1}  # shards of 5 images: the other one is found again
    assert len(shards(args)) == expected.get(changed, 2 * before)


def test_crops_are_drawn_once_and_chosen_by_the_draw(model, processor, make_args):
    args = make_args(cached_crops=2, crop_min_scale=0.3, mirror_images=True)
    splits = {"train": make_pairs(6), "validation": make_pairs(6)}
    cached = cache_frozen_towers(model, processor, splits, args)
    assert {"image_features_1", "image_features_2"} <= set(cached["train"].column_names)
    assert "image_features_1" not in cached["validation"].column_names
    pairs = PairDataset(cached["train"])
    seen = [pairs[Pair(3, 0, draw)]["image_features"] for draw in range(4)]
    assert np.array_equal(seen[0], seen[3]) and not np.allclose(seen[0], seen[1]) and not np.allclose(seen[1], seen[2])
    np.testing.assert_allclose(seen[0], FeatureRows(cached["validation"], "image_features")[3], rtol=1e-5)
    before = shards(args)
    args = make_args(cached_crops=2, crop_min_scale=0.3, mirror_images=True, seed=args.seed + 1)
    cache_frozen_towers(model, processor, splits, args)
    assert len(before) == 4 and shards(args) == before, "all seeds share the crops"


def test_an_image_that_cannot_be_read_is_left_out(model, processor, make_args, caplog):
    def truncate(row, index):
        row["image"]["bytes"] = row["image"]["bytes"][: 60 if index == 4 else None]
        return row

    split = make_pairs(12).cast_column("image", Image(decode=False)).map(truncate, with_indices=True)
    splits = {"train": split.cast_column("image", Image())}
    cached = cache_frozen_towers(model, processor, splits, make_args(max_broken_share=0.1))["train"]
    assert cached["image_id"][:] == [row for row in range(12) if row != 4]
    assert "1 of 12 images" in caplog.text
    assert np.isfinite(FeatureRows(cached, "image_features")[4]).all()
    with pytest.raises(ValueError, match="max_broken_share=0.01"):
        cache_frozen_towers(model, processor, splits, make_args())


def test_what_changes_from_epoch_to_epoch_is_not_cached(model, processor, make_args, tokenizer):
    model.config.vision_pooling = "gpo"
    assert frozen.frozen_sides(model, make_args()) == (False, False)
    assert frozen.frozen_sides(model, make_args(freeze_text_tower=True, word_dropout=0.1)) == (False, False)
    assert frozen.frozen_sides(model, make_args(freeze_text_tower=True, set_dropout=0.1)) == (False, False)
    assert frozen.frozen_sides(model, make_args(freeze_text_tower=True)) == (False, True)
    assert frozen.frozen_sides(model, make_args(freeze_image_tower=False)) == (False, False)


def test_feature_rows_equal_the_column_of_the_data_set():
    split = make_feature_pairs(9).select([4, 1, 8])
    rows = FeatureRows(split, "image_features")
    assert len(rows) == 3
    np.testing.assert_array_equal([rows[row] for row in range(3)], split["image_features"][:])


def test_features_of_the_pieces_of_long_captions_are_those_of_the_tower(model, processor, make_args, tokenizer):
    processor.tokenizer = copy.deepcopy(tokenizer)
    processor.tokenizer.model_max_length = 7  # five words
    split, losses, start = make_pairs(12), [], model.state_dict()
    start = {name: tensor.clone() for name, tensor in start.items()}
    divided = split.map(lambda row: {"captions": [caption.replace(" ", ", ") for caption in row["captions"]]})
    for cache in (True, False):
        model.load_state_dict(start)
        args = make_args(cache_frozen=cache, freeze_text_tower=True, num_train_epochs=1, learning_rate=1e-2)
        read = cache_frozen_towers(model, processor, {"train": divided, "validation": divided}, args)
        assert ("caption_features" in read["train"].column_names) is cache
        trainer = VSETrainer(model, args, train_dataset=read["train"], processing_class=processor)
        assert len(trainer.train_dataset.pieces) > 20 and len(trainer.train_dataset) == 60
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        if cache:
            counts = [[len(each) for each in FeatureRows(read[name], "caption_features")] for name in read]
            assert sum(counts[0]) > 90 and counts[1] == [5] * 12, "evaluation reads whole captions, cut"
            recalls = [trainer.evaluate(split) for split in (read["train"], divided)]
            assert recalls[0].pop("eval_runtime") >= 0 and recalls[1].pop("eval_runtime") >= 0
            assert recalls[0]["eval_texts"] == 60 and recalls[0] == pytest.approx(recalls[1])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_a_report_reads_what_training_kept(model, processor, make_args, monkeypatch):
    model.config.mirror_average = True
    args, split = make_args(freeze_text_tower=True), make_pairs(12)
    cache_frozen_towers(model, processor, {"validation": split}, args)
    assert with_kept_outputs(model, processor, split, make_args(freeze_text_tower=True, bf16=True)) is split
    assert with_kept_outputs(model, processor, split, make_args(freeze_image_tower=False)) is split
    expected = evaluate_retrieval(model, processor, split)
    read = with_kept_outputs(model, processor, split, args)
    assert "image" not in read.column_names and "image" in split.column_names
    monkeypatch.setattr(model, "pool_texts", None)  # neither tower runs again
    monkeypatch.setattr(model.vision_model, "forward", None)
    assert evaluate_retrieval(model, processor, read) == pytest.approx(expected)


def test_a_report_counts_the_images_that_cannot_be_read(model, processor, make_args):
    args = make_args(max_broken_share=0.5)
    split = make_pairs(6).cast_column("image", Image(decode=False))
    broken = split.map(
        lambda row, at: {"image": {"bytes": b"no image", "path": None}} if at == 2 else {}, with_indices=True
    )
    cache_frozen_towers(model, processor, {"validation": broken}, args)
    read = with_kept_outputs(model, processor, broken, args)
    assert "image" in read.column_names and len(read) == 6
