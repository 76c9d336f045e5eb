import json

import numpy as np
import pytest

from hf_vse.plots import plot_grid
from hf_vse.training.grid import KEPT, LOSSES, Cell, all_cells, grid_table, run_cell, summarise
from tests.conftest import make_captions

RECIPE = """
dataset: precomp
projection_dim: 8
text_config: {word_dim: 8}
min_word_count: 1
num_train_epochs: 2
per_device_train_batch_size: 8
learning_rate: 1e-2
eval_strategy: "no"
save_strategy: "no"
disable_tqdm: true
"""


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("dev", 8)):
        np.save(tmp_path / f"{split}_ims.npy", rng.normal(size=(count, 6)).astype(np.float32))
        captions = [caption for index in range(count) for caption in make_captions(index)]
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_the_grid_is_complete_and_its_cells_have_names_of_their_own():
    cells = all_cells()
    assert len(cells) == 2 * 2 * (2 * len(LOSSES) - 1)
    assert len({cell.name for cell in cells}) == len(cells)
    assert not any(cell.loss_type == "nce" and cell.warmup for cell in cells)
    overrides = [tuple(cell.overrides.items()) for cell in cells]
    assert len(set(overrides)) == len(cells)


def test_a_cell_is_trained_once_and_then_read(recipe, tmp_path):
    cell = Cell("hardnce", "mlp", same_image=False, warmup=True)
    task = cell, 3, recipe, tmp_path / "cells", {"data_dir": str(tmp_path)}, 1
    first = run_cell(task)
    output = tmp_path / "cells" / "hardnce-mlp-unmasked-warm-3"
    asked = json.loads((output / "metrics.json").read_text())["recipe"]
    assert asked["loss_type"] == "hardnce" and asked["projection_type"] == "mlp" and asked["seed"] == 3
    assert asked["unique_images"] is asked["mask_same_image"] is asked["mask_equal_captions"] is False
    written = (output / "metrics.json").stat().st_mtime_ns
    assert run_cell(task) == first and (output / "metrics.json").stat().st_mtime_ns == written
    assert first["cell"] == cell.name and first["metrics"].keys() == set(KEPT)


def runs() -> list[dict]:
    return [
        {"cell": cell.name, "seed": seed, "metrics": dict.fromkeys(KEPT, 10.0) | {"rsum": 100.0 + 10 * seed}}
        for cell in all_cells()
        for seed in range(3)
    ]


def test_summary_and_table_hold_every_cell():
    summary = summarise(runs())
    assert summary["nce-mlp-masked-cold"]["rsum"] == 110 and summary["nce-mlp-masked-cold"]["rsum_std"] == 10
    table = grid_table(summary)
    assert table.count("110.0 ± 10.0") == len(all_cells())
    assert len(table.splitlines()) == 2 + 2 * len(LOSSES) - 1
    assert grid_table(summarise(run for run in runs() if run["cell"].startswith("nce-mlp"))).count("±") == 2


def test_picture_of_the_grid_is_drawn(tmp_path):
    assert plot_grid(runs(), tmp_path / "grid.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="runs is empty"):
        plot_grid([], tmp_path / "grid.png")
