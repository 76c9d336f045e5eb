"""A model folder that is damaged, foreign or incomplete: by file, by field, by tensor, by tokenizer and by name."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.bad_input.table import Case, Parts, one_clear_line

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PROCESSOR, TOKENIZER_CONFIG = "processor_config.json", "tokenizer_config.json"
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: bytes(range(256)) * 8,
    "HTML": lambda content: b"<!DOCTYPE html><html><body>404: not found</body></html>",
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "a list": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "an empty object": lambda content: b"{}",
    "nested": lambda content: b"[" * 100_000,
}
# Where a byte at the end counts.
WEIGHTS_DAMAGES = {"one byte short": lambda content: content[:-1], "one byte long": lambda content: content + b"0"}
ODD: dict[str, Any] = {
    "text": "x", "zero": 0, "negative": -1, "huge": 10**9, "null": None, "a list": [1], "infinite": math.inf,
    "not a number": math.nan, "true": True,
}  # fmt: skip
# Fields, and which odd values are right for them.
CONFIG_FIELDS: dict[str, tuple[str, ...]] = {
    "projection_dim": (),
    "vision_hidden_size": ("null",),
    "vision_power": (),
    "mirror_average": ("zero", "true"),
    "text_layers": (),
    "temperature": ("huge",),
    "margin": ("zero", "huge"),
    "feature_dropout": ("zero",),
    "head_dropout": ("zero",),
    "logit_bias_init": ("zero", "negative", "huge"),
    "image_weight": ("zero",),
    "positive_margin": ("zero", "negative"),
    "hardness": ("zero",),
    "negatives_kept": ("zero", "huge"),
    "false_negative_gap": ("zero", "negative"),
    "text_config.vocab_size": (),
    "text_config.word_dim": (),
    "text_config.hidden_size": (),
    "text_config.num_layers": (),
    "text_config.dropout": ("zero",),
    "vision_config.hidden_sizes": (),
    "vision_config.depths": (),
    "vision_config.num_channels": (),
}
CHOICES = (
    "loss_type", "vision_pooling", "text_pooling", "vision_norm", "text_norm", "projection_type", "head_init",
    "vision_config", "text_config", "model_type", "vision_config.model_type", "text_config.model_type",
    "vision_config.layer_type", "vision_config.hidden_act",
)  # fmt: skip
SIDES = ("size.shortest_edge", "crop_size.height", "crop_size.width")
PROCESSOR_FIELDS = {
    **{f"image_processor.{side}": ("text", "zero", "negative", "huge", "a list", "infinite") for side in SIDES},
    "image_processor.size": ("text", "a list"),
    "image_processor.image_mean": ("text", "a list", "infinite", "not a number"),
    "image_processor.image_std": ("text", "zero", "a list", "not a number"),
    "image_processor.rescale_factor": ("text", "infinite", "not a number", "a list"),
    "image_processor.resample": ("text", "huge", "a list"),
    "image_processor.image_processor_type": ("text", "zero", "a list"),
    "image_processor": ("text", "zero", "a list"),
}


def copied(parts: Parts, folder: Path) -> Path:
    """The good model, to be damaged, without its code."""
    model = folder / "model"
    model.mkdir()
    for file in parts.model.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, model / file.name)
    return model


def index(parts: Parts, folder: Path, model: Any) -> list[str]:
    return ["index", str(parts.photographs), str(folder / "index"), "--model", str(model), "--quiet"]


def evaluate(parts: Parts, folder: Path, model: Any) -> list[str]:
    data = ["--dataset", "imagefolder", "--data_dir", str(parts.photographs), "--split", "train"]
    return ["evaluate", str(model), *data, "--output", str(folder / "metrics.json"), "--quiet"]


def search(parts: Parts, folder: Path, model: Any) -> list[str]:
    return ["search", str(parts.gallery), "a red star", "--model", str(model), "--quiet"]


def features(parts: Parts, folder: Path, model: Any) -> list[str]:
    data = ["--dataset", "imagefolder", "--data_dir", str(parts.photographs)]
    return ["features", *data, "--model", str(model), "--output", str(folder / "features"), "--quiet"]


COMMANDS = {"index": index, "evaluate": evaluate, "search": search, "features": features}


def of_file(command: str, file: str, damage: Callable[[bytes], bytes | None]):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        model = copied(parts, folder)
        content = damage((model / file).read_bytes())
        (model / file).unlink()
        if content is not None:
            (model / file).write_bytes(content)
        return COMMANDS[command](parts, folder, model)

    return arrange


def with_field(path: Path, field: str, value: Any) -> None:
    """Sets a field of a JSON file, `a.b` for one of an object in it; without a value it is removed."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    *above, last = field.split(".")
    place = whole
    for name in above:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(whole), encoding="utf-8")


