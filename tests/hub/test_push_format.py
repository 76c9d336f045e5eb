"""A model pushed in the format of another library: its files, its card, and what the snippet of the card computes."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, hf_hub_download
from safetensors.torch import load, load_file, save_file
from torch.nn.functional import normalize

from hf_vse.cli.main import main
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.hub.contents import exported_contents, write_card
from hf_vse.hub.export import export_model
from hf_vse.hub.exported import ON_HUB, Exported
from hf_vse.hub.signature import is_ours
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from tests.embed.test_transformers_models import CASES, images
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.hub.records import HOME, coco_record
from tests.hub.test_export import trained_model
from tests.processes import run_fork

FILES = {
    "transformers": {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"},
    "sentence-transformers": {"config.json", "model.safetensors", "modules.json", "1_Normalize/config.json"},
}
TASK = "zero-shot-image-classification"
SENTENCES = ["a red circle", "two blue stars"]


def run_snippet(card: str, **values) -> dict:
    """What the first block of Python of a card computes."""
    values |= {"photos": images()}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], values)
    return {side: normalize(torch.as_tensor(values[f"{side}_embeds"]), dim=-1) for side in ("image", "text")} | {
        "scores": torch.as_tensor(values["scores"])
    }


def expected_vectors(encoder) -> dict:
    found = {
        "image": encoder.encode_images(encoder.prepare_images(images())), "text": encoder.encode_texts(SENTENCES)
    }  # fmt: skip
    return found | {"scores": found["text"] @ found["image"].T}


def assert_same(found: dict, expected: dict, atol: float = 5e-6) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory) -> Path:
    """What a run leaves that fine-tuned CLIP, and a card of a person beside it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trained_model(folder, CASES["clip"], tokenizer, projection_type="linear")
    record = coco_record()
    record["recipe"] |= {"init_from": "org/clip"}
    (folder / "run" / "metrics.json").write_text(json.dumps(record))
    (folder / "run" / "README.md").write_text("# Mine\n\nA person wrote this of the model in its own format.\n")
    return folder / "run"


def push_all(hub: FakeHub, folder: Path, run: Path) -> int:
    """Pushes every format, and runs the snippets of their cards on what the Hub gives."""
    hub.take_over(folder / "cache")
    push = ["push", str(run), "--token", TOKEN, "--license", "mit", "--quiet"]
    for name in FILES:
        assert main([*push, f"org/{name}", "--format", name]) == 0
        card = Path(hf_hub_download(f"org/{name}", "README.md")).read_text()
        save_file(run_snippet(card), folder / name)
    assert main([*push, "org/transformers", "--format", "clip"]) == 0  # once more: nothing to do
    return 1 - main([*push, "org/sentence-transformers", "--format", "clip"])


@pytest.fixture(scope="module")
def pushed(run, tmp_path_factory):
    """(hub, folder with the vectors of each format, what was printed), from a process of its own."""
    pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("pushed")
    with FakeHub() as hub:
        run_fork(folder / "log", push_all, hub, folder, run)
        yield hub, folder, (folder / "log").read_text()


@pytest.mark.parametrize("name", FILES)
def test_snippet_of_the_card_computes_the_vectors_of_the_model(name, pushed, run):
    _, folder, _ = pushed
    found = load_file(folder / name)
    assert found["scores"].shape == (2, 3) and found["scores"].std() > 0.02
    assert_same(found, expected_vectors(VSEEncoder.from_pretrained(run, "cpu")), 1e-5)


@pytest.mark.parametrize("name", FILES)
def test_only_the_format_is_published_with_a_card_of_its_own(name, pushed, run):
    hub, folder, _ = pushed
    repository = hub.repositories[f"models/org/{name}"]
    assert FILES[name] | {"README.md"} <= repository.files.keys() and len(repository.commits) == 1
    assert not repository.files.keys() & {"metrics.json", "recipe.yaml", "modeling_vse.py", "retrieval.png"}
    for path, content in repository.files.items():
        for private in (str(run), str(folder), HOME, "hf_secret"):
            assert private.encode() not in content, path
    text = repository.files["README.md"].decode()
    card = ModelCard(text)
    assert is_ours(text) and "A person wrote this" not in text
    assert card.data.license == "mit" and card.data.base_model == ["org/clip", "org/words"]
    assert card.data.library_name == name and card.data.pipeline_tag == ON_HUB.get(name, (0, TASK))[1]
    assert len(card.data.eval_results) == 21 and "| test | 11.0 |" in text and "MS-COCO, Karpathy split" in text
    assert "trust_remote_code" not in text and "VSEModel" not in text and "pipeline(" not in text
    parameters = sum(each.numel() for each in load(repository.files["model.safetensors"]).values())
    assert f"| parameters | {parameters:,} |" in text


def test_a_repository_with_another_format_is_refused(pushed):
    hub, _, printed = pushed
    assert len(hub.repositories["models/org/sentence-transformers"].commits) == 1
    [line] = [each for each in printed.splitlines() if each.startswith("error:")]
    assert "org/sentence-transformers holds a model in another format (modules.json): give another" in line


@torch.no_grad()
@pytest.mark.parametrize("family", DUAL_ENCODERS)
def test_snippet_for_every_family_of_transformers(family, tokenizer, tmp_path):
    encoder = trained_model(tmp_path, CASES[family], tokenizer)
    record = export_model(encoder, family, tmp_path / "back", check=False)
    exported = Exported(record["format"], tmp_path / "back", encoder.processor)
    card = write_card(tmp_path / "run", None, str(tmp_path / "back"), files=["config.json"], exported=exported)
    assert_same(run_snippet(card), expected_vectors(encoder))


def test_files_of_an_export_are_checked_as_others_are(run, tmp_path):
    encoder = VSEEncoder.from_pretrained(run, "cpu")
    export_model(encoder, "clip", tmp_path / "back", check=False)
    assert exported_contents(tmp_path / "back").keys() >= FILES["transformers"]
    (tmp_path / "back" / "notes.txt").write_text("hf_" + "a" * 34)
    with pytest.raises(ValueError, match="notes.txt holds what looks like an access token"):
        exported_contents(tmp_path / "back")
    (tmp_path / "back" / "notes.txt").unlink()
    (tmp_path / "back" / "more").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="more is a link"):
        exported_contents(tmp_path / "back")


def test_what_cannot_be_pushed_is_refused_before_the_first_request(run, tiny_model, capsys):
    for model, given, message in (
        (run, "siglip", "has no format 'siglip': give one of clip, sentence-transformers, open_clip, onnx"),
        (tiny_model, "clip", "has no format 'clip': give one of onnx"),
    ):
        assert main(["push", str(model), "org/name", "--format", given, "--quiet"]) == 1
        [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error:")]
        assert message in line
    for more in (["--photographs"], ["--space", "org/page", "--dataset", "org/data"]):
        assert main(["push", str(run), "org/name", "--format", "clip", *more]) == 2
        assert "--format goes without --space and --photographs" in capsys.readouterr().err
