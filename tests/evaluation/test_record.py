"""One form of an evaluation, whoever wrote it; files of version 0.1 are read into it."""

import json
from pathlib import Path

import pytest
import torch

from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.judge import Texts, judge_embeddings
from hf_vse.evaluation.record import FORMAT, evaluation_of, plain_record, read_evaluation
from hf_vse.evaluation.tables import evaluation_table

RESULTS = Path(__file__).parents[2] / "scripts" / "benchmarks" / "results"
MACHINE = {"versions": {"hf_vse": "0.1.0"}, "device": "a CPU", "threads": 2, "commit": None, "processes": 1}


def judged(name: str, seed: int) -> dict:
    torch.manual_seed(seed)
    owner = torch.arange(6).repeat_interleave(2)
    images = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    pairs = PairEmbeddings(images, images[owner], owner, torch.arange(6), 0)
    return judge_embeddings(pairs, Texts(), name=name, facts={"family": "tiny"}, source="mine", split="test").record


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_what_is_written_is_read_again(tmp_path):
    evaluation = evaluation_of({"a": judged("a", 0), "b": judged("b", 1)}, MACHINE, [{"first": "a", "second": "b"}])
    assert evaluation["format"] == FORMAT and evaluation.keys() == {"format", "metrics", "comparisons", "environment"}
    assert read_evaluation(write(tmp_path / "two.json", evaluation)) == json.loads(json.dumps(evaluation))


def test_files_of_version_0_1_are_read(tmp_path):
    """It wrote one record alone, several in a list, and those of a run by split, without model and data."""
    one, other = judged("org/one", 0), judged("org/other", 1)
    alone = read_evaluation(write(tmp_path / "one.json", one | {"environment": MACHINE}))
    assert alone == {"format": FORMAT, "metrics": {"org/one": one}, "environment": MACHINE}
    both = {"models": [one, other], "comparisons": [{"first": "org/one"}], "environment": MACHINE}
    expected = evaluation_of({"org/one": one, "org/other": other}, MACHINE, [{"first": "org/one"}])
    assert read_evaluation(write(tmp_path / "both.json", both)) == expected
    assert evaluation_table(alone).startswith("mine test, 6 images, 12 captions")
    told = {key: one[key] for key in ("images", "captions", "broken_images", "fingerprint", "metrics", "chance")}
    run = {"dataset": "scenes", "metrics": {"validation": told}, "stages": [], "environment": MACHINE}
    found = read_evaluation(write(tmp_path / "run.json", run))
    assert found["metrics"] == {"validation": {"dataset": "scenes", "split": "validation"} | told}
    assert found == run | {"format": FORMAT, "metrics": found["metrics"]}


@pytest.mark.parametrize("name", ["quickstart", "flickr8k_features_single-0", "judged_flickr8k"])
def test_recorded_files_are_read(name):
    found = read_evaluation(RESULTS / f"{name}.json")
    assert found["format"] == FORMAT and all(record["metrics"]["rsum"] > 200 for record in found["metrics"].values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 3, "metrics": {}}, "format 3 is not known; 1 and 2 are"),
        ({"format": "new"}, "format 'new' is not known"),
        ({"rows": []}, "holds no evaluation: it lacks metrics"),
        ({"models": ["a"]}, "holds no evaluation"),
        ({"metrics": [1]}, "holds no evaluation"),
        ({"format": 2, "metrics": {"a": {}}}, "metrics of 'a' lack the number i2t_r1"),
        ({"format": 2, "metrics": {"a": {"metrics": {"rsum": 1}}}}, "metrics of 'a' lack the number i2t_r1"),
        ({"metrics": {"rsum": 1.0}}, "metrics of '' lack the number i2t_r1"),
        ([1], "one.json"),
    ],
)
def test_other_files_are_refused_in_a_line(content, message, tmp_path):
    with pytest.raises(ValueError) as refused:
        read_evaluation(write(tmp_path / "one.json", content))
    assert message in str(refused.value) and "one.json" in str(refused.value) and "\n" not in str(refused.value)


def test_every_maker_gives_the_entries_that_a_plain_record_has():
    metrics = judged("a", 0)["metrics"]
    plain = plain_record(metrics, {}, images=6, captions=12)
    assert list(plain) == list(judged("a", 0))[: len(plain)]
    assert plain["title"] == "6 images, 12 captions" and not plain["official"]
