"""The benchmarks that wait for a GPU run here, small, so that they run there unattended."""

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vse.data.karpathy import read_split_file
from hf_vse.data.scene_catalogues import write_catalogues
from hf_vse.data.sources import load_pairs
from hf_vse.embed.memory import reuse_freed_memory
from hf_vse.link.candidates import find_candidates
from hf_vse.link.labels import read_labels
from hf_vse.link.records import embed_records, read_records
from hf_vse.link.run import link_records
from tests.faults.killing import slow
from tests.link.conftest import ENCODER
from tests.link.scenes_encoder import Scenes
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


def test_recipes_that_were_not_run_again_keep_their_record(run, tmp_path):
    old = {"B": {"runs": {"0": "earlier"}}}
    earlier = {"recipes": {"some": old, "other": old}, "tried_on_fold_A": [1]}
    (tmp_path / "result.json").write_text(json.dumps(earlier))
    record = {"metrics": {"validation": {"metrics": {"rsum": 3.0}, "fingerprint": "x"}}, "environment": {}}
    (tmp_path / "some-B-10").mkdir()
    (tmp_path / "some-B-10" / "metrics.json").write_text(json.dumps(record | {"stages": [], "recipe": {}}))
    words = ["--data_dir", "DIR", "--work_dir", str(tmp_path), "--collect", "--recipes", "some", "other", "new"]
    found = run("flickr8k_models", *words)
    assert list(found["recipes"]["some"]["B"]["runs"]) == ["10"] and found["tried_on_fold_A"] == [1]
    assert found["recipes"]["other"] == old and found["recipes"]["new"] == {"B": {"runs": {}}}


def test_cold_starts_are_of_the_tree_that_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cold_start

    cold_start.check_tree(cold_start.ROOT)
    monkeypatch.setenv("PYTHONPATH", str(cold_start.ROOT))
    for tree in (tmp_path / "other", tmp_path / "empty"):
        tree.mkdir()
    (tmp_path / "other" / "hf_vse").mkdir()
    (tmp_path / "other" / "hf_vse" / "__init__.py").touch()
    cold_start.check_tree(tmp_path / "other")
    with pytest.raises(SystemExit, match="was to be measured|No module named"):
        cold_start.check_tree(tmp_path / "empty")


@slow
def test_pointing_asks_where_with_and_without_mosaics(run, tmp_path):
    few = ("--num_train", "16", "--num_eval", "12", "--num_train_epochs", "1", "--per_device_train_batch_size", "16")
    result = run("pointing", str(tmp_path / "runs"), *few, "--seeds", "0")
    assert [each["way"] for each in result["runs"]] == ["plain", "mosaics"]
    for each in result["runs"]:
        assert 0 <= each["where"]["pointing"] <= 100 and each["where"]["pointing_by_chance"] == 11.11
        assert each["recipe"].get("mosaic_share", 0) == {"plain": 0, "mosaics": 0.5}[each["way"]]
        assert each["recalls"]["rsum"] > 0


def test_large_catalogues_and_many_things_are_measured(run):
    linked = run("link_scale", "--size", "2000", "--dim", "32", "--kind", "exact")
    assert linked["records"] == [2000, 2000] and linked["recall"] > 0.9 and linked["precision"] > 0.9
    judged = run("identification_scale", "--size", "200", "--dim", "64", "--noise", "0.5")
    assert judged["images"] == judged["distractors"] == 200 and judged["metrics"]["classes"] == 40
    assert judged["metrics"]["verification"]["same_pairs"] == 40 * 10
    assert judged["metrics"]["one_shot"]["top1"] > 90 and judged["peak_mib"] < 500


