"""Recipes and their fields through `hf-vse train`: refused before data are looked for, which are not there."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import yaml

from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.settings import SECTIONS, DataArguments, ModelArguments
from tests.bad_input.table import Case, one_clear_line

GOOD: dict[str, Any] = {
    "dataset": "precomp",
    "data_dir": "nowhere",  # what is not refused before ends with this
    "text_config": {"word_dim": 8},
    "projection_dim": 8,
    "loss_type": "hardnce",
    "output_dir": "run",
}


def recipe(**changed: Any) -> str:
    return yaml.safe_dump(GOOD | changed)


def train(text: str | bytes, *words: str) -> Callable:
    """Writes a recipe and trains with it."""

    def arrange(parts, folder) -> list[str]:
        content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (folder / "r.yaml").write_bytes(content)
        return ["train", "r.yaml", "--quiet", *words]

    return arrange


def kinds(item: Any) -> tuple[Any, ...]:
    return get_args(item.type) or (item.type,)


ALL = {item.name: item for section in SECTIONS.values() for item in fields(section) if item.init}
NUMBERS = {name: item for name, item in ALL.items() if int in kinds(item) or float in kinds(item)}
# Where a negative number may stand.
SIGNED = {"logit_bias_init", "local_rank", "positive_margin", "false_negative_gap"}
NOT_NUMBERS = {"text": "many", "list": [1], "yes": True, "inf": float("inf")}
NOT_TEXT = {"number": 7, "list": ["a"], "map": {"a": "b"}, "no": False}
FLAGS = {"text": "perhaps", "number": 1}

OURS = {*VSETrainingArguments.__annotations__, *(item.name for item in fields(ModelArguments) + fields(DataArguments))}


def few(name: str, wrong: dict[str, Any]) -> dict[str, Any]:
    """Everything wrong for fields of ours, of those that transformers has the first."""
    return wrong if name in OURS else dict(list(wrong.items())[:1])


OF_NUMBERS = [
    Case(f"recipe/{name} {what}", train(recipe(**{name: value})), f"{name} (must be|is a number)")
    for name in NUMBERS
    for what, value in few(name, {"nan": float("nan")} | NOT_NUMBERS | {"huge": 10**40}).items()
]
NEGATIVE = [
    Case(f"recipe/{name} negative", train(recipe(**{name: -2})), f"{name} is a number")
    for name in NUMBERS
    if name not in SIGNED
]
OF_TEXT = [
    Case(f"recipe/{name} {what}", train(recipe(**{name: value})), f"{name} (must be|is a)")
    for name, item in ALL.items()
    if item.type in (str, str | None) and name in OURS
    for what, value in (NOT_TEXT if name in ("dataset", "loss_type", "negatives") else {"list": ["a"]}).items()
]
OF_FLAGS = [
    Case(f"recipe/{name} {what}", train(recipe(**{name: value})), f"{name} must be true or false")
    for name, item in ALL.items()
    if item.type in (bool, bool | None) and name in OURS
    for what, value in FLAGS.items()
]
ZERO = [
    Case(f"recipe/{name} zero", train(recipe(**{name: 0})), f"{name} is a number (from|above)")
    for name in (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "max_length",
        "projection_dim", "resize", "crop", "temperature", "vision_power", "num_train", "num_eval", "image_size",
        "save_total_limit", "gradient_accumulation_steps", "logging_steps", "min_word_count", "collapse_patience",
    )
]  # fmt: skip
NULL = [
    Case(f"recipe/{name} null", train(recipe(**{name: None})), f"{name} must be")
    for name, item in NUMBERS.items()
    if type(None) not in kinds(item)
]
MISSPELT = [
    Case(f"recipe/unknown key near {name}", train(recipe(**{name[:-1] + "_": 1})), f"did you mean '{name}'")
    for name in ("learning_rate", "text_config", "projection_dim", "output_dir", "hard_negative_warmup_epochs")
]

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{step}: &a{step} [{', '.join([f'*a{step - 1}'] * 9)}]\n" for step in range(1, 10)
)
MERGES = "a0: &a0 {x0: 1, y0: 2}\n" + "".join(
    f"a{step}: &a{step} {{<<: [{', '.join([f'*a{step - 1}'] * 9)}], x{step}: 1}}\n" for step in range(1, 12)
)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "r.yaml must hold `key: value` lines, got nothing"),
    "only a comment": ("# later\n", "got nothing"),
    "text": ("dataset", "must hold `key: value` lines, got a str"),
    "list": ("- dataset", "got a list"),
    "number": ("7", "got a int"),
    "binary": (bytes(range(128, 256)), "r.yaml is not valid UTF-8"),
    "utf-16": (recipe().encode("utf-16"), "r.yaml is not valid UTF-8"),
    "latin-1": ("data_dir: Bücher".encode("latin-1"), "r.yaml is not valid UTF-8"),
    "control characters": (b"dataset: a\x00b", "not valid YAML"),
    "NUL written out": ('data_dir: "a\\0b"', "an invalid character"),
    "half a surrogate": ('data_dir: "\\ud800"', "an invalid character|not valid YAML"),
    "tab": ("text_config:\n\tword_dim: 8", "not valid YAML"),
    "deep list": ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 levels"),
    "deep map": ("a: " + "{a: " * 5000 + "}" * 5000, "nested more than 50 levels"),
    "open bracket": ("stages: [", "not valid YAML"),
    "open quote": ('dataset: "scenes', "not valid YAML"),
    "two documents": ("dataset: scenes\n---\nseed: 1", "not valid YAML"),
    "key twice": ("seed: 1\nseed: 2", "line 2: 'seed' is a duplicate key"),
    "key twice in a stage": ("stages: [{name: a, seed: 1, seed: 2}]", "'seed' is a duplicate key"),
    "int key": ("1: 2", "the key 1 is not text"),
    "null key": ("null: 2", "the key None is not text"),
    "yes as a key": ("on: 2", "the key True is not text"),
    "a megabyte": ("#" * 2**20 + "\n", "more than a recipe has"),
    "key of a part": ("text_config: {3: 4}", "the key 3 is not text"),
    "list as a key": ("? [a, b]\n: 2", "not valid YAML"),
    "date": ("revision: 2021-10-15", "is a date: put it in quotes"),
    "date that is none": ("revision: 2021-99-99", "not valid YAML"),
    "set": ("dataset: !!set {a, b}", "is a set"),
    "bytes": ("dataset: !!binary aGVsbG8=", "is a bytes"),
    "python object": ("dataset: !!python/object/apply:os.system ['touch here']", "not valid YAML"),
    "python name": ("dataset: !!python/name:os.system", "not valid YAML"),
    "unknown tag": ("dataset: !mine x", "not valid YAML"),
    "unknown alias": ("dataset: *other", "not valid YAML"),
    "alias of itself": ("a: &a [*a]", "contains itself"),
    "billion laughs": (LAUGHS, "more than 10000 values"),
    "billion merges": (MERGES, "more than 10000 values|second time"),
    "number of 5,000 digits": ("seed: " + "9" * 5000, "not valid YAML"),
    "number beyond floats": ("learning_rate: 1e999", "learning_rate is a number from 0 to 100, got inf"),
    "no without quotes": (
        'eval_strategy: no\nsave_strategy: "no"',
        'eval_strategy must be str, got False; write "no"',
    ),
}

NAMES = {
    "missing": {}, "null": {"name": None}, "number": {"name": 1}, "flag": {"name": True}, "list": {"name": ["a"]},
    "empty": {"name": ""}, "blank": {"name": "  "}, "absolute": {"name": "/tmp/stage"}, "above": {"name": "../up"},
    "far above": {"name": "a/../../../up"}, "dots": {"name": ".."}, "dot": {"name": "."}, "hidden": {"name": ".a"},
    "folder": {"name": "a/b"}, "other separator": {"name": "a\\b"}, "drive": {"name": "C:a"},
    "device": {"name": "NUL"}, "end in a dot": {"name": "a."}, "long": {"name": "a" * 300}, "line": {"name": "a\nb"},
    "escape": {"name": "a\x1b[2J"},
}  # fmt: skip
STAGES: dict[str, tuple[Any, str]] = {f"name {what}": ([stage], "name") for what, stage in NAMES.items()} | {
    "names twice": ([{"name": "a"}, {"name": "a"}], "needs a `name` of its own"),
    "names alike": ([{"name": "Base"}, {"name": "base"}], "needs a `name` of its own"),
    "text": ("base", "stages is a list of maps"),
    "map": ({"name": "base"}, "stages is a list of maps"),
    "empty": ([], "stages is a list of maps"),
    "list of text": (["base"], "stages is a list of maps"),
    "unknown key": ([{"name": "a", "tempreture": 1}], "stage 'a': unknown key 'tempreture'; did you mean"),
    "wrong type": ([{"name": "a", "seed": "x"}], "stage 'a': seed must be int"),
    "out of range": ([{"name": "a", "learning_rate": -1}], "stage 'a': learning_rate is a number from 0"),
    "stages in a stage": ([{"name": "a", "stages": []}], "stages stand in a recipe file"),
}
OF_THE_RUN = {
    "dataset": "scenes", "data_dir": "elsewhere", "streaming": True, "check_images": False, "num_train": 5,
    "output_dir": "other", "max_length": 12, "min_word_count": 2, "text_config": {"word_dim": 3}, "projection_dim": 4,
    "push_to_hub": True, "validation_share": 0.5,
}  # fmt: skip
IN_A_STAGE = [
    Case(
        f"recipe/stage with {key}",
        train(recipe(stages=[{"name": "a"}, {"name": "b", key: value}])),
        f"stage 'b': {key} does nothing in a stage: write it above",
    )
    for key, value in OF_THE_RUN.items()
]

IDLE: dict[str, dict[str, Any]] = {
    "cached_crops": {"cached_crops": 2},
    "resize": {"resize": 300},
    "crop": {"init_from": "x/y", "crop": 64},
    "image_mean": {"image_mean": [0.5, 0.5, 0.5]},
    "min_word_count": {"text_tower": "x/y", "text_config": None, "min_word_count": 2},
    "max_length": {"init_from": "x/y", "text_config": None, "max_length": 12},
    "text_config": {"text_tower": "x/y"},
    "vision_config": {"vision_config": {"model_type": "resnet"}},
    "margin": {"loss_type": "nce", "margin": 0.3},
    "temperature": {"loss_type": "hinge_max", "temperature": 0.3},
    "logit_bias_init": {"logit_bias_init": -5.0},
    "positive_margin": {"loss_type": "siglip", "positive_margin": 0.1},
    "hardness": {"loss_type": "hardnce", "hardness": 1},
    "false_negative_gap": {"loss_type": "hardnce_smooth", "false_negative_gap": 0},
    "negatives_kept": {"loss_type": "hinge_max", "negatives_kept": 8},
    "hard_negative_warmup_loss": {"hard_negative_warmup_loss": "hinge_sum"},
    "captions_per_image": {"captions_per_image": 5},
    "positives": {"positives": "any"},
    "lr_decay_factor": {"lr_decay_factor": 0.5},
    "head_dropout": {"head_dropout": 0.5},
    "head_init": {"head_init": "identity"},
    "warmup_steps": {"warmup_steps": 10, "lr_scheduler_type": "constant"},
    "save_steps": {"save_steps": 10},
    "eval_steps": {"eval_steps": 10},
    "mirror_images": {"mirror_images": False},
    "image_tower_learning_rate": {"image_tower_learning_rate": 0.1},
    "text_tower_learning_rate": {"freeze_text_tower": True, "text_tower_learning_rate": 0.1},
    "loss_chunk_size": {"loss_execution": "dense", "loss_chunk_size": 5},
    "hub_model_id": {"hub_model_id": "me/mine"},
    "hub_token": {"hub_token": "hf_secret"},
    "resume_from_checkpoint": {"resume_from_checkpoint": "/nope"},
    "do_train": {"do_train": True},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "prediction_loss_only": {"prediction_loss_only": True},
    "include_for_metrics": {"include_for_metrics": ["loss"]},
}

TOWERS: dict[str, tuple[dict[str, Any], str]] = {
    "text unknown key": ({"text_config": {"hiden_size": 8}}, "unknown key 'hiden_size'; did you mean 'hidden_size'"),
    "text far key": ({"text_config": {"zzzz": 8}}, "text_config has the unknown key 'zzzz'; vse_gru_text has"),
    "text word_dim 0": ({"text_config": {"word_dim": 0}}, "text_config.word_dim is a number from 1"),
    "text word_dim huge": ({"text_config": {"word_dim": 10**9}}, "text_config.word_dim is a number from 1"),
    "text hidden_size text": ({"text_config": {"hidden_size": "x"}}, "text_config"),
    "text dropout": ({"text_config": {"dropout": 1.5}}, "text_config.dropout is a number from 0"),
    "text nan": ({"text_config": {"dropout": float("nan")}}, "text_config.dropout is a number"),
    "text vocab_size": ({"text_config": {"vocab_size": 9}}, "vocab_size comes from the tokenizer"),
    "text kind": ({"text_config": {"model_type": "bertt"}}, "model_type 'bertt' is unknown; did you mean"),
    "text list": ({"text_config": [1]}, "text_config must be a map"),
    "vision empty": (
        {"dataset": "scenes", "data_dir": None, "vision_config": {}},
        "vision_config names no model_type",
    ),
    "vision kind": ({"vision_config": {"model_type": 3}}, "vision_config.model_type 3 is unknown"),
    "vision sizes text": ({"vision_config": {"model_type": "resnet", "hidden_sizes": "x"}}, "vision_config"),
    "vision sizes zero": (
        {"vision_config": {"model_type": "resnet", "hidden_sizes": [0]}},
        "hidden_sizes is a number",
    ),
    "vision unknown key": ({"vision_config": {"model_type": "resnet", "depth": 1}}, "did you mean 'depths'"),
}
TOGETHER: dict[str, tuple[dict[str, Any], str]] = {
    "image_mean two": ({"image_mean": [0.5, 0.5]}, "image_mean is a list of three numbers"),
    "image_mean text": ({"image_mean": ["a", "b", "c"]}, "image_mean is a list of three numbers"),
    "image_std zero": ({"image_std": [0, 1, 1]}, "image_std is a list of three numbers"),
    "crop larger than resize": (
        {"dataset": "scenes", "data_dir": None, "resize": 64},
        "crop 224 is larger than resize",
    ),
    "best of nothing": ({"eval_strategy": "no", "load_best_model_at_end": True}, "load_best_model_at_end needs"),
    "saved between measurements": ({"save_strategy": "steps"}, "only what was measured can be the best"),
    "steps that do not fit": (
        {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
        "training arguments: .*load_best_model_at_end",
    ),
    "one pair": ({"per_device_train_batch_size": 1}, "a batch of one pair has no negatives"),
    "hardness of an earlier stage": (
        {"hardness": 1, "stages": [{"name": "a", "loss_type": "nce"}, {"name": "b", "loss_type": "hinge_sum"}]},
        "stage 'b': hardness 1 does nothing with loss_type 'hinge_sum': set it to 0, or choose one of nce, clip",
    ),
    "objective": ({"loss_type": "hardnec"}, "loss_type 'hardnec' is unknown; did you mean"),
    "pooling": ({"text_pooling": "lsat"}, "text_pooling must be one of"),
    "reporter": ({"report_to": "zz"}, "report_to .*zz.* is not supported"),
    "stream without end": ({"streaming": True}, "streaming needs max_steps"),
    "init_from nowhere": ({"init_from": "/nope", "text_config": None}, "init_from '/nope' is not a folder"),
    "image_tower nowhere": ({"dataset": "flickr8k", "image_tower": "/nope"}, "image_tower '/nope' is not a folder"),
    "output_dir null": ({"output_dir": None}, "output_dir is empty"),
    "output_dir empty": ({"output_dir": ""}, "output_dir is empty"),
    "output_dir blank": ({"output_dir": "  "}, "output_dir is empty"),
    "output_dir long": ({"output_dir": "a" * 300}, "output_dir"),
    "output_dir the recipe": ({"output_dir": "r.yaml"}, "output_dir r.yaml is a file"),
    "output_dir under the recipe": ({"output_dir": "r.yaml/run"}, "r.yaml, which is a file"),
    "output_dir here": ({"output_dir": "."}, "output_dir . holds files that are not from a run"),
}
WORDS: dict[str, tuple[list[str], str]] = {
    "unknown option": (["--lerning_rate", "1"], "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
    "stray word": (["stray"], "'stray' belongs to no field"),
    "value no YAML": (["--learning_rate", "[1,"], "--learning_rate .* is not valid YAML"),
    "value a bomb": (["--seed", LAUGHS.replace("\n", " ")], "--seed .* is not valid YAML"),
    "value out of range": (["--seed", "-1"], "command line: seed is a number from 0"),
    "value missing": (["--learning_rate"], "command line: learning_rate must be float, got True"),
    "stages": (["--stages", "[]"], "stages stand in a recipe file"),
    "part unknown": (["--text_config.hiden_size", "5"], "command line: text_config has the unknown key 'hiden_size'"),
    "part of a number": (["--projection_dim.x", "5"], "unknown key 'projection_dim.x'"),
    "part without a name": (["--text_config.", "5"], "unknown key 'text_config.'"),
    "part of a part": (["--text_config.a.b", "5"], "unknown key 'text_config.a.b'"),
    "no name": (["--", "5"], "unknown key ''"),
    "empty file name": (["--output_dir", ""], "output_dir is empty"),
}


def absent(name: str) -> Callable:
    def arrange(parts, folder) -> list[str]:
        (folder / "folder").mkdir()
        return ["train", name, "--quiet"]

    return arrange


CASES = [
    *OF_NUMBERS,
    *NEGATIVE,
    *OF_TEXT,
    *OF_FLAGS,
    *ZERO,
    *NULL,
    *MISSPELT,
    *IN_A_STAGE,
    *(Case(f"recipe/text {name}", train(text), says) for name, (text, says) in TEXTS.items()),
    *(Case(f"recipe/stages {name}", train(recipe(stages=value)), says) for name, (value, says) in STAGES.items()),
    *(Case(f"recipe/idle {key}", train(recipe(**given)), f"{key} does nothing") for key, given in IDLE.items()),
    *(Case(f"recipe/tower {name}", train(recipe(**given)), says) for name, (given, says) in TOWERS.items()),
    *(Case(f"recipe/{name}", train(recipe(**given)), says) for name, (given, says) in TOGETHER.items()),
    *(Case(f"recipe/words {name}", train(recipe(), *words), says) for name, (words, says) in WORDS.items()),
    Case("recipe/file missing", absent("none.yaml"), "none.yaml does not exist"),
    Case("recipe/file a folder", absent("folder"), "recipe folder does not exist"),
    Case("recipe/file a name that is near", absent("quickstrt"), "quickstrt does not exist"),
]

test_one_clear_line = one_clear_line(CASES)
