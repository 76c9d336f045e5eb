"""A recipe: everything one run needs, in one flat YAML file, which `--field value` on the command line overrides.

The keys are collected in `settings.py`. Under `stages` stands a list of overrides, trained one after the other, each
from the weights of the one before: the paper's base stage without heads and its contrastive stage, or a frozen
backbone and its fine-tuning. `base` names another recipe, whose values hold where this one gives none. An unknown key
is an error that names the nearest known one.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hf_vse.data.plain_yaml import parse_yaml, to_yaml
from hf_vse.data.spec import DataSpec
from hf_vse.embed.adapters.own_models import CHANGED_BY
from hf_vse.files import read_text
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.objectives.own import is_own, load_objective, without_folder
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.effects import check_effects, own_images
from hf_vse.training.limits import TOWERS, check_fields
from hf_vse.training.settings import CROP, RESIZE, SECTIONS, DataArguments, ModelArguments, known_keys

STAGE_NAME = re.compile(r"[^\W.][\w .+-]{0,79}(?<![ .])")
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
MOST_BYTES = 2**20
OF_STAGES = ("name", "only_on")  # what an entry of `stages` has beside settings; only_on: gpu leaves it out on a CPU
SECRETS = ("hub_token",)  # never written to a file


@dataclass(frozen=True)
class Recipe:
    """One run, or one stage of it.

    Args:
        values: every key given, from the file and the command line.
        stages: overrides of each stage, with its `name` and perhaps `only_on`; a run without stages has one.
    """

    values: dict[str, Any]
    stages: tuple[dict[str, Any], ...] = ({"name": "train"},)

    def section(self, name: str) -> dict[str, Any]:
        known = {item.name for item in fields(SECTIONS[name])}
        return {key: value for key, value in self.values.items() if key in known}

    @property
    def data(self) -> DataSpec:
        """The data, with every value written out, so that a record of it does not depend on defaults."""
        written = vars(DataArguments(**self.section("data")))
        of_training = {name: getattr(VSETrainingArguments, name) for name in ("seed", "max_broken_share")}
        return DataSpec.of_recipe(of_training | self.values | written)

    @property
    def control(self) -> DataSpec | None:
        """The data on which little may be lost, see `interpolation.py`; by default their validation split."""
        if self.values.get("control_dataset") is None:
            return None
        options = {"split": "validation", "near_duplicates": "none"} | (self.values.get("control_options") or {})
        spec = DataSpec.of_recipe(
            options | {"dataset": self.values["control_dataset"], "seed": self.data.seed, "near_duplicates": "none"}
        )
        return replace(spec, split=options["split"])

    @property
    def model(self) -> ModelArguments:
        given = self.section("model")
        return ModelArguments(**given | {"loss_type": without_folder(given.get("loss_type"))})

    @property
    def output_dir(self) -> Path:
        return Path(self.values["output_dir"])

    def stage(self, overrides: dict[str, Any]) -> "Recipe":
        return replace(self, values=self.values | settings_of(overrides), stages=())

    @property
    def public_values(self) -> dict[str, Any]:
        """All given keys except secrets."""
        kept = {key: value for key, value in self.values.items() if key not in SECRETS}
        stages = [{key: value for key, value in stage.items() if key not in SECRETS} for stage in self.stages]
        return kept | {"stages": stages}

    def to_yaml(self) -> str:
        return to_yaml(self.public_values)


def check_key(key: str, where: str) -> None:
    """Raises ValueError for an unknown key; `text_config.hidden_size` is a part of a known one."""
    known = known_keys()
    if not isinstance(key, str):
        raise ValueError(f"{where}: the key {key!r:.60} is not text: write a known key")
    name, *parts = key.split(".")
    if name in known and (not parts or name in (*TOWERS, "control_options") and len(parts) == 1 and parts[0]):
        return
    if name == "stages":
        raise ValueError(f"{where}: stages stand in a recipe file once, as one list; {key!r:.60} cannot be given here")
    if name == "name":
        raise ValueError(f"{where}: a name belongs to an entry of `stages`; what a run is called by is its output_dir")
    near = get_close_matches(name, [*known, "stages"], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "see `hf-vse train --fields` for the keys there are"
    raise ValueError(f"{where}: unknown key {key!r:.60}; {hint}")


def read_file(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        beside = ", ".join(sorted(each.name for each in path.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"recipe {path} does not exist; recipes in {path.parent}: {beside:.600}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"recipe {path} has {path.stat().st_size / 1e6:.0f} MB, more than a recipe has: give another file"
        )
    values = parse_yaml(read_text(path), f"recipe {path}")
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise ValueError(f"recipe {path} must hold `key: value` lines, got {got}")
    return values


def check_section(values: dict[str, Any], where: str) -> None:
    """Raises ValueError for an unknown key, or a value that the key does not accept."""
    for key in values:
        check_key(key, where)
    check_fields(values, known_keys(), where)


def check_stage_name(name: Any, where: str) -> None:
    """Raises ValueError for a name that some system does not accept for a folder: a stage's folder has its name."""
    if not isinstance(name, str) or not STAGE_NAME.fullmatch(name) or name.split(".")[0].lower() in RESERVED:
        raise ValueError(
            f"{where}: the stage name {name!r:.60} cannot name a folder: use letters, digits, '-' and '_'"
            + ("" if isinstance(name, str) else ", in quotes where they look like a number")
        )


