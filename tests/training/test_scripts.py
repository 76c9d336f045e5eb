"""The commands people run: several processes, kill and resume, evaluate, and the model directory at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_vse.evaluation.record import read_evaluation
from tests.conftest import make_captions
from tests.test_architecture import PAYLOAD

SCRIPTS = Path(__file__).parents[2] / "scripts"
IMAGES, DIM = 48, 12


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Features and captions in the layout of VSE++: 48 training and 17 validation images."""
    folder = tmp_path_factory.mktemp("precomp")
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("dev", 17)):
        np.save(folder / f"{split}_ims.npy", rng.normal(size=(count, DIM)).astype(np.float32))
        captions = [caption for index in range(count) for caption in make_captions(index)]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


RECIPE = """
dataset: precomp
projection_dim: 16
text_config: {word_dim: 8}
min_word_count: 1
num_train_epochs: 2
per_device_train_batch_size: 8
per_device_eval_batch_size: 14  # 85 validation captions: four batches of 43 on one process, three of 42 on another
learning_rate: 1e-2
lr_scheduler_type: constant
logging_steps: 1
disable_tqdm: true
"""


def command_line(data_dir: Path, output: Path, **options) -> list[str]:
    recipe = data_dir / "recipe.yaml"
    recipe.write_text(RECIPE)
    options = {"data_dir": data_dir, "output_dir": output} | options
    return [str(recipe), *(str(each) for name, value in options.items() for each in (f"--{name}", value))]


