"""A pretrained dual encoder of transformers, held whole: CLIP, SigLIP, ALIGN, BLIP and their relatives.

Its own functions give the vectors, so they equal those of its library, and its weights keep their names. What differs
between the families is data: the class, and where the vectors of the common space come out (CLIP, arXiv 2103.00020;
SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786; ALIGN, arXiv 2102.05918; BLIP, arXiv 2201.12086, of which the
contrastive heads are read and not the cross-attention).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

SCALARS_OF_SOURCE = ("logit_scale", "logit_bias", "temperature")
PARTS = {"vision": ("vision", "visual", "image"), "text": ("text",)}  # how the names of a tower's modules begin


def projected_image(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    return model.get_image_features(**inputs)


def projected_text(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    return model.get_text_features(**inputs)


def flava_image(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    return first_of_projected(projected_image(model, **inputs))


def flava_text(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    return first_of_projected(projected_text(model, **inputs))


def first_of_projected(output: BaseModelOutputWithPooling) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(output.last_hidden_state, output.pooler_output[:, 0])


def blip_image(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    states = model.vision_model(**inputs).last_hidden_state
    return BaseModelOutputWithPooling(states, model.vision_proj(states[:, 0]))


def blip_text(model: PreTrainedModel, **inputs: Tensor) -> BaseModelOutputWithPooling:
    states = model.text_encoder(**inputs).last_hidden_state
    return BaseModelOutputWithPooling(states, model.text_proj(states[:, 0]))


class DualEncoder(NamedTuple):
    """How to build a family, and how to ask it for its vectors.

    Attributes:
        image, text: model and its inputs -> states of the tower, and as `pooler_output` the vectors (batch, dim).
        attention: the implementation to use, where not every one gives the same vectors.
    """

    model_class: str = "AutoModel"
    image: Callable[..., BaseModelOutputWithPooling] = projected_image
    text: Callable[..., BaseModelOutputWithPooling] = projected_text
    attention: str | None = None


# By `model_type` of the configuration.
DUAL_ENCODERS = {
    "clip": DualEncoder(),
    "metaclip_2": DualEncoder(),
    "altclip": DualEncoder(),
    "aimv2": DualEncoder(attention="eager"),  # the others take an unpadded batch for one without the causal mask
    "groupvit": DualEncoder(),
    "clipseg": DualEncoder(),
    "chinese_clip": DualEncoder(),
    "align": DualEncoder(),
    "siglip": DualEncoder(),  # also SigLIP 2 of a fixed size
    "siglip2": DualEncoder(),
    "tipsv2": DualEncoder(),
    "blip": DualEncoder("BlipForImageTextRetrieval", blip_image, blip_text),
    "flava": DualEncoder(image=flava_image, text=flava_text),
    "vision-text-dual-encoder": DualEncoder(),
}


def build_dual_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """A dual encoder with fresh weights; its temperature and bias are buffers, because `VSEModel` trains its own."""
    family = DUAL_ENCODERS[config.model_type]
    if family.model_class == "AutoModel":
        options = {"attn_implementation": family.attention, "dtype": torch.get_default_dtype()}
        model = AutoModel.from_config(config, trust_remote_code=False, **options)
    else:
        model = getattr(transformers, family.model_class)(config)
    for name in SCALARS_OF_SOURCE:
        if isinstance(value := getattr(model, name, None), nn.Parameter):
            delattr(model, name)
            model.register_buffer(name, value.detach())
    return model


def image_output(model: PreTrainedModel, **inputs: Tensor | None) -> BaseModelOutputWithPooling:
    """States and, as `pooler_output`, the vectors of images, as the family of the model has them."""
    return DUAL_ENCODERS[model.config.model_type].image(model, **{k: v for k, v in inputs.items() if v is not None})


def text_output(model: PreTrainedModel, **inputs: Tensor | None) -> BaseModelOutputWithPooling:
    """The same for sentences."""
    return DUAL_ENCODERS[model.config.model_type].text(model, **{k: v for k, v in inputs.items() if v is not None})


def scale_and_bias(model: PreTrainedModel) -> tuple[float | None, float | None]:
    """The factor of the cosine similarities and the bias of the logits, as far as the model has them."""
    scale, bias, temperature = (
        None if (value := getattr(model, name, None)) is None else value.item() for name in SCALARS_OF_SOURCE
    )
    if temperature is not None:
        return 1 / temperature, bias
    return None if scale is None else math.exp(scale), bias


@torch.no_grad()
def fields_of_source(model: PreTrainedModel) -> dict[str, Any]:
    """The fields of a `VSEConfig` whose model starts as this one."""
    scale, bias = scale_and_bias(model)
    vectors = text_output(model, input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device)).pooler_output
    fields = {"dual_encoder_config": model.config, "projection_dim": vectors.shape[-1]}
    fields |= {"projection_type": "none", "text_norm": "l2"}
    fields |= {} if scale is None else {"temperature": 1 / scale}
    return fields | ({"loss_type": "clip"} if bias is None else {"loss_type": "siglip", "logit_bias_init": bias})


def modules_of_towers(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """The modules of the image tower, `vision`, and of the text tower, `text`, projections included."""
    children = list(model.named_children())
    return {side: [module for name, module in children if name.startswith(PARTS[side])] for side in PARTS}
