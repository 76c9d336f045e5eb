"""No argument is changed or left aside without a word."""

from pathlib import Path

import pytest
import torch
from datasets import DatasetDict

from hf_vse.training import run
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.effects import NEEDS, OF_THE_RUN, WITHOUT_EFFECT, check_acts_in_stage
from hf_vse.training.limits import LIMITS
from hf_vse.training.recipe import build_recipe
from hf_vse.training.settings import defaults_of_keys, known_keys
from tests.conftest import make_feature_pairs

RESNET = {"vision_config": {"model_type": "resnet"}, "dataset": "scenes"}


def arguments(folder: Path, **given) -> VSETrainingArguments:
    return VSETrainingArguments(output_dir=str(folder), **given)


@pytest.mark.parametrize(
    ("given", "measured", "saved", "best"),
    [
        ({}, "epoch", "epoch", True),
        ({"eval_strategy": "steps", "eval_steps": 5}, "steps", "steps", True),
        ({"eval_strategy": "no"}, "no", "epoch", False),
        ({"eval_strategy": "no", "save_strategy": "steps"}, "no", "steps", False),
        ({"save_strategy": "no"}, "epoch", "no", False),
        ({"save_strategy": "best"}, "epoch", "best", True),
        ({"save_strategy": "steps", "load_best_model_at_end": False}, "epoch", "steps", False),
    ],
)
def test_strategies_are_those_given_and_the_rest_follows(given, measured, saved, best, tmp_path):
    args = arguments(tmp_path, **given)
    assert (args.eval_strategy, args.save_strategy, args.load_best_model_at_end) == (measured, saved, best)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"save_strategy": "steps"},
            "save_strategy 'steps' with eval_strategy 'epoch': .*give eval_strategy: steps, or",
        ),
        ({"save_strategy": "no", "load_best_model_at_end": True}, "load_best_model_at_end needs checkpoints"),
        ({"eval_strategy": "no", "load_best_model_at_end": True}, "load_best_model_at_end needs checkpoints"),
        ({"accelerator_config": "file.json"}, "accelerator_config is a map here"),
        ({"learning_rate": float("nan")}, "learning_rate is a number from 0 to 100, got nan"),
        ({"seed": 2**32}, "seed is a number from 0 to 4294967295, got 4294967296"),
    ],
)
def test_what_cannot_be_honoured_is_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **given)


def test_the_tables_name_fields_that_there_are():
    assert {*NEEDS, *OF_THE_RUN, *WITHOUT_EFFECT, *LIMITS} <= known_keys().keys()


@pytest.mark.parametrize(
    "values",
    [
        RESNET | {"margin": 0.2, "cached_crops": 0, "do_train": False},  # as where nothing is given
        RESNET | {"margin": 0.3, "hard_negative_warmup_loss": "hinge_sum", "loss_type": "hardnce",
                  "hard_negative_warmup_epochs": 1},
        RESNET | {"margin": 0.3, "stages": [{"name": "a", "loss_type": "hinge_max"}, {"name": "b"}]},
        RESNET | {"cached_crops": 3, "stages": [{"name": "a", "freeze_image_tower": True}, {"name": "b"}]},
        RESNET | {"freeze_image_tower": True, "cached_crops": 3, "cache_frozen": False},  # new crops in every epoch
        RESNET | {"stages": [{"name": "a", "projection_type": "mlp"}, {"name": "b", "head_dropout": 0.1}]},
        RESNET | {"stages": [{"name": "a"}, {"name": "b", "margin": 0.2, "seed": 3}]},
        {"dataset": "scenes", "init_from": "org/model", "margin": 0.3, "logit_bias_init": -3.0},
        {"dataset": "flickr8k", "image_tower": "timm/resnet50", "resize": 300, "image_mean": [0.5, 0.5, 0.5]},
    ],
)  # fmt: skip
def test_a_key_that_does_something_somewhere_is_taken(values):
    build_recipe(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RESNET | {"stages": [{"name": "a", "cached_crops": 2}]}, "stage 'a': cached_crops does nothing: "),
        (RESNET | {"stages": [{"name": "a", "margin": 0.3}, {"name": "b"}]}, "stage 'a': margin does nothing: only"),
        (RESNET | {"stages": [{"name": "a", "do_eval": True}]}, "stage 'a': do_eval does nothing: .*remove it"),
        (RESNET | {"do_eval": True}, "do_eval does nothing: .*remove it"),
        (RESNET | {"stages": [{"name": "a", "stages": []}]}, "stage 'a': stages stand in a recipe file once"),
        (RESNET | {"name": "a"}, "a name belongs to an entry of `stages`"),
        (
            RESNET | {"stages": [{"name": "a"}, {"name": "b", "init_from": "org/model"}]},
            "stage 'b': init_from does nothing in a stage: .* as a later stage starts from the one before",
        ),
        (RESNET | {"stages": [{"name": "a", "crop": 64}]}, "stage 'a': crop does nothing in a stage"),
        (RESNET | {"warmup_steps": 5, "lr_scheduler_type": "constant"}, r"\(on the command line --warmup_steps 0\)"),
        (RESNET | {"streaming": True}, "streaming needs max_steps"),
        (RESNET | {"resize": 128}, "crop 224 is larger than resize 128"),
    ],
)
def test_a_key_that_does_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build_recipe(values)


