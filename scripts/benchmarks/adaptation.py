"""Adapts small pretrained dual encoders, without downloads: what a recipe gains, forgets and costs.

    python scripts/benchmarks/adaptation.py source runs/adaptation --family clip      # once for each family
    python scripts/benchmarks/adaptation.py adapt runs/adaptation --family clip --method full --size 1000 --seed 0
    python scripts/benchmarks/adaptation.py table runs/adaptation

`source` trains a tiny CLIP or SigLIP on the easy scenes and calls it pretrained. `adapt` fits it to `--target`, the
hard scenes or photographs (Flickr8k, `--photographs DIR`, given to `source` too), with one of the METHODS. A number is
the mean of R@1, R@5 and R@10 of both directions on a test split, which chose nothing: that of the target is the gain,
that of the easy scenes what is forgotten. `full` also interpolates with the start (WiSE-FT), on the validation splits.
Flickr8k's validation images are taken in turn for validation and test. A run that exists is read.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from measuring import record
from tables import adaptation_rows
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from hf_vse import load_pairs
from hf_vse.data.plain_yaml import parse_yaml
from hf_vse.data.schema import CAPTIONS
from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.judge import judge
from hf_vse.training.interpolation import mean_recall
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe

COMMAND = "adaptation.py adapt FOLDER --family FAMILY --target TARGET --method METHOD --size SIZE --seed SEED"
RECIPE = parse_yaml((Path(__file__).parents[1] / "recipes" / "own_photos.yaml").read_text(), "own_photos.yaml")
SIDE, PATCH, LONGEST = 64, 8, 32
LAYERS = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
EASY = {"dataset": "scenes", "difficulty": "easy", "num_train": 4000, "num_eval": 500, "image_size": SIDE}
HARD = EASY | {"difficulty": "hard"}
PRETRAINING = EASY | {
    "num_train_epochs": 5, "per_device_train_batch_size": 128, "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1, "mirror_images": False, "crop_min_scale": 1.0,
}  # fmt: skip
FROZEN = {"freeze_image_tower": True, "freeze_text_tower": True}
FITTING = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "mirror_images": False, "crop_min_scale": 1.0}
CONTROL = {"control_dataset": "scenes", "control_options": {key: EASY[key] for key in EASY if key != "dataset"}}
OF_IMAGES = ("dataset", "init_from", "output_dir", "validation_share")  # the scenes have a validation split
METHODS: dict[str, dict[str, Any]] = {
    "own_photos": {key: value for key, value in RECIPE.items() if key not in OF_IMAGES},
    "heads-residual": FROZEN | {"projection_type": "residual", "learning_rate": 1e-3, "num_train_epochs": 20},
    "full": CONTROL | {"learning_rate": 3e-4, "num_train_epochs": 10},
    "full-low": CONTROL | {"learning_rate": 1e-4, "num_train_epochs": 10},
    "lora": {"lora_rank": 8, "learning_rate": 2e-3, "num_train_epochs": 10},
}


def photographs(folder: Path, source: Path, size: int) -> dict[str, Any]:
    """The first images of Flickr8k's training split; half of its validation split becomes the test split."""
    images = json.loads((source / "dataset_flickr8k.json").read_text())["images"]
    of_split = {split: [each for each in images if each["split"] == split] for split in ("train", "val")}
    val = of_split["val"]
    parts = of_split["train"][:size] + val[::2] + [each | {"split": "test"} for each in val[1::2]]
    split_file = folder / f"photographs-{size}.json"
    split_file.write_text(json.dumps({"images": parts}))
    return {"dataset": "flickr8k", "data_dir": str(source), "split_file": str(split_file)}


def splits_of(options: dict[str, Any]) -> DatasetDict:
    return load_pairs(options["dataset"], **{key: value for key, value in options.items() if key != "dataset"})


def captions_of(options: dict[str, Any]) -> list[str]:
    rows = splits_of(options)["train"].with_format(None)[CAPTIONS]
    return [caption for of_image in rows for caption in of_image]


