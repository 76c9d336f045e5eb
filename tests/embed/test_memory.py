"""A model laid out for the CPU gives the same, learns the same, and is stored the same."""

import sys

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hf_vse.data.digests import weights_digest
from hf_vse.embed import batches
from hf_vse.embed.load import load_encoder
from hf_vse.embed.memory import place_on, reuse_freed_memory
from hf_vse.embed.run import encode_images
from hf_vse.model.modeling_vse import VSEModel
from tests.conftest import make_pairs


def resnet():
    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()


def gradients(model, pixels):
    model(pixels).pooler_output.square().sum().backward()
    return {name: each.grad for name, each in model.named_parameters()}


def test_same_numbers_and_gradients(tmp_path):
    model, plain, pixels = resnet(), resnet(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert place_on(model, "cpu") is model and weights_digest(model) == weights_digest(plain)
    states = model(pixels).last_hidden_state
    assert states.is_contiguous(memory_format=torch.channels_last) and not states.is_contiguous()
    torch.testing.assert_close(states, plain(pixels).last_hidden_state, rtol=1e-5, atol=1e-6)
    for (name, found), expected in zip(
        gradients(model, pixels).items(), gradients(plain, pixels).values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item(), msg=name)
    model.save_pretrained(tmp_path)
    again = ResNetModel.from_pretrained(tmp_path)
    assert weights_digest(again) == weights_digest(plain)


def test_a_transformer_stays_as_it_is():
    model = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32))
    place_on(model, "cpu")
    weight = model.embeddings.patch_embeddings.projection.weight
    assert weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again():
    """Faults are counted, not time: a block given back to the kernel costs one for each page."""
    import resource

    if not reuse_freed_memory():
        pytest.skip("another C library")
    pages = 4 * 2**25 / 4096  # of a block of 128 MiB
    blocks = [torch.ones(2**25) for _ in range(2)]
    del blocks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**25)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2 * pages


def test_large_pictures_are_encoded_in_parts(tiny_model, monkeypatch):
    encoder = load_encoder(str(tiny_model), device="cpu")
    images = make_pairs(7).select_columns("image")
    sizes: list[int] = []
    encoder.model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(len(given["pixel_values"])), with_kwargs=True
    )
    whole = encode_images(encoder, images).embeds
    side = encoder.processor.image_processor.crop_size.height
    monkeypatch.setattr(batches, "AT_ONCE", 3 * side * side + 1)
    torch.testing.assert_close(encode_images(encoder, images).embeds, whole, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(batches, "AT_ONCE", 1)
    torch.testing.assert_close(encode_images(encoder, images).embeds, whole, rtol=1e-5, atol=1e-6)
    encoder.model.__class__ = type("FSDPVSEModel", (FSDPModule, VSEModel), {})  # of which processes hold shares
    torch.testing.assert_close(encode_images(encoder, images).embeds, whole)
    assert sizes == [7, 3, 3, 1] + [1] * 7 + [7]
