"""Runs that start from a pretrained dual encoder of another library."""

import json
import logging
import shutil

import pytest
import torch

from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_texts
from hf_vse.files import read_json
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.training.build import check_new_heads, check_start, dual_encoder_of
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from tests.embed.test_transformers_models import CASES, TEXTS, save

STAGES = [
    {"name": "heads", "projection_type": "linear", "freeze_image_tower": True, "freeze_text_tower": True},
    {"name": "towers", "only_on": "gpu"},
]


def recipe_from(start, output, **changed):
    values = {
        "dataset": "scenes", "num_train": 16, "num_eval": 8, "image_size": 32, "init_from": str(start), "max_steps": 2,
        "output_dir": str(output), "frozen_cache_dir": str(output.parent / "cache"), "mirror_images": False,
        "per_device_train_batch_size": 8, "disable_tqdm": True, "use_cpu": True, "stages": STAGES,
    }  # fmt: skip
    return build_recipe(values | changed)


@pytest.fixture(scope="module")
def siglip(tokenizer, tmp_path_factory):
    return save(tmp_path_factory.mktemp("source") / "siglip", CASES["siglip"], tokenizer)


@pytest.mark.parametrize(("changed", "most"), [({}, 16), ({"unique_images": False}, 80)])
def test_a_batch_larger_than_the_data_is_refused_before_a_tower_runs(siglip, tmp_path, changed, most):
    recipe = recipe_from(siglip, tmp_path / "run", per_device_train_batch_size=most + 1, **changed)
    with pytest.raises(ValueError, match=f"lower per_device_train_batch_size to at most {most}"):
        run_recipe(recipe)
    assert not list(tmp_path.iterdir())


def test_heads_are_fitted_and_stages_for_a_gpu_left_out(siglip, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = run_recipe(recipe_from(siglip, tmp_path / "run"))
    assert [stage["name"] for stage in result["stages"]] == ["heads"]
    assert "left out are the stages towers" in caplog.text
    assert result["loss_type"] == "siglip" and result["start"]["model"] == str(siglip)
    config = read_json(tmp_path / "run" / "config.json")
    assert config["dual_encoder_config"]["model_type"] == "siglip" and config["projection_type"] == "linear"
    with pytest.raises(ValueError, match="every stage has only_on: gpu"):
        run_recipe(recipe_from(siglip, tmp_path / "none", stages=STAGES[1:]))
    with pytest.raises(ValueError, match="stage 'heads': only_on is gpu or left out, got 'cpu'"):
        recipe_from(siglip, tmp_path / "none", stages=[STAGES[0] | {"only_on": "cpu"}])
    with pytest.raises(ValueError, match="seed 42 holds a whole dual encoder, which cannot be joined"):
        run_recipe(recipe_from(siglip, tmp_path / "none", joined_seeds=2))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"name": "a", "projection_type": "mlp"}], True),
        ([{"name": "a", "projection_type": "linear"}, {"name": "b", "projection_type": "mlp"}], True),
        ([{"name": "a", "projection_type": "mlp", "head_init": "identity"}, {"name": "b"}], False),
        ([{"name": "a", "projection_type": "mlp", "head_init": "xavier"}], False),
        ([{"name": "a", "projection_type": "residual"}], False),
    ],
)
def test_random_heads_on_a_pretrained_model_have_to_be_asked_for(stages, said, siglip, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vse.training.run.load_splits", lambda data: pytest.fail("the data are read"))
    recipe = recipe_from(siglip, tmp_path / "run", stages=stages)
    message = "random weights .*siglip', which then starts near chance: give projection_type residual or head_init"
    with pytest.raises(ValueError if said else pytest.fail.Exception, match=message if said else "the data are read"):
        run_recipe(recipe)
    assert not (tmp_path / "run").exists()


def test_a_head_that_a_model_has_is_no_new_one(tiny_model):
    check_new_heads("x", VSEConfig(projection_type="mlp"), [{}, {"projection_type": "mlp"}, {"loss_type": "nce"}])
    check_new_heads("x", VSEConfig(head_init="identity"), [{"projection_type": "mlp"}])
    with pytest.raises(ValueError, match="a head of random weights on init_from 'x'"):
        check_new_heads("x", VSEConfig(), [{"projection_type": "mlp"}])
    with pytest.raises(ValueError, match="a head of random weights on init_from"):
        check_start(str(tiny_model), [{"projection_type": "mlp"}])


def test_model_inside_sentence_transformers_is_a_start(tokenizer, tmp_path):
    clip = save(tmp_path / "clip", CASES["clip"], tokenizer)
    # An older layout, as sentence-transformers/clip-ViT-B-32 has it.
    shutil.copytree(clip, tmp_path / "wrapped" / "0_CLIPModel")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "wrapped" / "modules.json").write_text(json.dumps(modules))
    assert dual_encoder_of(str(tmp_path / "wrapped")) == str(tmp_path / "wrapped" / "0_CLIPModel")
    result = run_recipe(recipe_from(tmp_path / "wrapped", tmp_path / "run", learning_rate=0.0))
    found, expected = (
        encode_texts(load_encoder(str(place), device="cpu"), TEXTS) for place in (tmp_path / "run", clip)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert result["start"]["comparisons"]["validation"]["rsum"]["difference"] == pytest.approx(0, abs=1e-6)


def test_outer_paths_and_other_kinds_are_refused(siglip, tmp_path):
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "../elsewhere", "type": "x"}]')
    with pytest.raises(ValueError, match=r"modules.json, path"):
        dual_encoder_of(str(tmp_path))
    with pytest.raises(ValueError, match="a model of open_clip cannot be trained here"):
        dual_encoder_of("open_clip:ViT-B-32/laion2b_s34b_b79k")
