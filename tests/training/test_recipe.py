import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
import yaml
from transformers import PreTrainedConfig

from hf_vse.data.sources import load_pairs
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.training.check_objective import check_objective
from hf_vse.training.documented import documented, documented_in
from hf_vse.training.limits import TOWERS
from hf_vse.training.recipe import build_recipe, parse_command_line, read_recipe
from hf_vse.training.run import training_arguments
from hf_vse.training.settings import CONFIG_FIELDS, NO_KEYS, known_keys
from tests.faults.killing import slow

FILES = sorted((Path(__file__).parents[2] / "scripts" / "recipes").rglob("*.yaml"))
RECIPES = [path for path in FILES if path.parent.name != "grids"]
DEFAULT = Path(__file__).parents[2] / "scripts" / "recipes" / "quickstart.yaml"


def write(folder, text) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_of_the_project_are_valid(path):
    recipe = read_recipe(path)
    assert recipe.data.source and recipe.output_dir.parts[0] == "runs"
    for overrides in recipe.stages:
        stage = recipe.stage(overrides)
        assert "loss_type" in stage.model.config_options or stage.model.init_from  # which has its own
        training = stage.section("training").keys()
        assert "learning_rate" in training and {"num_train_epochs", "max_steps"} & training


def test_command_line_wins_and_values_are_typed(tmp_path):
    path = write(tmp_path, "dataset: flickr8k\nlearning_rate: 2e-4\nloss_type: nce\n")
    argv = [
        path,
        "--loss_type",
        "hardnce",
        "--seed=3",
        "--bf16",
        "--word_dropout",
        "1e-1",
        "--text_config.word_dim",
        "5",
    ]
    recipe = parse_command_line(argv, DEFAULT)
    assert recipe.section("training") == {
        "learning_rate": 2e-4, "seed": 3, "bf16": True, "word_dropout": 0.1, "output_dir": "runs/vse",
    }  # fmt: skip
    assert recipe.model.loss_type == "hardnce" and recipe.model.text_config == {"word_dim": 5}


def test_no_argument_means_the_quickstart():
    assert parse_command_line([], DEFAULT).data.source == "scenes"


