import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, ViTConfig, ViTModel

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.losses_vse import contrastive_loss
from hf_vse.model.modeling_vse import MAX_LOGIT_SCALE, PooledFeatures, ProjectionHead, VSEModel
from tests.conftest import assert_same_vectors
from tests.faults.killing import slow

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8} | TINY
BERT = {"model_type": "bert", "vocab_size": 40, "max_position_embeddings": 32} | TINY
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
GRU = {"model_type": "vse_gru_text", "vocab_size": 40, "word_dim": 8, "hidden_size": 16}
FEATURES = {"model_type": "vse_features", "hidden_size": 10}


def build(vision, text=GRU, **options) -> VSEModel:
    return VSEModel(VSEConfig(vision_config=vision, text_config=text, **{"projection_dim": 16} | options)).eval()


def text_inputs(lengths=(6, 3, 1)):
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(4, 40, mask.shape) * mask, "attention_mask": mask}


def image_inputs(model):
    if model.config.vision_config.model_type == "vse_features":
        return {"image_features": torch.randn(3, 10)}
    return {"pixel_values": torch.randn(3, 3, 32, 32)}


def saved_and_loaded(model, folder, **options):
    model.save_pretrained(folder)
    return VSEModel.from_pretrained(folder, **options).eval()


TOWERS = {
    "resnet": ("resnet", GRU, {}),
    "vit-cls": (VIT, GRU, {"vision_pooling": "cls"}),
    "vit-pooler-bert": (VIT, BERT, {"vision_pooling": "pooler", "text_pooling": "mean"}),
    "convnext-gpo": (CONVNEXT, GRU | {"bidirectional": True}, {"vision_pooling": "gpo", "text_pooling": "gpo"}),
    "features-mlp": (FEATURES, GRU, {"projection_type": "mlp"}),
    "features-bert-cls": (FEATURES, BERT, {"text_pooling": "cls"}),
    "features-bert-layers": (FEATURES, BERT, {"text_pooling": "mean", "text_layers": 2}),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_embed_to_unit_vectors_and_survive_saving(name, tiny_resnet, tmp_path):
    vision, text, options = TOWERS[name]
    model = build(tiny_resnet if vision == "resnet" else vision, text, **options)
    inputs = text_inputs() | image_inputs(model)
    output = model(**inputs, return_loss=True)
    assert output.image_embeds.shape == output.text_embeds.shape == (3, 16)
    torch.testing.assert_close(output.image_embeds.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(output.logits_per_image, output.image_embeds @ output.text_embeds.T / 0.1)
    output.loss.backward()
    grads = [parameter.grad for name, parameter in model.visual_projection.named_parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    again = saved_and_loaded(model, tmp_path)(**inputs)
    assert_same_vectors(again.image_embeds.detach(), output.image_embeds.detach())
    assert_same_vectors(again.text_embeds.detach(), output.text_embeds.detach())


@pytest.mark.parametrize("name", ["resnet", "vit-cls", "vit-pooler-bert", "convnext-gpo"])
def test_mirror_average_adds_the_mirror_image_except_in_training(name, tiny_resnet):
    vision, text, options = TOWERS[name]
    model = build(tiny_resnet if vision == "resnet" else vision, text, **options, mirror_average=True)
    pixels = torch.randn(3, 3, 32, 32)
    plain, mirrored = (model.pool_images(each, alone=True) for each in (pixels, pixels.flip(-1)))
    expected = (plain.pooler_output + mirrored.pooler_output) / 2
    torch.testing.assert_close(model.pool_images(pixels).pooler_output, expected)
    assert torch.equal(model.pool_images(pixels).last_hidden_state, plain.last_hidden_state)
    embeds = model(pixel_values=pixels).image_embeds
    torch.testing.assert_close(embeds, model(image_features=expected).image_embeds)
    torch.testing.assert_close(embeds, model(pixel_values=pixels.flip(-1)).image_embeds)
    model.config.mirror_average = False
    assert torch.equal(model.pool_images(pixels).pooler_output, plain.pooler_output)
    trained = model.train().pool_images(pixels).pooler_output
    model.config.mirror_average = True
    assert torch.equal(model.pool_images(pixels).pooler_output, trained)


@pytest.mark.parametrize("vision", [FEATURES, {"model_type": "siglip2_vision_model"}])
def test_mirror_average_is_refused_where_no_picture_is_read(vision):
    with pytest.raises(ValueError, match="mirror_average True needs a tower of whole pictures: write true or false"):
        VSEConfig(vision_config=vision, text_config=GRU, mirror_average=True)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_layers_of_the_text_tower_are_pooled_one_beside_the_other(pooling):
    model, inputs = build(FEATURES, BERT, text_pooling=pooling, text_layers=3), text_inputs()
    layers = model.text_model(**inputs, output_hidden_states=True).hidden_states
    expected = []
    for sentence, length in enumerate((6, 3, 1)):
        words = [layer[sentence, :length] for layer in layers[-3:]]
        pooled = {"mean": [each.mean(0) for each in words], "max": [each.amax(0) for each in words]}
        expected.append(torch.cat(pooled.get(pooling, [each[0] for each in words])))
    torch.testing.assert_close(model.pool_texts(**inputs).pooler_output, torch.stack(expected))
    output = model.get_text_features(**inputs)
    features = model.get_text_features(text_features=torch.stack(expected))
    torch.testing.assert_close(output.pooler_output, features.pooler_output)
    torch.testing.assert_close(output.last_hidden_state, layers[-1])


@pytest.mark.parametrize(("text", "pooling", "most"), [(GRU, "last", 1), (BERT, "pooler", 1), (BERT, "mean", 3)])
def test_more_text_layers_than_there_are_are_refused(text, pooling, most):
    with pytest.raises(ValueError, match=f"text_layers is at most {most} .*got {most + 1}"):
        build(FEATURES, text, text_pooling=pooling, text_layers=most + 1)


@pytest.mark.parametrize("loss_type", ["nce", "hardnce_smooth", "clip", "siglip"])
def test_loss_of_the_model_is_the_reference_on_its_embeddings(loss_type):
    model = build(FEATURES, loss_type=loss_type)
    image_ids, text_ids = torch.tensor([[0, 0, 1], [5, 6, 5]])
    output = model(
        **text_inputs(), image_features=torch.randn(3, 10), image_ids=image_ids, text_ids=text_ids, return_loss=True
    )
    expected = contrastive_loss(
        output.image_embeds, output.text_embeds, loss_type=loss_type, temperature=0.1, margin=0.2,
        logit_bias=-10.0, image_ids=image_ids, text_ids=text_ids,
    )  # fmt: skip
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("loss_type", ["clip", "siglip"])
def test_learned_scalars_can_be_sharded_and_come_out_as_scalars(loss_type):
    model = build(FEATURES, loss_type=loss_type, temperature=0.05)
    assert all(parameter.ndim for parameter in model.parameters())
    output = model(**text_inputs(), image_features=torch.randn(3, 10), return_loss=True)
    assert output.temperature.shape == output.logit_bias.shape == output.loss.shape == ()
    assert output.temperature.item() == pytest.approx(0.05)
    assert output.logits_per_image.shape == (3, 3)


def test_learned_temperature_is_limited_and_keeps_its_gradient_at_the_limit():
    model = build(FEATURES, loss_type="clip")
    inputs = text_inputs() | {"image_features": torch.randn(3, 10)}
    # at 0.01 as a recipe gives it, as CLIP and as SigLIP store it, and at the limit
    for value in (-math.log(0.01), 4.6052, 4.77, MAX_LOGIT_SCALE):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        assert model.scaling()[0].item() == pytest.approx(math.exp(-value), rel=1e-5)
        model.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        assert model.logit_scale.grad.abs() > 0, value
    with torch.no_grad():
        model.logit_scale.fill_(50.0)
    assert model.scaling()[0].item() == pytest.approx(math.exp(-MAX_LOGIT_SCALE))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype).limit_logit_scale()
        assert model.logit_scale.item() == MAX_LOGIT_SCALE, "no precision rounds the limit away"
    assert build(FEATURES, loss_type="clip", temperature=1e-9).logit_scale.item() == MAX_LOGIT_SCALE


@pytest.mark.parametrize("loader", ["class", "remote code", "state dict"])
def test_checkpoints_with_scalars_of_no_dimension_load(loader, tmp_path):
    model = build(FEATURES, loss_type="siglip")
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        model.logit_bias.fill_(-4.0)
    model.save_pretrained(tmp_path)
    old = load_file(tmp_path / "model.safetensors")
    assert old["logit_scale"].shape == old["logit_bias"].shape == (1,)
    old |= {name: old[name].squeeze() for name in ("logit_scale", "logit_bias")}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if loader == "class":
        loaded, report = VSEModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
    elif loader == "remote code":
        loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
        assert type(loaded) is not VSEModel
    else:
        loaded = build(FEATURES, loss_type="siglip")
        loaded.load_state_dict(old)
    assert loaded.logit_scale.tolist() == [3.0] and loaded.logit_bias.tolist() == [-4.0]
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors")["logit_scale"].tolist() == [3.0]


def test_gru_equals_packed_bidirectional_gru():
    model = build(FEATURES, GRU | {"bidirectional": True})
    tower, inputs = model.text_model, text_inputs()
    packed = nn.GRU(8, 16, batch_first=True, bidirectional=True)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    with torch.no_grad():
        for name in names:
            getattr(packed, name).copy_(getattr(tower.forward_layers[0], name))
            getattr(packed, name + "_reverse").copy_(getattr(tower.backward_layers[0], name))
    words = nn.utils.rnn.pack_padded_sequence(
        tower.embedding(inputs["input_ids"]), inputs["attention_mask"].sum(1), batch_first=True, enforce_sorted=False
    )
    states, final = packed(words)
    states = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)[0]
    output = tower(**inputs)
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(output.last_hidden_state[mask], ((states[..., :16] + states[..., 16:]) / 2)[mask])
    torch.testing.assert_close(output.pooler_output, final.mean(dim=0))


def test_embedding_of_a_sentence_does_not_depend_on_its_batch():
    for options in ({}, {"text_pooling": "gpo"}, {"text_pooling": "mean"}):
        model = build(FEATURES, GRU | {"bidirectional": True}, **options)
        inputs = text_inputs()
        together = model(**inputs).text_embeds[1]
        alone = model(input_ids=inputs["input_ids"][1:2, :3], attention_mask=inputs["attention_mask"][1:2, :3])
        torch.testing.assert_close(together, alone.text_embeds[0])


def test_regions_are_a_set_and_padding_is_ignored():
    model = build(FEATURES, vision_pooling="gpo")
    regions = torch.randn(2, 4, 10)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    embeds = model(image_features=regions, image_mask=mask).image_embeds
    shuffled = regions[:, [2, 0, 1, 3]]
    shuffled[0, 3] = 100.0
    torch.testing.assert_close(model(image_features=shuffled, image_mask=mask).image_embeds, embeds)


def test_base_stage_gets_fresh_heads_and_keeps_everything_else(tmp_path):
    base = build(FEATURES, loss_type="hinge_sum")
    model = saved_and_loaded(base, tmp_path, projection_type="mlp", loss_type="hardnce")
    before, after = base.state_dict(), model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    fresh = {name for name in after if name not in before}
    assert fresh == {f"{side}_head.{part}" for side in ("visual", "text") for part in
                     ("expand.weight", "contract.weight", "contract.bias")}  # fmt: skip
    bound = (6 / (16 + 32)) ** 0.5
    weight = after["visual_head.expand.weight"]
    assert 0.5 * bound < weight.abs().max() <= bound
    assert model.config.loss_type == "hardnce"


def test_frozen_tower_keeps_its_batchnorm_statistics(tiny_resnet):
    model = build(tiny_resnet)
    model.vision_model.requires_grad_(False)
    before = {name: buffer.clone() for name, buffer in model.vision_model.named_buffers()}
    model.train()
    model(pixel_values=torch.randn(3, 3, 32, 32))
    assert before and model.training and not model.vision_model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.vision_model.named_buffers())
    model.vision_model.requires_grad_(True)
    model.train()
    model(pixel_values=torch.randn(3, 3, 32, 32))
    assert not all(torch.equal(buffer, before[name]) for name, buffer in model.vision_model.named_buffers())


