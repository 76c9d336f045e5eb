"""Which parameters learn and at what rate, against lists of their names."""

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.layers import blocks_of, layer_numbers
from hf_vse.training.recipe import build_recipe
from hf_vse.training.trainable import freeze
from tests.training.test_trainer import arguments, make_trainer, weights

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8} | TINY
BERT = {"model_type": "bert", "vocab_size": 30, "max_position_embeddings": 16} | TINY
RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 2]}
GRU = {"vocab_size": 30, "word_dim": 4, "hidden_size": 8, "num_layers": 2, "bidirectional": True}


def both(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def under(prefix: str, names: list[str]) -> list[str]:
    return [prefix + name for name in names]


VIT_BLOCK = both(
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "layernorm_before",
    "layernorm_after", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
BERT_BLOCK = both(
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
CONV = ["convolution.weight", "normalization.weight", "normalization.bias"]
GRU_LAYER = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
# By the number of the layer: embeddings, blocks, what follows.
LAYERS = {
    "vit": [
        ["embeddings.cls_token", "embeddings.position_embeddings", *both("embeddings.patch_embeddings.projection")],
        under("layers.0.", VIT_BLOCK),
        under("layers.1.", VIT_BLOCK),
        both("layernorm", "pooler.dense"),
    ],
    "bert": [
        [
            "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
            "embeddings.token_type_embeddings.weight", *both("embeddings.LayerNorm"),
        ],
        under("encoder.layer.0.", BERT_BLOCK),
        under("encoder.layer.1.", BERT_BLOCK),
        both("pooler.dense"),
    ],
    "resnet": [
        under("embedder.embedder.", CONV),
        under("encoder.stages.0.layers.0.layer.0.", CONV) + under("encoder.stages.0.layers.0.layer.1.", CONV),
        [
            each
            for place in ("0.shortcut", "0.layer.0", "0.layer.1", "1.layer.0", "1.layer.1")
            for each in under(f"encoder.stages.1.layers.{place}.", CONV)
        ],
        [],
    ],
    "gru": [
        ["embedding.weight"],
        under("forward_layers.0.", GRU_LAYER) + under("backward_layers.0.", GRU_LAYER),
        under("forward_layers.1.", GRU_LAYER) + under("backward_layers.1.", GRU_LAYER),
        [],
    ],
}  # fmt: skip


def make_model(vision=VIT, text=BERT, **options) -> VSEModel:
    torch.manual_seed(0)
    return VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=6, **options))


PAIRS = {"vit and bert": (VIT, BERT), "resnet and gru": (RESNET, GRU)}


def layers_of(pair: str) -> list[list[str]]:
    """The names of the parameters of both towers, by layer."""
    vision, text = pair.split(" and ")
    of_both = zip(LAYERS[vision], LAYERS[text], strict=True)
    return [under("vision_model.", image) + under("text_model.", words) for image, words in of_both]


@pytest.mark.parametrize("pair", PAIRS)
def test_layers_are_numbered_from_the_input(pair):
    model, found = make_model(*PAIRS[pair]), [[], [], [], []]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for tower in model.tower_modules().values():
        numbers, blocks = layer_numbers(tower)
        assert blocks == 2
        for parameter, number in numbers.items():
            found[number].append(names[parameter])
    for number, expected in enumerate(layers_of(pair)):
        assert sorted(found[number]) == sorted(expected), number


def test_projections_of_a_dual_encoder_follow_its_blocks():
    config = CLIPConfig(
        text_config=TINY | {"vocab_size": 30, "max_position_embeddings": 8, "eos_token_id": 2},
        vision_config=TINY | {"image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    model = VSEModel.from_dual_encoder(CLIPModel(config))
    for side, tower in model.tower_modules().items():
        numbers, blocks = layer_numbers(tower)
        by_name = {name: numbers[id(each)] for module in tower for name, each in module.named_parameters()}
        assert blocks == 2 and len(numbers) == sum(1 for module in tower for _ in module.parameters())
        last = getattr(model.dual_encoder, "visual_projection" if side == "vision" else "text_projection")
        assert numbers[id(last.weight)] == 3
        assert {number for name, number in by_name.items() if "embedding" in name} == {0}
        assert {number for name, number in by_name.items() if ".layers.1." in name} == {2}


def test_blocks_of_towers_that_are_built_in_other_ways():
    def conv() -> nn.Module:
        return nn.Conv2d(3, 3, 3)

    side_by_side = nn.Module()  # as timm's ResNet
    side_by_side.conv1, side_by_side.layer1 = conv(), nn.Sequential(conv(), conv(), conv())
    side_by_side.between, side_by_side.layer2, side_by_side.layer3 = (
        conv(),
        nn.Sequential(conv()),
        nn.Sequential(conv()),
    )
    side_by_side.norm = nn.BatchNorm2d(3)
    assert blocks_of([side_by_side]) == [[getattr(side_by_side, f"layer{number}")] for number in (1, 2, 3)]
    numbers, _ = layer_numbers([side_by_side])
    parts = (
        side_by_side.conv1,
        side_by_side.layer1[2],
        side_by_side.between,
        side_by_side.layer2[0],
        side_by_side.norm,
    )
    assert [numbers[id(part.weight)] for part in parts] == [0, 1, 1, 2, 4]

    nested = nn.Module()  # as Swin: the blocks of a stage are not those of the tower
    nested.stem = nn.Sequential(conv())
    nested.stages = nn.Sequential(nn.Sequential(conv()), nn.Sequential(nn.ModuleList(conv() for _ in range(5))))
    assert blocks_of([nested]) == [[stage] for stage in nested.stages]

    without = nn.Module()
    without.embedding, without.rnn = nn.Embedding(4, 3), nn.GRU(3, 3)
    numbers, blocks = layer_numbers([without])
    assert blocks == 1 and numbers[id(without.embedding.weight)] == 0
    assert {numbers[id(each)] for each in without.rnn.parameters()} == {1}
    assert layer_numbers([nn.Identity()]) == ({}, 1)


def rates(model: VSEModel, folder, tokenizer, **options) -> dict[str, float]:
    trainer = make_trainer(folder, tokenizer, model=model, learning_rate=1e-2, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    assert all(group["lr"] == group.get("initial_lr", group["lr"]) for group in groups)
    found = [(names[id(each)], group["lr"]) for group in groups for each in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.fixture
def unread(monkeypatch):
    """The trainer does not look which parameters the loss reaches: the data here are of other towers."""
    monkeypatch.setattr("hf_vse.training.trainer.VSETrainer.set_aside_unused", lambda *given: None)


@pytest.mark.parametrize("pair", PAIRS)
def test_rate_falls_from_the_last_block_to_the_first(pair, unread, tokenizer, tmp_path):
    model = make_model(*PAIRS[pair], loss_type="siglip")
    found = rates(
        model, tmp_path, tokenizer, layer_decay=0.5, image_tower_learning_rate=1e-3, temperature_learning_rate=7e-4
    )
    expected = dict.fromkeys(both("visual_projection", "text_projection"), 1e-2)
    expected |= dict.fromkeys(("logit_scale", "logit_bias"), 7e-4)
    for number, names in enumerate(layers_of(pair)):
        base = {"vision_model": 1e-3, "text_model": 1e-2}
        expected |= {name: base[name.split(".")[0]] * 0.5 ** (3 - number) for name in names}
    assert found == pytest.approx(expected)


def test_one_rate_is_one_group_of_each_kind(unread, tokenizer, tmp_path):
    found = rates(make_model(), tmp_path, tokenizer)
    assert set(found.values()) == {1e-2} and len(found) == len(list(make_model().parameters()))


def test_norms_biases_and_temperature_do_not_decay(unread, tokenizer, tmp_path):
    model = make_model(RESNET, GRU, loss_type="siglip", projection_type="mlp")
    trainer = make_trainer(tmp_path, tokenizer, model=model, weight_decay=0.1, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    decayed = {names[id(each)] for group in groups if group["weight_decay"] for each in group["params"]}
    layers = [name for layer in layers_of("resnet and gru") for name in layer]
    expected = {name for name in layers if name.endswith("convolution.weight") or "weight_ih" in name}
    expected |= {name for name in layers if "weight_hh" in name or name == "text_model.embedding.weight"}
    expected |= {"visual_projection.weight", "text_projection.weight"}
    expected |= {f"{side}_head.{place}.weight" for side in ("visual", "text") for place in ("expand", "contract")}
    assert decayed == expected
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    bert = make_trainer(tmp_path, tokenizer, model=make_model(), weight_decay=0.1)
    undecayed = set(names for names, _ in bert.model.named_parameters()) - set(
        bert.get_decay_parameter_names(bert.model)
    )
    assert undecayed == {
        name for name, _ in bert.model.named_parameters() if "norm" in name.lower() or name.endswith("bias")
    }


def trainable(model: VSEModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kept", [1, 2])
def test_last_blocks_and_heads_are_trained(pair, kept, tmp_path):
    model = make_model(*PAIRS[pair], loss_type="clip")
    freeze(model, arguments(tmp_path, unfreeze_last_blocks=kept))
    layers = layers_of(pair)
    expected = {name for layer in layers[3 - kept :] for name in layer}
    assert trainable(model) == expected | set(both("visual_projection", "text_projection")) | {"logit_scale"}
    freeze(model, arguments(tmp_path, unfreeze_last_blocks=kept, freeze_image_tower=True))
    assert trainable(model) == {
        name for name in expected | set(both("visual_projection", "text_projection")) | {"logit_scale"}
        if not name.startswith("vision_model.")
    }  # fmt: skip
    freeze(model, arguments(tmp_path))
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_more_blocks_than_there_are_is_an_error(tmp_path):
    model = make_model()
    with pytest.raises(
        ValueError, match="unfreeze_last_blocks=3, but the towers have at most 2 blocks: give a smaller"
    ):
        freeze(model, arguments(tmp_path, unfreeze_last_blocks=3))
    smaller = make_model(text=BERT | {"num_hidden_layers": 1})
    freeze(smaller, arguments(tmp_path, unfreeze_last_blocks=2))
    assert not any(name.startswith("text_model.embeddings") for name in trainable(smaller))
    assert "text_model.encoder.layer.0.output.dense.weight" in trainable(smaller)


def test_what_somebody_else_froze_stays_frozen(tmp_path):
    model = make_model(RESNET, GRU)
    model.text_model.embedding.requires_grad_(False)
    freeze(model, arguments(tmp_path, freeze_image_tower=True))
    assert not any(name.startswith("vision_model.") for name in trainable(model))
    freeze(model, arguments(tmp_path, freeze_batchnorm=True))
    frozen = {name for name, _ in model.named_parameters()} - trainable(model)
    assert frozen == {"text_model.embedding.weight"} | {
        name for name, _ in model.named_parameters() if "normalization" in name
    }
    freeze(model, arguments(tmp_path))
    assert {name for name, _ in model.named_parameters()} - trainable(model) == {"text_model.embedding.weight"}


def test_frozen_blocks_do_not_move_and_the_rest_does(tokenizer, tmp_path):
    text = BERT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    model = make_model({"model_type": "vse_features", "hidden_size": 16}, text, text_pooling="mean")
    before = weights(model)
    make_trainer(tmp_path, tokenizer, model=model, unfreeze_last_blocks=1, layer_decay=0.9, max_steps=3).train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    # the bias of a key shifts all scores of a word alike, and the loss does not reach the pooler
    still = {"encoder.layer.1.attention.self.key.bias"}
    expected = {name for name in under("encoder.layer.1.", BERT_BLOCK) if name not in still}
    heads = set(both("visual_projection", "text_projection"))
    assert moved - {f"text_model.{name}" for name in still} == {f"text_model.{name}" for name in expected} | heads


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay is a number above 0 and to 1, got 0"),
        ({"layer_decay": 0.7, "freeze_text_tower": True}, "layer_decay does nothing: no tower is trained"),
        ({"unfreeze_last_blocks": 1, "freeze_text_tower": True}, "unfreeze_last_blocks does nothing: no tower"),
        ({"unfreeze_last_blocks": 0}, "unfreeze_last_blocks is a number from 1 to 1000, got 0"),
        ({"temperature_learning_rate": 1e-4}, "no objective of the run learns its temperature"),
    ],
)
def test_settings_without_effect_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        build_recipe({"dataset": "precomp", "data_dir": "data"} | changed)
    assert build_recipe({"dataset": "scenes", "vision_config": RESNET, "layer_decay": 0.7, "freeze_text_tower": True})
    assert build_recipe({"dataset": "precomp", "loss_type": "clip", "temperature_learning_rate": 1e-4})
