"""The values that a key of a recipe accepts: its type, its words, and the range of its numbers.

A number outside of these ranges trains nothing, or something else than was asked for, or fills the memory.
"""

import math
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import trainer_log_levels

from hf_vse.data.spec import NEAR_DUPLICATES
from hf_vse.model.configuration_vse import GRU_MODEL_TYPE, MOST_LAYERS, VSEGRUTextConfig
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.own import is_own

MANY = 1e9
WIDEST = 2**16  # of a layer
NAMES = {bool: "true or false", dict: "a map", list: "a list"}


@dataclass(frozen=True)
class Limit:
    """A range of numbers.

    Args:
        low, high: the ends of the range, both included.
        above, below: exclude `low`; exclude `high`.
        also: single numbers outside of the range that are accepted too.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return (low and high) or value in self.also  # NaN is in no range

    def __str__(self) -> str:
        low = f"above {self.low:.10g}" if self.above else f"from {self.low:.10g}"
        high = f"below {self.high:.10g}" if self.below else f"to {self.high:.10g}"
        return " or ".join([f"{low} {'and ' if self.above or self.below else ''}{high}", *map(str, self.also)])


def limits(limit: Limit, *names: str) -> dict[str, Limit]:
    return dict.fromkeys(names, limit)


FINITE = Limit(-1e30, 1e30)
LIMITS: dict[str, Limit] = (
    limits(Limit(0, 2**32 - 1), "seed", "data_seed", "validation_seed")
    | limits(Limit(1, 2**20), "per_device_train_batch_size", "per_device_eval_batch_size", "loss_chunk_size")
    | limits(Limit(1, 2**20), "grad_cache_batch_size", "gradient_accumulation_steps")
    | limits(Limit(1, MANY), "num_train", "num_eval", "save_total_limit", "collapse_patience", "min_word_count")
    | limits(Limit(1, MANY), "dataloader_prefetch_factor", "torch_empty_cache_steps", "ddp_timeout")
    | limits(Limit(1, MANY), "ddp_bucket_cap_mb", "eval_accumulation_steps")
    | limits(Limit(1, MANY, also=(-1,)), "max_steps")
    | limits(Limit(0, MANY), "diagnostics_steps", "warmup_steps", "eval_delay")
    | limits(Limit(0, MANY, above=True), "logging_steps", "eval_steps", "save_steps")
    | limits(Limit(0, 1e5, above=True), "num_train_epochs", "lr_decay_epochs")
    | limits(Limit(0, MANY), "queue_size")
    | limits(
        Limit(0, 1e5),
        "queue_start_epochs",
        "hard_negative_warmup_epochs",
        "max_grad_norm",
        "weight_decay",
        "neftune_noise_alpha",
    )
    | limits(Limit(0, 100), "learning_rate", "image_tower_learning_rate", "text_tower_learning_rate")
    | limits(Limit(0, 1, below=True), "ema_decay", "lora_dropout")
    | limits(Limit(0, 1024), "lora_rank")
    | limits(Limit(1, 100), "joined_seeds")
    | limits(Limit(0, 100), "feature_mix")
    | limits(Limit(0, 1e5, above=True), "lora_alpha")
    | limits(Limit(0, 100), "permitted_loss", "temperature_learning_rate")
    | limits(Limit(0, 1, above=True), "layer_decay")
    | limits(Limit(1, 1000), "unfreeze_last_blocks", "captions_per_image")
    | limits(Limit(2, 2**20), "group_size")
    | limits(Limit(1, MANY), "group_first_rank", "group_last_rank")
    | limits(
        Limit(0, 1), "word_dropout", "set_dropout", "crop_min_scale", "max_broken_share", "label_smoothing_factor"
    )
    | limits(Limit(0, 1), "mosaic_share")
    | limits(Limit(0, MANY), "class_weight", "caption_weight")
    | limits(Limit(1, MANY), "class_samples")
    | limits(Limit(0, 2), "class_margin")
    | limits(Limit(0, 100, above=True), "class_temperature", "class_learning_rate")
    | limits(Limit(0, 1, below=True), "feature_dropout", "head_dropout", "validation_share")
    | limits(Limit(0, 1, below=True), "adam_beta1", "adam_beta2")
    | limits(Limit(0, 100, above=True), "soft_temperature")
    | limits(Limit(0, MANY), "feature_distance")
    | limits(Limit(0, 1), "soft_weight")
    | limits(Limit(0, 1, above=True), "lr_decay_factor", "adam_epsilon")
    | limits(Limit(0, 1024), "dataloader_num_workers", "cached_crops")
    | limits(Limit(1, WIDEST), "projection_dim", "vision_hidden_size")
    | limits(Limit(3, 1e5), "max_length")  # start, a word, end
    | limits(Limit(1, 8192), "resize", "crop")
    | limits(Limit(16, 1024), "image_size")
    | limits(Limit(0, 100, above=True), "temperature", "vision_power")
    | limits(Limit(0, 2), "margin")  # cosines differ by 2 at most
    | limits(Limit(-2, 2), "positive_margin", "false_negative_gap")
    | limits(Limit(0, 1), "image_weight")
    | limits(Limit(0, 100), "hardness")
    | limits(Limit(0, MANY), "negatives_kept")
    | limits(Limit(1, MOST_LAYERS), "text_layers")
    | limits(Limit(-1000, 1000), "logit_bias_init")
)
THREE_NUMBERS = {"image_mean": FINITE, "image_std": Limit(0, 1e30, above=True)}
CHOICES = {
    "eval_strategy": [item.value for item in IntervalStrategy],
    "save_strategy": [item.value for item in SaveStrategy],
    "log_level": trainer_log_levels,
    "log_level_replica": trainer_log_levels,
    "near_duplicates": NEAR_DUPLICATES,
    "loss_type": OBJECTIVES,
    "hard_negative_warmup_loss": OBJECTIVES,
}
TOWERS = ("vision_config", "text_config")
# Fields of a tower's configuration, by how their names end.
SIZES = ("_size", "_dim", "_sizes", "_layers", "_heads", "num_channels", "depths")
SHARES = ("dropout", "_dropout_prob", "drop_path_rate")
SIZE, SHARE, WORDS = Limit(1, WIDEST), Limit(0, 1, below=True), Limit(1, 1e7)
# Keys that a timm tower takes beside its fields.
OF_TIMM = {"num_classes", "num_features", "pretrained_cfg", "label_names", "global_pool"}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a field. A whole number is a float too; true and false are no numbers."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return any(fits(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list and isinstance(value, list):
        return all(fits(each, get_args(kind)[0]) for each in value)
    kind = get_origin(kind) or kind
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return False  # transformers takes the name of a member as text
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind))


def expected(kind: Any) -> str:
    """The type of a field in words, without null: `int`, or `str, or true or false`."""
    given = get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,)
    kinds = [each for each in given if not (isinstance(each, type) and issubclass(each, NoneType | Enum))]
    return ", or ".join(dict.fromkeys(name_of(each) for each in kinds))


def name_of(kind: Any) -> str:
    plain = get_origin(kind) or kind
    return repr(*get_args(kind)) if plain is Literal else NAMES.get(plain, getattr(plain, "__name__", str(plain)))


def check_fields(values: dict[str, Any], known: dict[str, Field], where: str) -> None:
    """Raises ValueError for a value of the wrong type, an unknown word, or a number out of its range."""
    for key, value in values.items():
        of_field = known[key]
        if not fits(value, of_field.type):
            hint = ""
            if fits(str(value), of_field.type):
                hint = '; write "no" or another word in quotes' if value is False else "; text is put in quotes"
            raise ValueError(f"{where}: {key} must be {expected(of_field.type)}, got {value!r:.60}{hint}")
        if value == "" and of_field.default is None:
            raise ValueError(f"{where}: {key} is empty: give a value, or null for none")
        check_word(key, value, of_field.type, where)
        check_within(key, value, LIMITS.get(key, FINITE), where)
        if key in THREE_NUMBERS and value is not None:
            limit = THREE_NUMBERS[key]
            if len(value) != 3 or not all(fits(each, float) and limit.holds(each) for each in value):
                raise ValueError(f"{where}: {key} is a list of three numbers {limit}, got {value!r:.60}")
        if key in TOWERS and value is not None:
            check_tower(key, value, where)


def check_limits(values: dict[str, Any]) -> None:
    """Raises ValueError for a number out of the range of its field; other values are not checked."""
    for key, value in values.items():
        if key in LIMITS:
            check_within(key, value, LIMITS[key])


def check_word(key: str, value: Any, kind: Any, where: str) -> None:
    """Raises ValueError for a word that is none of those a field takes."""
    enums = [each for each in get_args(kind) if isinstance(each, type) and issubclass(each, Enum)]
    words = [item.value for each in enums for item in each] + list(CHOICES.get(key, ()))
    own = key == "loss_type" and is_own(value)
    if words and isinstance(value, str) and value not in words and not own:
        near = get_close_matches(value, words, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(words):.200}"
        raise ValueError(f"{where}: {key} {value!r:.60} is unknown; {hint}")


def check_within(key: str, value: Any, limit: Limit, where: str | None = None) -> None:
    """Raises ValueError for a number out of the range, or one in a list or map that is not finite."""
    if isinstance(value, dict | list):
        for inner, each in value.items() if isinstance(value, dict) else enumerate(value):
            check_within(f"{key}.{inner}", each, FINITE, where)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not limit.holds(value):
        number = str(value) if len(str(value)) < 40 else f"a number of {len(str(value))} digits"
        raise ValueError(f"{where + ': ' if where else ''}{key} is a number {limit}, got {number}")


def tower_class(key: str, values: dict[str, Any], where: str) -> type[PreTrainedConfig]:
    """The configuration class that `model_type` names.

    Raises:
        ValueError: an image tower without `model_type`, or an unknown one.
    """
    model_type = values.get("model_type", GRU_MODEL_TYPE if key == "text_config" else None)
    if model_type is None:
        raise ValueError(f"{where}: {key} names no model_type: add one, such as {{model_type: resnet}}")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name a tower of transformers, such as resnet, vit, bert"
        raise ValueError(f"{where}: {key}.model_type {model_type!r:.60} is unknown; {hint}")
    return CONFIG_MAPPING[model_type]


def check_tower(key: str, values: dict[str, Any], where: str) -> None:
    """Raises ValueError for a configuration of a tower with an unknown key or a value that it refuses."""
    chosen = tower_class(key, values, where)
    known = {item.name for item in fields(chosen)} | set(chosen.attribute_map) | {"model_type"}
    known |= OF_TIMM if chosen.model_type == "timm_wrapper" else set()
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"{chosen.model_type} has {', '.join(sorted(known))}"
            raise ValueError(f"{where}: {key} has the unknown key {name!r:.60}; {hint:.300}")
        check_part(f"{key}.{name}", value, where)
    if key == "text_config" and "vocab_size" in values:
        raise ValueError(f"{where}: text_config.vocab_size comes from the tokenizer: leave it out; see min_word_count")
    if chosen is VSEGRUTextConfig:  # the configurations of transformers check their types themselves
        kinds = {item.name: item.type for item in fields(chosen)} | {"model_type": str}
        for name, value in values.items():
            if not fits(value, kinds[name]):
                raise ValueError(f"{where}: {key}.{name} must be {expected(kinds[name])}, got {value!r:.60}")
    options = {name: value for name, value in values.items() if name != "model_type"}
    try:
        AutoConfig.for_model(chosen.model_type, **options)
    except Exception as error:  # the configurations of transformers raise many types
        reason = str(error).removesuffix("\n").split("\n")[-1].strip()
        raise ValueError(
            f"{where}: {key} {values!r:.120} does not describe a {chosen.model_type}: {reason:.200}"
        ) from error


def check_part(name: str, value: Any, where: str) -> None:
    """Raises ValueError for a size below 1 or above `WIDEST`, or a share outside of 0 to 1."""
    limit = next((each for ends, each in ((SIZES, SIZE), (SHARES, SHARE)) if name.endswith(ends)), None)
    if name.endswith("vocab_size"):
        limit = WORDS
    if limit is None or isinstance(value, bool | str | NoneType):
        return
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, int | float) and not (limit.holds(each) and math.isfinite(each)):
            raise ValueError(f"{where}: {name} is a number {limit}, got {each!r:.60}")