def stages_of(values: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """Removes the list of stages from the values, checks and returns it."""
    stages = values.pop("stages", None)
    if stages is None:
        return ({"name": "train"},)
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{where}: stages is a list of maps, each with a `name`, got {stages!r:.60}")
    names = [stage.get("name") for stage in stages]
    if None in names:
        raise ValueError(f"{where}: every entry of stages needs a `name` of its own, got {names!r:.120}")
    for name in names:
        check_stage_name(name, where)
    if len({name.lower() for name in names}) < len(names):
        raise ValueError(f"{where}: every entry of stages needs a `name` of its own, got {names!r:.120}")
    for stage in stages:
        place = f"{where}, stage {stage['name']!r}"
        if stage.get("only_on", "gpu") != "gpu":
            raise ValueError(f"{place}: only_on is gpu or left out, got {stage['only_on']!r:.60}")
        check_section(settings_of(stage), place)
    return tuple(dict(stage) for stage in stages)


def settings_of(stage: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stage.items() if key not in OF_STAGES}


def override(values: dict[str, Any], stages: Sequence[dict[str, Any]], key: str, value: Any) -> None:
    """Sets a key for the run and for every stage that has it."""
    name, *parts = key.split(".", 1)
    for place in (values, *(stage for stage in stages if name in stage)):
        place[name] = {**(place.get(name) or {}), parts[0]: value} if parts else value


def build_recipe(values: dict[str, Any], overrides: dict[str, Any] | None = None, where: str = "recipe") -> Recipe:
    """A checked recipe from the contents of a file and overrides.

    Raises:
        ValueError: an unknown key, with the nearest known one; a value that a key does not accept; a key without
            effect; a row loss of its own that cannot be used, whose file is executed here.
    """
    values = dict(values)
    stages = stages_of(values, where)
    check_section(values, where)
    for key, value in (overrides or {}).items():
        check_key(key, "command line")
        override(values, stages, key, value)
        name = key.split(".")[0]
        check_fields({name: values[name]}, known_keys(), "command line")
    values.setdefault("output_dir", "runs/vse")
    for place in (values, *stages):
        if is_own(loss_type := place.get("loss_type")):
            place["loss_type"] = loss_type.removesuffix(without_folder(loss_type)) + load_objective(loss_type)
    recipe = Recipe(values, stages)
    check_together(recipe, where)
    return recipe


def check_together(recipe: Recipe, where: str) -> None:
    """Raises ValueError for keys that contradict each other or have no effect."""
    if not (recipe.values["output_dir"] or "").strip():
        raise ValueError(f"{where}: output_dir is empty: give the folder for the run, such as runs/vse")
    check_effects(recipe.values, recipe.stages, where)
    for stage in (recipe.stage(each).values for each in recipe.stages):
        if stage.get("positives") == "entity" or stage.get("class_weight"):
            check_labels(recipe, where, "positives entity" if stage.get("positives") == "entity" else "class_weight")
    if recipe.values.get("control_dataset") is not None:
        check_control(recipe, where)
    if recipe.values.get("joined_seeds", 1) > 1:
        check_joined(recipe, where)
    if own_images(lambda key: recipe.values.get(key)):
        check_frame(recipe.model, where)
    passed_on: dict[str, Any] = {}
    for stage in recipe.stages:
        passed_on |= recipe.stage(stage).model.config_options
        try:
            VSEConfig(**passed_on | {"text_layers": 1})  # how many there are, the text tower tells when it is loaded
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}, stage {stage['name']!r}: {' '.join(str(error).split()):.300}") from error


def check_labels(recipe: Recipe, where: str, what: str) -> None:
    """Raises ValueError where groups of images are not the entities of a column alone."""
    if recipe.values.get("group_column") is None:
        raise ValueError(f"{where}: {what} needs labels: name their column as group_column")
    if recipe.data.near_duplicates != "none":
        raise ValueError(
            f"{where}: near_duplicates={recipe.data.near_duplicates} would make one entity of photographs that look "
            "alike: give near_duplicates: none"
        )
    if what == "positives entity" and recipe.values.get("control_dataset") is not None:
        raise ValueError(f"{where}: control_dataset chooses weights by recall, positives entity does not: give one")


