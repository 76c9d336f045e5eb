"""A CLIP or SigLIP model of transformers as a folder of open_clip (Cherti et al., arXiv 2212.07143).

open_clip has the same networks under other names, with queries, keys and values in one matrix; the image tower of
SigLIP is one of timm. What it reads: `open_clip_config.json` (network and preparation of images),
`open_clip_model.safetensors`, and the files of the tokenizer beside them.

Two things of open_clip itself remain: it mends broken Unicode, HTML entities and repeated spaces of a sentence before
its tokenizer, and where a crop takes an odd number of rows or columns from a photograph, it may lie one pixel aside.
"""

import math
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.embed.adapters.open_clip_models import FOLDER_CONFIG, FOLDER_WEIGHTS
from hf_vse.files import write_json
from hf_vse.model.processing_vse import VSEProcessor

# Parts of the names of weights and what replaces them, in this order: first for images, then for sentences.
BLOCKS = {
    "embeddings.position_embedding.weight": "positional_embedding", "encoder.layers.": "transformer.resblocks.",
    ".self_attn.": ".attn.", ".layer_norm1": ".ln_1", ".layer_norm2": ".ln_2", ".mlp.fc1": ".mlp.c_fc",
    ".mlp.fc2": ".mlp.c_proj",
}  # fmt: skip
TEXT = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"} | BLOCKS
VISION = {
    "vision_model.": "visual.", "visual_projection.weight": "visual.proj", "embeddings.class": "class",
    "embeddings.patch_embedding": "conv1", "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post",
} | BLOCKS  # fmt: skip
VISION_OF_TIMM = {
    "vision_model.": "visual.trunk.", "head.probe": "attn_pool.latent", "head.attention.": "attn_pool.",
    "head.layernorm": "attn_pool.norm", "head.mlp": "attn_pool.mlp", "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed", "encoder.layers.": "blocks.", ".layer_norm1": ".norm1",
    ".layer_norm2": ".norm2", ".self_attn.": ".attn.", ".out_proj": ".proj", ".in_proj_": ".qkv.",
    "post_layernorm": "norm",
}  # fmt: skip
NAMES = {
    "clip": (VISION, {"text_model.": "", "text_projection.weight": "text_projection"} | TEXT),
    "siglip": (VISION_OF_TIMM, {"text_model.head": "text.text_projection", "text_model.": "text."} | TEXT),
}
FAMILIES = tuple(NAMES)
TRANSPOSED = ("visual.proj", "text_projection")

TANH = {"act_kwargs": {"approximate": "tanh"}}
ACTIVATIONS: dict[str, dict[str, Any]] = {"quick_gelu": {}, "gelu": {}, "gelu_pytorch_tanh": TANH, "gelu_new": TANH}
# The image towers of timm that compute what SigLIP in transformers does, by width, layers, heads and width of the MLP.
# Its other ones, such as vit_base_patch16_siglip_224, have the exact GELU, and SigLIP has that by tanh.
TIMM_SIZES = {
    (768, 12, 12, 3072): "base", (1024, 24, 16, 4096): "large", (1152, 27, 16, 4304): "so400m",
    (1536, 40, 16, 6144): "giantopt",
}  # fmt: skip
TIMM_TOWERS = [
    "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384", "vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384",
]  # fmt: skip
IMAGE_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")
INTERPOLATIONS = {Resampling.BICUBIC: "bicubic", Resampling.BILINEAR: "bilinear"}


def write_open_clip(
    source: PreTrainedModel, processor: VSEProcessor, tokenizer: PreTrainedTokenizerBase, folder: Path, repo_id: str
) -> None:
    """Writes a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads.

    Args:
        source: a `CLIPModel` or `SiglipModel`.
        processor: prepares its images and sentences.
        tokenizer: that of the processor, as it is saved.
        repo_id: where the folder will be published: from the Hub, open_clip fetches the tokenizer by this name.

    Raises:
        ValueError: open_clip has no such network or no such preparation of images or sentences.
    """
    family, image_size = source.config.model_type, source.config.vision_config.image_size
    if family == "siglip" and (processor.text_mask or not processor.full_length):
        raise cannot("SigLIP whose sentences are padded to the longest or masked")
    network = clip_network(source.config) if family == "clip" else siglip_network(source.config)
    text = network["text_cfg"]
    words = text["context_length"] = min(text["context_length"], tokenizer.model_max_length)
    text |= {"hf_tokenizer_name": repo_id} | ({"tokenizer_kwargs": {"clean": "lower"}} if processor.lower_case else {})
    config = {"model_cfg": network, "preprocess_cfg": image_preparation(processor.image_processor, image_size)}
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)
    save_file(open_clip_weights(source, words), folder / FOLDER_WEIGHTS)
    write_json(folder / FOLDER_CONFIG, config)


def cannot(what: str) -> ValueError:
    return ValueError(f"open_clip has no {what}: give the format transformers, sentence-transformers or onnx")


