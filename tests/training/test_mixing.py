"""feature_mix against i-Mix written out: loops over plain numbers, for every way in which a step is executed."""

import math

import numpy as np
import pytest
import torch

from hf_vse.training.mixing import Mixture, check_mixing, mixed_inputs
from hf_vse.training.pairs import first_batch
from hf_vse.training.recipe import build_recipe
from tests.training.test_trainer import arguments, make_model, make_trainer

T = 0.2


def i_mix(images: list, texts: list, share: float, partners: list[int], ids: list[int]) -> float:
    """Both directions added, the mean over pairs; an image with the id of a pair's image is no negative of it."""

    def cross_entropy(queries: list, candidates: list, own: list[int]) -> float:
        total = 0.0
        for i, query in enumerate(queries):
            scores = [math.exp(sum(a * b for a, b in zip(query, each, strict=True)) / T) for each in candidates]
            kept = [score for j, score in enumerate(scores) if j == i or own[i] != own[j]]
            total -= math.log(scores[i] / sum(kept))
        return total / len(queries)

    def both(texts: list, own: list[int]) -> float:
        return cross_entropy(images, texts, own) + cross_entropy(texts, images, own)

    second = both([texts[j] for j in partners], [ids[j] for j in partners])
    return share * both(texts, ids) + (1 - share) * second


@pytest.mark.parametrize("way", [{}, {"loss_execution": "streamed"}, {"grad_cache_batch_size": 3}])
@pytest.mark.parametrize("ids", [list(range(8)), [0, 1, 0, 2, 3, 4, 4, 5]])
def test_the_loss_of_a_step_is_that_of_i_mix(way, ids, tokenizer, tmp_path):
    model = make_model(tokenizer, temperature=T)
    trainer = make_trainer(tmp_path, tokenizer, model=model, feature_mix=1.0, diagnostics_steps=0, **way)
    batch = first_batch(trainer.train_dataset, trainer.data_collator)
    batch |= {"image_ids": torch.tensor(ids)}
    del batch["text_ids"]
    plain = dict(batch)
    trainer.state.global_step, trainer.current_gradient_accumulation_steps = 5, 1
    inputs, mixture = mixed_inputs(trainer.args, 5, batch)
    partners = mixture.partners.tolist()
    assert 0.5 <= mixture.share < 0.99 and sorted(partners) == list(range(8)) != partners
    for row in range(8):
        two = (
            mixture.share * batch["image_features"][row] + (1 - mixture.share) * batch["image_features"][partners[row]]
        )
        torch.testing.assert_close(inputs["image_features"][row], two)
    model.train()
    loss = trainer.compute_loss(model, batch)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)  # left as it was
    given = {name: each for name, each in inputs.items() if name not in ("image_ids", "text_ids")}
    embeds = model(**given, return_logits=False)
    expected = i_mix(embeds.image_embeds.tolist(), embeds.text_embeds.tolist(), mixture.share, partners, ids)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    trainer.args.feature_mix = 0.0
    assert trainer.compute_loss(model, batch).item() != pytest.approx(expected, rel=1e-3)


def test_ways_have_the_same_gradient(tokenizer, tmp_path):
    found = []
    for way in ({"loss_execution": "dense"}, {"loss_execution": "streamed"}, {"grad_cache_batch_size": 3}):
        model = make_model(tokenizer, temperature=T)
        trainer = make_trainer(tmp_path, tokenizer, model=model, feature_mix=0.5, diagnostics_steps=0, **way)
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(model, first_batch(trainer.train_dataset, trainer.data_collator))
        found.append(torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]))
    assert found[0].abs().max() > 1e-3
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-6)


def test_a_step_is_mixed_anew_and_the_same_way_when_it_is_repeated(tmp_path):
    args = arguments(tmp_path, feature_mix=0.2, seed=3)
    inputs = {"image_features": torch.randn(6, 4)}
    (first, mixture), (again, _), (other, _) = (mixed_inputs(args, step, inputs) for step in (1, 1, 2))
    assert torch.equal(first["image_features"], again["image_features"])
    assert not torch.equal(first["image_features"], other["image_features"])
    shares = [mixed_inputs(args, step, inputs)[1].share for step in range(400)]
    assert min(shares) >= 0.5 and max(shares) <= 1
    drawn = np.random.default_rng(0).beta(0.2, 0.2, size=20_000)
    assert np.mean(shares) == pytest.approx(np.maximum(drawn, 1 - drawn).mean(), abs=0.02)


def test_the_loss_of_a_share_of_one_is_the_plain_one():
    def contrast(ids, soft, images, texts, temperature):
        return (texts * images).sum() / temperature + ids["image_ids"][0]

    given = {"image_ids": torch.tensor([4, 5, 6])}, None, torch.arange(3), torch.randn(3), torch.tensor(0.1)
    assert Mixture(1.0, torch.tensor([2, 0, 1])).loss(contrast)(*given) == contrast(*given)


def test_what_cannot_be_mixed_is_refused(tmp_path):
    args = arguments(tmp_path, feature_mix=0.2)
    for inputs, there in (({"pixel_values": 0}, "photographs"), ({"image_features": torch.ones(2, 3, 4)}, "regions")):
        with pytest.raises(ValueError, match=f"feature_mix mixes .* {there}: give features of one vector"):
            mixed_inputs(args, 0, inputs)
    with pytest.raises(ValueError, match="the queue would hold mixtures"):
        check_mixing(arguments(tmp_path, feature_mix=0.2, queue_size=8))
    with pytest.raises(ValueError, match="no teacher scores mixtures"):
        check_mixing(arguments(tmp_path, feature_mix=0.2, soft_targets="captions"))
    with pytest.raises(ValueError, match="feature_mix does nothing: one vector of each image is mixed: give features"):
        build_recipe({"dataset": "scenes", "feature_mix": 0.2})
    assert build_recipe({"dataset": "precomp", "feature_mix": 0.2})
