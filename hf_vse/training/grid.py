"""The paper's question as a controlled experiment: objective x head x treatment of same-image captions x warm-up.

Every cell of the grid is the same recipe with four settings changed, trained with several seeds. Finished runs are
kept, so the same command continues an interrupted grid. The recall of the last epoch is reported: no checkpoint is
selected on the reported split.
"""

import contextlib
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_vse.evaluation.record import read_evaluation
from hf_vse.plots import RECALLS
from hf_vse.training.recipe import read_recipe
from hf_vse.training.run import run_recipe

LOSSES = ("hinge_sum", "hinge_max", "nce", "hardnce", "hardnce_smooth")
WARMUP_LOSS = "nce"
KEPT = (*RECALLS, "rsum")


@dataclass(frozen=True)
class Cell:
    """One setting of the four factors.

    Args:
        loss_type: the objective.
        head: `linear` or `mlp`.
        same_image: captions of one image and equal captions are masked, and batches hold no image twice; False
            for neither.
        warmup: the first epoch is trained with `nce`.
    """

    loss_type: str
    head: str
    same_image: bool
    warmup: bool

    @property
    def name(self) -> str:
        treatment = "masked" if self.same_image else "unmasked"
        return "-".join((self.loss_type, self.head, treatment, "warm" if self.warmup else "cold"))

    @property
    def overrides(self) -> dict[str, Any]:
        return {
            "loss_type": self.loss_type,
            "projection_type": self.head,
            "unique_images": self.same_image,
            "mask_same_image": self.same_image,
            "mask_equal_captions": self.same_image,
            "hard_negative_warmup_epochs": 1 if self.warmup else 0,
        }


def all_cells() -> list[Cell]:
    """Every combination but `nce` after a warm-up with itself."""
    cells = [Cell(*values) for values in product(LOSSES, ("linear", "mlp"), (True, False), (False, True))]
    return [cell for cell in cells if not (cell.warmup and cell.loss_type == WARMUP_LOSS)]


def run_cell(task: tuple[Cell, int, Path, Path, dict[str, Any], int]) -> dict[str, Any]:
    """Trains one cell with one seed, or reads its numbers if it was trained before."""
    cell, seed, recipe_path, folder, overrides, threads = task
    output = folder / f"{cell.name}-{seed}"
    metrics = output / "metrics.json"
    if not metrics.is_file():
        torch.set_num_threads(threads)
        output.mkdir(parents=True, exist_ok=True)
        recipe = read_recipe(recipe_path, **overrides, **cell.overrides, seed=seed, output_dir=str(output))
        with open(output / "train.log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            run_recipe(recipe)
        shutil.rmtree(output / "stages")
        (output / "model.safetensors").unlink()
    result = read_evaluation(metrics)
    recalls = result["metrics"]["validation"]["metrics"]
    return {
        "cell": cell.name,
        "seed": seed,
        "seconds": result["stages"][0]["seconds"],
        "metrics": {name: round(recalls[name], 2) for name in KEPT},
        "fingerprint": result["metrics"]["validation"]["fingerprint"],
        "environment": result["environment"],
    }


def run_grid(
    cells: Iterable[Cell],
    seeds: Iterable[int],
    recipe_path: Path,
    folder: Path,
    overrides: Mapping[str, Any],
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Trains all cells with all seeds, one seed after the other: an unfinished grid has whole seeds.

    Args:
        recipe_path: what the cells have in common.
        folder: where the runs are kept.
        overrides: of the recipe, such as `data_dir`.
        workers: runs at a time; on a CPU one for each core is fastest.
    """
    read_recipe(recipe_path, **overrides)  # refuses a typo before the work begins
    threads = max(1, (os.cpu_count() or 1) // workers)
    tasks = [(cell, seed, recipe_path, folder, dict(overrides), threads) for seed, cell in product(seeds, list(cells))]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        runs = list(tqdm(pool.imap(run_cell, tasks), "runs of the grid", total=len(tasks)))
    return runs


def summarise(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each cell, by name: mean recalls over the seeds, and mean and standard deviation of `rsum`."""
    of_cell: dict[str, list[Mapping[str, float]]] = {}
    for run in runs:
        of_cell.setdefault(run["cell"], []).append(run["metrics"])
    return {
        name: {
            "seeds": len(metrics),
            "rsum_std": stdev(each["rsum"] for each in metrics) if len(metrics) > 1 else 0.0,
            **{key: mean(each[key] for each in metrics) for key in KEPT},
        }
        for name, metrics in of_cell.items()
    }


def grid_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line for each objective with and without warm-up, a column for each head and treatment, `rsum`."""
    columns = list(product(("linear", "mlp"), (True, False)))
    titles = [f"{head}, {'masked' if same_image else 'neither'}" for head, same_image in columns]
    lines = ["| rsum | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    for loss_type, warmup in product(LOSSES, (False, True)):
        found = [summary.get(Cell(loss_type, *column, warmup).name) for column in columns]
        if any(found):
            numbers = [f"{each['rsum']:.1f} ± {each['rsum_std']:.1f}" if each else "" for each in found]
            title = f"`{loss_type}`" + (f" after an epoch of `{WARMUP_LOSS}`" if warmup else "")
            lines.append(f"| {title} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)
