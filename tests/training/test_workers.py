"""Worker processes that are spawned: what they get is pickled, as on macOS, and on Linux from Python 3.14 on."""

import multiprocessing
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_vse.data.collator import VSECollator
from hf_vse.data.features import FeatureRows, features_dataset
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.data.schema import IMAGE_FEATURES
from hf_vse.data.transforms import Augmentation
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.batches import ReadableBatch
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.frozen import cache_frozen_towers
from tests.conftest import make_captions, make_pairs
from tests.faults.killing import slow
from tests.training.test_trainer import arguments, losses, make_model, make_trainer

IMAGES, DIM = 400, 256


def sent(value):
    """The bytes that a worker gets, and what it makes of them."""
    pickled = bytes(ForkingPickler.dumps(value))
    return len(pickled), ForkingPickler.loads(pickled)


@pytest.fixture
def feature_file(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.random.default_rng(0).normal(size=(IMAGES, DIM)).astype(np.float32))
    return path


def of_array(array: np.ndarray):
    ids, captions = list(range(len(array))), [make_captions(row, 1) for row in range(len(array))]
    return features_dataset(array, ids, captions, [[row] for row in ids])


def test_features_that_are_mapped_travel_as_the_name_of_their_file(feature_file):
    mapped = of_array(np.load(feature_file, mmap_mode="r"))
    for split in (mapped, mapped.select([7, 3, 250])):
        size, rows = sent(FeatureRows(split, IMAGE_FEATURES))
        assert size < 10_000 < IMAGES * DIM * 4 / 10
        for row in range(0, len(split), 2):
            np.testing.assert_array_equal(rows[row], FeatureRows(split, IMAGE_FEATURES)[row])
    size, pairs = sent(PairDataset(mapped))
    assert size < 100_000
    np.testing.assert_array_equal(pairs.first_of(5)[IMAGE_FEATURES], np.load(feature_file)[5])


def test_features_in_memory_and_parts_of_a_map_travel_themselves(feature_file):
    whole = np.load(feature_file, mmap_mode="r")
    for array in (np.array(whole), whole[100:200], whole[::2]):
        _, rows = sent(FeatureRows(of_array(array), IMAGE_FEATURES))
        np.testing.assert_array_equal(rows[3], array[3])


def test_outputs_of_frozen_towers_travel_as_the_names_of_their_files(tokenizer, tiny_resnet, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vse.training.frozen.SHARD", 4)
    args = arguments(tmp_path, freeze_image_tower=True, freeze_text_tower=True, frozen_cache_dir=str(tmp_path))
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    processor = VSEProcessor(CLIPImageProcessorPil(**sides), tokenizer)
    model = make_model(tokenizer, vision=tiny_resnet)
    pairs = PairDataset(cache_frozen_towers(model, processor, {"train": make_pairs(10, size=16)}, args)["train"])
    for rows in (*pairs.views, pairs.texts):
        assert rows.files and len(rows.files) == 3
        _, again = sent(rows)
        for row in range(10):
            np.testing.assert_array_equal(again[row], rows[row])


def test_what_prepares_images_travels_without_the_model(tiny_model):
    encoder = VSEEncoder(VSEModel.from_pretrained(tiny_model), VSEProcessor.from_pretrained(tiny_model))
    weights = sum(each.numel() * each.element_size() for each in encoder.model.parameters())
    size, collate = sent(ReadableBatch(encoder.prepare_images, True, None))
    assert size < 60_000 and weights > 0 and not hasattr(collate.prepare.__self__, "model")
    rows = [{"image": image} for image in make_pairs(3)["image"]] + [{"image": {"bytes": b"x", "path": None}}]
    readable, ready = collate(rows)
    assert readable.tolist() == [True, True, True, False]
    torch.testing.assert_close(
        ready["pixel_values"], encoder.prepare_images([row["image"] for row in rows[:3]])["pixel_values"]
    )


def test_what_reads_training_pairs_travels(tiny_model):
    collator = VSECollator(VSEProcessor.from_pretrained(tiny_model), Augmentation(0.5, True), word_dropout=0.2)
    pairs = PairDataset(make_pairs(4))
    (_, pairs_there), (_, collator_there) = sent(pairs), sent(collator)
    places = [Pair(row, 1, 7 * row) for row in range(4)]
    found = collator_there([pairs_there[place] for place in places])
    for name, tensor in collator([pairs[place] for place in places]).items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def start_method(request):
    """The way workers are started in a test, and afterwards again the usual one."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"], indirect=True)
def test_training_and_evaluation_with_workers_that_are_started_anew(start_method, tokenizer, tiny_resnet, tmp_path):
    data = make_pairs(8, size=16, captions=1)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    found = {}
    for workers in (0, 1):
        model = make_model(tokenizer, vision=tiny_resnet)
        processor = VSEProcessor(CLIPImageProcessorPil(**sides), tokenizer)
        options = {"dataloader_num_workers": workers, "num_train_epochs": 1, "word_dropout": 0.2}
        trainer = make_trainer(tmp_path, tokenizer, data, model, processor, data, **options)
        trainer.train()
        found[workers] = losses(trainer), trainer.evaluate()["eval_rsum"]
    assert found[1][0] == pytest.approx(found[0][0]) and found[1][1] == found[0][1]
