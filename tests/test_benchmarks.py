"""The benchmarks that wait for a GPU run here, small, so that they run there unattended."""

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.faults.killing import slow
from tests.processes import run_fork

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


def run_program(path: Path, *arguments: str) -> None:
    """Runs a benchmark as its own process would, in this one, which has imported its libraries already."""
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import measuring

    start = subprocess.run

    def start_or_fork(command: list[str], **options) -> subprocess.CompletedProcess:
        if command[0] != sys.executable:
            return start(command, **options)
        printed = run_fork(tmp_path / "log", run_program, *command[1:])
        return subprocess.CompletedProcess(command, 0, printed.splitlines()[-1])

    monkeypatch.setattr(subprocess, "run", start_or_fork)
    monkeypatch.setattr(measuring, "matmul_rate", partial(measuring.matmul_rate, size=256))
    monkeypatch.setattr(sys, "argv", sys.argv)  # put back afterwards

    def run(name: str, *arguments: str) -> dict:
        output = tmp_path / "result.json"
        run_program(BENCHMARKS / f"{name}.py", *arguments, "--output", str(output))
        return json.loads(output.read_text())

    return run


def test_loss_step_times_and_weighs_every_contender(run):
    names = ["plain torch nce", "nce chunked", "nce streamed", "hardnce streamed", "siglip streamed"]  # none is fused
    few = ("--batch_sizes", "64", "--rounds", "1")
    result = run("loss_step", "--contenders", *names, *few, "--memory_sizes")
    timed = {row["contender"]: row for row in result["times"]}
    assert set(names) == timed.keys()
    assert all(row["seconds"] > 0 and row["of_plain"] > 0 for row in timed.values())
    weighed = run("loss_step", "--contenders", names[0], names[2], *few, "--memory_sizes", "2048")
    peaks = {row["contender"]: row["peak_mib"] for row in weighed["memory"]}
    assert peaks.keys() == {names[0], names[2]} and all(peak > 0 for peak in peaks.values())


@slow
def test_train_step_measures_plain_and_cached(run):
    arguments = ("--towers", "resnet50", "--batch_size", "2", "--mini_batch", "1", "--warmup", "0", "--rounds", "1")
    result = run("train_step", *arguments)
    assert [row["way"] for row in result["steps"]] == ["plain", "gradient cache"]
    assert all(20 < row["gflop_of_a_pair"] < 30 and row["images_per_second"] > 0 for row in result["steps"])


@slow
def test_diagnostics_cost_compares_steps_with_and_without(run):
    result = run("diagnostics_cost", "--rounds", "1", "--every", "2")
    assert result["every"] == 2 and result["ratio_measured"] > 0
    assert 1 < result["ratio_by_their_own_time"] and result["milliseconds_of_the_diagnostics"] > 0
