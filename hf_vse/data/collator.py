"""Turns a list of pairs into the tensors of one batch.

The collator decodes, augments and processes images and tokenizes captions. Images that cannot be read are left out of
the batch and counted, so one bad image does not stop a long run, but many do.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from hf_vse.data.decoding import BrokenImageError, decode_image, groups_in_flight
from hf_vse.data.images import MAX_BROKEN_SHARE, BrokenImages
from hf_vse.data.schema import (
    CAPTION_FEATURES,
    CAPTIONS,
    IMAGE,
    IMAGE_FEATURES,
    IMAGE_ID,
    IMAGE_STATES,
    TEACHER_CAPTIONS,
    TEACHER_IMAGES,
    text_id,
)
from hf_vse.data.transforms import Augmentation, input_size, needed_side
from hf_vse.model.processing_vse import VSEFeatureProcessor, VSEProcessor

TEXT_INPUTS = ("input_ids", "attention_mask", "text_features")  # of a model, in a batch
REMEMBERED_CAPTIONS = 1_000_000  # about 150 MB
Generators = list[Any]  # np.random.Generator, all None where nothing is left to chance


class VSECollator:
    """Makes model inputs from pairs, or from rows of `load_pairs`.

    Args:
        processor: image processor and tokenizer.
        augmentation: augmentation of training images; None processes them as in evaluation.
        word_dropout: share of tokens replaced by the mask token, or by the unknown token if there is no mask token.
        max_broken_share: a larger share of unreadable images stops the run with an error.
        set_dropout: share of the words of a caption and of the regions of an image that are left out.
    """

    def __init__(
        self,
        processor: VSEProcessor,
        augmentation: Augmentation | None = None,
        word_dropout: float = 0.0,
        max_broken_share: float = MAX_BROKEN_SHARE,
        set_dropout: float = 0.0,
    ):
        self.processor = processor
        self.augmentation = augmentation
        self.word_dropout = word_dropout
        self.set_dropout = set_dropout
        self.broken = BrokenImages(max_broken_share)
        self.sentences: dict[str, np.ndarray] = {}

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collates items into a batch.

        Args:
            items: each has `image`, `image_features` or `image_states`; `caption`, `captions` (one is chosen) or
                `caption_features`; and optionally `image_id`, `draw`, the seed of augmentation and word dropout, and
                `whole_caption`, where `caption` is a piece of it. With several captions for each image they are
                `texts`, equally many.

        Returns:
            `pixel_values`, `image_states` or `image_features` (and `image_mask`), `input_ids` and `attention_mask` or
            `text_features`, `image_ids`, and `text_ids`, which are equal where the captions are, (batch,), or
            (batch, 2) for pieces and whole captions. Of several captions for each image, everything about texts is
            (batch, captions, ...).
        """
        draws = self.generators(item.get("draw", 0) for item in items)
        if IMAGE in items[0]:
            kept, batch = self.pixels([item[IMAGE] for item in items], draws)
        elif IMAGE_STATES in items[0]:
            states = torch.from_numpy(np.stack([item[IMAGE_STATES] for item in items]))
            kept, batch = list(range(len(items))), {IMAGE_STATES: states}
        else:
            kept, batch = list(range(len(items))), self.features(items, draws)
        if IMAGE_ID in items[0]:
            batch["image_ids"] = torch.tensor([items[place][IMAGE_ID] for place in kept])
        if TEACHER_IMAGES in items[0]:
            batch[TEACHER_IMAGES] = torch.from_numpy(np.stack([items[place][TEACHER_IMAGES] for place in kept]))
        if "texts" not in items[0]:
            return batch | self.of_texts([items[place] for place in kept], [draws[place] for place in kept])
        texts = [text for place in kept for text in items[place]["texts"]]
        found = self.of_texts(texts, self.generators(text["draw"] for text in texts))
        return batch | {name: each.unflatten(0, (len(kept), -1)) for name, each in found.items()}

    def generators(self, draws: Iterable[int]) -> Generators:
        """A generator for each draw, none where nothing is left to chance: making them takes a sixth of a step."""
        chance = self.augmentation is not None or self.word_dropout or self.set_dropout
        return [np.random.default_rng(draw) if chance else None for draw in draws]

    def of_texts(self, texts: Sequence[Mapping[str, Any]], draws: Generators) -> dict[str, torch.Tensor]:
        """The part of a batch that comes from captions."""
        if CAPTION_FEATURES in texts[0]:
            batch = {"text_features": torch.from_numpy(np.stack([text[CAPTION_FEATURES] for text in texts]))}
        else:
            batch = self.text_inputs([caption_of(text) for text in texts], draws)
        if TEACHER_CAPTIONS in texts[0]:
            batch[TEACHER_CAPTIONS] = torch.from_numpy(np.stack([text[TEACHER_CAPTIONS] for text in texts]))
        if "caption" in texts[0] or CAPTIONS in texts[0]:
            batch["text_ids"] = torch.tensor([text_ids_of(text) for text in texts])
        return batch

    def features(self, items: Sequence[Mapping[str, Any]], rngs: Generators) -> dict[str, torch.Tensor]:
        """The precomputed features of images, of sets of regions some."""
        given = [np.asarray(item[IMAGE_FEATURES]) for item in items]
        if self.set_dropout and given[0].ndim == 2:
            given = [
                each[kept_of_set(len(each), self.set_dropout, rng)] for each, rng in zip(given, rngs, strict=True)
            ]
        return dict(VSEFeatureProcessor()(given))

    def pixels(self, values: list[Any], rngs: Generators) -> tuple[list[int], dict[str, torch.Tensor]]:
        """Indices of the readable images and their model inputs; decodes in groups to limit memory."""
        needed = None if self.augmentation and self.augmentation.crops else needed_side(self.processor.image_processor)
        kept: list[int] = []
        inputs = []
        place = 0
        for group in groups_in_flight(self.read(value, needed) for value in values):
            good = [at for at, image in enumerate(group, start=place) if image is not None]
            if good:
                inputs.append(self.image_inputs([group[at - place] for at in good], [rngs[at] for at in good]))
            kept += good
            place += len(group)
        if not kept:
            raise BrokenImageError(f"none of the {len(values)} images of a batch can be read; see the warnings above")
        return kept, dict(joined(inputs))

    def read(self, value: Any, needed: int | None = None) -> Any:
        """The decoded image (see `decode_image`), or None if it is broken; counts both."""
        try:
            image = decode_image(value, needed=needed)
        except BrokenImageError as error:
            self.broken.seen_broken(error)
            return None
        self.broken.seen_good()
        return image

    def image_inputs(self, images: list, rngs: Generators) -> Mapping[str, torch.Tensor]:
        if self.augmentation is None:
            return self.processor(images=images)
        size = input_size(self.processor.image_processor)
        changed = [self.augmentation(image, size, rng) for image, rng in zip(images, rngs, strict=True)]
        framed = self.augmentation.crops and size is not None
        framing = {"do_resize": False, "do_center_crop": False} if framed else {}
        return self.processor.image_processor(changed, return_tensors="pt", **framing)

    def tokenized(self, captions: list[str]) -> list[np.ndarray]:
        """Token ids of each caption; each caption is tokenized once and cached."""
        new = list({caption for caption in captions if caption not in self.sentences})
        found = self.processor.tokenizer(self.processor.as_trained(new), truncation=True)["input_ids"] if new else []
        fresh = {caption: np.array(ids, dtype=np.int32) for caption, ids in zip(new, found, strict=True)}
        if len(self.sentences) + len(fresh) <= REMEMBERED_CAPTIONS:
            self.sentences |= fresh
        return [fresh[caption] if caption in fresh else self.sentences[caption] for caption in captions]

    def some_words(self, token_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The sentence without some of its words; special tokens and unknown words are kept."""
        kept = np.isin(token_ids, self.processor.tokenizer.all_special_ids)
        kept[~kept] = kept_of_set(int((~kept).sum()), self.set_dropout, rng)
        return token_ids[kept]

    def text_inputs(self, captions: list[str], rngs: Generators) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        full = tokenizer.model_max_length if self.processor.full_length else None
        side = "right" if full else tokenizer.padding_side
        sentences = self.tokenized(captions)
        if self.set_dropout:
            sentences = [self.some_words(words, rng) for words, rng in zip(sentences, rngs, strict=True)]
        tokens = pad_sentences(sentences, tokenizer.pad_token_id, side, full)
        if self.word_dropout:
            hidden = tokenizer.unk_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
            special = torch.isin(tokens["input_ids"], torch.tensor(tokenizer.all_special_ids))
            chance = np.stack([rng.random(tokens["input_ids"].shape[1]) for rng in rngs])
            dropped = torch.from_numpy(chance < self.word_dropout) & ~special
            tokens["input_ids"] = tokens["input_ids"].masked_fill(dropped, hidden)
        if not self.processor.text_mask:
            del tokens["attention_mask"]
        return tokens


def kept_of_set(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which members of a set stay when a share is left out by chance, at least one: (count,) booleans."""
    chance = rng.random(count)
    return (chance >= share) | (chance == chance.max(initial=0.0))


def joined(prepared: Sequence[Any]) -> Any:
    """Joins the processed parts of a batch, with the same result as processing the whole batch at once."""
    first = prepared[0]
    if len(prepared) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in prepared]) for name in first}
    if isinstance(first, torch.Tensor):
        return torch.cat(list(prepared))
    if isinstance(first, np.ndarray):
        return np.concatenate(prepared)
    return [image for part in prepared for image in part]


def pad_sentences(
    sentences: list[np.ndarray], pad_token_id: int, side: str, length: int | None = None
) -> dict[str, torch.Tensor]:
    """Pads token ids to `input_ids` and `attention_mask`, both (batch, longest), or (batch, length)."""
    rows = [torch.from_numpy(sentence).long() for sentence in sentences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_token_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    if length is not None:
        ids = torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=pad_token_id)
        mask = torch.nn.functional.pad(mask, (0, length - mask.shape[1]))
    return {"input_ids": ids, "attention_mask": mask}


def text_ids_of(item: Mapping[str, Any]) -> int | list[int]:
    """The id of the caption; also that of the whole caption, where there may be pieces."""
    own = text_id(caption_of(item))
    return [own, text_id(item["whole_caption"])] if "whole_caption" in item else own


def caption_of(item: Mapping[str, Any]) -> str:
    """The caption of a pair; for a row with several captions, the one chosen by `draw` (default: the first)."""
    if "caption" in item:
        return item["caption"]
    captions = item[CAPTIONS]
    return captions[item.get("draw", 0) % len(captions)]