def fresh_source(family: str, folder: Path, sets: list[dict[str, Any]]) -> None:
    """A model with fresh weights in the format of transformers, which knows the words of these sets."""
    tokenizer = train_word_tokenizer([caption for each in sets for caption in captions_of(each)], min_count=1)
    tokenizer.model_max_length = LONGEST
    words = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(tokenizer)}
    text = LAYERS | words | {"max_position_embeddings": LONGEST}
    vision = LAYERS | {"image_size": SIDE, "patch_size": PATCH}
    square = {"height": SIDE, "width": SIDE}
    torch.manual_seed(0)
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    else:
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 96}, vision_config=vision))
        with torch.no_grad():  # as SigLIP starts; from temperature 1 and bias 0 it learns nothing here
            model.logit_scale.fill_(math.log(10))
            model.logit_bias.fill_(-10)
        images = SiglipImageProcessorPil(size=square)
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)


def make_source(folder: Path, family: str, sets: list[dict[str, Any]]) -> None:
    fresh = folder / f"{family}-fresh"
    fresh_source(family, fresh, sets)
    values = PRETRAINING | {"init_from": str(fresh), "output_dir": str(folder / f"{family}-training")}
    run_recipe(build_recipe(values))
    encoder = VSEEncoder.from_pretrained(folder / f"{family}-training", "cpu")
    model, source = encoder.model, encoder.model.dual_encoder
    with torch.no_grad():
        source.logit_scale.copy_(model.logit_scale.view_as(source.logit_scale))
        if model.logit_bias is not None:
            source.logit_bias.copy_(model.logit_bias.view_as(source.logit_bias))
    for part in (source, encoder.processor.image_processor, encoder.processor.tokenizer):
        part.save_pretrained(folder / f"{family}-source")
    pairs = {each["dataset"] + " " + each.get("difficulty", ""): len(splits_of(each)["train"]) for each in sets}
    made = {"family": family, "images_whose_words_it_knows": pairs, "recipe": PRETRAINING}
    (folder / f"{family}-source.json").write_text(json.dumps(made | {"environment": environment()}))


def mean_test_recall(place: Path, options: dict[str, Any]) -> float:
    encoder = load_encoder(str(place), device="cpu")
    return mean_recall(judge(encoder, splits_of(options)["test"], progress=False).record["metrics"])


def run(folder: Path, family: str, method: str, target: dict[str, Any], size: int, seed: int) -> dict[str, Any]:
    output = folder / f"{family}-{target['dataset']}-{method}-{size}-{seed}"
    result = output / "adaptation.json"
    if result.is_file():
        return json.loads(result.read_text())
    source = folder / f"{family}-source"
    values = target | FITTING | METHODS[method] | {"init_from": str(source), "seed": seed}
    cache = {"frozen_cache_dir": str(output / "cache")} if method in ("own_photos", "heads-residual") else {}
    values |= {"output_dir": str(output)} | cache
    metrics = run_recipe(build_recipe(values))
    found = {"family": family, "target": target["dataset"], "method": method, "size": size, "seed": seed}
    found |= {"seconds": sum(stage["seconds"] for stage in metrics["stages"]), "environment": metrics["environment"]}
    places = {"before": source, "after": output}
    if "interpolation" in metrics:
        found["interpolation"] = metrics["interpolation"]
        places["tuned"] = output / "stages" / metrics["stages"][-1]["name"]
    for name, place in places.items():
        found[name] = {"target": mean_test_recall(place, target), "easy": mean_test_recall(place, EASY)}
    shutil.rmtree(output / "stages")
    result.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("source", "adapt", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=("clip", "siglip"), default="clip")
    parser.add_argument("--method", choices=METHODS, default="own_photos")
    parser.add_argument("--target", choices=("hard", "photographs"), default="hard")
    parser.add_argument("--photographs", type=Path, help="the folder of Flickr8k, with dataset_flickr8k.json")
    parser.add_argument("--size", type=int, default=1000, help="training images of the target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the runs of the table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.target == "photographs" and options.photographs is None:
        parser.error("--target photographs needs --photographs DIR")
    real = [] if options.photographs is None else [photographs(options.folder, options.photographs, options.size)]
    if options.command == "source":
        make_source(options.folder, options.family, [EASY, HARD, *real])
    elif options.command == "adapt":
        target = real[0] if options.target == "photographs" else HARD | {"num_train": options.size}
        print(run(options.folder, options.family, options.method, target, options.size, options.seed))
    else:
        runs = [json.loads(path.read_text()) for path in sorted(options.folder.glob("*/adaptation.json"))]
        print(adaptation_rows(runs))
        if options.output is not None:
            sources = [json.loads(path.read_text()) for path in sorted(options.folder.glob("*-source.json"))]
            record({"command": COMMAND, "sources": sources, "runs": runs}, options.output)


if __name__ == "__main__":
    main()