def check_control(recipe: Recipe, where: str) -> None:
    """Raises ValueError for options that the control set does not have, and for stages whose weights cannot be
    interpolated with those of the start."""
    options = dict(recipe.values.get("control_options") or {})
    known = {item.name: item for item in fields(DataArguments) if item.name not in ("dataset", "streaming")}
    split = options.pop("split", "validation")
    if not isinstance(split, str) or not split:
        raise ValueError(f"{where}: control_options.split is the name of a split, got {split!r:.60}")
    for key in options.keys() - known.keys():
        near = get_close_matches(str(key), [*known, "split"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are split, {', '.join(known)}"
        raise ValueError(f"{where}: control_options has the unknown key {key!r:.60}; {hint:.300}")
    check_fields(options, known, f"{where}: control_options")
    first = recipe.stage(recipe.stages[0]).values
    for stage in recipe.stages[1:]:
        for key in CHANGED_BY:
            if key in stage and stage[key] != first.get(key):
                raise ValueError(
                    f"{where}, stage {stage['name']!r}: {key} gives other weights than the start has, so there is "
                    "nothing between them: write it above `stages`, or leave out control_dataset"
                )


def check_joined(recipe: Recipe, where: str) -> None:
    """Raises ValueError for keys that do not go together with several seeds."""
    if recipe.values.get("control_dataset") is not None:
        raise ValueError(
            f"{where}: control_dataset chooses the weights of one training, and joined_seeds trains several: "
            "leave out one of them"
        )
    for stage in recipe.stages:
        if "seed" in stage:
            raise ValueError(
                f"{where}, stage {stage['name']!r}: seed would be that of all joined_seeds: write it above `stages`"
            )
    last = recipe.values.get("seed", VSETrainingArguments.seed) + recipe.values["joined_seeds"] - 1
    check_fields({"seed": last}, known_keys(), f"{where}: the last of joined_seeds")


def check_frame(model: ModelArguments, where: str) -> None:
    """Raises ValueError for a crop that is larger than the image, unless a timm tower sets its own size."""
    resize, crop = model.resize, model.crop
    if model.image_tower is None:
        resize, crop = resize or RESIZE, crop or CROP
    if None not in (resize, crop) and crop > resize:
        raise ValueError(
            f"{where}: crop {crop} is larger than resize {resize}, which leaves black borders: give a resize of at "
            "least as many pixels"
        )


def with_base(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The contents of a recipe file on top of those of its `base`, a file named by the path from this one's folder."""
    if "base" not in values:
        return values
    if not isinstance(values["base"], str):
        raise ValueError(f"recipe {path}: base is the path of another recipe, got {values['base']!r:.60}")
    below = read_file(path.parent / values["base"])
    if "base" in below:
        raise ValueError(f"recipe {path}: its base {values['base']:.60} has a base too: name {below['base']!r:.60}")
    return below | {key: value for key, value in values.items() if key != "base"}


def read_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Reads a recipe file; keyword arguments win over it, and it wins over its `base`."""
    return build_recipe(with_base(read_file(path), Path(path)), overrides, where=str(path))


def help_parser(default: Path) -> argparse.ArgumentParser:
    """Prints the help; `parse_command_line` reads the command line."""
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [RECIPE] [--field value ...]",
        description=f"Trains an image-text dual encoder as RECIPE says (default: {default}); the command line wins.",
        epilog=f"""examples:
  accelerate launch scripts/train.py                                       the built-in data set, two minutes
  accelerate launch scripts/train.py {default.parent}/flickr8k_features_nce.yaml --data_dir DIR
  accelerate launch scripts/train.py RECIPE --loss_type hardnce --seed 1 --output_dir runs/hardnce-1
  accelerate launch scripts/train.py RECIPE --text_config.hidden_size 512   a part of a configuration

The same command again continues an interrupted run. Every other field of transformers.TrainingArguments
(--num_train_epochs, --bf16, --torch_compile, --push_to_hub, ...) is a field of a recipe too.""",
    )
    ours = set(VSETrainingArguments.__annotations__) | {"output_dir", "seed"}
    for title, section in SECTIONS.items():
        group = parser.add_argument_group(title)
        for item in fields(section):
            if item.init and (title != "training" or item.name in ours):
                shown = "" if item.default in (None, "") else f" [{item.default}]"
                text = item.metadata.get("help", "").replace("%", "%%") + shown
                group.add_argument(f"--{item.name}", metavar="VALUE", help=text)
    return parser


def parse_fields(argv: Sequence[str]) -> dict[str, Any]:
    """The values of `--field value ...`; a field without a value is true."""
    words = list(argv)
    known = known_keys()
    given: dict[str, Any] = {}
    while words:
        key, has_value, value = words.pop(0).partition("=")
        if not key.startswith("--"):
            raise ValueError(f"command line: {key!r:.60} belongs to no field; write --field value")
        if not has_value:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        key = key.removeprefix("--")
        is_text = key in known and known[key].type in (str, str | None) and value != "null"
        given[key] = value if is_text else parse_yaml(value, f"command line: --{key:.60} {value!r:.60}")
    return given


def parse_command_line(argv: Sequence[str], default: Path) -> Recipe:
    """The recipe of a command line: `[RECIPE] [--field value ...]`."""
    if {"-h", "--help"} & set(argv):
        help_parser(default).print_help()
        raise SystemExit
    named = bool(argv) and not argv[0].startswith("--")
    return read_recipe(argv[0] if named else default, **parse_fields(argv[named:]))
