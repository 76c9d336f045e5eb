"""Trains the grid of the README: objective x head x same-image treatment x warm-up, three seeds each.

    python scripts/reproduce_table.py --data_dir DIR                     # all 108 runs; run again to resume
    python scripts/reproduce_table.py --data_dir DIR --only nce hardnce --seeds 0 1 2 3 4

Writes OUTPUT/grid.json (every run, and mean and standard deviation of every cell), OUTPUT/grid.md and OUTPUT/grid.png.
DIR holds the captions file and the features file of the recipe.
"""

import argparse
import json
from pathlib import Path

from hf_vse.errors import one_line_errors
from hf_vse.plots import plot_grid
from hf_vse.training.grid import LOSSES, all_cells, grid_table, run_grid, summarise
from hf_vse.training.recipe import read_recipe

RECIPE = Path(__file__).parent / "recipes" / "flickr8k_features_grid.yaml"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with the captions and the features")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help=f"base recipe of all runs [{RECIPE.name}]")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/grid"), help="folder for runs and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="[0 1 2]")
    parser.add_argument("--only", nargs="+", choices=LOSSES, default=LOSSES, help="objectives to run [all]")
    parser.add_argument("--epochs", type=float, help="passes over the captions [as in the recipe]")
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, which share the cores [2]")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    overrides = {"data_dir": arguments.data_dir}
    overrides |= {} if arguments.epochs is None else {"num_train_epochs": arguments.epochs}
    cells = [cell for cell in all_cells() if cell.loss_type in arguments.only]
    runs = run_grid(
        cells, arguments.seeds, arguments.recipe, arguments.output_dir / "cells", overrides, arguments.workers
    )
    summary = summarise(runs)
    recipe = read_recipe(arguments.recipe, **overrides).values | {"data_dir": "DIR"}
    result = {"recipe": recipe, "environment": runs[0].pop("environment"), "summary": summary}
    result["runs"] = [{key: value for key, value in run.items() if key != "environment"} for run in runs]
    (arguments.output_dir / "grid.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (arguments.output_dir / "grid.md").write_text(grid_table(summary) + "\n", encoding="utf-8")
    plot_grid(runs, arguments.output_dir / "grid.png")
    print(f"\n{grid_table(summary)}\n\nnumbers and plot   {arguments.output_dir}/grid.json, grid.png")


if __name__ == "__main__":
    with one_line_errors():
        main()
