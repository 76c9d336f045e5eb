"""Adapts small pretrained dual encoders, without downloads: what a recipe gains, forgets and costs.

    python scripts/benchmarks/adaptation.py source runs/adaptation --family clip      # once for each family
    python scripts/benchmarks/adaptation.py adapt runs/adaptation --family clip --method heads --size 1000 --seed 0
    python scripts/benchmarks/adaptation.py table runs/adaptation

`source` trains a tiny CLIP or SigLIP on the easy scenes and calls it pretrained. `adapt` fits it to the hard scenes
with one of the METHODS. Recalls are means of R@1, R@5 and R@10 of both directions on the test splits, which chose
nothing: hard is the gain, easy is what is forgotten. A run that exists is read.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from measuring import record
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from hf_vse import load_pairs
from hf_vse.data.schema import CAPTIONS
from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.judge import judge
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe

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
METHODS: dict[str, dict[str, Any]] = {
    "heads-linear": FROZEN | {"projection_type": "linear", "learning_rate": 1e-3, "num_train_epochs": 20},
    "heads-residual": FROZEN | {"projection_type": "residual", "learning_rate": 1e-3, "num_train_epochs": 20},
    "full": {"learning_rate": 1e-4, "num_train_epochs": 10},
}


def captions_of(options: dict[str, Any]) -> list[str]:
    where = {key: value for key, value in options.items() if key not in ("dataset", "seed")}
    rows = load_pairs("scenes", **where)["train"].with_format(None)[CAPTIONS]
    return [caption for of_image in rows for caption in of_image]


def fresh_source(family: str, folder: Path) -> None:
    """A model with fresh weights in the format of transformers, which knows the words of both sets."""
    tokenizer = train_word_tokenizer(captions_of(EASY) + captions_of(HARD), min_count=1)
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
        images = SiglipImageProcessorPil(size=square)
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)


def make_source(folder: Path, family: str) -> None:
    fresh = folder / f"{family}-fresh"
    fresh_source(family, fresh)
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


def mean_recall(encoder: Any, options: dict[str, Any]) -> float:
    where = {key: value for key, value in options.items() if key != "dataset"}
    metrics = judge(encoder, load_pairs("scenes", **where)["test"], progress=False).record["metrics"]
    return metrics["rsum"] / 6


def run(folder: Path, family: str, method: str, size: int, seed: int) -> dict[str, Any]:
    output = folder / f"{family}-{method}-{size}-{seed}"
    result = output / "adaptation.json"
    if result.is_file():
        return json.loads(result.read_text())
    source = folder / f"{family}-source"
    values = HARD | FITTING | METHODS[method] | {"num_train": size, "init_from": str(source), "seed": seed}
    start = time.perf_counter()
    run_recipe(build_recipe(values | {"output_dir": str(output), "frozen_cache_dir": str(output / "cache")}))
    seconds = time.perf_counter() - start
    found = {"family": family, "method": method, "size": size, "seed": seed, "seconds": round(seconds, 1)}
    for name, place in (("before", source), ("after", output)):
        encoder = load_encoder(str(place), device="cpu")
        found[name] = {"hard": mean_recall(encoder, HARD), "easy": mean_recall(encoder, EASY)}
    shutil.rmtree(output / "stages")
    result.write_text(json.dumps(found))
    return found


def table(folder: Path) -> str:
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/adaptation.json"))]
    lines = ["| source | method | images | seeds | hard | gain | easy | lost | seconds |", "|---" * 9 + "|"]
    for key in sorted({(each["family"], each["size"], each["method"]) for each in runs}):
        same = [each for each in runs if (each["family"], each["size"], each["method"]) == key]
        mean = {
            name: fmean(value(each) for each in same)
            for name, value in {
                "hard": lambda each: each["after"]["hard"],
                "gain": lambda each: each["after"]["hard"] - each["before"]["hard"],
                "easy": lambda each: each["after"]["easy"],
                "lost": lambda each: each["before"]["easy"] - each["after"]["easy"],
                "seconds": lambda each: each["seconds"],
            }.items()
        }
        numbers = " | ".join(f"{mean[name]:.1f}" for name in mean)
        lines.append(f"| {key[0]} | {key[2]} | {key[1]:,} | {len(same)} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("source", "adapt", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=("clip", "siglip"), default="clip")
    parser.add_argument("--method", choices=METHODS, default="heads-linear")
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the runs of the table")
    options = parser.parse_args()
    if options.command == "source":
        make_source(options.folder, options.family)
    elif options.command == "adapt":
        print(run(options.folder, options.family, options.method, options.size, options.seed))
    else:
        print(table(options.folder))
        if options.output is not None:
            runs = [json.loads(path.read_text()) for path in sorted(options.folder.glob("*/adaptation.json"))]
            record({"runs": runs, "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
