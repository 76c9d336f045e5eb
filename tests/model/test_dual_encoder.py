"""A model that starts as a dual encoder of transformers: the same numbers, saved, loaded, and trained."""

import pytest
import torch
import transformers

from hf_vse.embed.adapters.own_models import load_vse_model, load_vse_processor
from hf_vse.embed.adapters.transformers_models import TransformersEncoder, processor_of
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.dual_encoder_vse import SCALARS_OF_SOURCE, scale_and_bias
from hf_vse.model.modeling_vse import VSEModel
from tests.embed.test_transformers_models import CASES, TEXTS, images, save

WITH_LOSS = ("clip", "metaclip_2", "altclip", "groupvit", "clipseg", "chinese_clip", "siglip", "siglip2",
             "vision-text-dual-encoder", "roberta dual encoder")  # fmt: skip


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory):
    """Loads a family once: its encoder, and the model and processor that start as it."""
    known = {}

    def load(family: str):
        if family not in known:
            folder = save(tmp_path_factory.mktemp("source") / "model", CASES[family], tokenizer)
            source = TransformersEncoder.from_pretrained(str(folder), "cpu")
            known[family] = source, VSEModel.from_dual_encoder(source.model).eval(), processor_of(str(folder))
        return known[family]

    return load


def vectors(encoder):
    return encode_images(encoder, [{"image": image} for image in images()]).embeds, encode_texts(encoder, TEXTS)


@pytest.mark.parametrize("family", CASES)
def test_starts_with_the_vectors_and_scalars_of_its_source(family, start, tmp_path):
    source, model, processor = start(family)
    expected = vectors(source)
    for found in (VSEEncoder(model, processor, "start"), saved_and_loaded(model, processor, tmp_path)):
        for ours, theirs in zip(vectors(found), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert found.dim == source.dim
    scale, bias = scale_and_bias(source.model)
    temperature, logit_bias = (value.item() for value in model.scaling())
    assert 1 / temperature == pytest.approx(10 if scale is None else scale, rel=1e-6)
    assert logit_bias == pytest.approx(0 if bias is None else bias, abs=1e-6)
    assert model.config.loss_type == ("clip" if bias is None else "siglip")


def saved_and_loaded(model, processor, folder) -> VSEEncoder:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    loaded = load_vse_model(folder, "cpu")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    return VSEEncoder(loaded, load_vse_processor(folder), str(folder))


@pytest.mark.parametrize("family", WITH_LOSS)
def test_loss_and_every_gradient_are_those_of_its_source(family, start):
    source, model, processor = start(family)
    inputs = dict(processor(images=images(), text=TEXTS[:3]))
    inputs.pop("token_type_ids", None)
    theirs = source.model(**inputs, return_loss=True).loss
    ours = model(**inputs, return_loss=True).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    source.model.zero_grad()
    model.zero_grad()
    theirs.backward()
    ours.backward()
    found = dict(model.dual_encoder.named_parameters())
    reached = 0
    for name, parameter in source.model.named_parameters():
        if name in SCALARS_OF_SOURCE:
            gradient = getattr(model, name).grad.view_as(parameter)
        else:
            gradient = found[name].grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
            reached += 1
    assert reached > 20


def test_towers_are_all_modules_that_give_the_vectors(start):
    for family in CASES:
        _, model, processor = start(family)
        model.zero_grad()
        model(**processor(images=images(), text=TEXTS[:3]), return_loss=True).loss.backward()
        reached = {name for name, each in model.named_parameters() if each.grad is not None}
        towers = model.tower_modules()
        of_towers = {id(each) for side in towers.values() for module in side for each in module.parameters()}
        outside = {name for name in reached if id(model.get_parameter(name)) not in of_towers}
        assert outside <= {"logit_scale", "logit_bias"}, family


@pytest.mark.parametrize(
    "options",
    [
        {"projection_type": "linear"},
        {"projection_type": "residual"},
        {"projection_type": "mlp", "head_init": "identity"},
    ],
)
def test_heads_start_as_the_identity(options, start, tmp_path):
    source, _, processor = start("siglip")
    model = VSEModel.from_dual_encoder(source.model, **options)
    assert len(list(model.parameters())) > len(list(source.model.parameters()))
    for found in (VSEEncoder(model, processor, "start"), saved_and_loaded(model, processor, tmp_path)):
        for ours, theirs in zip(vectors(found), vectors(source), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_source_keeps_its_weights(start):
    source, model, processor = start("clip")
    with torch.no_grad():
        for parameter in VSEModel.from_dual_encoder(source.model).parameters():
            parameter.zero_()
    torch.testing.assert_close(vectors(VSEEncoder(model, processor, "s"))[1], vectors(source)[1], rtol=0, atol=1e-6)


def test_large_scale_of_the_source_keeps_its_gradient(start):
    source, _, processor = start("clip")
    with torch.no_grad():
        source.model.logit_scale.fill_(4.6052)
    model = VSEModel.from_dual_encoder(source.model)
    model(**processor(images=images(), text=TEXTS[:3]), return_loss=True).loss.backward()
    assert model.logit_scale.item() == pytest.approx(4.6052, abs=1e-6) and model.logit_scale.grad.abs().item() > 0


def test_configuration_holds_each_part_once(start):
    _, model, _ = start("clip")
    values = model.config.to_dict()
    assert "vision_config" not in values and values["dual_encoder_config"]["model_type"] == "clip"
    again = VSEConfig.from_dict(values)
    assert again.vision_config.to_dict() == model.config.dual_encoder_config.vision_config.to_dict()
    with pytest.raises(ValueError, match="'bert' is no known dual encoder"):
        VSEConfig(dual_encoder_config={"model_type": "bert"})
    with pytest.raises(ValueError, match="projection_type 'none' needs a dual_encoder_config"):
        VSEConfig(projection_type="none")
    with pytest.raises(ValueError, match=r"dual_encoder_config\.text_config: num_hidden_layers asks for 1000000"):
        VSEConfig(dual_encoder_config={"model_type": "clip", "text_config": {"num_hidden_layers": 1_000_000}})


def test_real_configurations_fit(start):
    """The keys of the real models, without their weights."""
    for config in (transformers.CLIPConfig(), transformers.SiglipConfig()):
        with torch.device("meta"):
            keys = VSEModel(VSEConfig(dual_encoder_config=config, projection_type="none")).state_dict().keys()
            theirs = transformers.AutoModel.from_config(config).state_dict().keys()
        assert {key.removeprefix("dual_encoder.") for key in keys if key.startswith("dual_encoder.")} == set(theirs)
