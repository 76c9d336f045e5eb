"""Averaged weights against a loop that keeps every step; their checkpoints, and where they are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.averaging import TRAINED, check_averaging
from tests.conftest import make_feature_pairs, make_pairs
from tests.training.test_trainer import Watch, losses, make_model, make_trainer, weights

DECAY = 0.8


def trained(folder, tokenizer, decay: float = DECAY, steps: list | None = None, resume=None, **options):
    """A trainer after its training; `steps` gets the weights after each."""
    trainer = make_trainer(folder, tokenizer, ema_decay=decay, **options)
    if steps is not None:
        steps.append(weights(trainer.model))
        trainer.add_callback(Watch(lambda: steps.append(weights(trainer.model))))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def slow_average(steps: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """The sum written out, in float64: the start counts decay^n, step k counts (1 - decay) decay^(n - k)."""
    last = len(steps) - 1
    parts = [(1 - DECAY) * DECAY ** (last - k) * steps[k][name].double() for k in range(1, last + 1)]
    return (DECAY**last * steps[0][name].double() + sum(parts)).float()


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"bf16": True}, {"grad_cache_batch_size": 3, "weight_decay": 0.1}],
    ids=str,
)
def test_model_ends_as_the_average_of_its_steps(options, tokenizer, tmp_path):
    steps = []
    trainer = trained(tmp_path, tokenizer, steps=steps, max_steps=9, **options)
    assert len(steps) == 10
    for name, tensor in weights(trainer.model).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, slow_average(steps, name), rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, steps[-1][name]), name


def test_averaging_changes_no_step(tokenizer, tmp_path):
    data = make_feature_pairs(24)
    options = {
        "train": data,
        "eval_dataset": data,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
    }
    options |= {"save_steps": 4, "max_steps": 10, "load_best_model_at_end": False}
    plain = trained(tmp_path / "plain", tokenizer, 0.0, **options)
    averaged = trained(tmp_path / "averaged", tokenizer, **options)
    assert losses(plain) == losses(averaged)


def test_buffers_and_frozen_weights_are_those_of_the_model(tokenizer, tiny_resnet, tmp_path):
    processor = VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16), tokenizer)
    model, steps = make_model(tokenizer, vision=tiny_resnet), []
    given = {"train": make_pairs(12, size=16), "model": model, "processor": processor, "max_steps": 5}
    trained(tmp_path, tokenizer, steps=steps, freeze_text_tower=True, **given)
    parameters, same = dict(model.named_parameters()), set()
    for name, tensor in weights(model).items():
        if name in parameters and parameters[name].requires_grad:
            torch.testing.assert_close(tensor, slow_average(steps, name), rtol=1e-5, atol=1e-6)
        else:
            same.add(name)
            assert torch.equal(tensor, steps[-1][name]), name
    assert any(name.endswith("running_var") for name in same) and any(name.startswith("text_model.") for name in same)


def test_evaluation_and_checkpoints_have_the_average(tokenizer, tmp_path):
    data, processor = make_feature_pairs(24), VSEProcessor(tokenizer=tokenizer)
    strategy = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    steps = []
    options = strategy | {"train": data, "eval_dataset": data, "max_steps": 8, "save_total_limit": None}
    trainer = trained(tmp_path, tokenizer, steps=steps, **options)
    measured = {entry["step"]: entry["eval_rsum"] for entry in trainer.state.log_history if "eval_rsum" in entry}
    assert list(measured) == [4, 8]
    for step, rsum in measured.items():
        checkpoint = tmp_path / f"checkpoint-{step}"
        model = VSEModel.from_pretrained(checkpoint)
        assert evaluate_retrieval(model, processor, data, progress=False)["rsum"] == rsum
        kept = load_file(checkpoint / TRAINED)
        assert kept and all(torch.equal(tensor, steps[step][name]) for name, tensor in kept.items())
        for name, tensor in weights(model).items():
            torch.testing.assert_close(tensor, slow_average(steps[: step + 1], name), rtol=1e-5, atol=1e-6)
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert all(
        torch.equal(weights(trainer.model)[n], each) for n, each in load_file(best / "model.safetensors").items()
    )


@pytest.mark.parametrize("keep_best", [False, True])
def test_resumed_average_is_that_of_an_uninterrupted_run(keep_best, tokenizer, tmp_path):
    data = make_feature_pairs(24)
    options = {"train": data, "max_steps": 12, "save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    if keep_best:
        options |= {"eval_dataset": data, "eval_strategy": "steps", "eval_steps": 5}
    whole = trained(tmp_path / "whole", tokenizer, **options)
    checkpoint = str(tmp_path / "whole" / "checkpoint-5")
    resumed = trained(tmp_path / "resumed", tokenizer, resume=checkpoint, **options)
    assert losses(resumed) == losses(whole)
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    of_both = [load_file(tmp_path / run / "checkpoint-10" / TRAINED) for run in ("whole", "resumed")]
    assert all(torch.equal(tensor, of_both[1][name]) for name, tensor in of_both[0].items())


def test_checkpoint_of_another_average_is_refused(tokenizer, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    for name, decay in (("without", 0.0), ("with", DECAY)):
        trained(tmp_path / name, tokenizer, decay, **options)
    for written, decay in (("without", DECAY), ("with", 0.0)):
        with pytest.raises(ValueError, match=f"checkpoint-2 was written {written} ema_decay, so it cannot be resumed"):
            trained(tmp_path / "new", tokenizer, decay, resume=str(tmp_path / written / "checkpoint-2"), **options)
    with pytest.raises(ValueError, match="holds other weights than are trained .* freeze the same as before"):
        checkpoint = str(tmp_path / "with" / "checkpoint-2")
        trained(tmp_path / "new", tokenizer, resume=checkpoint, freeze_text_tower=True, **options)


def test_second_training_averages_from_where_it_starts(tokenizer, tmp_path):
    trainer, steps = trained(tmp_path, tokenizer, max_steps=3), []
    steps.append(weights(trainer.model))
    trainer.add_callback(Watch(lambda: steps.append(weights(trainer.model))))
    trainer.train()
    for name, tensor in weights(trainer.model).items():
        torch.testing.assert_close(tensor, slow_average(steps, name), rtol=1e-5, atol=1e-6)


def test_average_that_would_be_wrong_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="ema_decay is a number from 0 and below 1, got 1"):
        make_trainer(tmp_path, tokenizer, ema_decay=1)
    with pytest.raises(ValueError, match="needs weights in float32, the model has torch.bfloat16"):
        make_trainer(tmp_path, tokenizer, model=make_model(tokenizer).bfloat16(), ema_decay=DECAY)
    trainer = make_trainer(tmp_path, tokenizer, ema_decay=DECAY)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="FSDP or DeepSpeed shards them: train with DDP"):
        check_averaging(trainer, trainer.args)
    assert not list(Path(tmp_path).glob("checkpoint-*"))
