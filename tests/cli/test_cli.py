"""The command as people and programs use it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPImageProcessorPil

from hf_vse.cli import demo
from hf_vse.cli.command import Result
from hf_vse.cli.main import COMMANDS, main, show
from hf_vse.data.spec import DataSpec
from hf_vse.search.gallery import GalleryIndex
from tests.conftest import make_pairs
from tests.faults.killing import slow


def result(capsys, *argv) -> dict:
    """What a command gives with --json."""
    code = main([*map(str, argv), "--json", "--quiet"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def only(evaluation: dict) -> dict:
    """The record of an evaluation of one model."""
    [record] = evaluation["metrics"].values()
    return record


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pairs"
    DatasetDict({"train": make_pairs(8), "test": make_pairs(12)}).save_to_disk(str(folder))
    return folder


def test_help_needs_no_heavy_library():
    code = f"""
import sys
from hf_vse.cli.main import main
for words in (["--help"], *([name, "--help"] for name in {list(COMMANDS)!r})):
    assert main(words) == 0, words
heavy = {{"torch", "transformers", "datasets", "numpy", "faiss", "gradio", "huggingface_hub"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        of_command = done.stdout.split(f"usage: hf-vse {name} ")[1].split("usage:")[0]
        assert f"hf-vse {name}" in of_command.split("examples:")[1]


def test_misuse_has_its_own_exit_code(capsys):
    for words, message in (
        ([], ""),
        (["serach"], "unknown command 'serach'"),
        (["index", "a"], "--model"),
        (["push", "only_one"], "repo_id"),
        (["data", "push"], "push needs organisation/name"),
        (["evaluate"], "give one model"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_index_and_search(capsys, tiny_model, photographs, tmp_path, monkeypatch):
    index = tmp_path / "index"
    made = result(capsys, "index", photographs, index, "--model", tiny_model)
    assert made["items"] == 12 and made["plan"]["kind"] == "exact" and made["broken"] == []
    by_image = ["search", index, "--image", photographs / "city/02.png", "-k", 4]
    [found] = result(capsys, *by_image)
    assert found["results"][0] == {"score": pytest.approx(1, abs=1e-4), "item": found["results"][0]["item"]}
    assert found["results"][0]["item"]["file"] == "city/02.png" and len(found["results"]) == 4
    two = result(capsys, "search", index, "a red circle", "a blue star", "-k", 2, "--where", "year>=2006")
    assert [query["text"] for query in two] == ["a red circle", "a blue star"]
    assert all(each["item"]["year"] >= 2006 for query in two for each in query["results"])

    assert main(["search", str(index), "a red circle", "-k", "3", "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red circle" and len(lines) == 4 and ".png" in lines[1]
    assert (tmp_path / "sheet.png").stat().st_size > 3000
    plain = (tmp_path / "sheet.png").read_bytes()
    words = ["search", str(index), "a red circle", "-k", "3", "--sheet", str(tmp_path / "sheet.png"), "--relevance"]
    assert main(words) == 0 and (tmp_path / "sheet.png").read_bytes() != plain
    assert main(words[:5] + words[7:]) != 0  # without a sheet
    assert "--relevance shows on a contact sheet what speaks for a sentence" in capsys.readouterr().err

    monkeypatch.setattr("sys.stdin", iter(["a red circle\n", "\n", "a blue star\n"]))
    assert [query["text"] for query in result(capsys, "search", index, "-")] == ["a red circle", "a blue star"]


def test_what_an_index_leaves_out_is_said(capsys, caplog, tiny_model, photographs, tmp_path):
    (photographs / "IMG_1.HEIC").write_bytes(b"heic")
    with (photographs / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "none.png"}')
    words = ["index", str(photographs), str(tmp_path / "index"), "--model", str(tiny_model), "--quiet"]
    assert main(words) == 0
    said = "left out  1 pictures of a kind that is not read, the first IMG_1.HEIC"
    assert said in capsys.readouterr().out and "1 (none.png) name no image in the folder" in caplog.text
    made = result(capsys, *words)
    assert made["passed_over"] == {"count": 1, "first": ["IMG_1.HEIC"]} and made["unmatched"]["count"] == 1


def test_an_array_of_embeddings_is_indexed(capsys, tiny_model, tmp_path):
    embeds = np.eye(16, dtype=np.float32)
    np.save(tmp_path / "embeds.npy", embeds)
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"file": f"{row}.jpg"}) for row in range(16)))
    options = ["--model", tiny_model, "--items", tmp_path / "items.jsonl"]
    made = result(capsys, "index", tmp_path / "embeds.npy", tmp_path / "index", *options)
    assert made["items"] == 16
    [found] = result(capsys, "search", tmp_path / "index", "red", "-k", 16)
    scores = {each["item"]["file"]: each["score"] for each in found["results"]}
    assert sum(score**2 for score in scores.values()) == pytest.approx(1, abs=1e-3)
    assert main(["search", str(tmp_path / "index"), "red", "--sheet", "x.png"]) == 1


def test_a_data_set_is_shown_evaluated_indexed_and_turned_into_features(capsys, tiny_model, pairs, tmp_path):
    shown = result(capsys, "data", "show", "--dataset", pairs)
    assert shown["test"]["images"] == 12 and shown["train"]["captions"] == 40

    found = result(capsys, "evaluate", tiny_model, "--dataset", pairs, "--output", tmp_path / "metrics.json")
    assert only(found)["images"] == 12 and json.loads((tmp_path / "metrics.json").read_text()) == found

    assert result(capsys, "index", tmp_path / "index", "--dataset", pairs, "--model", tiny_model)["items"] == 12
    sheet = ["--sheet", tmp_path / "sheet.png"]
    [found] = result(capsys, "search", tmp_path / "index", "a red circle", *sheet)
    assert found["results"][0]["item"]["captions"] and (tmp_path / "sheet.png").is_file()

    written = result(capsys, "features", "--dataset", pairs, "--model", tiny_model, "--output", tmp_path / "features")
    assert written["rows"] == {"train": 8, "test": 12}
    again = result(capsys, "data", "show", "--dataset", tmp_path / "features")
    assert again["test"]["fingerprint"] == shown["test"]["fingerprint"]
    assert "image_features" in again["test"]["columns"] and "image" not in again["test"]["columns"]


def test_features_of_a_pretrained_tower_follow_the_split_file(capsys, tiny_resnet, tmp_path):
    """A row for every image of the JSON in its order, zero where there is none to read."""
    tower = AutoModel.from_config(AutoConfig.for_model(**tiny_resnet)).eval()
    tower.save_pretrained(tmp_path / "tower")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "tower")
    pictures, images = make_pairs(150)["image"][:], []
    for row in reversed(range(150)):
        pictures[row].save(tmp_path / f"{row}.png")
        image = {"filename": f"{row}.png", "split": "test" if row % 2 else "train", "imgid": row, "sentids": [row]}
        images.append(image | {"sentences": [{"raw": f"picture {row}"}]})
    (tmp_path / "7.png").write_bytes(b"broken")
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    options = ["--dataset", "flickr8k", "--data_dir", tmp_path, "--output", tmp_path / "features.npy"]
    made = result(capsys, "features", *options, "--image_tower", tmp_path / "tower")
    assert made["shape"] == [150, 16]
    features = np.load(tmp_path / "features.npy")
    with torch.no_grad():
        pixels = AutoImageProcessor.from_pretrained(tmp_path / "tower")(pictures, return_tensors="pt")
        expected = tower(**pixels).pooler_output.flatten(1).numpy()[::-1].copy()
    expected[150 - 1 - 7] = 0
    np.testing.assert_allclose(features, expected, atol=2e-3)
    shown = result(capsys, "data", "show", *options[:4], "--features", tmp_path / "features.npy")
    assert shown["train"]["images"] == shown["test"]["images"] == 75


def test_the_page_gets_its_photographs_in_one_file(photographs, tmp_path, monkeypatch):
    """Those of files as well as embedded ones, without the broken one."""
    monkeypatch.setattr(demo, "cache", lambda: tmp_path)
    (photographs / "city/00.png").write_bytes(b"broken")
    of_files = {"data_dir": photographs, "max_broken_share": 0.2}
    generated = {"num_train": 5, "num_eval": 5, "image_size": 32}
    for source, split, settings, count in (("imagefolder", "train", of_files, 9), ("scenes", None, generated, 5)):
        path = demo.write_parquet(DataSpec(source, settings, split=split))
        rows = Dataset.from_parquet(str(path))
        assert len(rows) == count and rows[0]["image"].size == (32, 32) and rows[0]["captions"]
        assert all(row["image"]["bytes"] for row in rows.cast_column("image", Image(decode=False)))


def test_refusals_are_one_line_and_json(capsys, tiny_model, tmp_path):
    for words, message in (
        (["search", tmp_path, "x"], "holds no gallery"),
        (["index", tmp_path / "none", tmp_path / "i", "--model", tiny_model], "is not a folder"),
        (["evaluate", tiny_model, "--dataset", "coco", "--data_dir", tmp_path / "none"], "does not exist"),
        (["train", "--loss_tpye", "nce"], "did you mean 'loss_type'?"),
        (["train", "nonsense.yaml"], "recipe nonsense.yaml does not exist"),
        (["push", tmp_path, "org/name"], str(tmp_path)),
    ):
        assert main([*map(str, words), "--json"]) == 1
        printed = capsys.readouterr()
        assert message in json.loads(printed.out)["error"]
        assert printed.err.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in printed.err


def test_names_that_are_no_unicode_are_printed(capsys):
    name = os.fsdecode(b"caf\xe9.png")
    show(Result([name, "é"], f"{name} é"), as_json=True)
    assert json.loads(capsys.readouterr().out) == [name, "é"]
    show(Result([name], f"{name} é"), as_json=False)
    assert capsys.readouterr().out == "caf\\udce9.png é\n"


@slow
def test_two_processes_build_the_gallery_of_one(capsys, tiny_model, photographs, tmp_path):
    result(capsys, "index", photographs, tmp_path / "one", "--model", tiny_model)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "hf_vse.cli", "index", photographs, tmp_path / "two", "--model", tiny_model, "--json"]
    done = subprocess.run(
        [*launcher, *command], capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["items"] == 12  # one line, of the first process
    assert "process 1 of 2 encodes 6 of 12 images" in done.stderr
    one, two = GalleryIndex.load(tmp_path / "one"), GalleryIndex.load(tmp_path / "two")
    assert one.items == two.items
    np.testing.assert_allclose(one.embeds, two.embeds, atol=1e-6)
