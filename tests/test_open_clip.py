"""Models of open_clip for real, with torchvision installed; run by `make test-timm` in an environment of its own."""

import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file

from hf_vse.cli.main import main
from hf_vse.embed.adapters.open_clip_models import OpenCLIPEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.hub import open_clip_export
from hf_vse.hub.export import export_model, prepared_by_pillow
from tests.embed.test_transformers_models import CASES, SIGLIP_TEXT, Case, two_towers
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.hub.test_export import trained_model
from tests.hub.test_push_format import assert_same, expected_vectors, run_snippet
from tests.processes import run_fork

pytestmark = pytest.mark.timm
TEXTS = ["red", "a small blue circle above two green squares", "small green star", "yellow " * 90]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def open_clip(tmp_path, monkeypatch):
    """open_clip with a small architecture, and weights that are published nowhere but known by name."""
    library = pytest.importorskip("open_clip", reason='needs pip install "hf_vse[openclip]"', exc_type=ImportError)
    pytest.importorskip("torchvision", exc_type=Exception)
    (tmp_path / "ViT-tiny.json").write_text(json.dumps(TINY))
    library.add_model_config(tmp_path / "ViT-tiny.json")
    published = {"hf_hub": "org/vit-tiny/", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "quick_gelu": True,
                 "interpolation": "bilinear", "resize_mode": "squash"}  # fmt: skip
    monkeypatch.setitem(library.pretrained._PRETRAINED, "ViT-tiny", {"made_here": published})
    return library


