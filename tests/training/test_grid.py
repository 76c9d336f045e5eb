import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_vse.plots import plot_grid
from hf_vse.plots.runs import runs_figure
from hf_vse.training import grid as grid_module
from hf_vse.training.grid import KEPT, check_disjoint, grid_table, read_grid, run_cell, summarise
from tests.conftest import make_captions

SCRIPTS = Path(__file__).parents[2] / "scripts"
GRIDS = SCRIPTS / "recipes" / "grids"
RECORDED = SCRIPTS / "benchmarks" / "results" / "grid.json"
RECIPE = """
dataset: precomp
projection_dim: 8
text_config: {word_dim: 8}
min_word_count: 1
num_train_epochs: 1
per_device_train_batch_size: 8
learning_rate: 1e-2
eval_strategy: "no"
save_strategy: "no"
disable_tqdm: true
"""
GRID = """
recipe: recipe.yaml
seeds: [0, 1]
fields: {projection_dim: 4}
cells:
  temperature 0.05: {temperature: 0.05}
"""


@pytest.fixture
def grid(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("dev", 8)):
        np.save(tmp_path / f"{split}_ims.npy", rng.normal(size=(count, 6)).astype(np.float32))
        captions = [caption for index in range(count) for caption in make_captions(index)]
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_grids_of_the_project_are_valid_and_their_cells_differ(path):
    grid = read_grid(path)
    folders = {grid.run_of(cell, 0, Path()).output_dir.name.rpartition("-")[2] for cell in grid.cells}
    assert len(folders) == len(grid.cells)


def test_a_run_under_other_defaults_has_another_folder(grid, monkeypatch):
    def folder(**fields) -> str:
        return read_grid(grid, **fields).run_of("base", 0, Path()).output_dir.name

    plain = folder()
    assert plain == folder(output_dir="elsewhere") == folder(max_grad_norm=0.0) != folder(max_grad_norm=1.0)
    defaults = grid_module.defaults_of_keys()
    monkeypatch.setattr(grid_module, "defaults_of_keys", lambda: defaults | {"max_grad_norm": 1.0})
    assert folder() == folder(max_grad_norm=1.0) != plain


def test_seeds_that_joined_seeds_would_train_twice_are_refused(grid):
    fields = {"joined_seeds": 2, "freeze_text_tower": True}
    joined = read_grid(grid, **fields)
    check_disjoint(read_grid(grid))
    check_disjoint(replace(joined, seeds=(4, 0, 2)))
    with pytest.raises(ValueError, match=r"cell base: joined_seeds=2 .* seeds=\[0, 1\] on, .* such as \[0, 2\]"):
        check_disjoint(joined)


def test_the_recorded_grid_of_the_paper_has_the_cells_of_its_file():
    recorded = json.loads(RECORDED.read_text())
    grid = read_grid(GRIDS / "paper.yaml")
    assert [(run["cell"], run["seed"]) for run in recorded["runs"]] == [
        (cell, seed) for seed in grid.seeds for cell in grid.cells
    ]
    assert grid.cells["hardnce-mlp-unmasked-warm"] == {
        "loss_type": "hardnce", "projection_type": "mlp", "unique_images": False, "mask_same_image": False,
        "mask_equal_captions": False, "hard_negative_warmup_epochs": 1,
    }  # fmt: skip
    again = summarise(recorded["runs"])
    for name, summary in recorded["summary"].items():
        assert {key: again[name][key] for key in summary} == pytest.approx(summary)


def test_base_comes_first_and_what_is_given_wins_over_fields_of_the_file(grid, tmp_path):
    read = read_grid(grid, learning_rate=1.0)
    common = {"projection_dim": 4, "learning_rate": 1.0}
    assert read.cells == {"base": common, "temperature 0.05": {"temperature": 0.05} | common}
    assert read.base == "base" and read.seeds == (0, 1) and read.split == "validation"
    assert read.run_of("base", 1, tmp_path).values["seed"] == 1


def test_a_cell_is_trained_once_and_a_run_with_other_settings_is_not_taken_for_it(grid, tmp_path):
    read, folder = read_grid(grid, data_dir=str(tmp_path)), tmp_path / "cells"
    first = run_cell((read, "temperature 0.05", 1, folder, 1))
    (metrics,) = folder.glob("temperature 0.05-1-*/metrics.json")
    asked = json.loads(metrics.read_text())["recipe"]
    assert (asked["temperature"], asked["seed"], asked["projection_dim"]) == (0.05, 1, 4)
    assert first["cell"] == "temperature 0.05" and first["metrics"].keys() == set(KEPT)
    marked = json.loads(metrics.read_text())
    marked["metrics"]["validation"]["metrics"]["rsum"] = 123.0  # shows whether the run was read or trained again
    metrics.write_text(json.dumps(marked))
    assert run_cell((read, "temperature 0.05", 1, folder, 1))["metrics"]["rsum"] == 123.0
    for changed in ({"learning_rate": 2e-2}, {"data_dir": "elsewhere"}):
        other = read_grid(grid, **{"data_dir": str(tmp_path)} | changed)
        assert not other.run_of("temperature 0.05", 1, folder).output_dir.exists()
    with pytest.raises(ValueError, match="was not measured on 'test': it has validation"):
        run_cell((replace(read, split="test"), "temperature 0.05", 1, folder, 1))


