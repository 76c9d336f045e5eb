"""Training data: a data set of images with captions, as image-caption pairs.

A pair is indexed by `(row, caption, draw)`, all chosen by the sampler. The integer `draw` seeds everything random
about a pair, including its crop and its dropped words. So workers are pure functions, and a resumed run sees the same
data as an uninterrupted one. An image may also come with several captions, or with foils after them; then its item has
them as `texts`.
"""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any, NamedTuple, overload

import numpy as np
from datasets import Dataset, Image
from torch.utils.data import Dataset as TorchDataset

from hf_vse.data.features import FeatureRows, selected_rows
from hf_vse.data.groups import plain_column
from hf_vse.data.long_captions import drawn_piece, in_pieces
from hf_vse.data.ready_columns import caption_counts
from hf_vse.data.schema import (
    CAPTION_FEATURES,
    CAPTIONS,
    FOIL_FEATURES,
    FOILS,
    GROUP_ID,
    IMAGE,
    IMAGE_FEATURES,
    IMAGE_ID,
    IMAGE_STATES,
    TEACHER_CAPTIONS,
    TEACHER_IMAGES,
    view_column,
)


class Pair(NamedTuple):
    """The index of a pair, or of an image with several captions, and the seed `draw` of everything random about it."""

    row: int
    caption: int | tuple[int, ...]
    draw: int


class CaptionRows(Sequence):
    """The captions of the images of a split, read from its column when they are asked for."""

    def __init__(self, dataset: Dataset):
        column = dataset.data.column(CAPTIONS)  # memory-mapped, before any `select`
        self.chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.starts = np.cumsum([0, *map(len, self.chunks)])
        self.rows = selected_rows(dataset)
        self.counts = caption_counts(dataset)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, row: int) -> list[str]: ...
    @overload
    def __getitem__(self, row: slice) -> list[list[str]]: ...
    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        row = range(len(self))[row]  # raises IndexError
        place = row if self.rows is None else int(self.rows[row])
        chunk = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.chunks[chunk][place - int(self.starts[chunk])].as_py()


def side_by_side(vectors: list[np.ndarray]) -> np.ndarray:
    """Unit vectors of several models as one, whose products are the means of theirs."""
    return np.concatenate(vectors) / np.sqrt(np.float32(len(vectors)))


def seeds_of_texts(draw: int, captions: int) -> list[int]:
    """The `draw` of each of several captions of an image."""
    return np.random.default_rng((draw, 2)).integers(2**31, size=captions).tolist()


def undecoded_images(dataset: Dataset) -> Dataset:
    """Only the image column: encoded files, so that the collator can count broken ones, or feature arrays."""
    if IMAGE_FEATURES in dataset.column_names:
        return dataset.select_columns([IMAGE_FEATURES]).with_format("numpy")
    return dataset.select_columns([IMAGE]).cast_column(IMAGE, Image(decode=False)).with_format(None)


