"""A model in the format of another library, which loads it without the code of this package.

A model that started as a dual encoder of transformers holds it whole, so its folder is written as it came: the same
names of weights, with the trained temperature and bias. A linear map on top is multiplied into the last linear map of
its side, which is exact: what is compared are unit vectors. Whatever is written is loaded by its library and compared
with the model.
"""

import logging
from copy import copy, deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hf_vse.embed.adapters.open_clip_models import OpenCLIPEncoder
from hf_vse.embed.adapters.sentence_models import SentenceTransformersEncoder
from hf_vse.embed.adapters.transformers_models import TransformersEncoder
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.embed.weights import check_installed
from hf_vse.files import check_output_folder, write_json
from hf_vse.hub.onnx_export import export_onnx
from hf_vse.hub.open_clip_export import FAMILIES, write_open_clip
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS, SCALARS_OF_SOURCE
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

logger = logging.getLogger(__name__)

TRANSFORMERS, SENTENCE, OPEN_CLIP, ONNX = "transformers", "sentence-transformers", "open_clip", "onnx"
LARGEST_DIFFERENCE = 1e-5  # of open_clip ten times as much: other kernels
# The linear maps that give the vectors of images and sentences; None where something else gives them.
LAST_LINEAR = {
    "align": (None, "text_projection"),
    "blip": ("vision_proj", "text_proj"),
    "flava": ("image_projection", "text_projection"),
    "groupvit": ("visual_projection.3", "text_projection.3"),
    "siglip": (None, "text_model.head"),
    "siglip2": (None, "text_model.head"),
    "tipsv2": (None, None),
}
USUAL = ("visual_projection", "text_projection")
NOT_FOR_SENTENCE_TRANSFORMERS = ("blip", "flava")  # AutoModel is another class, or gives states and no vectors
NOT_FOR_ONNX = ("siglip2",)  # its positions depend on the sizes of the images of a batch
OURS = ("auto_map", "processor_class", "_processor_class")
TEXTS = ["a", "A photo of two dogs.", "three red circles left of a square"]


def formats_of(model: VSEModel) -> list[str]:
    """The formats in which a model can be written."""
    if model.dual_encoder is None:
        return [ONNX]
    family = model.dual_encoder.config.model_type
    others = {
        SENTENCE: family not in NOT_FOR_SENTENCE_TRANSFORMERS,
        OPEN_CLIP: family in FAMILIES,
        ONNX: family not in NOT_FOR_ONNX,
    }
    return [family, *(name for name, possible in others.items() if possible)]


def export_model(
    encoder: VSEEncoder,
    format: str,
    folder: str | Path,
    *,
    check: bool = True,
    by_region: bool = False,
    repo_id: str | None = None,
) -> dict[str, Any]:
    """Writes a model in another format into a new or empty folder.

    Args:
        encoder: the model and its processor; they are not changed.
        format: one of `formats_of`; `transformers` is the family that the model started as.
        check: load the folder with its library and compare two pictures and some sentences.
        by_region: see `export_onnx`.
        repo_id: where the folder will be published, which open_clip wants to know; default: your-name/FOLDER.

    Returns:
        The record: format, folder, the largest difference of any number of a unit vector (None without the check), and
        `left_out`, which of temperature and bias the format has no place for; of ONNX also that of `export_onnx`.

    Raises:
        ImportError: the library of the format is not installed.
        ValueError: the model cannot be written in this format, the folder is not empty, or the vectors differ.
    """
    formats = formats_of(encoder.model)
    if format == TRANSFORMERS and len(formats) > 1:
        format = formats[0]
    if format not in formats:
        raise ValueError(f"{encoder.name} has no format {format!r:.60}: give one of {', '.join(formats)}")
    if format == ONNX:
        written = export_onnx(encoder.model, encoder.processor, folder, check=check, by_region=by_region)
        found = max(written[side]["largest_difference"] for side in ("image", "text")) if check else None
        return {"format": ONNX, "folder": str(folder), "largest_difference": found, "left_out": []} | written
    adapters: dict[str, type[Encoder]] = {SENTENCE: SentenceTransformersEncoder, OPEN_CLIP: OpenCLIPEncoder}
    adapter = adapters.get(format, TransformersEncoder)
    largest = 10 * LARGEST_DIFFERENCE if format == OPEN_CLIP else LARGEST_DIFFERENCE
    if check:
        check_installed(adapter, f"--format {format}")
    folder = check_new_folder(folder)
    source, left_out = source_of(encoder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}") as unfinished:
        place = Path(unfinished, "model")
        if format == OPEN_CLIP:
            tokenizer = plain_tokenizer(encoder.processor.tokenizer)
            write_open_clip(source, encoder.processor, tokenizer, place, repo_id or f"your-name/{folder.name}")
        else:
            write_transformers(source, encoder.processor, place)
        if format == SENTENCE:
            write_sentence_transformers(source, encoder.processor, place)
        found = None
        if check:  # sentence-transformers prepares images with what transformers takes on this machine, as we do
            ours = encoder if format == SENTENCE else prepared_by_pillow(encoder)
            found = largest_difference(ours, adapter.from_pretrained(str(place), "cpu"))
        if found is not None and not found <= largest:
            raise ValueError(
                f"{encoder.name} as {format} gives vectors that differ by {found:.1e}: use another format"
            )
        if folder.is_dir():
            folder.rmdir()
        place.rename(folder)
    return {"format": format, "folder": str(folder), "largest_difference": found, "left_out": left_out}


def check_new_folder(folder: str | Path) -> Path:
    """The folder, if nothing would be overwritten; checked before the work."""
    folder = check_output_folder("folder", folder)
    holds = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if holds:
        raise ValueError(f"folder {folder} is not empty ({holds[0]}, ...): give a new or an empty one")
    return folder


