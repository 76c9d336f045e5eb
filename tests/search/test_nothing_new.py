"""The second `hf-vse index` opens the model only where something may have changed, and never misses a change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_vse.cli.index import NOTHING_NEW
from hf_vse.cli.main import main
from hf_vse.embed.load import load_encoder
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.search import nothing_new
from hf_vse.search.gallery import GalleryIndex


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def words(photographs, model, tmp_path):
    """Of a command that has run once."""
    words = ["index", str(photographs), str(tmp_path / "index"), "--model", str(model)]
    assert main([*words, "--quiet"]) == 0
    return words


@pytest.fixture
def opened(monkeypatch):
    """The models that were opened."""
    found = []

    def load(name, **options):
        found.append(load_encoder(name, **options))
        return found[-1]

    monkeypatch.setattr("hf_vse.embed.load.load_encoder", load)
    return found


def header_of(words) -> dict:
    return json.loads(Path(words[2], "gallery.json").read_text(encoding="utf-8"))


def test_the_model_is_not_opened_and_torch_not_imported(words, tmp_path):
    before = header_of(words)
    code = f"""
import sys
from hf_vse.cli.main import main
code = main({words!r})
sys.exit("torch is imported" if {{"torch", "transformers"}} & sys.modules.keys() else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [f"12 items in {words[2]}", NOTHING_NEW]
    assert header_of(words) == before and before["model_files"]


def test_both_ways_say_the_same(words, opened, capsys):
    results = []
    for options in ((), ("--device", "cpu")):
        capsys.readouterr()
        assert main([*words, *options, "--json", "--quiet"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] and len(opened) == 1


def add_photograph(photographs, model):
    shutil.copy(photographs / "lake/03.png", photographs / "lake/new.png")


def change_photograph(photographs, model):
    shutil.copy(photographs / "lake/03.png", photographs / "lake/05.png")


def remove_photograph(photographs, model):
    (photographs / "lake/03.png").unlink()


def change_metadata(photographs, model):
    path = photographs / "metadata.jsonl"
    path.write_text(path.read_text().replace('"year": 2003', '"year": 1903'))


def break_photograph(photographs, model):
    (photographs / "lake/03.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    "change", [add_photograph, change_photograph, remove_photograph, change_metadata, break_photograph]
)
def test_a_change_of_the_photographs_is_seen(words, photographs, model, opened, change, capsys):
    change(photographs, model)
    assert main([*words, "--max_broken_share", "0.5", "--quiet"]) == 0
    assert len(opened) == 1 and NOTHING_NEW not in capsys.readouterr().out
    fresh = GalleryIndex.build(str(photographs), opened[0], f"{words[2]}_fresh", max_broken_share=0.5)
    assert list(GalleryIndex.load(words[2]).items) == list(fresh.items)
    assert main([*words, "--max_broken_share", "0.5", "--quiet"]) == 0
    assert len(opened) == (2 if change is break_photograph else 1), "what cannot be read is tried again"


def change_weights(model):
    """Of the same size and time."""
    path = model / "model.safetensors"
    times = path.stat()
    other = VSEModel.from_pretrained(model)
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 1
    other.save_pretrained(model)
    assert path.stat().st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_preparation(model):
    for path in model.glob("*processor_config.json"):
        path.write_text(path.read_text().replace('"do_center_crop": true', '"do_center_crop": false'))


@pytest.mark.parametrize("change", [change_weights, change_preparation])
def test_another_model_in_the_same_folder_encodes_everything_again(words, model, opened, change):
    before = header_of(words)
    change(model)
    assert main([*words, "--quiet"]) == 0
    after = header_of(words)
    assert len(opened) == 1 and after["digest"] == opened[0].digest != before["digest"]
    assert after["model_files"] != before["model_files"]
    assert main([*words, "--quiet"]) == 0 and len(opened) == 1


@pytest.mark.parametrize(
    "options", [("--kind", "hnsw"), ("--dtype", "bfloat16"), ("--device", "cpu"), ("--trust_remote_code",)]
)
def test_other_options_open_the_model(words, opened, options):
    pytest.importorskip("faiss")
    assert main([*words, *options, "--quiet"]) == 0 and len(opened) == 1


def test_a_copy_of_the_model_is_another_place(words, model, opened, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    assert main([*words[:4], str(other), "--quiet"]) == 0
    assert len(opened) == 1 and header_of(words)["encoder"]["place"] == str(other)


def test_a_damaged_gallery_is_made_again(words, opened):
    version = header_of(words)["version"]
    (file,) = Path(words[2]).rglob("vectors-*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main([*words, "--quiet"]) == 0 and len(opened) == 1
    assert header_of(words)["version"] != version and len(GalleryIndex.load(words[2])) == 12


def test_other_code_opens_the_model(words, opened, monkeypatch):
    monkeypatch.setattr(nothing_new, "reading_digest", lambda: "of another version")
    assert main([*words, "--quiet"]) == 0 and len(opened) == 1
    assert main([*words, "--quiet"]) == 0 and len(opened) == 1, "it is recorded now"


def test_a_model_that_is_written_to_meanwhile_is_not_recorded(words, model, monkeypatch):
    (model / "notes.txt").write_text("before")

    def load(name, **options):
        (model / "notes.txt").write_text("meanwhile")
        return load_encoder(name, **options)

    before = header_of(words)["model_files"]
    monkeypatch.setattr("hf_vse.embed.load.load_encoder", load)
    assert main([*words, "--quiet"]) == 0
    assert header_of(words)["model_files"] == before != nothing_new.digest_of_files(str(model), "float32")


@pytest.mark.parametrize("change", ["sharded", "adapter", "tokenizer"])
def test_a_model_that_is_made_of_other_files_too_is_not_recorded(words, model, change):
    before, states = header_of(words)["model_files"], nothing_new.states_of(str(model))
    assert nothing_new.is_self_contained(str(model))
    if change == "sharded":
        (model / "model.safetensors").rename(model / "model-1.safetensors")
    elif change == "adapter":
        (model / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    else:
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_file": "/elsewhere.json"}))
    assert nothing_new.states_of(str(model)) != states
    nothing_new.remember_files(Path(words[2]), str(model), nothing_new.states_of(str(model)))
    assert header_of(words)["model_files"] == before
