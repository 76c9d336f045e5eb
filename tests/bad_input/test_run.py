"""The folder of a run, its files damaged one after the other, and the same command again."""

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml

from hf_vse.cli.main import main
from tests.bad_input.table import Case, one_clear_line
from tests.training.tiny_runs import tiny_values, write_features

STAGE = "run/stages/base"
QUIET = ["train", "r.yaml", "--quiet"]


@cache
def finished() -> Path:
    """A folder with a recipe and its finished run, made once."""
    folder = Path(tempfile.mkdtemp(prefix="hf_vse_runs_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = write_features(folder / "data")
    changed = {"frozen_cache_dir": None, "stages": [{"name": "base"}]}
    values = tiny_values(data, Path("run"), **changed)
    (folder / "r.yaml").write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    with contextlib.chdir(folder):
        assert main(QUIET) == 0
    return folder


def run_with(change: Callable[[Path], None], *words: str) -> Callable:
    """The finished run, changed, and the command that made it."""

    def arrange(parts, folder: Path) -> list[str]:
        shutil.copytree(finished() / "run", folder / "run")
        shutil.copyfile(finished() / "r.yaml", folder / "r.yaml")
        change(folder)
        return [*QUIET, *words]

    return arrange


def only_recipe(change: Callable[[Path], None], *words: str) -> Callable:
    """The recipe, without a run."""

    def arrange(parts, folder: Path) -> list[str]:
        shutil.copyfile(finished() / "r.yaml", folder / "r.yaml")
        change(folder)
        return [*QUIET, *words]

    return arrange


def with_content(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Another content for a file; None cuts it in half."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def unfinished(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """As if the run had been killed after its last checkpoint."""

    def both(folder: Path) -> None:
        without(f"{STAGE}/stage.json", f"{STAGE}/model.safetensors", "run/metrics.json")(folder)
        change(folder)

    return both


DAMAGE = {
    "empty": b"",
    "cut": None,
    "garbage": bytes(range(256)),
    "list": b"[1, 2]",
    "text": b'"text"',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 1500,
}
READ = {"run/recipe.yaml": "recipe.yaml", f"{STAGE}/stage.json": "stage.json"}
READ |= {f"{STAGE}/{name}": "model of a stage cannot be used" for name in ("config.json", "model.safetensors")}


def fill(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")


def one_file(folder: Path) -> None:
    (folder / "run").write_text("mine")


def recipe_of_a_person(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text("dataset: scenes\noutput_dir: run\nstages: [{name: base}]\n")


def looped(folder: Path) -> None:
    (folder / "run").symlink_to("run")


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "with files of a person": (fill, "output_dir run holds files that are not from a run"),
    "a file": (one_file, "output_dir run is a file"),
    "a link to itself": (looped, "output_dir run is a broken symbolic link"),
    "with a recipe of a person": (recipe_of_a_person, "recipe.yaml was not written by a run"),
}
CHECKPOINTS = {
    "state garbage": ("trainer_state.json", b"garbage"),
    "weights cut": ("model.safetensors", None),
    "optimizer cut": ("optimizer.pt", None),
}

CASES = [
    *(
        Case(f"run/{Path(name).name} {what}", run_with(with_content(name, content)), says)
        for name, says in READ.items()
        for what, content in DAMAGE.items()
    ),
    *(Case(f"run/{name}", only_recipe(change), says) for name, (change, says) in PLACES.items()),
    Case("run/recipe.yaml missing", run_with(without("run/recipe.yaml")), "holds files that are not from a run"),
    Case("run/model missing", run_with(without(f"{STAGE}/model.safetensors")), "model of a stage cannot be used"),
    Case("run/config missing", run_with(without(f"{STAGE}/config.json")), "model of a stage cannot be used"),
    Case("run/another seed", run_with(lambda folder: None, "--seed", "7"), "holds a run with a different seed "),
    Case("run/another objective", run_with(lambda folder: None, "--loss_type", "hinge_max"), "different loss_type"),
    Case("run/under the recipe", only_recipe(lambda folder: None, "--output_dir", "r.yaml/x"), "which is a file"),
    Case("run/features missing", only_recipe(lambda folder: None, "--data_dir", "none"), "data_dir='none' does not"),
    Case(
        "run/cache under a file",
        only_recipe(lambda folder: None, "--frozen_cache_dir", "r.yaml/x", "--freeze_text_tower"),
        "frozen_cache_dir r.yaml/x",
    ),
    Case("run/again", run_with(lambda folder: None), accepted=True),
    Case("run/stage.json missing", run_with(without(f"{STAGE}/stage.json")), accepted=True),
    Case("run/metrics.json garbage", run_with(with_content("run/metrics.json", b"garbage")), accepted=True),
    Case("run/README.md garbage", run_with(with_content("run/README.md", b"\xff\xfe")), accepted=True),
    *(
        Case(
            f"run/checkpoint {what}",
            run_with(unfinished(with_content(f"{STAGE}/checkpoint-4/{name}", content))),
            accepted=True,
        )
        for what, (name, content) in CHECKPOINTS.items()
    ),
]

test_one_clear_line = one_clear_line(CASES)