def of_field(command: str, file: str, field: str, value: Any):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        model = copied(parts, folder)
        with_field(model / file, field, value)
        return COMMANDS[command](parts, folder, model)

    return arrange


def of_weights(change: Callable[[dict[str, np.ndarray]], object]):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        model = copied(parts, folder)
        weights = load_file(model / WEIGHTS)
        change(weights)
        save_file(weights, model / WEIGHTS, {"format": "pt"})
        return index(parts, folder, model)

    return arrange


def of_name(command: str, name: str):
    """`name` may hold `{model}`, `{photographs}` and `{gallery}`."""
    return lambda parts, folder: COMMANDS[command](parts, folder, name.format(**parts._asdict()))


def of_other_files(change: Callable[[Path], object]):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        model = copied(parts, folder)
        change(model)
        return index(parts, folder, model)

    return arrange


def zero(weights: dict[str, np.ndarray], prefix: str) -> None:
    weights |= {name: np.zeros_like(value) for name, value in weights.items() if name.startswith(prefix)}


def renamed(weights: dict[str, np.ndarray]) -> None:
    for name in list(weights):
        weights[f"clip.{name}"] = weights.pop(name)


PROJECTION, WORDS = "visual_projection.weight", "text_model.embedding.weight"
TENSORS: dict[str, tuple[Callable, str]] = {
    "missing": (lambda weights: weights.pop("visual_projection.bias"), "lacks 1 weights .*visual_projection.bias"),
    "missing in a tower": (lambda weights: weights.pop(WORDS), f"lacks 1 weights .*{WORDS}"),
    "missing statistics": (
        lambda weights: [weights.pop(name) for name in list(weights) if "running_mean" in name],
        "lacks .* weights .*running_mean",
    ),
    "extra": (lambda weights: weights.update(other=np.ones(3, np.float32)), "foreign .* 1 weights .*'other'"),
    "of another model": (renamed, "lacks .* weights"),
    "none": (lambda weights: weights.clear(), "lacks .* weights"),
    "wrong shape": (lambda weights: weights.update({PROJECTION: weights[PROJECTION][:8]}), f"{PROJECTION} has shape"),
    "transposed": (
        lambda weights: weights.update({WORDS: np.ascontiguousarray(weights[WORDS].T)}), f"{WORDS} has shape"
    ),
    "whole numbers": (lambda weights: weights.update({WORDS: weights[WORDS].astype(np.int64)}), f"{WORDS} holds I64"),
    "not a number": (lambda weights: weights[PROJECTION].__setitem__((0, 0), np.nan), f"{PROJECTION} holds"),
    "infinite": (lambda weights: weights[WORDS].__setitem__((3, 1), np.inf), f"{WORDS} holds"),
    "all zero": (lambda weights: zero(weights, ""), "are zero"),
    "zero projection": (lambda weights: zero(weights, "visual_projection"), "visual_projection are zero"),
    "zero tower": (lambda weights: zero(weights, "vision_model"), "vision tower are zero|no vector"),
    "zero words": (lambda weights: zero(weights, WORDS), "word embedding are zero"),
}  # fmt: skip


