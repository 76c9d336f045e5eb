"""Checks that a run may write to its output directory.

A run writes a dozen files into its output directory, such as `recipe.yaml`, `config.json` and `README.md`. So the
directory must be empty, or must hold a run of the same recipe, which is then resumed.
"""

from typing import Any

from accelerate import PartialState

from hf_vse.data.plain_yaml import parse_yaml
from hf_vse.files import check_output_folder, read_text, write_text
from hf_vse.training.joining import SEEDS
from hf_vse.training.recipe import SECRETS, Recipe

RECIPE = "recipe.yaml"
STAGES = "stages"
NOT_MINDED = (".log", ".out")  # shell output of this run


def check_claim(recipe: Recipe) -> None:
    """Checks before any work starts that the output directory is writable and holds nothing but this run.

    Raises:
        OSError: it is a file, is below a file, or is not writable.
        ValueError: it holds a run of another recipe (the message lists the differing keys) or unrelated files.
    """
    folder = check_output_folder("output_dir", recipe.output_dir)
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"output_dir {folder} is a broken symbolic link: remove it, or give a folder")
    there = folder.iterdir() if folder.is_dir() else ()
    if all(path.name.startswith(".") or path.suffix in NOT_MINDED for path in there):
        return
    path = folder / RECIPE
    if not path.is_file():
        raise ValueError(
            f"output_dir {folder} holds files that are not from a run ({RECIPE} is missing) and would be overwritten: "
            "give an empty or new folder as --output_dir"
        )
    text = read_text(path)
    if text != recipe.to_yaml():
        check_same_recipe(recipe, parse_yaml(text, str(path)))


def check_same_recipe(recipe: Recipe, there: Any) -> None:
    """Raises ValueError if the recipe in the folder differs or was not written by a run."""
    path = recipe.output_dir / RECIPE
    begun = any((recipe.output_dir / each).is_dir() for each in (STAGES, SEEDS))
    if not isinstance(there, dict) or not begun:
        raise ValueError(
            f"{path} was not written by a run, or by one of another recipe that ended before its first stage: "
            "remove it, or give an empty or new folder as --output_dir"
        )
    asked = parse_yaml(recipe.to_yaml(), "recipe")
    keys = (there.keys() | asked.keys()) - set(SECRETS)
    different = sorted(key for key in keys if there.get(key) != asked.get(key))
    if different:
        raise ValueError(
            f"{recipe.output_dir} holds a run with a different {', '.join(different):.200} (see {path}); "
            "give another --output_dir, or remove the directory to start again"
        )


def claim(recipe: Recipe) -> None:
    """Writes the recipe into the output directory after every process has checked it."""
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        write_text(recipe.output_dir / RECIPE, recipe.to_yaml())
    PartialState().wait_for_everyone()
