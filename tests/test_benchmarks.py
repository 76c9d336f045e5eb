"""The benchmarks that wait for a GPU run here, small, so that they run there unattended."""

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from hf_vse.data.karpathy import read_split_file
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


@pytest.mark.parametrize("fold", ["A", "B"])
def test_resplit_keeps_what_is_judged_out_of_training_and_rows_in_place(fold, tmp_path, monkeypatch):
    of_split = {"train": 2500, "val": 10, "test": 5}
    images = [
        {"split": split, "filename": f"{split}{number}.jpg", "imgid": number, "sentids": [number],
         "sentences": [{"raw": f"a picture of {split} {number}"}]}
        for split, count in of_split.items() for number in range(count)
    ]  # fmt: skip
    given = tmp_path / "given"
    given.mkdir()
    (given / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    (given / "features.npy").write_bytes(b"x")
    monkeypatch.setattr(sys, "argv", sys.argv)
    options = ["--data_dir", str(given), "--fold", fold, "--output_dir", str(tmp_path / "new")]
    run_program(BENCHMARKS / "resplit.py", *options)
    entries, rows = read_split_file(tmp_path / "new" / "dataset_flickr8k.json")
    assert rows == len(images) and (tmp_path / "new" / "features.npy").read_bytes() == b"x"
    assert all(entry.filename == images[entry.row]["filename"] for entry in entries)
    judged = {entry.filename for entry in entries if entry.split == "validation"}
    trained = {entry.filename for entry in entries if entry.split == "train"}
    official = {f"val{number}.jpg" for number in range(10)}
    assert len(judged) == 1000 and all(name.startswith("train") for name in judged)
    assert not judged & trained and not {entry.split for entry in entries} & {"test"}
    assert trained == {f"train{number}.jpg" for number in range(2500)} - judged | (official if fold == "B" else set())


def test_folds_have_no_image_in_common():
    resplit = runpy.run_path(str(BENCHMARKS / "resplit.py"))["resplit"]
    images = [{"split": "train", "sentences": ["x"]} for _ in range(2500)]
    judged = [{row for row, image in enumerate(resplit(images, fold)) if image["split"] == "val"} for fold in "AB"]
    assert len(judged[0]) == len(judged[1]) == 1000 and not judged[0] & judged[1]


def test_models_of_flickr8k_are_collected_by_fold_and_seed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    collected = runpy.run_path(str(BENCHMARKS / "flickr8k_models.py"))["collected"]
    for name, rsum in {"some-B-0": 300.0, "some-B-10": 310.0, "some-A-0": 1.0}.items():
        record = {"metrics": {"validation": {"metrics": {"rsum": rsum}, "fingerprint": "x"}}, "environment": {}}
        record |= {"stages": [{"seconds": 2.0}, {"seconds": 3.0}], "recipe": {"data_dir": "DIR", "seed": 0}}
        record |= {"seeds": {"0": {"validation": {"rsum": rsum - 5}}}} if name == "some-B-0" else {}
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(record))
    found = collected("some", "B", tmp_path)
    assert found["rsum"]["mean"] == 305 and found["runs"]["0"]["rsum_of_seeds"] == {"0": 295}
    assert list(found["runs"]) == ["0", "10"] and found["runs"]["0"]["seconds"]["seconds"] == 5
    assert found["runs"]["0"]["recipe"] == {"seed": 0} and "rsum_of_seeds" not in found["runs"]["10"]
    assert "rsum" not in collected("some", "validation", tmp_path)


@slow
def test_pointing_asks_where_with_and_without_mosaics(run, tmp_path):
    few = ("--num_train", "16", "--num_eval", "12", "--num_train_epochs", "1", "--per_device_train_batch_size", "16")
    result = run("pointing", str(tmp_path / "runs"), *few, "--seeds", "0")
    assert [each["way"] for each in result["runs"]] == ["plain", "mosaics"]
    for each in result["runs"]:
        assert 0 <= each["where"]["pointing"] <= 100 and each["where"]["pointing_by_chance"] == 11.11
        assert each["recipe"].get("mosaic_share", 0) == {"plain": 0, "mosaics": 0.5}[each["way"]]
        assert each["recalls"]["rsum"] > 0
