"""The models of this package."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_vse.data.digests import (
    configuration_digest,
    digest_of,
    image_processor_digest,
    tokenizer_digest,
    weights_digest,
)  # fmt: skip
from hf_vse.data.long_captions import Pieces, report_cut
from hf_vse.data.transforms import needed_side
from hf_vse.embed.adapters.own_models import FETCH_AGAIN, check_processor, load_vse_model, load_vse_processor
from hf_vse.embed.batches import image_parts, to_device
from hf_vse.embed.encoder import Device, NetworkEncoder, Precision
from hf_vse.embed.weights import chosen_device, one_line
from hf_vse.model.configuration_vse import FEATURES_MODEL_TYPE
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEFeatureProcessor, VSEProcessor

BETWEEN_TOWERS_AND_VECTORS = (
    "vision_pooling", "text_pooling", "vision_norm", "text_norm", "vision_power", "projection_type",
)  # fmt: skip


class VSEEncoder(NetworkEncoder):
    """
    Args:
        model, processor: the model, which is put into evaluation mode.
        name: what to call it; default: the folder or Hub id it was loaded from.
    """

    model: VSEModel
    kind = "vse"
    reads_features = True  # of its own training, or in the place of its frozen tower

    def __init__(self, model: VSEModel, processor: VSEProcessor, name: str | None = None):
        self.model = model.eval()
        self.processor = processor
        self.name = name or model.name_or_path or "unnamed model"
        self.cut: set[str] = set()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: Device = None, dtype: Precision = None, trust_remote_code: bool = False
    ) -> "VSEEncoder":
        """From a folder or a Hub id; an image and a word are embedded to check that model and processor fit.

        Args:
            device: default: the accelerator, where there is one.
            dtype: `float32` (default), `bfloat16` or `float16`.
            trust_remote_code: has no effect: the installed code is run, never the model's own.

        Raises:
            OSError: nothing of that name, or a file is missing or cannot be read.
            ValueError: another kind of model, or files that do not belong together.
        """
        name, device = str(name), chosen_device(device)
        model = load_vse_model(name, device, dtype)
        processor = load_vse_processor(name)
        check_processor(name, model, processor)
        encoder = cls(model, processor, name)
        check_embeds(encoder)
        return encoder

    @property
    def temperature(self) -> float:  # type: ignore[override]
        return self.model.scaling()[0].item()

    @property
    def dim(self) -> int:
        return self.model.config.projection_dim

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        return self.model.config.vision_config.model_type != FEATURES_MODEL_TYPE

    @property
    def needed_side(self) -> int | None:  # type: ignore[override]
        return needed_side(self.processor.image_processor)

    @cached_property
    def digest(self) -> str:
        """Covers the weights, the fields of the configuration that change vectors, and the preparation of inputs."""
        config = self.model.config
        return digest_of(
            weights_digest(self.model),
            [getattr(config, field) for field in BETWEEN_TOWERS_AND_VECTORS],
            [configuration_digest(tower) for tower in (config.vision_config, config.text_config)],
            image_processor_digest(self.processor.image_processor),
            tokenizer_digest(self.processor.tokenizer),
            *self.processor.reading.items(),
            *([f"{config.text_layers} text layers"] if config.text_layers > 1 else []),  # older models have one
            *(["mirror average"] if config.mirror_average else []),
        )

    def facts(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "family": "hf_vse",
            **super().facts(),
            "loss_type": config.loss_type,
            "temperature": self.temperature,
            "image_tower": config.vision_config.model_type,
            "text_tower": config.text_config.model_type,
            "max_text_length": self.processor.tokenizer.model_max_length,
            "texts_cut": len(self.cut),
        }

    def prepare_images(self, images: list[Any]) -> Mapping[str, Tensor]:
        """Pixels, or arrays of features if the data have features instead of images."""
        of_pixels = isinstance(images[0], Image.Image)
        prepare = self.processor.image_processor if of_pixels else VSEFeatureProcessor()
        return dict(prepare(images, return_tensors="pt"))

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self.model(**part).image_embeds for part in image_parts(images, self.model)])

    def encode_texts(self, texts: list[str]) -> Tensor:
        pieces = Pieces(self.processor)
        self.cut |= {*pieces.too_long(texts)}
        if self.cut:
            report_cut(pieces.most)
        return self.model(**to_device(self.processor(text=texts), self.model)).text_embeds

    def encode_text_features(self, features: Tensor) -> Tensor:
        """Vectors of sentences from the outputs of the text tower, (texts, dim)."""
        return self.model(text_features=features.to(self.model.device)).text_embeds


@torch.no_grad()
def check_embeds(encoder: VSEEncoder) -> None:
    """Raises OSError or ValueError if an image or a word cannot be embedded."""
    remedy = f"its processor and its weights do not fit: {FETCH_AGAIN}"
    with one_line(encoder.name, remedy):
        embeds = {"a word": encoder.encode_texts(["a"])}
        if encoder.reads_images:
            picture = Image.effect_noise((48, 40), 64).convert("RGB")
            embeds["a picture"] = encoder.encode_images(encoder.prepare_images([picture]))
    for what, embed in embeds.items():
        if not embed.isfinite().all() or not embed.any():
            raise ValueError(f"{encoder.name} embeds {what} as zeros or as non-finite numbers: {FETCH_AGAIN}")