def run(command: list, check: bool = True, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def train(
    data_dir: Path, output: Path, processes: int = 1, wrapper: tuple[Path, ...] = (), **options
) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return run(
        [*launcher, *wrapper, SCRIPTS / "train.py", *command_line(data_dir, output, **options)], OMP_NUM_THREADS="1"
    )


def logged_losses(output: Path) -> list[float]:
    log = json.loads((output / "stages" / "train" / "stage.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


SHARDED = (Path(__file__).with_name("fsdp_on_cpu.py"),)
CACHED = {"grad_cache_batch_size": 3}
TWO_PROCESSES = {
    "gathered": ((), {}),
    "cached around the ring": ((), CACHED | {"negatives": "ring", "loss_chunk_size": 5}),
    "sharded model": (SHARDED, {}),
    "sharded model, cached": (SHARDED, CACHED | {"loss_execution": "dense"}),
}


@pytest.mark.parametrize(
    ("loss_type", "frozen", "ways"),
    [("siglip", False, list(TWO_PROCESSES)), ("hinge_max", False, ["gathered"]), ("nce", True, ["gathered"])],
)
def test_two_processes_train_as_one_on_the_same_global_batch(loss_type, frozen, ways, data_dir, tmp_path):
    # 48 images in batches of 16: the last batch of an epoch is whole, so that both runs see the same pairs
    options = {"loss_type": loss_type, "max_grad_norm": 1.0, "freeze_text_tower": frozen}
    options |= {"projection_type": "residual"}
    runs = {"one": (1, 16, (), {})} | {way: (2, 8, *TWO_PROCESSES[way]) for way in ways}
    for name, (processes, batch, wrapper, execution) in runs.items():
        own = execution | {"per_device_train_batch_size": batch, "frozen_cache_dir": tmp_path / f"{name}-cache"}
        done = train(data_dir, tmp_path / name, processes, wrapper, **options | own)
        assert ("sharded in 30 steps" in done.stderr) == (wrapper == SHARDED)  # where the command keeps remarks
        # training and validation captions
        assert len(list(own["frozen_cache_dir"].rglob("*.arrow"))) == (2 if frozen else 0)
    metrics = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in runs}
    one = logged_losses(tmp_path / "one")
    assert len(one) == 30 and one[-1] < 0.9 * one[0]
    weights = load_file(tmp_path / "one" / "model.safetensors")
    rsum = metrics["one"]["metrics"]["validation"]["metrics"]["rsum"]
    for way in ways:
        assert metrics[way]["environment"]["processes"] == 2
        assert_can_be_loaded_anywhere(tmp_path / way / "stages" / "train")
        assert logged_losses(tmp_path / way) == pytest.approx(one, rel=1e-3), way
        found = load_file(tmp_path / way / "model.safetensors")
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)
        assert metrics[way]["metrics"]["validation"]["metrics"]["rsum"] == pytest.approx(rsum, abs=10)


def assert_can_be_loaded_anywhere(stage: Path) -> None:
    """The model of a stage and its checkpoints name the class that stands in their files, sharded or not."""
    for folder in (stage, *stage.glob("checkpoint-*")):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["VSEModel"]
        assert config["auto_map"]["AutoModel"] == "modeling_vse.VSEModel", folder
        assert {path.name for path in PAYLOAD} <= {path.name for path in folder.glob("*.py")}, folder


def test_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(data_dir, tmp_path):
    options = {
        "num_train_epochs": 12, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 20,
        "save_total_limit": 3, "word_dropout": 0.2, "lr_scheduler_type": "cosine",
    }  # fmt: skip
    train(data_dir, tmp_path / "whole", **options)
    command = [sys.executable, SCRIPTS / "train.py", *command_line(data_dir, tmp_path / "killed", **options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    stage = tmp_path / "killed" / "stages" / "train"
    deadline = time.monotonic() + 120
    while not list(stage.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (stage / "stage.json").exists(), "the run ended before it could be killed"
    resumed = train(data_dir, tmp_path / "killed", **options)
    assert "continuing from" in resumed.stderr
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor), name


def test_stages_evaluate_and_a_second_run(data_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    output = tmp_path / "run"
    stages = "stages: [{name: base, loss_type: hinge_sum}, {name: heads, loss_type: hardnce, projection_type: mlp}]"
    recipe.write_text(f"{RECIPE}\n{stages}\ndata_dir: {data_dir}\noutput_dir: {output}\n")
    first = run([sys.executable, SCRIPTS / "train.py", recipe])
    assert "validation" in first.stdout and "chance" in first.stdout and "rsum" in first.stdout
    base = load_file(output / "stages" / "base" / "model.safetensors")
    final = load_file(output / "model.safetensors")
    assert not any("head" in name for name in base) and any("visual_head" in name for name in final)
    assert (output / "training_curves_base.png").stat().st_size > 5000
    metrics = json.loads((output / "metrics.json").read_text())
    assert [stage["loss_type"] for stage in metrics["stages"]] == ["hinge_sum", "hardnce"]

    evaluate = [sys.executable, SCRIPTS / "evaluate.py", "--model", output, "--split", "validation"]
    run([*evaluate, "--output", tmp_path / "eval" / "metrics.json"])
    evaluation = read_evaluation(tmp_path / "eval" / "metrics.json")
    assert evaluation.keys() < metrics.keys() and evaluation["environment"].keys() == metrics["environment"].keys()
    [record] = evaluation["metrics"].values()
    assert record.keys() == metrics["metrics"]["validation"].keys()
    assert record["metrics"] == pytest.approx(metrics["metrics"]["validation"]["metrics"], abs=1)  # near ties may turn
    assert record["fingerprint"] == metrics["metrics"]["validation"]["fingerprint"]
    assert {"protocol", "images", "captions", "intervals", "protocols"} < record.keys()

    again = run([sys.executable, SCRIPTS / "train.py", recipe])
    assert "stage base was trained before" in again.stderr
    other = run([sys.executable, SCRIPTS / "train.py", recipe, "--seed", "7"], check=False)
    assert other.returncode == 1
    assert other.stderr.strip().splitlines()[-1].startswith(f"error: {output} holds a run with a different seed (see")


def test_errors_are_one_line_without_a_traceback(tmp_path):
    cases = {
        ("--lerning_rate", "1"): "error: command line: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
        ("--dataset", "flickr8k", "--data_dir", "/nowhere"): "error: data_dir='/nowhere' does not exist",
    }
    for arguments, message in cases.items():
        done = run([sys.executable, SCRIPTS / "train.py", *arguments, "--output_dir", tmp_path], check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith(message)
