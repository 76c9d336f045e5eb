"""Many runs around one recipe: what does each field change?

A grid is a YAML file:

    recipe: ../flickr8k_features_single.yaml  # the base, a path from the folder of the grid
    seeds: [0, 1, 2]
    fields: {eval_strategy: "no"}             # of all cells, the base too
    cells:                                    # one field at a time; `base`, without a change, comes first
      hardness 0.5: {hardness: 0.5}

Instead of `cells`, `factors` is a list of maps from a name to fields: a cell is one choice of each, `nce-mlp` for
example, `leave_out` has patterns of names that are no cells, and `base` names the cell that others are compared with.
`split` is the split whose recall is reported, validation by default.

Every cell is trained with every seed, in a folder named after the cell, the seed and a digest of all settings, also
those that nobody gave. So the same command continues an interrupted grid, and a run with other settings or under other
defaults is never taken for one of its own. Seeds of a cell with `joined_seeds` have to be as far apart.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import pairwise, product
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_vse.evaluation.record import read_evaluation
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.plots import RECALLS
from hf_vse.training.claim import STAGES
from hf_vse.training.joining import SEEDS
from hf_vse.training.recipe import Recipe, check_stage_name, read_file, read_recipe
from hf_vse.training.run import run_recipe
from hf_vse.training.settings import CONFIG_FIELDS, defaults_of_keys

BASE = "base"
KEYS = ("recipe", "seeds", "fields", "cells", "factors", "leave_out", "base", "split")
KEPT = (*RECALLS, "rsum")
Fields = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Cells around a recipe.

    Args:
        recipe: path of the base.
        cells: name -> fields that differ from the base.
        seeds: every cell is trained with each.
        base: the cell that others are compared with, None for no comparison.
        split: the split whose recall is reported.
    """

    recipe: Path
    cells: dict[str, Fields]
    seeds: tuple[int, ...] = (0, 1, 2)
    base: str | None = None
    split: str = "validation"

    def run_of(self, cell: str, seed: int, folder: Path) -> Recipe:
        """The recipe of one run; the digest in its `output_dir` is of everything but the place."""
        recipe = read_recipe(self.recipe, **self.cells[cell], seed=seed)
        settings = replace(recipe, values=defaults_of_recipe() | recipe.values).public_values
        described = json.dumps(
            {key: settings[key] for key in settings.keys() - {"output_dir"}}, sort_keys=True, default=str
        )
        digest = hashlib.sha256(described.encode()).hexdigest()[:8]
        return replace(recipe, values=recipe.values | {"output_dir": str(folder / f"{cell}-{seed}-{digest}")})


def read_grid(path: str | Path, **fields: Any) -> Grid:
    """Reads a grid file; keyword arguments are fields of all cells that win over it.

    Raises:
        ValueError, OSError: the file, the recipe or a cell cannot be used.
    """
    path = Path(path)
    values = read_file(path)
    if unknown := values.keys() - set(KEYS):
        raise ValueError(f"grid {path}: unknown key {min(map(str, unknown))!r:.60}; there are {', '.join(KEYS)}")
    if not isinstance(values.get("recipe"), str):
        raise ValueError(f"grid {path}: recipe is the path of the base recipe, got {values.get('recipe')!r:.60}")
    if ("cells" in values) == ("factors" in values):
        raise ValueError(f"grid {path}: give either cells or factors")
    seeds = values.get("seeds", Grid.seeds)
    numbers = isinstance(seeds, list | tuple) and len(seeds) and all(type(seed) is int for seed in seeds)
    if not numbers or len(set(seeds)) < len(seeds):
        raise ValueError(f"grid {path}: seeds is a list of different numbers, got {seeds!r:.60}")
    cells = {BASE: None} | values["cells"] if "cells" in values else product_of(values["factors"])
    for pattern in values.get("leave_out", ()):
        cells = {name: changes for name, changes in cells.items() if not fnmatch(name, pattern)}
    for name, changes in cells.items():
        check_stage_name(name, f"grid {path}")
        if not isinstance(changes, dict | None):
            raise ValueError(f"grid {path}, cell {name}: fields are a map, got {changes!r:.60}")
        cells[name] = (values.get("fields") or {}) | (changes or {}) | fields
    base = values.get("base", BASE if "cells" in values else None)
    if base is not None and base not in cells:
        raise ValueError(f"grid {path}: base {base!r:.60} is none of its {len(cells)} cells")
    grid = Grid(path.parent / values["recipe"], cells, tuple(seeds), base, values.get("split", Grid.split))
    for name in cells:
        try:
            grid.run_of(name, 0, Path())
        except ValueError as error:
            raise ValueError(f"grid {path}, cell {name}: {error}") from error
    return grid


