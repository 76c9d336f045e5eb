"""Groups of neighbours in a trainer: found in the kept vectors of captions, or refused in one line."""

import numpy as np
import pytest
from datasets import Dataset, List, Value

from hf_vse.data.neighbours import near_rows
from hf_vse.data.pairs import PairDataset
from hf_vse.data.sampler import PairBatchSampler
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.recipe import build_recipe
from hf_vse.training.training_data import groups_of_batches
from tests.conftest import make_feature_pairs
from tests.training.test_trainer import make_trainer


def split_of(images: int = 20, captions: int = 5, vectors: bool = True) -> Dataset:
    split = make_feature_pairs(images, captions=captions)
    if vectors:
        kept = np.random.default_rng(0).normal(size=(images, captions, 16)).astype(np.float32).tolist()
        split = split.add_column("caption_features", kept, feature=List(List(Value("float32"), length=16)))
    return split


def pairs(**options) -> PairDataset:
    return PairDataset(split_of(**options))


def options(tmp_path, **changed) -> VSETrainingArguments:
    given = {"batch_groups": "neighbours", "group_size": 3, "group_first_rank": 2, "group_last_rank": 6}
    return VSETrainingArguments(str(tmp_path), **given | changed)


def test_neighbours_are_those_of_the_mean_vectors_of_captions(tmp_path):
    data = pairs()
    found = groups_of_batches(data, options(tmp_path))
    means = [np.mean([each / np.linalg.norm(each) for each in data.texts[row]], axis=0) for row in range(20)]
    assert found["group_size"] == 3 and np.array_equal(found["near"], near_rows(np.stack(means), 2, 6))
    assert groups_of_batches(data, options(tmp_path, batch_groups="none")) == {}


def test_batches_of_a_trainer_are_groups(tokenizer, tmp_path, monkeypatch):
    asked = []

    class Sampler(PairBatchSampler):
        def __init__(self, *args, **kwargs):
            asked.append(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("hf_vse.training.trainer.PairBatchSampler", Sampler)
    chosen = {"batch_groups": "neighbours", "group_size": 3, "group_first_rank": 2, "group_last_rank": 6}
    trainer = make_trainer(tmp_path, tokenizer, split_of(), per_device_train_batch_size=6, **chosen)
    trainer.get_train_dataloader()
    assert asked[0]["group_size"] == 3 and asked[0]["near"].shape == (20, 5)


@pytest.mark.parametrize(
    ("changed", "data", "message"),
    [
        ({}, {"vectors": False}, "needs one kept vector of each caption: give freeze_text_tower: true"),
        ({"unique_images": False}, {}, "orders images: give unique_images: true"),
        ({"group_size": 7}, {}, "group_size=7 needs 6 ranks, but group_first_rank=2 and group_last_rank=6 have fewer"),
        ({"group_last_rank": 1}, {}, "lower group_size or group_first_rank"),
        ({}, {"images": 3}, "have fewer among 3 images"),
    ],
)
def test_groups_that_cannot_be_formed_are_refused(changed, data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        groups_of_batches(pairs(**data), options(tmp_path, **changed))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_groups": "neighbours"}, "batch_groups does nothing: neighbours are found in the kept vectors"),
        ({"group_size": 4}, "group_size does nothing: there are no groups: give batch_groups: neighbours"),
    ],
)
def test_recipes_without_kept_vectors_or_groups_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build_recipe({"dataset": "scenes"} | values)
    with pytest.raises(ValueError, match="batch_groups is one of none, neighbours, got 'clusters'"):
        VSETrainingArguments("out", batch_groups="clusters")
