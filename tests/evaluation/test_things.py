"""`evaluate --identify` on scenes drawn anew: columns, labelled folders, distractors, and what training has seen."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset

from hf_vse.cli.main import main
from hf_vse.data.scene_catalogues import write_catalogues
from hf_vse.data.sources import load_pairs
from hf_vse.embed.run import encode_images
from hf_vse.evaluation.identification import identification_metrics
from hf_vse.evaluation.things import of_unseen, things_of_split
from tests.link.conftest import ENCODER
from tests.link.scenes_encoder import Scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """`train` with four views of each of 30 entities, `a` with others; `classes` with a folder for each of six."""
    folder = tmp_path_factory.mktemp("things") / "catalogues"
    write_catalogues(folder, 20, training=30)
    for line in (folder / "train" / "metadata.jsonl").read_text().splitlines():
        each = json.loads(line)
        if each["entity"] < "e00036":
            (folder / "classes" / each["entity"]).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "train" / each["file_name"], folder / "classes" / each["entity"])
    return folder


def evaluated(scenes, tmp_path, capsys, *words, split="train"):
    output = tmp_path / "record.json"
    data = ("--dataset", "imagefolder", "--data_dir", str(scenes / "train"), "--split", split)
    code = main(["evaluate", ENCODER, *data, *map(str, words), "--output", str(output), "--quiet"])
    said = capsys.readouterr()
    return code, said, json.loads(output.read_text()) if code == 0 else None


def test_the_command_identifies_the_entities_of_the_data(scenes, tmp_path, capsys):
    words = ("--identify", "--distractors", scenes / "a", "--report", tmp_path / "report", "--foils", "none")
    code, said, record = evaluated(scenes, tmp_path, capsys, *words)
    found = next(iter(record["metrics"].values()))["identification"]
    split = load_pairs("imagefolder", data_dir=str(scenes / "train"))["train"]
    vectors = [
        encode_images(Scenes(), rows).embeds.numpy()
        for rows in (
            split.select_columns(["image"]),
            [{"image": str(path)} for path in sorted((scenes / "a").glob("*.png"))],
        )
    ]
    labels = np.unique(split.with_format(None)["entity"][:], return_inverse=True)[1]
    expected = identification_metrics(vectors[0], labels, distractors=vectors[1])
    of_command = {name: found[name] for name in expected}
    assert json.dumps(of_command["open_set"]) != "" and of_command["classes"] == 30 and of_command["images"] == 120
    for part, name in (
        ("verification", "roc_auc"),
        ("verification", "tar"),
        ("one_shot", "top1"),
        ("open_set", "tpir"),
    ):
        assert found[part][name] == pytest.approx(expected[part][name], abs=1.0), name
    assert found["one_shot"]["top1"] > 5 * found["one_shot"]["chance"] and found["verification"]["roc_auc"] > 0.6
    assert found["one_shot"]["with_distractors"][-1]["distractors"] == len(vectors[1])
    assert (found["of"], found["left_out"], found["trained_on"]) == ("entity", 0, 0)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "30 things with 120 images" in page and f"<th>with {len(vectors[1])} distractors</th>" in page
    low, high = found["open_set"]["tpir_interval"]
    assert f"{found['open_set']['tpir']:.1f} <small>({low:.1f} to {high:.1f})</small>" in page
    assert "things: 30 with 120 images\n" in said.out and "one reference a thing: top-1" in said.out


def test_the_command_identifies_labelled_classes(scenes, tmp_path, capsys):
    words = ("--identify", "--labelled", scenes / "classes", "--references", 2)
    _, said, record = evaluated(scenes, tmp_path, capsys, *words)
    found = next(iter(record["metrics"].values()))["identification"]
    assert (found["of"], found["references"], found["classes"], found["images"]) == ("labelled", 2, 6, 24)
    assert "2 references a thing" in said.out
    code, said, _ = evaluated(scenes, tmp_path, capsys, *words, split="validation")  # whose train split shows them all
    assert code == 1 and "24 images 24 show things that the training split shows too" in said.err


def test_things_that_training_shows_are_left_out():
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(8, 4)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    split = Dataset.from_dict({"entity": ["a", "b", "c", "a", "b", "c", None, ""]})
    train = Dataset.from_dict({"entity": ["c", None, "d"]})
    found = things_of_split(embeds, range(8), split, train, "entity", resamples=5)
    assert (found["classes"], found["images"], found["left_out"], found["trained_on"]) == (2, 4, 4, 2)
    expected = identification_metrics(embeds[[0, 1, 3, 4]], np.array([0, 1, 0, 1]), resamples=5)
    assert {name: found[name] for name in expected} == expected
    with pytest.raises(ValueError, match="of 3 images 1 show things that the training split shows too"):
        of_unseen(embeds[:3], ["a", None, ""], {"a"})


def test_the_command_refuses_in_one_line(scenes, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, says in (
        (("--distractors", scenes / "a"), "has no effect where nothing is identified: add --identify"),
        (("--entity", "objects"), "has no effect where nothing is identified: add --identify"),
        (("--identify", "--entity", "brand"), "the data have no column 'brand'"),
        (("--identify", "--distractors", empty), "holds no image"),
    ):
        code, said, _ = evaluated(scenes, tmp_path, capsys, *words)
        assert code == 1 and says in said.err.strip().splitlines()[-1]
