"""Every family of transformers, loaded by its name, against the model itself on one image and one sentence."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, trainers

from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.embed.adapters.transformers_models import TransformersEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from tests.conftest import make_captions

LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = LAYERS | {"image_size": 32, "patch_size": 8}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
POSITIONS = 14
TEXTS = [
    "red",
    "a small Blue circle above two green squares",
    "small green star",
    "yellow",
    "large red ring left",
    " ".join(["blue"] * 30),  # longer than any of the towers reads
]


def images() -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(48, 32), (32, 64), (40, 40)]
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def text_config(tokenizer, **options) -> dict:
    return LAYERS | SPECIAL | {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS} | options


def two_towers(config_class: str, text: dict | None = None, vision: dict | None = None, **options) -> Callable:
    """Most families: a configuration with the two towers' in it."""

    def build(tokenizer):
        vision_config = VISION | (vision or {})
        config = getattr(transformers, config_class)(
            text_config=text_config(tokenizer, **(text or {})),
            vision_config=vision_config,
            projection_dim=16,
            **options,
        )
        return transformers.AutoModel.from_config(config)

    return build


def build_blip(tokenizer):
    text = text_config(tokenizer, encoder_hidden_size=16, sep_token_id=3)
    config = transformers.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=12)
    return transformers.BlipForImageTextRetrieval(config)


def build_align(tokenizer):
    one = {
        "strides": [1],
        "num_block_repeats": [1],
        "expand_ratios": [1],
        "kernel_sizes": [3],
        "depthwise_padding": [],
    }
    vision = one | {"image_size": 32, "width_coefficient": 0.5, "in_channels": [32], "out_channels": [32]}
    text = text_config(tokenizer)
    return transformers.AlignModel(
        transformers.AlignConfig(text_config=text, vision_config=vision | {"hidden_dim": 16}, projection_dim=16)
    )


def build_groupvit(tokenizer):
    groups = {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
    config = transformers.GroupViTConfig(
        text_config=text_config(tokenizer), vision_config=VISION | groups, projection_dim=16,
        projection_intermediate_dim=16,
    )  # fmt: skip
    return transformers.GroupViTModel(config)


def build_flava(tokenizer):
    config = transformers.FlavaConfig(
        text_config=text_config(tokenizer), image_config=VISION, multimodal_config=LAYERS, projection_dim=16
    )
    return transformers.FlavaModel(config)


def build_dual_encoder(tokenizer):
    vision, text = transformers.ViTConfig(**VISION), transformers.BertConfig(**text_config(tokenizer))
    both = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    return transformers.VisionTextDualEncoderModel(both)


def build_roberta_dual_encoder(tokenizer):
    roberta = transformers.RobertaConfig(**text_config(tokenizer, max_position_embeddings=POSITIONS + 1))
    vision = transformers.ViTConfig(**VISION)
    both = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, roberta, projection_dim=16)
    return transformers.VisionTextDualEncoderModel(both)


