"""Whatever stands in a recipe: it is read, or refused in one line."""

import string
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_vse.data.plain_yaml import parse_yaml, to_yaml
from hf_vse.training.recipe import Recipe, build_recipe, parse_command_line
from hf_vse.training.settings import known_keys

bounded = settings(max_examples=50, deadline=None, derandomize=True, database=None)

numbers = st.integers() | st.floats() | st.booleans() | st.none()
words = st.text(max_size=12) | st.sampled_from(["nce", "hardnce", "no", "2e-4", "1_000", "null", "12:30", "0x1F", "~"])
plain = st.recursive(
    numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
writable = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
kept = st.recursive(
    st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | writable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(writable, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(sorted(known_keys())) | words
names = st.sampled_from(["a", "base", "../up", ""]) | words


def read(build, *arguments) -> Recipe | None:
    """The recipe, or None where it was refused in one short line."""
    try:
        return build(*arguments)
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 600, str(error)
        return None


def parse(text: str) -> Recipe:
    values = parse_yaml(text, "recipe")
    if not isinstance(values, dict):
        raise ValueError("no map")
    return build_recipe(values)


@bounded
@given(st.text(max_size=200) | st.text("[]{}:,&*!|>-?#'\"%@`\n\t ~<=ab12.e", max_size=60))
def test_any_text_is_a_recipe_or_one_line(text):
    read(parse, text)


@bounded
@given(st.dictionaries(keys, plain, max_size=4), st.lists(st.dictionaries(keys, plain, max_size=2), max_size=2), names)
def test_any_values_are_a_recipe_or_one_line(values, stages, name):
    named: list[dict[str, Any]] = [{"name": name if place else "first"} | stage for place, stage in enumerate(stages)]
    recipe = read(build_recipe, values | ({"stages": named} if named else {}))
    if recipe is not None:
        assert build_recipe(parse_yaml(recipe.to_yaml(), "again")).to_yaml() == recipe.to_yaml()


@bounded
@given(st.lists(words | st.sampled_from(["--seed", "--text_config.word_dim=", "--loss_type"]), max_size=5))
def test_any_command_line_is_a_recipe_or_one_line(tmp_path_factory, arguments):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text("dataset: scenes\n")
    if not {"-h", "--help"} & set(arguments):
        read(parse_command_line, [str(path), *arguments], path)


@bounded
@example({"\x85": "\u2028", "a": "\r\n", "\ufeff": " "})
@given(st.dictionaries(writable, kept, max_size=5))
def test_what_is_written_is_read_as_it_was(values):
    assert parse_yaml(to_yaml(values), "here") == values


@bounded
@given(
    st.fixed_dictionaries(
        {"dataset": st.just("scenes")},
        optional={
            "seed": st.integers(0, 2**32 - 1),
            "learning_rate": st.floats(0, 1),
            "loss_type": st.sampled_from(["nce", "siglip"]),
            "num_train": st.integers(1, 1000),
            "data_dir": st.text(string.printable, min_size=1),
            "image_std": st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
            "text_config": st.fixed_dictionaries({"word_dim": st.integers(1, 300)}),
            "stages": st.just([{"name": "a"}, {"name": "b", "learning_rate": 2e-5}]),
        },
    )
)
def test_good_recipes_survive_their_file(values):
    recipe = build_recipe(values)
    again = build_recipe(parse_yaml(recipe.to_yaml(), "again"))
    assert again == recipe
    assert yaml.safe_load(recipe.to_yaml()).keys() == values.keys() | {"output_dir", "stages"}
