import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from hf_vse.cli.main import main
from hf_vse.data.scene_catalogues import another_view, distinct_scenes, write_catalogues
from hf_vse.data.scene_truth import random_stream, sample_scene, visible_colours


def lines(folder: Path) -> dict[str, dict]:
    rows = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    return {row["file_name"]: row for row in rows}


def pairs(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(line["a"], line["b"]) for line in csv.DictReader(file)]


def test_truth_is_that_of_the_entities(tmp_path):
    record = write_catalogues(tmp_path / "made", 6, strangers=4, duplicates=3, image_size=16)
    a, b = lines(tmp_path / "made" / "a"), lines(tmp_path / "made" / "b")
    assert record["records"] == [len(a), len(b)] == [13, 10]
    entity = {name: {file: row["entity"] for file, row in of.items()} for name, of in (("a", a), ("b", b))}
    expected = {(x, y) for x, e in entity["a"].items() for y, f in entity["b"].items() if e == f}
    assert len(expected) == 6
    expected |= {(x, "") for x, e in entity["a"].items() if e not in entity["b"].values()}
    expected |= {("", y) for y, f in entity["b"].items() if f not in entity["a"].values()}
    assert sorted(pairs(Path(record["pairs"]))) == sorted(expected) and len(expected) == 6 + 7 + 4
    same = {(x, y) for x, e in entity["a"].items() for y, f in entity["a"].items() if e == f and x < y}
    given = {pair for pair in pairs(Path(record["duplicates"])) if pair[1]}
    assert given == same and len(same) == 3
    assert {name for pair in pairs(Path(record["duplicates"])) for name in pair if name} == set(a)
    for file, row in a.items():
        assert Image.open(tmp_path / "made" / "a" / file).size == (16, 16) and len(row["captions"]) == 2


def test_a_training_part_shows_other_entities_and_changes_nothing_else(tmp_path):
    with_part = write_catalogues(tmp_path / "with", 4, training=5, views=3, image_size=16)
    write_catalogues(tmp_path / "without", 4, image_size=16)
    assert with_part["training_records"] == 15
    rows = lines(tmp_path / "with" / "train").values()
    assert sorted(Counter(row["entity"] for row in rows).values()) == [3] * 5
    judged = {row["entity"] for name in "ab" for row in lines(tmp_path / "with" / name).values()}
    assert len(judged) == 6 and not judged & {row["entity"] for row in rows}
    for part in ("a", "b"):
        files = [sorted((tmp_path / name / part).iterdir()) for name in ("with", "without")]
        assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_a_view_shows_the_same_objects_elsewhere():
    changed = 0
    for index in range(50):
        scene = sample_scene(0, index, "medium", "test")
        view = another_view(scene, random_stream(0, "a", index, "view"))
        kinds = [[(each.shape, each.colour, each.texture) for each in of.objects] for of in (scene, view)]
        assert kinds[0] == kinds[1]
        assert len({(each.row, each.column) for each in view.objects}) == len(view.objects)
        assert {each.colour for each in view.objects} <= set(visible_colours(view.background))
        changed += view != scene
    assert changed > 45


def test_the_same_seed_makes_the_same_catalogues(tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_catalogues(tmp_path / name, 4, seed=seed, image_size=16)
    contents = [
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))] for name in ("one", "same", "other")
    ]
    assert contents[0] == contents[1] != contents[2]


def test_what_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="full holds something"):
        write_catalogues(tmp_path / "full", 4)
    with pytest.raises(ValueError, match="duplicates=3 are of the 1 strangers"):
        write_catalogues(tmp_path / "new", 4, duplicates=3)
    monkeypatch.setattr("hf_vse.data.scene_catalogues.write_truth", lambda *names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_catalogues(tmp_path / "new", 2, image_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_there_are_not_endless_entities(monkeypatch):
    monkeypatch.setattr("hf_vse.data.scene_catalogues.TRIES", 2)
    monkeypatch.setattr("hf_vse.data.scene_catalogues.sample_scene", lambda *key: sample_scene(0, 1, "easy", "test"))
    with pytest.raises(ValueError, match="not more than 1 entities of difficulty 'easy'"):
        list(distinct_scenes(0, "easy"))


def test_the_command_writes_them(tmp_path, capsys):
    assert main(["data", "catalogues", str(tmp_path / "made"), "--records", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == [5, 5]
    assert main(["data", "catalogues", str(tmp_path / "made")]) == 1 and "holds something" in capsys.readouterr().err
    assert main(["data", "catalogues"]) == 2 and main(["data", "show", "x"]) == 2
