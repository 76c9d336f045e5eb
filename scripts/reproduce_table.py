"""Trains a grid of runs around one recipe, see `hf_vse/training/grid.py` for the file that describes it.

    python scripts/reproduce_table.py scripts/recipes/grids/fields.yaml --data_dir DIR       # again to resume
    python scripts/reproduce_table.py scripts/recipes/grids/paper.yaml --data_dir DIR --only 'nce-*' base --seeds 0 1

Fields of a recipe (`--data_dir DIR`, `--num_train_epochs 2`) hold for all cells. Writes grid.json (every run, and mean
and standard deviation of every cell), grid.md and grid.png into OUTPUT, runs/GRID by default.
"""

import argparse
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from hf_vse.errors import one_line_errors
from hf_vse.files import write_json, write_text
from hf_vse.plots import plot_grid
from hf_vse.training.grid import grid_table, read_grid, run_grid, summarise
from hf_vse.training.recipe import parse_fields, read_recipe

PLACES = ("data_dir", "frozen_cache_dir", "image_tower_weights", "output_dir")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument("--output_dir", type=Path, help="folder for runs and results [runs/GRID]")
    parser.add_argument("--seeds", type=int, nargs="+", help="[those of the grid]")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="cells to run, or patterns such as 'nce-*' [all]")
    parser.add_argument("--workers", type=int, default=1, help="parallel runs, which share the cores [1]")
    return parser.parse_known_args()


def without_places(values: dict) -> dict:
    """Settings without folders of this machine."""
    return {key: value for key, value in values.items() if key not in PLACES}


def main() -> None:
    arguments, others = parse_arguments()
    fields = parse_fields(others)
    grid = read_grid(arguments.grid, **fields)
    cells = {
        name: changes
        for name, changes in grid.cells.items()
        if arguments.only is None or any(fnmatch(name, pattern) for pattern in arguments.only)
    }
    if not cells:
        raise SystemExit(f"error: --only {' '.join(arguments.only)}: there are {', '.join(grid.cells)}")
    base = grid.base if grid.base in cells else None
    grid = replace(grid, cells=cells, seeds=tuple(arguments.seeds or grid.seeds), base=base)
    output = arguments.output_dir or Path("runs") / arguments.grid.stem
    runs = run_grid(grid, output / "cells", arguments.workers)
    summary = summarise(runs)
    environment = [run.pop("environment") for run in runs][0]
    result = {
        "grid": arguments.grid.name,
        "recipe": without_places(read_recipe(grid.recipe, **fields).values),
        "cells": {name: without_places(changes) for name, changes in cells.items()},
        "environment": environment,
        "summary": summary,
        "runs": runs,
    }
    write_json(output / "grid.json", result)
    write_text(output / "grid.md", grid_table(summary, base) + "\n")
    plot_grid(runs, output / "grid.png", base)
    print(f"\n{grid_table(summary, base)}\n\nnumbers and plot   {output}/grid.json, grid.png")


if __name__ == "__main__":
    with one_line_errors():
        main()