@pytest.fixture
def names(monkeypatch):
    """What a benchmark defines."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: runpy.run_path(str(BENCHMARKS / f"{name}.py"))


def test_faults_of_engines_tell_right_answers_from_wrong_ones(names):
    faults = names("engine_faults")
    state, count = faults["State"](1), faults["K"]
    rows, query = state.rows(), faults["queries"]()[0]
    best = sorted(rows, key=lambda name: -(rows[name] @ query))

    def wrong(found: list[str], *versions: int, scores: np.ndarray | None = None) -> str:
        scores = np.array([rows[name] @ query for name in found]) if scores is None else scores
        return faults["Judge"](*versions).wrong(query, scores, [{"file": name} for name in found])

    assert wrong(best[:count], 1) == ""
    assert wrong([*best[: count - 1], best[count]], 1) == f"{best[count - 1]} is missing"
    assert "9 different items of 10" in wrong([*best[: count - 1], best[0]], 1)
    assert "does not score" in wrong(best[:count], 1, scores=np.linspace(0.9, 0.1, count))
    other = faults["State"](2).rows()
    assert len(other) == len(rows) and 0 < sum(name not in other for name in rows) < len(rows)
    changed = next(name for name in best if name in other and not np.array_equal(rows[name], other[name]))
    without = [name for name in best[: count + 1] if name != changed][:count]
    assert wrong(best[:count], 1, 2) == "", "of a state that may be there"
    assert (wrong(without, 1, 2) == "") == (changed not in best[:count] or best[count] in without)


def test_answers_of_commands_are_compared_by_value(names):
    compare = names("engine_commands")["compare"]
    told = [("a", 0, {"score": 0.5, "items": [1, 2]}), ("b", 1, "error"), ("c", 0, [1.0])]
    near = [("a", 0, {"score": 0.5001, "items": [1, 2]}), *told[1:]]
    assert compare(told, near) == {"equal": 3, "refused_here": [], "different": []}
    others = [("a", 0, {"score": 0.51, "items": [1, 2]}), ("b", 0, []), ("c", 1, "like: [%1%] is not supported")]
    found = compare(told, others)
    assert found["equal"] == 0 and found["refused_here"] == ["c"]
    assert [each["command"] for each in found["different"]] == ["a", "b"]


def test_machines_for_billions_follow_from_measured_bytes(run, tmp_path):
    measured = {"client": 0, "servers": 3 * 2**30, "servers_empty": 2**30, "disk": 4 * 10**9}
    engine = {"plan": {"kind": "hnsw"}, "bytes": measured}
    of = {"vectors": 10**6, "engines": {"milvus": engine, "pgvector": engine | {"bytes": measured | {"index": 2**30}}}}
    (tmp_path / "engines.json").write_text(json.dumps(of))
    machine = ("--memory_gib", "256", "--disk_tb", "10", "--price", "2", "--object_price", "0.02")
    result = run("scaling_search", "--results", str(tmp_path), *machine)
    by_engine = {(row["engine"], row["index"]): row for row in result["needs"]["100 M"]}
    milvus, postgres = by_engine["milvus", "hnsw"], by_engine["pgvector", "hnsw"]
    assert milvus["memory_gib"] == 200 and milvus["disk_tb"] == 0.4, "2 GiB and 4 GB for a million"
    assert milvus["machines"] == 2, "three quarters of 256 GiB are 192"
    assert milvus["dollars_a_month"] == 2 * 2 * 730 + 0.02 * 400
    assert postgres["memory_gib"] == 300 and postgres["machines"] is None, "one server holds it, or none"
    disk = by_engine["milvus", "DiskANN"]
    assert disk["disk_tb"] == 0.41 and disk["memory_gib"] == round(0.225 * 2048 * 10**8 / 2**30, 1)


def test_peak_of_memory_counts_what_was_freed_before(run, tmp_path):
    """Freed blocks that are kept, as encoding on a CPU does, would hold the next ones without any growth."""
    import measuring

    def weigh() -> int:
        reuse_freed_memory()
        blocks = [torch.ones(2**25) for _ in range(2)]
        del blocks
        peak = measuring.peak_bytes_of(lambda: torch.ones(2**25))
        return int(not 2**27 <= peak < 1.2 * 2**27)

    run_fork(tmp_path / "log", weigh)


def test_equality_finds_what_differs(run, monkeypatch):
    import equality

    monkeypatch.setattr(equality, "FIELDS", {"nce": {}, "entity": {"positives": "entity"}})
    ways = {name: equality.ALONE[name] for name in ("chunked", "streamed")}
    found = equality.compared(ways, equality.Batch.found, torch.device("cpu"))
    assert 0 < found["nce"]["chunked"] < 1e-5 and 0 < found["nce"]["streamed"] < 1e-5
    assert found["entity"]["chunked"] < 1e-5 and "no loss execution 'streamed'" in found["entity"]["streamed"]

    def wrong(batch, execution):
        loss, gradient, temperature = batch.found(execution)
        return [loss, gradient * 1.01, temperature]

    assert equality.compared(ways, wrong, torch.device("cpu"))["nce"]["chunked"] == pytest.approx(0.01, rel=1e-3)


def test_linking_judges_as_the_command_does(run, tmp_path):
    """The half that judges, its metrics, and intervals around them."""
    import linking

    write_catalogues(tmp_path / "catalogues", 60, image_size=32)
    judged = linking.Judged(tmp_path / "catalogues", resamples=40)
    a, b = (embed_records(each, Scenes()) for each in judged.catalogues)
    found = find_candidates(a.embeds, b.embeds, len(b))
    strings = judged.by_strings()
    first, second = (judged.of("records", found, seed=seed) for seed in (3, 4))
    part = find_candidates(a.embeds[:, ::2], b.embeds[:, ::2], len(b))
    judged.of("records", part, seed=3, image_weight=0.0)  # counts for no seed
    assert first["metrics"] == link_records(a, b, pairs=judged.wanted.pairs).judged["vectors"]
    assert first["seed"] == 3 and first["intervals"] == second["intervals"]
    for name in linking.METRICS:
        low, high = first["intervals"][name]
        assert low <= first["metrics"][name] <= high and low < high
    intervals = judged.intervals()
    assert intervals["strings"] == {"f1": strings["intervals"]["f1"], "gain": [0, 0]}
    assert intervals["records"]["f1"] == first["intervals"]["f1"], "two equal seeds"
    low, high = intervals["records"]["gain"]
    assert low < first["metrics"]["f1"] - strings["metrics"]["f1"] < high


def test_link_photographs_judges_other_images_than_those_that_tune(run, tmp_path):
    """On scenes in Karpathy's layout; the numbers are those of the command with the same threshold."""
    pytest.importorskip("rapidfuzz")
    scenes = load_pairs("scenes", num_train=1, num_eval=40)["test"]
    (tmp_path / "data" / "images").mkdir(parents=True)
    images = []
    for row, scene in enumerate(scenes):
        scene["image"].save(tmp_path / "data" / "images" / f"{row}.png")
        sentences = [
            {"raw": text, "tokens": [], "sentid": 5 * row + place} for place, text in enumerate(scene["captions"])
        ]
        entry = {"imgid": row, "split": "val", "filename": f"{row}.png", "sentences": sentences}
        images.append(entry | {"sentids": [each["sentid"] for each in sentences]})
    (tmp_path / "data" / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "any", "images": images}))
    words = [str(tmp_path / "run"), "--model", ENCODER, "--data_dir", str(tmp_path / "data")]
    found = run("link_photographs", *words, "--links", "12", "--strangers", "4", "--resamples", "40")
    assert [row.get("image_weight") for row in found["rows"]] == [None, 0.5, 0.0, 1.0]
    assert found["judging_records"] == 16 and found["rows"][0]["intervals"]["gain"] == [0, 0]
    shown = {}
    for part in ("tune", "judge"):
        folder = tmp_path / "run" / "catalogues" / part
        a, b = (embed_records(read_records(folder / name), Scenes()) for name in "ab")
        known = read_labels(
            folder / "pairs.csv", *({name: row for row, name in enumerate(each.names)} for each in (a, b))
        )
        assert len(a) == len(b) == 16 and sum(None not in pair for pair in known) == 12
        assert {len(each) for each in a.texts} == {2} and {len(each) for each in b.texts} == {3}
        shown[part] = {text for each in (*a.texts, *b.texts) for text in each}
        size, whole = a.image(0).size, scenes[0]["image"].size
        assert size == tuple(round(0.7 * side) for side in whole)
    assert not shown["tune"] & shown["judge"]
    expected = link_records(a, b, pairs=known, threshold=found["rows"][1]["threshold"]).judged["vectors"]
    assert found["rows"][1]["metrics"] == pytest.approx(expected) and expected["f1"] > 0.3


def test_corners_of_an_image_lie_opposite(names):
    import link_photographs

    image = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    found = {
        (second, mirrored): np.array(link_photographs.corner(image, second, mirrored))[..., 0]
        for second in (False, True)
        for mirrored in (False, True)
    }
    assert {part.shape for part in found.values()} == {(7, 7)}
    first = {place: int(part[0, 0]) for place, part in found.items()}
    assert first == {(False, False): 0, (True, False): 33, (False, True): 3, (True, True): 30}
