"""What every model of transformers can do: states on request, another attention, another vocabulary, tuples."""

import pytest
import torch

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from tests.model.test_modeling import BERT, TINY, VIT, build, image_inputs, saved_and_loaded, text_inputs

VISION, TEXT = {"image_size": 32, "patch_size": 8} | TINY, {"vocab_size": 40, "max_position_embeddings": 32} | TINY
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CLIP = {"model_type": "clip", "vision_config": VISION, "text_config": TEXT | SPECIAL, "projection_dim": 16}
BLIP = CLIP | {"model_type": "blip", "text_config": TEXT | SPECIAL | {"encoder_hidden_size": 16}}
BLIP |= {"image_text_hidden_size": 16}


def whole(dual_encoder) -> VSEModel:
    return VSEModel(VSEConfig(dual_encoder_config=dual_encoder, projection_dim=16, projection_type="none")).eval()


MODELS = {"two towers": lambda: build(VIT, BERT), "clip": lambda: whole(CLIP), "blip": lambda: whole(BLIP)}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@torch.no_grad()
def test_states_and_attentions_of_both_towers(model):
    model.set_attn_implementation("eager")
    images, texts = image_inputs(model), text_inputs()
    plain = model(**texts, **images)
    assert plain.vision_model_output is None and plain.text_model_output is None
    recorded = {"output_hidden_states": True, "output_attentions": True}
    outputs = model(**texts, **images, **recorded)
    torch.testing.assert_close(outputs.logits_per_text, plain.logits_per_text)
    for found, expected, length in (
        (outputs.vision_model_output, model.get_image_features(**images, **recorded), 17),
        (outputs.text_model_output, model.get_text_features(**texts, **recorded), 6),
    ):
        torch.testing.assert_close(found.pooler_output, expected.pooler_output)
        assert [state.shape for state in found.hidden_states] == [(3, length, 16)] * 3
        assert [weights.shape for weights in found.attentions] == [(3, 2, length, length)] * 2
        for state, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(state, other)
        ones = found.attentions[0].sum(dim=-1)
        torch.testing.assert_close(ones, torch.ones_like(ones))


def test_misspelt_arguments_are_refused(model):
    with pytest.raises(TypeError, match="unknown argument 'image_msk'; a tower takes pixel_values, "):
        model.get_image_features(**image_inputs(model), image_msk=None)
    with pytest.raises(TypeError, match="unknown argument 'token_types'"):
        model.get_text_features(**text_inputs(), token_types=None)


@torch.no_grad()
@pytest.mark.parametrize("model", ["two towers", "clip"], indirect=True)  # BLIP has no other than eager
def test_attention_is_the_one_asked_for(model, tmp_path):
    def implementations(loaded):
        return {
            each.config._attn_implementation for each in loaded.modules() if hasattr(each, "set_attn_implementation")
        }

    inputs = text_inputs() | image_inputs(model)
    model.save_pretrained(tmp_path)
    found = {}
    for name in ("eager", "sdpa"):
        loaded = VSEModel.from_pretrained(tmp_path, attn_implementation=name).eval()
        assert implementations(loaded) == {name}
        found[name] = loaded(**inputs).logits_per_text
    torch.testing.assert_close(found["eager"], found["sdpa"])
    loaded.set_attn_implementation("eager")
    assert implementations(loaded) == {"eager"}


@torch.no_grad()
def test_vocabulary_grows(model, tmp_path):
    inputs = text_inputs()
    before = model.get_text_features(**inputs).pooler_output
    model.resize_token_embeddings(44)
    assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == 44
    torch.testing.assert_close(model.get_text_features(**inputs).pooler_output, before)
    loaded = saved_and_loaded(model, tmp_path)
    inputs["input_ids"][0, 0] = 43  # a new word
    expected = model.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(loaded.get_text_features(**inputs).pooler_output, expected)
    assert not torch.allclose(expected[0], before[0])


@torch.no_grad()
def test_tuples_instead_of_outputs(model):
    inputs = text_inputs() | image_inputs(model)
    expected = model(**inputs)
    model.config.return_dict = False
    found = model(**inputs)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found, expected.to_tuple())