def test_from_towers_keeps_pretrained_weights():
    image = ViTModel(ViTConfig(**{key: value for key, value in VIT.items() if key != "model_type"}))
    text = BertModel(BertConfig(**{key: value for key, value in BERT.items() if key != "model_type"}))
    model = VSEModel.from_towers(image, text, projection_dim=8, vision_pooling="cls", text_pooling="mean").eval()
    pixels, tokens = torch.randn(2, 3, 32, 32), text_inputs()
    states = image.eval()(pixels).last_hidden_state
    torch.testing.assert_close(model.get_image_features(pixels).last_hidden_state, states)
    torch.testing.assert_close(
        model.get_text_features(**tokens).last_hidden_state, text.eval()(**tokens).last_hidden_state
    )
    assert model.config.projection_dim == 8


def test_gradient_checkpointing_gives_the_same_gradient():
    model = build(VIT, BERT, text_pooling="mean").train()
    inputs = text_inputs() | {"pixel_values": torch.randn(3, 3, 32, 32)}
    for config in (model.config.vision_config, model.config.text_config):
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradient():
        model.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    plain = gradient()
    model.activation_checkpointing_enable()
    checkpointed = gradient()
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


def test_bf16_autocast_and_bf16_weights_give_float32_unit_vectors(tmp_path):
    model = build(FEATURES)
    inputs = text_inputs() | {"image_features": torch.randn(3, 10)}
    exact = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**inputs)
    low = saved_and_loaded(model, tmp_path, dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    for output in (mixed, low(**inputs)):
        assert output.image_embeds.dtype == output.logits_per_image.dtype == torch.float32
        assert torch.cosine_similarity(output.text_embeds, exact.text_embeds).min() > 0.99


@slow
def test_compiled_model_equals_eager():
    model = build(FEATURES, GRU | {"bidirectional": True}, projection_type="mlp")
    inputs = text_inputs() | {"image_features": torch.randn(3, 10)}
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits_per_image, model(**inputs).logits_per_image)


