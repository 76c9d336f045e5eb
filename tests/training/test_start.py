"""The model that a run starts from counts: it is measured, it can be the best, and the result is compared with it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.evaluation.intervals import compare_models
from hf_vse.evaluation.judge import judge
from hf_vse.files import read_json
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training import run
from hf_vse.training.recipe import build_recipe
from hf_vse.training.result import run_summary
from hf_vse.training.run import run_recipe
from hf_vse.training.trainer import VSETrainer
from tests.conftest import make_feature_pairs
from tests.training.test_trainer import arguments, make_model, weights
from tests.training.tiny_runs import same_outcome, tiny_recipe, tiny_values, write_features

STEPS = {
    "eval_on_start": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3,
    "max_steps": 9,
}  # fmt: skip


def trainer_of(folder, tokenizer, of: type[VSETrainer] = VSETrainer, **options):
    data, processor = make_feature_pairs(24), VSEProcessor(tokenizer=tokenizer)
    given = {"train_dataset": data, "eval_dataset": data, "processing_class": processor}
    return of(make_model(tokenizer), arguments(folder, **STEPS | options), **given)


def measured(trainer) -> dict[int, float]:
    return {entry["step"]: entry["eval_rsum"] for entry in trainer.state.log_history if "eval_rsum" in entry}


class Harm(VSETrainer):
    """Makes the model worse with every step: it climbs its loss."""

    def contrast(self, *given):
        return -super().contrast(*given)


@pytest.mark.parametrize("limit", [1, 2])
def test_start_is_kept_where_nothing_beats_it(limit, tokenizer, tmp_path):
    trainer = trainer_of(tmp_path, tokenizer, Harm, save_total_limit=limit)
    start = weights(trainer.model)
    trainer.train()
    found = measured(trainer)
    assert list(found) == [0, 3, 6, 9] and found[0] == trainer.state.best_metric > max(list(found.values())[1:])
    assert trainer.state.best_global_step == 0 and trainer.state.log_history[0]["epoch"] == 0
    assert all(torch.equal(tensor, start[name]) for name, tensor in trainer.model.state_dict().items())
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == ({"checkpoint-0"} if limit == 1 else {"checkpoint-0", "checkpoint-9"})


def test_start_that_is_beaten_is_not_kept(tokenizer, tmp_path):
    trainer = trainer_of(tmp_path, tokenizer, save_total_limit=1)
    trainer.train()
    found = measured(trainer)
    assert trainer.state.best_global_step == max(found, key=found.__getitem__) != 0
    assert not (tmp_path / "checkpoint-0").exists()


def test_without_the_argument_nothing_is_measured_before_the_first_step(tokenizer, tmp_path):
    trainer = trainer_of(tmp_path, tokenizer, eval_on_start=None)
    trainer.train()
    assert list(measured(trainer)) == [3, 6, 9]


@pytest.mark.parametrize("harmful", [False, True])
def test_resumed_run_remembers_its_start(harmful, tokenizer, tmp_path):
    of = Harm if harmful else VSETrainer
    whole = trainer_of(tmp_path / "whole", tokenizer, of, save_total_limit=None)
    resumed = trainer_of(tmp_path / "resumed", tokenizer, of, save_total_limit=None)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-0", tmp_path / "resumed" / "checkpoint-0")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert measured(resumed) == measured(whole) and (resumed.state.best_global_step == 0) == harmful
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """What is learned from the training images helps with those of validation: they are the same."""
    folder = write_features(tmp_path_factory.mktemp("data") / "features", train=20)
    for end in ("ims.npy", "caps.txt"):
        shutil.copy(folder / f"train_{end}", folder / f"dev_{end}")
    return folder


LARGER = {"max_grad_norm": 2.0, "projection_dim": 16, "loss_type": "nce"}


@pytest.fixture(scope="module")
def first(data, tmp_path_factory) -> Path:
    """A run from scratch, which others start from."""
    output = tmp_path_factory.mktemp("first") / "run"
    longer = {"max_steps": 40, "eval_steps": 40, "save_steps": 40, "learning_rate": 0.03}
    run_recipe(tiny_recipe(data, output, stages=[{"name": "base"}], **LARGER | longer))
    return output


def second(data: Path, first: Path, output: Path, **changed):
    values = tiny_values(data, output, init_from=str(first), stages=[{"name": "tune"}], **LARGER | changed)
    return build_recipe({key: value for key, value in values.items() if key not in ("text_config", "min_word_count")})


def test_run_says_what_it_gained(data, first, tmp_path, capsys):
    recipe = second(data, first, tmp_path / "run", learning_rate=0.03, max_steps=24, eval_steps=12, save_steps=12)
    result = run_recipe(recipe)
    assert result["stages"][0]["best_step"] in (12, 24)
    start, after = result["start"], result["metrics"]["validation"]
    assert start["model"] == str(first) and read_json(tmp_path / "run" / "metrics.json")["start"] == start
    before = read_json(first / "metrics.json")["metrics"]["validation"]
    assert start["metrics"]["validation"]["metrics"] == before["metrics"]
    found = start["comparisons"]["validation"]["rsum"]
    assert found["difference"] == pytest.approx(after["metrics"]["rsum"] - before["metrics"]["rsum"])
    splits = recipe.data.load()
    ranks = [
        judge(VSEEncoder.from_pretrained(folder, "cpu"), splits["validation"]).ranks
        for folder in (first, tmp_path / "run")
    ]
    expected = compare_models(*ranks, torch.arange(20).repeat_interleave(5))["rsum"]
    assert found["p_value"] == expected["p_value"] and found["interval"] == expected["interval"]
    told = run_summary(recipe.output_dir, result)
    assert f"validation before{'':4}" in told
    assert f"rsum {before['metrics']['rsum']:.1f} before, {after['metrics']['rsum']:.1f} after; " in told


def test_run_that_only_harms_ends_as_it_began(data, first, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "VSETrainer", Harm)
    recipe = second(data, first, tmp_path / "run")
    result = run_recipe(recipe)
    assert result["stages"][0]["best_step"] == 0
    start, end = (load_file(folder / "model.safetensors") for folder in (first, tmp_path / "run"))
    assert start.keys() == end.keys() and all(torch.equal(start[name], end[name]) for name in start)
    found = result["start"]["comparisons"]["validation"]["rsum"]
    assert (found["difference"], found["p_value"]) == (0, 1)
    told = run_summary(recipe.output_dir, result)
    assert "no difference that chance could not make" in told and "nothing beat the model" in told


def test_killed_fine_tuning_ends_the_same(data, first, tmp_path):
    run_recipe(second(data, first, tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    recipe = second(data, first, tmp_path / "half")
    (tmp_path / "half" / "recipe.yaml").write_text(recipe.to_yaml())
    for name in ("metrics.json", "stages/tune/stage.json", "stages/tune/checkpoint-4/trainer_state.json"):
        (tmp_path / "half" / name).unlink()
    run_recipe(recipe)
    assert same_outcome(tmp_path / "half", tmp_path / "whole")
