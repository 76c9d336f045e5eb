"""Training on several captions of an image in a step."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.execution import execute_loss
from hf_vse.training.callbacks import indifferent_loss
from tests.conftest import make_captions, make_feature_pairs
from tests.objectives.test_captions import ALL
from tests.processes import in_processes
from tests.training.test_trainer import GradientSpy, arguments, losses, make_model, make_trainer, weights


def words():
    return train_word_tokenizer([caption for index in range(24) for caption in make_captions(index)], min_count=1)


def with_captions(positives: str, captions: int = 3) -> dict:
    return {"captions_per_image": captions, "positives": positives}


@pytest.mark.parametrize("execution", [{}, {"loss_execution": "streamed"}, {"grad_cache_batch_size": 3}])
@pytest.mark.parametrize("positives", ["each", "any", "centre"])
def test_gradient_of_a_step_is_that_of_images_and_their_captions(positives, execution, tokenizer, tmp_path):
    data = make_feature_pairs(24)
    trainer = make_trainer(tmp_path, tokenizer, data, max_steps=1, **with_captions(positives), **execution)
    [batch] = [next(iter(trainer.get_train_dataloader()))]
    reference = make_model(tokenizer)
    images = reference.get_image_features(
        image_features=torch.tensor(data[batch["image_ids"].tolist()]["image_features"])
    )
    texts = [
        reference.get_text_features(batch["input_ids"][:, k], batch["attention_mask"][:, k]).pooler_output
        for k in range(3)
    ]
    ids = {"image_ids": batch["image_ids"], "text_ids": batch["text_ids"]}
    loss = execute_loss(images.pooler_output, torch.stack(texts, dim=1), positives=positives, temperature=0.1, **ids)
    loss.backward()
    seen = {}
    trainer.add_callback(GradientSpy(seen))
    trainer.args.max_grad_norm = 0.0
    trainer.train()
    assert losses(trainer) == [pytest.approx(loss.item(), rel=1e-4)]
    for name, parameter in reference.named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(stream, tokenizer, tmp_path):
    data = make_feature_pairs(24)
    data = data.to_iterable_dataset() if stream else data
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "word_dropout": 0.3} | with_captions("each")
    whole = make_trainer(tmp_path / "whole", tokenizer, data, **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", tokenizer, data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert losses(whole)[-1] < losses(whole)[0]
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(resumed.model)[name]), name


def train_in(folder: str, batch: int, **options) -> dict[str, torch.Tensor]:
    """Weights after an epoch, with the losses."""
    trainer = make_trainer(folder, words(), num_train_epochs=1, per_device_train_batch_size=batch, max_grad_norm=1.0,
                           **with_captions("each", 2), **options)  # fmt: skip
    trainer.train()
    return weights(trainer.model) | {"losses": torch.tensor(losses(trainer))}


def train_one_of_two(rank: int, folder: str) -> None:
    found = train_in(f"{folder}/two", 4, grad_cache_batch_size=3, negatives="ring", loss_execution="streamed")
    save_file(found, f"{folder}/{rank}.safetensors")


def test_two_processes_around_the_ring_with_cached_gradients_train_as_one(tmp_path):
    expected = train_in(str(tmp_path / "one"), 8)
    assert len(expected["losses"]) == 9
    in_processes(2, train_one_of_two, str(tmp_path))
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_an_epoch_has_fewer_steps_and_raises_recall(tokenizer, tmp_path):
    data = make_feature_pairs(24)
    trainer = make_trainer(
        tmp_path, tokenizer, data, eval_dataset=data, num_train_epochs=30, **with_captions("each", 5)
    )
    before = trainer.evaluate()["eval_rsum"]
    trainer.train()
    assert trainer.state.global_step == 30 * 3
    assert trainer.evaluate()["eval_rsum"] > before + 80


@pytest.mark.parametrize(("loss_type", "frame", "positives"), [each for each in ALL if each[0] != "siglip"])
def test_loss_that_the_alarm_compares_with_is_that_of_equal_similarities(loss_type, frame, positives):
    images, texts = torch.ones(6, 1), torch.ones(6, 3, 1)
    settings = {"temperature": 0.07, "margin": 0.3, "logit_bias": 0.0} | frame
    expected = execute_loss(images, texts, loss_type=loss_type, positives=positives, **settings).item()
    found = indifferent_loss(6, [5] * 6, loss_type=loss_type, positives=positives, captions=3, **settings)
    assert (found or 0.0) == pytest.approx(expected) and found != 0  # there is none where no negative is left


def test_alarm_and_diagnostics_see_a_text_of_each_image(tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=1, diagnostics_steps=1, **with_captions("centre"))
    trainer.train()
    images, texts = trainer.alarm.sample
    assert images.shape == texts.shape == (8, 16) and trainer.alarm.ids.shape == (8, 2)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(8))
    assert "batch_alignment" in trainer.state.log_history[0]


def test_what_does_not_fit_is_refused(tokenizer, tmp_path):
    for options in ({"captions_per_image": 2}, {"positives": "each"}):
        with pytest.raises(ValueError, match="do not fit: one caption needs one, several need each, any or centre"):
            arguments(tmp_path, **options)
    with pytest.raises(ValueError, match="positives is one of one, each, any, centre, entity, got 'all'"):
        arguments(tmp_path, **with_captions("all"))
    without = [name for name, each in OBJECTIVES.items() if "temperature" not in each.settings]
    assert without
    for loss_type in without:
        with pytest.raises(ValueError, match="positives any needs a temperature, loss_type 'hinge_.*' has none"):
            make_trainer(tmp_path, tokenizer, model=make_model(tokenizer, loss_type=loss_type), **with_captions("any"))
