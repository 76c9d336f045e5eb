"""Any model by its name: the user's door to the judge."""

import json
from typing import get_args

import pytest
import torch
import transformers

from hf_vse import errors
from hf_vse.embed.load import LOADERS, Kind, kind_of, load_encoder, model_place
from hf_vse.embed.run import encode_texts
from hf_vse.evaluation.evaluator import embed_pairs
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_pairs

ADAPTER = """
import beside
import torch
from hf_vse.embed.encoder import Encoder

class Sizes(Encoder):
    def encode_images(self, images):
        return torch.tensor([[image.width, image.height + beside.ONE] for image in images])
    def encode_texts(self, texts):
        return torch.tensor([[len(text), beside.ONE] for text in texts], dtype=torch.float64)

class Other:
    pass
"""


@pytest.fixture
def adapter(tmp_path) -> str:
    (tmp_path / "my_encoder.py").write_text(ADAPTER)
    (tmp_path / "beside.py").write_text("ONE = 1")
    return f"{tmp_path / 'my_encoder.py'}:Sizes"


def test_every_kind_has_its_loader():
    assert {"auto", *LOADERS} == set(get_args(Kind))


@torch.no_grad()
def test_model_of_this_package(tiny_model):
    encoder = load_encoder(str(tiny_model), device="cpu")
    model, processor = VSEModel.from_pretrained(tiny_model).eval(), VSEProcessor.from_pretrained(tiny_model)
    texts = ["red", "a small blue circle above", "green star"]
    expected = torch.cat([model(**processor(text=[text])).text_embeds for text in texts])
    torch.testing.assert_close(encode_texts(encoder, texts, 2), expected, rtol=1e-4, atol=1e-5)
    assert encoder.name == str(tiny_model) and encoder.facts()["family"] == "hf_vse"
    half = load_encoder(str(tiny_model), device="cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16 and half.digest != encoder.digest


def test_code_that_comes_with_a_model_is_not_run(tiny_model, tmp_path):
    """A saved model of this package carries its own code; the installed one is used."""
    for file in tiny_model.iterdir():
        if file.suffix in (".json", ".safetensors", ".txt"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in tiny_model.glob("*.py"):
        (tmp_path / file.name).write_text("raise SystemExit('the code of the model was run')")
    assert type(load_encoder(str(tmp_path), device="cpu").model) is VSEModel


def test_own_file_in_ten_lines(adapter):
    encoder = load_encoder(adapter)
    assert encoder.name == adapter
    pairs = embed_pairs(encoder, make_pairs(3, captions=2), progress=False)
    torch.testing.assert_close(pairs.image_embeds, torch.tensor([[32.0, 33.0]] * 3) / 2113**0.5)
    assert pairs.text_embeds.shape == (6, 2) and pairs.text_embeds.dtype == torch.float32


def test_own_file_is_known_by_its_text(adapter, tmp_path):
    digest = load_encoder(adapter).digest
    assert load_encoder(adapter).digest == digest
    (tmp_path / "my_encoder.py").write_text(ADAPTER.replace("image.width", "2 * image.width"))
    assert load_encoder(adapter).digest != digest


def test_class_of_an_installed_module():
    encoder = load_encoder("tests.embed.test_encode:Colours")
    assert encoder.name == "colours" and kind_of("tests.embed.test_encode:Colours") == "python"


def refusal(call) -> str:
    with pytest.raises((ValueError, OSError, ImportError)) as refused:
        call()
    assert errors.refusal(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_wrong_with_an_own_file_is_said(adapter, tmp_path):
    file = tmp_path / "my_encoder.py"
    assert "has no Size; write class Size(Encoder)" in refusal(lambda: load_encoder(f"{file}:Size"))
    assert "does not derive from hf_vse.embed.encoder.Encoder: Other" in refusal(lambda: load_encoder(f"{file}:Other"))
    assert "there is no file" in refusal(lambda: load_encoder(f"{tmp_path}/none.py:Sizes"))
    assert "there is no module no_such_module" in refusal(lambda: load_encoder("no_such_module.encoders:Sizes"))
    assert "device='cuda' has no effect" in refusal(lambda: load_encoder(adapter, device="cuda"))
    assert "names no class; write my_encoder.py:MyEncoder" in refusal(lambda: load_encoder(str(file), kind="python"))


def test_own_error_of_an_own_file_is_not_hidden(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as error:
        load_encoder(f"{tmp_path}/broken.py:Sizes")
    assert errors.refusal(error.value) is None


def test_names_that_are_not_understood_list_what_is(tokenizer, tmp_path):
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=16)  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    for name, found in (
        ("bert", "is a model of type 'bert'"),
        ("empty", "holds no config.json"),
        ("none", "does not exist, and cannot be a Hub id"),
    ):
        message = refusal(lambda name=name: load_encoder(str(tmp_path / name)))
        assert found in message and "siglip2" in message and "encode_images(images)" in message
    assert "none of the known dual encoders" in refusal(
        lambda: load_encoder(str(tmp_path / "bert"), kind="transformers")
    )
    assert "nothing of that name was found on the Hub" in refusal(lambda: load_encoder("no-such/model"))
    assert "kind must be one of auto, vse" in refusal(lambda: load_encoder("bert", kind="keras"))
    (tmp_path / "empty" / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(lambda: load_encoder(str(tmp_path / "empty")))


def test_code_of_the_hub_needs_consent(tmp_path):
    config = {"model_type": "strange_clip", "auto_map": {"AutoConfig": "code.StrangeConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('run')")
    assert "is a model of type 'strange_clip'" in refusal(lambda: load_encoder(str(tmp_path)))
    assert kind_of(str(tmp_path), trust_remote_code=True) == "transformers"


def test_a_folder_of_open_clip_is_known_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "open_clip_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert kind_of("mine") == kind_of("open_clip:mine") == "open_clip"
    assert model_place("open_clip:mine") == f"open_clip:{tmp_path / 'mine'}"
    assert model_place("open_clip:ViT-B-32/openai") == "open_clip:ViT-B-32/openai"
