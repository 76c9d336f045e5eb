"""Dual encoders of transformers: CLIP, SigLIP, ALIGN, BLIP and their relatives, read as each was trained.

What differs between the families is data: how sentences are prepared, what the image processor hands over, and where
the vectors of the common space come out (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786;
ALIGN, arXiv 2102.05918; BLIP, arXiv 2201.12086, whose contrastive heads are read and not its cross-attention).
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BlipForImageTextRetrieval,
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
)
from hf_vse.data.transforms import needed_side
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.sentences import Reading, SentenceReader, positions_of
from hf_vse.embed.stored import SAFETENSORS_ONLY, without_remarks
from hf_vse.embed.weights import check_finite, check_found, chosen_device, chosen_precision, one_line

# Settings of an image processor that the record of an evaluation shows.
IMAGE_SIZES = ("size", "crop_size", "max_num_patches")


def pooled_image(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return pooled(model.get_image_features(**inputs))


def pooled_text(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return pooled(model.get_text_features(**inputs))


def pooled(output: Any) -> Tensor:
    """The vectors of the common space: code of the Hub returns them as they are, transformers as `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output


def first_image_state(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return pooled_image(model, inputs)[:, 0]


def first_text_state(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return pooled_text(model, inputs)[:, 0]


def blip_image(model: BlipForImageTextRetrieval, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.vision_proj(model.vision_model(**inputs).last_hidden_state[:, 0])


def blip_text(model: BlipForImageTextRetrieval, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.text_proj(model.text_encoder(**inputs).last_hidden_state[:, 0])


Tower = Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor]


class Family(NamedTuple):
    """What one kind of model needs; the functions map model inputs to (batch, dim).

    `attention` is the implementation to load it with, where not every one gives the same vectors.
    """

    reading: Reading = Reading()
    model_class: type = AutoModel
    image_inputs: tuple[str, ...] = ("pixel_values",)
    image_tower: Tower = pooled_image
    text_tower: Tower = pooled_text
    attention: str | None = None


NO_MASK = Reading(to_full_length=True, mask=False, lower=True)
NAFLEX = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

# By `model_type` of the configuration.
FAMILIES: dict[str, Family] = {
    "clip": Family(),
    "metaclip_2": Family(),
    "altclip": Family(),
    "aimv2": Family(attention="eager"),  # the others take an unpadded batch for one without the causal mask
    "groupvit": Family(),
    "clipseg": Family(),
    "chinese_clip": Family(Reading(max_length=52)),
    "align": Family(Reading(max_length=64)),
    "siglip": Family(NO_MASK),  # also SigLIP 2 of a fixed size
    "siglip2": Family(NO_MASK, image_inputs=NAFLEX),
    "tipsv2": Family(),
    "blip": Family(Reading(max_length=35), BlipForImageTextRetrieval, image_tower=blip_image, text_tower=blip_text),
    "flava": Family(Reading(max_length=77), image_tower=first_image_state, text_tower=first_text_state),
    "vision-text-dual-encoder": Family(),
}


class TransformersEncoder(Encoder):
    """
    Args:
        model: a dual encoder of one of `FAMILIES`, or with its `get_image_features` and `get_text_features`. It is put
            into evaluation mode.
        image_processor, tokenizer: those it was trained with.
        name: what to call it; default: the folder or Hub id it was loaded from.
    """

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
        self.family = FAMILIES.get(model.config.model_type, Family())
        positions = positions_of(model.config.get_text_config())
        self.reader = SentenceReader(tokenizer, self.family.reading, positions, self.name)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> "TransformersEncoder":
        """From a folder or a Hub id.

        Args:
            device: default: the accelerator, where there is one.
            dtype: `float32` (default), `bfloat16` or `float16`.
            trust_remote_code: run the code of a model that is none of `FAMILIES`.

        Raises:
            ValueError: another kind of model, or one whose files lack weights of its towers.
            OSError: nothing there, or weights in another format than safetensors.
        """
        trust = {"trust_remote_code": trust_remote_code}
        with one_line(name, "give a folder or a Hub id"):
            config = AutoConfig.from_pretrained(name, **trust)
        if config.model_type not in FAMILIES and not trust_remote_code:
            raise ValueError(
                f"{name} is a model of type {config.model_type!r}, none of the known dual encoders "
                f"({', '.join(FAMILIES)}); write an adapter, see hf_vse.embed.encoder"
            )
        weights = {"dtype": chosen_precision(dtype), "use_safetensors": True, "output_loading_info": True}
        weights["ignore_mismatched_sizes"] = True  # `check_found` reports all of them
        family = FAMILIES.get(config.model_type, Family())
        with one_line(name, SAFETENSORS_ONLY), without_remarks():
            model, found = family.model_class.from_pretrained(
                name, attn_implementation=family.attention, **weights, **trust
            )
        check_found(name, model, found)
        check_finite(name, model)
        with one_line(name, "save the image processor and the tokenizer beside the weights"):
            # Pillow is what the models were published with; torchvision interpolates a little differently.
            image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **trust)
            tokenizer = AutoTokenizer.from_pretrained(name, **trust)
        return cls(model.to(chosen_device(device)), image_processor, tokenizer, name)

    @property
    def temperature(self) -> float | None:
        scale = getattr(self.model, "logit_scale", None)  # a logarithm
        return None if scale is None else (-scale.detach().float()).exp().item()

    @property
    def needed_side(self) -> int | None:
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

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def facts(self) -> dict[str, Any]:
        preparation = json.loads(self.image_processor.to_json_string())
        return {
            "family": self.model.config.model_type,
            "dimensions": self.dim,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": self.dtype,
            "images": {name: value for name, value in preparation.items() if name in IMAGE_SIZES and value},
        } | self.reader.facts()

    def moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moves inputs to the device of the model, and floating point inputs to its precision."""
        dtypes = {name: self.model.dtype if tensor.is_floating_point() else None for name, tensor in inputs.items()}
        return {name: tensor.to(self.model.device, dtypes[name]) for name, tensor in inputs.items()}

    def prepare_images(self, images: list[Image.Image]) -> dict[str, Tensor]:
        prepared = self.image_processor(images, return_tensors="pt")
        return {name: prepared[name] for name in self.family.image_inputs}

    @torch.no_grad()
    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        return self.family.image_tower(self.model, self.moved(images))

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        return self.family.text_tower(self.model, self.moved(self.reader(texts)))