def test_stages_override_and_the_command_line_overrides_them(tmp_path):
    text = "loss_type: hinge_sum\nstages:\n- {name: base}\n- {name: main, loss_type: hardnce, num_train_epochs: 3}\n"
    recipe = parse_command_line([write(tmp_path, text), "--num_train_epochs", "1"], DEFAULT)
    stages = [recipe.stage(overrides) for overrides in recipe.stages]
    assert [stage.model.loss_type for stage in stages] == ["hinge_sum", "hardnce"]
    assert [stage.values["num_train_epochs"] for stage in stages] == [1, 1]


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("lerning_rate: 1", [], "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("seed: 1", ["--los_type", "nce"], "command line: unknown key 'los_type'; did you mean 'loss_type'"),
        ("stages: [{name: a, tempreture: 1}]", [], "stage 'a': unknown key 'tempreture'; did you mean 'temperature'"),
        ("stages: [{name: a}, {loss_type: nce}]", [], "every entry of stages needs a `name`"),
        ("zzzzqqqq: 1", [], "unknown key 'zzzzqqqq'; see `hf-vse train --fields`"),
        ("[1, 2]", [], "must hold `key: value` lines, got a list"),
        ("a: b: c", [], "is not valid YAML"),
        ("seed: 1", ["stray"], "'stray' belongs to no field; write --field value"),
        ("temperature: hot", [], "temperature must be float, got 'hot'"),
        ("num_train: 1.5", [], "num_train must be int, got 1.5"),
        ("learning_rate: [1]", [], r"learning_rate must be float, got \[1\]"),
        ("streaming: maybe", [], "streaming must be true or false, got 'maybe'"),
    ],
)
def test_a_typo_is_one_clear_line(text, argv, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        parse_command_line([write(tmp_path, text), *argv], DEFAULT)
    assert "\n" not in str(caught.value)


def test_a_recipe_stands_on_its_base(tmp_path):
    (tmp_path / "below.yaml").write_text("dataset: flickr8k\nloss_type: nce\ntemperature: 0.05\n")
    path = write(tmp_path, "base: below.yaml\ntemperature: 0.07\n")
    assert read_recipe(path, seed=3) == build_recipe(
        {"dataset": "flickr8k", "loss_type": "nce", "temperature": 0.07, "seed": 3}
    )
    (tmp_path / "above.yaml").write_text("base: recipe.yaml\n")
    with pytest.raises(ValueError, match="its base recipe.yaml has a base too: name 'below.yaml'"):
        read_recipe(tmp_path / "above.yaml")
    with pytest.raises(ValueError, match="base is the path of another recipe, got 3"):
        read_recipe(write(tmp_path, "base: 3"))
    with pytest.raises(FileNotFoundError, match="nowhere.yaml does not exist; recipes in .*below.yaml"):
        read_recipe(write(tmp_path, "base: nowhere.yaml"))


def test_every_recipe_of_a_method_is_one_of_the_model_it_stands_on():
    """`test_recipes_of_the_project_are_valid` reads them; here the configuration of every stage is built."""
    found = [path for path in RECIPES if path.parent.name == "methods"]
    assert len(found) >= 10
    for path in found:
        recipe = read_recipe(path)
        assert recipe.output_dir == Path("runs/methods") / path.stem
        for overrides in recipe.stages:
            stage = recipe.stage(overrides)
            config = VSEConfig(**stage.model.config_options | {"text_layers": 1})  # without the text tower
            check_objective(config.loss_type, training_arguments(stage, path.parent), config.objective_settings)


def test_missing_recipe_names_those_there_are():
    with pytest.raises(FileNotFoundError, match="quickstrt.yaml does not exist; recipes in .*quickstart.yaml"):
        read_recipe(DEFAULT.parent / "quickstrt.yaml")


def test_recipe_survives_yaml():
    recipe = build_recipe({"dataset": "scenes", "learning_rate": 1e-3, "stages": [{"name": "a", "seed": 2}]})
    again = build_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe and again.to_yaml() == recipe.to_yaml()


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"], DEFAULT)
    text = capsys.readouterr().out
    assert "accelerate launch scripts/train.py" in text and "--hard_negative_warmup_epochs" in text
    assert "continues an interrupted run" in text


def test_options_of_the_data_are_those_of_load_pairs():
    """Name, default and type; what is left out belongs to training, or to the machine."""
    options = {name: item for name, item in signature(load_pairs).parameters.items() if item.kind is item.KEYWORD_ONLY}
    assert set(NO_KEYS) < options.keys() and len(options) > 10
    for name in options.keys() - set(NO_KEYS):
        item = known_keys()[name]
        assert item.default == options[name].default, name
        kinds = set(get_args(options[name].annotation) or [options[name].annotation]) - {Path}
        assert set(get_args(item.type) or [item.type]) == kinds, name
        assert len(item.metadata["help"].split()) > 2, name


def test_fields_of_the_model_are_those_of_its_configuration():
    own = {item.name for item in fields(VSEConfig)} - {item.name for item in fields(PreTrainedConfig)}
    assert own == {*CONFIG_FIELDS, *TOWERS, "dual_encoder_config"}
    for name in own - {"dual_encoder_config"}:  # that of init_from
        assert known_keys()[name].default is None and len(known_keys()[name].metadata["help"].split()) > 2, name


WIDER = '''
from hf_vse.model import configuration_vse

class VSEConfig(configuration_vse.VSEConfig):
    """A configuration with another field.

    Args:
        wobble: how much it `wobbles`,
            in metres.
    """

    model_type = "vse_wider"
    wobble: float | int = 0.5

configuration_vse.VSEConfig = VSEConfig
from hf_vse.training.recipe import build_recipe, help_parser
from pathlib import Path

recipe = build_recipe({"dataset": "precomp", "wobble": 2})
print(recipe.model.config_options, recipe.stage({"name": "a", "wobble": 3}).model.config_options)
print(" ".join(help_parser(Path("r.yaml")).format_help().split()))
for values in ({"wobbel": 1}, {"wobble": "much"}):
    try:
        build_recipe(values)
    except ValueError as error:
        print(error)
'''


@slow
def test_a_field_added_to_the_configuration_is_one_of_recipes():
    done = subprocess.run([sys.executable, "-c", WIDER], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("{'wobble': 2} {'wobble': 3}")
    assert "--wobble VALUE How much it wobbles, in metres." in done.stdout
    assert "unknown key 'wobbel'; did you mean 'wobble'" in done.stdout
    assert "wobble must be float, got 'much'" in done.stdout


def test_a_docstring_is_read_without_importing_its_module():
    texts = documented_in(Path(load_pairs.__code__.co_filename), "load_pairs")
    assert texts == documented(load_pairs.__doc__)
    assert texts.keys() == signature(load_pairs).parameters.keys()
    assert texts["image_column"] == "column of the images, where its name does not tell."
    assert documented("Nothing.") == documented(None) == {}
