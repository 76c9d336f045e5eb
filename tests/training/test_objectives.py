"""An objective that stands in the table and nowhere else is trained, described, saved and loaded."""

import pytest
import torch

from hf_vse.embed.adapters.own_models import load_vse_model
from hf_vse.hub.card import model_card
from hf_vse.model.losses_vse import OBJECTIVES, Objective, contrastive_loss, hardest_negative, positive_scores
from tests.conftest import make_feature_pairs
from tests.training.test_trainer import GradientSpy, make_model, make_trainer

EXECUTIONS = {
    "dense": {"loss_execution": "dense"},
    "chunked": {"loss_execution": "chunked", "loss_chunk_size": 3},
    "grad_cache": {"grad_cache_batch_size": 3},
}


def soft_triplet(scores, positives, excluded, *, temperature, margin):
    """t log(1 + e^{(n + m - p) / t})

    The hinge of the hardest negative without a corner.
    """
    hardest = hardest_negative(scores, positives, excluded)
    difference = hardest + margin - positive_scores(scores, positives)
    return torch.nn.functional.softplus(difference / temperature) * temperature


@pytest.fixture
def soft(monkeypatch) -> str:
    row = Objective(soft_triplet, "mean", "average", "a soft triplet loss, https://example.org", ("temperature",))
    monkeypatch.setitem(OBJECTIVES, "soft", row)
    return "soft"


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_objective_of_the_table_alone_trains_as_the_dense_reference(execution, soft, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, model=make_model(tokenizer, loss_type=soft), **EXECUTIONS[execution])
    reference, batch = make_model(tokenizer, loss_type=soft), next(iter(trainer.get_train_dataloader()))
    ids = {key: value for key, value in batch.items() if key != "image_ids"}
    output = reference(**ids, return_loss=True)
    embeds = output.image_embeds, output.text_embeds
    loss = contrastive_loss(*embeds, loss_type=soft, temperature=output.temperature, margin=0.2)
    torch.testing.assert_close(output.loss, loss)
    loss.backward()
    seen = {}
    trainer.add_callback(GradientSpy(seen))
    trainer.args.max_grad_norm, trainer.args.max_steps = 0.0, 1
    trainer.train()
    assert seen["logit_scale"].abs() > 0 and seen.keys() == dict(reference.named_parameters()).keys()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_model_of_an_objective_of_the_table_alone_is_learned_described_and_loaded(soft, tokenizer, tmp_path):
    data = make_feature_pairs(24)
    trainer = make_trainer(
        tmp_path, tokenizer, data, make_model(tokenizer, loss_type=soft), eval_dataset=data, num_train_epochs=16,
        hard_negative_warmup_epochs=0,
    )  # fmt: skip
    before = trainer.evaluate()["eval_rsum"]
    trainer.train()
    assert trainer.evaluate()["eval_rsum"] > before + 80
    card = model_card(trainer.model.config, {}, (), repo_id="org/name", license="mit")
    assert "`soft` (a soft triplet loss, https://example.org). The hinge of the hardest negative without" in card
    assert "t log(1 + e^{(n + m - p) / t})" in card and "the two directions averaged" in card
    assert "t the temperature (learned, from 0.1), m the margin (0.2)" in card and "a bias" not in card
    trainer.save_model(str(tmp_path))
    loaded, batch = load_vse_model(tmp_path, "cpu"), next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        inputs = {key: value for key, value in batch.items() if key != "image_ids"}
        torch.testing.assert_close(loaded(**inputs).image_embeds, trainer.model.eval()(**inputs).image_embeds)
    assert loaded.logit_scale is not None and loaded.logit_bias is None
    with pytest.raises(ValueError, match="hard_negative_warmup_epochs=1.0 is for hardnce, .*loss_type is 'soft'"):
        make_trainer(tmp_path, tokenizer, model=loaded, hard_negative_warmup_epochs=1.0)