def defaults_of_recipe() -> dict[str, Any]:
    """What each key is where a recipe does not give it."""
    return defaults_of_keys() | {key: getattr(VSEConfig, key) for key in CONFIG_FIELDS}


def check_disjoint(grid: Grid) -> None:
    """Raises ValueError for runs of a cell that would train a seed twice, so that they are no runs of their own."""
    first, *others = sorted(grid.seeds)
    for cell in grid.cells:
        joined = grid.run_of(cell, first, Path()).values.get("joined_seeds", 1)
        if any(later - one < joined for one, later in pairwise([first, *others])):
            apart = [first + joined * place for place in range(len(grid.seeds))]
            raise ValueError(
                f"cell {cell}: joined_seeds={joined} trains as many seeds from each of seeds={list(grid.seeds)} on, "
                f"which overlap: give seeds that are {joined} apart, such as {apart}"
            )


def product_of(factors: Sequence[Mapping[str, Fields]]) -> dict[str, Fields]:
    """One cell for each choice of every factor, named after the choices."""
    cells: dict[str, Fields] = {}
    for choice in product(*(factor.items() for factor in factors)):
        cells["-".join(name for name, _ in choice)] = {
            key: value for _, fields in choice for key, value in fields.items()
        }
    return cells


def run_cell(task: tuple[Grid, str, int, Path, int]) -> dict[str, Any]:
    """Trains one cell with one seed, or reads its numbers if it was trained before."""
    grid, cell, seed, folder, threads = task
    recipe = grid.run_of(cell, seed, folder)
    output = recipe.output_dir
    if not (output / "metrics.json").is_file():
        torch.set_num_threads(threads)
        output.mkdir(parents=True, exist_ok=True)
        with open(output / "train.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            run_recipe(recipe)
        shutil.rmtree(output / (SEEDS if (output / SEEDS).is_dir() else STAGES))
        (output / "model.safetensors").unlink()
    result = read_evaluation(output / "metrics.json")
    if grid.split not in result["metrics"]:
        raise ValueError(f"{output} was not measured on {grid.split!r:.60}: it has {', '.join(result['metrics'])}")
    judged = result["metrics"][grid.split]
    return {
        "cell": cell,
        "seed": seed,
        "seconds": sum(stage["seconds"] for stage in result["stages"]),
        "cpu_seconds": sum(stage["cpu_seconds"] for stage in result["stages"]),
        "metrics": {name: round(judged["metrics"][name], 2) for name in KEPT},
        "fingerprint": judged["fingerprint"],
        "environment": result["environment"],
    }


def run_grid(grid: Grid, folder: Path, workers: int = 1) -> list[dict[str, Any]]:
    """Trains all cells with all seeds, one seed after the other: an unfinished grid has whole seeds.

    The first run is alone, so that what all of them share, such as the outputs of frozen towers, is computed once.

    Args:
        folder: where the runs are kept.
        workers: runs at a time; on a CPU one for each core is fastest.

    Raises:
        ValueError: two runs of a cell would train the same seed.
    """
    check_disjoint(grid)
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // workers))  # OMP_NUM_THREADS counts too
    tasks = [(grid, cell, seed, folder, threads) for seed, cell in product(grid.seeds, grid.cells)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        first = pool.apply(run_cell, tasks[:1])
        others = pool.imap(run_cell, tasks[1:])
        return [first, *tqdm(others, "runs of the grid", total=len(tasks), initial=1)]


def summarise(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each cell, by name: means over the seeds of recalls and CPU seconds, and the deviation of `rsum`."""
    of_cell: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        of_cell.setdefault(run["cell"], []).append(run)
    return {
        name: {
            "seeds": len(found),
            "cpu_seconds": mean(run.get("cpu_seconds", nan) for run in found),  # older records have none
            "rsum_std": stdev(run["metrics"]["rsum"] for run in found) if len(found) > 1 else 0.0,
            **{key: mean(run["metrics"][key] for run in found) for key in KEPT},
        }
        for name, found in of_cell.items()
    }


def grid_table(summary: Mapping[str, Mapping[str, Any]], base: str | None = None) -> str:
    """Markdown: a line for each cell with `rsum`, its difference from that of the base, and CPU seconds."""
    of_base = None if base is None else f" | from {base}"
    lines = [f"| | rsum{of_base or ''} | CPU seconds |", f"|---|---{'' if base is None else '|---'}|---|"]
    for name, found in summary.items():
        parts = [name, f"{found['rsum']:.1f} ± {found['rsum_std']:.1f}", f"{found['cpu_seconds']:.0f}"]
        if base is not None:
            parts.insert(2, "" if name == base else f"{found['rsum'] - summary[base]['rsum']:+.1f}")
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)