def lower_case_pieces(_) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer class of SigLIP 2, in which transformers reads whatever a folder of this family holds."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=50, special_tokens=special, show_progress=False)
    pieces.train_from_iterator([text.lower() for text in TEXTS], trainer)
    learned = json.loads(pieces.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return transformers.Siglip2Tokenizer(vocab=learned["vocab"], merges=merges, model_max_length=64)


def words_of(tokenizer) -> transformers.PreTrainedTokenizerBase:
    """The same anew: a tokenizer remembers at what length it was used and which processor saved it."""
    return train_word_tokenizer([caption for index in range(50) for caption in make_captions(index)], min_count=1)


def from_scale(model, inputs: dict) -> torch.Tensor:
    return model(**inputs).logits_per_image / model.logit_scale.exp()


def from_scale_and_bias(model, inputs: dict) -> torch.Tensor:
    return (model(**inputs).logits_per_image - model.logit_bias) / model.logit_scale.exp()


def from_temperature(model, inputs: dict) -> torch.Tensor:
    return model(**inputs).logits_per_image * model.temperature


def from_contrastive_head(model, inputs: dict) -> torch.Tensor:
    return model(**inputs, use_itm_head=False).itm_score


def from_projected_first_states(model, inputs: dict) -> torch.Tensor:
    output = model(**inputs, skip_multimodal_encoder=True)
    image = model.image_projection(output.image_embeddings[:, 0])
    text = model.text_projection(output.text_embeddings[:, 0])
    return torch.nn.functional.cosine_similarity(image, text)[None]


class Case(NamedTuple):
    build: Callable
    cosine: Callable = from_scale
    processor: str = "CLIPImageProcessorPil"
    pads_fully: bool = False
    tokenizer: Callable = words_of


SIGLIP_TEXT = {"projection_size": 16}
CASES = {
    "clip": Case(two_towers("CLIPConfig")),
    "metaclip_2": Case(two_towers("MetaClip2Config")),
    "altclip": Case(two_towers("AltCLIPConfig", {"project_dim": 16, "max_position_embeddings": POSITIONS + 1})),
    "aimv2": Case(two_towers("Aimv2Config")),
    "groupvit": Case(build_groupvit),
    "clipseg": Case(two_towers("CLIPSegConfig"), processor="ViTImageProcessorPil"),
    "chinese_clip": Case(two_towers("ChineseCLIPConfig"), processor="ChineseCLIPImageProcessorPil"),
    "align": Case(build_align, from_temperature, "EfficientNetImageProcessorPil"),
    "siglip": Case(two_towers("SiglipConfig", SIGLIP_TEXT), from_scale_and_bias, "SiglipImageProcessorPil", True),
    "siglip2": Case(
        two_towers("Siglip2Config", SIGLIP_TEXT, {"num_patches": 16}), from_scale_and_bias, "Siglip2ImageProcessorPil",
        True, lower_case_pieces,
    ),
    "tipsv2": Case(two_towers("Tipsv2Config"), from_temperature),
    "blip": Case(build_blip, from_contrastive_head, "BlipImageProcessorPil"),
    "flava": Case(build_flava, from_projected_first_states, "FlavaImageProcessorPil"),
    "vision-text-dual-encoder": Case(build_dual_encoder, processor="ViTImageProcessorPil"),
    "roberta dual encoder": Case(build_roberta_dual_encoder, processor="ViTImageProcessorPil"),
}  # fmt: skip
SQUARE = {"size": {"height": 32, "width": 32}}
SIZES = {
    "CLIPImageProcessorPil": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "FlavaImageProcessorPil": SQUARE | {"crop_size": {"height": 32, "width": 32}},
    "ChineseCLIPImageProcessorPil": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "EfficientNetImageProcessorPil": SQUARE | {"do_center_crop": False},
    "Siglip2ImageProcessorPil": {"patch_size": 8, "max_num_patches": 20},
}


@torch.no_grad()
def randomise(model) -> None:
    """Weights so large that different inputs get quite different vectors."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3)


def save(folder: Path, case: Case, words) -> Path:
    tokenizer = case.tokenizer(words)
    model = case.build(tokenizer)
    randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    getattr(transformers, case.processor)(**SIZES.get(case.processor, SQUARE)).save_pretrained(folder)
    return folder


def padded_ids(tokenizer, text: str, length: int) -> torch.Tensor:
    ids = tokenizer(text.lower())["input_ids"]
    last = ids[-1:] if ids[-1] == tokenizer.eos_token_id else []
    ids = ids if len(ids) <= length else ids[: length - len(last)] + last
    return torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids))])


@torch.no_grad()
def one_pair_at_a_time(encoder: TransformersEncoder, case: Case, words) -> torch.Tensor:
    """Cosines (images, texts) from the forward pass that the authors of the model wrote."""
    tokenizer = case.tokenizer(words)
    rows = []
    for image in images():
        pixels = getattr(transformers, case.processor)(**SIZES.get(case.processor, SQUARE))(
            [image], return_tensors="pt"
        )
        row = []
        for text in TEXTS:
            if case.pads_fully:
                inputs = {"input_ids": padded_ids(tokenizer, text, POSITIONS)}
            else:
                ids = padded_ids(tokenizer, text, min(POSITIONS, len(tokenizer(text)["input_ids"])))
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            row.append(case.cosine(encoder.model, dict(pixels) | inputs).squeeze())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_every_family_is_tested():
    assert set(DUAL_ENCODERS) <= set(CASES)


@pytest.mark.parametrize("family", CASES)
def test_family_equals_its_own_forward_pass(family, tokenizer, tmp_path):
    case = CASES[family]
    encoder = load_encoder(str(save(tmp_path, case, tokenizer)), device="cpu")
    expected = one_pair_at_a_time(encoder, case, tokenizer)
    assert expected.std() > 0.02
    for batch_size in (1, 4):
        image_embeds = encode_images(encoder, [{"image": image} for image in images()], batch_size).embeds
        text_embeds = encode_texts(encoder, TEXTS, batch_size)
        torch.testing.assert_close(image_embeds @ text_embeds.T, expected, rtol=1e-3, atol=1e-4)
    facts = encoder.facts()
    assert (
        facts["max_text_length"] == POSITIONS and facts["texts_cut"] > 0 and facts["dimensions"] == len(text_embeds.T)
    )
    assert json.loads(json.dumps(facts)) == facts


@pytest.fixture
def clip_folder(tokenizer, tmp_path) -> Path:
    return save(tmp_path / "clip", CASES["clip"], tokenizer)


def test_siglip_pads_to_its_full_length_and_hides_nothing(tokenizer, tmp_path):
    """The state that is taken stands at the last position; neither the batch nor a mask may change it."""
    encoder = load_encoder(str(save(tmp_path, CASES["siglip"], tokenizer)), device="cpu")
    read = encoder.reader(["red", "small green star"])
    assert set(read) == {"input_ids"} and read["input_ids"].shape == (2, POSITIONS)
    as_clip_would = tokenizer(["small green star"], return_tensors="pt")
    with torch.no_grad():
        shorter = encoder.model.get_text_features(**as_clip_would).pooler_output
    assert torch.cosine_similarity(shorter, encoder.encode_texts(["small green star"])) < 0.99


def test_siglip_sentences_are_lower_cased_and_padded_on_the_right(tokenizer, tmp_path):
    """Of the published tokenizers of SigLIP 2 some do not lower-case, and their class pads on the left."""
    folder = save(tmp_path, CASES["siglip"], tokenizer)
    careless = transformers.AutoTokenizer.from_pretrained(folder)
    careless.backend_tokenizer.normalizer = normalizers.NFC()
    careless.padding_side = "left"
    careless.save_pretrained(folder)
    reader = load_encoder(str(folder), device="cpu").reader
    assert reader.tokenizer("Red")["input_ids"] != reader.tokenizer("red")["input_ids"]
    assert reader.tokenizer.padding_side == "left"
    assert torch.equal(reader(["Red"])["input_ids"], padded_ids(tokenizer, "red", POSITIONS))


def test_cut_sentences_are_counted_once_and_said_once(clip_folder, caplog):
    encoder = load_encoder(str(clip_folder), device="cpu")
    long = [" ".join(["red"] * count) for count in (12, 13, 20, 20)]  # and two special tokens
    with caplog.at_level(logging.WARNING):
        encode_texts(encoder, long, batch_size=1)
        encode_texts(encoder, long, batch_size=4)
    assert encoder.facts()["texts_cut"] == 2
    lines = [record.getMessage() for record in caplog.records if "are cut" in record.getMessage()]
    assert lines == [f"{clip_folder} reads 14 tokens of a sentence; longer ones are cut"]


def test_precision_is_full_unless_asked_otherwise(clip_folder):
    stored = load_file(clip_folder / "model.safetensors")
    save_file(
        {name: tensor.half() for name, tensor in stored.items()}, clip_folder / "model.safetensors", {"format": "pt"}
    )
    rows = [{"image": image} for image in images()]
    full, half = (load_encoder(str(clip_folder), device="cpu", dtype=dtype) for dtype in (None, "bfloat16"))
    assert (full.facts()["dtype"], half.facts()["dtype"]) == ("float32", "bfloat16")
    for of_full, of_half in (
        (encode_images(full, rows).embeds, encode_images(half, rows).embeds),
        (encode_texts(full, TEXTS), encode_texts(half, TEXTS)),
    ):
        assert of_half.dtype == torch.float32 and not torch.equal(of_full, of_half)
        assert (of_full * of_half).sum(dim=1).min() > 0.99
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        load_encoder(str(clip_folder), dtype="int8")


def test_digest_names_weights_and_preparation(clip_folder):
    encoder, same = (load_encoder(str(clip_folder), device="cpu") for _ in range(2))
    assert encoder.digest == same.digest
    other = load_encoder(str(clip_folder), device="cpu")
    other.image_processor.size = {"shortest_edge": 40}
    changed = load_encoder(str(clip_folder), device="cpu")
    with torch.no_grad():
        changed.model.text_projection.weight[0, 0] += 1
    shorter = load_encoder(str(clip_folder), device="cpu")
    shorter.reader.max_length = 10
    assert len({encoder.digest, other.digest, changed.digest, shorter.digest}) == 4


def test_weights_that_are_not_safetensors_are_refused(clip_folder):
    stored = load_file(clip_folder / "model.safetensors")
    torch.save(stored, clip_folder / "pytorch_model.bin")
    (clip_folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="cannot be loaded .* only safetensors are read") as refused:
        load_encoder(str(clip_folder))
    assert "\n" not in str(refused.value)


def test_model_without_trained_heads_is_refused(tokenizer, tmp_path):
    """A captioning BLIP has the same configuration, but no contrastive heads: these would be random."""
    save(tmp_path, CASES["blip"], tokenizer)
    stored = load_file(tmp_path / "model.safetensors")
    without = {name: tensor for name, tensor in stored.items() if not name.startswith("text_proj")}
    save_file(without, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 2 weights of BlipForImageTextRetrieval .*'text_proj.bias'"):
        load_encoder(str(tmp_path))


def test_missing_processor_is_one_line(clip_folder):
    (clip_folder / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="save the image processor and the tokenizer beside the weights") as refused:
        load_encoder(str(clip_folder))
    assert "\n" not in str(refused.value)
