"""From photographs (or precomputed features) and sentences to the tensors of `VSEModel`."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor


class VSEFeatureProcessor(BaseImageProcessor):
    """The image processor of a model of precomputed features: it stacks them and pads sets of regions."""

    model_input_names = ["image_features"]

    def __call__(self, images: Sequence, return_tensors: str | None = "pt") -> BatchFeature:
        """Arrays `(dim,)` for global features, or `(regions, dim)` with any number of regions each.

        Returns:
            `image_features` (batch, dim) or (batch, regions, dim), float32; for regions also `image_mask`.
        """
        features = [np.asarray(image, dtype=np.float32) for image in images]
        if any(feature.ndim not in (1, 2) or feature.ndim != features[0].ndim for feature in features):
            raise ValueError(
                f"features of one batch must all be (dim,) or all (regions, dim), got {features[0].shape} and others"
            )
        if features[0].ndim == 1:
            return BatchFeature({"image_features": np.stack(features)}, tensor_type=return_tensors)
        counts = [len(feature) for feature in features]
        stacked = np.zeros((len(features), max(counts), features[0].shape[1]), dtype=np.float32)
        for row, feature in zip(stacked, features, strict=True):
            row[: len(feature)] = feature
        mask = (np.arange(max(counts))[None, :] < np.array(counts)[:, None]).astype(np.int64)
        return BatchFeature({"image_features": stacked, "image_mask": mask}, tensor_type=return_tensors)


class VSEProcessor(ProcessorMixin):
    """Image processor and tokenizer in one.

    Args:
        image_processor: any image processor of transformers; default: precomputed features are taken as they are.
        tokenizer: the word-level tokenizer of the GRU, or that of a transformers text tower.
        lower_case, full_length, text_mask: how a pretrained text tower was trained to read: sentences lower-cased,
            padded on the right to the full length, with or without an attention mask.
    """

    def __init__(self, image_processor=None, tokenizer=None, lower_case=False, full_length=False, text_mask=True):
        super().__init__(VSEFeatureProcessor() if image_processor is None else image_processor, tokenizer)
        self.lower_case = lower_case
        self.full_length = full_length
        self.text_mask = text_mask

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str | None = None,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> BatchFeature:
        """Photographs (or arrays of features) and sentences to model inputs; either may be left out.

        Returns:
            `pixel_values` or `image_features` (and `image_mask`), `input_ids`, `attention_mask`.
        """
        if images is None and text is None:
            raise ValueError("nothing to process: give images, text, or both")
        inputs: dict[str, torch.Tensor] = {}
        if images is not None:
            inputs |= self.image_processor(images, return_tensors=return_tensors)
        if text is not None:
            tokens = self.tokenizer(
                self.as_trained([text] if isinstance(text, str) else list(text)),
                return_tensors=return_tensors,
                padding=("max_length" if self.full_length else True) if padding in (None, True) else padding,
                padding_side="right" if self.full_length else None,
                truncation=truncation,
                max_length=max_length,
            )
            inputs |= {name: value for name, value in tokens.items() if self.text_mask or name != "attention_mask"}
        return BatchFeature(inputs)

    @property
    def reading(self) -> dict[str, bool]:
        """Which of the three ways of reading are not the usual ones."""
        usual = {"lower_case": False, "full_length": False, "text_mask": True}
        return {name: not value for name, value in usual.items() if getattr(self, name) != value}

    def as_trained(self, texts: list[str]) -> list[str]:
        """Sentences in the case that the text tower knows."""
        return [text.lower() for text in texts] if self.lower_case else texts


VSEFeatureProcessor.register_for_auto_class("AutoImageProcessor")
VSEProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VSEFeatureProcessor", "VSEProcessor"]
