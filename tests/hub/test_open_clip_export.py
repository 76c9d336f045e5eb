"""The folder of open_clip, without open_clip: names and shapes of weights, and what is refused."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_vse.embed.adapters.open_clip_models import FOLDER_CONFIG, FOLDER_WEIGHTS, OpenCLIPEncoder
from hf_vse.hub.export import OPEN_CLIP, export_model
from hf_vse.hub.open_clip_export import image_preparation, open_clip_weights
from tests.embed.test_transformers_models import CASES, Case, two_towers
from tests.hub.test_export import trained_model


def clip(text: dict | None = None, vision: dict | None = None) -> Case:
    return Case(two_towers("CLIPConfig", text, vision))


def test_weights_of_clip_vit_b_32_get_the_names_and_shapes_of_open_clip():
    with torch.device("meta"):
        source = transformers.CLIPModel(transformers.CLIPConfig())
        weights = open_clip_weights(source, words=77)
        assert open_clip_weights(source, words=20)["positional_embedding"].shape == (20, 512)
    assert sum(each.numel() for each in weights.values()) == sum(each.numel() for each in source.parameters())
    shapes = {name: tuple(each.shape) for name, each in weights.items()}
    assert len(shapes) == 302 and shapes["logit_scale"] == ()
    assert shapes["visual.conv1.weight"] == (768, 3, 32, 32) and shapes["visual.class_embedding"] == (768,)
    assert shapes["visual.positional_embedding"] == (50, 768) and shapes["visual.proj"] == (768, 512)
    assert shapes["visual.transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)
    assert shapes["token_embedding.weight"] == (49408, 512) and shapes["text_projection"] == (512, 512)
    assert shapes["transformer.resblocks.0.mlp.c_fc.bias"] == (2048,) and shapes["ln_final.weight"] == (512,)


def test_queries_keys_and_values_are_joined_as_torch_has_them():
    case = CASES["clip"]
    source = case.build(case.tokenizer(None)).eval()
    layer = source.text_model.encoder.layers[1].self_attn
    weights = open_clip_weights(source, words=14)
    joined = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    start = "transformer.resblocks.1.attn."
    joined.load_state_dict({name.removeprefix(start): each for name, each in weights.items() if start in name
                            and not name.startswith("visual")})  # fmt: skip
    states = torch.randn(3, 5, 16)
    expected = layer(states, attention_mask=None)[0]
    torch.testing.assert_close(joined(states, states, states, need_weights=False)[0], expected)


def test_folder_holds_network_weights_and_tokenizer(tokenizer, tmp_path):
    case = clip({"hidden_act": "gelu", "intermediate_size": 40, "eos_token_id": 2}, {"hidden_act": "gelu"})
    encoder = trained_model(tmp_path, case, tokenizer, projection_type="linear")
    record = export_model(encoder, OPEN_CLIP, tmp_path / "back", check=False, repo_id="org/name")
    assert record["format"] == "open_clip" and record["largest_difference"] is None
    files = {path.name for path in (tmp_path / "back").iterdir()}
    assert files == {FOLDER_CONFIG, FOLDER_WEIGHTS, "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "back" / FOLDER_CONFIG).read_text())
    assert config["model_cfg"]["quick_gelu"] is False and config["preprocess_cfg"]["resize_mode"] == "shortest"
    text = config["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] == "org/name" and text["mlp_ratio"] == 2.5 and "pool_type" not in text
    weights, head = load_file(tmp_path / "back" / FOLDER_WEIGHTS), encoder.model.visual_projection.weight
    last = encoder.model.dual_encoder.visual_projection.weight
    torch.testing.assert_close(weights["visual.proj"], (head @ last).T)
    assert weights["logit_scale"].exp().item() == pytest.approx(1 / encoder.model.scaling()[0].item())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (CASES["siglip"], "no SigLIP with an image tower of 16 numbers, 2 layers, patches of 8 at 32 pixels"),
        (clip({"hidden_act": "gelu"}), "no hidden_act 'quick_gelu' for images beside 'gelu' for sentences"),
        (clip({"hidden_act": "silu"}, {"hidden_act": "silu"}), "no hidden_act silu, only quick_gelu, gelu"),
        (clip()._replace(processor="ViTImageProcessorPil"), "no ViTImageProcessor, only CLIPImageProcessor and"),
        (CASES["align"], "has no format 'open_clip': give one of align, sentence-transformers, onnx"),
    ],
)
def test_what_open_clip_does_not_have_is_refused_in_one_line(case, message, tokenizer, tmp_path):
    encoder = trained_model(tmp_path, case, tokenizer)
    with pytest.raises(ValueError, match=message) as refused:
        export_model(encoder, OPEN_CLIP, tmp_path / "back", check=False)
    assert "\n" not in str(refused.value) and "sentence-transformers" in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "run"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 256}}, "with size {'shortest_edge': 256} and crop_size {'height': 224"),
        ({"size": {"height": 224, "width": 224}, "crop_size": 200}, "and crop_size {'height': 200, 'width': 200}"),
        ({"do_center_crop": False}, "and crop_size None before a tower of 224 pixels"),
        ({"resample": 0}, "and resample 0"),
        ({"rescale_factor": 1 / 127.5}, "with rescale_factor 0.0078"),
        ({"do_normalize": False}, "only CLIPImageProcessor and SiglipImageProcessor that resize and normalize"),
    ],
)
def test_preparation_of_images_that_open_clip_does_not_have_is_refused(options, message):
    image_processor = transformers.CLIPImageProcessorPil(**options)
    with pytest.raises(ValueError, match="open_clip has no ") as refused:
        image_preparation(image_processor, 224)
    assert message in str(refused.value)


def test_images_are_squashed_where_the_image_processor_does_it():
    image_processor = transformers.SiglipImageProcessorPil(resample=2)
    assert image_preparation(image_processor, 224) == {
        "size": [224, 224], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
        "resize_mode": "squash",
    }  # fmt: skip


def test_without_open_clip_the_check_says_what_to_install(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenCLIPEncoder, "needs", ("open_clip_that_is_not_there",))
    encoder = trained_model(tmp_path, CASES["clip"], tokenizer)
    with pytest.raises(ImportError, match=r"open_clip needs .*: pip install 'hf_vse\[openclip\]'"):
        export_model(encoder, OPEN_CLIP, tmp_path / "back")
    assert not (tmp_path / "back").exists()
