"""An image tower that runs from one of its blocks on gives what the whole tower gives, forward and backward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_vse.data.features import FeatureRows
from hf_vse.data.pairs import PairDataset
from hf_vse.data.schema import IMAGE_STATES
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.lower_blocks import below, check_chain, first_trained, passed_by, states_below, states_in_place
from hf_vse.training.trainable import freeze
from hf_vse.training.trainer import VSETrainer
from tests.conftest import make_pairs
from tests.training.test_trainer import losses, weights

TINY = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
TOWERS = {
    "resnet": {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16]}
    | {"depths": [1, 1, 1]},
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 8, 16], "depths": [1, 1, 1], "num_stages": 3},
    "vit": {"model_type": "vit", "image_size": 16, "patch_size": 8} | TINY,
    "clip": {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8} | TINY,
}
SWIN = {
    "model_type": "swin",
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 1],
} | {"window_size": 2}


def model_of(tower: dict, tokenizer) -> VSEModel:
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 8}
    return VSEModel(VSEConfig(vision_config=tower, text_config=text, projection_dim=8)).eval()


@pytest.fixture
def processor(tokenizer):
    return VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=16), tokenizer)


@pytest.fixture
def make_args(tmp_path):
    """Of a training of the last two blocks, whose crops are all equal to the plain view."""
    fixed = {"output_dir": str(tmp_path / "run"), "frozen_cache_dir": str(tmp_path / "cache"), "save_strategy": "no"}
    fixed |= {"crop_min_scale": 1.0, "mirror_images": False, "eval_strategy": "no", "disable_tqdm": True}
    fixed |= {"unfreeze_last_blocks": 2, "freeze_batchnorm": True, "cached_crops": 1, "optim": "sgd"}
    fixed |= {"per_device_train_batch_size": 4, "logging_steps": 1, "num_train_epochs": 2, "learning_rate": 1e-2}
    return lambda **options: VSETrainingArguments(**fixed | options)


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("tower", TOWERS)
def test_from_its_states_a_tower_gives_the_same(tower, kept, tokenizer):
    model = model_of(TOWERS[tower], tokenizer)
    images, words = torch.randn(3, 3, 16, 16), torch.tensor([[4, 5], [6, 7], [5, 6]])
    block = first_trained(model, kept)
    check_chain(model, block, {"pixel_values": images})
    trained = dict(block.named_parameters())
    weigh = torch.randn(3, 8)

    def gradients(**inputs) -> list[torch.Tensor]:
        model.zero_grad()
        (model(input_ids=words, **inputs).image_embeds * weigh).sum().backward()
        return [each.grad for each in trained.values() if each.grad is not None]

    expected = gradients(pixel_values=images)
    inputs = {IMAGE_STATES: states_below(model, block, {"pixel_values": images})}
    with states_in_place(below(model, block), inputs):
        found = gradients(**inputs)
    assert expected and {*inputs} == {"pixel_values"}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    lower = [each for module in below(model, block) for each in module.parameters()]
    assert lower and all(each.grad is None for each in lower)


@pytest.mark.parametrize("mirrored", [False, True])
def test_training_on_kept_states_equals_training_with_the_tower(mirrored, processor, tokenizer, make_args):
    found = {}
    for cached in (True, False):
        model, args = model_of(TOWERS["resnet"], tokenizer), make_args(cache_frozen=cached)
        model.config.mirror_average = mirrored
        read = cache_frozen_towers(model, processor, {"train": make_pairs(12)}, args)
        assert (IMAGE_STATES in read["train"].column_names) is cached
        if not cached:  # states are kept in float16
            first_trained(model, 2).register_forward_pre_hook(lambda _, given: (given[0].half().float(),))
        trainer = VSETrainer(model, args, train_dataset=read["train"], processing_class=processor)
        trainer.train()
        found[cached] = losses(trainer), weights(trainer.model)
        assert not any("forward" in vars(module) for module in model.modules()), "the whole tower runs again"
    start = weights(model_of(TOWERS["resnet"], tokenizer))
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-5)
    moved = 0
    for name, expected in found[False][1].items():
        step = (expected - start[name]).double().norm()
        assert (found[True][1][name] - expected).double().norm() <= 1e-3 * step
        assert not step or ".stages.0." not in name
        moved += bool(step)
    assert moved > 4


def test_states_are_found_again_until_a_block_below_changes(processor, tokenizer, make_args):
    model, split, args = model_of(TOWERS["resnet"], tokenizer), make_pairs(6), make_args(cached_crops=2)
    pairs = PairDataset(cache_frozen_towers(model, processor, {"train": split}, args)["train"])
    assert pairs.source == IMAGE_STATES and len(pairs.views) == 3

    def shards() -> int:
        cache_frozen_towers(model, processor, {"train": split}, args)
        return len(list(Path(args.frozen_cache_dir).rglob("*.arrow")))

    before = shards()
    with torch.no_grad():
        next(first_trained(model, 2).parameters()).add_(1)
    assert shards() == before
    with torch.no_grad():
        next(model.vision_model.parameters()).add_(1)
    assert shards() == 2 * before


def test_kept_states_are_those_of_the_images(processor, tokenizer, make_args):
    model, split = model_of(TOWERS["vit"], tokenizer), make_pairs(5)
    read = cache_frozen_towers(model, processor, {"train": split}, make_args())["train"]
    assert "image" not in read.column_names
    expected = states_below(model, first_trained(model, 2), dict(processor(images=split["image"][:])))
    for column in (IMAGE_STATES, f"{IMAGE_STATES}_1"):
        rows = FeatureRows(read, column)
        found = torch.tensor(np.stack([rows[row] for row in range(5)]))
        torch.testing.assert_close(found, expected.half().float(), rtol=1e-3, atol=1e-3)


def test_a_tower_that_is_no_chain_is_refused(processor, tokenizer, make_args):
    model = model_of(SWIN, tokenizer)
    with pytest.raises(ValueError, match="of the type swin do not run from one of their blocks on: give cached_crops"):
        cache_frozen_towers(model, processor, {"train": make_pairs(4)}, make_args(unfreeze_last_blocks=1))


def test_more_blocks_than_there_are_are_refused(processor, tokenizer, make_args):
    model = model_of(TOWERS["resnet"], tokenizer)
    with pytest.raises(ValueError, match="unfreeze_last_blocks=4: the image tower has 3 blocks"):
        cache_frozen_towers(model, processor, {"train": make_pairs(4)}, make_args(unfreeze_last_blocks=4))


def test_an_error_leaves_the_tower_whole(tokenizer):
    model = model_of(TOWERS["vit"], tokenizer)
    freeze(model, VSETrainingArguments(unfreeze_last_blocks=1))
    images = {"pixel_values": torch.randn(1, 3, 16, 16)}
    expected = model.pool_images(**images)[1]
    with pytest.raises(KeyError), passed_by(below(model, first_trained(model, 1))):
        raise KeyError
    assert torch.equal(model.pool_images(**images)[1], expected)
