"""Models of this package are loaded whole, or not at all; the many ways a folder can be wrong are in `bad_input`."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from hf_vse.embed.adapters.own_models import load_vse_model
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.weights import chosen_device
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.build import build_model, build_processor
from hf_vse.training.settings import ModelArguments
from tests.conftest import make_pairs
from tests.embed.test_transformers_models import CASES, save

HEADS = {"projection_type": "mlp", "loss_type": "siglip"}


@pytest.fixture
def copied(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_whole_model_is_loaded_as_transformers_does(tiny_model):
    loaded, plain = VSEEncoder.from_pretrained(tiny_model, "cpu"), VSEModel.from_pretrained(tiny_model).eval()
    assert loaded.name == str(tiny_model) and not loaded.model.training
    for name, tensor in plain.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_clip_is_not_poured_into_a_model_of_this_package(tokenizer, tmp_path):
    """It was: with `mean` instead of its own pooling and fresh biases, and exit code 0."""
    clip = save(tmp_path, CASES["clip"], tokenizer)
    for load in (VSEEncoder.from_pretrained, load_vse_model, lambda name: load_encoder(name, kind="vse")):
        with pytest.raises(ValueError, match="config.json: model_type is 'clip', a model of this package has 'vse'"):
            load(str(clip))


def test_training_does_not_start_from_half_a_model(copied):
    change_weights(copied, lambda weights: weights.pop("visual_projection.weight"))
    asked, split = ModelArguments(init_from=str(copied), **HEADS), make_pairs(2)
    processor = build_processor(asked, split)
    with pytest.raises(ValueError, match="lacks 1 weights .the first is 'visual_projection.weight'"):
        build_model(asked, processor, split)


def test_what_a_stage_adds_starts_fresh_and_what_it_drops_is_left_behind(copied, tmp_path):
    plain = load_vse_model(copied, "cpu")
    larger = load_vse_model(copied, "cpu", **HEADS)
    assert larger.config.loss_type == "siglip" and larger.logit_scale is not None
    assert torch.equal(larger.visual_projection.weight, plain.visual_projection.weight)
    assert larger.visual_head.contract.weight.abs().sum() > 0
    larger.save_pretrained(tmp_path / "larger")
    again = load_vse_model(tmp_path / "larger", "cpu", projection_type="linear", loss_type="nce")
    assert again.state_dict().keys() == plain.state_dict().keys()
    config = json.loads((tmp_path / "larger" / "config.json").read_text())
    (tmp_path / "larger" / "config.json").write_text(json.dumps(config | {"projection_type": "linear"}))
    with pytest.raises(ValueError, match="foreign to its configuration, 6 weights"):
        load_vse_model(tmp_path / "larger", "cpu")


def test_other_code_beside_the_weights_is_neither_run_nor_asked_about(copied, monkeypatch):
    """`config.json` names a class that transformers would offer to run: [y/N]."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for file in copied.glob("*.py"):
        file.write_text("raise SystemExit('the code of the model was run')")
    assert isinstance(VSEEncoder.from_pretrained(copied, "cpu").model, VSEModel)


def test_a_device_that_is_not_there_is_refused_in_one_line(monkeypatch):
    assert chosen_device("cpu") == torch.device("cpu") == chosen_device(torch.device("cpu"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert chosen_device(None) == torch.device("cpu")
    for name in ("cuda", "cuda:7", "mps", "meta"):
        with pytest.raises(ValueError, match=f"device='{name}' is not on this machine, which has cpu"):
            chosen_device(name)
    for name in ("gpu", "", "cuda:x", "cpu:-1"):
        with pytest.raises(ValueError, match="is not a device: give cpu, cuda, cuda:1 or mps"):
            chosen_device(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert chosen_device("cuda:1") == torch.device("cuda:1") and chosen_device(None) == torch.device("cuda")
    with pytest.raises(ValueError, match="device='cuda:2' is not on this machine, which has 2"):
        chosen_device("cuda:2")


@pytest.mark.parametrize("kind", ["transformers", "sentence_transformers"])
def test_models_of_others_are_loaded_whole_too(kind, tokenizer, tmp_path):
    folder = save(tmp_path / "clip", CASES["clip"], tokenizer)
    if kind == "sentence_transformers":
        sentence_transformers = pytest.importorskip("sentence_transformers")
        clip, pixels = CLIPModel.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
        CLIPProcessor(pixels, deepcopy(tokenizer)).save_pretrained(folder)
        clip.save_pretrained(folder)
        sentence_transformers.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "outer"))
        folder = tmp_path / "outer"
    good = (folder / "model.safetensors").read_bytes()
    assert load_encoder(str(folder), device="cpu", kind=kind)
    layer = "vision_model.encoder.layers.0.mlp.fc1.bias"
    for change, says in (
        (lambda weights: weights.pop(layer), f"lacks 1 weights of CLIPModel .the first is '{layer}'"),
        (lambda weights: weights.update({layer: torch.ones(3)}), f"in another shape, 1 weights .*'{layer}'"),
        (lambda weights: weights.update({layer.replace("0", "9"): torch.ones(3)}), "does not build, 1 weights"),
        (lambda weights: weights[layer].fill_(torch.nan), "fc1.bias holds what is not a finite number"),
    ):
        change_weights(folder, change)
        with pytest.raises(ValueError, match=says):
            load_encoder(str(folder), device="cpu", kind=kind)
        (folder / "model.safetensors").write_bytes(good)
    change_weights(folder, lambda weights: weights.update(head_of_another_task=torch.ones(3)))
    assert load_encoder(str(folder), device="cpu", kind=kind)
