"""Models of open_clip for real, with torchvision installed; run by `make test-timm` in an environment of its own."""

import json
import logging

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from hf_vse.embed.adapters.open_clip_models import OpenCLIPEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts

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
