"""Judges embeddings in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from hf_vse.data.schema import CAPTIONS, flatten_captions
from hf_vse.embed.adapters.arrays import GivenEmbeddings, read_embeddings
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.judge import Judgement, Texts, judge_embeddings, texts_of


def holds_embeddings(name: str) -> bool:
    """Whether a name is that of a file or folder of embeddings, and not of a model."""
    path = Path(name)
    return (path.is_file() and path.suffix == ".safetensors") or (path / "image_embeds.npy").is_file()


def judge_given(path: str | Path, dataset: Dataset | None = None, **asked: Any) -> Judgement:
    """Judges a file or folder that `read_embeddings` reads; similarity is the cosine.

    Args:
        dataset: the split they were computed from, in its order: its captions and ids take the place of the file's.
        asked: `source`, `split`, `diagnostics`, `train_captions`, see `judge_embeddings`.

    Raises:
        ValueError: the embeddings are not those of `dataset`.
    """
    given = read_embeddings(path)
    images, texts = unit_length(given.image_embeds), unit_length(given.text_embeds)
    pairs = PairEmbeddings(images, texts, given.text_to_image, torch.arange(len(images)), 0)
    if dataset is None:
        known = Texts(given.captions, given.image_ids, given.caption_ids)
    else:
        check_same_split(path, given, dataset)
        known = texts_of(dataset, pairs)
    facts = {"family": "embeddings", "dimensions": images.shape[1]}
    return judge_embeddings(pairs, known, dataset, name=str(path), facts=facts, **asked)


def unit_length(embeds: np.ndarray | Tensor) -> Tensor:
    return normalize(torch.as_tensor(np.asarray(embeds, dtype=np.float32)), dim=1)


def check_same_split(path: str | Path, given: GivenEmbeddings, dataset: Dataset) -> None:
    owner = flatten_captions(dataset.with_format(None)[CAPTIONS][:])[1]
    counts = len(given.image_embeds), len(given.text_embeds)
    if counts != (len(dataset), len(owner)):
        raise ValueError(
            f"{path} holds {counts[0]:,} images and {counts[1]:,} texts, the split {len(dataset):,} and "
            f"{len(owner):,}: give the data that the embeddings were computed from, or leave --dataset out"
        )
    if given.text_to_image.tolist() != owner.tolist():
        raise ValueError(f"{path}: text_to_image is not that of the split; write the embeddings in its order")
