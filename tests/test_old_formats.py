"""What version 0.1 wrote is read and continued by this version; `old_formats/v0_1/README.md` says what is there."""

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hf_vse.cli.main import main
from hf_vse.data.sources import load_pairs
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.evaluation.metrics import retrieval_metrics
from hf_vse.evaluation.record import read_evaluation
from hf_vse.search.gallery import GalleryIndex
from tests.conftest import assert_same_vectors

WRITTEN = Path(__file__).parent / "old_formats" / "v0_1"
PLACE = "/v0_1"  # where the files were, as absolute paths in them say
TIME = 1_767_225_600  # when the pictures were changed last
EXPECTED = load_file(WRITTEN / "expected.safetensors")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy in the current folder, with what was left out to keep it small."""
    folder = tmp_path / "v0_1"
    shutil.copytree(WRITTEN, folder)
    for model in (folder / "run", *(folder / "run" / "stages").iterdir()):
        for code in (folder / "published").glob("*.py"):
            shutil.copyfile(code, model / code.name)
    for picture in (folder / "photos").rglob("*.png"):
        os.utime(picture, (TIME, TIME))
    for header in folder.glob("gallery_*/gallery.json"):
        move_gallery(header, str(folder))
    monkeypatch.chdir(folder)
    return folder


def move_gallery(path: Path, place: str) -> None:
    """Replaces the place in the files of a gallery, and its vectors by those of its images in reverse order.

    So a test sees whether they were taken over or computed again.
    """
    header = json.loads(path.read_text().replace(PLACE, place))
    for name, entry in header["files"].items():
        file = path.parent / "versions" / header["version"] / name
        if name == "gallery.safetensors":
            save_file({"embeds": np.ascontiguousarray(load_file(file)["embeds"][::-1])}, file)
        elif file.suffix != ".safetensors":
            file.write_text(file.read_text().replace(PLACE, place))
        entry |= {"bytes": file.stat().st_size, "checksum": sha256(file.read_bytes()).hexdigest()}
    del header["checksum"]
    header["checksum"] = sha256(json.dumps([header], sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(header))


def check_vectors(model: str) -> None:
    """A model gives the vectors that `run` gave."""
    encoder = load_encoder(model)
    for split, pairs in load_pairs("imagefolder", data_dir="photos").items():
        captions = [caption for of_image in pairs["captions"][:] for caption in of_image]
        assert_same_vectors(encode_images(encoder, pairs.select_columns("image")).embeds, EXPECTED[f"{split}_images"])
        assert_same_vectors(encode_texts(encoder, captions), EXPECTED[f"{split}_texts"])


@pytest.mark.parametrize("model", ["run", "published"])
def test_models_give_the_vectors_they_gave(model, old):
    check_vectors(model)


STRANGER = """
import sys
sys.modules["hf_vse"] = None  # not installed
import PIL.Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("published", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("published", trust_remote_code=True)
images = [PIL.Image.open(f"photos/validation/{row:02d}.png") for row in range(6)]
outputs = model.eval()(**processor(images=images, text=["a red circle", "two blue stars"]))
save_file({"images": outputs.image_embeds.detach(), "texts": outputs.text_embeds.detach()}, "found.safetensors")
"""


def test_published_model_is_loaded_by_transformers_alone(old):
    modules = os.environ | {"HF_MODULES_CACHE": str(old / "modules")}
    done = subprocess.run([sys.executable, "-c", STRANGER], env=modules, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(old / "found.safetensors")
    assert_same_vectors(found["images"], EXPECTED["validation_images"])
    assert_same_vectors(found["texts"], EXPECTED["query"])


def test_finished_run_is_not_trained_again(old, caplog):
    before = load_file(old / "run" / "model.safetensors")
    assert main(["train", "recipe.yaml"]) == 0
    for stage in ("base", "heads"):
        assert f"stage {stage} was trained before" in caplog.text
    after = load_file(old / "run" / "model.safetensors")
    assert after.keys() == before.keys() and all(np.array_equal(after[name], before[name]) for name in before)
    check_vectors("run")


def test_training_starts_from_a_run(old):
    """At a rate of zero, so that the vectors must be those of the run."""
    (old / "next.yaml").write_text(
        "{dataset: imagefolder, data_dir: photos, output_dir: next, init_from: run, mirror_images: false, "
        "max_steps: 1, per_device_train_batch_size: 4, learning_rate: 0.0, "
        "freeze_batchnorm: true, diagnostics_steps: 0, disable_tqdm: true}"
    )
    assert main(["train", "next.yaml"]) == 0
    check_vectors("next")


def test_run_is_evaluated_as_it_was(old):
    assert main(["evaluate", "run", "--split", "validation", "--output", "again.json"]) == 0
    again, before = (read_evaluation(name)["metrics"]["run"] for name in ("again.json", "evaluation/one.json"))
    assert again["fingerprint"] == before["fingerprint"] and again["images"] == before["images"] == 6
    assert again["metrics"] == pytest.approx(before["metrics"])


EVALUATIONS = {
    "evaluation/one.json": {"run": 333.33},
    "evaluation/two.json": {"run": 333.33, "run/stages/base": 350.0},
    "run/metrics.json": {"validation": 333.33},
    "published/metrics.json": {"validation": 333.33},
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_are_read(name, old):
    found = read_evaluation(name)
    assert {key: round(record["metrics"]["rsum"], 2) for key, record in found["metrics"].items()} == EVALUATIONS[name]
    assert all(record["captions"] == 18 for record in found["metrics"].values())
    assert found["environment"]["versions"]["hf_vse"] == "0.1.0"
    assert len(found.get("comparisons", [])) == (1 if "two" in name else 0)


def test_kept_embeddings_are_computed_again_with_one_line(old, caplog):
    """Those of the images are in reverse order, which the results must not be."""
    (kept,) = (path for path in old.glob("embeddings/*/images_0_of_1.npy") if len(np.load(path)) == 6)
    np.save(kept, np.load(kept)[::-1])
    asked = ["--split", "validation", "--embeddings", "embeddings", "--output", "again.json"]
    assert main(["evaluate", "run", *asked]) == 0
    images, texts = (torch.from_numpy(EXPECTED[f"validation_{kind}"].copy()) for kind in ("images", "texts"))
    owner = torch.arange(18) // 3
    expected = retrieval_metrics(images, texts, owner)
    assert read_evaluation("again.json")["metrics"]["run"]["metrics"] == pytest.approx(expected)
    assert expected != retrieval_metrics(images.flip(0), texts, owner)
    assert caplog.text.count("embeddings of hf_vse 0.1, which are not read") == 1


@pytest.mark.parametrize(("gallery", "split"), [("gallery_folder", "train"), ("gallery_data", "validation")])
def test_galleries_are_searched(gallery, split, old, capsys):
    assert main(["search", gallery, "a red circle", "-k", "3", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    scores = EXPECTED[f"{split}_images"][::-1] @ EXPECTED["query"][0]
    best = np.argsort(-scores)[:3]
    assert [Path(each["item"]["file"]).name for each in found["results"]] == [f"{row:02d}.png" for row in best]
    assert [each["score"] for each in found["results"]] == pytest.approx(scores[best], abs=1e-4)


def test_hubs_of_a_gallery_are_known(old, capsys):
    assert main(["search", "gallery_folder", "a red circle", "--correction", "inverted_softmax", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["results"]) == 10


def test_gallery_of_a_folder_grows(old):
    shutil.copyfile(old / "photos" / "validation" / "00.png", old / "photos" / "train" / "12.png")
    assert main(["index", "photos/train", "gallery_folder", "--model", "run"]) == 0
    embeds = GalleryIndex.load("gallery_folder").embeds
    np.testing.assert_array_equal(embeds[:12], EXPECTED["train_images"][::-1])
    assert_same_vectors(embeds[12], EXPECTED["validation_images"][0])


def test_gallery_of_a_data_set_is_recognised(old):
    asked = ["--dataset", "imagefolder", "--data_dir", "photos", "--split", "validation"]
    assert main(["index", "gallery_data", "--model", "run", *asked]) == 0
    np.testing.assert_array_equal(GalleryIndex.load("gallery_data").embeds, EXPECTED["validation_images"][::-1])


def test_gallery_of_another_model_is_computed_again(old):
    assert main(["index", "photos/train", "gallery_folder", "--model", "run/stages/base"]) == 0
    images = load_pairs("imagefolder", data_dir="photos")["train"].select_columns("image")
    base = encode_images(load_encoder("run/stages/base"), images).embeds
    assert_same_vectors(GalleryIndex.load("gallery_folder").embeds, base)
