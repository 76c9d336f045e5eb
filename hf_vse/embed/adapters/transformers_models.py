"""Dual encoders of transformers: CLIP, SigLIP, ALIGN, BLIP and their relatives, read as each was trained.

What differs between the families is data: how sentences are prepared and what the image processor hands over stands
here, where the vectors of the common space come out in `model/dual_encoder_vse.py`.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.data.digests import (
    configuration_digest,
    digest_of,
    image_processor_digest,
    tokenizer_digest,
    weights_digest,
)  # fmt: skip
from hf_vse.data.transforms import needed_side
from hf_vse.embed.encoder import Device, NetworkEncoder, Precision
from hf_vse.embed.memory import place_on
from hf_vse.embed.sentences import Reading, SentenceReader, positions_of
from hf_vse.embed.stored import SAFETENSORS_ONLY, without_remarks
from hf_vse.embed.weights import check_finite, check_found, chosen_device, chosen_precision, one_line
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS, DualEncoder, scale_and_bias
from hf_vse.model.processing_vse import VSEProcessor

# Settings of an image processor that the record of an evaluation shows.
IMAGE_SIZES = ("size", "crop_size", "max_num_patches")


NO_MASK = Reading(to_full_length=True, mask=False, lower=True)
# How sentences are prepared, where it is not as the tokenizer says; by `model_type` of the configuration.
READINGS = {
    "chinese_clip": Reading(max_length=52),
    "align": Reading(max_length=64),
    "siglip": NO_MASK,
    "siglip2": NO_MASK,
    "blip": Reading(max_length=35),
    "flava": Reading(max_length=77),
}
# What the towers take of the output of an image processor.
IMAGE_INPUTS: dict[str, tuple[str, ...]] = {"siglip2": ("pixel_values", "pixel_attention_mask", "spatial_shapes")}


class TransformersEncoder(NetworkEncoder):
    """
    Args:
        model: one of `DUAL_ENCODERS`, or with its `get_image_features` and `get_text_features`. It is put
            into evaluation mode.
        image_processor, tokenizer: those it was trained with.
        name: what to call it; default: the folder or Hub id it was loaded from.
    """

    model: PreTrainedModel
    kind = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
    ):
        self.model = model.eval()
        self.image_processor = image_processor
        self.name = name or model.name_or_path or "unnamed model"
        self.family = DUAL_ENCODERS.get(model.config.model_type, DualEncoder())
        reading = READINGS.get(model.config.model_type, Reading())
        self.reader = SentenceReader(tokenizer, reading, positions_of(model.config.get_text_config()), self.name)

    @classmethod
    def from_pretrained(
        cls, name: str, device: Device = None, dtype: Precision = None, trust_remote_code: bool = False
    ) -> "TransformersEncoder":
        """From a folder or a Hub id.

        Args:
            device: default: the accelerator, where there is one.
            dtype: `float32` (default), `bfloat16` or `float16`.
            trust_remote_code: run the code of a model that is none of `DUAL_ENCODERS`.

        Raises:
            ValueError: another kind of model, or one whose files lack weights of its towers.
            OSError: nothing there, or weights in another format than safetensors.
        """
        trust = {"trust_remote_code": trust_remote_code}
        with one_line(name, "give a folder or a Hub id"):
            config = AutoConfig.from_pretrained(name, **trust)
        if config.model_type not in DUAL_ENCODERS and not trust_remote_code:
            raise ValueError(
                f"{name} is a model of type {config.model_type!r}, none of the known dual encoders "
                f"({', '.join(DUAL_ENCODERS)}); write an adapter, see hf_vse.embed.encoder"
            )
        weights = {"dtype": chosen_precision(dtype), "use_safetensors": True, "output_loading_info": True}
        weights["ignore_mismatched_sizes"] = True  # `check_found` reports all of them
        family = DUAL_ENCODERS.get(config.model_type, DualEncoder())
        with one_line(name, SAFETENSORS_ONLY), without_remarks():
            model, found = getattr(transformers, family.model_class).from_pretrained(
                name, attn_implementation=family.attention, **weights, **trust
            )
        check_found(name, model, found)
        check_finite(name, model)
        return cls(place_on(model, chosen_device(device)), *preparation_of(name, trust_remote_code), name)

    @property
    def temperature(self) -> float | None:  # type: ignore[override]
        scale, _ = scale_and_bias(self.model)
        return None if scale is None else 1 / scale

    @property
    def needed_side(self) -> int | None:  # type: ignore[override]
        return needed_side(self.image_processor)

    @cached_property
    def digest(self) -> str:
        """Covers the weights, the configuration, and the preparation of images and sentences."""
        return digest_of(
            weights_digest(self.model),
            configuration_digest(self.model.config),
            image_processor_digest(self.image_processor),
            tokenizer_digest(self.reader.tokenizer),
            (tuple(self.reader.reading), self.reader.max_length),
        )

    def facts(self) -> dict[str, Any]:
        preparation = json.loads(self.image_processor.to_json_string())
        sizes = {name: value for name, value in preparation.items() if name in IMAGE_SIZES and value}
        return {"family": self.model.config.model_type, **super().facts(), "images": sizes} | self.reader.facts()

    def moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moves inputs to the device of the model, and floating point inputs to its precision."""
        dtypes = {name: self.model.dtype if tensor.is_floating_point() else None for name, tensor in inputs.items()}
        return {name: tensor.to(self.model.device, dtypes[name]) for name, tensor in inputs.items()}

    def prepare_images(self, images: list[Image.Image]) -> dict[str, Tensor]:
        prepared = self.image_processor(images, return_tensors="pt")
        return {name: prepared[name] for name in IMAGE_INPUTS.get(self.model.config.model_type, ("pixel_values",))}

    @torch.no_grad()
    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        return vectors(self.family.output("image", self.model, **self.moved(images)))

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        return vectors(self.family.output("text", self.model, **self.moved(self.reader(texts))))


def preparation_of(name: str, trust_remote_code: bool = False) -> tuple[BaseImageProcessor, PreTrainedTokenizerBase]:
    """The image processor and the tokenizer that lie beside the weights."""
    with one_line(name, "save the image processor and the tokenizer beside the weights"):
        # Pillow is what the models were published with; torchvision interpolates a little differently.
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=trust_remote_code)
        return image_processor, AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def processor_of(name: str) -> VSEProcessor:
    """Both as one processor for a `VSEModel` that starts as this model; sentences are read as it reads them."""
    image_processor, tokenizer = preparation_of(name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    reading = READINGS.get(config.model_type, Reading())
    reader = SentenceReader(tokenizer, reading, positions_of(config.get_text_config()), name)
    tokenizer.model_max_length = reader.max_length
    return VSEProcessor(image_processor, tokenizer, reading.lower, reading.to_full_length, reading.mask)


def vectors(output: Any) -> Tensor:
    """The vectors of the common space: code of the Hub returns them as they are, transformers as `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output
