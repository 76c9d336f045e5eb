"""The files of a model of this package, in a folder or on the Hub: complete, or refused in one line.

transformers fills missing weights with random numbers and continues. Results would be wrong without an error, so
everything that decides the vectors is checked first: the kind of model, its configuration, every tensor by name, shape
and value, the image processor and the tokenizer.
Only the installed code runs, never the code of the model, and only safetensors are read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.embed.encoder import Device, Precision
from hf_vse.embed.memory import place_on
from hf_vse.embed.sentences import positions_of
from hf_vse.embed.stored import StoredTensor, stored_config, stored_json, stored_tensors, without_remarks
from hf_vse.embed.weights import check_finite, chosen_device, chosen_precision, one_line
from hf_vse.model.configuration_vse import FEATURES_MODEL_TYPE, GRU_MODEL_TYPE, VSEConfig, check_changes
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEFeatureProcessor, VSEProcessor

# Weights that exist only for some values of a field: new or unused if training overrides it.
CHANGED_BY = {
    "projection_type": ("visual_head.", "text_head."),
    "loss_type": ("logit_scale", "logit_bias"),
    "vision_pooling": ("vision_pooling.",),
    "text_pooling": ("text_pooling.",),
}
TOKENIZER_CONFIG = "tokenizer_config.json"
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", TOKENIZER_CONFIG, "tokenizer.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
LONGEST_SIDE = 4096  # of a picture as a tower sees it
FETCH_AGAIN = "fetch or save the model again"
OTHER_MODELS = "give a model of `hf-vse train`"


def load_vse_model(name: str | Path, device: Device = None, dtype: Precision = None, **overrides: Any) -> VSEModel:
    """The model alone, its weights complete, in evaluation mode.

    Args:
        overrides: fields of `VSEConfig` that replace the stored ones. Weights that they add are initialised, and
            weights that they remove are ignored.

    Raises:
        OSError, ValueError: see `VSEEncoder.from_pretrained`.
    """
    name, device, dtype = str(name), chosen_device(device), chosen_precision(dtype)
    stored, config = read_config(name, overrides)
    tensors = stored_tensors(name)
    with one_line(f"{name}, config.json,", FETCH_AGAIN), without_remarks(), torch.device("meta"):
        expected = VSEModel(config).state_dict()
    fresh = tuple(
        prefix
        for field, prefixes in CHANGED_BY.items()
        if getattr(config, field) != getattr(stored, field)
        for prefix in prefixes
    )
    if config.dual_encoder_config is not None and config.projection_type != stored.projection_type:
        fresh += ("visual_projection.", "text_projection.")
    check_shapes(name, expected, tensors)
    with one_line(name, FETCH_AGAIN), without_remarks():
        options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        model, found = VSEModel.from_pretrained(name, config=config, dtype=dtype, **options)
    check_same_keys(name, "lacks", found["missing_keys"], fresh)
    check_same_keys(name, "holds, foreign to its configuration,", found["unexpected_keys"], fresh)
    check_trained(name, model)
    return place_on(model, device).eval()


def read_config(name: str, overrides: dict[str, Any]) -> tuple[VSEConfig, VSEConfig]:
    """The stored configuration, and the same with overridden fields."""
    path, values = stored_config(name)
    if (kind := values.get("model_type")) != VSEConfig.model_type:
        raise ValueError(
            f"{path}: model_type is {kind!r:.60}, a model of this package has {VSEConfig.model_type!r}: {OTHER_MODELS}"
        )
    with one_line(str(path), FETCH_AGAIN), without_remarks():
        stored = VSEConfig.from_dict(values)
    check_changes(stored, overrides)
    return stored, VSEConfig.from_dict(values | overrides) if overrides else stored


def check_shapes(name: str, expected: dict[str, Tensor], stored: dict[str, StoredTensor]) -> None:
    """Raises ValueError if a stored tensor has the wrong shape or type, before memory is allocated."""
    for key in sorted(expected.keys() & stored.keys()):
        dtype, shape = stored[key]
        if tuple(expected[key].shape) != shape:
            raise ValueError(
                f"{name}: {key} has shape {shape} in the weights and {tuple(expected[key].shape)} by config.json: "
                f"they are of two models: {FETCH_AGAIN}"
            )
        if expected[key].is_floating_point() and "F" not in dtype:
            raise ValueError(f"{name}: {key} holds {dtype}, whole numbers, in place of weights: {FETCH_AGAIN}")


def check_same_keys(name: str, what: str, keys: Iterable[str], fresh: tuple[str, ...] = ()) -> None:
    """Raises ValueError if the names of the weights do not match the model."""
    if wrong := sorted(key for key in keys if not (fresh and key.startswith(fresh))):
        raise ValueError(
            f"{name} {what} {len(wrong)} weights (the first is {wrong[0]!r}) and would give wrong vectors: "
            f"{FETCH_AGAIN}"
        )


def check_trained(name: str, model: VSEModel) -> None:
    """Raises ValueError for weights that are not finite, and for parts that are all zero."""
    check_finite(name, model)
    parts = {f"the {side} tower": modules for side, modules in model.tower_modules().items()}
    parts |= {part: [getattr(model, part)] for part in ("visual_projection", "text_projection")}
    for part, modules in (parts | {"the word embedding": [model.get_input_embeddings()]}).items():
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if parameters and not any(parameter.any() for parameter in parameters):
            raise ValueError(f"{name}: all weights of {part} are zero: {FETCH_AGAIN}")


def load_vse_processor(name: str | Path) -> VSEProcessor:
    """Image processor and tokenizer of a model; none that needs remote code.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    name = str(name)
    stored_config(name)
    there = [file for file in PROCESSOR_FILES if stored_json(name, file, dict) is not None]
    if not any(file in there for file in PROCESSOR_FILES[:2]):
        raise OSError(f"{name} holds no {PROCESSOR_FILES[0]}, its image processor and tokenizer: {FETCH_AGAIN}")
    if not stored_json(name, TOKENIZER_CONFIG, dict):  # else sentences are not cut where they were in training
        raise OSError(f"{name} holds no {TOKENIZER_CONFIG}, how long sentences are read: {FETCH_AGAIN}")
    with one_line(f"{name}: its processor ({', '.join(there)})", FETCH_AGAIN), without_remarks():
        processor = VSEProcessor.from_pretrained(name, trust_remote_code=False)
    if not isinstance(processor.tokenizer, PreTrainedTokenizerBase):
        raise OSError(f"{name} has no tokenizer beside its weights: {FETCH_AGAIN}")
    return processor