def test_one_modality_alone_and_missing_input():
    model = build(FEATURES)
    assert model(**text_inputs()).image_embeds is None
    with pytest.raises(ValueError, match="return_loss=True needs both sides"):
        model(**text_inputs(), return_loss=True)
    with pytest.raises(ValueError, match="no image: give pixel_values"):
        model.get_image_features()


def test_bad_configuration_names_the_value():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        VSEConfig(temperature=0)
    with pytest.raises(ValueError, match="vision_config: model_type 'resnett'"):
        VSEConfig(vision_config={"model_type": "resnett"})
    with pytest.raises(ValueError, match="loss_type must be one of nce, .*, got 'ncee'"):
        VSEConfig(loss_type="ncee")


def test_pooled_features_are_scaled_as_the_configuration_says():
    features = torch.tensor([[4.0, 0.0, -9.0, 1.0]])
    length_one = features / 98**0.5
    torch.testing.assert_close(PooledFeatures("l2", 1.0, 0.0)(features), length_one)
    torch.testing.assert_close(PooledFeatures("rms", 1.0, 0.0)(features), 2 * length_one)
    torch.testing.assert_close(PooledFeatures("none", 0.5, 0.0)(features), torch.tensor([[2.0, 0.0, -3.0, 1.0]]))
    model = build(FEATURES, vision_norm="rms", vision_power=0.5, text_norm="l2")
    assert model.visual_input.norm == "rms" and model.text_input.norm == "l2" and model.text_input.power == 1


