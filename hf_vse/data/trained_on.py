"""What a model was trained on, from the recipe in its folder, so that it is tested on nothing that it has seen.

Which images a split has is decided by the settings of the data and, where the data have no validation split, by the
share and the seed with which one was held out. Training, evaluation, galleries and the page take both from here.
"""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from datasets import DatasetDict

from hf_vse.data.sources import DEFAULT_SEED, VALIDATION_SHARE, load_pairs, with_validation
from hf_vse.files import read_text

RECIPE_FILE = "recipe.yaml"
# Every setting that decides which images and captions a split has, in the words of recipes and of `load_pairs`.
DATA_KEYS = (
    "data_dir", "split_file", "features", "restval", "image_column", "caption_column", "revision", "check_images",
    "max_broken_share", "num_train", "num_eval", "difficulty", "image_size",
)  # fmt: skip
HELD_OUT = "held_out"


def read_recipe_file(model: str | Path) -> dict[str, Any]:
    """The recipe in a model folder; empty where there is none.

    Raises:
        ValueError: it is none, or a setting of the data in it is no plain value.
    """
    path = Path(model) / RECIPE_FILE
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is no YAML ({reason}): repair it, or remove it and give --dataset") from error
    if not isinstance(recipe, dict):
        raise ValueError(
            f"{path} holds {type(recipe).__name__}, no recipe: repair it, or remove it and give --dataset"
        )
    for key in ("dataset", *DATA_KEYS):
        if not isinstance(value := recipe.get(key), str | int | float | None):
            raise ValueError(f"{path}: {key} is {value!r:.60}, no plain value: repair it, or remove the file")
    return recipe


def trained_on(model: str | Path) -> dict[str, Any]:
    """The data settings in the recipe of a model folder; empty where there is none."""
    values = read_recipe_file(model)
    return {"dataset": values.get("dataset", "scenes")} | {key: values[key] for key in DATA_KEYS if key in values}


def held_out(model: str | Path) -> dict[str, Any]:
    """How the training run of a model folder chose its validation split, where the data have none.

    Raises:
        ValueError: the recipe is damaged.
    """
    recipe = read_recipe_file(model)
    chosen = {"share": recipe.get("validation_share", VALIDATION_SHARE), "seed": recipe.get("seed", DEFAULT_SEED)}
    check_held_out(chosen, str(Path(model) / RECIPE_FILE))
    return chosen | {"share": 0} if recipe.get("streaming") else chosen  # nothing is held out of a stream


def check_held_out(chosen: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where a file says something else than a share and a seed."""
    share, seed = chosen.get("share", VALIDATION_SHARE), chosen.get("seed", DEFAULT_SEED)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"{where}: validation_share is {share!r:.60}, no share from 0 to below 1: repair it")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"{where}: seed is {seed!r:.60}, no whole number from 0 on: repair it")


def data_settings(model: str | Path, dataset: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset` and the options of `load_pairs`: those given, and for the data of training its remaining ones."""
    known = trained_on(model)
    given = {key: value for key, value in given.items() if value is not None}
    if dataset is not None and dataset != known["dataset"]:
        return {"dataset": dataset} | given
    return known | given


def load_as_trained(settings: Mapping[str, Any], split: str, held_out: Mapping[str, Any]) -> DatasetDict:
    """The splits of the data; for `validation` a part is held out as in training, where the data have none.

    Args:
        settings: see `data_settings`.
        held_out: see the function of that name.

    Raises:
        ValueError: there is no such split.
    """
    options = dict(settings)
    source = options.pop("dataset")
    if unknown := sorted(options.keys() - signature(load_pairs).parameters):
        raise ValueError(f"{source} has no setting {unknown[0]!r:.60}: leave it out")
    check_held_out(held_out, str(source))
    splits = load_pairs(source, **options)
    if split == "validation" and "train" in splits:
        splits = DatasetDict(with_validation(splits, **held_out))
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(splits)} with --split")
    return splits