RUNS = [
    {
        "cell": cell,
        "seed": seed,
        "cpu_seconds": 60.0,
        "metrics": dict.fromkeys(KEPT, 10.0) | {"rsum": rsum + 10 * seed},
    }
    for seed in range(3)
    for cell, rsum in (("base", 100.0), ("better", 104.0))
]


def test_script_writes_numbers_table_and_picture(grid, tmp_path, capsys, monkeypatch):
    asked = []

    def run_grid(grid, folder, workers):
        asked.append((list(grid.cells), grid.seeds, workers))
        folder.mkdir(parents=True)
        return [run | {"environment": {"commit": "abc"}} for run in RUNS]

    monkeypatch.setattr("hf_vse.training.grid.run_grid", run_grid)
    output = tmp_path / "out"
    places = ["--data_dir", str(tmp_path), "--frozen_cache_dir", str(tmp_path / "cache")]
    command = [str(grid), "--output_dir", str(output), *places, "--only", "base", "temp*"]
    monkeypatch.setattr(sys, "argv", ["reproduce_table.py", *command, "--seeds", "0", "--workers", "2"])
    runpy.run_path(str(SCRIPTS / "reproduce_table.py"), run_name="__main__")
    assert asked == [(["base", "temperature 0.05"], (0,), 2)]
    found = json.loads((output / "grid.json").read_text())
    assert found["runs"] == RUNS and found["environment"] == {"commit": "abc"}
    assert "data_dir" not in found["recipe"] and str(tmp_path) not in json.dumps(found)
    assert (output / "grid.md").read_text().strip() in capsys.readouterr().out
    assert (output / "grid.png").is_file()


def test_table_has_mean_spread_difference_and_seconds():
    summary = summarise(RUNS)
    assert summary["better"] == dict.fromkeys(KEPT, 10.0) | {
        "seeds": 3, "cpu_seconds": 60, "rsum": 114, "rsum_std": 10
    }  # fmt: skip
    assert grid_table(summary, "base").splitlines()[2:] == [
        "| base | 110.0 ± 10.0 |  | 60 |", "| better | 114.0 ± 10.0 | +4.0 | 60 |",
    ]  # fmt: skip
    assert grid_table(summary).splitlines()[3] == "| better | 114.0 ± 10.0 | 60 |"


def test_picture_of_the_grid_is_drawn(tmp_path):
    assert plot_grid(RUNS, tmp_path / "grid.png", "base").stat().st_size > 5_000
    with pytest.raises(ValueError, match="runs is empty"):
        plot_grid([], tmp_path / "grid.png")


def test_axis_shows_what_is_near_the_base_and_names_what_is_far_below():
    near = {
        name: [value - 1, value + 1] for name, value in (("base", 317.0), ("a", 316.0), ("b", 310.0), ("c", 319.0))
    }
    axes = runs_figure(near | {"collapsed": [44.0, 46.0]}, "base").axes[0]
    assert axes.get_xlim()[0] > 200 and [text.get_text().strip() for text in axes.texts] == ["45"]
    assert axes.get_xlim()[1] > 320 and not runs_figure(near, "base").axes[0].texts
    alike = runs_figure({"base": [305.0, 325.0], "a": [314.0, 316.0], "b": [315.0, 315.0]}, "base").axes[0]
    assert alike.get_xlim()[0] < 305, "a run is never cut off for the spread of its own cell"
    everything = runs_figure({"base": [230.0], "a": [150.0], "b": [50.0], "c": [3.0]}, "base").axes[0]
    assert everything.get_xlim()[0] == 0 and not everything.texts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cells:", "factors: [{a: {}}]\ncells:", "give either cells or factors"),
        ("seeds:", "sedes:", "unknown key 'sedes'; there are recipe, seeds"),
        ("recipe: recipe.yaml", "", "recipe is the path of the base recipe, got None"),
        ("[0, 1]", "[0, 0]", "seeds is a list of different numbers"),
        ("[0, 1]", "3", "seeds is a list of different numbers"),
        ("cells:", "base: none\ncells:", "base 'none' is none of its 2 cells"),
        ("{temperature: 0.05}", "{tempreture: 0.05}", "cell temperature 0.05: .*did you mean 'temperature'"),
        ("{temperature: 0.05}", "3", "cell temperature 0.05: fields are a map, got 3"),
        ("  temperature 0.05:", "  a/b:", "the stage name 'a/b' cannot name a folder"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_with_the_remedy(old, new, message, grid):
    grid.write_text(GRID.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_grid(grid)
