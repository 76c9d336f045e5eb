"""Adapters against the towers themselves: what they start as, what they end as, and every execution the same."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training import lora
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.lora import ADAPTERS, adapted_layers, adapted_modules, adapters, check_adapters, merged_state
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from hf_vse.training.trainable import freeze
from tests.conftest import make_pairs
from tests.embed.test_transformers_models import CASES, TEXTS, images, save
from tests.faults.killing import slow
from tests.training.dual_encoders import start, trained, trainer_of
from tests.training.test_adapt import recipe_from
from tests.training.test_dual_encoder_training import assert_same
from tests.training.test_trainer import Watch, losses, make_model, weights

LORA = {"lora_rank": 2, "learning_rate": 0.1}
STEPS = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "optim": "adamw_torch"}


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
    """The folder of a tiny model of a family."""
    parent = tmp_path_factory.mktemp("sources")
    return {family: save(parent / family, CASES[family], tokenizer) for family in ("clip", "siglip", "blip")}


def arguments(**options) -> VSETrainingArguments:
    return VSETrainingArguments(output_dir="unused", **options)


def vectors(model, processor):
    outputs = model.eval()(**processor(images=images(), text=TEXTS[:3]))
    return torch.cat([outputs.image_embeds, outputs.text_embeds]).detach()


def test_adapters_are_below_two_percent_of_a_real_model():
    with torch.device("meta"):
        config = transformers.CLIPConfig(vision_config={"patch_size": 32})
        model = VSEModel(VSEConfig(dual_encoder_config=config, projection_type="none"))
        whole = sum(each.numel() for each in model.parameters())
        layers = adapted_layers(model)
        assert {side: len(of_tower) for side, of_tower in layers.items()} == {"vision": 12 * 6, "text": 12 * 6}
        pytest.importorskip("peft")
        with adapters(model, arguments(lora_rank=8)):
            found = sum(each.numel() for name, each in model.named_parameters() if ".lora_" in name)
            trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    expected = 8 * 12 * (4 * 2 * 768 + 2 * (768 + 3072) + 4 * 2 * 512 + 2 * (512 + 2048))
    assert found == expected == trained and 0.014 < found / whole < 0.02


def test_heads_projections_and_multihead_attention_are_left_alone(source):
    model, _ = start(source["siglip"], projection_type="residual")
    names = {name for of_tower in adapted_layers(model).values() for name in of_tower}
    assert len(names) == 2 * 2 * 6 and all(".layers." in name for name in names)
    # the layers of a block of torch's own attention; and a tower that is frozen
    block = torch.nn.Module()
    block.attention, block.linear = torch.nn.MultiheadAttention(4, 2), torch.nn.Linear(4, 4)
    model.dual_encoder.vision_model.encoder.layers.append(block)
    freeze(model, arguments(freeze_text_tower=True))
    layers = adapted_layers(model)
    assert not layers["text"] and "dual_encoder.vision_model.encoder.layers.2.linear" in layers["vision"]
    assert not any("attention.out_proj" in name for name in layers["vision"])


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_adapters_start_as_the_tower_and_the_saved_model_is_their_sum(family, source, tmp_path):
    pytest.importorskip("peft")
    model, processor = start(source[family], projection_type="residual")
    before, given = vectors(model, processor), weights(model)
    seen = []
    trainer = trainer_of(tmp_path, model, processor, **LORA | {"save_strategy": "epoch", "num_train_epochs": 1})

    def look():
        seen.append(vectors(model, processor))
        assert all(name.startswith("logit") or "head" in name or ".lora_" in name for name in trainable(model))
        assert len(adapted_modules(model)) == 24

    trainer.add_callback(Watch(look))
    with adapters(model, trainer.args):
        torch.testing.assert_close(vectors(model, processor), before, rtol=0, atol=1e-6)
    trainer.train()
    assert not adapted_modules(model) and model.state_dict().keys() == given.keys()
    torch.testing.assert_close(vectors(model, processor), seen[-1], rtol=0, atol=1e-5)
    assert (seen[-1] - before).abs().max() > 1e-3
    [checkpoint] = tmp_path.glob("checkpoint-*")
    stored = load_file(checkpoint / "model.safetensors")
    assert stored.keys() == given.keys()
    for name, tensor in weights(model).items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-7, msg=name)
    moved = {name for name, tensor in stored.items() if not torch.equal(tensor, given[name])}
    assert {name for name in moved if name.startswith("dual_encoder.")} == {
        f"{name}.weight" for of_tower in adapted_layers(model).values() for name in of_tower
    }
    loaded = VSEModel.from_pretrained(checkpoint)
    torch.testing.assert_close(vectors(loaded, processor), seen[-1], rtol=0, atol=1e-5)


def trainable(model) -> list[str]:
    return [name for name, each in model.named_parameters() if each.requires_grad]


def test_gradients_of_the_adapters_are_those_written_out(source, tmp_path):
    """dA = alpha / rank * B' dW and dB = alpha / rank * dW A', with dW of the layer that has the sum."""
    pytest.importorskip("peft")
    model, processor = start(source["clip"])
    inputs = dict(processor(images=images(), text=TEXTS[:3]))
    with adapters(model, arguments(lora_rank=3, lora_alpha=7.0)):
        for layer in adapted_modules(model).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        model.eval()(**inputs, return_loss=True).loss.backward()
        summed, _ = start(source["clip"])
        summed.load_state_dict(merged_state(model))
        summed.eval()(**inputs, return_loss=True).loss.backward()
        for name, layer in adapted_modules(model).items():
            down, up = (getattr(layer, part)["default"].weight for part in ("lora_A", "lora_B"))
            of_sum = summed.get_submodule(name).weight.grad
            torch.testing.assert_close(down.grad, 7 / 3 * up.T @ of_sum, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(up.grad, 7 / 3 * of_sum @ down.T, rtol=1e-3, atol=1e-5)


@slow
def test_less_memory_changes_nothing(source, tmp_path):
    pytest.importorskip("peft")
    for family in ("clip", "blip"):
        plain = trained(tmp_path / "plain", source[family], **LORA)
        options = {"grad_cache_batch_size": 3, "activation_checkpointing": True}
        cached = trained(tmp_path / "cached", source[family], **LORA | options)
        assert len(set(plain[0])) == 4
        assert_same(cached, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.5, "freeze_text_tower": True}], ids=str)
def test_resumed_to_the_bit(more, source, tmp_path):
    pytest.importorskip("peft")
    options = LORA | STEPS | {"lora_dropout": 0.3, "learning_rate": 1e-2, "mirror_images": True} | more
    options["model"] = {"projection_type": "residual"}
    whole = trained(tmp_path / "whole", source["siglip"], **options)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = trained(tmp_path / "resumed", source["siglip"], resume=str(checkpoint), **options)
    assert len(whole[0]) == 4 and resumed[0] == whole[0]
    for name, tensor in whole[1].items():
        assert torch.equal(resumed[1][name], tensor), name
    for changed, message in (
        ({"lora_rank": 3}, "was written with other adapters: give the lora_rank"),
        ({"lora_alpha": 9.0}, "was trained from another model than this one .*lora_alpha"),
        ({"lora_rank": 0, "lora_dropout": 0.0}, "was written with adapters: give the lora_rank"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(tmp_path / "other", source["siglip"], resume=str(checkpoint), **options | changed)
    (checkpoint / ADAPTERS).unlink()
    with pytest.raises(ValueError, match="was written with no adapters"):
        trained(tmp_path / "other", source["siglip"], resume=str(checkpoint), **options)


def test_second_training_has_adapters_of_its_own(source, tmp_path):
    pytest.importorskip("peft")
    model, processor = start(source["clip"])
    trainer, ends = trainer_of(tmp_path, model, processor, **LORA), [weights(model)]
    for _ in range(2):
        trainer.train()
        ends.append(weights(model))
        names = (f"{name}.weight" for of_tower in adapted_layers(model).values() for name in of_tower)
        assert all(not torch.equal(ends[-1][name], ends[-2][name]) for name in names)


def test_run_keeps_the_best_and_a_second_stage_adapts_it_again(source, tmp_path):
    pytest.importorskip("peft")
    stages = [{"name": "first", "lora_rank": 2}, {"name": "second", "lora_rank": 4, "lora_alpha": 4.0}]
    run_recipe(recipe_from(source["clip"], tmp_path / "run", stages=stages, learning_rate=1e-2))
    first, end = (load_file(each / "model.safetensors") for each in (tmp_path / "run/stages/first", tmp_path / "run"))
    expected = {f"dual_encoder.{name}" for name in load_file(source["clip"] / "model.safetensors")}
    assert end.keys() == first.keys() == expected | {"logit_scale"}
    assert not list((tmp_path / "run").glob(ADAPTERS)) and list((tmp_path / "run").rglob(f"checkpoint-*/{ADAPTERS}"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dual_encoder_config"]["model_type"] == "clip"


def test_what_cannot_be_adapted_is_refused(tokenizer, tiny_resnet, source, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    model = make_model(tokenizer, vision=tiny_resnet)
    with pytest.raises(ValueError, match="lora_rank=4, but no tower that is trained has blocks with linear layers"):
        check_adapters(model, arguments(lora_rank=4))
    model, processor = start(source["clip"])
    with pytest.raises(ValueError, match="FSDP or DeepSpeed shards them: train with DDP, or give lora_rank: 0"):
        check_adapters(model, arguments(lora_rank=4), sharded=True)
    frozen = {"freeze_image_tower": True, "freeze_text_tower": True, "projection_type": "linear"}
    for given, message in (
        (frozen | {"lora_rank": 4}, "lora_rank does nothing: both towers are frozen"),
        ({"lora_alpha": 4.0}, "lora_alpha does nothing: there are no adapters: give lora_rank"),
        ({"lora_rank": -1}, "lora_rank is a number from 0 to 1024, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            build_recipe({"dataset": "scenes", "init_from": "org/model", **given})
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lora_rank=4 needs peft: pip install 'hf_vse\[lora\]'"):
        trainer_of(tmp_path, model, processor, make_pairs(8), lora_rank=4)


def test_tower_without_linear_layers_is_trained_as_it_is(tokenizer, source, tmp_path):
    """A recurrent text tower beside a transformer for images."""
    pytest.importorskip("peft")
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = make_model(tokenizer, vision={"model_type": "vit", "image_size": 32, "patch_size": 8} | tiny)
    _, processor = start(source["clip"])
    given = weights(model)
    trainer = trainer_of(tmp_path, model, processor, **LORA)
    trainer.train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, given[name])}
    assert len(set(losses(trainer))) == 4 and any(name.startswith("text_model.") for name in moved)
    of_tower = {name for name in moved if name.startswith("vision_model.")}
    assert of_tower and all(name.endswith(".weight") and ".layer" in name for name in of_tower)
