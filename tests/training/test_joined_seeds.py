"""`joined_seeds`: one recipe trains several seeds and ends as one model."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from hf_vse.embed.adapters.own_models import load_vse_model
from hf_vse.files import read_json
from hf_vse.training import run
from hf_vse.training.joining import joined_models, recipes_of_seeds
from hf_vse.training.recipe import Recipe, build_recipe
from hf_vse.training.result import run_summary
from hf_vse.training.run import run_recipe
from tests.conftest import WORDS
from tests.faults.killing import slow
from tests.processes import in_processes
from tests.training.tiny_runs import same_outcome, tiny_values, write_features

SEEDS = (3, 4)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tokenizer) -> Path:
    """Features with captions, and a pretrained text tower with its tokenizer."""
    folder = tmp_path_factory.mktemp("parts")
    write_features(folder / "data")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    BertModel(BertConfig(hidden_size=8, **sizes)).save_pretrained(folder / "tower")
    tokenizer.save_pretrained(folder / "tower")
    return folder


def recipe_of(parts: Path, output: Path, **changed) -> Recipe:
    """Heads on frozen towers; a value of None leaves the key out."""
    given = {"text_tower": str(parts / "tower"), "text_config": None, "min_word_count": None, "seed": SEEDS[0]}
    given |= {"freeze_text_tower": True, "freeze_image_tower": True, "projection_type": "residual"}
    given |= {"head_dropout": 0.2, "stages": [{"name": "train"}]}
    values = tiny_values(parts / "data", output, **given | changed)
    return build_recipe({key: value for key, value in values.items() if value is not None})


@pytest.fixture(scope="module")
def done(parts, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("done") / "run"
    run_recipe(recipe_of(parts, output, joined_seeds=2))
    return output


def copied(parts: Path, done: Path, output: Path, **changed) -> Recipe:
    """The recipe of a copy of the finished run."""
    shutil.copytree(done, output)
    recipe = recipe_of(parts, output, joined_seeds=2, **changed)
    for each in (recipe, *recipes_of_seeds(recipe)):
        (each.output_dir / "recipe.yaml").write_text(each.to_yaml())
    return recipe


def test_the_result_is_what_joining_the_seeds_trained_alone_gives(parts, done, tmp_path):
    models = []
    for seed in SEEDS:
        run_recipe(recipe_of(parts, tmp_path / str(seed), seed=seed))
        assert same_outcome(tmp_path / str(seed), done / "seeds" / str(seed))
        models.append(load_vse_model(tmp_path / str(seed)))
    assert not torch.equal(models[0].visual_projection.weight, models[1].visual_projection.weight)
    expected = joined_models(models, "ab")
    assert expected.config.projection_dim == load_vse_model(done).config.projection_dim == 8
    found = load_file(done / "model.safetensors")
    state = expected.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_the_record_tells_of_every_seed(done):
    result = read_json(done / "metrics.json")
    alone = {str(seed): read_json(done / "seeds" / str(seed) / "metrics.json") for seed in SEEDS}
    assert result["seeds"] == {
        seed: {"validation": each["metrics"]["validation"]["metrics"]} for seed, each in alone.items()
    }
    assert [stage["name"] for stage in result["stages"]] == ["seed 3, train", "seed 4, train"]
    for stage, each in zip(result["stages"], alone.values(), strict=True):
        assert stage | {"name": "train"} == each["stages"][0] and stage["seconds"] > 0
    assert result["environment"] == alone["4"]["environment"]
    assert result["recipe"]["joined_seeds"] == 2 and "joined_seeds" not in alone["3"]["recipe"]
    told = run_summary(done, result)
    assert f"{result['seeds']['4']['validation']['rsum']:.1f}" in told and "validation seed 4" in told
    card = (done / "README.md").read_text()
    assert "| joined from | 2 trainings that differ in seed alone (3, 4): the vectors of each" in card
    assert "| validation, seed 4 alone | " in card and "unit vectors of 8 numbers" in card


def test_frozen_towers_run_once_for_all_seeds(done):
    assert len(list((done.parent / "cache").rglob("*.arrow"))) == 2  # the captions of two splits


def test_a_killed_run_goes_on_and_ends_the_same(parts, done, tmp_path, monkeypatch):
    output = tmp_path / "run"
    recipe = copied(parts, done, output)
    for folder in (output, output / "seeds" / "4"):
        (folder / "metrics.json").unlink()
        (folder / "model.safetensors").unlink()
    stage = output / "seeds" / "4" / "stages" / "train"
    (stage / "stage.json").unlink()  # as if killed between its two checkpoints
    shutil.rmtree(stage / "checkpoint-4")
    trained, train_stage = [], run.train_stage
    monkeypatch.setattr(
        run, "train_stage", lambda stage, *given: trained.append(stage.args.seed) or train_stage(stage, *given)
    )
    run_recipe(recipe)
    assert trained == [4] and same_outcome(output, done)
    with pytest.raises(ValueError, match="holds a run with a different joined_seeds "):
        run_recipe(recipe_of(parts, output, joined_seeds=3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"freeze_text_tower": False},
            "joined_seeds joins linear maps and heads, but text_model would be trained too: give",
        ),
        ({"loss_type": "clip"}, "but logit_scale would be trained too: give .*temperature that are not learned"),
        ({"text_pooling": "gpo"}, "but text_pooling would be trained too"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "freeze_text_tower": False}]},
            "but text_model would be trained too",
        ),
        (
            {"text_tower": None, "text_config": {"word_dim": 3, "hidden_size": 8}},
            "seed 4 has other towers, .* than seed 3: join runs of one recipe with pretrained towers",
        ),
        (
            {"text_tower": None, "text_config": {"word_dim": 3, "hidden_size": 4}},
            "seed 3 has no linear map on each of two towers",
        ),
        ({"max_broken_share": 0.1, "joined_seeds": 0}, "joined_seeds is a number from 1 to 100, got 0"),
        ({"joined_seeds": 2.5}, "joined_seeds must be int"),
        ({"seed": 2**32 - 2, "joined_seeds": 3}, "the last of joined_seeds: seed is a number from 0 to 4294967295"),
        ({"stages": [{"name": "a", "joined_seeds": 2}]}, "joined_seeds does nothing in a stage: write it above"),
        ({"stages": [{"name": "a", "seed": 7}]}, "stage 'a': seed would be that of all joined_seeds: write"),
        (
            {"init_from": "x/y", "text_tower": None, "control_dataset": "scenes"},
            "control_dataset chooses the weights of one training, and joined_seeds trains several: leave out one",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused_before_training(changed, message, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_stage", lambda *given: pytest.fail("a stage was begun"))
    with pytest.raises(ValueError, match=message) as caught:
        run_recipe(recipe_of(parts, tmp_path / "run", **{"joined_seeds": 2} | changed))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_joint_model_alone_is_pushed(parts, done, tmp_path, monkeypatch):
    hub = {"push_to_hub": True, "hub_model_id": "me/mine", "hub_token": "hf_secret", "hub_strategy": "end"}
    recipe = copied(parts, done, tmp_path / "run", **hub)
    assert not any(hub.keys() & each.values.keys() for each in recipes_of_seeds(recipe))
    pushed = []
    monkeypatch.setattr(run, "push_model", lambda folder, name, **given: pushed.append((Path(folder), name)))
    run_recipe(recipe)
    assert pushed == [(tmp_path / "run", "me/mine")] and same_outcome(tmp_path / "run", done)


def test_all_seeds_hold_out_the_same_images(tmp_path):
    (tmp_path / "images.jsonl").write_text(
        "".join(f'{{"image_features": [{row}.0, 1.0], "captions": ["{word}"]}}\n' for row, word in enumerate(WORDS))
    )
    values = {"dataset": "json", "data_dir": str(tmp_path), "validation_share": 0.3, "seed": 5, "joined_seeds": 3}
    recipe = build_recipe(values | {"freeze_text_tower": True})
    held_out = recipe.data.load()["validation"]["captions"]
    runs = recipes_of_seeds(recipe)
    assert [each.values["seed"] for each in runs] == [5, 6, 7]
    assert all(each.data == recipe.data for each in runs)
    other = build_recipe(values | {"seed": 6, "joined_seeds": 1}).data.load()["validation"]["captions"]
    assert runs[1].data.load()["validation"]["captions"] == held_out != other


def train_two(rank: int, parts: str, output: str) -> None:
    """One of two processes."""
    run_recipe(recipe_of(Path(parts), Path(output), joined_seeds=2, per_device_train_batch_size=4))


@slow
def test_two_processes_train_the_seeds_together(parts, tmp_path):
    output = tmp_path / "run"
    in_processes(2, train_two, str(parts), str(output))
    assert read_json(output / "metrics.json")["environment"]["processes"] == 2
    models = [load_vse_model(output / "seeds" / str(seed)) for seed in SEEDS]
    expected, found = joined_models(models, "ab").state_dict(), load_file(output / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