class PairDataset(TorchDataset):
    """Pairs of one split.

    Args:
        dataset: a split as `load_pairs` returns it.
        pieces: the pieces of captions that are too long, see `Pieces.of_long`; one of them is drawn at a time. Where
            the split has `caption_features`, they are those of the pieces.

    Raises:
        ValueError: the split is empty, a column is missing, or the features are those of other captions.
    """

    def __init__(self, dataset: Dataset, pieces: Mapping[str, list[str]] | None = None):
        kept = (name for name in (IMAGE_FEATURES, IMAGE_STATES) if name in dataset.column_names)
        source = next(kept, IMAGE)
        missing = [name for name in (source, CAPTIONS, IMAGE_ID) if name not in dataset.column_names]
        if missing:
            raise ValueError(f"columns {missing} are missing from {dataset.column_names}; load it with load_pairs")
        if not len(dataset):
            raise ValueError("the split is empty; check the data directory and the split names")
        self.source = source
        self.captions: Sequence[list[str]] = CaptionRows(dataset)
        image_ids, groups = plain_column(dataset, IMAGE_ID), plain_column(dataset, GROUP_ID)
        own = [image_id if group is None else group for image_id, group in zip(image_ids, groups, strict=True)]
        self.image_ids = np.array(own, dtype=np.int64)  # equal where images are no negatives of each other
        if source == IMAGE:
            self.images = undecoded_images(dataset)
        else:
            columns = (view_column(view, source) for view in count())
            there = takewhile(lambda name: name in dataset.column_names, columns)
            self.views = [FeatureRows(dataset, name) for name in there]
        self.texts = FeatureRows(dataset, CAPTION_FEATURES) if CAPTION_FEATURES in dataset.column_names else None
        self.foils = dataset.with_format(None)[FOILS][:] if FOILS in dataset.column_names else None
        self.foil_texts = FeatureRows(dataset, FOIL_FEATURES) if FOIL_FEATURES in dataset.column_names else None
        if self.foils is not None and (self.texts is None) != (self.foil_texts is None):
            raise ValueError("caption_features are kept without foil_features: compute both from a split with foils")
        self.teachers = [
            [FeatureRows(dataset, name) for name in sorted(dataset.column_names) if name.startswith(f"{kind}_")]
            for kind in (TEACHER_IMAGES, TEACHER_CAPTIONS)
        ]
        self.pieces = pieces or {}
        for row, captions in enumerate(self.captions if self.texts is not None else ()):
            if self.texts is not None and len(self.texts[row]) != len(in_pieces(captions, self.pieces)):
                raise ValueError(f"caption_features of row {row} are not those of its captions: compute them again")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the sampler reads; called by the trainer's data loader."""
        self.epoch = epoch

    @property
    def caption_counts(self) -> np.ndarray:
        """(rows,) number of captions per image."""
        if isinstance(self.captions, CaptionRows):
            return self.captions.counts
        return np.array([len(captions) for captions in self.captions])

    def __len__(self) -> int:
        return int(self.caption_counts.sum())

    def first_of(self, row: int) -> dict[str, Any]:
        """The first pair of an image."""
        return self[Pair(row, 0, 0)]

    def __getitem__(self, pair: Pair) -> dict[str, Any]:
        row, caption, draw = pair
        item: dict[str, Any] = {IMAGE_ID: int(self.image_ids[row]), "draw": int(draw)}
        if self.source == IMAGE:
            item[IMAGE] = self.images[int(row)][IMAGE]
        else:
            item[self.source] = self.views[draw % len(self.views)][row]
        if self.teachers[0]:
            item[TEACHER_IMAGES] = side_by_side([of_teacher[row] for of_teacher in self.teachers[0]])
        if isinstance(caption, tuple):
            captions, seeds = caption, seeds_of_texts(draw, len(caption))
        elif self.foils is None:
            return item | self.text(row, caption, int(draw))
        else:
            captions, seeds = (caption,), [int(draw)]
        texts = [self.text(row, *each) for each in zip(captions, seeds, strict=True)]
        if self.foils is not None:
            texts += [self.foil(row, *each) for each in zip(captions, seeds, strict=True)]
        return item | {"texts": texts}

    def text(self, row: int, caption: int, draw: int) -> dict[str, Any]:
        """A caption of an image, or a piece of it."""
        whole = self.captions[row][caption]
        pieces = self.pieces.get(whole, [whole])
        drawn = drawn_piece(pieces, draw)
        text = {"caption": pieces[drawn], "draw": draw}
        if self.pieces:
            text["whole_caption"] = whole
        if self.teachers[1]:
            text[TEACHER_CAPTIONS] = side_by_side([of_teacher[row][caption] for of_teacher in self.teachers[1]])
        if self.texts is not None:
            before = len(in_pieces(self.captions[row][:caption], self.pieces))
            text[CAPTION_FEATURES] = self.texts[row][before + drawn]
        return text

    def foil(self, row: int, caption: int, draw: int) -> dict[str, Any]:
        """The foil of a caption; what `text` gives where there is none, or where the caption is read in pieces."""
        assert self.foils is not None  # nobody asks for them otherwise
        text, whole, foil = self.text(row, caption, draw), self.captions[row][caption], self.foils[row][caption]
        if foil == whole or whole in self.pieces:
            return text
        text |= {name: foil for name in ("caption", "whole_caption") if name in text}
        return text if self.foil_texts is None else text | {CAPTION_FEATURES: self.foil_texts[row][caption]}