def only_pickled(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def with_index(text: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / WEIGHTS).unlink()
        (model / f"{WEIGHTS}.index.json").write_text(text)

    return change


def of_words(count: int) -> Callable[[Path], None]:
    """A tokenizer that knows so many words more, or less."""

    def change(model: Path) -> None:
        whole = json.loads((model / TOKENIZER).read_text(encoding="utf-8"))
        known = whole["model"]["vocab"]
        if count > 0:
            known |= {f"word{number}": len(known) + number for number in range(count)}
        else:
            whole["model"]["vocab"] = {word: place for word, place in known.items() if place < len(known) + count}
        (model / TOKENIZER).write_text(json.dumps(whole), encoding="utf-8")

    return change


def with_code(file: str, field: str, value: dict) -> Callable[[Path], None]:
    """A folder that wants its own code to be run, which would end the test."""

    def change(model: Path) -> None:
        with_field(model / file, field, value)
        (model / "evil.py").write_text("raise SystemExit('code of the model was run')")

    return change


def of_features(model: Path) -> None:
    with_field(model / PROCESSOR, "image_processor", {"image_processor_type": "VSEFeatureProcessor"})


EVIL = {"AutoImageProcessor": "evil.Evil", "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
OTHER_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled weights alone": (only_pickled, "pytorch_model.bin is not read: only safetensors"),
    "index of shards is garbage": (with_index("<html>"), "index.json is not valid JSON"),
    "index of shards is empty": (with_index("{}"), "index.json has no weight_map"),
    "index of shards names what is not there": (with_index('{"weight_map": {"a": "b.safetensors"}}'), "b.safetensors"),
    "index of shards leads out": (with_index('{"weight_map": {"a": "../b.safetensors"}}'), "points outside"),
    "tokenizer with more words": (of_words(5), "tokenizer knows 23 words and its text tower 18"),
    "tokenizer with fewer words": (of_words(-5), "tokenizer knows 13 words and its text tower 18"),
    "image processor with code": (
        with_code(PROCESSOR, "image_processor", {"image_processor_type": "Evil", "auto_map": EVIL}), "processor"
    ),
    "unknown model with code": (with_code(CONFIG, "model_type", "zzz"), "model_type is 'zzz'"),
    "image processor of features": (of_features, "its image processor VSEFeatureProcessor"),
}  # fmt: skip
NAMES = {
    "": "names no model",
    " ": "names no model",
    "/nope": "/nope does not exist, and cannot be a Hub id",
    "nope": "nothing of that name was found",
    "org/none": "nothing of that name was found",
    "a/b/c": "a/b/c does not exist",
    "x" * 400: "names no model",
    "{photographs}": "holds no config.json",
    "{model}/config.json": "is a file",
    "{gallery}": "holds no config.json",
}


def says_of(file: str, damage: str) -> str:
    if damage == "missing" or file in (TOKENIZER, TOKENIZER_CONFIG):
        return "tokenizer|holds no"
    return f"{file}|lacks" if file == WEIGHTS else file


def sampled(number: int) -> str:
    """Most through `index`, some through the other commands, which load by the same function."""
    return {5: "evaluate", 11: "search", 17: "features"}.get(number % 20, "index")


FILE_CASES = [
    Case(f"model/{file} {damage}", of_file(sampled(number), file, change), says_of(file, damage))
    for number, (file, damage, change) in enumerate(
        (file, damage, change)
        for file in (CONFIG, WEIGHTS, TOKENIZER, PROCESSOR, TOKENIZER_CONFIG)
        for damage, change in (DAMAGES | (WEIGHTS_DAMAGES if file == WEIGHTS else {})).items()
    )
]
FIELD_CASES = [
    Case(
        f"model/{field} {odd}",
        of_field("search" if odd in CONFIG_FIELDS[field] else sampled(number), CONFIG, field, ODD[odd]),
        field.rpartition(".")[2] if odd != "huge" and "vision_config" not in field else "config",
        accepted=odd in CONFIG_FIELDS[field],
    )
    for number, (field, odd) in enumerate((field, odd) for field in CONFIG_FIELDS for odd in ODD)
] + [
    Case(f"model/{field} {odd}", of_field(sampled(number), CONFIG, field, ODD[odd]), "config")
    for number, (field, odd) in enumerate((field, odd) for field in CHOICES for odd in ("text", "null", "a list"))
]
PROCESSOR_CASES = [
    Case(f"model/{field} {odd}", of_field("index", PROCESSOR, field, ODD[odd]))
    for field, odds in PROCESSOR_FIELDS.items()
    for odd in odds
]
TOKENIZER_CASES = [
    Case(f"model/tokenizer {field} {odd}", of_field("index", TOKENIZER_CONFIG, field, ODD[odd]), "tokenizer")
    for field, odds in {"model_max_length": ("text", "zero", "negative", "a list"), "pad_token": ("zero",)}.items()
    for odd in odds
]
CASES = [
    *FILE_CASES,
    *FIELD_CASES,
    *PROCESSOR_CASES,
    *TOKENIZER_CASES,
    *(Case(f"model/weights {what}", of_weights(change), says) for what, (change, says) in TENSORS.items()),
    *(Case(f"model/{what}", of_other_files(change), says) for what, (change, says) in OTHER_FILES.items()),
    *(
        Case(f"model/{command} of {name[:20]!r}", of_name(command, name), says)
        for name, says in NAMES.items()
        for command in ("index", "search")
    ),
]

test_one_clear_line = one_clear_line(CASES)
