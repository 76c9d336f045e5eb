"""The towers as ONNX files, run by onnxruntime on what the processor gives."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_vse.embed.adapters.transformers_models import TransformersEncoder, processor_of
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.hub import onnx_export
from hf_vse.hub.card import model_card
from hf_vse.hub.export import export_model
from hf_vse.hub.exported import Exported
from hf_vse.hub.onnx_export import export_onnx
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.embed.test_transformers_models import CASES, images, save
from tests.faults.killing import slow
from tests.hub.test_push_format import assert_same, expected_vectors, run_snippet

TEXTS = ["red", "a red circle above two blue squares", "small green star"]


@pytest.fixture
def runtime():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def run(runtime, path, inputs):
    return runtime.InferenceSession(path).run(["embeds"], {name: np.asarray(inputs[name]) for name in inputs})[0]


def test_pixels_and_recurrent_text_tower(runtime, tokenizer, tiny_resnet, tmp_path):
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16, "bidirectional": True, "num_layers": 2}
    config = VSEConfig(
        vision_config=tiny_resnet, text_config=text, text_pooling="gpo", projection_dim=16, projection_type="mlp"
    )
    model = VSEModel(config).train()
    processor = VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32), tokenizer)
    record = export_onnx(model, processor, tmp_path)
    assert model.training
    assert json.loads((tmp_path / "onnx.json").read_text()) == record
    assert all(0 < record[side]["largest_difference"] < 1e-5 for side in ("image", "text"))

    images = [PIL.Image.effect_noise((50, 40), sigma).convert("RGB") for sigma in (20, 50, 80, 110)]
    with torch.no_grad():
        expected = model.eval()(**processor(images=images, text=TEXTS))
    found = run(runtime, tmp_path / "image_encoder.onnx", processor(images=images, return_tensors="np"))
    np.testing.assert_allclose(found, expected.image_embeds, atol=1e-5)
    found = run(runtime, tmp_path / "text_encoder.onnx", processor(text=TEXTS, return_tensors="np"))
    np.testing.assert_allclose(found, expected.text_embeds, atol=1e-5)

    card = model_card(config, {}, (), repo_id="org/name", exported=Exported("onnx", tmp_path, processor))
    assert "library_name: onnx" in card and "snapshot_download" in card
    found = run_snippet(card.replace('snapshot_download("org/name")', repr(str(tmp_path))))
    assert_same(found, expected_vectors(VSEEncoder(model, processor, "model")), atol=1e-5)


@slow
def test_regions_and_transformer_text_tower(runtime, tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 40} | sizes
    vision = {"model_type": "vse_features", "hidden_size": 10}
    options = {"text_pooling": "mean", "text_layers": 2, "projection_dim": 12}
    model = VSEModel(VSEConfig(vision_config=vision, text_config=text, **options)).eval()
    processor = VSEProcessor(tokenizer=tokenizer)
    export_onnx(model, processor, tmp_path, check=False, by_region=True)
    features = [np.random.default_rng(regions).normal(size=(regions, 10)) for regions in (4, 1)]
    with torch.no_grad():
        expected = model(**processor(images=features, text=TEXTS))
    found = run(runtime, tmp_path / "image_encoder.onnx", processor(images=features, return_tensors="np"))
    np.testing.assert_allclose(found, expected.image_embeds, atol=1e-5)
    found = run(runtime, tmp_path / "text_encoder.onnx", processor(text=TEXTS, return_tensors="np"))
    np.testing.assert_allclose(found, expected.text_embeds, atol=1e-5)


def test_file_that_differs_from_the_model_is_refused(runtime, tokenizer, tmp_path, monkeypatch):
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    vision = {"model_type": "vse_features", "hidden_size": 10}
    model = VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=16))
    monkeypatch.setattr(onnx_export, "_gates_reordered", lambda weight: weight.detach())
    with pytest.raises(ValueError, match="text_encoder.onnx differs from the model by"):
        export_onnx(model, VSEProcessor(tokenizer=tokenizer), tmp_path)


def test_missing_packages_are_named(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda package: None if package == "onnxscript" else package)
    with pytest.raises(ImportError, match=r"the export needs onnxscript: pip install 'hf_vse\[onnx\]'"):
        export_onnx(None, None, tmp_path)


@slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_dual_encoders(family, runtime, tokenizer, tmp_path):
    """SigLIP reads sentences of one length and no mask."""
    save(tmp_path / "source", CASES[family], tokenizer)
    source = TransformersEncoder.from_pretrained(str(tmp_path / "source"), "cpu")
    encoder = VSEEncoder(VSEModel.from_dual_encoder(source.model), processor_of(str(tmp_path / "source")), "start")
    record = export_model(encoder, "onnx", tmp_path / "onnx")
    names = ["input_ids"] if family == "siglip" else ["input_ids", "attention_mask"]
    assert record["format"] == "onnx" and record["largest_difference"] < 1e-5 and record["text"]["inputs"] == names
    exported = load_encoder(str(tmp_path / "onnx"), device="cpu")
    np.testing.assert_allclose(encode_texts(exported, TEXTS), encode_texts(source, TEXTS), atol=1e-4)
    rows = [{"image": image} for image in images()]
    np.testing.assert_allclose(encode_images(exported, rows).embeds, encode_images(source, rows).embeds, atol=1e-4)