def open_clip_weights(source: PreTrainedModel, words: int) -> dict[str, Tensor]:
    """The weights under the names of open_clip; of the positions of a sentence the first `words`."""
    vision_names, text_names = NAMES[source.config.model_type]
    state, found = dict(source.state_dict()), {}
    for query in [each for each in state if ".q_proj." in each]:
        parts = [state.pop(query.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[query.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    for name, tensor in state.items():
        for part, replacement in (vision_names if name.startswith("vis") else text_names).items():
            name = name.replace(part, replacement)
        found[name] = tensor
    for name, tensor in list(found.items()):
        if name in TRANSPOSED:
            found[name] = tensor.T
        elif name.startswith("logit_"):
            found[name] = tensor.reshape(())
        elif name in ("positional_embedding", "text.positional_embedding"):
            found[name] = tensor[:words]
        elif name == "visual.trunk.pos_embed":
            found[name] = tensor[None]
        elif ".attn_pool.qkv." in name:  # timm has the queries of the attention pooling apart
            width = len(tensor) // 3
            found |= {name.replace(".qkv.", ".q."): tensor[:width], name.replace(".qkv.", ".kv."): tensor[width:]}
            del found[name]
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}


def clip_network(config: PreTrainedConfig) -> dict[str, Any]:
    """`model_cfg` of a CLIP model."""
    vision, text = config.vision_config, config.text_config
    quick = [each.hidden_act == "quick_gelu" for each in (vision, text)]
    if quick[0] != quick[1]:
        raise cannot(f"hidden_act {vision.hidden_act!r} for images beside {text.hidden_act!r} for sentences")
    # transformers looks for the largest token where the end has the number 2, as in the first CLIP folders.
    pooling = {} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": quick[0],
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        }
        | block(vision),
        "text_cfg": text_network(text) | pooling,
    }


def siglip_network(config: PreTrainedConfig) -> dict[str, Any]:
    """`model_cfg` of a SigLIP model, its image tower one of timm."""
    vision, text = config.vision_config, config.text_config
    sizes = (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size)
    tower = f"vit_{TIMM_SIZES.get(sizes, '')}_patch{vision.patch_size}_siglip_{vision.image_size}"
    usual = (vision.layer_norm_eps, vision.vision_use_head) == (1e-6, True) and ACTIVATIONS.get(
        vision.hidden_act
    ) == TANH
    if tower not in TIMM_TOWERS or not usual:
        raise cannot(
            f"SigLIP with an image tower of {vision.hidden_size} numbers, {vision.num_hidden_layers} layers, patches "
            f"of {vision.patch_size} at {vision.image_size} pixels and hidden_act {vision.hidden_act}, only with one "
            f"that timm has too ({', '.join(TIMM_TOWERS)})"
        )
    return {
        "embed_dim": text.projection_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": tower,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": text_network(text) | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }


def text_network(text: PreTrainedConfig) -> dict[str, Any]:
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
    } | block(text)


def block(tower: PreTrainedConfig) -> dict[str, Any]:
    """MLPs, activation and normalization of a tower."""
    if tower.hidden_act not in ACTIVATIONS:
        raise cannot(f"hidden_act {tower.hidden_act}, only {', '.join(ACTIVATIONS)}")
    ratio = math.ceil(tower.intermediate_size / tower.hidden_size * 1e4) / 1e4  # open_clip rounds its product down
    return {"mlp_ratio": ratio, "norm_kwargs": {"eps": tower.layer_norm_eps}} | ACTIVATIONS[tower.hidden_act]


def image_preparation(image_processor: BaseImageProcessor, image_size: int) -> dict[str, Any]:
    """`preprocess_cfg`: to the size of the tower by its shorter side and a crop, or by squashing it."""
    known: dict[str, Any] = image_processor.to_dict()
    square = {"height": image_size, "width": image_size}
    size, crop = known["size"], known["crop_size"] if known.get("do_center_crop") else None
    steps = known["do_resize"] and known["do_rescale"] and known["do_normalize"]
    if known["image_processor_type"] not in IMAGE_PROCESSORS or not steps:
        raise cannot(
            f"{known['image_processor_type']}, only {' and '.join(IMAGE_PROCESSORS)} that resize and normalize"
        )
    if (size, crop) not in ((square, None), (square, square), ({"shortest_edge": image_size}, square)):
        raise cannot(f"image processor with size {size} and crop_size {crop} before a tower of {image_size} pixels")
    if not math.isclose(known["rescale_factor"], 1 / 255) or known["resample"] not in INTERPOLATIONS:
        raise cannot(f"image processor with rescale_factor {known['rescale_factor']} and resample {known['resample']}")
    return {
        "size": [image_size, image_size],
        "mode": "RGB",
        "mean": list(known["image_mean"]),
        "std": list(known["image_std"]),
        "interpolation": INTERPOLATIONS[known["resample"]],
        "resize_mode": "squash" if size == square else "shortest",
    }
