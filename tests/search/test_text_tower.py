"""A gallery that carries the text tower of its model answers as the model does, and without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vse.cli.main import main
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.search.locations import open_store
from hf_vse.search.model import open_model
from hf_vse.search.text_tower import TextTower, open_text_tower, tower_folder

SENTENCES = ["a small red circle", "Two BLUE stars, and a word that nobody knows", "red " * 200, "circle"]
FORBIDDEN = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "pandas", "faiss")


@pytest.fixture
def gallery(fast_gallery, tmp_path):
    """A copy that a test may spoil."""
    return open_store(shutil.copytree(fast_gallery, tmp_path / "copy"))


def kept_in(gallery) -> Path:
    return tower_folder(gallery.folder, gallery.facts["digest"])


def test_answers_are_those_of_the_model(fast_gallery):
    gallery = open_store(fast_gallery)
    tower, model = open_text_tower(gallery), open_model(gallery, device="cpu")
    vectors = tower.query(SENTENCES)
    np.testing.assert_allclose(vectors, model.query(SENTENCES), atol=1e-5)
    assert np.abs(vectors - vectors.mean(axis=0)).max() > 1e-3, "the sentences differ"
    (scores, items), (by_model, items_by_model) = (
        gallery.search(each.query(SENTENCES), 3, each) for each in (tower, model)
    )
    assert items == items_by_model
    np.testing.assert_allclose(scores, by_model, atol=1e-5)


def test_search_imports_neither_torch_nor_transformers(fast_gallery):
    code = f"""
import sys
from hf_vse.cli.main import main
code = main(["search", {str(fast_gallery)!r}, "a small red circle", "--json"])
imported = [name for name in {FORBIDDEN!r} if name in sys.modules]
sys.exit(f"imported: {{imported}}" if imported else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["results"]


def test_the_model_is_opened_where_the_tower_is_not_enough(fast_gallery, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(
        "hf_vse.search.model.open_model",
        lambda *given, **options: opened.append(options) or open_model(*given, **options),
    )
    assert main(["search", str(fast_gallery), "circle", "--quiet"]) == 0 and not opened
    assert main(["search", str(fast_gallery), "circle", "--device", "cpu", "--quiet"]) == 0 and opened


def test_a_tower_of_another_model_is_refused(gallery):
    record = kept_in(gallery) / "queries.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"digest": "0" * 32}))
    with pytest.raises(ValueError, match="is not of the model that made the gallery: run"):
        open_text_tower(gallery)


@pytest.mark.parametrize("name", ["text_encoder.onnx", "tokenizer.json"])
def test_a_damaged_or_missing_file_is_named(gallery, name):
    file = kept_in(gallery) / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        TextTower(kept_in(gallery), gallery.facts["digest"])
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        TextTower(kept_in(gallery), gallery.facts["digest"])


def test_another_model_leaves_no_stale_tower(gallery, tiny_model, tmp_path, make_photographs):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    model = VSEModel.from_pretrained(other)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.save_pretrained(other)
    photographs = make_photographs(tmp_path)
    assert main(["index", str(photographs), str(gallery.folder), "--model", str(other), "--quiet"]) == 0
    assert not (gallery.folder / "queries").exists()
    assert open_text_tower(open_store(gallery.folder)) is None


def test_vectors_that_differ_from_the_model_are_not_kept(gallery, tiny_model, monkeypatch, capsys):
    exported = shutil.move(kept_in(gallery) / "text_encoder.onnx", gallery.folder.parent)
    shutil.rmtree(gallery.folder / "queries")
    monkeypatch.setattr(
        "hf_vse.hub.onnx_export.export_text_tower", lambda model, processor, path: shutil.copy(exported, path)
    )
    monkeypatch.setattr("hf_vse.search.text_tower.LARGEST_DIFFERENCE", -1.0)
    words = ["index", gallery.facts["root"], str(gallery.folder), "--model", str(tiny_model), "--fast_queries"]
    assert main([*words, "--quiet"]) == 1
    assert "the exported text tower of" in capsys.readouterr().err
    assert open_text_tower(gallery) is None and not list((gallery.folder / "queries").iterdir())


def test_models_and_places_without_such_a_tower_are_refused_before_the_work(tiny_model, tmp_path, photographs, capsys):
    words = ["index", str(photographs), str(tmp_path / "index"), "--fast_queries", "--model"]
    assert main([*words, str(tiny_model), "--dtype", "bfloat16"]) == 1
    assert "--fast_queries needs vectors in float32" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
    assert main(["index", str(photographs), "milvus://host/photos", "--fast_queries", "--model", str(tiny_model)]) == 2
    assert "--fast_queries goes with a gallery of images" in capsys.readouterr().err
