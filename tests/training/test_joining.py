"""Several seeds as one model: its vectors are those of the members, one beside the other."""

from copy import deepcopy

import pytest
import torch

from hf_vse.embed.adapters.own_models import load_vse_model
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.joining import joined_models

TEXT = {"vocab_size": 40, "word_dim": 8, "hidden_size": 12}
VISION = {"model_type": "vse_features", "hidden_size": 10}


def members(count: int = 3, **options) -> list[VSEModel]:
    """Models with one text tower and heads of their own, none of their weights zero."""
    first = VSEModel(VSEConfig(vision_config=VISION, text_config=TEXT, **{"projection_dim": 6} | options))
    found = [deepcopy(first).eval() for _ in range(count)]
    for model in found:
        for name, parameter in model.named_parameters():
            if name.startswith(("visual", "text_projection", "text_head")):
                torch.nn.init.normal_(parameter, std=0.3)
    return found


def before_scaling(model, pooled, side):
    """A vector of the common space before it is scaled to length one."""
    prepared = getattr(model, f"{side}_input")(pooled)
    return getattr(model, f"{side}_head")(getattr(model, f"{side}_projection")(prepared))


@pytest.mark.parametrize(
    "options", [{}, {"projection_type": "mlp"}, {"projection_type": "residual", "text_norm": "rms"}]
)
def test_the_joint_vector_holds_those_of_the_members(options, tmp_path):
    models = members(**options)
    for name, each in zip("abc", models, strict=True):
        each.save_pretrained(tmp_path / name)
    joined_models([load_vse_model(tmp_path / name) for name in "abc"], "abc").save_pretrained(tmp_path / "joined")
    model = load_vse_model(tmp_path / "joined")
    ids, features = torch.randint(4, 40, (5, 7)), torch.randn(4, 10)
    with torch.no_grad():
        output = model(input_ids=ids, image_features=features)
        texts = [before_scaling(each, each.pool_texts(ids).pooler_output, "text") for each in models]
        images = [before_scaling(each, features, "visual") for each in models]
        singles = [each(input_ids=ids, image_features=features) for each in models]
    similarities = 0  # sum of the members' cosines, each weighted by the lengths of its two vectors
    for single, text, image in zip(singles, texts, images, strict=True):
        lengths = text.norm(dim=1)[:, None] * image.norm(dim=1)[None, :]
        similarities = similarities + lengths * (single.text_embeds @ single.image_embeds.T)
    whole = torch.cat(texts, 1).norm(dim=1)[:, None] * torch.cat(images, 1).norm(dim=1)[None, :]
    torch.testing.assert_close(output.text_embeds @ output.image_embeds.T, similarities / whole)
    assert output.text_embeds.shape == (5, 18)


def test_what_cannot_be_joined_is_refused():
    models = members(2)
    with pytest.raises(ValueError, match="there is one model, a: give two or more"):
        joined_models(models[:1], ["a"])
    other = members(1, temperature=0.2)[0]
    with pytest.raises(ValueError, match="b has another configuration than a: join runs of one recipe"):
        joined_models([models[0], other], "ab")
    torch.nn.init.normal_(models[1].text_model.embedding.weight)
    with pytest.raises(ValueError, match="b has other towers, poolings or temperature than a"):
        joined_models(models, "ab")
    learned = members(2, loss_type="clip")
    learned[1].logit_scale.data += 1
    with pytest.raises(ValueError, match="b has other towers, poolings or temperature than a"):
        joined_models(learned, "ab")
    direct = members(2, projection_dim=12)
    with pytest.raises(ValueError, match="a has no linear map on each of two towers"):
        joined_models(direct, "ab")
