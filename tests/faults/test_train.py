"""A training that is killed, wherever it writes, ends with the same command as if it had not been."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_vse.files import read_json
from hf_vse.training.run import run_recipe
from tests.faults.killing import names_of_points, points_to_try, run
from tests.training.tiny_runs import same_outcome, tiny_recipe, write_features


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = write_features(tmp_path_factory.mktemp("data") / "features")
    warm = tmp_path_factory.mktemp("warm")
    run_recipe(tiny_recipe(folder, warm / "run", max_steps=1, save_steps=1, eval_steps=1))  # what it imports
    return folder


def training(data: Path, folder: Path):
    def action() -> None:
        torch.set_num_threads(1)  # OpenMP does not survive a fork, and equal to the bit is asked of one layout
        run_recipe(tiny_recipe(data, folder / "run"))

    return action


def check_what_is_left(output: Path) -> None:
    """What says that it is done is whole."""
    for record in output.glob("stages/*/stage.json"):
        assert read_json(record, dict)["steps"] == 4
        with safe_open(record.parent / "model.safetensors", framework="pt") as file:
            assert file.keys()
    if (output / "metrics.json").exists():
        assert read_json(output / "metrics.json", dict)["metrics"]["validation"]


def test_killed_anywhere_and_run_again_it_ends_as_if_nothing_had_been(data, tmp_path):
    whole, folder = tmp_path / "whole" / "work", tmp_path / "killed" / "work"
    whole.mkdir(parents=True)
    assert run(training(data, whole), whole) == 0, (whole.parent / "output.log").read_text()
    names = names_of_points(whole)
    for written in ("optimizer.pt", "model.safetensors", "trainer_state.json", "stage.json", "metrics.json", ".arrow"):
        assert any(written.removesuffix(".json") in name for name in names), written
    folder.mkdir(parents=True)
    action = training(data, folder)
    for at in points_to_try(action, folder):
        place = tmp_path / f"killed-{at}" / "work"
        place.mkdir(parents=True)
        again = training(data, place)
        assert run(again, place, at) == -signal.SIGKILL
        died = names_of_points(place)[-1]
        check_what_is_left(place / "run")
        assert run(again, place) == 0, f"{died}: {(place.parent / 'output.log').read_text()}"
        assert same_outcome(place / "run", whole / "run"), died


def test_a_full_disk_ends_it_and_room_continues_it(data, tmp_path):
    whole, folder = tmp_path / "whole" / "work", tmp_path / "full" / "work"
    whole.mkdir(parents=True)
    assert run(training(data, whole), whole) == 0
    count = len(names_of_points(whole))
    folder.mkdir(parents=True)
    for share in (0.3, 0.7):
        assert run(training(data, folder), folder, round(share * count), how="full") == 70
        check_what_is_left(folder / "run")
    assert run(training(data, folder), folder) == 0, (folder.parent / "output.log").read_text()
    assert same_outcome(folder / "run", whole / "run")
