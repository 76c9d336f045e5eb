"""Negatives of the same modality, from the field to the loss of a step."""

import pytest

from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.training import trainer as trainer_module
from tests.training.test_trainer import arguments, losses, make_trainer

SAME = {"extra_negatives": "same_modality"}


@pytest.mark.parametrize(
    "more", [{}, {"grad_cache_batch_size": 3}, {"queue_size": 30, "captions_per_image": 2, "positives": "each"}]
)
def test_loss_of_a_step_has_negatives_of_the_same_modality(more, tokenizer, tmp_path, monkeypatch):
    expected, execute_loss = [], trainer_module.execute_loss

    def spy(images, texts, execution, soft, caption_weight, **given):
        expected.append(gathered_contrastive_loss(images, texts, **given | {"same_modality": True}).item())
        return execute_loss(images, texts, execution=execution, soft=soft, caption_weight=caption_weight, **given)

    plain = make_trainer(tmp_path, tokenizer, max_steps=3, **more)
    plain.train()
    monkeypatch.setattr(trainer_module, "execute_loss", spy)
    trainer = make_trainer(tmp_path, tokenizer, max_steps=3, **SAME, **more)
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    assert losses(trainer)[0] > losses(plain)[0] and trainer.alarm.own_modality == (
        pytest.approx(7 / (7 + len(trainer.queue) // 2)) if "queue_size" in more else 1.0
    )


def test_what_cannot_be_is_refused(tokenizer, tmp_path):
    for more, message in (
        ({"negatives": "ring"}, "extra_negatives same_modality needs all images and texts at once: give negatives"),
        ({"feature_mix": 0.5}, "feature_mix and extra_negatives: mixtures of one image would be negatives"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, tokenizer, **SAME, **more)
    with pytest.raises(ValueError, match="extra_negatives is one of none, same_modality, foils, got 'false'"):
        arguments(tmp_path, extra_negatives="false")
