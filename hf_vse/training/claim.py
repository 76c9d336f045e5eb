"""The folder of a run: its own, or nobody's.

A run writes a dozen names into its folder, such as `recipe.yaml`, `config.json` and `README.md`. So it takes a folder
that is empty, or one with a run of the same recipe, which it continues.
"""

from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_vse.files import check_output_folder, read_text, write_text
from hf_vse.training.plain_yaml import parse_yaml
from hf_vse.training.recipe import SECRETS, Recipe

RECIPE = "recipe.yaml"
STAGES = "stages"
NOT_MINDED = (".log", ".out")  # what a shell wrote of this run


def check_claim(recipe: Recipe) -> None:
    """Makes sure, before the work, that the output directory can be written and holds nothing of anybody else.

    Raises:
        OSError: it is a file, lies under one, or may not be written.
        ValueError: it holds a run of another recipe, whose differing keys are named, or files of no run.
    """
    folder = check_output_folder("output_dir", recipe.output_dir)
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"output_dir {folder} is a link that leads nowhere: remove it, or give a folder")
    if not folder.is_dir() or not any(map(minded, folder.iterdir())):
        return
    path = folder / RECIPE
    if not path.is_file():
        raise ValueError(
            f"output_dir {folder} holds files, but no run ({RECIPE} is missing), and would be written over: "
            "give another --output_dir, an empty or a new folder"
        )
    text = read_text(path)
    if text != recipe.to_yaml():
        compare(recipe, parse_yaml(text, str(path)))


def minded(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix not in NOT_MINDED


def compare(recipe: Recipe, there: Any) -> None:
    """Raises ValueError where the recipe of the folder is another one, or not that of a run."""
    path = recipe.output_dir / RECIPE
    if not isinstance(there, dict) or not (recipe.output_dir / STAGES).is_dir():
        raise ValueError(
            f"{path} was not written by a run, and would be written over: give another --output_dir, an empty or a "
            "new folder"
        )
    asked = parse_yaml(recipe.to_yaml(), "recipe")
    keys = (there.keys() | asked.keys()) - set(SECRETS)
    different = sorted(key for key in keys if there.get(key) != asked.get(key))
    if different:
        raise ValueError(
            f"{recipe.output_dir} holds a run with another {', '.join(different):.200} (see {path}); "
            "give another --output_dir, or remove the directory to start anew"
        )


def claim(recipe: Recipe) -> None:
    """Writes the recipe into the output directory, when every process has looked into it."""
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        write_text(recipe.output_dir / RECIPE, recipe.to_yaml())
    PartialState().wait_for_everyone()
