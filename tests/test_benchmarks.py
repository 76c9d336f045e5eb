"""The benchmarks that wait for a GPU run here, small, so that they run there unattended."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


def run(name: str, output: Path, *arguments: str) -> dict:
    command = [sys.executable, BENCHMARKS / f"{name}.py", *arguments, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text())


def test_loss_step_times_and_weighs_every_contender(tmp_path):
    names = ["plain torch nce", "nce chunked", "nce streamed", "hardnce streamed", "siglip streamed"]
    result = run("loss_step", tmp_path / "loss.json", "--batch_sizes", "64", "--rounds", "1", "--memory_sizes")
    timed = {row["contender"]: row for row in result["times"]}
    assert set(names) <= timed.keys()
    assert all(row["seconds"] > 0 and row["of_plain"] > 0 for row in timed.values())
    arguments = (
        "--contenders",
        *names[:1],
        names[2],
        "--batch_sizes",
        "64",
        "--rounds",
        "1",
        "--memory_sizes",
        "2048",
    )
    peaks = {row["contender"]: row["peak_mib"] for row in run("loss_step", tmp_path / "l.json", *arguments)["memory"]}
    assert peaks.keys() == {names[0], names[2]} and all(peak > 0 for peak in peaks.values())


def test_train_step_measures_plain_and_cached(tmp_path):
    arguments = ("--towers", "resnet50", "--batch_size", "2", "--mini_batch", "1", "--warmup", "0", "--rounds", "1")
    result = run("train_step", tmp_path / "step.json", *arguments)
    assert [row["way"] for row in result["steps"]] == ["plain", "gradient cache"]
    assert all(20 < row["gflop_of_a_pair"] < 30 and row["images_per_second"] > 0 for row in result["steps"])


def test_diagnostics_cost_compares_steps_with_and_without(tmp_path):
    result = run("diagnostics_cost", tmp_path / "cost.json", "--rounds", "1", "--every", "2")
    assert result["every"] == 2 and result["ratio_measured"] > 0
    assert 1 < result["ratio_by_their_own_time"] and result["milliseconds_of_the_diagnostics"] > 0