@pytest.fixture
def weights(open_clip, tmp_path):
    model = open_clip.create_model("ViT-tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def images() -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((48, 32), (32, 64))]


@torch.no_grad()
def one_pair_at_a_time(open_clip, weights, **options) -> torch.Tensor:
    """Cosines (images, texts) as open_clip's own example computes them."""
    model, _, transform = open_clip.create_model_and_transforms("ViT-tiny", pretrained=str(weights), **options)
    tokenizer = open_clip.get_tokenizer("ViT-tiny")
    cosines = torch.empty(len(images()), len(TEXTS))
    for row, image in enumerate(images()):
        for column, text in enumerate(TEXTS):
            features = model.eval()(transform(image)[None], tokenizer([text]))
            cosines[row, column] = (features[0] @ features[1].T).squeeze()
    return cosines


def cosines_of(encoder: OpenCLIPEncoder, batch_size: int) -> torch.Tensor:
    image_embeds = encode_images(encoder, [{"image": image} for image in images()], batch_size).embeds
    return image_embeds @ encode_texts(encoder, TEXTS, batch_size).T


@pytest.mark.parametrize("batch_size", [1, 3])
def test_file_of_weights(open_clip, weights, batch_size):
    encoder = load_encoder(f"open_clip:ViT-tiny@{weights}", device="cpu")
    expected = one_pair_at_a_time(open_clip, weights)
    assert expected.std() > 0.02
    torch.testing.assert_close(cosines_of(encoder, batch_size), expected, rtol=1e-3, atol=1e-4)
    facts = encoder.facts()
    assert (facts["family"], facts["dimensions"], facts["max_text_length"]) == ("open_clip", 16, 77)
    assert json.loads(json.dumps(facts)) == facts


def test_published_weights_bring_their_preparation(open_clip, weights, monkeypatch):
    asked = []
    monkeypatch.setattr(open_clip, "download_pretrained", lambda entry: asked.append(entry["hf_hub"]) or str(weights))
    encoder = load_encoder("open_clip:ViT-tiny/made_here", device="cpu")
    assert asked == ["org/vit-tiny/"] and encoder.name == "open_clip:ViT-tiny/made_here"
    half = (0.5, 0.5, 0.5)
    options = {"image_mean": half, "image_std": half, "image_interpolation": "bilinear", "image_resize_mode": "squash"}
    expected = one_pair_at_a_time(open_clip, weights, force_quick_gelu=True, **options)
    torch.testing.assert_close(cosines_of(encoder, 2), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(expected, one_pair_at_a_time(open_clip, weights), atol=0.01)
    elsewhere = load_encoder(f"open_clip:ViT-tiny/made_here@{weights}", device="cpu")
    assert asked == ["org/vit-tiny/"] and elsewhere.digest == encoder.digest
    torch.testing.assert_close(cosines_of(elsewhere, 2), expected, rtol=1e-3, atol=1e-4)


def test_lower_precision(open_clip, weights):
    full, half = (
        load_encoder(f"open_clip:ViT-tiny@{weights}", device="cpu", dtype=each) for each in (None, "bfloat16")
    )
    assert half.facts()["dtype"] == "bfloat16"
    difference = (cosines_of(full, 2) - cosines_of(half, 2)).abs().max()
    assert 0 < difference < 0.1


def test_what_cannot_be_read_is_named(open_clip, weights, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    torch.save({}, tmp_path / "tiny.pt")
    save_file({"visual.proj": torch.ones(1)}, tmp_path / "other.safetensors")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda entry: str(tmp_path / "tiny.pt"))
    for name, error, message in (
        (
            f"ViT-tiny@{tmp_path}/tiny.pt",
            OSError,
            "tiny.pt may run code when it is read; give its weights as safetensors",
        ),
        ("ViT-tiny/made_here", OSError, "tiny.pt may run code when it is read"),
        (f"ViT-tiny@{tmp_path}/none.safetensors", OSError, "there is no file"),
        (f"ViT-tiny@{tmp_path}/other.safetensors", OSError, "give weights of this architecture"),
        ("ViT-tiny", ValueError, "names no weights; write open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-tiny/unknown", ValueError, "no weights 'unknown' of ViT-tiny on the Hub; it knows made_here"),
        ("ViT-none/made_here", ValueError, "open_clip knows no architecture 'ViT-none'"),
    ):
        with pytest.raises(error, match=message) as refused:
            load_encoder(f"open_clip:{name}")
        assert "\n" not in str(refused.value)


def clip(text: dict, vision: dict) -> Case:
    return Case(two_towers("CLIPConfig", text, vision))


GELU, TANH = {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}
EXPORTED = {
    "clip": (CASES["clip"], {}),
    "clip with heads": (CASES["clip"], {"projection_type": "linear"}),
    "clip with gelu": (clip(GELU | {"intermediate_size": 37}, GELU | {"layer_norm_eps": 1e-3}), {}),
    "clip with gelu by tanh": (clip(TANH | {"layer_norm_eps": 1e-3}, TANH), {}),
    "clip with the largest token": (clip({"eos_token_id": 2}, {}), {}),
    "siglip": (CASES["siglip"], {}),
    "siglip with a wide text tower": (Case(
        two_towers("SiglipConfig", SIGLIP_TEXT | {"hidden_size": 24, "intermediate_size": 50}), *CASES["siglip"][1:]
    ), {}),
}  # fmt: skip


@pytest.fixture
def tiny_tower_of_timm(monkeypatch):
    """timm has a small image tower of SigLIP, built as its larger ones are."""
    timm = pytest.importorskip("timm", exc_type=ImportError)

    def vit_tiny_patch8_siglip_32(num_classes, global_pool, **_):
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
        kind = {"class_token": False, "act_layer": "gelu_tanh"}
        return timm.models.VisionTransformer(**sizes, **kind, num_classes=num_classes, global_pool=global_pool)

    monkeypatch.setitem(
        timm.models._registry._model_entrypoints, "vit_tiny_patch8_siglip_32", vit_tiny_patch8_siglip_32
    )
    monkeypatch.setitem(open_clip_export.TIMM_SIZES, (16, 2, 2, 32), "tiny")
    monkeypatch.setattr(open_clip_export, "TIMM_TOWERS", ["vit_tiny_patch8_siglip_32"])


@torch.no_grad()
@pytest.mark.parametrize("which", EXPORTED)
def test_exported_models_are_loaded_by_open_clip_alone(which, open_clip, tiny_tower_of_timm, tokenizer, tmp_path):
    case, options = EXPORTED[which]
    encoder = trained_model(tmp_path, case, tokenizer, **options)
    record = export_model(encoder, "open_clip", tmp_path / "back")
    assert record["largest_difference"] < 1e-5 and not record["left_out"]
    name = f"local-dir:{tmp_path / 'back'}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    read = open_clip.get_tokenizer(name)
    texts = ["red", "A small BLUE circle  above two green squares!", "small green star", "yellow " * 90]
    prepared = [" ".join(each.split()) for each in texts]
    words = encoder.processor(text=prepared, padding="max_length")["input_ids"]
    assert torch.equal(read(texts), words) and words.shape == (4, 14)
    pixels = torch.stack([transform(image) for image in images()])
    encoder = prepared_by_pillow(encoder)
    torch.testing.assert_close(pixels, encoder.processor(images=images())["pixel_values"], rtol=0, atol=1e-5)
    found = model.eval().encode_image(pixels, normalize=True), model.encode_text(read(texts), normalize=True)
    rows = [{"image": image} for image in images()]
    expected = encode_images(encoder, rows).embeds, encode_texts(encoder, prepared)
    for side in (0, 1):
        assert expected[side].std(dim=0).mean() > 0.02
        torch.testing.assert_close(found[side], expected[side], rtol=0, atol=1e-5)
    temperature, bias = encoder.model.scaling()
    torch.testing.assert_close(model.logit_scale.exp(), 1 / temperature.squeeze())
    assert (model.logit_bias is None) == ("siglip" not in which)
    assert model.logit_bias is None or model.logit_bias.item() == pytest.approx(bias.item())
    judged = load_encoder(f"open_clip:{tmp_path / 'back'}", device="cpu")
    torch.testing.assert_close(encode_images(judged, rows).embeds, expected[0], rtol=0, atol=1e-5)


def test_real_networks_are_those_of_open_clip(open_clip):
    siglip2 = {"vision_config": {"patch_size": 32, "image_size": 256}, "text_config": {"vocab_size": 256000}}
    for name, config, words in (
        ("ViT-B-32", transformers.CLIPConfig(), 77),
        ("ViT-B-32-SigLIP2-256", transformers.SiglipConfig(**siglip2), 64),
    ):
        with torch.device("meta"):
            weights = open_clip_export.open_clip_weights(transformers.AutoModel.from_config(config), words)
            theirs = open_clip.create_model(name, device="meta").state_dict()
        assert {key: each.shape for key, each in weights.items()} == {key: each.shape for key, each in theirs.items()}
    ours, known = open_clip_export.siglip_network(config), open_clip.get_model_config(name)
    assert ours["vision_cfg"] == known["vision_cfg"] and ours["embed_dim"] == known["embed_dim"]
    assert ours["text_cfg"].items() >= {k: v for k, v in known["text_cfg"].items() if "token" not in k}.items()


def test_towers_of_timm_with_the_gelu_of_siglip_are_all_known(open_clip):
    import timm

    names = [name for name in timm.list_models("vit_*siglip*") if "_gap_" not in name]
    sizes = {(width, heads, mlp): size for (width, _, heads, mlp), size in open_clip_export.TIMM_SIZES.items()}
    with torch.device("meta"):
        for name in names:
            tower = timm.create_model(name, depth=1)
            mlp = tower.blocks[0].mlp
            by_tanh = {type(each.act).__name__ == "GELUTanh" for each in (mlp, tower.attn_pool.mlp)}
            assert by_tanh == {name in open_clip_export.TIMM_TOWERS}, name
            size = sizes[tower.embed_dim, tower.blocks[0].attn.num_heads, mlp.fc1.out_features]
            patches, pixels = tower.patch_embed.patch_size[0], tower.patch_embed.img_size[0]
            assert name == f"vit_{size}_patch{patches}_siglip_{pixels}"
    assert set(open_clip_export.TIMM_TOWERS) <= set(names)


def test_a_folder_whose_configuration_asks_for_code_is_refused(open_clip, tmp_path):
    config = {"model_cfg": TINY | {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="holds no open_clip_model.safetensors: other weights are not read"):
        load_encoder(f"open_clip:{tmp_path}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="asks for trust_remote_code: remove it"):
        load_encoder(f"open_clip:{tmp_path}")


def push_and_load(hub: FakeHub, folder: Path) -> None:
    hub.take_over(folder / "cache")
    words = ["push", str(folder / "run"), "org/name", "--format", "open_clip", "--token", TOKEN, "--quiet"]
    assert main(words) == 0
    save_file(run_snippet(Path(hf_hub_download("org/name", "README.md")).read_text()), folder / "found")


def test_snippet_of_a_pushed_model_computes_its_vectors(open_clip, tokenizer, tmp_path):
    encoder = trained_model(tmp_path, CASES["clip"], tokenizer)
    with FakeHub() as hub:
        run_fork(tmp_path / "log", push_and_load, hub, tmp_path)
        files = hub.repositories["models/org/name"].files
    expected = {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files.keys() == expected | {"README.md"}
    assert json.loads(files["open_clip_config.json"])["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "org/name"
    assert b"library_name: open_clip" in files["README.md"] and b"trust_remote_code" not in files["README.md"]
    with torch.no_grad():
        assert_same(load_file(tmp_path / "found"), expected_vectors(prepared_by_pillow(encoder)), 1e-5)
