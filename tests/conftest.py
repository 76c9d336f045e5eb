"""Small real parts that tests share. Nothing here reaches a network."""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # has to be known before triton is imported for the first time

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from hf_vse.data.tokenization import train_word_tokenizer

WORDS = "red green blue yellow circle square star ring small large left right above below".split()


def make_captions(index: int, count: int = 5) -> list[str]:
    rng = np.random.default_rng(index)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) for _ in range(count)]


def make_pairs(images: int, size: int = 32, captions: int = 5, first_id: int = 0) -> Dataset:
    """Random pictures of distinct brightness with random captions, in the columns of `load_pairs`."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(images)]
    rows = {
        "image": [PIL.Image.fromarray(each) for each in pixels],
        "image_id": list(range(first_id, first_id + images)),
        "captions": [make_captions(index, captions) for index in range(images)],
        "caption_ids": [list(range(index * captions, (index + 1) * captions)) for index in range(images)],
    }
    columns = {"image": Image(), "image_id": Value("int64"), "captions": List(Value("string"))}
    return Dataset.from_dict(rows, features=Features(columns | {"caption_ids": List(Value("int64"))}))


def make_feature_pairs(images: int, dim: int = 16, captions: int = 5) -> Dataset:
    """The same with features that determine the captions, so that a model can learn them."""
    rng = np.random.default_rng(1)
    plain = make_pairs(images, size=4, captions=captions).remove_columns("image")
    features = rng.normal(size=(images, dim)).astype(np.float32)
    return plain.add_column("image_features", list(features), feature=List(Value("float32"), length=dim))


@pytest.fixture(scope="session")
def tokenizer():
    return train_word_tokenizer([caption for index in range(50) for caption in make_captions(index)], min_count=1)


@pytest.fixture(scope="session")
def tiny_resnet() -> dict:
    return {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
    }


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
