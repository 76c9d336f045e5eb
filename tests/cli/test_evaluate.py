"""`hf-vse evaluate` of whatever people have: models, adapters of their own, arrays."""

import json
from typing import get_args

import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import save_file

from hf_vse.cli.evaluate import FOILS
from hf_vse.cli.main import main
from hf_vse.evaluation.composition.choice import OWN_FOILS
from hf_vse.evaluation.composition.published import PublishedName
from hf_vse.evaluation.metrics import retrieval_metrics
from hf_vse.files import read_json
from tests.cli.test_cli import only, result
from tests.conftest import make_pairs
from tests.processes import in_processes

ADAPTER = """
import numpy as np
from hf_vse import Encoder

class Brightness(Encoder):
    def encode_images(self, images):
        return np.array([[np.asarray(image).mean(), 100.0] for image in images])

    def encode_texts(self, texts):
        return np.array([[len(text), 10.0] for text in texts])
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pairs"
    DatasetDict({"train": make_pairs(30, first_id=50), "test": make_pairs(12)}).save_to_disk(str(folder))
    return folder


def test_models_are_compared_in_a_report(capsys, tiny_model, pairs, tmp_path):
    adapter = tmp_path / "mine.py"
    adapter.write_text(ADAPTER)
    asked = ["--dataset", pairs, "--report", tmp_path / "report", "--output", tmp_path / "both.json"]
    asked += ["--correction", "qbnorm", "--embeddings", tmp_path / "kept"]
    found = result(capsys, "evaluate", tiny_model, f"{adapter}:Brightness", *asked)
    first, second = found["metrics"].values()
    assert (first["model"], second["model"]) == (str(tiny_model), f"{adapter}:Brightness")
    assert second["model_facts"] == {} and first["model_facts"]["family"] == "hf_vse"
    [comparison] = found["comparisons"]
    difference = second["metrics"]["rsum"] - first["metrics"]["rsum"]
    assert comparison["metrics"]["rsum"]["difference"] == pytest.approx(difference)
    for record in found["metrics"].values():
        assert {"protocols", "intervals", "diagnostics", "composition", "corrected"} <= record.keys()
        low, high = record["intervals"]["rsum"]
        assert low <= record["metrics"]["rsum"] <= high and record["official"] is False
    assert json.loads((tmp_path / "both.json").read_text()) == found
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "mine.py:Brightness" in page and "QB-Norm" in page
    assert len(list((tmp_path / "kept").glob("texts-*/*.arrow"))) == 4  # the test split and the bank, of two models


def test_arrays_are_judged_with_and_without_their_data(capsys, pairs, tmp_path):
    images, texts = torch.randn(12, 4), torch.randn(60, 4)
    owner = torch.arange(12).repeat_interleave(5)
    save_file({"image_embeds": images, "text_embeds": texts, "text_to_image": owner}, tmp_path / "mine.safetensors")
    options = ["--output", tmp_path / "metrics.json"]
    alone = only(result(capsys, "evaluate", tmp_path / "mine.safetensors", *options, "--diagnostics"))
    unit = torch.nn.functional.normalize
    assert alone["metrics"] == retrieval_metrics(unit(images), unit(texts), owner)
    assert alone["fingerprint"] is None and "geometry" in alone["diagnostics"]
    asked = ["evaluate", tmp_path / "mine.safetensors", "--dataset", pairs, "--diagnostics", *options]
    known = only(result(capsys, *asked))
    assert known["metrics"] == alone["metrics"] and known["fingerprint"]
    assert "breakdown" in known["diagnostics"] and "breakdown" not in alone["diagnostics"]
    refused = ["evaluate", tmp_path / "mine.safetensors", "--dataset", pairs, "--split", "train", *options]
    assert main([*map(str, refused)]) == 1
    assert "holds 12 images and 60 texts, the split 30 and 150" in capsys.readouterr().err


def test_classes_and_foils(capsys, tiny_model, tmp_path):
    for row, picture in enumerate(make_pairs(6)["image"]):
        folder = tmp_path / "classes" / ("red_star" if row % 2 else "ring")
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{row}.png")
    templates = tmp_path / "templates.txt"
    templates.write_text("a drawing of a {}\nhere is a {}\n\n")
    options = ["--labelled", tmp_path / "classes", "--templates", templates, "--foils", "auto"]
    options += ["--dataset", "scenes", "--output", tmp_path / "metrics.json"]
    found = only(result(capsys, "evaluate", tiny_model, *options))
    assert found["zero_shot"]["images"] == 6 and found["zero_shot"]["chance"]["top1"] == 50
    assert found["zero_shot"]["templates"] == ["a drawing of a {}", "here is a {}"]
    assert set(found["zero_shot"]["per_class"]) == {"red star", "ring"}
    assert found["composition"]["source"] == "scenes" and "swap_colour" in found["composition"]["kinds"]


def run_here(rank: int, words: list[str]) -> None:
    assert main(words) == 0


def test_two_processes_judge_as_one_and_leave_one_record(capsys, tiny_model, pairs, tmp_path):
    asked = [tiny_model, "--dataset", pairs, "--split", "train", "--diagnostics", "--json"]
    alone = result(capsys, "evaluate", *asked, "--output", tmp_path / "one.json")
    words = [str(each) for each in (*asked, "--output", tmp_path / "two.json", "--embeddings", tmp_path)]
    in_processes(2, run_here, ["evaluate", *words])
    together = read_json(tmp_path / "two.json")
    assert together["environment"]["processes"] == 2 and alone["environment"]["processes"] == 1
    for part in ("metrics", "intervals", "protocols", "fingerprint", "images", "captions"):
        assert only(together)[part] == only(alone)[part], part
    kept = sorted(tmp_path.glob("*-*/*.arrow"))
    assert len(kept) == 4  # images and texts of each process
    again = result(capsys, "evaluate", *asked, "--output", tmp_path / "one.json", "--embeddings", tmp_path)
    assert only(again)["metrics"] == only(alone)["metrics"]
    assert sorted(tmp_path.glob("*-*/*.arrow")) == kept, "one process finds what two have written"


def test_foils_that_can_be_named_are_those_there_are():
    assert set(FOILS) == {"none", *OWN_FOILS, *get_args(PublishedName)}


def test_what_cannot_be_asked_is_refused(capsys, tiny_model, pairs, tmp_path):
    for options, message in (
        (["--foils", "sugarcrepe"], "foils='sugarcrepe' needs foils_dir"),
        (["--foils", "scenes"], "for the built-in scenes"),
        (["--labelled", tmp_path / "nothing"], "does not exist"),
    ):
        words = ["evaluate", tiny_model, "--dataset", pairs, "--output", tmp_path / "metrics.json", *options]
        assert main([*map(str, words), "--quiet"]) == 1
        assert message in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--dataset", str(pairs)]) == 1
    assert "holds no config.json; understood are" in capsys.readouterr().err