def test_gradient_of_a_root_is_finite_at_zero():
    features = torch.zeros(1, 4, requires_grad=True)
    (PooledFeatures("none", 0.5, 0.0)(features) + features).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_residual_head_adds_what_it_reads():
    head, embeds = ProjectionHead(6, residual=True), torch.randn(3, 6)
    plain = ProjectionHead(6)
    plain.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(embeds), embeds + plain(embeds))


@pytest.mark.parametrize(
    "options", [{"projection_type": "residual"}, {"projection_type": "mlp", "head_init": "identity"}]
)
def test_training_with_such_heads_starts_from_the_linear_map(options):
    torch.manual_seed(0)
    model = build(FEATURES, **options)
    features = torch.randn(3, 10)
    linear = torch.nn.functional.normalize(model.visual_projection(model.visual_input(features)), dim=-1)
    torch.testing.assert_close(model(image_features=features).image_embeds, linear)
    assert model.visual_head.expand.weight.abs().max() > 0


def test_dropout_acts_in_training_only():
    model = build(FEATURES, projection_type="residual", feature_dropout=0.5, head_dropout=0.5)
    inputs = {"image_features": torch.randn(3, 10)}
    model.eval()
    assert torch.equal(model(**inputs).image_embeds, model(**inputs).image_embeds)
    model.train()
    assert not torch.equal(model(**inputs).image_embeds, model(**inputs).image_embeds)


def test_pooled_outputs_take_the_place_of_pixels_and_words():
    model = build(VIT, BERT, vision_pooling="cls", text_pooling="mean", projection_type="mlp")
    with torch.no_grad():
        model.eval()
        text = text_inputs()
        pooled = model.pool_texts(**text)[1]
        expected = model(**text).text_embeds
        torch.testing.assert_close(model(text_features=pooled).text_embeds, expected)
        pixels = image_inputs(model)
        features = model.pool_images(**pixels)[1]
        torch.testing.assert_close(model(image_features=features).image_embeds, model(**pixels).image_embeds)