@torch.no_grad()
def source_of(encoder: VSEEncoder) -> tuple[PreTrainedModel, list[str]]:
    """The dual encoder of a model with the trained temperature and bias and its heads multiplied in, and the names of
    those scalars that it has no place for.

    Raises:
        ValueError: it has heads that cannot be multiplied in.
    """
    model, config = encoder.model, encoder.model.config
    assert model.dual_encoder is not None  # `formats_of` names no format for any other model
    family = model.dual_encoder.config.model_type
    paths = LAST_LINEAR.get(family, USUAL) if config.projection_type == "linear" else (None, None)
    heads = [(model.visual_projection, model.visual_head), (model.text_projection, model.text_head)]
    if config.vision_power != 1 or any(
        path is None and not all(isinstance(each, nn.Identity) for each in both)
        for path, both in zip(paths, heads, strict=True)
    ):
        raise ValueError(
            f"{encoder.name} has heads of projection_type {config.projection_type!r} and vision_power "
            f"{config.vision_power:g}, which the format {family!r} cannot hold: train with projection_type 'none' and "
            "vision_power 1, or publish it in its own format, with hf-vse push"
        )
    if config.mirror_average:
        raise ValueError(
            f"{encoder.name} has mirror_average, which the format {family!r} cannot hold: save it without, or "
            "publish it in its own format, with hf-vse push"
        )
    source = deepcopy(model.dual_encoder).float()
    for path, (head, _) in zip(paths, heads, strict=True):
        if path is not None:
            last = source.get_submodule(path)
            for weight in last.parameters():  # (dim, inputs), and a bias (dim,)
                weight.copy_(head.weight.double() @ weight.double())
    temperature, bias = (value.double() for value in model.scaling())
    values = dict(zip(SCALARS_OF_SOURCE, (-temperature.log(), bias, temperature), strict=True))
    has = {name for name in SCALARS_OF_SOURCE if getattr(source, name, None) is not None}
    for name in has:
        getattr(source, name).fill_(values[name])
    left_out = [] if has & {"logit_scale", "temperature"} else ["temperature"]
    left_out += [] if model.logit_bias is None or "logit_bias" in has else ["logit_bias"]
    if left_out:
        logger.info("a %s model has no place for %s: its vectors are the same without", family, " and ".join(left_out))
    return source, left_out


def write_transformers(source: PreTrainedModel, processor: VSEProcessor, folder: Path) -> None:
    """Model, image processor, tokenizer, and the processor that its family has, as transformers loads them."""
    source.save_pretrained(folder)
    image_processor, tokenizer = deepcopy(processor.image_processor), plain_tokenizer(processor.tokenizer)
    for name in OURS:
        vars(image_processor).pop(name, None)
    image_processor.save_pretrained(folder)
    family = getattr(transformers, PROCESSOR_MAPPING_NAMES[source.config.model_type])
    family(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy without what this package and its latest use left in it."""
    tokenizer = deepcopy(tokenizer)
    for name in OURS:
        vars(tokenizer).pop(name, None)
    for name in (*OURS, "max_length", "stride", "truncation_strategy"):
        tokenizer.init_kwargs.pop(name, None)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def write_sentence_transformers(source: PreTrainedModel, processor: VSEProcessor, folder: Path) -> None:
    """What sentence-transformers reads beside the folder of transformers."""
    methods = {"text": "get_text_features", "image": "get_image_features"}
    longest, images = processor.tokenizer.model_max_length, processor.image_processor.to_dict()
    text: dict[str, Any] = {"max_length": longest}
    text |= {"padding": "max_length", "padding_side": "right"} if processor.full_length else {}
    text |= {} if processor.text_mask else {"return_attention_mask": False}
    # Processors of transformers have defaults that go before the settings of their image processor.
    image = {name: images[name] for name in ("patch_size", "max_num_patches") if name in images}
    preparation = {side: each for side, each in (("text", text), ("image", image)) if each}
    attention = DUAL_ENCODERS[source.config.model_type].attention
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            side: {"method": method, "method_output_name": "pooler_output"} for side, method in methods.items()
        },
        "module_output_name": "sentence_embedding",
        "do_lower_case": processor.lower_case,
    }
    settings |= {"processing_kwargs": preparation} if preparation else {}
    settings |= {"model_kwargs": {"attn_implementation": attention}} if attention else {}
    modules = ("transformer.Transformer", ""), ("normalize.Normalize", "1_Normalize")
    write_json(folder / "sentence_bert_config.json", settings)
    write_json(folder / "1_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    )
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.base.modules.{module}"}
            for number, (module, path) in enumerate(modules)
        ],
    )


def prepared_by_pillow(encoder: VSEEncoder) -> VSEEncoder:
    """The same encoder without torchvision, which rounds some pixels otherwise when it resizes."""
    processor, settings = copy(encoder.processor), encoder.processor.image_processor.to_dict()
    kind = getattr(transformers, f"{settings['image_processor_type']}Pil", type(processor.image_processor))
    processor.image_processor = kind.from_dict(settings)
    return VSEEncoder(encoder.model, processor, encoder.name)


def largest_difference(ours: Encoder, theirs: Encoder) -> float:
    """Of any number of the unit vectors of two pictures, one of them a square, and of some sentences."""
    side = 2 * (ours.needed_side or 112)
    rows = [{"image": Image.effect_noise((width, side), 64).convert("RGB")} for width in (side, 2 * side)]
    vectors = [torch.cat([encode_images(each, rows).embeds, encode_texts(each, TEXTS)]) for each in (ours, theirs)]
    return (vectors[0] - vectors[1]).abs().max().item()
