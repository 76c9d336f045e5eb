"""Models of sentence-transformers against the transformers model inside them."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers

from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.embed.load import kind_of, load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from tests.embed.test_transformers_models import CASES, TEXTS, images, save

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """CLIP as sentence-transformers stores it."""
    inner = save(tmp_path_factory.mktemp("clip"), CASES["clip"], tokenizer)
    clip, pixels = (
        transformers.CLIPModel.from_pretrained(inner),
        transformers.CLIPImageProcessorPil.from_pretrained(inner),
    )
    used = deepcopy(tokenizer)
    used("red", truncation=True, max_length=64)  # which is saved with it, and must not count
    transformers.CLIPProcessor(pixels, used).save_pretrained(inner)
    clip.save_pretrained(inner)
    outer = tmp_path_factory.mktemp("sentence")
    sentence_transformers.SentenceTransformer(str(inner), device="cpu").save(str(outer))
    return outer


@torch.no_grad()
def test_vectors_are_those_of_the_model_inside(folder, tokenizer):
    encoder = load_encoder(str(folder), device="cpu")
    model = encoder.model[0].model.eval()
    short = TEXTS[:-1]
    for batch_size in (1, 3):
        image_embeds = encode_images(encoder, [{"image": image} for image in images()], batch_size).embeds
        text_embeds = encode_texts(encoder, short, batch_size)
        for row, image in enumerate(images()):
            pixels = encoder.model[0].processor.image_processor([image], return_tensors="pt")
            for column, text in enumerate(short):
                logits = model(**pixels, **tokenizer([text], return_tensors="pt")).logits_per_image
                cosine = image_embeds[row] @ text_embeds[column]
                torch.testing.assert_close(cosine, (logits / model.logit_scale.exp()).squeeze(), rtol=1e-3, atol=1e-4)


def test_sentence_that_looks_like_a_file_is_a_sentence(folder):
    encoder = load_encoder(str(folder), device="cpu")
    assert encode_texts(encoder, ["red", "https://example.org/red.jpg"]).shape == (2, 16)


@torch.no_grad()
def test_sentence_longer_than_the_text_tower_is_cut(folder, tokenizer):
    encoder = load_encoder(str(folder), device="cpu")
    model, long = encoder.model[0].model, " ".join(["red circle"] * 50)
    longest = model.config.text_config.max_position_embeddings
    assert encoder.facts()["max_text_length"] == longest < len(tokenizer(long)["input_ids"])
    cut = tokenizer([long], truncation=True, max_length=longest, return_tensors="pt")
    expected = torch.nn.functional.normalize(model.get_text_features(**cut).pooler_output)
    torch.testing.assert_close(encode_texts(encoder, [long]), expected, rtol=1e-4, atol=1e-5)


def test_record_and_digest(folder):
    encoder = load_encoder(str(folder), device="cpu")
    facts = encoder.facts()
    assert (facts["family"], facts["dimensions"], facts["dtype"]) == ("sentence-transformers", 16, "float32")
    assert json.loads(json.dumps(facts)) == facts
    assert encoder.digest == load_encoder(str(folder), device="cpu").digest
    assert load_encoder(str(folder), device="cpu", dtype="bfloat16").facts()["dtype"] == "bfloat16"


def test_modules_stand_before_the_model_inside_and_our_models_before_them(folder, tiny_model):
    assert (tiny_model / "modules.json").is_file()
    assert kind_of(str(folder)) == "sentence_transformers" and kind_of(str(tiny_model)) == "vse"


def test_weights_that_are_not_safetensors_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = next(tmp_path.rglob("model.safetensors"))
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match="pytorch_model.bin may run code when it is read"):
        load_encoder(str(tmp_path))


def test_model_that_reads_no_images_is_refused(tmp_path):
    tokenizer = train_word_tokenizer(TEXTS, min_count=1)
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=16)  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    sentence_transformers.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "words"))
    with pytest.raises(ValueError, match="encodes text but no images; give a CLIP model"):
        load_encoder(str(tmp_path / "words"))


def test_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr("hf_vse.embed.weights.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"needs sentence-transformers: pip install 'hf_vse\[sentence\]'"):
        load_encoder(str(folder))
