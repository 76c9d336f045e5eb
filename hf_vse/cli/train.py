"""`hf-vse train`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_vse.cli.command import Result, bundled, command_parser

QUICKSTART = "quickstart"
EXAMPLES = """
  hf-vse train                                              the built-in scenes, five minutes on two cores
  hf-vse train flickr8k_features_nce --data_dir DIR --seed 1
  hf-vse train own_photos --data_dir my_photos --init_from openai/clip-vit-base-patch32
  hf-vse train my_recipe.yaml --loss_type hardnce --text_config.hidden_size 512
  accelerate launch --num_processes 8 -m hf_vse.cli train coco_hardnce --data_dir DIR

The same command again continues an interrupted run. `hf-vse train --fields` lists every field with its help."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Fields of the recipe are only collected: `run` checks them, with the libraries of training."""
    parser = command_parser(
        "train", "Trains an image-text dual encoder as a recipe says; options override it.", EXAMPLES
    )
    names = ", ".join(sorted(path.stem for path in bundled("recipes").glob("*.yaml")))
    parser.add_argument(
        "recipe", nargs="?", default=QUICKSTART, help=f"a YAML file, or one that comes with the package: {names}"
    )
    parser.add_argument("--FIELD", metavar="VALUE", help="any field of a recipe, such as --loss_type, --output_dir")
    parser.add_argument("--fields", action="store_true", help="list the fields and end")
    words = list(argv)
    recipe = words.pop(0) if words and not words[0].startswith("-") else QUICKSTART
    own = [word for word in words if word in ("--json", "--quiet", "--fields", "-h", "--help")]
    arguments = parser.parse_args([recipe, *own])
    arguments.overrides = [word for word in words if word not in own]
    return arguments


def recipe_file(name: str) -> Path:
    """The path of a file, or of a recipe of the package by its name."""
    packaged = bundled("recipes") / f"{name}.yaml"
    return packaged if not Path(name).exists() and packaged.is_file() else Path(name)


def run(arguments: argparse.Namespace) -> Result | None:
    from hf_vse.training.recipe import help_parser, parse_command_line
    from hf_vse.training.result import run_summary
    from hf_vse.training.run import run_recipe

    default = recipe_file(QUICKSTART)
    if arguments.fields:
        return Result({}, help_parser(default).format_help())
    if arguments.quiet:
        arguments.overrides += ["--disable_tqdm", "true"]
    recipe = parse_command_line([str(recipe_file(arguments.recipe)), *arguments.overrides], default)
    record = run_recipe(recipe)
    return Result(record, run_summary(recipe.output_dir, record))
