"""A pretrained dual encoder of transformers, held whole: CLIP, SigLIP, ALIGN, BLIP and their relatives.

Its own functions give the vectors, so they equal those of its library, and its weights keep their names. What differs
between the families is data: the class, and where the vectors of the common space come out (CLIP, arXiv 2103.00020;
SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786; ALIGN, arXiv 2102.05918; BLIP, arXiv 2201.12086, of which the
contrastive heads are read and not the cross-attention).
"""

import math
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

SCALARS_OF_SOURCE = ("logit_scale", "logit_bias", "temperature")
INPUTS = (
    "pixel_values", "pixel_attention_mask", "spatial_shapes", "input_ids", "attention_mask", "token_type_ids",
    "output_hidden_states", "output_attentions",
)  # fmt: skip
PARTS = {"vision": ("vision", "visual", "image"), "text": ("text",)}  # how the names of a tower's modules begin


def with_pooled(tower: ModelOutput, vectors: Tensor) -> BaseModelOutputWithPooling:
    """What a tower gave, with these vectors as its `pooler_output`."""
    recorded = {name: tower.get(name) for name in ("hidden_states", "attentions")}
    return BaseModelOutputWithPooling(tower.last_hidden_state, vectors, **recorded)


class DualEncoder(NamedTuple):
    """How to build a family, and how to ask it for its vectors.

    Attributes:
        image, text: names of a tower and of the projection of its first state; without them the model is asked for its
            features.
        attention: the implementation to use, where not every one gives the same vectors.
        every_position: the features are of every position, and the first counts.
    """

    model_class: str = "AutoModel"
    image: tuple[str, str] | None = None
    text: tuple[str, str] | None = None
    attention: str | None = None
    every_position: bool = False

    def output(self, side: str, model: PreTrainedModel, **inputs: Tensor | bool) -> BaseModelOutputWithPooling:
        """States of a tower, `image` or `text`, and as `pooler_output` its vectors in the common space."""
        if names := getattr(self, side):
            output = getattr(model, names[0])(**inputs)
            return with_pooled(output, getattr(model, names[1])(output.last_hidden_state[:, 0]))
        output = getattr(model, f"get_{side}_features")(**inputs)
        return with_pooled(output, output.pooler_output[:, 0]) if self.every_position else output


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
    "blip": DualEncoder("BlipForImageTextRetrieval", ("vision_model", "vision_proj"), ("text_encoder", "text_proj")),
    "flava": DualEncoder(every_position=True),
    "vision-text-dual-encoder": DualEncoder(),
}


def build_dual_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """A dual encoder with fresh weights; its temperature and bias are buffers, because `VSEModel` trains its own."""
    family = DUAL_ENCODERS[config.model_type]
    if family.model_class == "AutoModel":
        options: dict[str, Any] = {"attn_implementation": family.attention} if family.attention else {}
        options["dtype"] = torch.get_default_dtype()
        model = AutoModel.from_config(config, trust_remote_code=False, **options)
    else:
        model = getattr(transformers, family.model_class)(config)
    for name in SCALARS_OF_SOURCE:
        if isinstance(value := getattr(model, name, None), nn.Parameter):
            delattr(model, name)
            model.register_buffer(name, value.detach())
    return model


def tower_output(model: nn.Module, side: str, **inputs: Tensor | bool | None) -> ModelOutput:
    """What a tower gives, or a dual encoder for its side `image` or `text`; inputs that are None are left out.

    Raises:
        TypeError: an input that no tower has, which transformers would swallow.
    """
    if strange := inputs.keys() - set(INPUTS):
        raise TypeError(f"unknown argument {min(strange)!r}; a tower takes {', '.join(INPUTS)}")
    given = {name: value for name, value in inputs.items() if value is not None}
    family = DUAL_ENCODERS.get(model.config.model_type) if isinstance(model, PreTrainedModel) else None
    return model(**given) if family is None else family.output(side, model, **given)


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
    words = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    vectors = tower_output(model, "text", input_ids=words).pooler_output
    fields = {"dual_encoder_config": model.config, "projection_dim": vectors.shape[-1]}
    fields |= {"projection_type": "none", "text_norm": "l2"}
    fields |= {} if scale is None else {"temperature": 1 / scale}
    return fields | ({"loss_type": "clip"} if bias is None else {"loss_type": "siglip", "logit_bias_init": bias})


def modules_of_towers(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """The modules of the image tower, `vision`, and of the text tower, `text`, projections included."""
    children = list(model.named_children())
    return {side: [module for name, module in children if name.startswith(PARTS[side])] for side in PARTS}