def test_every_key_acts_in_stages_or_in_the_whole_run():
    """The table is complete: a stage takes a key, or says where it belongs, also where the value changes nothing."""
    defaults = defaults_of_keys()
    assert not OF_THE_RUN.keys() & WITHOUT_EFFECT.keys()
    accepted = defaults.keys() - OF_THE_RUN.keys() - WITHOUT_EFFECT.keys()
    assert {"loss_type", "seed", "learning_rate", "freeze_image_tower", "max_steps", "head_init"} < accepted
    assert not accepted & {"dataset", "data_dir", "output_dir", "init_from", "image_tower", "resize", "num_train"}
    for key in accepted:
        check_acts_in_stage({"name": "a", key: defaults[key]}, "here")
    for key, reason in OF_THE_RUN.items():
        with pytest.raises(ValueError, match=f"here: {key} does nothing in a stage: write it above.*, as {reason}"):
            check_acts_in_stage({"name": "a", key: defaults[key]}, "here")
    for key, reason in WITHOUT_EFFECT.items():
        with pytest.raises(ValueError, match=f"here: {key} does nothing: {reason}"):
            check_acts_in_stage({"name": "a", key: defaults[key]}, "here")


def test_the_command_line_may_set_for_all_stages_what_stands_in_them():
    stages = [{"name": "a", "num_train_epochs": 3, "projection_type": "mlp"}, {"name": "b"}]
    recipe = build_recipe(RESNET | {"stages": stages}, {"num_train_epochs": 1, "max_length": 20})
    assert [recipe.stage(stage).values["num_train_epochs"] for stage in recipe.stages] == [1, 1]


def test_features_in_the_columns_of_the_data_rule_out_an_image_tower(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_splits", lambda *given: DatasetDict(train=make_feature_pairs(4)))
    values = {"dataset": str(tmp_path), "output_dir": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="vision_config does nothing: the image tower is that of .*features"):
        run.run_recipe(build_recipe(values | {"vision_config": {"model_type": "resnet"}}))
    with pytest.raises(ValueError, match="resize does nothing"):
        run.run_recipe(build_recipe(values | {"resize": 300}))


def test_no_image_tower_is_told_before_the_data_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_splits", lambda *given: pytest.fail("data were read"))
    with pytest.raises(ValueError, match="names no image tower: give image_tower"):
        run.run_recipe(build_recipe({"dataset": "scenes", "output_dir": str(tmp_path / "run")}))


def test_pickled_arguments_hold_no_token(tmp_path):
    torch.save(arguments(tmp_path, hub_token="hf_secret_of_a_person"), tmp_path / "training_args.bin")
    assert b"hf_secret_of_a_person" not in (tmp_path / "training_args.bin").read_bytes()