def check_processor(name: str, model: VSEModel, processor: VSEProcessor) -> None:
    """Raises ValueError if image processor or tokenizer belong to another model."""
    of_features = model.config.vision_config.model_type == FEATURES_MODEL_TYPE
    if of_features != isinstance(processor.image_processor, VSEFeatureProcessor):
        raise ValueError(
            f"{name}: its image tower is {model.config.vision_config.model_type!r}, its image processor "
            f"{type(processor.image_processor).__name__}: they are of two models: {FETCH_AGAIN}"
        )
    check_image_processor(name, processor.image_processor)
    tokenizer = processor.tokenizer
    table: Any = model.get_input_embeddings()
    words, rows = max(tokenizer.get_vocab().values(), default=-1) + 1, table.num_embeddings
    own_words = model.config.text_config.model_type == GRU_MODEL_TYPE  # made for these words, no more and no less
    if words > rows or (own_words and words != rows):
        raise ValueError(
            f"{name}: its tokenizer knows {words:,} words and its text tower {rows:,}: they are of two models: "
            f"{FETCH_AGAIN}"
        )
    longest = tokenizer.model_max_length
    if tokenizer.pad_token is None or not isinstance(longest, int | float) or longest < 1:
        raise ValueError(
            f"{name}: its tokenizer has the padding {tokenizer.pad_token!r} and the model_max_length "
            f"{longest!r:.40}: {FETCH_AGAIN}"
        )
    positions = positions_of(model.config.text_config)
    if positions is not None:  # of a tokenizer that does not say how much the tower reads
        tokenizer.model_max_length = min(longest, positions)


def check_image_processor(name: str, image_processor: BaseImageProcessor) -> None:
    """Raises ValueError for invalid settings and for sizes that no tower has, before an image is resized to them."""
    settings = image_processor.to_dict()
    for field, kind in (("resample", int), ("rescale_factor", int | float)):
        if (value := settings.get(field)) is not None and not isinstance(value, kind):
            raise ValueError(f"{name}: {field} of its image processor is {value!r:.40}, no number: {FETCH_AGAIN}")
    for field in ("size", "crop_size", "pad_size"):
        sides = settings.get(field) or {}
        for side, value in (sides if isinstance(sides, dict) else {"side": sides}).items():
            if value is not None and not (isinstance(value, int) and 1 <= value <= LONGEST_SIDE):
                raise ValueError(
                    f"{name}: {field} of its image processor has {side} {value!r:.40}; a picture has 1 to "
                    f"{LONGEST_SIDE} pixels: {FETCH_AGAIN}"
                )
