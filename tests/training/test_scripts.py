"""The commands people run: kill and resume, evaluate, and the model directory at the end."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vse.cli.main import main
from hf_vse.evaluation.record import read_evaluation
from tests.faults.killing import slow
from tests.processes import run_fork, start_fork
from tests.training.commands import RECIPE, run_script, train_arguments, write_data


@pytest.fixture(scope="module", autouse=True)
def pictures():
    """Here they are drawn."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("precomp"))


@slow
def test_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(data, tmp_path):
    options = {
        "num_train_epochs": 8, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 20,
        "save_total_limit": 3, "word_dropout": 0.2, "lr_scheduler_type": "cosine",
    }  # fmt: skip
    log = tmp_path / "log"
    run_fork(log, run_script, "train.py", *train_arguments(data, tmp_path / "whole", **options))
    words = ["train.py", *train_arguments(data, tmp_path / "killed", **options)]
    process = start_fork(log, run_script, *words)
    stage = tmp_path / "killed" / "stages" / "train"
    deadline = time.monotonic() + 120
    while not list(stage.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (stage / "stage.json").exists(), "the run ended before it could be killed"
    assert "resuming from" in run_fork(log, run_script, *words)
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor), name


def test_stages_evaluate_and_a_second_run(data, tmp_path, caplog, capsys):
    recipe = tmp_path / "recipe.yaml"
    output = tmp_path / "run"
    stages = "stages: [{name: base, loss_type: hinge_sum}, {name: heads, loss_type: hardnce, projection_type: mlp}]"
    recipe.write_text(f"{RECIPE}\n{stages}\ndata_dir: {data}\noutput_dir: {output}\n")
    assert run_script("train.py", recipe) == 0
    printed = capsys.readouterr().out
    assert "validation" in printed and "chance" in printed and "rsum" in printed
    base = load_file(output / "stages" / "base" / "model.safetensors")
    final = load_file(output / "model.safetensors")
    assert not any("head" in name for name in base) and any("visual_head" in name for name in final)
    assert (output / "training_curves_base.png").stat().st_size > 5000
    metrics = json.loads((output / "metrics.json").read_text())
    assert [stage["loss_type"] for stage in metrics["stages"]] == ["hinge_sum", "hardnce"]

    evaluate = ["--model", output, "--split", "validation", "--output", tmp_path / "eval" / "metrics.json"]
    assert run_script("evaluate.py", *evaluate) == 0
    evaluation = read_evaluation(tmp_path / "eval" / "metrics.json")
    assert evaluation.keys() < metrics.keys() and evaluation["environment"].keys() == metrics["environment"].keys()
    [record] = evaluation["metrics"].values()
    assert record.keys() == metrics["metrics"]["validation"].keys()
    assert record["metrics"] == pytest.approx(metrics["metrics"]["validation"]["metrics"], abs=1)  # near ties may turn
    assert record["fingerprint"] == metrics["metrics"]["validation"]["fingerprint"]
    assert {"protocol", "images", "captions", "intervals", "protocols"} < record.keys()

    assert main(["train", str(recipe)]) == 0
    assert "stage base was trained before" in caplog.text and "stage heads was trained before" in caplog.text
    assert main(["train", str(recipe), "--seed", "7"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {output} holds a run with a different seed (see")


def test_errors_are_one_line_without_a_traceback(tmp_path, capsys):
    wrong_key = ["--lerning_rate", "1", "--output_dir", str(tmp_path)]
    assert run_script("train.py", *wrong_key) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: command line: unknown key 'lerning_rate'; did you mean 'learning_rate'?")

    no_data = ["--dataset", "flickr8k", "--data_dir", "/nowhere", "--output_dir", str(tmp_path)]
    assert main(["train", *no_data]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: data_dir='/nowhere' does not exist")
