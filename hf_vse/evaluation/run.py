"""One evaluation from start to end: load model and data, embed, measure, record."""

from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from hf_vse.data.sources import DEFAULT_SEED, VALIDATION_SHARE, load_pairs, with_validation
from hf_vse.encoders.vse import VSEEncoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import embed_pairs
from hf_vse.evaluation.report import FOLD_SIZE, recall_table, split_record
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

RECIPE_FILE = "recipe.yaml"
DATA_KEYS = (
    "data_dir", "split_file", "features", "image_column", "caption_column", "num_train", "num_eval", "difficulty",
    "image_size",
)  # fmt: skip


def read_recipe_file(model: str) -> dict[str, Any]:
    path = Path(model) / RECIPE_FILE
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def trained_on(model: str) -> dict[str, Any]:
    """The data settings in the recipe of a model folder; empty where there is none."""
    values = read_recipe_file(model)
    return {"dataset": values.get("dataset", "scenes")} | {key: values[key] for key in DATA_KEYS if key in values}


def held_out(model: str) -> dict[str, float]:
    """How the training run of a model folder chose its validation split, where the data have none."""
    recipe = read_recipe_file(model)
    return {"share": recipe.get("validation_share", VALIDATION_SHARE), "seed": recipe.get("seed", DEFAULT_SEED)}


def data_settings(model: str, dataset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What to evaluate on: the settings given, and for the data of training its remaining ones."""
    known = trained_on(model)
    given = {key: value for key, value in given.items() if value is not None}
    if dataset is not None and dataset != known["dataset"]:
        return {"dataset": dataset} | given
    return known | given


def evaluate_model(
    model: str,
    dataset: str | None = None,
    split: str = "test",
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = True,
    **data: Any,
) -> tuple[dict[str, Any] | None, str]:
    """Retrieval of a model folder or Hub id on a split.

    Args:
        dataset, data: as for `load_pairs`; what is not given is taken from the model's recipe.

    Returns:
        The record (None on all processes but the main one) and a table to print.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    settings = data_settings(model, dataset, data)
    source = settings.pop("dataset")
    with state.local_main_process_first():
        splits = load_pairs(source, **settings)
    if split == "validation" and split not in splits:
        splits = with_validation(splits, **held_out(model))
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(splits)} with --split")
    loaded = VSEModel.from_pretrained(model).to(state.device)
    options = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    pairs = embed_pairs(VSEEncoder(loaded, VSEProcessor.from_pretrained(model), model), splits[split], **options)
    five_fold = source == "coco" and len(pairs.image_embeds) == 5 * FOLD_SIZE
    record = split_record(pairs, splits[split], five_fold)
    if not state.is_main_process:
        return None, ""
    rows = {split: record["metrics"]}
    if five_fold:
        rows[f"{split} 5x1K"] = record["metrics_1k_folds"]
    result = {"model": model, "dataset": source, "split": split} | record
    result["environment"] = environment() | {"processes": state.num_processes}
    return result, recall_table(rows | {"chance": record["chance"]})
