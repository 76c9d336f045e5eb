"""Teachers: models whose scores of images and captions are soft targets; see `objectives/soft_targets.py`.

A teacher is run once over the training split; its vectors are kept on disk like the outputs of a frozen tower, found
again by the digest of the teacher and by the contents. Of several teachers scores are averaged: their unit vectors,
one beside the other and divided by the root of their number, have the mean of the cosines as their product. A teacher
sees whole images and whole captions, whatever crops and pieces the student gets. Or the scores lie in a file, see
`scores.py`.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from torch import Tensor

from hf_vse.data.digests import item_key
from hf_vse.data.features import feature_column
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTIONS, TEACHER_CAPTIONS, TEACHER_IMAGES, flatten_captions
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.load import kind_of, load_encoder
from hf_vse.embed.run import check_readable, encode_images, encode_texts
from hf_vse.embed.store import Store
from hf_vse.objectives.captions import centre
from hf_vse.objectives.soft_targets import SoftTargets, check_soft
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.frozen import cache_root, check_shared, frozen_outputs, with_columns
from hf_vse.training.scores import places_in_scores, read_scores


def teacher_names(args: VSETrainingArguments) -> list[str]:
    return [args.teacher] if isinstance(args.teacher, str) else args.teacher or []


def with_teachers(splits: dict[str, Any], args: VSETrainingArguments) -> dict[str, Any]:
    """The splits, the one for training with the vectors of the teachers as columns, or its places in their scores.

    Raises:
        ValueError, OSError: a teacher cannot be opened, or does not read what the images are.
    """
    names, train = teacher_names(args), splits["train"]
    if not names and args.soft_targets != "scores":
        return splits
    if isinstance(train, IterableDataset):
        raise ValueError("teacher: a stream has no rows to keep its vectors or scores for: give streaming: false")
    if any(name.startswith(TEACHER_IMAGES) for name in train.column_names):
        raise ValueError("the training split has a teacher already: give it as load_pairs returns it")
    if args.soft_targets == "scores":
        return splits | {"train": with_columns(train, places_in_scores(args.teacher_scores, train))}
    check_shared(cache_root(args))
    for name in names:
        device = None if kind_of(name) == "python" else args.device  # a class of one's own chooses its device
        train = with_columns(train, teacher_vectors(load_encoder(name, device=device), train, args))
    return splits | {"train": train}


def teacher_vectors(encoder: Encoder, split: Dataset, args: VSETrainingArguments) -> pa.Table:
    """Two columns: a vector for every image, zero where it cannot be read, and a list of them for its captions."""
    if encoder.digest is None:
        raise ValueError(
            f"teacher {encoder.name}: its source is not known, so its vectors cannot be kept: set a digest"
        )
    images, captions = undecoded_images(split), split.with_format(None)[CAPTIONS][:]
    check_readable(encoder, images[0])
    columns = [f"{kind}_{encoder.digest[:12]}" for kind in (TEACHER_IMAGES, TEACHER_CAPTIONS)]
    if columns[0] in split.column_names:
        raise ValueError(f"teacher {encoder.name} is named twice: name every teacher once")

    def encode(rows: range) -> dict[str, pa.Array]:
        of_rows = captions[rows.start : rows.stop]
        texts, _ = flatten_captions(of_rows)
        of_texts = encode_texts(encoder, texts).numpy()
        batch_size, workers = args.per_device_eval_batch_size, args.dataloader_num_workers
        found, readable = encode_images(encoder, images.select(rows), batch_size, workers)
        of_images = found.numpy() if readable.any() else np.zeros((len(rows), of_texts.shape[1]), np.float32)
        starts = np.cumsum([0] + [len(of_image) for of_image in of_rows]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(starts), feature_column(of_texts))
        return dict(zip(columns, (feature_column(of_images), lists), strict=True))

    contents = (item_key(next(iter(row.values()))) for row in images)
    keys = [item_key(json.dumps(pair).encode()) for pair in zip(contents, captions, strict=True)]
    store = Store.of(cache_root(args), "teacher", {"teacher": encoder.digest})
    return frozen_outputs(store, keys, encode, f"teacher {encoder.name}")


def scores_of_teacher(args: VSETrainingArguments) -> Tensor | None:
    """The scores of all images and captions in the file, memory-mapped, where `soft_targets` takes them."""
    return read_scores(args.teacher_scores)["scores"] if args.soft_targets == "scores" else None


def soft_targets_of(
    inputs: dict[str, Tensor], args: VSETrainingArguments, scores: Tensor | None = None
) -> SoftTargets | None:
    """The soft targets of a batch; takes what only they need out of the inputs of the model.

    `captions`: what the frozen text tower finds alike stands for both sides, the captions for their image too;
    `scores`: those of the file, in which a batch has places.
    """
    of_images, of_texts = (inputs.pop(name, None) for name in (TEACHER_IMAGES, TEACHER_CAPTIONS))
    if args.soft_targets == "none":
        return None
    if args.soft_targets == "captions":
        if "text_features" not in inputs:
            raise ValueError(
                "soft_targets captions needs kept outputs of the frozen text tower, which here is run in every step: "
                "leave out word_dropout and text_pooling gpo, or choose soft_targets teacher"
            )
        of_texts = F.normalize(inputs["text_features"].float(), dim=-1)
        of_images = of_texts if of_texts.ndim == 2 else centre(of_texts)
    if of_images is None or of_texts is None:
        raise ValueError(
            f"soft_targets {args.soft_targets}: the training split has no vectors of a teacher or places in its "
            "scores, see with_teachers"
        )
    if scores is not None:
        of_images, of_texts = of_images.long(), of_texts.long()
    weights = args.soft_weight, args.soft_temperature, args.feature_distance
    return SoftTargets(of_images, of_texts, *weights, scores)


def check_soft_targets(args: VSETrainingArguments, loss_types: list[str]) -> None:
    """Raises ValueError for soft targets without a teacher, or for an objective that has no place for them."""
    if args.soft_targets == "none":
        return
    for loss_type in loss_types:
        check_soft(loss_type, args.execution.negatives)
    if not (args.soft_weight or args.feature_distance):
        raise ValueError(
            "soft_weight=0 leaves soft_targets without effect: give soft_weight above 0, or no soft_targets"
        )
    if args.soft_targets == "captions" and not (args.freeze_text_tower and args.cache_frozen):
        raise ValueError(
            "soft_targets captions takes what a frozen text tower finds alike: give freeze_text_tower: true and "
            "cache_frozen: true, or choose soft_targets teacher"
        )
    if args.soft_targets == "scores" and args.teacher_scores is None:
        raise ValueError("soft_targets scores needs teacher_scores: give a safetensors file")
    if args.soft_targets == "teacher" and not teacher_names(args):
        raise ValueError(
            "soft_targets teacher needs a teacher: give teacher, a folder or a Hub id, or several in a list"
        )
    if args.soft_targets == "scores" and args.feature_distance:
        raise ValueError("feature_distance needs the vectors of a teacher: give soft_targets: teacher, or 0")


def check_teachers(args: VSETrainingArguments) -> None:
    """Raises ValueError or OSError for a teacher that is nothing a model can be, or a file that holds no scores."""
    scores_of_teacher(args)
    for name in teacher_names(args):
        try:
            kind_of(name)
        except (ValueError, OSError) as error:
            raise ValueError(f"teacher {' '.join(str(error).split())}") from error
