"""Foils of the training captions as negatives of images, see `objectives/foils.py`.

The rules are those of the probe, `evaluation/composition/caption_foils.py`, all but the shuffled words. They learn
from the whole split which words are nouns and go together, so each caption gets its foil once, before training. The
foils are the same for all seeds, and a frozen text tower runs over them once. In a batch they stand after the captions
of an image; a caption without a foil stands there itself, and does not count.
"""

import logging

import pyarrow as pa
from datasets import Dataset, IterableDataset
from torch import Tensor

from hf_vse.data.schema import CAPTIONS, FOILS
from hf_vse.evaluation.composition.caption_foils import foil_of_each
from hf_vse.objectives.captions import Candidates
from hf_vse.objectives.exchange import check_at_once
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.frozen import with_columns

logger = logging.getLogger(__name__)

NO_FOIL = -1  # the ids of captions are from 0 on
FOIL_SEED = 0  # not that of the run: what is kept of a frozen text tower serves all seeds


def check_foils_wanted(args: VSETrainingArguments) -> None:
    """Raises ValueError where something else would make foils true, or has no place for them."""
    if args.extra_negatives != "foils":
        return
    check_at_once("foils", args.execution.negatives)
    for name in ("word_dropout", "set_dropout"):
        if getattr(args, name):
            raise ValueError(
                f"{name}={getattr(args, name)} may leave out the word that makes a foil false: give {name}: 0, or "
                "extra_negatives: none"
            )
    if args.soft_targets != "none":
        raise ValueError(
            f"soft_targets {args.soft_targets} and extra_negatives foils: no teacher scores foils: give one of them"
        )


def with_foil_column(train: Dataset | IterableDataset, args: VSETrainingArguments) -> Dataset | IterableDataset:
    """The training split with a foil of every caption, or the caption itself, where `extra_negatives` asks for foils.

    Raises:
        ValueError: a stream, or captions in which the rules find nothing to change.
    """
    if args.extra_negatives != "foils":
        return train
    if isinstance(train, IterableDataset):
        raise ValueError(
            "extra_negatives foils: the rules read all captions before training, which a stream does not have: give "
            "streaming: false, or extra_negatives: none"
        )
    if FOILS in train.column_names:
        return train
    captions = train.with_format(None)[CAPTIONS][:]
    foils = foil_of_each(captions, FOIL_SEED)
    found, total = sum(foil is not None for of in foils for foil in of), sum(map(len, captions))
    if not found:
        raise ValueError(
            f"extra_negatives foils: the rules, which know English, find no foil of {total:,} captions: give "
            "extra_negatives: none"
        )
    logger.info("%s of %s captions have a foil", f"{found:,}", f"{total:,}")
    pairs = (zip(*of_image, strict=True) for of_image in zip(captions, foils, strict=True))
    column = [[caption if foil is None else foil for caption, foil in of_image] for of_image in pairs]
    return with_columns(train, pa.table({FOILS: pa.array(column, pa.list_(pa.string()))}))


def without_foils(each: Tensor, captions: int) -> Tensor:
    """What a batch has of its captions: of (batch, 2 captions, ...) the first, (batch, ...) where there is one."""
    return each[:, 0] if captions == 1 else each[:, :captions]


def ids_apart(text_ids: Tensor | None, args: VSETrainingArguments) -> tuple[Tensor | None, Tensor | None]:
    """The ids of the captions of a batch, see `without_foils`, and where `extra_negatives` asks for foils theirs:
    (batch, captions, kinds), `NO_FOIL` for a caption that stands for itself."""
    if args.extra_negatives != "foils":
        return text_ids, None
    captions = args.captions_per_image
    assert text_ids is not None  # a collator that reads captions gives them
    own, foils = text_ids.view(*text_ids.shape[:2], -1).split(captions, dim=1)
    return without_foils(text_ids, captions), foils.masked_fill((foils == own).all(dim=2, keepdim=True), NO_FOIL)


def foils_apart(texts: Tensor, foil_ids: Tensor | None) -> tuple[Tensor, Candidates | None]:
    """The captions of a batch, see `without_foils`, and its foils; texts are (batch, 2 captions, dim)."""
    if foil_ids is None:
        return texts, None
    there, captions = foil_ids[..., 0] != NO_FOIL, foil_ids.shape[1]
    return without_foils(texts, captions), Candidates(texts[:, captions:][there], foil_ids[there])
