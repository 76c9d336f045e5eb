"""The benchmarks that wait for a GPU run here, small, so that they run there unattended."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a benchmark as its own process would, in this one, which has imported its libraries already."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(name: str, *arguments: str) -> dict:
        output = tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--output", str(output)])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return json.loads(output.read_text())

    return run


def test_loss_step_times_and_weighs_every_contender(run):
    names = ["plain torch nce", "nce chunked", "nce streamed", "hardnce streamed", "siglip streamed"]
    result = run("loss_step", "--batch_sizes", "64", "--rounds", "1", "--memory_sizes")
    timed = {row["contender"]: row for row in result["times"]}
    assert set(names) <= timed.keys()
    assert all(row["seconds"] > 0 and row["of_plain"] > 0 for row in timed.values())
    weighed = run("loss_step", "--contenders", names[0], names[2], "--batch_sizes", "64", "--rounds", "1",
                  "--memory_sizes", "2048")  # fmt: skip
    peaks = {row["contender"]: row["peak_mib"] for row in weighed["memory"]}
    assert peaks.keys() == {names[0], names[2]} and all(peak > 0 for peak in peaks.values())


def test_train_step_measures_plain_and_cached(run):
    arguments = ("--towers", "resnet50", "--batch_size", "2", "--mini_batch", "1", "--warmup", "0", "--rounds", "1")
    result = run("train_step", *arguments)
    assert [row["way"] for row in result["steps"]] == ["plain", "gradient cache"]
    assert all(20 < row["gflop_of_a_pair"] < 30 and row["images_per_second"] > 0 for row in result["steps"])


def test_diagnostics_cost_compares_steps_with_and_without(run):
    result = run("diagnostics_cost", "--rounds", "1", "--every", "2")
    assert result["every"] == 2 and result["ratio_measured"] > 0
    assert 1 < result["ratio_by_their_own_time"] and result["milliseconds_of_the_diagnostics"] > 0
