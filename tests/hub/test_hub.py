"""Publishing to a fake Hub, and what others get from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from safetensors.torch import load_file

from hf_vse.cli.main import main
from tests.conftest import assert_same_vectors, make_pairs
from tests.hub.fake_hub import FakeHub
from tests.hub.publisher import publish
from tests.hub.records import HOME, coco_record
from tests.processes import run_fork

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(hub, folder, what the publisher saw), after a stranger has loaded and republished what it found."""
    folder = tmp_path_factory.mktemp("published")
    with FakeHub() as hub:
        run_fork(folder / "log", publish, hub, folder, coco_record())
        environment = os.environ | hub.environment(folder / "strange home")
        environment |= {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, HERE / "stranger.py", folder / "strange.safetensors"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        yield hub, folder, json.loads((folder / "seen.json").read_text())


def files_of(hub, name) -> dict[str, bytes]:
    return hub.repositories[name].files


def card_of(hub, name, kind=ModelCard):
    return kind(files_of(hub, name)["README.md"].decode())


def recalls(card) -> dict[tuple[str, str, str], float]:
    return {(r.dataset_split, r.dataset_config, r.metric_name): r.metric_value for r in card.data.eval_results}


def test_stranger_computes_the_same_from_what_was_published(published):
    _, folder, _ = published
    local, strange = load_file(folder / "local.safetensors"), load_file(folder / "strange.safetensors")
    assert local.keys() == strange.keys() and len(local) == 2
    for name, embeds in local.items():
        assert_same_vectors(strange[name], embeds)


def run_with(hub: FakeHub, cache: Path, words: list[str]) -> int:
    hub.take_over(cache)
    return main(words)


def test_a_published_model_is_judged_by_its_name(published, tmp_path):
    hub, _, _ = published
    make_pairs(8).save_to_disk(str(tmp_path / "pairs"))
    local = tmp_path / "local"
    for name, content in files_of(hub, "models/org/methods").items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(content)
    asked = ["evaluate", "org/methods", local, "--dataset", tmp_path / "pairs", "--split", "train", "--quiet"]
    words = [str(each) for each in (*asked, "--output", tmp_path / "metrics.json")]
    run_fork(tmp_path / "log", run_with, hub, tmp_path / "cache", words)
    remote, known = json.loads((tmp_path / "metrics.json").read_text())["metrics"].values()
    assert remote["model"] == "org/methods" and remote["model_facts"] == known["model_facts"]
    assert remote["metrics"] == known["metrics"]


def test_broken_push_shows_nothing_and_its_repetition_sends_nothing_twice(published):
    hub, _, seen = published
    assert "did not finish" in seen["broken"] and "the same command continues" in seen["broken"]
    assert seen["visible"] == []
    assert hub.fail_after is None and len(hub.uploads) > 3
    assert len(hub.uploads) == len(set(hub.uploads))
    assert len(hub.repositories["models/org/pushed"].commits) == 1  # the third push found nothing to do
    assert seen["address"] == seen["address again"] == f"{hub.url}/org/pushed"
    asked = hub.repositories["models/org/pushed"].created_with
    assert asked.get("visibility") == "private" or asked.get("private") is True


RECORD = {"README.md", "metrics.json", "recipe.yaml", "training_curves.png"}
MODEL = {
    "config.json",
    "model.safetensors",
    "modeling_vse.py",
    "sentence_transformers_vse.py",
    "processor_config.json",
    "tokenizer.json",
}


def test_only_what_belongs_is_published(published):
    hub, *_ = published
    expected = {"pushed": RECORD | MODEL, "methods": RECORD | MODEL, "again": MODEL | {"README.md"}}
    expected["trained"] = (RECORD | MODEL) - {"recipe.yaml"}
    for name, least in expected.items():
        found = files_of(hub, f"models/org/{name}")
        assert least <= found.keys(), (name, least - found.keys())
        assert {Path(each).suffix for each in found} <= {".json", ".safetensors", ".py", ".md", ".yaml", ".png"}
        assert not any("/" in each for each in found)
    # photographs of a data set stay here, and so does a record that speaks of other weights
    assert "retrieval.png" not in files_of(hub, "models/org/pushed")
    assert "metrics.json" not in files_of(hub, "models/org/changed")


def test_no_path_of_this_machine_and_no_secret_is_published(published):
    hub, folder, _ = published
    for name, repository in hub.repositories.items():
        for path, content in repository.files.items():
            for private in (str(folder), HOME, "hf_secret"):
                assert private.encode() not in content, (name, path)
    recipe = json.loads(files_of(hub, "models/org/pushed")["metrics.json"])["recipe"]
    assert recipe["data_dir"] == "coco" and recipe["features"] == "grid.npy" and "hub_token" not in recipe
    assert recipe["text_tower"] == "org/words"
    assert b"data_dir: coco" in files_of(hub, "models/org/pushed")["recipe.yaml"]


def test_card_is_read_back_with_the_recalls_of_the_record(published):
    hub, *_ = published
    record = coco_record()["metrics"]
    for name in ("pushed", "methods"):
        card = card_of(hub, f"models/org/{name}")
        found = recalls(card)
        for split, config, metrics in (
            ("validation", "default", record["validation"]["metrics"]),
            ("test", "default", record["test"]["metrics"]),
            ("test", "1k_folds", record["test"]["metrics_1k_folds"]),
        ):
            for side, direction in (("i2t", "Image-to-text"), ("t2i", "Text-to-image")):
                for level in (1, 5, 10):
                    value = found[split, config, f"{direction} R@{level}"]
                    assert value == pytest.approx(metrics[f"{side}_r{level}"], abs=1e-4)
        assert card.data.library_name == "transformers" and card.data.base_model == ["org/words"]
        assert card.data.pipeline_tag == "zero-shot-image-classification" and card.data.license is None
        assert card.data.co2_eq_emissions["emissions"] == pytest.approx(1.0)
        assert f'from_pretrained("org/{name}", trust_remote_code=True)' in card.text
        assert "hinge_max / (t * batch)" in card.text and "training_curves.png" in card.text


def test_cards_of_trainer_and_stranger_are_their_own(published):
    hub, *_ = published
    trained = card_of(hub, "models/org/trained")
    assert trained.data.license == "apache-2.0" and trained.data.datasets == ["org/pairs"]
    measured = json.loads(files_of(hub, "models/org/trained")["metrics.json"])["metrics"]["validation"]
    assert measured["images"] == 16
    value = recalls(trained)["validation", "default", "Image-to-text R@1"]
    assert value == pytest.approx(measured["metrics"]["i2t_r1"], abs=1e-4)
    assert "training in progress" in " ".join(
        c["summary"].lower() for c in hub.repositories["models/org/trained"].commits
    )
    again = card_of(hub, "models/org/again")
    loaded_by = json.loads(files_of(hub, "models/org/again")["config.json"])["auto_map"]
    assert loaded_by["AutoModel"] == "modeling_vse.VSEModel"
    # where hf_vse is not installed, transformers writes its own card
    assert "further" in again.data.tags and again.data.eval_results is None and "ConVSE++" not in again.text


def test_card_of_a_person_is_kept(published):
    hub, *_ = published
    files = files_of(hub, "models/org/persons")
    assert b"A person wrote this" in files["README.md"] and "model.safetensors" in files


def test_refused_token_is_one_line_that_says_how_to_log_in(published):
    hub, _, seen = published
    assert "hf auth login" in seen["refused"] and "\n" not in seen["refused"]
    assert "models/org/refused" not in hub.repositories


def test_data_are_read_back_with_the_same_fingerprint(published):
    hub, _, seen = published
    assert seen["kept"] == seen["loaded"] == seen["plain"] and len(seen["kept"]) == 2
    assert [pixel[0] for pixel in seen["pixels"]] == [0, 30, 60, 120, 180, 210]  # the broken third and fifth left out
    assert not any("/" in (path or "") for path in seen["image paths"])
    card = card_of(hub, "datasets/org/pairs", DatasetCard)
    assert card.data.license == "cc-by-4.0" and card.data.to_dict()["dataset_info"]
    assert "belong to the people who took them" in card.text and 'load_pairs("org/pairs")' in card.text
    for digest in seen["kept"].values():
        assert digest in card.text
    assert "| train | 6 | 30 | 5 | 2 |" in card.text
    assert "did not finish" in seen["data broken"] and seen["data address"] == f"{hub.url}/datasets/org/pairs"
    assert len(hub.repositories["datasets/org/pairs"].commits) == 2  # data and card; nothing changed the third time


def test_space_is_set_to_model_and_data(published):
    hub, *_ = published
    space = hub.repositories["spaces/org/demo"]
    assert space.variables == {"VSE_MODEL": "org/pushed", "VSE_DATASET": "org/pairs"}
    assert space.created_with["sdk"] == "gradio"
    assert space.files.keys() == {"app.py", "requirements.txt", "README.md"}
    header = card_of(hub, "spaces/org/demo", SpaceCard).data.to_dict()
    assert header["models"] == ["org/pushed"] and header["datasets"] == ["org/pairs"] and header["sdk"] == "gradio"
