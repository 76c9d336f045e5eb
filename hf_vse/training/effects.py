"""Keys of a recipe that have no effect, each with the reason and the remedy.

A key is refused where it has no effect: because this package does not do what transformers uses it for, because
another key rules it out, or because it stands in a stage and acts in the whole run. Above the stages a value that is
equal to the default is accepted.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, NamedTuple

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.own import without_folder
from hf_vse.training.settings import CONFIG_FIELDS, DataArguments, OwnModelArguments, defaults_of_keys

Get = Callable[[str], Any]
PHOTOGRAPHS = ("scenes", "coco", "flickr30k", "flickr8k", "imagefolder")
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")

# Fields of transformers.TrainingArguments without an effect on this trainer.
_EVALUATION = "recall is measured over whole splits: remove it"
_ALWAYS = "training and evaluation are part of every run: remove it"
WITHOUT_EFFECT = (
    dict.fromkeys(("do_train", "do_eval", "do_predict"), _ALWAYS)
    | dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _EVALUATION)
    | dict.fromkeys(("eval_accumulation_steps", "batch_eval_metrics", "include_for_metrics"), _EVALUATION)
    | dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _EVALUATION)
    | dict.fromkeys(("label_names", "label_smoothing_factor"), "pairs have no labels: remove it")
    | dict.fromkeys(
        ("train_sampling_strategy", "length_column_name"), "batches are drawn by images: see unique_images"
    )
    | {
        "resume_from_checkpoint": "the same command continues from the last checkpoint: remove it",
        "remove_unused_columns": "the columns of a data set are those of pairs: remove it",
        "average_tokens_across_devices": "losses are means over pairs: remove it",
    }
)


def takes_features(get: Get) -> bool:
    return get("features") is not None or get("dataset") == "precomp"


def own_words(get: Get) -> bool:
    return get("text_tower") is None and get("init_from") is None


def own_images(get: Get) -> bool:
    tower = get("image_tower")
    return get("init_from") is None and not takes_features(get) and (tower is None or tower.startswith("timm/"))


def losses(get: Get) -> set[str | None]:
    """Objectives of a stage; None stands for the objective of the model that it starts from."""
    warmup = {get("hard_negative_warmup_loss")} if get("hard_negative_warmup_epochs") else set()
    unknown = get("loss_type") is None and get("init_from") is not None
    return warmup | {None if unknown else without_folder(get("loss_type") or VSEConfig.loss_type)}


class Need(NamedTuple):
    """What a key needs to have an effect.

    Args:
        met: tells from a function that returns the value of any key whether the need is met.
        text: why the key has no effect otherwise, and the remedy.
    """

    met: Callable[[Get], bool]
    text: str


def of_objectives(setting: str, word: str) -> Need:
    """The need of a setting that only some objectives use."""
    users = [name for name, objective in OBJECTIVES.items() if setting in objective.settings]
    known = f"only {', '.join(users)} {'have' if len(users) > 1 else 'has'} a {word}"
    return Need(
        lambda get: any(name is None or setting in OBJECTIVES[name].settings for name in losses(get)),
        f"{known}: remove it, or choose one of them as loss_type",
    )


_IMAGES = Need(own_images, "features, init_from or image_tower decide how images are prepared: remove one of them")
_PIXELS = Need(lambda get: not takes_features(get), "features take the place of images: remove it")
HUB_KEYS = ("hub_model_id", "hub_token", "hub_private_repo", "hub_strategy", "hub_revision", "hub_always_push")
_HUB = Need(lambda get: bool(get("push_to_hub")), "nothing is pushed: add push_to_hub: true")
_HEAD = Need(
    lambda get: get("projection_type") in ("mlp", "residual") or get("init_from") is not None,
    "there is no head: give projection_type mlp or residual",
)
_SOFT = Need(
    lambda get: get("soft_targets") != "none",
    "there are no soft targets: give soft_targets captions, teacher or scores",
)
_LORA = Need(lambda get: get("lora_rank") > 0, "there are no adapters: give lora_rank")
_CONTROL = Need(lambda get: get("control_dataset") is not None, "there is no control set: give control_dataset")
_TRAINED = Need(
    lambda get: not get("freeze_text_tower") or not (get("freeze_image_tower") or takes_features(get)),
    "no tower is trained: remove it, or freeze_image_tower or freeze_text_tower",
)
_FRESH = Need(lambda get: get("init_from") is None, "the towers are those of init_from: remove one of them")
_CLASSES = Need(lambda get: get("class_weight") > 0, "there is no classifier: give class_weight")
_GROUPS = Need(lambda get: get("batch_groups") != "none", "there are no groups: give batch_groups: neighbours")
_GROUPED = Need(lambda get: _GROUPS.met(get) or get("positives") == "entity", _GROUPS.text)
_LIMITED = Need(lambda get: get("loss_execution") != "dense", "loss_execution dense compares all at once: remove one")

NEEDS: dict[str, Need] = (
    dict.fromkeys(("resize", "crop", "image_mean", "image_std"), _IMAGES)
    | dict.fromkeys(("mirror_images", "crop_min_scale", "mosaic_share"), _PIXELS)
    | dict.fromkeys(HUB_KEYS, _HUB)
    | dict.fromkeys(("image_tower", "text_tower"), _FRESH)
    | dict.fromkeys(("head_init", "head_dropout"), _HEAD)
    | dict.fromkeys(("class_samples", "class_margin", "class_temperature", "class_learning_rate"), _CLASSES)
    | dict.fromkeys(("group_first_rank", "group_last_rank"), _GROUPS)
    | {
        "vision_config": Need(
            lambda get: get("image_tower") is None and get("init_from") is None and not takes_features(get),
            "the image tower is that of image_tower, features or init_from: remove one of them",
        ),
        "text_config": Need(own_words, "the text tower is that of text_tower or init_from: remove one of them"),
        "min_word_count": Need(own_words, "the words are those of text_tower or init_from: remove it"),
        "max_length": Need(lambda get: get("init_from") is None, "the tokenizer is that of init_from: remove it"),
        "image_tower_weights": Need(
            lambda get: get("image_tower") is not None and get("init_from") is None and not takes_features(get),
            "they belong to an image_tower of timm: give it, without features and init_from",
        ),
        "margin": of_objectives("margin", "margin"),
        "temperature": of_objectives("temperature", "temperature"),
        "logit_bias_init": of_objectives("logit_bias", "bias"),
        "positive_margin": of_objectives("positive_margin", "margin of the positive"),
        "hardness": of_objectives("hardness", "hardness"),
        "false_negative_gap": of_objectives("false_negative_gap", "gap to false negatives"),
        "negatives_kept": of_objectives("negatives_kept", "number of negatives to keep"),
        "feature_mix": Need(
            lambda get: takes_features(get) or get("freeze_image_tower") or get("dataset") not in PHOTOGRAPHS,
            "one vector of each image is mixed: give features, or freeze_image_tower: true",
        ),
        "group_size": _GROUPED,
        "mosaic_sides": Need(lambda get: get("mosaic_share") > 0, "there are no mosaics: give mosaic_share"),
        "batch_groups": Need(
            lambda get: bool(get("freeze_text_tower") and get("cache_frozen")) or get("batch_groups") == "none",
            "neighbours are found in the kept vectors of captions: give freeze_text_tower: true, and cache_frozen",
        ),
        "captions_per_image": Need(
            lambda get: get("positives") != "one", "several captions need positives: each, any or centre: give one"
        ),
        "positives": Need(
            lambda get: get("captions_per_image") > 1 or get("positives") == "entity",
            "an image comes with one caption: give captions_per_image",
        ),
        "caption_weight": Need(
            lambda get: get("positives") == "entity", "captions are all that is contrasted: give positives: entity"
        ),
        "hard_negative_warmup_loss": Need(
            lambda get: get("hard_negative_warmup_epochs") > 0, "there is no warm-up: give hard_negative_warmup_epochs"
        ),
        "soft_weight": _SOFT,
        "feature_distance": Need(
            lambda get: get("soft_targets") == "teacher", "there is no teacher: give soft_targets: teacher"
        ),
        "soft_temperature": _SOFT,
        "teacher": Need(
            lambda get: get("soft_targets") == "teacher", "nothing is learned from it: give soft_targets: teacher"
        ),
        "teacher_scores": Need(
            lambda get: get("soft_targets") == "scores", "nothing is learned from it: give soft_targets: scores"
        ),
        "queue_start_epochs": Need(lambda get: get("queue_size") > 0, "there is no queue: give queue_size"),
        "lr_decay_factor": Need(
            lambda get: get("lr_decay_epochs") is not None, "the rate does not decay: give lr_decay_epochs"
        ),
        "warmup_steps": Need(
            lambda get: get("lr_scheduler_type") not in WITHOUT_WARMUP,
            "this lr_scheduler_type has no warm-up: choose constant_with_warmup, or remove it",
        ),
        "cached_crops": Need(
            lambda get: bool(get("freeze_image_tower") or get("unfreeze_last_blocks")) and not takes_features(get),
            "crops are kept of a frozen image tower that reads photographs: give freeze_image_tower: true, or "
            "unfreeze_last_blocks",
        ),
        "image_tower_learning_rate": Need(
            lambda get: not get("freeze_image_tower") and not takes_features(get),
            "the image tower is frozen or absent: remove it, or freeze_image_tower",
        ),
        "text_tower_learning_rate": Need(
            lambda get: not get("freeze_text_tower"), "the text tower is frozen: remove it, or freeze_text_tower"
        ),
        "lora_rank": Need(
            lambda get: not (get("freeze_image_tower") and get("freeze_text_tower")),
            "both towers are frozen, so no adapter would be trained: remove it, or one of freeze_*_tower",
        ),
        "lora_alpha": _LORA,
        "lora_dropout": _LORA,
        "control_dataset": Need(
            lambda get: get("init_from") is not None, "there is no start to interpolate with: give init_from"
        ),
        "control_options": _CONTROL,
        "permitted_loss": _CONTROL,
        "temperature_learning_rate": Need(
            lambda get: any(name is None or "temperature" in OBJECTIVES[name].learned for name in losses(get)),
            "no objective of the run learns its temperature: remove it, or choose clip or siglip as loss_type",
        ),
        "layer_decay": _TRAINED,
        "unfreeze_last_blocks": _TRAINED,
        "loss_chunk_size": _LIMITED,
        "save_steps": Need(
            lambda get: (get("save_strategy") or get("eval_strategy")) == "steps",
            "checkpoints are not written by steps: give save_strategy: steps",
        ),
        "eval_steps": Need(
            lambda get: get("eval_strategy") == "steps", "recall is not measured by steps: give eval_strategy: steps"
        ),
        "logging_steps": Need(
            lambda get: get("logging_strategy") == "steps", "lines do not come by steps: give logging_strategy: steps"
        ),
    }
)  # fmt: skip

# Keys that act in the whole run, and why not in a stage. Every other key acts in the stage that has it.
_CONTROL_SET = ("control_dataset", "control_options", "permitted_loss")
_SET_UP = ("use_cpu", "local_rank", "ddp_backend", "ddp_timeout")
OF_THE_RUN: dict[str, str] = (
    {item.name: "all stages read the same data" for item in fields(DataArguments)}
    | {item.name: "towers, tokenizer and image processor are built once" for item in fields(OwnModelArguments)}
    | {"init_from": "a later stage starts from the one before"}
    | dict.fromkeys(("projection_dim", "vision_hidden_size"), "the weights of all stages have one size")
    | dict.fromkeys(("push_to_hub", *HUB_KEYS), "one model is pushed")
    | dict.fromkeys(_CONTROL_SET, "the start of the first stage and the end of the last are interpolated")
    | dict.fromkeys(_SET_UP, "devices and processes are set up once")
    | {"joined_seeds": "what the last stage leaves is joined"}
    | {"output_dir": "each stage has a folder of its name in it"}
)


def check_effects(values: dict[str, Any], stages: Iterable[dict[str, Any]], where: str) -> None:
    """Raises ValueError for a key that has no effect.

    Args:
        values: of the whole run.
        stages: overrides of each stage, with its name.
        where: the recipe, for the error.
    """
    defaults = defaults_of_keys()
    usual = defaults | {key: getattr(VSEConfig, key) for key in CONFIG_FIELDS}
    for key in values.keys() & WITHOUT_EFFECT.keys():
        if values[key] != defaults[key]:
            raise ValueError(f"{where}: {key} does nothing: {WITHOUT_EFFECT[key]}")
    passed_on: dict[str, Any] = {}
    unmet = {key for key in NEEDS if key in values and values[key] not in (defaults[key], usual[key])}
    for stage in stages:
        place = f"{where}, stage {stage['name']!r}"
        merged = defaults | passed_on | values | stage
        check_acts_in_stage(stage, place)
        for key in NEEDS:
            met = NEEDS[key].met(merged.__getitem__)
            if key in stage and stage[key] not in (defaults[key], usual[key], values.get(key)) and not met:
                raise ValueError(idle(place, key, usual[key]))
            if met:
                unmet.discard(key)
        passed_on |= {key: value for key, value in (values | stage).items() if key in CONFIG_FIELDS}
    for key in sorted(unmet):
        raise ValueError(idle(where, key, usual[key]))
    if values.get("streaming") and not all((values | stage).get("max_steps", -1) > 0 for stage in stages):
        raise ValueError(f"{where}: streaming needs max_steps, because the length of a stream is unknown: give it")


def check_acts_in_stage(stage: dict[str, Any], where: str) -> None:
    """Raises ValueError for a key that has no effect in a stage, whatever its value."""
    for key in stage:
        if key in OF_THE_RUN:
            raise ValueError(
                f"{where}: {key} does nothing in a stage: write it above `stages`, for the whole run, as "
                f"{OF_THE_RUN[key]}"
            )
        if key in WITHOUT_EFFECT:
            raise ValueError(f"{where}: {key} does nothing: {WITHOUT_EFFECT[key]}")


def idle(where: str, key: str, usual: Any) -> str:
    """The error for a key without effect, with the option that overrides it on the command line."""
    value = usual if isinstance(usual, str) else json.dumps(usual)
    return f"{where}: {key} does nothing: {NEEDS[key].text} (on the command line --{key} {value})"
